"""Throughput of physics, environment and training, measured side by side in one run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import engines, evaluate, parallel, runlog, senses, teacher
from alohas2r.config import check
from alohas2r.engines import Engine
from alohas2r.engines.cpu import CpuEngine, snapshot
from alohas2r.env import Env
from alohas2r.ppo import Ppo


class _Recording:
    """A CPU engine that keeps the targets it is given, so that its physics can be run again alone."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.targets: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, physics: Any, ctrl: np.ndarray) -> Any:
        self.targets.append(ctrl)
        return self._engine.step(physics, ctrl)


def bench_sim(
    phase: str = "pick",
    envs: int | None = None,
    seconds: float = 30.0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
    policy_path: str | None = None,
    engine: str = "cpu",
) -> dict[str, Any]:
    """Measures control steps per second of three things, in turns, on the same engine, model and variants.

    raw: the engine's physics alone (`Batch.step` with the substeps of a control step; on the engine "warp" its step,
    all steps of an unroll in one call), from the same states and with the same actuator targets as the environment had
    just before; environment: the same with sensors, reward, noise, delays, reset
    and the policy; training: with PPO updates. Turns alternate and the medians of the turns are compared, so that a
    noisy machine does not favour one of them. The default preset's configuration is used throughout.

    Args:
      phase: "pick" or "insert"; or "distill", see `bench_distill`.
      envs: environments; the default preset's number if None.
      seconds: about how long to measure.
      threads: of the physics; 0 for all cores.
      progress: receives reports.
      policy_path: start from this policy's weights, so that states are those of a trained policy; for "distill",
        the staged teacher.
      engine: "cpu", "warp" or "auto".

    Returns:
      "raw", "environment", "training" in control steps/s, the ratios to raw, and the settings.

    Raises:
      ConfigError: unknown phase or engine, or a number out of range.
      BackendUnavailable: the engine cannot run here.
    """
    check(seconds > 0, f"seconds must be > 0, not {seconds}")
    engine = engines.choose(engine)
    if phase == "distill":
        return bench_distill(envs, seconds, threads, progress, policy_path, engine=engine)
    overrides = [] if envs is None else [f"ppo.num_envs={envs}"]
    if overrides and phase == "insert":
        overrides.append(f"collect.variants={envs}")  # one for each environment
    settings = teacher.config.override(teacher.find_preset(phase, "default"), overrides)
    env = teacher.make_env(settings, 0, threads, engine=engine)
    physics_alone = _traced_physics(env) if env.engine.traceable else _batch_physics(env)
    ppo = Ppo(settings.ppo, env)
    learner = ppo.init(jax.random.PRNGKey(0))
    if policy_path is not None:
        learner = teacher.with_policy(learner, policy_path)
    keys = evaluate.episode_keys(0, 0, env.num_envs)
    state, physics, readout = env.reset(keys, stagger=True)
    times: dict[str, list[float]] = {"raw": [], "environment": [], "training": []}
    meter = runlog.Meter(f"bench-sim {phase}", 100, progress, unit="%")
    size = settings.ppo.steps_per_update
    deadline = None
    warm_up = True
    while True:
        began = (state, snapshot(physics), readout)
        started = time.monotonic()
        rollout, final, state, physics, readout, _ = ppo.rollout(learner, *began)
        jax.block_until_ready(rollout)
        collected = time.monotonic()
        updated, _ = ppo.update(learner, rollout, final, jnp.float32(0))
        jax.block_until_ready(updated)
        finished = time.monotonic()
        raw = physics_alone(ppo, learner, began, physics)
        if warm_up:  # the first turn compiles
            warm_up = False
            deadline = time.monotonic() + seconds
            continue
        times["environment"].append(collected - started)
        times["training"].append(finished - started)
        times["raw"].append(raw)
        assert deadline is not None
        left = deadline - time.monotonic()
        meter.update(min(100, int(100 * (1 - left / seconds))))
        if left <= 0 and len(times["raw"]) >= 3:
            break
    speed = {name: size / float(np.median(values)) for name, values in times.items()}
    return {
        "phase": phase,
        "engine": engine,
        "envs": env.num_envs,
        "threads": env.engine.threads,
        "substeps": env.engine.substeps,
        "turns": len(times["raw"]),
        "raw_steps_per_s": round(speed["raw"], 1),
        "environment_steps_per_s": round(speed["environment"], 1),
        "training_steps_per_s": round(speed["training"], 1),
        "environment_over_raw": round(speed["environment"] / speed["raw"], 3),
        "training_over_raw": round(speed["training"] / speed["raw"], 3),
    }


def _batch_physics(env: Env) -> Callable[..., float]:
    """Returns what steps the CPU engine as in the unroll just made, and gives the seconds that it took."""
    engine = _Recording(env.engine)
    env.engine = engine  # pyright: ignore[reportAttributeAccessIssue]

    def again(_ppo: Ppo, _learner: Any, began: Any, physics: Any) -> float:
        after = snapshot(physics)
        batch = engine.batch
        batch.state[:] = began[1].rows
        started = time.monotonic()
        for ctrl in engine.targets:
            batch.ctrl = ctrl
            batch.step(nstep=engine.substeps)
        took = time.monotonic() - started
        batch.state[:] = after.rows
        engine.targets.clear()
        return took

    return again


