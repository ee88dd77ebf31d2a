"""Throughput of physics, environment and training, measured side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.benchmarks.distillation import bench_distill
from alohas2r.benchmarks.recording import Recording, repeat_steps, traced_steps
from alohas2r.benchmarks.timing import Turns
from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.envs.env import Env
from alohas2r.evaluation import episodes
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import policy as ppo_policy
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo.learner import Ppo
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.engines.cpu import CpuEngine, Physics


def bench_sim(
    phase: str = "pick",
    envs: int | None = None,
    seconds: float = 30.0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    policy_path: str | None = None,
    engine: str = "cpu",
) -> JsonObject:
    """Measures control steps per second of three things, in turns, on the same engine, model and variants.

    raw: the engine's physics alone (`Batch.step` with the substeps of a control step; on the engine "warp" its step,
    all steps of an unroll in one call), from the same states and with the same actuator targets as the environment had
    just before; environment: the same with sensors, reward, noise, delays, reset
    and the policy; training: with PPO updates. Turns alternate and the medians of the turns are compared, so that a
    noisy machine does not favour one of them. The default preset's configuration is used throughout.

    Args:
      phase: name of a task; or "distill", see `bench_distill`.
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
    settings = presets.find_preset(phase, "default")
    if envs is not None:
        settings = settings.with_envs(envs)
    env = ppo_envs.make_env(settings, 0, threads, engine=engine)
    if env.engine.traceable:
        physics_alone = _traced_physics(env)
    else:
        env, physics_alone = _recorded(env)
    ppo = Ppo(settings.ppo, env)
    learner = ppo.init(jax.random.PRNGKey(0))
    if policy_path is not None:
        learner = ppo_policy.with_policy(learner, policy_path)
    keys = episodes.episode_keys(0, 0, env.num_envs)
    state, physics, readout = env.reset(keys, stagger=True)
    turns = Turns(f"bench-sim {phase}", ("raw", "environment", "training"), seconds, progress)
    while turns.wanted:
        began = (state, snapshot(physics), readout)
        started = time.monotonic()
        rollout, final, state, physics, readout, _ = ppo.rollout(learner, *began)
        jax.block_until_ready(rollout)
        collected = time.monotonic()
        updated, _ = ppo.update(learner, rollout, final, jnp.float32(0))
        jax.block_until_ready(updated)
        finished = time.monotonic()
        raw = physics_alone(ppo, learner, began, physics)
        turns.add(raw=raw, environment=collected - started, training=finished - started)
    speed = turns.speeds(settings.ppo.steps_per_update)
    return {
        "phase": phase,
        "engine": engine,
        "envs": env.num_envs,
        "threads": env.engine.threads,
        "substeps": env.engine.substeps,
        "turns": turns.count,
        "raw_steps_per_s": round(speed["raw"], 1),
        "environment_steps_per_s": round(speed["environment"], 1),
        "training_steps_per_s": round(speed["training"], 1),
        "environment_over_raw": round(speed["environment"] / speed["raw"], 3),
        "training_over_raw": round(speed["training"] / speed["raw"], 3),
    }


def _recorded(env: Env) -> tuple[Env, Callable[..., float]]:
    """Returns the same environments with a recording engine, and what times the physics of the unroll just made."""
    engine = env.engine
    assert isinstance(engine, CpuEngine)
    recording = Recording(engine)
    context = np.asarray(env.context)

    def again(_ppo: Ppo, _learner: PyTree, began: PyTree, physics: Physics) -> float:
        after = snapshot(physics)
        took = repeat_steps(engine, began[1], recording.targets)
        engine.batch.state[:] = after.rows
        recording.targets.clear()
        return took

    return Env(env.task, recording, env.config, context, env.held), again


def _traced_physics(env: Env) -> Callable[..., float]:
    """The same for an engine whose whole unroll is one compiled function."""
    steps = traced_steps(env)

    def again(ppo: Ppo, learner: PyTree, began: PyTree, _physics: PyTree) -> float:
        targets = jax.block_until_ready(ppo.targets(learner, *began))
        started = time.monotonic()
        jax.block_until_ready(steps(began[1], targets))
        return time.monotonic() - started

    return again
