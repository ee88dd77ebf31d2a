"""What a distillation is made of: environments, the student's senses in them, and their state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from alohas2r.config import check
from alohas2r.core import threads as core_threads
from alohas2r.core.types import PyTree
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.repeated_measurement import RepeatedMeasurement
from alohas2r.envs.task import EnvConfig, EnvState
from alohas2r.envs.vision import PIXEL_SENSES, Senses, SensesState
from alohas2r.learning.dagger.config import (
    ENVS_STREAM,
    SENSES_STREAM,
    TUTOR_STREAM,
    WORLD_SIZE,
    DistillConfig,
)
from alohas2r.learning.dagger.labels import Teacher
from alohas2r.learning.fleet.worker import Part
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.rendering.protocol import DEPTH, Renderer
from alohas2r.rendering.registry import make_renderer
from alohas2r.sim import scene
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.signals import Readout
from alohas2r.tasks.building import count_draws, draw_physics
from alohas2r.tasks.insert.appearance import pictured_geometry
from alohas2r.tasks.insert.hold_out import HoldOutTask
from alohas2r.tasks.registry import find_task


class WorldState(NamedTuple):
    """State of N environments and of the student's senses in them."""

    env: EnvState
    physics: PyTree  # a NamedTuple of the engine's
    readout: Readout
    sense: SensesState | None  # None of a student that observes what the teacher does
    tutor: SensesState | None = None  # of a teacher that sees


class World(NamedTuple):
    """Some of the environments; one thread at a time takes them a step further."""

    where: slice  # which of all
    env: RepeatedMeasurement
    senses: Senses | None
    tutor: Senses | None = None  # those of a teacher that sees


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """Environments, senses and teacher of a distillation; what several worlds share is compiled with the first one's.

    Attributes:
      settings: the configuration.
      teacher: gives the labels.
      spec: of the student.
      worlds: of a fixed size, so that samples do not depend on the number of threads; one holds all environments
        where the engine or the renderer cannot work in several threads at once, or where there is only a part of them.
      fields: what each environment's physics differs in: model field -> [N, ...].
      seed: of everything random.
      threads: of physics and ray caster.
      renderer: the one that was chosen.
    """

    settings: DistillConfig
    teacher: Teacher
    spec: StudentSpec
    worlds: tuple[World, ...]
    fields: Mapping[str, np.ndarray]
    seed: int
    threads: int
    renderer: str
    part: Part | None = None  # which of the environments there are; all if None

    @property
    def count(self) -> int:
        """Environments of all worlds here."""
        return self.worlds[-1].where.stop

    @property
    def env(self) -> RepeatedMeasurement:
        """The first world's environments."""
        return self.worlds[0].env

    @property
    def senses(self) -> Senses | None:
        """The first world's senses."""
        return self.worlds[0].senses

    @property
    def tutor(self) -> Senses | None:
        """The first world's senses of a teacher that sees."""
        return self.worlds[0].tutor

    @property
    def auxiliary(self) -> bool:
        """Whether the student predicts where the objects are."""
        return self.settings.auxiliary > 0 and self.senses is not None

    def begin(self, world: World) -> WorldState:
        """Starts a world's environments, their clocks scattered over the episode."""
        root = jax.random.PRNGKey(self.seed)
        keys, sense_keys, tutor_keys = (
            jax.random.split(jax.random.fold_in(root, stream), self.settings.num_envs)
            for stream in (ENVS_STREAM, SENSES_STREAM, TUTOR_STREAM)
        )
        where, env, senses, watching = world
        first = 0 if self.part is None else self.part.first
        own = slice(first + where.start, first + where.stop)
        sense = None if senses is None else senses.reset(sense_keys[own])
        tutor = None if watching is None else watching.reset(tutor_keys[own])
        return WorldState(*env.reset(keys[own], stagger=True), sense, tutor)


