"""The control loop: observe, decide, guard, command."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.core.stop import StopSignal
from alohas2r.deployment.config import LIMITS, DeployConfig
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.observation import observe
from alohas2r.deployment.pacer import ClockPacer, Pacer
from alohas2r.deployment.recovery import torque_off
from alohas2r.deployment.report import Check, Hooks, Outcome, Report
from alohas2r.deployment.timing import Stopwatch
from alohas2r.embodiment.joints import JOINTS, SIDES, two_fingers
from alohas2r.embodiment.poses import hold_pose
from alohas2r.errors import Alohas2rError, RobotFault
from alohas2r.policies.protocol import Policy, select
from alohas2r.robots.base import Camera, Frame, Proprio, Robot
from alohas2r.safety.config import SLOW, SafetyConfig
from alohas2r.safety.guard import Guard
from alohas2r.safety.monitor import Finding, Level, Monitor
from alohas2r.safety.paths import Path, approach_path, retreat_path
from alohas2r.safety.reactions import Mode, Reactions
from alohas2r.sim import scene
from alohas2r.sim.kinematics import tip_heights


def start_pose() -> np.ndarray:
    """Returns the pose [14] in which episodes start: the keyframe home."""
    insert = scene.load("insert")
    return insert.home_ctrl[np.concatenate([arm.ctrl for arm in insert.arms])]


class Deployment:
    """A policy on a robot.

    Attributes:
      config: how it is run.
      guard: limits every target.
      monitor: judges everything that comes back.
      reactions: what the arms do.
      switched: whether the insertion policy is in charge.
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
        """
        limits = safety or LIMITS[config.mode]
        self.config = config
        self._limits = limits
        self.guard = Guard(limits)
        self.monitor = Monitor(limits)
        self.reactions = Reactions(limits)
        self.switched = False
        self._slow = Guard(slow)
        self._robot = robot
        self._cameras = {camera.name: camera for camera in cameras}
        self._policy = policy
        self._pacer = pacer or ClockPacer(limits.period_s)
        self._log = log
        self._on_step = on_step
        self._active = self.guard
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        self._range = insert.ctrl_low[order], insert.ctrl_high[order]
        self._retreat: Path | None = None
        self._pending: list[Finding] = []  # about the time that the step before took
        self._episode = self._step_number = self._finished = self._acted = self._aborted = 0
        self._starting = self._asked_to_stop = False

    def preflight(self) -> list[Check]:
        """Checks robot, cameras and policy without moving anything."""
        checks: list[Check] = []
        try:
            reading = self._robot.read()
        except RobotFault as fault:
            return [Check("joints", False, str(fault))]
        findings = self.monitor.proprio(reading, None)
        wrong = [one for one in findings if one.level > Level.NOTE]
        text = "; ".join(one.text for one in wrong or findings) or "all servos answer, none is hot"
        checks.append(Check("joints", not wrong, text))
        low, high = scene.load("insert").ctrl_low, scene.load("insert").ctrl_high
        beyond = (reading.position < low - 0.1) | (reading.position > high + 0.1)
        outside = ", ".join(JOINTS[index] for index in np.flatnonzero(beyond))
        text = f"{outside} out of range: calibrate" if outside else "all joints within their range"
        checks.append(Check("range", not outside, text))
        self.guard.start(reading.position)
        clear = self.guard.slack > -0.02
        text = f"{1000 * self.guard.slack:.0f} mm to spare to the table and the other arm"
        checks.append(Check("clearance", clear, text))
        frames, problems = self._look(reading.position)
        text = "; ".join(one.text for one in problems) or "both cameras see"
        checks.append(Check("cameras", not problems, text))
        if len(frames) == len(SIDES):
            checks.append(self._check_policy(reading, frames))
        return checks

    def run(self, hooks: Hooks | None = None) -> Outcome:
        """Runs the episodes and brings the arms to rest.

        Ctrl-C once holds the arms and brings them to rest; twice holds them at once, for good.

        Args:
          hooks: what surrounds the episodes of a simulation.

        Raises:
          RobotFault: the pre-flight check fails; the text has all that did.
        """
        if hooks is not None:
            hooks.begin(0)  # arms without torque fall, emulated ones as well
        failed = [one for one in self.preflight() if not one.passed]
        if failed:
            lines = "; ".join(f"{one.name}: {one.text}" for one in failed)
            raise RobotFault(f"The pre-flight check failed. {lines}")
        with StopSignal(self._stop_asked):
            try:
                self._run(hooks)
            except KeyboardInterrupt:
                self._robot.stop()
                self.reactions.freeze("Ctrl-C twice")
            except Exception:
                self._robot.stop()  # whatever went wrong, the arms hold
                self._event("the loop failed; the arms hold")
                raise
        try:
            self._hold_on()
        except KeyboardInterrupt:
            self._robot.stop()
        outcome = self._outcome()
        if self._log is not None:
            self._log.write("end", {**dataclasses.asdict(outcome), "mode": outcome.mode.value})
        return outcome

    def _stop_asked(self) -> None:
        self._asked_to_stop = True
        self.reactions.retreat("Ctrl-C")

    def _begin_afresh(self) -> None:
        """Forgets what ended the last episode: the hooks put other, sound arms in their place."""
        self._active = self.guard
        if self.reactions.mode is Mode.RETREAT and not self._asked_to_stop:
            self._aborted += 1
            reasons, counts = self.reactions.reasons, self.monitor.counts
            self.reactions, self.monitor = Reactions(self._limits), Monitor(self._limits)
            self.reactions.reasons, self.monitor.counts = reasons, counts
            self._retreat, self._pending = None, []

    def _run(self, hooks: Hooks | None) -> None:
        if self.config.powered:
            self._robot.enable()
        reading = self._robot.read()
        self.guard.start(reading.position)
        for episode in range(self.config.episodes):
            self._episode = episode
            if hooks is not None:
                self._begin_afresh()
                if self.reactions.mode not in (Mode.RUN, Mode.HOLD):
                    break
                self.guard.start(hooks.begin(episode))
            if self.config.approach and self.config.powered:
                self._follow(approach_path(start_pose(), self._slow.config))
            if self.reactions.mode not in (Mode.RUN, Mode.HOLD):
                break
            self._play(hooks)
        if self.config.powered and self.config.retreat:
            self.reactions.retreat("the run is over")
            while self.reactions.mode is Mode.RETREAT:
                self._step(None)

    def _play(self, hooks: Hooks | None) -> None:
        """Lets the policy act for an episode."""
        self._policy.reset()
        self.switched = False
        self._starting = True
        self._use(self.guard)
        steps = round(self.config.episode_s / self.guard.config.period_s)
        for number in range(steps):
            self._step_number = number
            self._step(self._policy)
            if self.reactions.mode not in (Mode.RUN, Mode.HOLD):
                return
            if hooks is not None and hooks.over():
                break
        self._finished += 1

    def _follow(self, path: Path) -> None:
        """Leads the arms along a path, slowly."""
        self._use(self._slow)
        while self.reactions.mode in (Mode.RUN, Mode.HOLD):
            if self._step(path):
                return
            if path.stuck:
                self.reactions.retreat("the arms do not reach the start pose")

    def _hold_on(self) -> None:
        """Keeps holding after a fault, and the servos' watchdogs fed, for as long as asked."""
        begun_s = time.monotonic()
        while self.reactions.mode is Mode.FROZEN and self.config.powered:
            patience_s = self.config.frozen_s
            if patience_s is not None and time.monotonic() - begun_s >= patience_s:
                return
            self._step(None)

    def _step(self, leader: Policy | Path | None) -> bool:
        """One control step.

        Args:
          leader: whose targets are followed while the mode is RUN.

        Returns:
          Whether the leader, a path, has arrived.
        """
        self._pacer.wait()
        times = Stopwatch()
        arrived = False
        arrays: dict[str, np.ndarray] = {}
        findings, self._pending = self._pending, []
        frames: dict[str, Frame] = {}
        try:
            reading = self._robot.read()
        except RobotFault as fault:
            self.reactions.freeze(str(fault))
            self._robot.stop()
            self._event(str(fault))
            return False
        times.lap("read")
        command = self._active.last
        findings = findings + self.monitor.proprio(reading, command if self._moving else None)
        if self.reactions.mode in (Mode.RUN, Mode.HOLD):
            frames, problems = self._look(reading.position)
            findings = findings + problems
        times.lap("look")
        if not self._moving:
            self._active.start(reading.position)
            command = reading.position
        self._update_switch(reading, command)
        wanted: np.ndarray | None = None
        sound = all(one.level <= Level.NOTE for one in findings)
        if isinstance(leader, Path):
            wanted = leader.target(command, reading.position)
            arrived = wanted is None
        elif leader is not None and sound:
            observation = observe(reading, frames, command, self.switched)
            action = self._ask(observation)
            findings = findings + self.monitor.action(action)
            arrays |= {f"observation/{name}": value for name, value in observation.items()}
            if action is not None:
                arrays["action"] = action
                # As in training: targets stay within the actuators' ranges, which is no intervention.
                moved = command + self.config.action_scale * np.clip(action, -1.0, 1.0)
                wanted = np.clip(moved, *self._range)
        times.lap("infer")
        mode = self.reactions.update(findings, self._pacer.now_s())
        target = self._choose(mode, wanted, command, reading.position)
        interventions: tuple[str, ...] = ()
        if target is not None:
            decision = self._active.limit(target, reading.position if self._moving else None)
            target, interventions = decision
            times.lap("guard")
            self._send(target)
        elif self.reactions.mode is Mode.FROZEN:
            self._robot.stop()
        times.lap("write")
        total_s = times.total()
        if self._pacer.realtime:
            self._pending = self.monitor.timing(total_s)
        self._write(times, reading, target, interventions, findings, arrays)
        if self._on_step is not None:
            self._on_step(
                Report(
                    self._episode,
                    self._step_number,
                    self.reactions.mode,
                    self.switched,
                    total_s,
                    dict(times.laps),
                    leader is not None and not isinstance(leader, Path),
                    interventions,
                    tuple(findings),
                    frames,
                )
            )
        return arrived

    @property
    def _moving(self) -> bool:
        return self.config.powered

    def _use(self, guard: Guard) -> None:
        """Hands the last command over to another guard."""
        if guard is not self._active:
            guard.start(self._active.last)
            self._active = guard

    def _choose(
        self, mode: Mode, wanted: np.ndarray | None, command: np.ndarray, measured: np.ndarray
    ) -> np.ndarray | None:
        """Returns the target that the mode asks for; None: nothing is sent in this step."""
        if mode is Mode.RUN:
            return command if wanted is None else wanted
        if mode is Mode.HOLD:
            return hold_pose(command, measured)
        if mode is not Mode.RETREAT or not self._moving:
            return None
        if self._retreat is None:
            self._retreat = retreat_path(self._slow.config)
            self._use(self._slow)
        target = self._retreat.target(self._active.last, measured)
        if target is None:
            torque_off(self._robot)
            self.reactions.arrived()
            return None
        if self._retreat.stuck:
            self.reactions.freeze("the retreat is blocked")
            return hold_pose(command, measured)
        return target

    def _send(self, target: np.ndarray) -> None:
        if not self._moving:
            return
        try:
            self._active.sent(self._robot.command(target))
        except RobotFault as fault:
            self._event(str(fault))
            rearm = getattr(self._robot, "rearm", None)
            if rearm is None:
                self.reactions.freeze(str(fault))
                self._robot.stop()
                return
            # The servos stopped by themselves because this loop paused; they hold where they are.
            try:
                rearm()
                self._active.start(self._robot.read().position)
                pause = Finding("slow loop", Level.HOLD, "the servos had stopped by their watchdog")
                self.monitor.counts[pause.kind] += 1
                self._pending.append(pause)
            except RobotFault as worse:
                self.reactions.freeze(str(worse))

    def _look(self, position: np.ndarray) -> tuple[dict[str, Frame], list[Finding]]:
        frames: dict[str, Frame] = {}
        findings: list[Finding] = []
        for side in SIDES:
            try:
                frames[side] = self._cameras[side].read(self.monitor.config.frame_age_s)
            except RobotFault as fault:
                self.monitor.counts["stale camera"] += 1
                findings.append(Finding("stale camera", Level.HOLD, str(fault)))
        if not findings:
            findings = self.monitor.frames(frames, position, time.monotonic())
        return frames, findings

    def _ask(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Asks the policy; None if it does not answer."""
        began_anew = getattr(self._policy, "renewals", 0)
        try:
            action = np.asarray(self._policy.act(select(self._policy, observation)), float)
        except (Alohas2rError, TimeoutError, ConnectionError) as error:
            self._event(f"the policy failed: {error}")
            return None
        if getattr(self._policy, "renewals", 0) != began_anew:
            self._starting = True  # it has forgotten the past, as at the start of an episode
        self._acted += 1
        if action.shape != (len(JOINTS),):
            self._event(f"the policy returned {action.shape} instead of {len(JOINTS)} actions")
            return np.full(len(JOINTS), np.nan)
        return action

    def _update_switch(self, reading: Proprio, command: np.ndarray) -> None:
        joints = reading.joint_position()
        self.switched = bool(
            self.config.switch.update(
                np.array(self.switched),
                tip_heights(joints),
                joints[:, -1],
                two_fingers(command)[:, -1],
            )
        )

    def _check_policy(self, reading: Proprio, frames: Mapping[str, Frame]) -> Check:
        observation = observe(reading, frames, reading.position, False)
        try:
            self._policy.reset()
            self._policy.act(select(self._policy, observation))  # the first call may be slow
            begun_s = time.perf_counter()
            action = np.asarray(self._policy.act(select(self._policy, observation)), float)
            took_s = time.perf_counter() - begun_s
            self._policy.reset()
        except (Alohas2rError, TimeoutError, ConnectionError) as error:
            return Check("policy", False, str(error))
        if action.shape != (len(JOINTS),) or not np.isfinite(action).all():
            return Check("policy", False, f"it returned {action.shape} values, or broken ones")
        in_time = took_s < self.guard.config.period_s / 2 or not self._pacer.realtime
        return Check("policy", in_time, f"it answers in {1000 * took_s:.1f} ms")

    def _write(
        self,
        times: Stopwatch,
        reading: Proprio,
        target: np.ndarray | None,
        interventions: Sequence[str],
        findings: Sequence[Finding],
        arrays: dict[str, np.ndarray],
    ) -> None:
        if self._log is None:
            return
        values = {
            "episode": self._episode,
            "step": self._step_number,
            "time_s": reading.time_s,
            "mode": self.reactions.mode.value,
            "switched": self.switched,
            "interventions": list(interventions),
            "findings": [one.kind for one in findings],
            "episode_start": self._starting and "action" in arrays,
            **{f"{part}_s": seconds for part, seconds in times.laps.items()},
            "total_s": times.total(),
        }
        if values["episode_start"]:
            self._starting = False
        arrays |= {
            field: getattr(reading, field)
            for field in ("position", "velocity", "current", "age_s", "temperature_c")
        }
        if target is not None:
            arrays["command"] = target
        self._log.write("step", values, arrays)

    def _event(self, text: str) -> None:
        if self._log is not None:
            self._log.write("event", {"time_s": time.monotonic(), "text": text})

    def _outcome(self) -> Outcome:
        counts = self.guard.counts + self._slow.counts
        return Outcome(
            mode=self.reactions.mode,
            episodes=self._finished,
            aborted=self._aborted,
            steps=self._acted,
            interventions=dict(counts),
            findings=dict(self.monitor.counts),
            reasons=[(mode.value, reason) for mode, reason in self.reactions.reasons],
        )
