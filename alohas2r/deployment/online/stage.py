"""Episodes of a robot that learns: where they begin, when they end, and what the log says of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.online.explorer import Acting, Phase
from alohas2r.deployment.online.scripts import Way, way_back
from alohas2r.deployment.online.truth import Knowing, Start
from alohas2r.deployment.rig import Simulation
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM, SIDES
from alohas2r.errors import Alohas2rError, RobotFault
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import START
from alohas2r.sim import scene

ABORTED = 3  # episodes in a row that the guard ended, after which nothing goes on
HELPLESS = 3  # failures in a row after which a person looks


class Plan(NamedTuple):
    """An episode to come.

    Attributes:
      number: of it. seed: of what is drawn in it.
      placed: whether the scene is put to a start that is drawn; else the robot goes on from where it is.
      explores: whether its actions are varied. evaluation: whether nothing is learnt of it.
    """

    number: int
    seed: tuple[int, ...]
    placed: bool
    explores: bool
    evaluation: bool


class Ended(NamedTuple):
    """An episode that is over.

    Attributes:
      plan: what it was. aborted: whether the guard ended it.
      success, truth: whether the task was done, by the reward and by the truth.
      steps: control steps of acting; reset_steps: of the way back. decisions: that were made.
      helped: whether a person put the scene right before it.
      returned: whether the robot's own way back led to a start; None where nobody knows, or where there was none.
      failures: in a row by now, evaluations left out.
    """

    plan: Plan
    aborted: bool
    success: bool
    truth: bool
    steps: int
    reset_steps: int
    decisions: int
    helped: bool
    failures: int
    returned: bool | None = None


class Director(Protocol):
    """Who says which episodes there are."""

    def next(self) -> Plan | None:
        """Returns the next episode, None after the last."""
        ...

    def ended(self, episode: Ended, state: Start | None) -> None:
        """Takes an episode that is over, and the world's state after it, where anybody knows that."""
        ...


class Stage:
    """Begins and ends episodes on simulated or emulated arms: `Hooks`, `Ending` and `Pacer`.

    Args:
      explorer: what acts. simulation: the arms' world. truth: what it knows.
      director: which episodes there are. log: where they are noted.
      realtime: whether time passes by itself.
      state: where a run that is resumed goes on; None: at a start that is drawn. failures: in a row before that.
    """

    def __init__(
        self,
        explorer: Acting,
        simulation: Simulation,
        truth: Knowing,
        director: Director,
        log: LogWriter,
        realtime: bool,
        state: Start | None = None,
        failures: int = 0,
    ) -> None:
        self._explorer, self._simulation, self._truth = explorer, simulation, truth
        self._director, self._log = director, log
        self.realtime = realtime
        self._state = state
        self._plan: Plan | None = None
        self._finished = True
        self._aborted, self._failures = 0, failures
        self._helped = False
        self._advanced = True  # whether the time of the next step has passed already
        self._steps = 0
        self._due_s: float | None = None

    def wait(self) -> None:
        """Returns when the next control step is due."""
        self._steps += 1
        if self._advanced:
            self._advanced = False
        elif self._simulation.advance is not None:
            self._simulation.advance()
        if self.realtime:
            now_s = time.monotonic()
            due_s = now_s if self._due_s is None else self._due_s
            time.sleep(max(0.0, due_s - now_s))
            self._due_s = max(due_s, now_s - CONTROL_PERIOD_S) + CONTROL_PERIOD_S

    def now_s(self) -> float:
        """Returns the clock's time, or that of the stepped world."""
        return time.monotonic() if self.realtime else self._steps * CONTROL_PERIOD_S

    def ended(self) -> bool:
        """Hands the last episode over and asks for the next; whether there is none."""
        if self._plan is not None:
            self._hand_over(self._plan)
        self._plan = self._director.next()
        return self._plan is None

    def begin(self, episode: int) -> np.ndarray:
        """Begins an episode; returns the targets [14] that hold where the arms are."""
        plan = self._plan
        if plan is None:  # before the first: the pre-flight check looks at arms that stand
            return self._truth.state().targets
        draw = np.random.default_rng([*plan.seed, 1])
        now = self._state or self._truth.state()
        self._helped = False
        if plan.placed or self._state is None:
            now = self._truth.draw(draw, plan.evaluation)
        elif self._failures >= HELPLESS:
            now, self._failures = self._ask(now, draw)
        # Also where nothing is moved: what comes after depends on positions alone then, in a resumed run as well.
        if plan.placed or self._helped or self._state is None or not self.realtime:
            self._simulation.place(now.qpos, now.targets)
            self._advanced = True
        self._state, self._finished = now, False
        self._truth.begin()
        self._log.write("episode", plan._asdict(), {"qpos": now.qpos, "targets": now.targets})
        self._explorer.begin([*plan.seed, 2], plan.explores, plan.evaluation)
        return now.targets.copy()

    def over(self) -> bool:
        """Returns whether the episode is over, the way back and all."""
        self._finished = self._explorer.phase is Phase.IDLE
        return self._finished

    def _ask(self, now: Start, draw: np.random.Generator) -> tuple[Start, int]:
        """A person looks, and puts the object back if the arm cannot take it where it is."""
        self._helped = True
        self._log.write("event", {"time_s": time.monotonic(), "text": "asked for help"})
        return (now if self._truth.in_region() else self._truth.draw(draw)), 0

    def _hand_over(self, plan: Plan) -> None:
        one = self._explorer
        aborted = not self._finished
        self._aborted = self._aborted + 1 if aborted else 0
        if not plan.evaluation:
            self._failures = 0 if one.success else self._failures + 1
        state = self._truth.state()
        if aborted:
            home = scene.load("insert")
            order = np.concatenate([arm.ctrl for arm in home.arms])
            state = state._replace(targets=home.home_ctrl[order].copy())
            for arm in home.arms:
                state.qpos[arm.qpos] = home.home_qpos[arm.qpos]
        if not plan.evaluation:
            self._state = state
        ended = Ended(
            plan,
            aborted,
            one.success,
            one.true_success,
            one.steps,
            one.reset_steps,
            one.decisions,
            self._helped,
            self._failures,
            None if aborted or plan.placed else self._truth.in_region(),
        )
        self._director.ended(ended, self._state or state)
        if self._aborted >= ABORTED:
            raise RobotFault(
                f"{ABORTED} episodes in a row were ended by the guard or a fault; look at the arms and at the log"
                f" {self._log.path} before they go on."
            )