def _traced_physics(env: Env) -> Callable[..., float]:
    """The same for an engine whose whole unroll is one compiled function."""
    steps = _traced_steps(env)

    def again(ppo: Ppo, learner: Any, began: Any, _physics: Any) -> float:
        targets = jax.block_until_ready(ppo.targets(learner, *began))
        started = time.monotonic()
        jax.block_until_ready(steps(began[1], targets))
        return time.monotonic() - started

    return again


def _traced_steps(env: Env) -> Any:
    """Returns the compiled function from physics and targets [T, N, nu] to the physics after them."""

    @jax.jit
    def steps(physics: Any, targets: jax.Array) -> Any:
        return jax.lax.scan(lambda p, ctrl: (env.engine.step(p, ctrl)[0], None), physics, targets)

    return steps


def bench_distill(
    envs: int | None = None,
    seconds: float = 30.0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
    teacher_path: str | None = None,
    encoder_path: str | None = None,
    overrides: Sequence[str] = (),
    renderer: str = "auto",
    engine: str = "cpu",
) -> dict[str, Any]:
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
    from alohas2r import config, dagger, pretrain, scene, student

    check(seconds > 0, f"seconds must be > 0, not {seconds}")
    chosen = [*overrides] if envs is None else [*overrides, f"num_envs={envs}"]
    settings = config.override(dagger.find_preset("default"), chosen)
    staged = dagger.load_teacher(teacher_path or scene.data_path("params") / "teacher")
    if encoder_path is None:
        filters = settings.network.filters
        spec = student.Encoder(filters)
        side = settings.cameras.size
        params: Any = spec.init(jax.random.PRNGKey(0), jnp.zeros((1, side, side, 3)))["params"]
        encoder = pretrain.EncoderArtifact(filters, side, params, {})
    else:
        encoder = pretrain.load_encoder(encoder_path)
    parallel.keep_memory()
    distiller = dagger.Distiller(settings, staged, encoder, 0, threads, renderer, engine)
    assert distiller.senses is not None
    drawn_by = distiller.senses.renderer.name
    traceable = distiller.env.engine.traceable
    parts_alone = _traced_parts(distiller) if traceable else _batch_parts(distiller)
    learner = distiller.init()
    state, physics, readout, sense = distiller.begin()
    names = ("physics", "rendering", "collection", "training")
    times: dict[str, list[float]] = {name: [] for name in names}
    meter = runlog.Meter("bench-sim distill", 100, progress, unit="%")
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


def _batch_parts(distiller: Any) -> Callable[..., tuple[float, float]]:
    """Returns what does an iteration's physics and rendering on the CPU engine again, and gives the seconds of each.

    Both do all environments at once, with all threads.
    """
    settings = distiller.settings
    scene = distiller.env.task.scene
    whole = CpuEngine(scene, settings.num_envs, distiller.threads, distiller.fields)
    size = distiller.spec.cameras.size
    drawing = senses.make_renderer(distiller.renderer, size, distiller.threads)
    recorded = []
    for world in distiller.worlds:
        engine, drawer = _Recording(world.env.engine), _Drawn(world.senses.renderer)
        world.env.engine, world.senses.renderer = engine, drawer
        recorded.append((engine, drawer))

    def again(began: Any, _physics: Any) -> tuple[float, float]:
        targets = np.concatenate([engine.targets for engine, _ in recorded], 1)
        poses = np.concatenate([drawer.poses for _, drawer in recorded], 1)
        shown = {
            name: np.concatenate([drawer.looks[name] for _, drawer in recorded])
            for name in recorded[0][1].looks
        }
        whole.batch.state[:] = began[2].rows
        started = time.monotonic()
        for ctrl in targets:
            whole.batch.ctrl = ctrl
            whole.batch.step(nstep=whole.substeps)
        between = time.monotonic()
        for some in poses:
            drawing.render(some, shown)
        finished = time.monotonic()
        for engine, drawer in recorded:
            engine.targets.clear()
            drawer.poses.clear()
        return between - started, finished - between

    return again


def _traced_parts(distiller: Any) -> Callable[..., tuple[float, float]]:
    """The same for an engine whose whole iteration is one compiled function."""
    steps = _traced_steps(distiller.env)

    @jax.jit
    def pictures(sense: Any, poses: jax.Array) -> Any:
        return jax.lax.map(lambda qpos: distiller.senses.draw_traced(sense, qpos), poses)

    def again(began: Any, _physics: Any) -> tuple[float, float]:
        targets, poses = jax.block_until_ready(distiller.trace(*began))
        started = time.monotonic()
        jax.block_until_ready(steps(began[2], targets))
        between = time.monotonic()
        jax.block_until_ready(pictures(began[4], poses))
        return between - started, time.monotonic() - between

    return again


class _Drawn:
    """A renderer that keeps what it was asked to draw, so that it can be drawn again alone."""

    def __init__(self, plain: Any):
        self.plain = plain
        self.poses: list[np.ndarray] = []
        self.looks: Any = None

    def render(self, poses: Any, looks: Any = None) -> Any:
        self.poses.append(np.array(poses))
        self.looks = looks
        return self.plain.render(poses, looks)