def set_up(
    settings: DistillConfig,
    teacher: Teacher,
    filters: tuple[int, int, int] | None,
    seed: int,
    threads: int,
    renderer: str,
    engine: str,
    make_engine: Callable[..., Engine] = engines.make,
    make_drawer: Callable[..., Renderer] = make_renderer,
    part: Part | None = None,
) -> Setup:
    """Makes the environments of a distillation and the student's senses in them.

    Args:
      settings: the configuration. teacher: gives the labels.
      filters: of a pretrained colour encoder; those of the configuration if None.
      seed: of everything random. threads: of physics and ray caster; 0 for all cores.
      renderer, engine: from `choose_engine`.
      make_engine, make_drawer: called as `engines.make` and `make_renderer`, once per world.
      part: which of the environments to make, in one world; all if None.

    Raises:
      ConfigError: a teacher that sees, and settings that it does not go with.
      BackendUnavailable: the engine or the renderer cannot run here.
    """
    seeing = isinstance(teacher, StagedPixelsPolicy)
    if seeing:
        _check_seeing(settings, renderer)
    # A teacher that sees has its memory in its senses.
    memory = HistoryConfig((1.0,)) if seeing else teacher.spec.history
    count, entry = settings.num_envs, find_task("insert")
    environment = EnvConfig(
        settings.control,
        settings.noise,
        memory,
        settings.contacts,
        settings.variation,
        settings.cone,
    )
    loaded = scene.load_physics(environment.scene_of(entry.scene))
    draws = np.random.default_rng([seed, 2]).random((count, count_draws(entry, environment)))
    fields, context, robots = draw_physics(entry, loaded, settings.task, environment, draws)
    task = HoldOutTask(
        loaded, dataclasses.replace(settings.task, switch=teacher.switch), settings.hold_out
    )
    spec = _student_spec(settings, teacher, filters)
    # Only ray casters may draw in several threads at once.
    several = engine == "cpu" and (not settings.sees or renderer in ("raycast", "exact"))
    begins, ends = (0, count) if part is None else (part.first, part.last)
    size = WORLD_SIZE if several and part is None else ends - begins
    worlds: list[World] = []
    for first in range(begins, ends, size):
        where = slice(first, min(first + size, ends))
        some, alone = where.stop - first, 1 if ends - begins > size else threads
        made = make_engine(
            engine,
            loaded,
            some,
            alone,
            {name: value[where] for name, value in fields.items()},
            settings.engine,
        )
        here = None if robots is None else robots.some(where)
        env = RepeatedMeasurement(
            settings.draws,
            task,
            made,
            environment,
            context[where],
            None if here is None else here.held,
        )
        senses = None
        if settings.sees:
            capacity = some if made.traceable else 0
            looks = settings.senses.looks
            drawer = make_drawer(
                renderer, spec.cameras.size, alone, capacity, looks, paired=spec.paired
            )
            senses = Senses(
                spec,
                settings.senses,
                context[where, 0],
                drawer,
                pictured_geometry(context[where], here),
                settings.variation.longest_sense,
            )
        tutor = None
        if isinstance(teacher, StagedPixelsPolicy):
            drawer = make_drawer(
                renderer, teacher.spec.cameras.size, alone, looks=True, outputs=DEPTH
            )
            tutor = Senses(teacher.spec, PIXEL_SENSES, context[where, 0], drawer)
        if worlds:
            env.share(worlds[0].env)
        here_only = slice(where.start - begins, where.stop - begins)
        worlds.append(World(here_only, env, senses, tutor))
    cores = threads or len(core_threads.cores())
    return Setup(settings, teacher, spec, tuple(worlds), fields, seed, cores, renderer, part)


def _check_seeing(settings: DistillConfig, renderer: str) -> None:
    """Raises ConfigError unless a teacher that sees goes with the settings."""
    problems = {
        "observation=state: what it observes is not the state": not settings.sees,
        "draws: it observes once, so that they must be 1": settings.draws != 1,
        "precision: it does not say how sure it is": settings.precision > 0,
        "env.variation: it knows the nominal robot alone": settings.variation.varies
        or settings.contacts,
        f"the renderer '{renderer}': its depth is drawn by raycast or exact": renderer
        not in ("raycast", "exact"),
    }
    for problem, found in problems.items():
        check(not found, f"a teacher from pixels does not go with {problem}")


def _student_spec(
    settings: DistillConfig, teacher: Teacher, filters: tuple[int, int, int] | None
) -> StudentSpec:
    """Returns the description of the student."""
    network, memory, parts = settings.network, settings.history, ()
    if filters is not None:
        network = dataclasses.replace(network, filters=filters)
    if not settings.sees and isinstance(teacher, StagedPolicy):  # the teacher's own
        memory, parts = teacher.spec.history, teacher.spec.observation
    return policies_spec.make_spec(
        scene.load("insert"),
        settings.observation,
        network,
        settings.cameras,
        memory,
        teacher.switch,
        settings.control.scale,
        parts,
        settings.stereo,
    )