class Attended:
    """Begins and ends episodes that a person attends, on arms whose world nobody knows: `Attendant`.

    A person puts things to a start before the first episode, before each that is `placed`, such as those of
    evaluations, and after HELPLESS failures in a row; else the arms went back by themselves. For the truth, which
    nobody knows, stands the reward.

    Args:
      acting: what acts. director: which episodes there are. log: where they are noted.
      failures: in a row before that.

    Attributes:
      failed: why there is no other episode although the run is not over, such as a learner that ended; the arms go to
        rest first.
    """

    def __init__(
        self, acting: Acting, director: Director, log: LogWriter, failures: int = 0
    ) -> None:
        self._acting, self._director, self._log = acting, director, log
        self._failures, self._helped = failures, True
        self.failed: Alohas2rError | None = None
        self._plan = director.next()

    def start(self) -> None:
        """Begins the next episode."""
        plan = self._plan
        assert plan is not None
        self._log.write("episode", plan._asdict(), {})
        self._acting.begin([*plan.seed, 2], plan.explores, plan.evaluation)

    def over(self) -> bool:
        """Returns whether the episode is over, the way back and all."""
        return self._acting.phase is Phase.IDLE

    def ended(self) -> bool:
        """Hands the episode over and asks for the next; whether there is none."""
        one, plan = self._acting, self._plan
        assert plan is not None
        if not plan.evaluation:
            self._failures = 0 if one.success else self._failures + 1
        done = Ended(
            plan,
            False,
            one.success,
            one.success,
            one.steps,
            one.reset_steps,
            one.decisions,
            self._helped,
            self._failures,
        )
        try:
            self._director.ended(done, None)
            self._plan = self._director.next()
        except Alohas2rError as error:
            self.failed, self._plan = error, None
        self._helped = self._plan is not None and self._plan.placed
        if self._plan is not None and self._failures >= HELPLESS:
            self._log.write("event", {"time_s": time.monotonic(), "text": "asked for help"})
            self._helped, self._failures = True, 0
        return self._plan is None

    def alone(self) -> bool:
        """Returns whether the next episode begins where the arms are."""
        return not self._helped


class ResetDraws:
    """The ways back: what is held is set down at a random place, then the arm goes home.

    Args:
      spec: what learns. seed: of the places. by_robot: whether there are any; else the scene is put right otherwise.
    """

    def __init__(self, spec: OnlineSpec, seed: Sequence[int], by_robot: bool) -> None:
        self._spec, self._seed, self._by_robot = spec, tuple(seed), by_robot
        self.number = 0  # of the episode

    def __call__(self, felt: np.ndarray) -> Way | None:
        """Returns the way from what is felt [32]."""
        if not self._by_robot:
            return None
        spec = self._spec
        insert = scene.load("insert")
        arm = insert.arms[SIDES.index(spec.side)]
        home = spec.arm.polar(insert.home_ctrl[arm.ctrl])
        own = spec.own(felt)
        holds = spec.task == "pick" and spec.targets(felt)[-1] < 0.02 < own[PER_ARM - 1] + 0.006
        draw = np.random.default_rng([*self._seed, self.number, 3])
        now = spec.arm.polar(spec.targets(felt))
        return way_back(spec, home, now, bool(holds), draw, START)
