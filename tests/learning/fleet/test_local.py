"""Simulators apart from the learner: the same bits with any number of workers, and after a checkpoint."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import fleet_cases
import numpy as np
import pytest
from fleet_cases import SEED, TWO_STAGES, UPDATES, Recorded, Small, go_on, same

from alohas2r.learning.fleet.apart import ApartState
from alohas2r.learning.fleet.local import LocalFleet
from alohas2r.learning.ppo.apart import PpoApart, PpoWorld, acting
from alohas2r.learning.ppo.envs import make_env
from alohas2r.learning.ppo.learner import LearnerState

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Four worlds of two environments."""
    return Small(tmp_path_factory.mktemp("apart"), 2)


@contextlib.contextmanager
def apart(small: Small, workers: int, lag: int) -> Iterator[tuple[PpoApart, Recorded]]:
    fleet = Recorded(LocalFleet(small.setup, workers))
    try:
        yield PpoApart(small.teacher, fleet, lag), fleet
    finally:
        fleet.close()


class Done(NamedTuple):
    """A training that was gone through."""

    state: ApartState[LearnerState]  # with that of all worlds
    figures: list[dict[str, Any]]
    fleet: Recorded
    learners: list[Any]  # before each update, and after the last


@pytest.fixture(scope="module")
def unbroken(small: Small) -> dict[int, Done]:
    """By lag, with one worker."""
    result = {}
    for lag in (0, 1):
        with apart(small, 1, lag) as (training, fleet):
            state, figures = training.init(), []
            learners = [state.learner]
            for _ in range(UPDATES):
                state, said = go_on(training, state, 1)
                figures += said
                learners.append(state.learner)
            result[lag] = Done(training.checkpointed(state), figures, fleet, learners)
    return result


@pytest.mark.long
def test_one_world_is_the_training_without_a_fleet_in_every_stage(tmp_path: pathlib.Path) -> None:
    whole = Small(tmp_path, 8, TWO_STAGES)
    plain = whole.teacher
    assert plain.iterations == 3
    # It is one of all environments, as there is one world.
    assert same(make_env(whole.settings, SEED, 1).context, plain.env.context)
    whole.lender = PpoWorld(plain)
    plain.part = None
    state = plain.init()
    with apart(whole, 1, 0) as (training, fleet):
        ours = training.init()
        for _ in range(3):
            state, data = plain.collect(state)
            state, said = plain.update(state, data)
            ours, figures = go_on(training, ours, 1)
            assert figures == [said]
        kept = training.checkpointed(ours)
    assert [order.begins for order, _ in fleet.orders] == [True, False, True]
    expected = plain.checkpointed(state)
    assert same(kept.learner, expected.learner)
    assert kept.worlds is not None
    assert same(kept.worlds, expected[1:])


@pytest.mark.parametrize(("workers", "lag"), [(2, 0), (4, 0), (3, 1)])
def test_any_number_of_workers_comes_to_the_same_bits(
    small: Small, unbroken: dict[int, Done], workers: int, lag: int
) -> None:
    with apart(small, workers, lag) as (training, _):
        state, figures = go_on(training, training.init(), UPDATES)
        assert same(training.checkpointed(state), unbroken[lag].state)
    assert figures == unbroken[lag].figures


def test_worlds_differ(unbroken: dict[int, Done]) -> None:
    worlds = unbroken[0].state.worlds
    assert worlds is not None
    for other in worlds[1:]:
        assert not np.array_equal(worlds[0].env.context, other.env.context)
        assert not np.array_equal(worlds[0].readout.qpos, other.readout.qpos)
    actions = [one.samples.rollout.raw_action for one in unbroken[0].fleet.rolled[0]]
    spread = [one.samples.rollout.logits[..., :7] for one in unbroken[0].fleet.rolled[0]]
    noise = [action - mean for action, mean in zip(actions, spread, strict=True)]
    assert not np.allclose(noise[0], noise[1])


@pytest.mark.parametrize("lag", [0, 1])
def test_a_rollout_acts_with_parameters_by_number(unbroken: dict[int, Done], lag: int) -> None:
    done = unbroken[lag]
    assert [order.version for order, _ in done.fleet.orders] == list(range(UPDATES))
    assert [order.begins for order, _ in done.fleet.orders] == [True] + [False] * (UPDATES - 1)
    for order, policy in done.fleet.orders:
        behind = acting(done.learners[max(order.version - lag, 0)])
        assert same(policy.params, behind.params)
        assert int(policy.updates) == order.version
    assert (int(done.state.learner.updates), lag) == (UPDATES, lag)


def test_one_version_behind_is_another_training(unbroken: dict[int, Done]) -> None:
    assert same(unbroken[0].learners[1], unbroken[1].learners[1])
    assert not same(unbroken[0].learners[2], unbroken[1].learners[2])


@pytest.mark.parametrize(("lag", "after"), [(0, 3), (1, 2), (1, 3)])
def test_what_a_checkpoint_keeps_goes_on_to_the_same_bits(
    small: Small, unbroken: dict[int, Done], lag: int, after: int
) -> None:
    with apart(small, 1, lag) as (training, _):
        state, _ = go_on(training, training.init(), after)
        kept = training.checkpointed(state)
    with apart(small, 2, lag) as (training, _):
        template = training.checkpointed(training.init())
        assert [leaf.shape for leaf in fleet_cases.jax.tree.leaves(template)] == [
            leaf.shape for leaf in fleet_cases.jax.tree.leaves(kept)
        ]
        state, _ = go_on(training, training.restored(kept), UPDATES - after)
        assert same(training.checkpointed(state), unbroken[lag].state)
