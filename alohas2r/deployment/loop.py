"""A run: pre-flight check, episodes, what is between them, and rest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from alohas2r.deployment.acting import Actor
from alohas2r.deployment.arms import Arms
from alohas2r.deployment.config import LIMITS, DeployConfig
from alohas2r.deployment.eyes import Eyes
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.pacer import ClockPacer, Pacer
from alohas2r.deployment.pause import Next, Pause
from alohas2r.deployment.preflight import preflight
from alohas2r.deployment.recorder import Recorder
from alohas2r.deployment.report import Attendant, Check, Ending, Hooks, Outcome, Report
from alohas2r.deployment.step import Leader, Stepper
from alohas2r.errors import RobotFault
from alohas2r.policies.protocol import Policy
from alohas2r.robots.base import Camera, Robot
from alohas2r.safety.config import SLOW, SafetyConfig
from alohas2r.safety.guard import Guard
from alohas2r.safety.monitor import Monitor
from alohas2r.safety.paths import approach_path, way_aside, way_to_rest
from alohas2r.safety.reactions import Mode, Reactions
from alohas2r.sim import scene


def start_pose() -> np.ndarray:
    """Returns the pose [14] in which episodes start: the keyframe home."""
    insert = scene.load("insert")
    return insert.home_ctrl[np.concatenate([arm.ctrl for arm in insert.arms])]


class Deployment:
    """A policy on a robot.

    Attributes:
      config: how it is run.
      guard: limits every target of the policy.
    """

    def __init__(
        self,
        robot: Robot,
        cameras: Sequence[Camera],
        policy: Policy,
        config: DeployConfig,
        pacer: Pacer | None = None,
        log: LogWriter | None = None,
        safety: SafetyConfig | None = None,
        slow: SafetyConfig = SLOW,
        on_step: Callable[[Report], None] | None = None,
        pause: Pause | None = None,
        attendant: Attendant | None = None,
    ) -> None:
        """Prepares a run.

        Args:
          robot: an entered robot.
          cameras: the two entered wrist cameras.
          policy: what acts.
          config: how it is run.
          pacer: what makes steps take their time; None: the clock.
          log: where everything goes.
          safety: other limits than the mode's own.
          slow: limits of approach and retreat.
          on_step: called after each control step.
          pause: what to wait for between episodes, while the arms rest without torque; None: nothing, the arms let
            go of what they hold and start anew.
          attendant: who begins and ends the episodes; None: they take as long as `config` says.
        """
        limits = safety or LIMITS[config.mode]
        self.config = config
        self.guard = Guard(limits)
        self._limits = limits
        self._pacer = pacer or ClockPacer(limits.period_s)
        self._pause, self._attendant = pause, attendant
        self._recorder = Recorder(log, on_step)
        self._stepper = Stepper(
            Arms(robot, self.guard, Guard(slow)),
            Eyes(cameras),
            Actor(policy, config, self._recorder.event),
            self._pacer,
            self._recorder,
            Monitor(limits),
            Reactions(limits),
        )
        self._finished = self._aborted = 0

    @property
    def monitor(self) -> Monitor:
        """Judges everything that comes back."""
        return self._stepper.monitor

    @property
    def reactions(self) -> Reactions:
        """Decides what the arms do."""
        return self._stepper.reactions

    @property
    def switched(self) -> bool:
        """Whether the insertion policy is in charge."""
        return self._stepper.actor.switched

    def preflight(self) -> list[Check]:
        """Checks robot, cameras and policy without moving anything."""
        one = self._stepper
        return preflight(one.arms, one.eyes, one.actor, one.monitor, self._pacer.realtime)

    def run(self, hooks: Hooks | None = None) -> Outcome:
        """Runs the episodes and brings the arms to rest.

        Ctrl-C, SIGTERM and the end of the terminal bring the arms to rest; Ctrl-C twice holds them for good.

        Args:
          hooks: what surrounds the episodes of a simulation.

        Raises:
          RobotFault: the pre-flight check fails; the text has all that did.
        """
        with self._stepper.requests:
            if hooks is not None:
                hooks.begin(0)  # arms without torque fall, emulated ones as well
            failed = [one for one in self.preflight() if not one.passed]
            if failed:
                lines = "; ".join(f"{one.name}: {one.text}" for one in failed)
                raise RobotFault(f"The pre-flight check failed. {lines}")
            try:
                self._run(hooks)
                self._hold_on()
            except KeyboardInterrupt:  # the loop hung, and somebody insisted
                self._stepper.arms.stop()
                self.reactions.freeze("Ctrl-C, and no control step came to take it")
            except Exception:
                self._stepper.arms.stop()  # whatever went wrong, the arms hold
                self._recorder.event("the loop failed; the arms hold")
                raise
        outcome = self._outcome()
        self._recorder.end({**dataclasses.asdict(outcome), "mode": outcome.mode.value})
        return outcome

    def _run(self, hooks: Hooks | None) -> None:
        stepper = self._stepper
        stepper.take_requests()
        if self.config.powered and stepper.going:
            self._power()
        episode, alone = 0, False
        while episode < self.config.episodes and not (isinstance(hooks, Ending) and hooks.ended()):
            stepper.episode = episode
            self._prepare(episode, hooks, alone)
            if not stepper.going:
                break
            self._play(hooks)
            if not stepper.going and hooks is None:
                break
            enough = self._attendant is not None and self._attendant.ended()
            last = enough or episode == self.config.episodes - 1
            alone = self._attendant is not None and self._attendant.alone()
            then = Next.NEXT if last or alone or hooks is not None else self._between()
            if then is Next.STOP:
                self.reactions.retreat("stopped between episodes")
            if then is Next.AGAIN:
                self._finished -= 1
            else:
                episode += 1
            if enough:
                break
        if self.config.powered and self.config.retreat:
            self.reactions.retreat("the run is over")
        if self.config.retreat or not self.config.powered or stepper.asked:
            while self.reactions.mode is Mode.RETREAT:
                stepper.step(None)

    def _prepare(self, episode: int, hooks: Hooks | None, alone: bool) -> None:
        """Brings arms and scene to where an episode starts, unless that is where they are: `alone`."""
        stepper = self._stepper
        if hooks is not None:
            stepper.arms.use(self.guard)
            if self.reactions.mode is Mode.RETREAT and not stepper.asked:
                self._aborted += 1
                stepper.begin_afresh(Monitor(self._limits), Reactions(self._limits))
            if stepper.going:
                stepper.arms.start(hooks.begin(episode))
        if self.config.approach and self.config.powered and stepper.going and not alone:
            self.monitor.begin_approach()
            stepper.approaching = True
            self._lead(approach_path(start_pose(), stepper.arms.slow.config), "the start pose")
            stepper.approaching = False

    def _play(self, hooks: Hooks | None) -> None:
        """Lets the policy act for an episode."""
        stepper = self._stepper
        stepper.actor.begin()
        stepper.arms.use(self.guard)
        if self._attendant is not None:
            self._attendant.start()
        judges = self._attendant or hooks
        for number in range(round(self.config.episode_s / self.guard.config.period_s)):
            stepper.number = number
            stepper.step(stepper.actor)
            if not stepper.going:
                return
            if judges is not None and judges.over():
                break
        self._finished += 1

    def _between(self) -> Next:
        """Lets go of what the grippers hold, and waits until the scene is as it was."""
        stepper = self._stepper
        arms = stepper.arms
        if not self.config.powered or not self.config.approach:
            return Next.NEXT if self._pause is None else self._wait(self._pause)
        slow = arms.slow.config
        if self._pause is None:
            self._lead(way_aside(slow), "the way aside")
            return Next.NEXT
        try:
            measured = arms.read().position
        except RobotFault as fault:
            stepper.lose(fault)
            return Next.STOP
        self._lead(way_to_rest(arms.command, measured, slow), "the sleep pose")
        if not stepper.going:
            return Next.STOP
        try:
            arms.let_go()
        except RobotFault as fault:
            self.reactions.freeze(str(fault))
            return Next.STOP
        then = self._wait(self._pause)
        if then is not Next.STOP and stepper.going:
            try:
                self._power()
            except RobotFault as fault:
                self.reactions.retreat(f"torque stays off: {fault}")
        return then

    def _power(self) -> None:
        """Switches torque on.

        Raises:
          RobotFault: it stays off.
        """
        try:
            self._stepper.arms.enable()
        except RobotFault as fault:
            if not self._stepper.arms.torque:
                raise
            self._stepper.lose(fault)  # an arm is gone, the moment after

    def _wait(self, pause: Pause) -> Next:
        """Waits until a person or the clock says what comes next; nothing is asked of the cameras meanwhile."""
        pause.begin(self._pacer.now_s())
        try:
            while self._stepper.going:
                then = pause.poll(self._pacer.now_s())
                if then is not None:
                    return then
                self._stepper.step(None, looking=False)
        finally:
            pause.end()
        return Next.STOP

    def _lead(self, way: Leader, goal: str) -> None:
        """Leads the arms along a way, slowly."""
        stepper = self._stepper
        stepper.arms.use(stepper.arms.slow)
        while stepper.going:
            if stepper.step(way):
                return
            if way.stuck:
                self.reactions.retreat(f"the arms do not reach {goal}")

    def _hold_on(self) -> None:
        """Keeps holding after a fault, and the servos' watchdogs fed, for as long as asked."""
        begun_s = time.monotonic()
        while self.reactions.mode is Mode.FROZEN and self.config.powered:
            patience_s = self.config.frozen_s
            waited = patience_s is not None and time.monotonic() - begun_s >= patience_s
            if waited or self._stepper.left:
                return
            self._stepper.step(None)

    def _outcome(self) -> Outcome:
        arms = self._stepper.arms
        return Outcome(
            mode=self.reactions.mode,
            episodes=self._finished,
            aborted=self._aborted,
            steps=self._stepper.actor.answers,
            interventions=dict(arms.fast.counts + arms.slow.counts),
            findings=dict(self.monitor.counts),
            reasons=[(mode.value, reason) for mode, reason in self.reactions.reasons],
        )
