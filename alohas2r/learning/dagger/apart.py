"""A distillation whose environments are a fleet's: workers let the student act and the teacher say what to do.

With lag 0, round v acts with the student after v updates, and the learner waits for it; with lag 1 with the one after
v - 1. Either way the same run comes to the same bits with any number of workers, see `learning.fleet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import config
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.learning.dagger.config import DistillConfig
from alohas2r.learning.dagger.distiller import (
    Distiller,
    DistillState,
    make_distiller,
    stages_reached,
)
from alohas2r.learning.dagger.labels import Teacher
from alohas2r.learning.dagger.samples import LearnerState, Samples, balanced
from alohas2r.learning.dagger.worlds import WorldState
from alohas2r.learning.fleet.base import HAND_OVER, Fleet
from alohas2r.learning.fleet.worker import Order, World, digest_of_model, parts
from alohas2r.learning.run.loop import Figures
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.sim.engines.base import snapshot


class Kept(NamedTuple):
    """A policy or encoder as it goes to another process: compiled functions cannot."""

    description: JsonObject
    weights: Mapping[str, np.ndarray]


def kept(stored: Teacher | EncoderArtifact) -> Kept:
    """Returns what `artifact.rebuild` makes the same of."""
    return Kept({**stored.describe(), "trained": dict(stored.trained)}, dict(stored.weights))


class DistillPlan(NamedTuple):
    """What a worker has to know to make the worlds of a distillation.

    Attributes:
      settings: the configuration, as plain values.
      teacher: that gives the labels. encoder: of colour pictures, pretrained, if there is one. As artifacts.
      seed: of everything random. threads: of each worker. renderer, engine: from `choose_engine`.
      world: environments of a world.
    """

    settings: JsonObject
    teacher: Kept
    encoder: Kept | None
    seed: int
    threads: int
    renderer: str
    engine: str
    world: int


class WorldSamples(NamedTuple):
    """What one world did in a round."""

    samples: Samples  # [T * N], time first
    measures: PyTree  # of the last step, [N, ...]
    finite: np.ndarray  # [T, N]


class DistillWorld:
    """One world of a distillation.

    Args:
      distiller: of that part of the environments.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.distiller = distiller

    @property
    def model(self) -> str:
        """Digest of the compiled scene."""
        return digest_of_model(self.distiller.setup.env.task.scene.model)

    def begin(self, stage: int) -> PyTree:
        """Returns the state at the beginning; there is one stage."""
        del stage
        return _copied(self.distiller.collector.begin())

    def roll(self, stage: int, acting: LearnerState, state: PyTree) -> tuple[PyTree, WorldSamples]:
        """Lets the student act for one round."""
        del stage
        after, collected = self.distiller.collector.collect(acting, WorldState(*state))
        scores = collected.scores
        finite = np.concatenate([np.atleast_2d(scored.finite) for scored in scores])
        # Copies: the next round writes into the same memory.
        samples, measures = jax.tree.map(np.array, (collected.samples, scores[-1].measures))
        return _copied(after), WorldSamples(samples, measures, finite)


def distill_world(plan: DistillPlan, number: int, like: World | None) -> DistillWorld:
    """Returns one world of a distillation; `like` has compiled what it may use."""
    settings = config.from_dict(DistillConfig, plan.settings)
    part = parts(settings.num_envs, plan.world)[number]
    lender = like.distiller if isinstance(like, DistillWorld) else None
    teacher = artifact.rebuild(*plan.teacher)
    encoder = None if plan.encoder is None else artifact.rebuild(*plan.encoder)
    assert encoder is None or isinstance(encoder, EncoderArtifact)
    distiller = make_distiller(
        *(settings, teacher, encoder, plan.seed, plan.threads, plan.renderer, plan.engine),
        part=part,
        like=lender,
    )
    return DistillWorld(distiller)


def _copied(state: WorldState) -> PyTree:
    """Returns a world's state as arrays of NumPy that later rounds leave alone."""
    return jax.tree.map(np.array, state._replace(physics=snapshot(state.physics)))


def acting(learner: LearnerState) -> LearnerState:
    """Returns of a learner what a student acts with, as arrays of NumPy."""
    return jax.tree.map(np.asarray, learner._replace(averaged=None, optimizer=None))


