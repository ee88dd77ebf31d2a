"""Runs a policy on two arms at 20 Hz: the loop around policy, guard and robot.

Each control step reads the joints and the pictures, lets the monitor judge them, asks the policy,
limits what it wants, sends it, and logs everything. What the arms do is decided by `Reactions`:
run, hold, retreat to the sleep pose, or hold for good. The loop is the same for real, emulated and
simulated arms; only the robot, the cameras and the pacer differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from alohas2r import scene
from alohas2r.config import check, from_dict, to_dict
from alohas2r.drivelog import LogWriter
from alohas2r.errors import (
    Alohas2rError,
    ArtifactError,
    BackendUnavailable,
    ConfigError,
    RobotFault,
)
from alohas2r.robots import (
    JOINTS,
    SIDES,
    Camera,
    Frame,
    Proprio,
    Robot,
    hold_pose,
    two_fingers,
)
from alohas2r.robots.realsense import FOVY_DEG
from alohas2r.robots.rig import RigConfig, open_rig
from alohas2r.runlog import StopSignal
from alohas2r.safety import (
    FULL,
    SLOW,
    Finding,
    Guard,
    Level,
    Mode,
    Monitor,
    Path,
    Reactions,
    SafetyConfig,
    approach_path,
    at_rest,
    retreat_path,
)
from alohas2r.switching import Switch, tip_heights

if TYPE_CHECKING:
    from alohas2r.server import PolicyClient

# dry-run: no torque, everything else as in a run. shadow: reads and logs only, for arms that
# something else drives. slow and full: torque on, at the limits SLOW and FULL.
DriveMode = Literal["dry-run", "shadow", "slow", "full"]
LIMITS = {"dry-run": FULL, "shadow": FULL, "slow": SLOW, "full": FULL}


class Policy(Protocol):
    """What is deployed: `OnnxPolicy`, a client of a policy server, or the like."""

    def reset(self) -> None:
        """Forgets the past, at the start of an episode."""
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation of `observe`."""
        ...


class Pacer(Protocol):
    """What makes a control step take its time.

    Attributes:
      realtime: whether time passes by itself, so that a step can be late.
    """

    realtime: bool

    def wait(self) -> None:
        """Returns when the next control step is due."""
        ...

    def now_s(self) -> float:
        """Returns the time by which holds are measured: the clock's, or the stepped world's."""
        ...


class ClockPacer:
    """Waits for the clock; a step that is late is not made up for."""

    realtime = True

    def __init__(self, period_s: float = scene.CONTROL_PERIOD_S) -> None:
        """Starts with the first `wait`."""
        self._period_s = period_s
        self._due_s: float | None = None

    def wait(self) -> None:
        """Sleeps until the next control step is due."""
        now_s = time.monotonic()
        due_s = now_s if self._due_s is None else self._due_s
        if now_s < due_s:
            time.sleep(due_s - now_s)
        self._due_s = max(due_s, now_s - self._period_s) + self._period_s

    def now_s(self) -> float:
        """Returns the clock's time."""
        return time.monotonic()


class SteppedPacer:
    """Lets a stepped world pass on by one control period."""

    realtime = False

    def __init__(
        self, advance: Callable[[], object], period_s: float = scene.CONTROL_PERIOD_S
    ) -> None:
        """Keeps the world's own way of advancing by a period, such as `Emulator.step`."""
        self._advance = advance
        self._period_s = period_s
        self._steps = 0

    def wait(self) -> None:
        """Advances the world, but not before the first step."""
        if self._steps:
            self._advance()
        self._steps += 1

    def now_s(self) -> float:
        """Returns the world's time."""
        return self._steps * self._period_s


