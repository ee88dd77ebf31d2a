"""Students with one object missing in every episode: who grasps at thin air?"""

from __future__ import annotations

import os
import time

import jax
import numpy as np

from alohas2r.core import progress as core_progress
from alohas2r.core import stats
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState
from alohas2r.errors import Interrupted
from alohas2r.evaluation.actors import memory_of
from alohas2r.evaluation.episodes import (
    Halted,
    Setting,
    draws_digest,
    halting,
    pinned,
    set_up,
)
from alohas2r.evaluation.evaluate import Runner, check_episodes, chunks, join
from alohas2r.policies import artifact
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim.objects import SOCKET_HALF, TABLE_HEIGHT
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert import hold_out
from alohas2r.tasks.insert.hold_out import HoldOutConfig, HoldOutTask
from alohas2r.tasks.insert.scoring import InsertScorer
from alohas2r.tasks.protocol import EVAL_V1, Protocol
from alohas2r.tasks.registry import find_task
from alohas2r.tasks.scoring import Step, Table
from alohas2r.tasks.single_arm import LIFTED


class HoldOutScorer(InsertScorer):
    """Counts besides who closed a gripper where nothing was, and whether the other arm did its part.

    Adds the columns "missing_left" (else the right object is missing), "closed_on_air" (by the gripper on that side)
    and "other_lifted".

    Args:
      protocol: of the insertion. half: [N] half sides of the pegs (m).
      env: whose states are counted.
      empty_travel: finger travel (m) below which a gripper holds nothing.
    """

    def __init__(self, protocol: Protocol, half: np.ndarray, env: Env, empty_travel: float):
        super().__init__(protocol.insert, half)
        base_height = np.array([arm.base_pos[2] for arm in env.task.scene.arms])
        rest = np.stack([np.full(len(half), SOCKET_HALF), half], 1) + TABLE_HEIGHT
        self._closed, self._lifted = np.zeros((2, len(half), 2), bool)
        self._held_out = np.zeros((len(half), 2), bool)

        @jax.jit
        def judge(readout: Readout) -> tuple[jax.Array, jax.Array]:
            signals = env.extract(readout)
            high = signals.object_pos[..., 2] + base_height > rest + LIFTED
            return hold_out.closed_on_air(signals, empty_travel), high

        self._judge = judge

    def update(self, step: Step) -> None:
        """Takes a step."""
        super().update(step)
        if step.number == 0:
            self._held_out = np.asarray(_missing(step.before))
        closed, high = self._judge(step.readout)
        self._closed |= np.asarray(closed) & step.going[:, None]
        self._lifted |= np.asarray(high) & step.going[:, None]

    def table(self) -> Table:
        """Returns a row per episode."""
        missing = self._held_out
        return super().table() | {
            "missing_left": missing[:, 0],
            "closed_on_air": (self._closed & missing).any(1),
            "other_lifted": (self._lifted & ~missing).any(1),
        }


def _missing(state: EnvState) -> jax.Array:
    return state.task.held_out


@pinned()
def set_up_hold_out(
    spec: StudentSpec, protocol: Protocol, keys: jax.Array, threads: int = 0
) -> Setting:
    """Returns the episodes of a protocol with one object missing in each."""
    setting = set_up(
        find_task(spec.phase),
        protocol,
        memory_of(spec),
        keys,
        threads,
        scale=spec.action.scale,
    )
    env, context = setting.env, setting.context
    settings = find_task(spec.phase).conditions(protocol).task
    task = HoldOutTask(env.task.scene, settings, HoldOutConfig(one=True))
    changed = Env(task, env.engine, env.config, np.asarray(env.context), env.held)
    half, empty = context[:, 0], spec.switch.empty_travel
    return Setting(
        changed, context, lambda: HoldOutScorer(protocol, half, changed, empty), setting.robots
    )


def evaluate_hold_out(
    policy_path: str | os.PathLike[str],
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
    stop: StopSignal | None = None,
) -> JsonObject:
    """Evaluates a student with one object missing in every episode.

    Returns:
      "closed_on_air": rate of episodes in which the arm on that side closed on nothing, "left" and "right": the
      same by the side that is missing, "other_lifted": rate of episodes in which the other arm lifted its object.

    Raises:
      ArtifactError: the student cannot be read, or is none. ConfigError: a number out of range.
      Interrupted: a stop was asked for; with the result of the groups of episodes that had ended.
    """
    started = time.monotonic()
    check_episodes(episodes)
    student = artifact.load(policy_path, StudentPolicy)
    meter = core_progress.Meter("evaluate", episodes, progress, unit="episodes")
    tables: list[Table] = []

    def result() -> JsonObject:
        wall_s = round(time.monotonic() - started, 2)
        return _result(student, protocol, seed, join(tables)) | {"wall_s": wall_s}

    try:
        for first, keys in chunks(seed, episodes):
            setting = set_up_hold_out(student.spec, protocol, keys, threads)
            runner = Runner(student, protocol, keys, threads, renderer, setting=setting)
            tables.append(runner.run(meter, first, watch=halting(stop)).table)
    except Halted:
        done = sum(len(table["success"]) for table in tables)
        part = result() | {"of": episodes} if tables else None
        raise Interrupted(done, episodes, "episodes", part) from None
    return result()


def _result(student: StudentPolicy, protocol: Protocol, seed: int, table: Table) -> JsonObject:
    """Returns the rates of a table of episodes."""
    left = table["missing_left"]

    def rate(name: str, where: np.ndarray) -> stats.Rate:
        return stats.rate(int(table[name][where].sum()), int(where.sum()))

    every = np.ones(len(left), bool)
    return {
        "protocol": f"{protocol.name}+hold-out",
        "policy": student.hash,
        "episodes": len(left),
        "seed": seed,
        "draws": draws_digest(find_task(student.spec.phase), seed),
        "closed_on_air": rate("closed_on_air", every),
        "left": rate("closed_on_air", left),
        "right": rate("closed_on_air", ~left),
        "other_lifted": rate("other_lifted", every),
        "table": table,
    }
