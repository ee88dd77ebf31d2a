"""The insertion under a protocol: its environments, episodes and rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alohas2r.core import progress, stats
from alohas2r.core.stats import quantiles, rate_of
from alohas2r.embodiment import joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.protocol import Protocol


def insert_env(
    protocol: Protocol,
    memory: HistoryConfig,
    keys: jax.Array,
    threads: int = 0,
    engine: str = "cpu",
) -> tuple[Env, np.ndarray]:
    """Returns one two-arm environment per episode key under the protocol, and the pegs' half sides [N]."""
    loaded = scene.load_physics("insert")
    rules = protocol.insert
    task = InsertConfig(
        steps=rules.steps,
        start=rules.start,
        physics=rules.physics,
        inserted_x=rules.inserted_x,
        hole=rules.hole,
        grip_distance=rules.grip_distance,
        hold_steps=rules.hold_steps,
        fall_height=rules.fall_height,
    )

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(key, physics_randomization.STREAM),
            (physics_randomization.INSERT_DRAWS,),
        )

    fields, half = physics_randomization.sample_insert(
        loaded, rules.physics, np.asarray(jax.vmap(draw)(keys), np.float64)
    )
    made = engines.make(engine, loaded, len(keys), threads, fields)
    environment = EnvConfig(control=protocol.control, noise=rules.noise, history=memory)
    context = np.stack([half, np.zeros(len(keys))], 1)
    return Env(InsertTask(loaded, task), made, environment, context), half


def insert_episodes(
    env: Env,
    half: np.ndarray,
    act: Callable[[Any, Any, np.ndarray], tuple[Any, jax.Array]],
    protocol: Protocol,
    keys: jax.Array,
    meter: progress.Meter | None = None,
    done_before: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key, whatever acts.

    Args:
      env: from `insert_env`. half: [N] the pegs' half sides (m).
      act: takes the environments' state, the readout, and which episodes are still going on [N]; returns the new
        state and the actuator targets [N, nu].
      protocol: what counts as inserted. keys: [N, 2] of the episodes.
      meter: receives counts of episodes, on top of `done_before`.

    Returns:
      As `run_insert`.
    """
    steps = env.task.config.steps
    state, physics, readout = env.reset(keys)
    count = len(keys)
    alive = np.ones(count, bool)
    flags = ("grasped_both", "lifted_both", "switched", "entered", "dropped", "out", "unstable")
    result: dict[str, np.ndarray] = {name: np.zeros(count, bool) for name in flags}
    result |= {"peak_joint_speed": np.zeros(count), "peak_contact_force": np.zeros(count)}
    result["arm_distance_mm"] = np.full(count, np.inf)
    first_inserted = np.full(count, -1)
    attempts = np.zeros(count, int)
    was_switched = np.zeros(count, bool)
    attempts_at_success = np.zeros(count, int)
    in_place = np.zeros((steps, count), bool)
    qpos = np.zeros((steps, count, env.engine.scene.model.nq), np.float32)
    for step in range(steps):
        qpos[step] = readout.qpos
        state, ctrl = act(state, readout, alive)
        state, physics, readout, scored = env.advance(state, physics, ctrl)
        measures = jax.tree.map(np.asarray, scored.measures)
        done, finite = np.asarray(scored.done), np.asarray(scored.finite)
        seen = alive & finite
        result["unstable"] |= alive & ~finite
        result["grasped_both"] |= seen & measures.grasped.all(1)
        result["lifted_both"] |= seen & measures.lifted.all(1)
        result["switched"] |= seen & measures.switched
        result["entered"] |= seen & measures.entered
        result["dropped"] |= seen & measures.dropped.any(1)
        attempts += seen & measures.switched & ~was_switched
        was_switched = measures.switched
        new = seen & measures.inserted & (first_inserted < 0)
        first_inserted[new] = step + 1
        attempts_at_success[new] = attempts[new]
        in_place[step] = seen & measures.in_place
        for name, value in (
            ("peak_joint_speed", measures.joint_speed),
            ("peak_contact_force", measures.contact_force),
        ):
            result[name] = np.where(seen, np.maximum(result[name], value), result[name])
        nearer = np.minimum(result["arm_distance_mm"], measures.arm_distance * 1000)
        result["arm_distance_mm"] = np.where(seen, nearer, result["arm_distance_mm"])
        if step < steps - 1:
            result["out"] |= alive & done & finite
            alive &= ~done
        if meter is not None:
            meter.update(done_before + count * (step + 1) // steps)
    success = first_inserted > 0
    result |= {
        "success": success,
        "held_at_end": alive & in_place[-protocol.insert.hold_steps :].all(0),
        "inserted": success,
        "retried": attempts > 1,
        "retry_succeeded": success & (attempts_at_success > 1),
        "attempts": attempts,
        "time_to_success_s": np.where(success, first_inserted * joints.CONTROL_PERIOD_S, np.nan),
        "peg_mm": half * 2000,
    }
    return result, qpos


def insert_summary(table: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
    """Returns the rates and quantiles of a table of episodes that last `seconds`."""
    stages = (
        "grasped_both",
        "lifted_both",
        "switched",
        "entered",
        "inserted",
        "dropped",
        "out",
        "unstable",
    )
    success, times = table["success"], table["time_to_success_s"]
    return {
        "success": rate_of(success),
        "held_at_end": rate_of(table["held_at_end"]),
        "dropped": rate_of(table["dropped"]),
        "stages": {name: rate_of(table[name]) for name in stages},
        "success_within_s": {
            str(limit): rate_of(times <= limit) for limit in (4, 6, 8, 10, 15) if limit <= seconds
        },
        "retries": {
            "tried": int(table["retried"].sum()),
            "succeeded": int(table["retry_succeeded"].sum()),
        },
        "time_to_success_s": {
            **quantiles(times),
            "kaplan_meier_median": stats.kaplan_meier_median(
                np.where(success, times, seconds), success
            ),
        },
        "arm_distance_mm": {
            **quantiles(table["arm_distance_mm"]),
            "least": round(float(table["arm_distance_mm"].min()), 1),
            "touching": rate_of(table["arm_distance_mm"] < 0),
        },
    }
