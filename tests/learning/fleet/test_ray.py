"""Workers on a Ray cluster of two nodes on loopback, which are killed: the same bits."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import fleet_cases
import numpy as np
import pytest
from fleet_cases import counting, same

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.learning.fleet.base import Fleet, Setup
from alohas2r.learning.fleet.local import LocalFleet
from alohas2r.learning.fleet.ray import RayFleet, Resources
from alohas2r.learning.fleet.worker import Order, Rolled, digest

TESTS = pathlib.Path(fleet_cases.__file__).parent
LOOPBACK = "127.0.0.1"
WORLDS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "node_ip_address": LOOPBACK, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield made, made.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    finally:
        made.shutdown()
        patch.undo()


def rollouts(fleet: Fleet, versions: range) -> list[list[Rolled]]:
    result = []
    for version in versions:
        order = Order(version, version // 6, version % 6 == 0, version % 4 == 3)
        fleet.order(order, np.float64(version))
        result.append(fleet.gather())
    return result


@pytest.mark.long
def test_workers_that_differ_or_find_no_room_are_refused(cluster: Any) -> None:
    address = cluster[0].address
    with pytest.raises(ConfigError, match=r"other scene .*: scene, not elsewhere"):
        RayFleet(Setup(counting, "scene", WORLDS, "elsewhere"), 1, address)
    with pytest.raises(BackendUnavailable, match=r"cannot begin .*there is no such scene"):
        RayFleet(Setup(counting, "", WORLDS, "scene"), 1, address)
    with pytest.raises(BackendUnavailable, match="no room for 1 workers of 9 CPUs"):
        RayFleet(Setup(counting, "scene", WORLDS, ""), 1, address, Resources(cpus=9), 0.5)


def test_workers_and_a_node_are_killed_and_the_bits_stay_the_same(cluster: Any) -> None:
    made, second = cluster
    setup = Setup(counting, "scene", WORLDS, "scene")
    here = LocalFleet(setup, 1)
    expected = rollouts(here, range(16))
    fleet = RayFleet(setup, 3, made.address, patience_s=100.0)
    try:
        did = rollouts(fleet, range(2))
        workers = [seat.actor for seat in fleet._seats]
        pids = [fleet._answer(worker.identity.remote()).process for worker in workers]
        os.kill(pids[0], signal.SIGKILL)  # between two rollouts
        did += rollouts(fleet, range(2, 5))
        fleet.order(Order(5, 0, False, False), np.float64(5))
        os.kill(pids[1], signal.SIGKILL)  # it owes an answer
        before = [digest(state) for state in fleet.states(5)]
        assert before == [one.digest for one in expected[4]]
        did.append(fleet.gather())
        fleet._patience_s = 5.0
        made.remove_node(second)  # its worlds go to the others
        did += rollouts(fleet, range(6, 10))
        assert sorted(n for seat in fleet._seats for n in seat.numbers) == list(range(WORLDS))
        assert len(fleet._seats) < 3
        kept = fleet.states(10)
        did += rollouts(fleet, range(10, 12))
        fleet.restore(10, kept)
        again = rollouts(fleet, range(10, 16))
        assert same(again[:2], did[10:12])
        did += again[2:]
    finally:
        fleet.close()
    for ours, theirs in zip(did, expected, strict=True):
        assert [one.digest for one in ours] == [one.digest for one in theirs]
        assert same([one.samples for one in ours], [one.samples for one in theirs])