class ApartState(NamedTuple):
    """All that changes in a distillation whose environments are elsewhere."""

    learner: LearnerState
    next: LearnerState | None = None  # with lag 1: what the next round acts with
    worlds: tuple[PyTree, ...] | None = (
        None  # only in a checkpoint, and before they go to the fleet
    )


class Collected(NamedTuple):
    """What all worlds did in a round."""

    samples: Samples  # [T * N], time first
    measures: PyTree  # of the last step, [N, ...]
    finite: np.ndarray  # [T, N]


class DistillApart:
    """A distillation whose environments are a fleet's.

    Args:
      distiller: learns, evaluates, and writes the student; its own environments are those of world 0.
      fleet: of all worlds. lag: 0 or 1.
    """

    def __init__(self, distiller: Distiller, fleet: Fleet, lag: int) -> None:
        self.distiller, self.fleet, self.lag = distiller, fleet, lag
        self.label, self.iterations = distiller.label, distiller.iterations
        self.steps_per_iteration = distiller.steps_per_iteration
        self.losses, self.remedy = distiller.losses, distiller.remedy
        self.artifacts = distiller.artifacts
        self._ordered: int | None = None  # the round under way

    def init(self) -> ApartState:
        """Returns the state before the first round."""
        learner = self.distiller.learner.init(self.distiller.seed)
        return ApartState(learner, acting(learner) if self.lag else None)

    def collect(self, state: ApartState) -> tuple[ApartState, Collected]:
        """Waits for the next round; with lag 1, lets the one after it begin."""
        learner, version = state.learner, int(state.learner.iteration)
        if state.worlds is not None:
            self.fleet.restore(version, state.worlds)
        if self._ordered != version:
            self._order(version, state.next or acting(learner))
        rolled: list[WorldSamples] = [one.samples for one in self.fleet.gather()]
        ahead: LearnerState | None = None
        if self.lag:
            ahead = acting(learner)
            if version + 1 < self.iterations:
                self._order(version + 1, ahead)
        return ApartState(learner, ahead), together(rolled, self.distiller.settings.steps)

    def _order(self, version: int, student: LearnerState) -> None:
        # The number of the round, not of the parameters, says whether the teacher acts.
        student = student._replace(iteration=np.asarray(version, np.int32))
        hand_over = (version + 1) % HAND_OVER == 0
        self.fleet.order(Order(version, 0, version == 0, hand_over), student)
        self._ordered = version

    def update(self, state: ApartState, data: Collected) -> tuple[ApartState, Figures]:
        """Learns from a round's samples."""
        learner, figures = self.distiller.learner.update(state.learner, data.samples)
        watched = stages_reached(data.measures, list(data.finite))
        return state._replace(learner=learner), figures | watched

    def evaluate(self, state: ApartState) -> Figures:
        """Returns rates of the student."""
        return self.distiller.judge(state.learner)

    def finish(self, state: ApartState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the student."""
        world = WorldState(*jax.tree.map(jnp.asarray, self._worlds(state)[0]))
        return self.distiller.finish(DistillState(state.learner, world), trained, figures)

    def _worlds(self, state: ApartState) -> Sequence[PyTree]:
        """Returns the states of all worlds before the next round."""
        if state.worlds is not None:
            return state.worlds
        if self._ordered is None:
            return self.fleet.begin(0)
        return self.fleet.states(int(state.learner.iteration))

    def checkpointed(self, state: ApartState) -> ApartState:
        """Returns the state with that of all worlds."""
        return state._replace(worlds=tuple(self._worlds(state)))

    def restored(self, kept: ApartState) -> ApartState:
        """Returns the state; the worlds go to the fleet when they are needed."""
        self._ordered = None
        return kept


def together(worlds: Sequence[WorldSamples], steps: int) -> Collected:
    """Returns what all worlds did, as if they were one.

    Args:
      worlds: in the order of their numbers. steps: of a round, T.
    """

    def joined(*leaves: Array) -> Array:
        # [T, N, ...]
        rows = [leaf.reshape(steps, len(leaf) // steps, *leaf.shape[1:]) for leaf in leaves]
        whole = np.concatenate(rows, 1)
        return jnp.asarray(whole.reshape(steps * whole.shape[1], *whole.shape[2:]))

    samples = jax.tree.map(joined, *[world.samples for world in worlds])
    measures = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[world.measures for world in worlds]
    )
    finite = np.concatenate([world.finite for world in worlds], 1)
    return Collected(balanced(samples), measures, finite)
