"""Measures policies in simulation under the frozen protocol: success rates with 95% Wilson intervals."""

from __future__ import annotations

import csv
import os
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import engines, randomize, runlog, scene, stats, video
from alohas2r import policy as policies
from alohas2r.env import Env, EnvConfig
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.history import HistoryConfig
from alohas2r.policy import StagedPolicy, StatePolicy
from alohas2r.protocol import EVAL_V1, Protocol, modified
from alohas2r.student import StudentPolicy, StudentSpec
from alohas2r.tasks.insert import InsertConfig, InsertTask
from alohas2r.tasks.pick import PickConfig, PickTask

if TYPE_CHECKING:
    from alohas2r.onnx_eval import ExportedPolicy

MAX_ENVS = 2048  # episodes simulated at once; results do not depend on it


def episode_keys(seed: int, first: int, count: int) -> jax.Array:
    """Returns the random keys [count, 2] of episodes first .. first + count - 1 of a seed."""
    root = jax.random.PRNGKey(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.arange(first, first + count))


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
        lambda key: jax.random.uniform(jax.random.fold_in(key, randomize.STREAM), (2,))
    )(keys)
    fields, context = randomize.sample_block(loaded, pick.block, np.asarray(draws, np.float64))
    made = engines.make(engine, loaded, len(keys), threads, fields)
    environment = EnvConfig(control=protocol.control, noise=protocol.noise, history=memory)
    return Env(PickTask(loaded, task), made, environment, context), context