@dataclasses.dataclass(frozen=True)
class DeployConfig:
    """How a policy is run.

    Attributes:
      mode: see DriveMode.
      episodes: how many times.
      episode_s: for how long each time.
      action_scale: how far a full action moves a target (rad; m for the grippers).
      switch: when the insertion policy takes over.
      approach: whether to lead the arms to the start pose first; a simulation places them there.
      retreat: whether to bring the arms to rest at the end.
      frozen_s: how long to keep holding after a fault before leaving the loop; None: until Ctrl-C.
    """

    mode: DriveMode = "slow"
    episodes: int = 1
    episode_s: float = 10.0
    action_scale: float = 0.02
    switch: Switch = dataclasses.field(default_factory=Switch)
    approach: bool = True
    retreat: bool = True
    frozen_s: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.mode in LIMITS, f"mode must be one of {', '.join(LIMITS)}, not {self.mode}")
        check(self.episodes >= 1, "episodes must be at least 1")
        check(self.episode_s > 0, "episode_s must be positive")
        check(0 < self.action_scale <= 0.1, "action_scale must lie in (0, 0.1]")
        check(self.frozen_s is None or self.frozen_s >= 0, "frozen_s must not be negative")

    @property
    def powered(self) -> bool:
        """Whether the arms are moved at all."""
        return self.mode in ("slow", "full")


class Check(NamedTuple):
    """One line of the pre-flight check."""

    name: str
    passed: bool
    text: str


class Report(NamedTuple):
    """What a control step did, for a live display.

    `laps` has the seconds that "read", "look", "infer", "guard" and "write" took; `acting` says
    whether the policy was in charge, rather than the approach or the retreat.
    """

    episode: int
    step: int
    mode: Mode
    switched: bool
    duration_s: float
    laps: Mapping[str, float]
    acting: bool
    interventions: tuple[str, ...]
    findings: tuple[Finding, ...]
    frames: Mapping[str, Frame]


class Hooks(Protocol):
    """What surrounds the episodes of a simulated or emulated run."""

    def begin(self, episode: int) -> np.ndarray:
        """Places the world for an episode and returns the targets [14] that hold it there."""
        ...

    def over(self) -> bool:
        """Returns, after each control step, whether the episode is over."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      mode: what the arms were doing at the end.
      episodes: how many were run to their end.
      aborted: simulated episodes that a fault ended; the next one began afresh.
      steps: control steps under the policy.
      interventions, findings: how often each came up.
      reasons: why the mode changed, in order.
    """

    mode: Mode
    episodes: int
    aborted: int
    steps: int
    interventions: dict[str, int]
    findings: dict[str, int]
    reasons: list[tuple[str, str]]


def start_pose() -> np.ndarray:
    """Returns the pose [14] in which episodes start: the keyframe home."""
    insert = scene.load("insert")
    return insert.home_ctrl[np.concatenate([arm.ctrl for arm in insert.arms])]


def observe(
    reading: Proprio, frames: Mapping[str, Frame], target: np.ndarray, switched: bool
) -> dict[str, np.ndarray]:
    """Builds what a policy observes, raw: preprocessing is part of the policy.

    Args:
      reading: the joints.
      frames: newest picture of "left" and "right".
      target: [14] the last command.
      switched: whether the insertion policy is in charge.

    Returns:
      "left_rgb", "right_rgb" [H, W, 3] uint8; "left_depth", "right_depth" [H, W] float32 (m);
      "proprioception" [32] float32: joint positions 8 + 8, positions minus targets 8 + 8 (rad, m);
      "switched" [] bool.
    """
    position = reading.joint_position()
    error = position - two_fingers(target)
    values = np.concatenate([position.reshape(-1), error.reshape(-1)])
    observation = {
        "proprioception": values.astype(np.float32),
        "switched": np.array(switched),
    }
    for side in SIDES:
        observation[f"{side}_rgb"] = frames[side].rgb
        observation[f"{side}_depth"] = frames[side].depth.astype(np.float32)
    return observation


def torque_off(robot: Robot, anywhere: bool = False) -> None:
    """Switches torque off, in the sleep pose only unless told otherwise.

    Args:
      robot: an entered robot.
      anywhere: whether to let go wherever the arms are. They fall: support them.

    Raises:
      RobotFault: the arms do not rest in the sleep pose.
    """
    if not anywhere and not at_rest(robot.read().position):
        raise RobotFault(
            "The arms are not in the sleep pose; without torque they would fall. Bring them there"
            " first, or support them and ask for it explicitly."
        )
    robot.disable()


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
        times = _Stopwatch()
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
        times: _Stopwatch,
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


