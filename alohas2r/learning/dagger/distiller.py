"""Distillation as an algorithm of the run loop: environments, senses, teacher and student, joined."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check, difference
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.envs import student_step
from alohas2r.evaluation.episodes import SEEDS, episode_keys
from alohas2r.evaluation.evaluate import Runner
from alohas2r.learning.dagger.collect_device import DeviceCollector
from alohas2r.learning.dagger.collect_host import Collected, HostCollector, part_of
from alohas2r.learning.dagger.config import CHECK_ROWS, DistillConfig, choose_engine
from alohas2r.learning.dagger.encoding import (
    Encoding,
    FrozenEncoding,
    TracedEncoding,
    traceable_code,
)
from alohas2r.learning.dagger.labels import Teacher
from alohas2r.learning.dagger.learner import Learner
from alohas2r.learning.dagger.samples import LearnerState
from alohas2r.learning.dagger.student_step import HostStep, StudentStep
from alohas2r.learning.dagger.worlds import Setup, WorldState, set_up
from alohas2r.learning.fleet.worker import Part
from alohas2r.learning.run.loop import Figures
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import snapshot
from alohas2r.tasks.registry import find_task

EVALUATION_SEED = 1_000_003  # on top of the run's: what is evaluated on the way was not trained on
_STAGES = ("grasped", "lifted", "switched", "success")  # of an episode, for the metrics
_RATES = ("success", "held_at_end", "lifted_both", "switched", "dropped")  # of an evaluation


class DistillState(NamedTuple):
    """All that changes in a distillation."""

    learner: LearnerState
    world: WorldState


class Distiller:
    """A distillation.

    On the engine "warp" all of it is compiled JAX on one device, an NVIDIA GPU. On the engine "cpu" Python joins the
    parts.

    Args:
      setup: environments, senses and teacher.
      encoder: a pretrained colour encoder; None to begin at random and learn it as well.
      folder: of the run, where `finish` writes the student.
      like: a distillation of another part, whose compiled functions are used.
      begun: the student that learning goes on with; a random one if None.
    """

    label = "distill"
    losses = ("loss/imitation",)
    remedy = "learning_rate"
    artifacts = ("student",)

    def __init__(
        self,
        setup: Setup,
        encoder: EncoderArtifact | None,
        folder: pathlib.Path = pathlib.Path(),
        like: Distiller | None = None,
        begun: StudentPolicy | None = None,
    ) -> None:
        settings = setup.settings
        self.settings, self.seed, self._folder, self.setup = settings, setup.seed, folder, setup
        self.iterations, self.steps_per_iteration = settings.iterations, settings.samples
        self.frozen: dict[str, PyTree] = {}
        if setup.spec.has_rgb and encoder is not None and not settings.finetune:
            self.frozen = {"encoder": jax.tree.map(jnp.asarray, encoder.params)}
        on_cpu, on_device = jax.default_backend() == "cpu", setup.env.engine.traceable
        code = traceable_code(setup.spec)
        self.encoding: Encoding = TracedEncoding(settings, code)
        if on_cpu and self.frozen and not on_device:
            self.encoding = FrozenEncoding(
                settings, setup.spec, self.frozen["encoder"], setup.threads
            )
        self.step = StudentStep(setup, code)
        # Where several threads collect at once, each computes on its own core alone.
        self.host_step = HostStep(self.step, self.encoding.encode, on_cpu and len(setup.worlds) > 1)
        if like is not None and not on_device:
            setup.env.share(like.setup.env)
            self.step, self.host_step = like.step, like.host_step
        self.collector: HostCollector | DeviceCollector
        if on_device:
            self.collector = DeviceCollector(setup, self.step, self.frozen)
        else:
            self.collector = HostCollector(setup, self.host_step, self.frozen)
        params = None if encoder is None else encoder.params
        self.learner = Learner(
            settings,
            setup.spec,
            setup.auxiliary,
            self.encoding,
            params,
            self.frozen,
            on_device,
            begun,
        )
        self._runner: Runner | None = None

    def init(self) -> DistillState:
        """Returns the state before the first iteration."""
        return DistillState(self.learner.init(self.seed), self.collector.begin())

    def collect(self, state: DistillState) -> tuple[DistillState, Collected]:
        """Lets the teacher act in the first iteration, the student in all others."""
        world, collected = self.collector.collect(state.learner, state.world)
        return state._replace(world=world), collected

    def update(self, state: DistillState, data: Collected) -> tuple[DistillState, Figures]:
        """Learns from an iteration's samples.

        Raises:
          ModelError: something did not fit into the engine's buffers.
        """
        learner, figures = self.learner.update(state.learner, data.samples)
        self.setup.env.engine.check(state.world.physics)
        last = data.scores[-1].measures
        watched = stages_reached(last, [scored.finite for scored in data.scores])
        return state._replace(learner=learner), figures | watched

    def evaluate(self, state: DistillState) -> Figures:
        """Returns rates of the student under the frozen protocol, on the engine "cpu" in any case."""
        return self.judge(state.learner)

    def judge(self, learner: LearnerState) -> Figures:
        """Returns the same of a learner."""
        if self._runner is None:
            keys = episode_keys(
                (self.seed + EVALUATION_SEED) % SEEDS, 0, self.settings.evaluation_episodes
            )
            setup = self.setup
            name = self.settings.protocol
            rules = find_task(setup.spec.phase).find_protocol(name) if name else None
            self._runner = Runner(setup.spec, rules, keys, setup.threads, setup.renderer)
        policy = self.learner.to_policy(learner, {})
        table = self._runner.run(weights=policy.weights).table
        return {f"eval/{name}": float(table[name].mean()) for name in _RATES}

    def checkpointed(self, state: DistillState) -> DistillState:
        """Returns the state with its physics copied."""
        physics = snapshot(state.world.physics)
        return state._replace(world=state.world._replace(physics=physics))

    def restored(self, kept: DistillState) -> DistillState:
        """Returns the state itself."""
        return kept

    def finish(self, state: DistillState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the student."""
        del figures
        policy = self.learner.to_policy(state.learner, trained)
        return {"student": str(artifact.save(policy, self._folder / "student", self.record(state)))}

    def record(self, state: DistillState) -> dict[str, np.ndarray]:
        """Returns what the first environments observe now, one after the other, for an artifact's check."""
        setup = self.setup
        world = setup.worlds[0]
        part = part_of(setup, world, state.world)
        drawn = student_step.draw(world.senses, part.sense, part.readout)
        shown = student_step.draw(world.tutor, part.tutor, part.readout)
        acted = self.host_step(state.learner, self.frozen, part, drawn, jnp.asarray(False), shown)
        seen = acted.noted.seen
        rows = {setup.spec.vector: np.asarray(seen.vector)}
        pictures = setup.spec.named_pictures(seen.rgb, seen.depth)
        rows |= {name: np.asarray(value) for name, value in pictures.items()}
        rows["switched"] = np.asarray(part.env.task.switched)
        return {name: value[:CHECK_ROWS] for name, value in rows.items()}