def run_pick(
    policy: StatePolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: runlog.Meter | None = None,
    done_before: int = 0,
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one episode per key.

    Returns:
      Per-episode results, each [N], and the states qpos [T, N, nq] (float32) for videos.
    """
    env, block = pick_env(protocol, policy.spec.history, keys, threads, engine)

    @jax.jit
    def act(state: Any, readout: Any) -> tuple[Any, jax.Array]:
        state, features, _ = env.observe(state, readout)
        return env.control(state, readout, policy.apply(features, jnp))

    return pick_episodes(
        env,
        block,
        lambda state, readout, _: act(state, readout),
        protocol,
        keys,
        meter,
        done_before,
    )


def pick_episodes(
    env: Env,
    block: np.ndarray,
    act: Callable[[Any, Any, np.ndarray], tuple[Any, jax.Array]],
    protocol: Protocol,
    keys: jax.Array,
    meter: runlog.Meter | None = None,
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
            jax.random.fold_in(key, randomize.STREAM), (randomize.INSERT_DRAWS,)
        )

    fields, half = randomize.sample_insert(
        loaded, rules.physics, np.asarray(jax.vmap(draw)(keys), np.float64)
    )
    made = engines.make(engine, loaded, len(keys), threads, fields)
    environment = EnvConfig(control=protocol.control, noise=rules.noise, history=memory)
    context = np.stack([half, np.zeros(len(keys))], 1)
    return Env(InsertTask(loaded, task), made, environment, context), half


def run_insert(
    policy: StagedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: runlog.Meter | None = None,
    done_before: int = 0,
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key with the staged teacher.

    Returns:
      Per-episode results, each [N], and the states qpos [T, N, nq] (float32) for videos.
    """
    env, half = insert_env(protocol, policy.spec.history, keys, threads, engine)

    @jax.jit
    def act(state: Any, readout: Any) -> tuple[Any, jax.Array]:
        state, features, _ = env.observe(state, readout)
        return env.control(state, readout, policy.apply(features, state.task.switched, jnp))

    return insert_episodes(
        env, half, lambda state, readout, _: act(state, readout), protocol, keys, meter, done_before
    )


def insert_episodes(
    env: Env,
    half: np.ndarray,
    act: Callable[[Any, Any, np.ndarray], tuple[Any, jax.Array]],
    protocol: Protocol,
    keys: jax.Array,
    meter: runlog.Meter | None = None,
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
        "time_to_success_s": np.where(success, first_inserted * scene.CONTROL_PERIOD_S, np.nan),
        "peg_mm": half * 2000,
    }
    return result, qpos


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not values.size:
        return {"median": None, "p90": None, "p99": None}
    return {
        name: round(float(np.quantile(values, share)), 3)
        for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
    }


def _checked_policy(
    policy_path: str | os.PathLike[str], episodes: int
) -> policies.AnyPolicy | StudentPolicy | ExportedPolicy:
    if not 1 <= episodes <= 1_000_000:
        raise ConfigError(f"episodes must be in 1..1000000, not {episodes}.")
    if pathlib.Path(policy_path).suffix.lower() == ".onnx" or pathlib.Path(policy_path).is_file():
        from alohas2r import onnx_eval

        policy = onnx_eval.load(policy_path)
        single = policy.kind == "state"
    else:
        policy = policies.load(policy_path)
        single = isinstance(policy, StatePolicy)
    if isinstance(policy.spec, StudentSpec):
        return policy
    if single and policy.spec.phase != "pick":
        raise ArtifactError(
            f"{policy_path} is a policy for the insertion alone; evaluate the teacher that holds it and a pick policy."
        )
    task = PickTask if single else InsertTask
    expected = tuple((part.name, part.size, part.unit) for part in policy.spec.observation)
    if expected != task.observation_spec:
        raise ArtifactError(
            f"{policy_path} expects other observations than this version of alohas2r gives."
        )
    return policy


def run(
    policy: policies.AnyPolicy | StudentPolicy | ExportedPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: runlog.Meter | None = None,
    done_before: int = 0,
    renderer: str = "auto",
    engine: str = "cpu",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one episode per key with any policy; see run_pick, run_insert, student_eval.run_student, onnx_eval.run.

    Students and exported files run on the engine "cpu" only.
    """
    if isinstance(policy, StudentPolicy):
        from alohas2r import student_eval

        return student_eval.run_student(
            policy, protocol, keys, threads, meter, done_before, renderer=renderer
        )
    if isinstance(policy, StagedPolicy):
        return run_insert(policy, protocol, keys, threads, meter, done_before, engine)
    if isinstance(policy, StatePolicy):
        return run_pick(policy, protocol, keys, threads, meter, done_before, engine)
    from alohas2r import onnx_eval

    return onnx_eval.run(policy, protocol, keys, threads, meter, done_before, renderer=renderer)


def evaluate(
    policy_path: str | os.PathLike[str],
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
    engine: str = "cpu",
) -> dict[str, Any]:
    """Evaluates a policy under eval-v1: exactly the first `episodes` episodes of the seed.

    Args:
      policy_path: an artifact's directory, or an exported file (.onnx).
      episodes: how many.
      seed: of starts, blocks, noise and delays; episode i is the same whatever `episodes` is.
      threads: of the physics; 0 for all cores.
      progress: receives reports.
      protocol: eval-v1, or one made from it by `protocol.modified`.
      renderer: what draws a student's pictures; see senses.RENDERERS.
      engine: what simulates: "cpu", "warp" or "auto"; students and exported files know the first only.

    Returns:
      Rates with Wilson intervals, quantiles of errors and times, and "table": per-episode columns.

    Raises:
      ArtifactError: the policy cannot be read or is none for this protocol.
      ConfigError: a number out of range.
    """
    started = time.monotonic()
    policy = _checked_policy(policy_path, episodes)
    knows = isinstance(policy, StatePolicy | StagedPolicy)
    engine = "cpu" if engine == engines.AUTO and not knows else engines.choose(engine)
    if engine != "cpu" and not knows:
        raise ConfigError(
            f"The engine '{engine}' evaluates teachers only; use --engine cpu for {policy_path}."
        )
    meter = runlog.Meter("evaluate", episodes, progress, unit="episodes")
    parts = []
    for first in range(0, episodes, MAX_ENVS):
        count = min(MAX_ENVS, episodes - first)
        parts.append(
            run(
                policy,
                protocol,
                episode_keys(seed, first, count),
                threads,
                meter,
                first,
                renderer,
                engine,
            )[0]
        )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    staged = policy.spec.phase != "pick"
    result = {
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "policy": policy.hash,
        "phase": policy.spec.phase,
        "engine": engine,
        "episodes": episodes,
        "seed": seed,
    }
    if staged:
        result |= _insert_summary(table, protocol.insert.steps * scene.CONTROL_PERIOD_S)
    else:
        result |= _pick_summary(table)
    result |= {
        "peak_joint_speed_rad_s": _quantiles(table["peak_joint_speed"]),
        "peak_contact_force_n": _quantiles(table["peak_contact_force"]),
        "wall_s": round(time.monotonic() - started, 2),
        "table": table,
    }
    return result


# Conditions of the sweeps; the teacher is the same in all of them.
SWEEPS: dict[str, tuple[dict[str, float], ...]] = {
    "clearance": tuple({"peg_mm": float(side)} for side in (20, 24, 28, 32, 34)),
    "latency": tuple({"extra_delay_steps": steps} for steps in range(5)),
    "recovery": ({"seconds": 15.0},),
}


def sweep(
    policy_path: str | os.PathLike[str],
    name: str,
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
) -> dict[str, Any]:
    """Evaluates one teacher under several conditions.

    Args:
      policy_path: a staged teacher.
      name: "clearance" (pegs of 20 to 34 mm in the 36 mm hole), "latency" (0 to 4 steps of constant action delay on
        top) or "recovery" (15 s instead of 10, for success at 8, 10 and 15 s).
      episodes: per condition. seed, threads, progress: as `evaluate`.

    Returns:
      "sweep": the name, and "rows": each condition with the result of `evaluate`, per-episode tables left out.

    Raises:
      ConfigError: unknown sweep. ArtifactError: as `evaluate`, or the policy is no staged teacher.
    """
    if name not in SWEEPS:
        raise ConfigError(f"Unknown sweep '{name}'.{did_you_mean(name, SWEEPS)}")
    if _checked_policy(policy_path, episodes).spec.phase == "pick":
        raise ArtifactError(f"{policy_path} is no staged teacher; a sweep needs one that inserts.")
    rows = []
    for condition in SWEEPS[name]:
        changed: dict[str, Any] = dict(condition)
        result = evaluate(
            policy_path, episodes, seed, threads, progress, modified(EVAL_V1, **changed)
        )
        result.pop("table")
        rows.append({"condition": condition, **result})
    return {"sweep": name, "rows": rows}


def _rate(flags: np.ndarray) -> stats.Rate:
    return stats.rate(int(flags.sum()), len(flags))


def _pick_summary(table: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("reached", "grasped", "lifted", "crossed", "out", "unstable")
    return {
        "success": _rate(table["success"]),
        "precise": _rate(table["precise"]),
        "stages": {name: _rate(table[name]) for name in names},
        "position_error_mm": _quantiles(table["position_error_mm"]),
        "rotation_error_deg": _quantiles(table["rotation_error_deg"]),
        "time_to_success_s": _quantiles(table["time_to_success_s"]),
    }


def _insert_summary(table: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
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
        "success": _rate(success),
        "held_at_end": _rate(table["held_at_end"]),
        "dropped": _rate(table["dropped"]),
        "stages": {name: _rate(table[name]) for name in stages},
        "success_within_s": {
            str(limit): _rate(times <= limit) for limit in (4, 6, 8, 10, 15) if limit <= seconds
        },
        "retries": {
            "tried": int(table["retried"].sum()),
            "succeeded": int(table["retry_succeeded"].sum()),
        },
        "time_to_success_s": {
            **_quantiles(times),
            "kaplan_meier_median": stats.kaplan_meier_median(
                np.where(success, times, seconds), success
            ),
        },
        "arm_distance_mm": {
            **_quantiles(table["arm_distance_mm"]),
            "least": round(float(table["arm_distance_mm"].min()), 1),
            "touching": _rate(table["arm_distance_mm"] < 0),
        },
    }


def write_csv(result: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the per-episode table of a result of `evaluate`.

    Raises:
      ArtifactError: the file cannot be written.
    """
    table = result["table"]

    def write(file: Any) -> None:
        import io

        text = io.TextIOWrapper(file, newline="", encoding="utf-8")
        writer = csv.writer(text)
        writer.writerow(["episode", *table])
        for index, row in enumerate(zip(*table.values(), strict=True)):
            writer.writerow(
                [index, *(int(v) if isinstance(v, np.bool_) else f"{float(v):.6g}" for v in row)]
            )
        text.flush()
        text.detach()

    return runlog.write_atomic(path, write)


def write_video(
    policy_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    episodes: int = 9,
    seed: int = 0,
) -> pathlib.Path:
    """Writes a grid of episodes as a video; a green border marks success, a red one failure.

    Raises:
      ArtifactError: the policy cannot be read, or the file cannot be written.
      BackendUnavailable: no way to render or to encode.
    """
    policy = _checked_policy(policy_path, episodes)
    if isinstance(policy, StudentPolicy):
        from alohas2r import student_eval

        return student_eval.write_video(policy, path, episodes, seed)
    result, qpos = run(policy, EVAL_V1, episode_keys(seed, 0, episodes))
    name = policy.spec.phase
    return video.write_rollouts(
        path, scene.load(name), qpos, result["success"], _half_sizes(name, result)
    )


def _half_sizes(name: str, result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns geom name -> [N, 3] half sizes (m) of the objects that differ between episodes."""
    geom, side = ("box", "block_half_side_mm") if name == "pick" else ("red_peg", "peg_mm")
    half = result[side] / (1000 if name == "pick" else 2000)
    return {geom: np.stack([np.full_like(half, 0.048), half, half], 1)}
