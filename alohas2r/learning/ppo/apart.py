"""PPO whose environments are a fleet's: workers let the policy act, the learner learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.learning.fleet.apart import Apart, ApartState
from alohas2r.learning.fleet.base import Fleet, FleetConfig, Setup
from alohas2r.learning.fleet.worker import World, digest_of_model
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


class PpoApart(Apart[LearnerState, PpoData]):
    """A training by PPO whose environments are a fleet's.

    Args:
      training: learns, evaluates, and writes the artifacts; its own environments are those of world 0.
      fleet: of all worlds. lag: 0 or 1.
    """

    def __init__(self, training: PpoAlgorithm, fleet: Fleet, lag: int) -> None:
        super().__init__(training, fleet, lag)
        self.training = training

    def first(self) -> LearnerState:
        """Returns the learner before the first update."""
        return self.training.first()

    def version(self, learner: LearnerState) -> int:
        """Returns how many updates it has made."""
        return int(learner.updates)

    def acting(self, learner: LearnerState) -> LearnerState:
        """Returns of a learner what a policy acts with."""
        return acting(learner)

    def numbered(self, acting: LearnerState, version: int) -> LearnerState:
        """Returns what acts in a rollout, whose number draws what is explored."""
        return acting._replace(updates=np.asarray(version, np.int32))

    def stage_of(self, version: int) -> int:
        """Returns the stage that a rollout belongs to."""
        return self.training.stage_of(version + 1)

    def entered(self, learner: LearnerState) -> LearnerState:
        """Returns the learner as the next rollout finds it, where a new stage may begin."""
        stage = self.stage_of(self.version(learner))
        if stage == self.training.stage:
            return learner
        self.training.enter(stage)
        return self.training.entered(learner)

    def joined(self, rolled: Sequence[Samples]) -> PpoData:
        """Returns what all worlds did in a rollout."""
        data = together(rolled)
        before = Before(np.concatenate([one.before for one in rolled]))
        check_finite(data.rollout, before, self.training.folder)
        return data

    def update(
        self, state: ApartState[LearnerState], data: PpoData
    ) -> tuple[ApartState[LearnerState], Figures]:
        """Learns from a rollout."""
        learner, figures = self.training.learn(state.learner, data)
        return state._replace(learner=learner), figures

    def evaluate(self, state: ApartState[LearnerState]) -> Figures:
        """Returns figures of the policy."""
        return self.training.judge(state.learner)

    def finish(
        self, state: ApartState[LearnerState], trained: JsonObject, figures: Figures
    ) -> dict[str, str]:
        """Writes the artifacts."""
        whole = PpoState(state.learner, *self.worlds(state)[0])
        return self.training.finish(whole, trained, figures)

    def restored(self, kept: ApartState[LearnerState]) -> ApartState[LearnerState]:
        """Returns the state; the worlds go to the fleet when they are needed."""
        self.training.enter(self.training.stage_of(int(kept.learner.updates)))
        return super().restored(kept)


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
