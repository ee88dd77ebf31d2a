"""Measures students: whole episodes with pictures, under the same protocol and with the same rows as a teacher.

Looks are drawn anew for every episode, with shadows, and every noise is on.
"""

from __future__ import annotations

import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r import evaluate, networks, policy, runlog, scene, senses, stats, student, video
from alohas2r.config import check
from alohas2r.env import Env
from alohas2r.errors import ArtifactError
from alohas2r.history import HistoryConfig
from alohas2r.offscreen import Offscreen, free_camera
from alohas2r.protocol import EVAL_V1, Protocol
from alohas2r.senses import EVALUATION, Seen, Senses, SensesConfig
from alohas2r.student import StudentPolicy, StudentSpec
from alohas2r.tasks import hold_out
from alohas2r.tasks.hold_out import HoldOutConfig, HoldOutTask
from alohas2r.tasks.pick import TABLE_HEIGHT

SOCKET_HALF = 0.022  # m; half the socket's height. Source: recipe, section 1.
_SENSES = 0x5E5E  # stream of the student's random numbers


class StudentRunner:
    """Runs the same episodes with one student after the other; what is compiled serves them all.

    Starts, physics and action delays of an episode are those that a teacher gets for the same key.

    Args:
      spec: of the students.
      protocol: distributions, delays and thresholds.
      keys: [N, 2] of the episodes.
      threads: of physics and ray caster; 0 for all cores.
      renderer: see senses.RENDERERS.
      missing: whether one object is held out in every episode.
      conditions: noise and randomization of what the student observes.
    """

    def __init__(
        self,
        spec: StudentSpec,
        protocol: Protocol,
        keys: jax.Array,
        threads: int = 0,
        renderer: str = "auto",
        missing: bool = False,
        conditions: SensesConfig = EVALUATION,
    ):
        self.spec, self.protocol, self.keys, self.missing = spec, protocol, keys, missing
        sees = spec.has_rgb or spec.has_depth
        memory = HistoryConfig(()) if sees else spec.history
        self.env, self.half = evaluate.insert_env(protocol, memory, keys, threads)
        if missing:
            env = self.env
            task = HoldOutTask(env.task.scene, env.task.config, HoldOutConfig(one=True))
            self.env = Env(task, env.engine, env.config, np.asarray(env.context))
        self.senses: Senses | None = None
        if sees:
            drawer = senses.make_renderer(renderer, spec.cameras.size, threads)
            self.senses = Senses(spec, conditions, self.half, drawer)
        self._base_height = np.array([arm.base_pos[2] for arm in self.env.task.scene.arms])
        # Lifted as in `InsertMeasures`: 5 cm above lying on the table.
        socket = np.full(len(keys), SOCKET_HALF)
        self._raised = np.stack([socket, self.half], 1) + TABLE_HEIGHT + 0.05
        self._step = jax.jit(self._step_all)

    def _step_all(self, weights: Any, state: Any, readout: Any, sense: Any, drawn: Any) -> Any:
        """Observes and acts; returns new states, the observation, targets, and what hold-out counts."""
        spec = self.spec
        switched = state.task.switched
        signals = self.env.extract(readout)
        state, known, _ = self.env.observe(state, readout)
        if self.senses is None:
            size = self.env.task.observation_size
            seen = Seen(None, None, known[:, :size], known)
        else:
            frames, brightness = drawn
            sense, seen = self.senses.perceive(sense, frames, brightness, signals)
        tree = student.tree_of(weights)
        rgb = None if seen.rgb is None else student.encode(spec, tree["encoder"], seen.rgb)
        features = networks.normalize(seen.features, weights["mean"], weights["std"])
        logits, _ = student.head(spec, tree["head"], rgb, seen.depth, features, switched)
        state, ctrl = self.env.control(state, readout, jnp.tanh(logits))
        closed = hold_out.closed_on_air(signals, spec.switch.empty_travel)
        high = signals.object_pos[..., 2] + self._base_height > self._raised
        return state, sense, seen, ctrl, closed, high

    def run(
        self,
        weights: Mapping[str, np.ndarray],
        meter: runlog.Meter | None = None,
        done_before: int = 0,
        recorded: list[Seen] | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Runs all episodes from their start with a student of these weights; see `run_student`."""
        known = {name: jnp.asarray(value) for name, value in weights.items()}
        count = len(self.keys)
        sense = None
        if self.senses is not None:
            fold = jax.vmap(lambda key: jax.random.fold_in(key, _SENSES))
            sense = self.senses.reset(fold(self.keys))
        closed_on_air, lifted = np.zeros((count, 2), bool), np.zeros((count, 2), bool)
        held_out = np.zeros((count, 2), bool)

        def act(state: Any, readout: Any, alive: np.ndarray) -> tuple[Any, jax.Array]:
            nonlocal sense, held_out
            drawn = None
            if self.senses is not None and sense is not None:
                drawn = self.senses.draw(sense, readout.qpos)
            state, sense, seen, ctrl, closed, high = self._step(known, state, readout, sense, drawn)
            if recorded is not None:
                recorded.append(jax.tree.map(np.asarray, seen))
            if self.missing:
                if not held_out.any():
                    held_out = np.asarray(state.task.held_out)
                closed_on_air[alive] |= np.asarray(closed)[alive]
                lifted[alive] |= np.asarray(high)[alive]
            return state, ctrl

        table, qpos = evaluate.insert_episodes(
            self.env, self.half, act, self.protocol, self.keys, meter, done_before
        )
        if self.missing:
            table["missing_left"] = held_out[:, 0]
            table["closed_on_air"] = np.asarray((closed_on_air & held_out).any(1))
            table["other_lifted"] = np.asarray((lifted & ~held_out).any(1))
        return table, qpos


def run_student(
    found: StudentPolicy,
    protocol: Protocol,
    keys: jax.Array,
    threads: int = 0,
    meter: runlog.Meter | None = None,
    done_before: int = 0,
    *,
    renderer: str = "auto",
    missing: bool = False,
    conditions: SensesConfig = EVALUATION,
    recorded: list[Seen] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs one whole episode per key with a student.

    Args:
      found: the student.
      protocol, keys, threads, renderer, conditions: see `StudentRunner`.
      meter: receives counts of episodes, on top of `done_before`.
      missing: whether one object is held out in every episode; adds the columns "missing_left" (else the right
        one is), "closed_on_air" (the gripper on that side closed on nothing) and "other_lifted".
      recorded: receives what the students observe in each step, for videos.

    Returns:
      As `evaluate.run_insert`.
    """
    runner = StudentRunner(found.spec, protocol, keys, threads, renderer, missing, conditions)
    return runner.run(found.weights, meter, done_before, recorded)


def _load(path: str | os.PathLike[str]) -> StudentPolicy:
    if policy.describe(path).get("kind") != "student":
        raise ArtifactError(f"{path} is no student; `alohas2r distill` makes one.")
    return student.load(path)


def hold_out_table(
    policy_path: str | os.PathLike[str],
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
) -> dict[str, Any]:
    """Evaluates a student with one object missing in every episode.

    Returns:
      "closed_on_air": rate of episodes in which the arm on that side closed on nothing, "left" and "right": the
      same by the side that is missing, "other_lifted": rate of episodes in which the other arm lifted its object.

    Raises:
      ArtifactError: the student cannot be read, or is none. ConfigError: a number out of range.
    """
    check(1 <= episodes <= 1_000_000, f"episodes must be in 1..1000000, not {episodes}")
    started = time.monotonic()
    found = _load(policy_path)
    meter = runlog.Meter("evaluate", episodes, progress, unit="episodes")
    parts = []
    for first in range(0, episodes, evaluate.MAX_ENVS):
        keys = evaluate.episode_keys(seed, first, min(evaluate.MAX_ENVS, episodes - first))
        parts.append(
            run_student(
                found, protocol, keys, threads, meter, first, renderer=renderer, missing=True
            )[0]
        )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    left = table["missing_left"]

    def rate(name: str, where: np.ndarray) -> stats.Rate:
        return stats.rate(int(table[name][where].sum()), int(where.sum()))

    every = np.ones(episodes, bool)
    return {
        "protocol": f"{protocol.name}+hold-out",
        "policy": found.hash,
        "episodes": episodes,
        "seed": seed,
        "closed_on_air": rate("closed_on_air", every),
        "left": rate("closed_on_air", left),
        "right": rate("closed_on_air", ~left),
        "other_lifted": rate("other_lifted", every),
        "wall_s": round(time.monotonic() - started, 2),
        "table": table,
    }


def paired(
    policy_path: str | os.PathLike[str],
    other_path: str | os.PathLike[str],
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: runlog.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
) -> dict[str, Any]:
    """Runs two policies that insert in the same episodes, a student and its teacher say.

    Returns:
      "first" and "second": the results of `evaluate.evaluate` without their tables; "difference": of the rates of
      success, first minus second, with its 95% interval for paired episodes; "mcnemar": see `stats.mcnemar`.

    Raises:
      ArtifactError: a policy cannot be read, or does not insert. ConfigError: a number out of range.
    """
    results, success = [], []
    for path in (policy_path, other_path):
        if evaluate._checked_policy(path, episodes).spec.phase == "pick":
            raise ArtifactError(f"{path} only picks; a paired evaluation needs two that insert.")
    for path in (policy_path, other_path):
        result = evaluate.evaluate(path, episodes, seed, threads, progress, protocol, renderer)
        success.append(result.pop("table")["success"])
        results.append(result)
    tested = stats.mcnemar(*success)
    difference = (tested["only_a"] - tested["only_b"]) / episodes
    # Source: A. Agresti, Categorical Data Analysis, section 11.1: Wald interval of dependent proportions.
    spread = (tested["only_a"] + tested["only_b"]) / episodes - difference**2
    margin = 1.96 * math.sqrt(max(spread, 0.0) / episodes)
    return {
        "protocol": results[0]["protocol"],
        "protocol_hash": results[0]["protocol_hash"],
        "episodes": episodes,
        "seed": seed,
        "difference": {
            "success": difference,
            "low": max(difference - margin, -1.0),
            "high": min(difference + margin, 1.0),
        },
        "mcnemar": dict(tested),
        "first": results[0],
        "second": results[1],
    }


def write_video(
    found: StudentPolicy,
    path: str | os.PathLike[str],
    episodes: int = 4,
    seed: int = 0,
    *,
    threads: int = 0,
    renderer: str = "auto",
    protocol: Protocol = EVAL_V1,
    height: int = 240,
    width: int = 320,
) -> pathlib.Path:
    """Films episodes: the scene, and beside it what the student sees with both wrists.

    Left camera above, right camera below, colour and then depth, as noisy and delayed as they arrive. A green
    border marks success, a red one failure.

    Raises:
      ConfigError: the name does not end in ".mp4". ArtifactError: the file cannot be written.
      BackendUnavailable: no OpenGL, or the package av is not installed.
    """
    path = video.check_path(path)
    recorded: list[Seen] = []
    keys = evaluate.episode_keys(seed, 0, episodes)
    table, qpos = run_student(found, protocol, keys, threads, renderer=renderer, recorded=recorded)
    loaded = scene.load("insert")
    camera = free_camera(*video.VIEWS["insert"])
    colours = [video.GREEN if good else video.RED for good in table["success"]]
    data = mujoco.MjData(loaded.model)

    def frames() -> Iterator[np.ndarray]:
        with Offscreen(loaded.model, height, width, shadows=False) as view:
            for positions, seen in zip(qpos, recorded, strict=True):
                pictures = []
                for episode in range(episodes):
                    data.qpos[:] = positions[episode]
                    video._place(loaded.model, data)
                    whole = [view.picture(data, camera), *_wrist_views(seen, episode, height)]
                    pictures.append(video.border(np.concatenate(whole, 1), colours[episode]))
                yield video.tile(np.stack(pictures))

    return video.write_video(path, frames())


def _wrist_views(seen: Seen, episode: int, height: int) -> list[np.ndarray]:
    """Returns columns [height, height / 2, 3] of pictures, left camera above; none for a blind student."""
    side = height // 2
    columns = []
    for pictures in (seen.rgb, seen.depth):
        if pictures is None:
            continue
        views = np.asarray(pictures[episode])
        if views.ndim == 3:  # depth: near is bright, unknown is black
            scale = 0.4
            grey = np.where((views > 0) & (views < scale), 1 - 0.9 * views / scale, 0)
            views = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, -1)
        index = (np.arange(side) * views.shape[1]) // side
        columns.append(np.concatenate([view[index][:, index] for view in views]))
    return columns
