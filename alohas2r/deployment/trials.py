"""Episodes of the evaluation protocol on simulated or emulated arms, through the real control loop.

Episode i of a seed begins in the very state in which `evaluate` begins it, and is judged by the same
task, so that both can be compared pair by pair. Noise and delays are those of the loop itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core import stats
from alohas2r.embodiment import joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.evaluation import episodes as evaluation_episodes
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert import scoring as insert_scoring
from alohas2r.tasks.protocol import EVAL_V1

STAGES = ("grasped_both", "lifted_both", "switched", "entered", "inserted", "dropped", "out")


class World(NamedTuple):
    """What trials need of simulated arms.

    Attributes:
      place: puts everything somewhere, from joint positions [nq] and targets [14].
      advance: lets one control period pass; None where time passes by itself.
      state: returns joint positions [nq], velocities [nv] and targets [14].
    """

    place: Callable[[np.ndarray, np.ndarray], object]
    advance: Callable[[], object] | None
    state: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Trials:
    """The episodes of a seed: places the arms, lets time pass, and judges. Both `Hooks` and `Pacer`.

    Attributes:
      realtime: whether a control step must take its time by the clock.
      steps: control steps per episode.
      starts: [N, nq] where the episodes begin; targets: [N, 14] what the arms hold there.
    """

    def __init__(
        self,
        world: World,
        episodes: int,
        seed: int = 0,
        realtime: bool = False,
        episode_s: float = EVAL_V1.insert.steps * joints.CONTROL_PERIOD_S,
    ) -> None:
        """Draws the starts.

        Args:
          world: the arms' world.
          episodes: how many.
          seed: as that of `evaluate`.
          realtime: whether to wait for the clock.
          episode_s: how long an episode lasts.
        """
        keys = evaluation_episodes.episode_keys(seed, 0, episodes)
        env, _ = insert_scoring.insert_env(EVAL_V1, HistoryConfig(()), keys, threads=1)
        state, _, readout = env.reset(keys)
        loaded = env.engine.scene
        self.realtime = realtime
        self.steps = round(episode_s / joints.CONTROL_PERIOD_S)
        self.starts = np.asarray(readout.qpos, np.float64)
        self._actuators = np.concatenate([arm.ctrl for arm in loaded.arms])
        self.targets = np.asarray(readout.ctrl, np.float64)[:, self._actuators]
        self._world = world
        self._model, self._data = loaded.model, mujoco.MjData(loaded.model)
        self._tasks, self._contexts = state.task, np.asarray(env.context)
        self._task: Any = None
        self._rows: dict[int, dict[str, Any]] = {}
        self._row: dict[str, Any] = {}
        self._ahead = False  # whether the next step's time has passed already
        self._waits = 0
        self._due_s: float | None = None

        @jax.jit
        def judge(readout: Readout, task: Any, context: jax.Array) -> tuple[Any, jax.Array, Any]:
            task, _, done, _, measures = env.task.step(env.extract(readout), task, context)
            return task, done, measures

        self._judge = judge
        self._measure(0, jax.tree.map(lambda x: x[0], self._tasks))  # compiles

    def wait(self) -> None:
        """Returns when the next control step is due."""
        self._waits += 1
        if self._ahead:
            self._ahead = False
        elif self._world.advance is not None:
            self._world.advance()
        if self.realtime:
            now_s = time.monotonic()
            due_s = now_s if self._due_s is None else self._due_s
            time.sleep(max(0.0, due_s - now_s))
            # A step that is late is not made up for.
            self._due_s = max(due_s, now_s - joints.CONTROL_PERIOD_S) + joints.CONTROL_PERIOD_S

    def now_s(self) -> float:
        """Returns the clock's time, or that of the stepped world."""
        return time.monotonic() if self.realtime else self._waits * joints.CONTROL_PERIOD_S

    def begin(self, episode: int) -> np.ndarray:
        """Places everything for an episode and returns the targets [14] that hold it there."""
        self._world.place(self.starts[episode], self.targets[episode])
        self._task = jax.tree.map(lambda x: x[episode], self._tasks)
        self._row = dict.fromkeys(STAGES, False)
        self._row |= {"episode": episode, "steps": 0, "in_place": [], "time_to_success_s": None}
        self._rows[episode] = self._row
        self._ahead = True
        return self.targets[episode].copy()

    def over(self) -> bool:
        """Lets the step's time pass and judges what came of it; whether the episode is over."""
        if self._world.advance is not None:
            self._world.advance()
            self._ahead = True
        self._task, done, measures = self._measure(self._row["episode"], self._task)
        row = self._row
        row["steps"] += 1
        flags = {
            "grasped_both": measures.grasped.all(),
            "lifted_both": measures.lifted.all(),
            "switched": measures.switched,
            "entered": measures.entered,
            "inserted": measures.inserted,
            "dropped": measures.dropped.any(),
            "out": done and row["steps"] < EVAL_V1.insert.steps,
        }
        if flags["inserted"] and not row["inserted"]:
            row["time_to_success_s"] = row["steps"] * joints.CONTROL_PERIOD_S
        for name, flag in flags.items():
            row[name] = row[name] or bool(flag)
        row["in_place"].append(bool(measures.in_place))
        return bool(done)

    def result(self) -> dict[str, Any]:
        """Returns the rates over all episodes that began, and "table": columns by episode."""
        rows = [self._rows[episode] for episode in sorted(self._rows)]
        hold = EVAL_V1.insert.hold_steps
        held = [len(row["in_place"]) == self.steps and all(row["in_place"][-hold:]) for row in rows]
        table: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in STAGES}
        times = [row["time_to_success_s"] for row in rows]
        known = [value for value in times if value is not None]
        count = len(rows)
        return {
            "protocol": EVAL_V1.name,
            "protocol_hash": EVAL_V1.hash,
            "success": stats.rate(sum(table["inserted"]), count),
            "held_at_end": stats.rate(sum(held), count),
            "stages": {name: stats.rate(sum(table[name]), count) for name in STAGES},
            "time_to_success_s": float(np.median(known)) if known else None,
            "table": {"success": table["inserted"], "held_at_end": held, **table},
        }

    def _measure(self, episode: int, task: Any) -> tuple[Any, bool, Any]:
        """Scores the world's present state."""
        data = self._data
        data.qpos[:], data.qvel[:], targets = self._world.state()
        data.ctrl[self._actuators] = targets
        mujoco.mj_forward(self._model, data)
        values = (data.qpos, data.qvel, data.ctrl, data.sensordata)
        readout = Readout(*(jnp.asarray(value, jnp.float32) for value in values))
        task, done, measures = self._judge(readout, task, self._contexts[episode])
        return task, bool(done), jax.tree.map(np.asarray, measures)
