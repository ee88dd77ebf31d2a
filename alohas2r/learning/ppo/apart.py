"""PPO whose environments are a fleet's: workers let the policy act, the learner learns.

With lag 0, rollout v acts with the parameters after v updates, and the learner waits for it. With lag 1 it acts with
those after v - 1, while the learner makes update v - 1: by number, never by what happens to be there. Either way the
same run comes to the same bits with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.learning.fleet.base import HAND_OVER, Fleet, FleetConfig, Setup
from alohas2r.learning.fleet.worker import Order, World, digest_of_model
from alohas2r.learning.ppo.algorithm import PpoAlgorithm, PpoData, PpoState, Simulated, check_finite
from alohas2r.learning.ppo.learner import WORLDS, LearnerState, Rollout
from alohas2r.learning.run.loop import Figures
from alohas2r.sim.engines.base import snapshot


class Samples(NamedTuple):
    """What one world did in an unroll."""

    rollout: Rollout
    final: np.ndarray  # [N, P] the critic's view after it
    measures: PyTree  # of the last step, [N, ...]
    finite: np.ndarray  # [T, N]
    before: np.ndarray  # [N, n] the simulations before it


class Before(NamedTuple):
    """The simulations of all worlds before an unroll."""

    rows: np.ndarray  # [N, n]


class PpoWorld:
    """One world of a training.

    Args:
      training: of that part of the environments.
    """

    def __init__(self, training: PpoAlgorithm) -> None:
        self.training = training
        assert training.part is not None
        self._number = training.part.number

    @property
    def model(self) -> str:
        """Digest of the compiled scene."""
        return digest_of_model(self.training.env.task.scene.model)

    def begin(self, stage: int) -> PyTree:
        """Returns the state at the beginning of a stage."""
        self.training.enter(stage)
        return _kept(self.training.start())

    def roll(self, stage: int, acting: LearnerState, state: PyTree) -> tuple[PyTree, Samples]:
        """Lets the policy act for one unroll."""
        training = self.training
        training.enter(stage)
        learner = acting
        if self._number:
            key = jax.random.fold_in(jax.random.fold_in(learner.key, WORLDS), self._number)
            learner = learner._replace(key=key)
        begun = PpoState(learner, *state)
        after, data = training.roll(begun)
        samples = Samples(
            *jax.tree.map(np.asarray, (data.rollout, data.final, data.measures)),
            finite=np.concatenate([np.atleast_2d(finite) for finite in data.finite]),
            before=np.asarray(begun.physics.rows),
        )
        return _kept(Simulated(*after[1:])), samples


Plan = TypeVar("Plan")


def setup_of(
    training: PpoAlgorithm,
    fleet: FleetConfig,
    build: Callable[[Plan, int, World | None], World],
    plan: Plan,
) -> Setup[Plan]:
    """Returns what a fleet is to simulate for a training.

    Args:
      training: the learner's. fleet: its settings. build, plan: see `Worker`.
    """
    worlds = fleet.check_worlds(training.stages[0].config.num_envs)
    return Setup(build, plan, worlds, PpoWorld(training).model)


def _kept(own: Simulated) -> PyTree:
    """Returns a world's state as arrays of NumPy that later steps leave alone."""
    return jax.tree.map(np.asarray, own._replace(physics=snapshot(own.physics)))


def acting(learner: LearnerState) -> LearnerState:
    """Returns of a learner what a policy acts with, as arrays of NumPy."""
    bare = learner._replace(
        params={"policy": learner.params["policy"]}, optimizer=None, value_stats=None, start=None
    )
    return jax.tree.map(np.asarray, bare)


class ApartState(NamedTuple):
    """All that changes in a training whose environments are elsewhere."""

    learner: LearnerState
    next: LearnerState | None = None  # with lag 1: what the next rollout acts with
    worlds: tuple[PyTree, ...] | None = (
        None  # only in a checkpoint, and before they go to the fleet
    )


