"""One control step: observe, decide, guard, command."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.acting import Actor
from alohas2r.deployment.arms import Arms, Sent
from alohas2r.deployment.eyes import Eyes, Look
from alohas2r.deployment.pacer import Pacer
from alohas2r.deployment.recorder import Recorder
from alohas2r.deployment.report import Report
from alohas2r.deployment.requests import Requests
from alohas2r.deployment.timing import Stopwatch
from alohas2r.embodiment.poses import hold_pose
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Proprio
from alohas2r.safety.monitor import Finding, Level, Monitor
from alohas2r.safety.paths import Sequence, way_to_rest
from alohas2r.safety.reactions import Mode, Reactions


class Leader(Protocol):
    """A way along which the arms are led.

    Attributes:
      stuck: whether they have not come closer for a while.
    """

    stuck: bool

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14] from the last command and the measured pose, or None at its end."""
        ...


class _Decided(NamedTuple):
    """What the leader wants, and what is known about the step by then."""

    target: np.ndarray | None
    findings: list[Finding]
    arrays: dict[str, np.ndarray]
    arrived: bool = False
    fresh: bool = False
    values: JsonObject = {}  # noqa: RUF012


class Stepper:
    """Makes control steps.

    Attributes:
      arms, eyes, actor: what it works with.
      monitor: judges everything that comes back.
      reactions: what the arms do.
      episode, number: where in the run it is.
      approaching: whether the arms approach the start pose one at a time.
      left: whether a person wants the program to end although the arms hold.
    """

    def __init__(
        self,
        arms: Arms,
        eyes: Eyes,
        actor: Actor,
        pacer: Pacer,
        recorder: Recorder,
        monitor: Monitor,
        reactions: Reactions,
    ) -> None:
        """Joins the parts."""
        self.arms, self.eyes, self.actor = arms, eyes, actor
        self.monitor, self.reactions = monitor, reactions
        self.requests = Requests()
        self.episode = self.number = 0
        self.approaching = self.left = False
        self._pacer, self._recorder = pacer, recorder
        self._pending: list[Finding] = []  # about what the step before took, and left undone
        self._retreat: Sequence | None = None
        self._presses = 0

    @property
    def going(self) -> bool:
        """Whether the run goes on, if perhaps after a hold."""
        return self.reactions.mode in (Mode.RUN, Mode.HOLD)

    @property
    def asked(self) -> bool:
        """Whether anybody asked for the run's end."""
        return self._presses > 0

    def begin_afresh(self, monitor: Monitor, reactions: Reactions) -> None:
        """Forgets what ended an episode, where other, sound arms are put in the place of these."""
        reactions.reasons, monitor.counts = self.reactions.reasons, self.monitor.counts
        self.monitor, self.reactions = monitor, reactions
        self._retreat, self._pending = None, []

    def take_requests(self) -> None:
        """Does what was asked for since the last step: the one place where a signal changes anything."""
        for name in self.requests.take():
            again = name == "Ctrl-C" and self._presses > 0
            self._presses += 1
            if self.reactions.mode in (Mode.FROZEN, Mode.ASLEEP):
                self.left = True
            elif again and self.arms.torque:
                self.reactions.freeze("Ctrl-C twice")
            else:
                self.reactions.retreat(name)

    def step(self, leader: Leader | Actor | None, looking: bool = True) -> bool:
        """Makes one control step.

        Args:
          leader: whose targets are followed while the mode is RUN; None: nobody's, the arms stand.
          looking: whether the cameras are watched.

        Returns:
          Whether the leader, a way, has come to its end.
        """
        self._pacer.wait()
        self.take_requests()
        watch = Stopwatch()
        try:
            reading = self.arms.read()
        except RobotFault as fault:
            self.lose(fault)
            return False
        watch.lap("read")
        command = self.arms.command
        findings = self._pending + self.monitor.proprio(
            reading, command if self.arms.torque else None
        )
        look = Look({}, [])
        if self.going and looking:
            look = self.eyes.look(self.monitor, reading.position, self.approaching)
        findings += look.findings
        watch.lap("look")
        if not self.arms.torque:
            self.arms.start(reading.position)
            command = reading.position
        self.actor.follow_switch(reading, command)
        decided = self._decide(leader, reading, look, command, findings)
        watch.lap("infer")
        mode = self.reactions.update(decided.findings, self._pacer.now_s())
        target = self._choose(mode, decided.target, command, reading.position)
        sent = self._carry_out(target, reading.position, watch)
        self._report(leader, watch, reading, look, decided, sent)
        return decided.arrived

    def _decide(
        self,
        leader: Leader | Actor | None,
        reading: Proprio,
        look: Look,
        command: np.ndarray,
        findings: list[Finding],
    ) -> _Decided:
        """Asks the leader what it wants; a policy only if nothing is wrong."""
        if leader is None or not self.going:
            return _Decided(None, findings, {})
        if not isinstance(leader, Actor):
            target = leader.target(command, reading.position)
            return _Decided(target, findings, {}, target is None)
        if any(one.level > Level.NOTE for one in findings):
            return _Decided(None, findings, {})
        acted = leader.act(reading, look.frames, command, self.monitor)
        findings = findings + acted.findings
        return _Decided(
            acted.target, findings, acted.arrays, fresh=acted.fresh, values=acted.values
        )

    def _choose(
        self, mode: Mode, wanted: np.ndarray | None, command: np.ndarray, measured: np.ndarray
    ) -> np.ndarray | None:
        """Returns the target that the mode asks for; None: nothing is sent in this step."""
        if mode is Mode.RUN:
            return command if wanted is None else wanted
        if mode is Mode.HOLD:
            return hold_pose(command, measured)
        if mode is not Mode.RETREAT:
            return None
        if not self.arms.torque:
            self.reactions.arrived()
            return None
        return self._go_to_rest(command, measured)

    def _go_to_rest(self, command: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target of the retreat, or switches torque off at its end."""
        if self._retreat is None:
            self.arms.use(self.arms.slow)
            self._retreat = way_to_rest(command, measured, self.arms.slow.config)
        target = self._retreat.target(self.arms.command, measured)
        if target is not None and not self._retreat.stuck:
            return target
        if target is not None:
            self.reactions.freeze("the retreat is blocked")
            return hold_pose(command, measured)
        try:
            self.arms.let_go()
            self.reactions.arrived()
        except RobotFault as fault:
            self.reactions.freeze(str(fault))
        return None

    def _carry_out(
        self, target: np.ndarray | None, measured: np.ndarray, watch: Stopwatch
    ) -> Sent | None:
        sent = None
        self._pending = []
        if target is not None:
            decision = self.arms.limit(target, measured)
            watch.lap("guard")
            sent = self.arms.send(decision)
            if sent.pause is not None:
                self._recorder.event(sent.pause.text)
                self.monitor.counts[sent.pause.kind] += 1
                self._pending.append(sent.pause)
            if sent.fault is not None:
                self._recorder.event(str(sent.fault))
                self.reactions.freeze(str(sent.fault))
        elif self.reactions.mode is Mode.FROZEN:
            self.arms.stop()
        watch.lap("write")
        return sent

    def _report(
        self,
        leader: Leader | Actor | None,
        watch: Stopwatch,
        reading: Proprio,
        look: Look,
        decided: _Decided,
        sent: Sent | None,
    ) -> None:
        report = Report(
            self.episode,
            self.number,
            self.reactions.mode,
            self.actor.switched,
            watch.total(),
            dict(watch.laps),
            isinstance(leader, Actor),
            () if sent is None else sent.interventions,
            tuple(decided.findings),
            look.frames,
        )
        command = None if sent is None else sent.command
        self._recorder.step(report, reading, command, decided.arrays, decided.fresh, decided.values)
        watch.lap("log")
        if self._pacer.realtime:
            self._pending += self.monitor.timing(watch.total())
        if self._recorder.problem:
            text, self._recorder.problem = self._recorder.problem, ""
            self._pending.append(Finding("log", Level.RETREAT, text))
        self._recorder.tell(report._replace(duration_s=watch.total(), laps=dict(watch.laps)))

    def lose(self, fault: RobotFault) -> None:
        """Holds for good: an arm is gone."""
        self.reactions.freeze(str(fault))
        self.arms.stop()
        self._recorder.event(str(fault))
