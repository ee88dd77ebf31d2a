"""Data parallelism: the mean of the processes' gradients, and the same bits after a checkpoint."""

from __future__ import annotations

import os
import pathlib
import signal
from typing import Any

import jax
import numpy as np
import pytest
from fleet_cases import TWO_STAGES, Small, go_on, same

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.learning.fleet.base import FleetConfig
from alohas2r.learning.ppo.apart import PpoWorld
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.parallel import DataParallel, Rank, together_in
from alohas2r.learning.ppo.places import fitted
from alohas2r.learning.ppo.train import teacher_world

pytestmark = pytest.mark.compiles


class Here:
    """The only process of a data-parallel training: this one."""

    count = 1

    def __init__(self, rank: Rank[Any]) -> None:
        self._methods = {
            "collect": rank.collect,
            "update": rank.update,
            "kept": rank.kept,
            "restore": rank.restore,
        }

    def ask(self, name: str, *each: tuple[object, ...]) -> list[Any]:
        return [self._methods[name](*(each[0] if each else ()))]


def test_a_process_alone_learns_as_without_others(tmp_path: pathlib.Path) -> None:
    small = Small(tmp_path, 8)
    plain = small.teacher
    small.lender = PpoWorld(plain)
    state, figures = go_on(plain, plain.init(), 1)
    rank = Rank(teacher_world, small.plan._replace(parallel=True), 0)
    training = DataParallel(plain, Here(rank))
    begun, said = go_on(training, training.init(), 1)
    kept = training.checkpointed(begun)
    assert same(kept.worlds, [state[1:]])
    assert kept.learner is not None
    ours, theirs = jax.tree.leaves(kept.learner), jax.tree.leaves(state.learner)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, np.asarray(other), rtol=2e-3, atol=1e-5)
    assert said[0] == pytest.approx(figures[0], rel=1e-2, abs=1e-4)
    # Another process goes on from what was kept.
    unbroken, _ = go_on(training, begun, 1)
    last = training.checkpointed(unbroken)
    again, _ = go_on(training, training.restored(kept), 1)
    assert same(training.checkpointed(again), last)


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        (PpoConfig(num_envs=10, minibatches=2), 3),
        (PpoConfig(num_envs=6, unroll=1, minibatches=6), 2),
    ],
)
def test_what_cannot_be_shared_equally(config: PpoConfig, workers: int) -> None:
    fleet = FleetConfig("data-parallel", workers)
    with pytest.raises(ConfigError, match="cannot be shared equally by"):
        fitted(fleet, config)
    with pytest.raises(ConfigError, match="lag is of simulators apart"):
        FleetConfig("data-parallel", 2, lag=1)
    assert fitted(FleetConfig("data-parallel", 2), PpoConfig(num_envs=64)).world == 32


@pytest.mark.long
def test_processes_learn_together_and_go_on_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    small = Small(tmp_path, 4, TWO_STAGES)
    plan = small.plan._replace(parallel=True)
    with together_in(teacher_world, plan, 2) as ranks:
        training = DataParallel(small.teacher, ranks)
        state, figures = go_on(training, training.init(), 3)
        unbroken = training.checkpointed(state)
        learners = [learner for learner, _ in ranks.ask("kept")]
        assert same(learners[0], learners[1])
    assert unbroken.worlds is not None
    assert not np.array_equal(unbroken.worlds[0].env.context, unbroken.worlds[1].env.context)
    assert np.isfinite([value for one in figures for value in one.values()]).all()
    with together_in(teacher_world, plan, 2) as ranks:
        training = DataParallel(small.teacher, ranks)
        small.teacher.enter(0)
        kept = training.checkpointed(go_on(training, training.init(), 1)[0])
        os.kill(ranks._processes[1].pid or 0, signal.SIGKILL)
        with pytest.raises(BackendUnavailable, match="died"):
            go_on(training, kept, 1)
    with together_in(teacher_world, plan, 2) as ranks:
        training = DataParallel(small.teacher, ranks)
        state, _ = go_on(training, training.restored(kept), 2)
        assert same(training.checkpointed(state), unbroken)