class Apart:
    """A training by PPO whose environments are a fleet's.

    Args:
      training: learns, evaluates, and writes the artifacts; its own environments are those of world 0.
      fleet: of all worlds. lag: 0 or 1.
    """

    def __init__(self, training: PpoAlgorithm, fleet: Fleet, lag: int) -> None:
        self.training, self.fleet, self.lag = training, fleet, lag
        self.label, self.iterations = training.label, training.iterations
        self.steps_per_iteration = training.steps_per_iteration
        self.losses, self.remedy = training.losses, training.remedy
        self.artifacts = training.artifacts
        self._ordered: int | None = None  # the rollout under way

    def init(self) -> ApartState:
        """Returns the state before the first update."""
        learner = self.training.first()
        return ApartState(learner, acting(learner) if self.lag else None)

    def collect(self, state: ApartState) -> tuple[ApartState, PpoData]:
        """Waits for the next rollout; with lag 1, lets the one after it begin."""
        training, learner = self.training, state.learner
        version = int(learner.updates)
        stage = training.stage_of(version + 1)
        if stage != training.stage:
            training.enter(stage)
            learner = training.entered(learner)
        if state.worlds is not None:
            self.fleet.restore(version, state.worlds)
        if self._ordered != version:
            self._order(version, state.next or acting(learner))
        rolled = [one.samples for one in self.fleet.gather()]
        ahead: LearnerState | None = None
        if self.lag:
            ahead = acting(learner)
            if version + 1 < self.iterations:
                self._order(version + 1, ahead)
        data = together(rolled)
        before = Before(np.concatenate([one.before for one in rolled]))
        check_finite(data.rollout, before, training.folder)
        return ApartState(learner, ahead), data

    def _order(self, version: int, policy: LearnerState) -> None:
        # The number of the rollout, not of the parameters, draws what is explored.
        policy = policy._replace(updates=np.asarray(version, np.int32))
        stage = self.training.stage_of(version + 1)
        begins = version == 0 or stage != self.training.stage_of(version)
        hand_over = (version + 1) % HAND_OVER == 0
        self.fleet.order(Order(version, stage, begins, hand_over), policy)
        self._ordered = version

    def update(self, state: ApartState, data: PpoData) -> tuple[ApartState, Figures]:
        """Learns from a rollout."""
        learner, figures = self.training.learn(state.learner, data)
        return state._replace(learner=learner), figures

    def evaluate(self, state: ApartState) -> Figures:
        """Returns figures of the policy."""
        return self.training.judge(state.learner)

    def finish(self, state: ApartState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the artifacts."""
        return self.training.finish(
            PpoState(state.learner, *self._worlds(state)[0]), trained, figures
        )

    def _worlds(self, state: ApartState) -> Sequence[PyTree]:
        """Returns the states of all worlds before the next rollout."""
        if state.worlds is not None:
            return state.worlds
        if self._ordered is None:
            return self.fleet.begin(0)
        return self.fleet.states(int(state.learner.updates))

    def checkpointed(self, state: ApartState) -> ApartState:
        """Returns the state with that of all worlds."""
        return state._replace(worlds=tuple(self._worlds(state)))

    def restored(self, kept: ApartState) -> ApartState:
        """Returns the state; the worlds go to the fleet when they are needed."""
        self.training.enter(self.training.stage_of(int(kept.learner.updates)))
        self._ordered = None
        return kept


def together(worlds: Sequence[Samples]) -> PpoData:
    """Returns what all worlds did, as if they were one."""

    def joined(axis: int, trees: Sequence[PyTree]) -> Array:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *trees)

    return PpoData(
        joined(1, [world.rollout for world in worlds]),
        joined(0, [world.final for world in worlds]),
        joined(0, [world.measures for world in worlds]),
        list(joined(1, [world.finite for world in worlds])),
    )