class ServedPolicy:
    """A policy on a server, asked at most for as long as a control step can wait.

    A connection that failed or was late is given up, as its answer would be taken for the next one,
    and made anew in a thread of its own; until then every `act` fails at once. The server then
    starts without memory of the past.

    Attributes:
      url: the server's address.
      interface: what the policy takes; None if the server does not say.
      metadata: what the server says about itself.
      renewals: how often the connection was made anew.
    """

    RETRY_S = 0.2

    def __init__(self, url: str, api_key: str = "", timeout_s: float = 0.04) -> None:
        """Connects.

        Args:
          url: "ws://host:port", or "host:port".
          api_key: if the server wants one.
          timeout_s: how long an action may take.

        Raises:
          BackendUnavailable: no server there, or it refuses.
        """
        from alohas2r.server import PolicyClient

        self._connect = lambda: PolicyClient(url, api_key, timeout_s)
        client = self._connect()
        self.url = client.url
        self.interface, self.metadata = client.interface, client.metadata
        self.renewals = 0
        self._client: PolicyClient | None = client
        self._next: PolicyClient | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        for client in (self._client, self._next):
            if client is not None:
                client.close()

    def reset(self) -> None:
        """Lets the policy forget the past with the next observation."""
        if self._client is not None:
            self._client.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] for an observation.

        Raises:
          ArtifactError: the server refuses the observation.
          BackendUnavailable: the server is gone or late; it is searched for.
        """
        if self._client is None and self._next is not None:
            self._client, self._next = self._next, None
            self.renewals += 1
        if self._client is None:
            raise BackendUnavailable(f"The policy server at {self.url} is gone; trying again.")
        try:
            return self._client.act(observation)
        except BackendUnavailable:
            self._client = None
            self._thread = threading.Thread(target=self._renew, name="policy server", daemon=True)
            self._thread.start()
            raise

    def _renew(self) -> None:
        while not self._closed.wait(self.RETRY_S):
            try:
                self._next = self._connect()
                return
            except BackendUnavailable:
                continue


class Terms(NamedTuple):
    """What a policy says about how it wants to be run.

    Attributes:
      name: file or address; hash: that of the artifact.
      action_scale: how far a full action moves a target (rad; m).
      switch: when insertion takes over.
      size: side of its pictures (pixels).
      fovy_deg: their field of view.
    """

    name: str
    hash: str
    action_scale: float
    switch: Switch
    size: int
    fovy_deg: float


def terms(policy: Any) -> Terms:
    """Reads how an `OnnxPolicy` or a `ServedPolicy` wants to be run, and that a robot can do it.

    Raises:
      ArtifactError: it takes what a robot does not have, or drives other joints.
    """
    served = isinstance(policy, ServedPolicy)
    name = policy.url if served else str(policy.path)
    action = policy.metadata.get("actions", {}) if served else policy.action
    description = {} if served else policy.description
    size = 32
    if policy.interface is not None:
        shapes = {one.name: one.shape for one in policy.interface.inputs}
        sizes = {shape[:2] for one, shape in shapes.items() if one.endswith(("_rgb", "_depth"))}
        size = min(sizes)[0] if sizes else size
        given: dict[str, tuple[int, ...]] = {"proprioception": (32,), "switched": ()}
        for side in SIDES:
            given |= {f"{side}_rgb": (size, size, 3), f"{side}_depth": (size, size)}
        strange = [one for one, shape in shapes.items() if given.get(one) != shape]
        if strange:
            raise ArtifactError(
                f"{name} takes {', '.join(strange)}, which a robot does not have: it sees wrist"
                " pictures and its own joints only. Deploy a student, not a teacher."
            )
    joints, period_s = tuple(action.get("joints", JOINTS)), action.get("control_period_s")
    if joints != JOINTS or period_s not in (None, scene.CONTROL_PERIOD_S):
        raise ArtifactError(
            f"{name} drives {len(joints)} joints every {period_s} s, not the {len(JOINTS)} of"
            f" two arms every {scene.CONTROL_PERIOD_S} s."
        )
    switch, cameras = description.get("switch"), description.get("cameras", {})
    return Terms(
        name=name,
        hash=str(policy.metadata.get("policy", "") if served else policy.hash),
        action_scale=float(action.get("scale", DeployConfig.action_scale)),
        switch=Switch() if switch is None else from_dict(Switch, switch),
        size=size,
        fovy_deg=float(cameras.get("fovy_deg", FOVY_DEG)),
    )


def open_policy(
    file: str | os.PathLike[str] | None, server: str | None, api_key: str = ""
) -> contextlib.AbstractContextManager[Any]:
    """Returns a policy to be entered, from an ONNX file or a server.

    Raises:
      ConfigError: neither or both are given.
      ArtifactError: the file is missing or damaged.
      BackendUnavailable: no server answers.
    """
    if (file is None) == (server is None):
        raise ConfigError("Give one of --policy FILE and --server URL.")
    if server is not None:
        return ServedPolicy(server, api_key)
    from alohas2r.onnx_policy import OnnxPolicy

    path = pathlib.Path(file or "")
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder; deploy takes the exported file. Export it with"
            f" alohas2r export {path}, which writes an .onnx file."
        )
    if not path.exists():
        raise ArtifactError(
            f"There is no policy {path}. Export a trained student with alohas2r export."
        )
    return contextlib.nullcontext(OnnxPolicy.load(path))


class Tally:
    """Collects how long the control steps under the policy took."""

    PARTS = ("read", "look", "infer", "guard", "write")

    def __init__(self, period_s: float = scene.CONTROL_PERIOD_S) -> None:
        """Starts empty; a step that takes longer than `period_s` is late."""
        self._period_s = period_s
        self._laps: list[list[float]] = []
        self._durations: list[float] = []
        self._gaps: list[float] = []
        self._last_s: float | None = None

    def __call__(self, report: Report) -> None:
        """Takes a control step."""
        now_s = time.monotonic()
        if report.acting and report.mode is Mode.RUN:
            self._laps.append([report.laps.get(part, 0.0) for part in self.PARTS])
            self._durations.append(report.duration_s)
            if self._last_s is not None and report.step > 0:
                self._gaps.append(now_s - self._last_s)
        self._last_s = now_s

    @property
    def rate_hz(self) -> float | None:
        """Control steps per second, over the last 40."""
        recent = self._gaps[-40:]
        return len(recent) / sum(recent) if recent and sum(recent) else None

    def figures(self, paced: bool = True) -> dict[str, Any]:
        """Returns the rate, late steps, and times in ms; "loop" is all but "look".

        Args:
          paced: whether steps had to be in time; otherwise there is neither rate nor lateness.
        """
        if not self._durations:
            return {"steps": 0}
        laps = 1000 * np.array(self._laps)
        columns: dict[str, np.ndarray] = dict(zip(self.PARTS, laps.T, strict=True))
        columns["loop"] = laps.sum(axis=1) - columns["look"]
        columns["total"] = 1000 * np.array(self._durations)
        late = int((columns["total"] > 1000 * self._period_s).sum())
        pace = {
            "rate_hz": len(self._gaps) / sum(self._gaps) if self._gaps else None,
            "late_steps": late,
            "late_share": late / len(laps),
        }
        return {
            "steps": len(laps),
            **(pace if paced else {}),
            "milliseconds": {
                part: {"median": float(np.median(one)), "p99": float(np.quantile(one, 0.99))}
                for part, one in columns.items()
            },
        }


def deploy(
    rig: RigConfig,
    config: DeployConfig,
    file: str | os.PathLike[str] | None = None,
    server: str | None = None,
    api_key: str = "",
    log: str | os.PathLike[str] | None = None,
    on_step: Callable[[Report], None] | None = None,
) -> dict[str, Any]:
    """Runs an exported policy on real, emulated or simulated arms.

    Args:
      rig: which arms and cameras; size and view of the pictures are the policy's.
      config: how; scale and switch are the policy's.
      file: the exported policy, an ONNX file.
      server: address of a policy server, instead of `file`.
      api_key: if the server wants one.
      log: a new file for everything that happens; None: none.
      on_step: called after each control step.

    Returns:
      How the run ended ("mode", "reasons", ...), "timing", and for simulated arms how the episodes
      went, with "table": columns by episode.

    Raises:
      ConfigError: settings that do not fit together.
      ArtifactError: the policy is missing, damaged, or none for a robot; the log exists already.
      BackendUnavailable: a package or the server is missing.
      RobotFault: arms or cameras are missing or not as expected; the pre-flight check fails.
    """
    with contextlib.ExitStack() as stack:
        policy = stack.enter_context(open_policy(file, server, api_key))
        wants = terms(policy)
        rig = dataclasses.replace(rig, size=wants.size, fovy_deg=wants.fovy_deg)
        config = dataclasses.replace(
            config,
            action_scale=wants.action_scale,
            switch=wants.switch,
            # Simulated arms are put where an episode starts; in a stepped world nobody waits.
            approach=config.approach and rig.real,
            retreat=config.retreat and not rig.stepped,
            frozen_s=config.frozen_s if rig.real else 0.0,
        )
        arms = stack.enter_context(
            open_rig(rig, config.mode == "shadow", config.episodes, config.episode_s)
        )
        writer = None
        if log is not None:
            header = log_header(config, LIMITS[config.mode], rig.robot, wants.name)
            header |= {"policy_hash": wants.hash, "seed": rig.seed, "stepped": rig.stepped}
            writer = stack.enter_context(LogWriter(log, header))
        tally = Tally()

        def note(report: Report) -> None:
            tally(report)
            if on_step is not None:
                on_step(report)

        deployment = Deployment(
            arms.robot, arms.cameras, policy, config, arms.trials, writer, on_step=note
        )
        outcome = deployment.run(arms.trials)
        result = {
            "robot": rig.robot,
            "mode": config.mode,
            "policy": wants.name,
            "policy_hash": wants.hash,
            **({} if rig.real else {"seed": rig.seed, "stepped": rig.stepped}),
            "ended": outcome.mode.value,
            "episodes": outcome.episodes,
            "aborted": outcome.aborted,
            "interventions": outcome.interventions,
            "findings": outcome.findings,
            "reasons": [f"{mode}: {reason}" for mode, reason in outcome.reasons],
            "timing": tally.figures(paced=not rig.stepped),
        }
        if arms.trials is not None:
            result |= arms.trials.result()
        if log is not None:
            result["log"] = str(log)
        return result


def log_header(
    config: DeployConfig, safety: SafetyConfig, robot: str, policy: str
) -> dict[str, Any]:
    """Returns the first record of a run's log.

    Args:
      config: how the policy is run.
      safety: the limits.
      robot: "aloha", "emulated" and the like.
      policy: file of the policy, or the server's address.
    """
    return {
        "robot": robot,
        "policy": policy,
        "deploy": to_dict(config),
        "safety": to_dict(safety),
        "period_s": safety.period_s,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def select(policy: Policy, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves out what a policy does not take, where it says what it takes."""
    interface = getattr(policy, "interface", None)
    if interface is None:
        return dict(observation)
    names = {one.name for one in interface.inputs}
    return {name: value for name, value in observation.items() if name in names}


class _Stopwatch:
    """Times the parts of a control step."""

    def __init__(self) -> None:
        self._begun_s = self._lap_s = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, part: str) -> None:
        now_s = time.perf_counter()
        self.laps[part] = now_s - self._lap_s
        self._lap_s = now_s

    def total(self) -> float:
        return self._lap_s - self._begun_s
