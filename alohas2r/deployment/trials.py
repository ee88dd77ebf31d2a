"""Episodes of the evaluation protocol on simulated or emulated arms, through the real control loop.

Episode i of a seed begins in the very state in which `evaluate` begins it, and is judged by the same
task, so that both can be compared pair by pair. Noise and delays are those of the loop itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core import stats
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.embodiment import joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.task import Outcome
from alohas2r.evaluation import episodes as evaluation_episodes
from alohas2r.sim import scene
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert.scoring import InsertScorer
from alohas2r.tasks.protocol import EVAL_V1, Protocol, modified
from alohas2r.tasks.registry import find_task
from alohas2r.tasks.scoring import Step, Table

STAGES = ("grasped_both", "lifted_both", "switched", "entered", "inserted", "dropped", "out")
COLUMNS = ("success", "held_at_end", *STAGES)


class World(NamedTuple):
    """What trials need of simulated arms.

    Attributes:
      place: puts everything somewhere, from joint positions [nq] and targets [14].
      advance: lets one control period pass; None where time passes by itself.
      read: returns the present state as the project's own scene reports it.
    """

    place: Callable[[np.ndarray, np.ndarray], object]
    advance: Callable[[], object] | None
    read: Callable[[], Readout]


class Reading:
    """Turns a state of the project's own insertion scene into what it reports.

    Args:
      state: returns joint positions [nq], velocities [nv] and targets [14].
    """

    def __init__(self, state: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]):
        loaded = scene.load_physics("insert")
        self._state = state
        self._model, self._data = loaded.model, mujoco.MjData(loaded.model)
        self._actuators = np.concatenate([arm.ctrl for arm in loaded.arms])

    def __call__(self) -> Readout:
        """Returns the present state's readout."""
        data = self._data
        data.qpos[:], data.qvel[:], targets = self._state()
        data.ctrl[self._actuators] = targets
        mujoco.mj_forward(self._model, data)
        values = (data.qpos, data.qvel, data.ctrl, data.sensordata)
        return Readout(*(jnp.asarray(value, jnp.float32) for value in values))


class Trials:
    """The episodes of a seed: places the arms, lets time pass, and judges. Both `Hooks` and `Pacer`.

    Attributes:
      realtime: whether a control step must take its time by the clock.
      steps: control steps per episode.
      starts: [N, nq] where the episodes begin; targets: [N, 14] what the arms hold there.
    """

    @evaluation_episodes.pinned()
    def __init__(
        self,
        world: World,
        episodes: int,
        seed: int = 0,
        realtime: bool = False,
        episode_s: float = EVAL_V1.insert.steps * joints.CONTROL_PERIOD_S,
        protocol: Protocol = EVAL_V1,
    ) -> None:
        """Draws the starts.

        Args:
          world: the arms' world.
          episodes: how many.
          seed: as that of `evaluate`.
          realtime: whether to wait for the clock.
          episode_s: how long an episode lasts.
          protocol: starts and thresholds.
        """
        entry = find_task("insert")
        if episode_s != protocol.insert.steps * joints.CONTROL_PERIOD_S:
            protocol = modified(protocol, seconds=episode_s)
        keys = evaluation_episodes.episode_keys(seed, 0, episodes)
        env, context, *_ = evaluation_episodes.set_up(
            entry, protocol, HistoryConfig(()), keys, threads=1
        )
        state, _, readout = env.reset(keys)
        self.realtime = realtime
        self.protocol = protocol
        self.steps = protocol.insert.steps
        self.starts = np.asarray(readout.qpos, np.float64)
        actuators = np.concatenate([arm.ctrl for arm in env.engine.scene.arms])
        self.targets = np.asarray(readout.ctrl, np.float64)[:, actuators]
        self._world = world
        # On the host: taking one episode's part of JAX's arrays compiles anew for each.
        self._state, self._readout = jax.tree.map(np.asarray, (state, readout))
        self._context = context
        self._task: PyTree = None
        self._episode, self._step = 0, 0
        self._scorers: dict[int, InsertScorer] = {}
        self._ahead = False  # whether the next step's time has passed already
        self._waits = 0
        self._due_s: float | None = None

        @jax.jit
        def judge(readout: Readout, task: PyTree, context: jax.Array) -> Outcome:
            return env.task.step(env.extract(readout), task, context)

        self._judge = judge
        # Compiles all that judging a step needs: in the first step it would take longer than servos wait for a command.
        self._take(self.start_of(0), 0, 0, InsertScorer(protocol.insert, context[:1, 0]))

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
        self.follow(episode)
        self._ahead = True
        return self.targets[episode].copy()

    def follow(self, episode: int) -> None:
        """Begins to judge an episode that begins where everything is."""
        self._task = self.start_of(episode)
        self._episode, self._step = episode, 0
        half = self._context[episode : episode + 1, 0]
        self._scorers[episode] = InsertScorer(self.protocol.insert, half)

    def over(self) -> bool:
        """Lets the step's time pass and judges what came of it; whether the episode is over."""
        if self._world.advance is not None:
            self._world.advance()
            self._ahead = True
        return self.judge()

    def judge(self) -> bool:
        """Judges what came of a step whose time has passed; whether the episode is over."""
        scorer = self._scorers[self._episode]
        outcome = self._take(self._task, self._episode, self._step, scorer)
        self._task = outcome.state
        self._step += 1
        return bool(outcome.done)

    @property
    def succeeded(self) -> bool:
        """Whether the present episode has inserted by now."""
        return bool(self._scorers[self._episode].table()["success"][0])

    def rows(self, first: int, count: int) -> Table:
        """Returns a row for each of so many episodes from a first one on; all of them must have begun."""
        tables = [self._scorers[episode].table() for episode in range(first, first + count)]
        return {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}

    def start_of(self, episode: int) -> PyTree:
        """Returns the task's state at the start of an episode."""
        return jax.tree.map(lambda x: x[episode], self._state.task)

    def result(self) -> JsonObject:
        """Returns the rates over all episodes that began, and "table": columns by episode."""
        tables = [self._scorers[episode].table() for episode in sorted(self._scorers)]
        columns = {name: [bool(table[name][0]) for table in tables] for name in COLUMNS}
        times = [float(table["time_to_success_s"][0]) for table in tables if table["success"][0]]
        count = len(tables)
        return {
            "protocol": self.protocol.name,
            "protocol_hash": self.protocol.hash,
            "success": stats.rate(sum(columns["success"]), count),
            "held_at_end": stats.rate(sum(columns["held_at_end"]), count),
            "stages": {name: stats.rate(sum(columns[name]), count) for name in STAGES},
            "time_to_success_s": float(np.median(times)) if times else None,
            "table": columns,
        }

    def _take(self, task: PyTree, number: int, step: int, scorer: InsertScorer) -> Outcome:
        """Scores the world's present state as an episode's step, and counts it."""
        outcome = self._measure(number, task)
        alone = jax.tree.map(lambda x: np.asarray(x)[None], outcome)
        episode, every = slice(number, number + 1), np.ones(1, bool)
        state, readout = jax.tree.map(lambda x: x[episode], (self._state, self._readout))
        scorer.update(Step(step, every, state, readout, alone.done, every, alone.measures))
        return outcome

    @evaluation_episodes.pinned()
    def _measure(self, episode: int, task: PyTree) -> Outcome:
        """Scores the world's present state."""
        return self._judge(self._world.read(), task, self._state.context[episode])
