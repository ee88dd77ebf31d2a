"""Measures the parts of distillation on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.benchmarks.recording import Recording, repeat_steps, traced_steps
from alohas2r.benchmarks.timing import Turns
from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core import threads as core_threads
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.learning.dagger.collect_device import DeviceCollector
from alohas2r.learning.dagger.config import DistillConfig
from alohas2r.learning.dagger.distiller import Distiller, DistillState
from alohas2r.learning.dagger.labels import Teacher
from alohas2r.learning.dagger.worlds import Setup, set_up
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.looks.config import TransferConfig
from alohas2r.rendering.protocol import Frames, Looks, Renderer
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.sim.engines.cpu import CpuEngine, Physics
from alohas2r.sim.scene import Scene

_PARTS = ("physics", "rendering", "collection", "training")


def bench_distill(
    envs: int | None = None,
    seconds: float = 30.0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    teacher_path: str | None = None,
    encoder_path: str | None = None,
    overrides: Sequence[str] = (),
    renderer: str = "auto",
    engine: str = "cpu",
) -> JsonObject:
    """Measures distillation's control steps per second beside what physics and rendering alone would take.

    collection: everything up to the samples (physics, rendering, corruption, delays, both policies); training: with
    the updates; physics: the engine alone (`Batch.step`; on the engine "warp" all steps of an iteration in one call)
    from the same states with the same targets; rendering: the same poses and looks alone. Their harmonic limit,
    1 / (1 / physics + 1 / rendering), is what collection could reach at most. Turns alternate and medians are
    compared. The student acts, as in all iterations but the first.

    Args:
      envs, seconds, threads, progress: as `bench_sim`.
      teacher_path: the staged teacher; the shipped one if None.
      encoder_path: a pretrained encoder; an untrained one, which takes as long, if None.
      overrides: settings on top of the default preset.
      renderer, engine: see `dagger.choose_engine`.

    Raises:
      ArtifactError: there is no teacher. ConfigError: a number or setting out of range, or an engine and a renderer
        that do not go together.
    """
    from alohas2r import config
    from alohas2r.learning.dagger import config as dagger_config

    check(seconds > 0, f"seconds must be > 0, not {seconds}")
    chosen = [*overrides] if envs is None else [*overrides, f"num_envs={envs}"]
    settings = config.override(dagger_config.find_preset("default"), chosen)
    engine, renderer = dagger_config.choose_engine(engine, renderer, settings.sees)
    encoder = _encoder(encoder_path, settings)
    core_threads.keep_memory()
    recorded = _Recorded()
    setup = set_up(
        settings,
        _teacher(teacher_path),
        encoder.filters,
        0,
        threads,
        renderer,
        engine,
        recorded.make_engine,
        recorded.make_drawer,
    )
    distiller = Distiller(setup, encoder)
    assert setup.senses is not None
    traceable = setup.env.engine.traceable
    parts_alone = _traced_parts(distiller) if traceable else recorded.again(setup)
    state = distiller.init()
    turns = Turns("bench-sim distill", _PARTS, seconds, progress)
    while turns.wanted:  # in the first turn, which does not count, the teacher acts
        began = distiller.checkpointed(state)
        started = time.monotonic()
        state, data = distiller.collect(state)
        jax.block_until_ready(data.samples)
        collected = time.monotonic()
        learner, _ = distiller.learner.update(state.learner, data.samples)
        jax.block_until_ready(learner)
        finished = time.monotonic()
        state = state._replace(learner=learner)
        physics, rendering = parts_alone(began)
        turns.add(
            physics=physics,
            rendering=rendering,
            collection=collected - started,
            training=finished - started,
        )
    return {
        "phase": "distill",
        "engine": setup.env.engine.name,
        "renderer": setup.senses.renderer.name,
        "envs": settings.num_envs,
        "threads": setup.threads,
        "turns": turns.count,
        "shadows": settings.senses.shadows,
        **_figures(turns, settings),
    }


def _teacher(path: str | None) -> Teacher:
    """Returns the staged teacher in a folder; the shipped one if None."""
    from alohas2r.core import assets
    from alohas2r.learning.dagger import train as dagger

    return dagger.load_teacher(path or assets.data_path("params") / "teacher")


def _encoder(path: str | None, settings: DistillConfig) -> EncoderArtifact:
    """Returns the encoder in a folder; an untrained one, which takes as long, if None."""
    from alohas2r.policies import artifact
    from alohas2r.policies.networks import vision as vision_network

    if path is not None:
        return artifact.load(path, EncoderArtifact)
    filters, side = settings.network.filters, settings.cameras.size
    pictures = jnp.zeros((1, side, side, 3))
    params = vision_network.Encoder(filters).init(jax.random.PRNGKey(0), pictures)["params"]
    return EncoderArtifact(filters, side, params, {})


def _figures(turns: Turns, settings: DistillConfig) -> JsonObject:
    """Returns speeds and what follows from them."""
    speed = turns.speeds(settings.samples)
    limit = 1 / (1 / speed["physics"] + 1 / speed["rendering"])
    alone = np.add(turns.times["physics"], turns.times["rendering"])
    # Of each turn, so that a change of the machine's speed matters less.
    shares = alone / turns.times["collection"]
    minutes = settings.iterations * settings.samples / speed["training"] / 60
    return {
        **{f"{name}_steps_per_s": round(speed[name], 1) for name in _PARTS},
        "limit_steps_per_s": round(limit, 1),
        "collection_over_limit": round(float(np.median(shares)), 3),
        "full_scale_minutes": round(minutes, 1),
    }


class _Recorded:
    """Makes engines and renderers that keep what they were asked for, so that it can be done again alone."""

    def __init__(self) -> None:
        self.engines: list[Recording[Physics]] = []
        self.drawers: list[_Drawn] = []

    def make_engine(
        self,
        name: str,
        scene: Scene,
        num_envs: int,
        threads: int,
        fields: Mapping[str, np.ndarray],
        buffers: BufferConfig,
    ) -> Engine:
        """Makes an engine, see `engines.make`; what compiled code calls cannot keep anything."""
        made = engines.make(name, scene, num_envs, threads, fields, buffers)
        if made.traceable:
            return made
        self.engines.append(Recording(made))
        return self.engines[-1]

    def make_drawer(
        self,
        name: str,
        size: int,
        threads: int,
        capacity: int,
        looks: bool | str | TransferConfig,
        paired: bool = False,
    ) -> Renderer:
        """Makes a renderer, see `make_renderer`."""
        made = renderers.make_renderer(name, size, threads, capacity, looks, paired=paired)
        if not self.engines:
            return made
        self.drawers.append(_Drawn(made))
        return self.drawers[-1]

    def again(self, setup: Setup) -> Callable[[DistillState], tuple[float, float]]:
        """Returns what does an iteration's physics and rendering again, and gives the seconds of each.

        Both do all environments at once, with all threads.
        """
        scene = setup.env.task.scene
        whole = CpuEngine(scene, setup.settings.num_envs, setup.threads, setup.fields)
        size = setup.spec.cameras.size
        looks = setup.settings.senses.looks
        drawing = renderers.make_renderer(setup.renderer, size, setup.threads, looks=looks)

        def again(began: DistillState) -> tuple[float, float]:
            targets = np.concatenate([engine.targets for engine in self.engines], 1)
            poses = np.concatenate([drawer.poses for drawer in self.drawers], 1)
            shown = {
                name: np.concatenate([drawer.looks[name] for drawer in self.drawers])
                for name in self.drawers[0].looks
            }
            stepping = repeat_steps(whole, began.world.physics, list(targets))
            between = time.monotonic()
            for some in poses:
                drawing.render(some, shown)
            finished = time.monotonic()
            for engine, drawer in zip(self.engines, self.drawers, strict=True):
                engine.targets.clear()
                drawer.poses.clear()
            return stepping, finished - between

        return again


def _traced_parts(distiller: Distiller) -> Callable[[DistillState], tuple[float, float]]:
    """The same for an engine whose whole iteration is one compiled function."""
    collector, senses = distiller.collector, distiller.setup.senses
    assert isinstance(collector, DeviceCollector)
    assert senses is not None
    steps = traced_steps(distiller.setup.env)

    @jax.jit
    def pictures(sense: PyTree, poses: jax.Array) -> PyTree:
        return jax.lax.map(lambda qpos: senses.draw_traced(sense, qpos), poses)

    def again(began: DistillState) -> tuple[float, float]:
        targets, poses = jax.block_until_ready(collector.trace(*began))
        started = time.monotonic()
        jax.block_until_ready(steps(began.world.physics, targets))
        between = time.monotonic()
        jax.block_until_ready(pictures(began.world.sense, poses))
        return between - started, time.monotonic() - between

    return again


class _Drawn:
    """A renderer that keeps what it was asked to draw, so that it can be drawn again alone."""

    def __init__(self, plain: Renderer):
        self.plain = plain
        self.name, self.prepared = plain.name, plain.prepared
        self.poses: list[np.ndarray] = []
        self.looks: Looks = {}

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        self.poses.append(np.array(poses))
        self.looks = looks or {}
        return self.plain.render(poses, looks)
