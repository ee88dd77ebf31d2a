"""Watches readings and pictures for what should stop a run."""

from __future__ import annotations

import collections
import enum
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.robots.base import Frame, Proprio, Stream
from alohas2r.safety.config import FULL, SafetyConfig


class Level(enum.IntEnum):
    """How grave a finding is."""

    NOTE = 0  # logged
    HOLD = 1  # stand still until it is over, or patience ends
    RETREAT = 2  # bring the arms to the sleep pose
    FREEZE = 3  # hold, and stay: the hardware cannot be relied on to move


class Finding(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    level: Level
    text: str


ACTION_TOLERANCE = 1e-3  # beyond -1 to 1, for rounding
STREAMS = ("colour", "depth", "grey")
DARK = 8  # grey levels; a colour or grey picture without a brighter pixel shows nothing
LEAST_KNOWN = 0.01  # share of a depth picture; the gripper alone covers more
FAR_M = 20.0  # a depth beyond this is in another unit
CLEARLY = 1.5  # times as much as another picture a picture of a moving arm changes, at least
FROZEN_STEPS = 3  # a camera at 30 Hz may show a picture twice at 20 Hz


class Monitor:
    """Looks at readings, pictures, actions and timing, and reports what is wrong with them.

    Attributes:
      config: the limits.
      counts: how often each kind of finding came up.
    """

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Starts with nothing seen."""
        self.config = config
        self.counts: collections.Counter[str] = collections.Counter()
        self._driven = np.zeros(
            len(JOINTS), bool
        )  # joints that had torque since it was switched on
        self._strayed = 0
        self._bad_actions = 0
        self._late = 0
        self._eyes = {(side, name): _Eye() for side in SIDES for name in STREAMS}
        self._position: np.ndarray | None = None
        self._votes: collections.deque[bool] = collections.deque(maxlen=24)

    def proprio(self, reading: Proprio, command: np.ndarray | None) -> list[Finding]:
        """Judges a reading of the joints.

        Args:
          reading: what the robot returned.
          command: [14] the target that was in force, or None if the arms are not powered.
        """
        findings = self._faults(reading)
        if not np.isfinite(reading.position).all():
            findings.append(Finding("bad reading", Level.FREEZE, "joint positions are not finite"))
            return self._count(findings)
        oldest = int(reading.age_s.argmax())
        age_s = float(reading.age_s[oldest])
        if age_s > self.config.proprio_age_s:
            level = Level.FREEZE if age_s > self.config.silent_s else Level.HOLD
            text = f"{JOINTS[oldest]} was last heard {age_s:.2f} s ago"
            findings.append(Finding("silent servo", level, text))
        findings += self._health(reading)
        if command is None:
            self._driven[:] = False
        else:
            findings += self._torque(reading)
            findings += self._tracking(reading, command)
        return self._count(findings)

    def frames(
        self,
        frames: Mapping[str, Frame],
        position: np.ndarray,
        now_s: float,
        approaching: bool = True,
    ) -> list[Finding]:
        """Judges the pictures of both wrist cameras, each stream for itself.

        Args:
          frames: the newest pictures of "left" and "right".
          position: [14] measured positions, which tell whether pictures must have changed.
          now_s: the monotonic clock.
          approaching: whether the arms approach the start pose one after the other with empty hands. Only then does
            the picture of an arm that stands still stay as it was, so that swapped cameras can be told.
        """
        findings: list[Finding] = []
        before = position if self._position is None else self._position
        moved = np.abs(np.where(IS_GRIPPER, 0.0, position - before)).reshape(2, PER_ARM).sum(axis=1)
        self._position = position.copy()
        changes = np.zeros(len(SIDES))
        for index, side in enumerate(SIDES):
            for stream in frames[side].streams():
                eye = self._eyes[side, stream.name]
                change = eye.look(stream, float(moved[index]))
                if stream.name == "colour":
                    changes[index] = change
                kind = self._judge(eye, stream, now_s - stream.time_s)
                if kind is not None:
                    text = f"the {side} camera's {stream.name} {kind[1]}"
                    findings.append(Finding(kind[0], Level.HOLD, text))
        if approaching and self._swapped(moved, changes):
            text = (
                "each camera's picture moves with the other arm: the cameras' serial numbers are swapped, or the"
                " arms' serial ports"
            )
            findings.append(Finding("swapped cameras", Level.RETREAT, text))
        # One finding of a kind is enough for a camera whose streams both fail.
        kinds: dict[tuple[str, str], Finding] = {}
        for one in findings:
            kinds.setdefault((one.kind, one.text.partition("'s ")[0]), one)
        return self._count(list(kinds.values()))

    def begin_approach(self) -> None:
        """Forgets how the pictures moved with the arms before."""
        self._votes.clear()

    def action(
        self, action: np.ndarray | None, reason: str = "the policy did not answer"
    ) -> list[Finding]:
        """Judges what the policy returned; None: it did not answer in time, for a reason."""
        reach = np.inf if action is None else float(np.abs(action).max())
        if reach <= 1 + ACTION_TOLERANCE:
            self._bad_actions = 0
            return []
        self._bad_actions += 1
        broken = self._bad_actions >= self.config.bad_actions
        if action is None:
            # A slow server may recover: patience decides, not a count.
            return self._count([Finding("late policy", Level.HOLD, reason)])
        level = Level.RETREAT if broken else Level.HOLD
        text = (
            f"the policy's action reaches {reach:.3g}, not within -1 to 1: it is in other units"
            if np.isfinite(reach)
            else "the policy's action is not finite"
        )
        return self._count([Finding("bad action", level, text)])

    def timing(self, duration_s: float) -> list[Finding]:
        """Judges how long a control step took."""
        if duration_s <= self.config.period_s:
            self._late = 0
            return []
        self._late += 1
        self.counts["missed deadline"] += 1
        if self._late < self.config.missed_deadlines:
            return []
        text = f"{self._late} control steps in a row took longer than {self.config.period_s} s"
        return self._count([Finding("slow loop", Level.HOLD, text)])

    def _faults(self, reading: Proprio) -> list[Finding]:
        faulty = np.flatnonzero(reading.hardware_error)
        if not faulty.size:
            return []
        names = ", ".join(f"{JOINTS[i]} ({int(reading.hardware_error[i]):#04x})" for i in faulty)
        words = "".join(f"; {one}" for one in reading.servo_faults)
        if reading.servo_faults:
            which = " ".join(f"--reboot {one.side}:{one.servo_id}" for one in reading.servo_faults)
            words += (
                f". Find the cause, support the arm, then: alohas2r torque-off --anywhere {which}"
            )
        return [Finding("motor fault", Level.FREEZE, f"hardware error in {names}{words}")]

    def _health(self, reading: Proprio) -> list[Finding]:
        # What was never read is no number, and neither hot nor weak.
        heats = np.where(np.isnan(reading.temperature_c), -np.inf, reading.temperature_c)
        supplies = np.where(np.isnan(reading.voltage_v), np.inf, reading.voltage_v)
        hottest, weakest = int(heats.argmax()), int(supplies.argmin())
        heat, volts = float(heats[hottest]), float(supplies[weakest])
        findings = []
        if heat >= self.config.temperature_note_c:
            too_hot = heat >= self.config.temperature_limit_c
            level = Level.RETREAT if too_hot else Level.NOTE
            findings.append(Finding("hot servo", level, f"{JOINTS[hottest]} is at {heat:.0f} C"))
        if volts < self.config.least_voltage_v:
            text = f"{JOINTS[weakest]} has {volts:.1f} V only"
            findings.append(Finding("low voltage", Level.RETREAT, text))
        return findings

    def _torque(self, reading: Proprio) -> list[Finding]:
        """Judges whether the servos still hold, and whether the two of a joint agree."""
        findings = []
        lost = np.zeros(len(JOINTS), bool)
        if reading.torque is not None:
            # A reading may be older than the moment torque went on: what was never on cannot go off.
            lost = self._driven & ~reading.torque
            self._driven = self._driven | reading.torque
        if lost.any():
            names = ", ".join(JOINTS[i] for i in np.flatnonzero(lost))
            text = f"torque went off by itself in {names}: a servo restarted, see its supply and its cables"
            findings.append(Finding("torque lost", Level.FREEZE, text))
        if reading.pair_gap is not None:
            gaps = np.abs(np.nan_to_num(reading.pair_gap))
            worst = int(gaps.argmax())
            if gaps[worst] > self.config.pair_gap:
                text = f"the two servos of {JOINTS[worst]} are {gaps[worst]:.2f} rad apart"
                findings.append(Finding("pair disagrees", Level.FREEZE, text))
        return findings

    def _tracking(self, reading: Proprio, command: np.ndarray) -> list[Finding]:
        error = np.where(IS_GRIPPER, 0.0, np.abs(reading.position - command))
        worst = int(error.argmax())
        self._strayed = self._strayed + 1 if error[worst] > self.config.tracking_error else 0
        if self._strayed < self.config.tracking_steps:
            return []
        text = f"{JOINTS[worst]} is {error[worst]:.2f} rad from its target"
        return [Finding("tracking error", Level.RETREAT, text)]

    def _judge(self, eye: _Eye, stream: Stream, age_s: float) -> tuple[str, str] | None:
        """Returns the kind of what is wrong with a stream, and its words; None: nothing."""
        config = self.config
        if age_s > config.frame_age_s:
            return "stale camera", f"picture is {age_s:.2f} s old"
        if stream.name == "depth" and not eye.plausible:
            return "broken depth", f"picture is not in metres: it reaches {eye.reach}"
        if eye.blank >= config.black_steps:
            nothing = "knows of nothing" if stream.name == "depth" else "is black"
            return "black camera", f"{nothing} in {eye.blank} pictures in a row"
        if eye.unchanged >= FROZEN_STEPS and eye.unchanged_travel > config.frozen_travel:
            return "frozen camera", "picture stays the same while its arm moves"
        return None

    def _swapped(self, moved: np.ndarray, changes: np.ndarray) -> bool:
        """Counts, for steps in which one arm alone moves, whether the other's picture changed.

        Only where one picture changes clearly more than the other: noise alone says nothing.
        """
        mover = int(moved.argmax())
        alone = moved[mover] > 0.008 and moved[mover] > 4 * moved[1 - mover]
        if alone and changes.max() > CLEARLY * changes.min():
            self._votes.append(bool(changes[1 - mover] > changes[mover]))
        return len(self._votes) >= 6 and sum(self._votes) > 0.75 * len(self._votes)

    def _count(self, findings: list[Finding]) -> list[Finding]:
        self.counts.update(finding.kind for finding in findings)
        return findings


class _Eye:
    """What one stream of one camera has shown lately.

    Attributes:
      blank: pictures in a row that are dark, or in which no depth is known.
      unchanged: pictures in a row that are the one before, by their number or to the last bit.
      unchanged_travel: how far the arm moved meanwhile (rad).
      plausible: whether the newest one can be a depth in metres; reach: its least and greatest value.
    """

    def __init__(self) -> None:
        self.blank = 0
        self.unchanged = 0
        self.unchanged_travel = 0.0
        self.plausible = True
        self.reach = ""
        self._before: Stream | None = None

    def look(self, stream: Stream, moved: float) -> float:
        """Takes a picture; returns how much it differs from the one before (mean difference)."""
        before, self._before = self._before, stream
        low, high = stream.picture.min(), stream.picture.max()
        if stream.name == "depth":
            # No wrist camera sees further than FAR_M; what is no number fails both comparisons.
            self.plausible = bool(low >= 0 and high <= FAR_M)
            self.reach = f"{low:.3g} to {high:.3g}"
            blank = np.count_nonzero(stream.picture) < LEAST_KNOWN * stream.picture.size
        else:
            blank = high < DARK
        self.blank = self.blank + 1 if blank else 0
        if not self.plausible:  # and nothing can be compared with it
            self._before = None
        if before is None or self._before is None:
            return 0.0
        change = float(np.abs(stream.picture.astype(float) - before.picture).mean())
        # A blank picture, or one of one value alone, is like the next; blank ones are judged by their number.
        same = stream.number == before.number or (change == 0 and low != high)
        same = same and not blank
        self.unchanged = self.unchanged + 1 if same else 0
        self.unchanged_travel = self.unchanged_travel + moved if same else 0.0
        return change
