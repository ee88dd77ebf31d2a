"""Watches readings and pictures for what should stop a run."""

from __future__ import annotations

import collections
import enum
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.robots.base import Frame, Proprio
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
        self._strayed = 0
        self._bad_actions = 0
        self._late = 0
        self._eyes = {side: _Eye() for side in SIDES}
        self._position: np.ndarray | None = None
        self._votes: collections.deque[bool] = collections.deque(maxlen=24)

    def proprio(self, reading: Proprio, command: np.ndarray | None) -> list[Finding]:
        """Judges a reading of the joints.

        Args:
          reading: what the robot returned.
          command: [14] the target that was in force, or None if the arms are not powered.
        """
        found: list[Finding] = []
        config = self.config
        faulty = np.flatnonzero(reading.hardware_error)
        if faulty.size:
            names = ", ".join(
                f"{JOINTS[i]} ({int(reading.hardware_error[i]):#04x})" for i in faulty
            )
            found.append(Finding("motor fault", Level.FREEZE, f"hardware error in {names}"))
        if not np.isfinite(reading.position).all():
            found.append(Finding("bad reading", Level.FREEZE, "joint positions are not finite"))
            return self._count(found)
        oldest = int(reading.age_s.argmax())
        age_s = float(reading.age_s[oldest])
        if age_s > config.proprio_age_s:
            level = Level.FREEZE if age_s > config.silent_s else Level.HOLD
            text = f"{JOINTS[oldest]} was last heard {age_s:.2f} s ago"
            found.append(Finding("silent servo", level, text))
        found += self._health(reading)
        if command is not None:
            error = np.where(IS_GRIPPER, 0.0, np.abs(reading.position - command))
            worst = int(error.argmax())
            self._strayed = self._strayed + 1 if error[worst] > config.tracking_error else 0
            if self._strayed >= config.tracking_steps:
                text = f"{JOINTS[worst]} is {error[worst]:.2f} rad from its target"
                found.append(Finding("tracking error", Level.RETREAT, text))
        return self._count(found)

    def frames(
        self, frames: Mapping[str, Frame], position: np.ndarray, now_s: float
    ) -> list[Finding]:
        """Judges the pictures of both wrist cameras.

        Args:
          frames: the newest picture of "left" and "right".
          position: [14] measured positions, which tell whether pictures must have changed.
          now_s: the monotonic clock.
        """
        found: list[Finding] = []
        before = position if self._position is None else self._position
        moved = np.abs(np.where(IS_GRIPPER, 0.0, position - before)).reshape(2, PER_ARM).sum(axis=1)
        self._position = position.copy()
        changes = np.zeros(len(SIDES))
        for index, side in enumerate(SIDES):
            frame = frames[side]
            age_s = now_s - frame.time_s
            if age_s > self.config.frame_age_s:
                text = f"the {side} camera's picture is {age_s:.2f} s old"
                found.append(Finding("stale camera", Level.HOLD, text))
            eye = self._eyes[side]
            changes[index] = eye.look(frame, float(moved[index]))
            if eye.unchanged_travel > self.config.frozen_travel:
                text = f"the {side} camera shows the same picture while its arm moves"
                found.append(Finding("frozen camera", Level.HOLD, text))
            if eye.black >= self.config.black_steps:
                text = f"the {side} camera has been black for {eye.black} pictures"
                found.append(Finding("black camera", Level.HOLD, text))
        if self._swapped(moved, changes):
            text = "each camera's picture moves with the other arm: swap the serial numbers"
            found.append(Finding("swapped cameras", Level.RETREAT, text))
        return self._count(found)

    def action(self, action: np.ndarray | None) -> list[Finding]:
        """Judges what the policy returned; None: it did not answer in time."""
        if action is not None and np.isfinite(action).all():
            self._bad_actions = 0
            return []
        self._bad_actions += 1
        broken = self._bad_actions >= self.config.bad_actions
        if action is None:
            # A slow server may recover: patience decides, not a count.
            return self._count([Finding("late policy", Level.HOLD, "the policy did not answer")])
        level = Level.RETREAT if broken else Level.HOLD
        return self._count([Finding("bad action", level, "the policy's action is not finite")])

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

    def _health(self, reading: Proprio) -> list[Finding]:
        hottest, weakest = int(reading.temperature_c.argmax()), int(reading.voltage_v.argmin())
        heat, volts = float(reading.temperature_c[hottest]), float(reading.voltage_v[weakest])
        found = []
        if heat >= self.config.temperature_note_c:
            too_hot = heat >= self.config.temperature_limit_c
            level = Level.RETREAT if too_hot else Level.NOTE
            found.append(Finding("hot servo", level, f"{JOINTS[hottest]} is at {heat:.0f} C"))
        if volts < self.config.least_voltage_v:
            text = f"{JOINTS[weakest]} has {volts:.1f} V only"
            found.append(Finding("low voltage", Level.RETREAT, text))
        return found

    def _swapped(self, moved: np.ndarray, changes: np.ndarray) -> bool:
        """Counts, for steps in which one arm alone moves, whether the other's picture changed."""
        mover = int(moved.argmax())
        if moved[mover] > 0.008 and moved[mover] > 4 * moved[1 - mover] and changes.max() > 0:
            self._votes.append(bool(changes[1 - mover] > changes[mover]))
        return len(self._votes) >= 6 and sum(self._votes) > 0.75 * len(self._votes)

    def _count(self, found: list[Finding]) -> list[Finding]:
        self.counts.update(finding.kind for finding in found)
        return found


class _Eye:
    """What one camera has shown lately."""

    def __init__(self) -> None:
        self.black = 0
        self.unchanged_travel = 0.0
        self._frame: Frame | None = None

    def look(self, frame: Frame, moved: float) -> float:
        """Takes a picture; returns how much it differs from the one before (grey levels)."""
        before, self._frame = self._frame, frame
        dark = frame.rgb.max() < 8 and not frame.depth.any()
        self.black = self.black + 1 if dark else 0
        if before is None:
            return 0.0
        change = float(np.abs(frame.rgb.astype(int) - before.rgb).mean())
        # Black pictures are all alike; they are judged by their number.
        same = not dark and change == 0 and np.array_equal(frame.depth, before.depth)
        self.unchanged_travel = self.unchanged_travel + moved if same else 0.0
        return change
