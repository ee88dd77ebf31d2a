"""The pick task under a protocol: its environments, episodes and rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alohas2r.core import progress
from alohas2r.core.stats import quantiles, rate_of
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.pick.task import PickTask
from alohas2r.tasks.protocol import Protocol


def pick_env(
    protocol: Protocol,
    memory: HistoryConfig,
    keys: jax.Array,
    threads: int = 0,
    engine: str = "cpu",
) -> tuple[Env, np.ndarray]:
    """Returns one environment per episode key under the protocol, and the blocks [N, 2] in them."""
    loaded = scene.load_physics("pick")
    pick = protocol.pick
    task = PickConfig(
        steps=pick.steps, start=pick.start, block=pick.block, crossed_x=pick.crossed_x
    )
    draws = jax.vmap(
        lambda key: jax.random.uniform(jax.random.fold_in(key, physics_randomization.STREAM), (2,))
    )(keys)
    fields, context = physics_randomization.sample_block(
        loaded, pick.block, np.asarray(draws, np.float64)
    )
    made = engines.make(engine, loaded, len(keys), threads, fields)
    environment = EnvConfig(control=protocol.control, noise=protocol.noise, history=memory)
    return Env(PickTask(loaded, task), made, environment, context), context


def pick_episodes(
    env: Env,
    block: np.ndarray,
    act: Callable[[Any, Any, np.ndarray], tuple[Any, jax.Array]],
    protocol: Protocol,
    keys: jax.Array,
    meter: progress.Meter | None = None,
    done_before: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key, whatever acts.

    Args:
      env, block: from `pick_env`.
      act, keys, meter, done_before: as for `insert_episodes`.
      protocol: what counts as success.

    Returns:
      As `run_pick`.
    """
    steps = env.task.config.steps
    state, physics, readout = env.reset(keys)
    count = len(keys)
    alive = np.ones(count, bool)
    result = {
        name: np.zeros(count, bool)
        for name in ("reached", "grasped", "lifted", "crossed", "out", "unstable")
    }
    result |= {"peak_joint_speed": np.zeros(count), "peak_contact_force": np.zeros(count)}
    within = np.zeros((steps, count), bool)
    position, rotation = np.full(count, np.nan), np.full(count, np.nan)
    qpos = np.zeros((steps, count, env.engine.scene.model.nq), np.float32)
    for step in range(steps):
        qpos[step] = readout.qpos
        state, ctrl = act(state, readout, alive)
        state, physics, readout, scored = env.advance(state, physics, ctrl)
        measures = jax.tree.map(np.asarray, scored.measures)
        done, finite = np.asarray(scored.done), np.asarray(scored.finite)
        seen = alive & finite
        for name in ("reached", "grasped", "lifted", "crossed"):
            result[name] |= seen & getattr(measures, name)
        result["unstable"] |= alive & ~finite
        for name, value in (
            ("peak_joint_speed", measures.joint_speed),
            ("peak_contact_force", measures.contact_force),
        ):
            result[name] = np.where(seen, np.maximum(result[name], value), result[name])
        position = np.where(seen, measures.position_error, position)
        rotation = np.where(seen, np.rad2deg(measures.rotation_error), rotation)
        close = (position < protocol.pick.success[0]) & (rotation < protocol.pick.success[1])
        within[step] = seen & close
        if step < steps - 1:
            result["out"] |= alive & done & finite & ~measures.crossed
            alive &= ~done
        else:
            alive &= finite & ~measures.crossed
        if meter is not None:
            meter.update(done_before + count * (step + 1) // steps)
    success = alive & within[-1]
    # Time of success: since when the episode stayed within the thresholds until its end.
    outside_last = np.where(~within.all(0), steps - np.argmax(~within[::-1], axis=0), 0)
    result |= {
        "success": success,
        "precise": alive
        & (position < protocol.pick.precise[0])
        & (rotation < protocol.pick.precise[1]),
        "position_error_mm": position * 1000,
        "rotation_error_deg": rotation,
        "time_to_success_s": np.where(success, (outside_last + 1) * 0.05, np.nan),
        "block_half_side_mm": block[:, 0] * 1000,
        "block_mass_g": block[:, 1] * 1000,
    }
    return result, qpos


def pick_summary(table: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the rates and quantiles of a table of episodes."""
    names = ("reached", "grasped", "lifted", "crossed", "out", "unstable")
    return {
        "success": rate_of(table["success"]),
        "precise": rate_of(table["precise"]),
        "stages": {name: rate_of(table[name]) for name in names},
        "position_error_mm": quantiles(table["position_error_mm"]),
        "rotation_error_deg": quantiles(table["rotation_error_deg"]),
        "time_to_success_s": quantiles(table["time_to_success_s"]),
    }
