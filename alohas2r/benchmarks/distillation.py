"""Measures the parts of distillation on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.benchmarks.recording import Recording, repeat_steps, traced_steps
from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core import threads as core_threads
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.learning.dagger import learner as dagger_learner
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.protocol import Frames, Looks, Renderer
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.engines.cpu import CpuEngine


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
    from alohas2r.core import assets
    from alohas2r.learning.dagger import config as dagger_config
    from alohas2r.learning.dagger import train as dagger
    from alohas2r.policies import artifact
    from alohas2r.policies import encoder as encoder_artifact
    from alohas2r.policies.networks import vision as vision_network

    check(seconds > 0, f"seconds must be > 0, not {seconds}")
    chosen = [*overrides] if envs is None else [*overrides, f"num_envs={envs}"]
    settings = config.override(dagger_config.find_preset("default"), chosen)
    staged = dagger.load_teacher(teacher_path or assets.data_path("params") / "teacher")
    if encoder_path is None:
        filters = settings.network.filters
        spec = vision_network.Encoder(filters)
        side = settings.cameras.size
        params: PyTree = spec.init(jax.random.PRNGKey(0), jnp.zeros((1, side, side, 3)))["params"]
        encoder = encoder_artifact.EncoderArtifact(filters, side, params, {})
    else:
        encoder = artifact.load(encoder_path, encoder_artifact.EncoderArtifact)
    core_threads.keep_memory()
    distiller = dagger_learner.Distiller(settings, staged, encoder, 0, threads, renderer, engine)
    assert distiller.senses is not None
    drawn_by = distiller.senses.renderer.name
    traceable = distiller.env.engine.traceable
    parts_alone = _traced_parts(distiller) if traceable else _batch_parts(distiller)
    learner = distiller.init()
    state, physics, readout, sense = distiller.begin()
    names = ("physics", "rendering", "collection", "training")
    times: dict[str, list[float]] = {name: [] for name in names}
    meter = core_progress.Meter("bench-sim distill", 100, progress, unit="%")
    turn, deadline = 0, math.inf
    while True:
        began = (learner, state, snapshot(physics), readout, sense)
        started = time.monotonic()
        samples, state, physics, readout, sense, _ = distiller.collect(
            learner, state, physics, readout, sense
        )
        jax.block_until_ready(samples)
        collected = time.monotonic()
        learner, _ = distiller.update(learner, samples)
        jax.block_until_ready(learner)
        finished = time.monotonic()
        physics_alone, drawing_alone = parts_alone(began, physics)
        turn += 1
        if turn < 2:  # the first turn compiles, and in it the teacher acts
            deadline = time.monotonic() + seconds
            continue
        for name, took in zip(
            names,
            (
                physics_alone,
                drawing_alone,
                collected - started,
                finished - started,
            ),
            strict=True,
        ):
            times[name].append(took)
        left = deadline - time.monotonic()
        meter.update(min(100, int(100 * (1 - left / seconds))))
        if left <= 0 and len(times["physics"]) >= 3:
            break
    speed = {name: settings.samples / float(np.median(values)) for name, values in times.items()}
    limit = 1 / (1 / speed["physics"] + 1 / speed["rendering"])
    alone = np.add(times["physics"], times["rendering"])
    # Of each turn, so that a change of the machine's speed matters less.
    shares = alone / times["collection"]
    return {
        "phase": "distill",
        "engine": distiller.env.engine.name,
        "renderer": drawn_by,
        "envs": settings.num_envs,
        "threads": distiller.threads,
        "turns": len(times["physics"]),
        "shadows": settings.senses.shadows,
        **{f"{name}_steps_per_s": round(speed[name], 1) for name in names},
        "limit_steps_per_s": round(limit, 1),
        "collection_over_limit": round(float(np.median(shares)), 3),
        "full_scale_minutes": round(
            settings.iterations * settings.samples / speed["training"] / 60, 1
        ),
    }


def _batch_parts(distiller: dagger_learner.Distiller) -> Callable[..., tuple[float, float]]:
    """Returns what does an iteration's physics and rendering on the CPU engine again, and gives the seconds of each.

    Both do all environments at once, with all threads.
    """
    settings = distiller.settings
    scene = distiller.env.task.scene
    whole = CpuEngine(scene, settings.num_envs, distiller.threads, distiller.fields)
    size = distiller.spec.cameras.size
    drawing = renderers.make_renderer(distiller.renderer, size, distiller.threads)
    recorded = []
    for world in distiller.worlds:
        assert world.senses is not None
        engine, drawer = Recording(world.env.engine), _Drawn(world.senses.renderer)
        world.env.engine, world.senses.renderer = engine, drawer
        recorded.append((engine, drawer))

    def again(began: PyTree, _physics: PyTree) -> tuple[float, float]:
        targets = np.concatenate([engine.targets for engine, _ in recorded], 1)
        poses = np.concatenate([drawer.poses for _, drawer in recorded], 1)
        shown = {
            name: np.concatenate([drawer.looks[name] for _, drawer in recorded])
            for name in recorded[0][1].looks
        }
        stepping = repeat_steps(whole, began[2], list(targets))
        between = time.monotonic()
        for some in poses:
            drawing.render(some, shown)
        finished = time.monotonic()
        for engine, drawer in recorded:
            engine.targets.clear()
            drawer.poses.clear()
        return stepping, finished - between

    return again


def _traced_parts(distiller: dagger_learner.Distiller) -> Callable[..., tuple[float, float]]:
    """The same for an engine whose whole iteration is one compiled function."""
    steps, senses = traced_steps(distiller.env), distiller.senses
    assert senses is not None

    @jax.jit
    def pictures(sense: PyTree, poses: jax.Array) -> PyTree:
        return jax.lax.map(lambda qpos: senses.draw_traced(sense, qpos), poses)

    def again(began: PyTree, _physics: PyTree) -> tuple[float, float]:
        targets, poses = jax.block_until_ready(distiller.trace(*began))
        started = time.monotonic()
        jax.block_until_ready(steps(began[2], targets))
        between = time.monotonic()
        jax.block_until_ready(pictures(began[4], poses))
        return between - started, time.monotonic() - between

    return again


class _Drawn:
    """A renderer that keeps what it was asked to draw, so that it can be drawn again alone."""

    def __init__(self, plain: Renderer):
        self.plain = plain
        self.poses: list[np.ndarray] = []
        self.looks: Looks = {}

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        self.poses.append(np.array(poses))
        self.looks = looks or {}
        return self.plain.render(poses, looks)
