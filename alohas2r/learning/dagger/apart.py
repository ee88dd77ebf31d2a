"""A distillation whose environments are a fleet's: workers let the student act and the teacher say what to do."""

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
from alohas2r.learning.fleet.apart import Apart, ApartState
from alohas2r.learning.fleet.base import Fleet
from alohas2r.learning.fleet.worker import World, digest_of_model, parts
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
        settings,
        teacher,
        encoder,
        plan.seed,
        plan.threads,
        plan.renderer,
        plan.engine,
        part=part,
        like=lender,
    )
    return DistillWorld(distiller)


def _copied(state: WorldState) -> PyTree:
    """Returns a world's state as arrays of NumPy that later rounds leave alone."""
    return jax.tree.map(np.array, state._replace(physics=snapshot(state.physics)))


class Collected(NamedTuple):
    """What all worlds did in a round."""

    samples: Samples  # [T * N], time first
    measures: PyTree  # of the last step, [N, ...]
    finite: np.ndarray  # [T, N]


class DistillApart(Apart[LearnerState, Collected]):
    """A distillation whose environments are a fleet's.

    Args:
      distiller: learns, evaluates, and writes the student; its own environments are those of world 0.
      fleet: of all worlds. lag: 0 or 1.
    """

    def __init__(self, distiller: Distiller, fleet: Fleet, lag: int) -> None:
        super().__init__(distiller, fleet, lag)
        self.distiller = distiller

    def first(self) -> LearnerState:
        """Returns the student before the first update."""
        return self.distiller.learner.init(self.distiller.seed)

    def version(self, learner: LearnerState) -> int:
        """Returns how many updates it has made."""
        return int(learner.iteration)

    def acting(self, learner: LearnerState) -> LearnerState:
        """Returns of a learner what a student acts with, as arrays of NumPy."""
        return jax.tree.map(np.asarray, learner._replace(averaged=None, optimizer=None))

    def numbered(self, acting: LearnerState, version: int) -> LearnerState:
        """Returns what acts in a round, whose number says whether the teacher does."""
        return acting._replace(iteration=np.asarray(version, np.int32))

    def joined(self, rolled: Sequence[WorldSamples]) -> Collected:
        """Returns what all worlds did in a round."""
        return together(rolled, self.distiller.settings.steps)

    def update(
        self, state: ApartState[LearnerState], data: Collected
    ) -> tuple[ApartState[LearnerState], Figures]:
        """Learns from a round's samples."""
        learner, figures = self.distiller.learner.update(state.learner, data.samples)
        watched = stages_reached(data.measures, list(data.finite))
        return state._replace(learner=learner), figures | watched

    def evaluate(self, state: ApartState[LearnerState]) -> Figures:
        """Returns rates of the student."""
        return self.distiller.judge(state.learner)

    def finish(
        self, state: ApartState[LearnerState], trained: JsonObject, figures: Figures
    ) -> dict[str, str]:
        """Writes the student."""
        world = WorldState(*jax.tree.map(jnp.asarray, self.worlds(state)[0]))
        return self.distiller.finish(DistillState(state.learner, world), trained, figures)


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