def make_distiller(
    settings: DistillConfig,
    teacher: Teacher,
    encoder: EncoderArtifact | None,
    seed: int,
    threads: int = 0,
    renderer: str = "auto",
    engine: str = engines.AUTO,
    folder: pathlib.Path = pathlib.Path(),
    part: Part | None = None,
    like: Distiller | None = None,
    begun: StudentPolicy | None = None,
) -> Distiller:
    """Returns a distillation in environments of its own.

    Args:
      settings: the configuration.
      teacher: the staged teacher, on the state or from pixels.
      encoder: a pretrained colour encoder; None to begin at random and learn it as well.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores.
      renderer, engine: see `choose_engine`.
      folder: of the run.
      part: which of the environments to make; all if None.
      like: a distillation of another part, whose compiled functions are used.
      begun: the student that learning goes on with; a random one if None.

    Raises:
      ConfigError: an engine and a renderer that do not go together, or a student that learning cannot go on with.
      BackendUnavailable: one of them cannot run here.
    """
    engine, renderer = choose_engine(engine, renderer, settings.sees)
    filters = None if encoder is None else encoder.filters
    given = settings, teacher, filters, seed, threads, renderer, engine
    setup = set_up(*given, part=part)
    if begun is not None:
        _check_begun(setup, begun)
    return Distiller(setup, encoder, folder, like, begun)


def _check_begun(setup: Setup, begun: StudentPolicy) -> None:
    """Raises ConfigError unless a student observes, computes and moves as the one that learns."""
    check(
        setup.settings.ahead == 0, "a student predicts nothing ahead: start from one with ahead=0"
    )
    changes = difference(begun.spec, setup.spec)
    other = [one for one in changes if not one.startswith("switch.")]
    check(
        not other, f"a student to start from must be like the one that learns: {'; '.join(other)}"
    )


def stages_reached(measures: PyTree, finite: Sequence[Array]) -> Figures:
    """Returns the shares of environments in each stage at the last step, and of those that diverged.

    Args:
      measures: of the last step, [N, ...]. finite: of each step [N], or of all [T, N].
    """
    named = measures._asdict()
    last, rows = jax.device_get(([named[name] for name in _STAGES], list(finite)))
    figures = {
        f"train/{name}": float(np.asarray(value, np.float32).mean())
        for name, value in zip(_STAGES, last, strict=True)
    }
    return figures | {"train/unstable": float(np.mean([(~row).mean() for row in rows]))}
