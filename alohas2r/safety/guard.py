"""What stands between a policy and the servos.

`Guard` turns any wanted target into one that is safe to send: within the joint limits, no faster
and no more abruptly than allowed, and on a path that keeps clear of the table and the other arm.
`Monitor` looks at what comes back (joints, motors, pictures, timing) and reports findings.
`Reactions` turns findings into what to do, in this order: clamp, hold, guarded retreat to the sleep
pose, torque off there. A hardware fault ends in hold: torque is never cut in the air.
"""

from __future__ import annotations

import collections
import functools
from typing import NamedTuple

import numpy as np

from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.safety.config import FULL, SafetyConfig
from alohas2r.safety.model import NEITHER, Clearance, SafetyModel
from alohas2r.sim import scene


class Decision(NamedTuple):
    """A target that is safe to send.

    Attributes:
      command: [14] what to send.
      interventions: what had to be changed: "not finite", "joint limit", "speed", "acceleration",
        "collision". Empty: the wanted target as it was.
    """

    command: np.ndarray
    interventions: tuple[str, ...]


class _Checked(NamedTuple):
    """A step that was proposed, and what the safety model says of it.

    Attributes:
      step: [14].
      end: [14] the command at its end; clearance: that of this pose.
      offending: [2] which arms come too close; None: the step is clear.
    """

    step: np.ndarray
    end: np.ndarray
    clearance: Clearance
    offending: np.ndarray | None


class Guard:
    """Limits every target before it is sent.

    Each limit allows a step of zero, and with a step every shorter one; so whatever several limits
    leave of a step together still satisfies each of them.

    Attributes:
      config: the limits.
      counts: how often each intervention was necessary.
    """

    SWEEPS = 3  # halvings of a step's path that is not plainly clear
    _TOLERANCE = 1e-9  # differences of distances below this are rounding (m)
    _SLIDES = 6  # pairs of links that a step is led around
    _NUDGE = 1e-4  # of a joint, to see which way leads apart (rad)
    _FLAT = 1e-6  # square of a gradient of distance below which no joint leads apart (m^2 / rad^2)
    _SPARE = 1e-4  # by how much further apart than necessary (m)

    def __init__(self, config: SafetyConfig = FULL) -> None:
        """Builds the safety model; call `start` before `limit`."""
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        margin = np.where(IS_GRIPPER, 0.0, config.position_margin)
        self.config = config
        self.counts: collections.Counter[str] = collections.Counter()
        # The sleep pose lies at the very end of the shoulder's range.
        self._low = np.minimum(insert.ctrl_low[order] + margin, SLEEP_POSE)
        self._high = np.maximum(insert.ctrl_high[order] - margin, SLEEP_POSE)
        # A rounding error is no excess.
        self._most = config.max_speed * config.period_s * (1 + 1e-9)
        self._change = config.max_acceleration * config.period_s**2 * (1 + 1e-9)
        self._model = SafetyModel(config)
        self._clearance = self._model.clearance
        self._levers = _levers()
        self._last = np.zeros(len(JOINTS))
        self._step = np.zeros(len(JOINTS))
        self._last_clearance = Clearance(0.0, 0.0, NEITHER)

    @property
    def last(self) -> np.ndarray:
        """[14] the last command, from which the next one is limited."""
        return self._last.copy()

    @property
    def slack(self) -> float:
        """How far the last command is from collision, beyond the clearance (m)."""
        return self._last_clearance.slack

    def start(self, pose: np.ndarray) -> None:
        """Takes a pose [14] that is held as the last command: at rest there."""
        self._take(np.array(pose, float))
        self._step = np.zeros(len(JOINTS))

    def sent(self, command: np.ndarray) -> None:
        """Notes what the robot made of the last decision, from which the next step starts."""
        if np.abs(command - self._last).max() > self._TOLERANCE:
            self._step = self._step + command - self._last
            self._take(np.array(command, float))

    def limit(self, wanted: np.ndarray, measured: np.ndarray | None = None) -> Decision:
        """Turns a wanted target into one that is safe to send, and takes it as the last command.

        Args:
          wanted: [14] whatever the policy asks for, even if it is not finite.
          measured: [14] measured positions. The pose that the arms are about to reach, which lags
            behind the targets, is then checked for collisions as well.
        """
        interventions: list[str] = []
        last = self._last
        finite = np.isfinite(wanted)
        if not finite.all():
            interventions.append("not finite")
            wanted = np.where(finite, wanted, last)
        # A start beyond a limit may only lead back, not further out.
        low, high = np.minimum(self._low, last), np.maximum(self._high, last)
        command = np.minimum(np.maximum(wanted, low), high)
        if (command != wanted).any():
            interventions.append("joint limit")
        step = command - last
        slower = np.minimum(np.maximum(step, -self._most), self._most)
        if (slower != step).any():
            interventions.append("speed")
        smoother = np.minimum(
            np.maximum(slower, self._step - self._change), self._step + self._change
        )
        if (smoother != slower).any():
            interventions.append("acceleration")
        taken = self._avoid(smoother, measured)
        if taken.step is not smoother:
            interventions.append("collision")
        self.counts.update(interventions)
        self._commit(taken)
        return Decision(self._last.copy(), tuple(interventions))

    def _take(self, command: np.ndarray) -> None:
        self._last = command
        self._last_clearance = self._clearance(command)

    def _commit(self, checked: _Checked) -> None:
        """Takes a step; nothing before this changes anything."""
        self._last, self._last_clearance = checked.end, checked.clearance
        self._step = checked.step

    def _avoid(self, step: np.ndarray, measured: np.ndarray | None) -> _Checked:
        """Proposes one step after another until one is clear, and returns that.

        First the whole step; then the part of it that leads along the obstacle; then the arms that are too close keep
        their joints still and move only their fingers; then they do not move at all; then no arm does.
        """
        lag_before = None if measured is None else self._clearance(measured).slack
        whole = self._check(step, measured, lag_before)
        if whole.offending is None:
            return whole
        along = self._slide(step)
        if along is not None:
            checked = self._check(along, measured, lag_before)
            if checked.offending is None:
                return checked
        offending = whole.offending
        for _ in range(3):
            arms = np.repeat(offending, PER_ARM)
            still = np.where(arms & ~IS_GRIPPER, 0.0, step)
            if (still == step).all():
                still = np.where(arms, 0.0, step)
            if (still == step).all():
                break
            step = still
            checked = self._check(step, measured, lag_before)
            if checked.offending is None:
                return checked
            offending = checked.offending
        return _Checked(np.zeros_like(step), self._last, self._last_clearance, None)

    def _check(
        self, step: np.ndarray, measured: np.ndarray | None, lag_before: float | None
    ) -> _Checked:
        """Says of a step whether it stays clear, and if not, which arms come too close."""
        end = self._last + step
        reached = self._clearance(end)
        offending = self._offends(end, reached)
        if offending is None and measured is not None and lag_before is not None:
            lagging = self._clearance(measured + step)
            if lagging.slack < min(0.0, lag_before) - self._TOLERANCE:
                offending = lagging.sides
        return _Checked(step, end, reached, offending)

    def _slide(self, step: np.ndarray) -> np.ndarray | None:
        """Turns a step that comes too close into one along the obstacle, or returns None if it finds none.

        It stays within the limits of range, speed and acceleration as far as standing still does.

        Source: projection onto the linearized constraint, as in Faverjon and Tournassoud, A local based approach for
        path planning of manipulators with a high number of degrees of freedom (1987).
        """
        least = -self._TOLERANCE
        if self._last_clearance.slack < least:  # too close already, and only to be left
            return None
        slowest = np.maximum(np.minimum(0.0, self._step - self._change), -self._most)
        fastest = np.minimum(np.maximum(0.0, self._step + self._change), self._most)
        low, high = np.minimum(self._low, self._last), np.maximum(self._high, self._last)
        for _ in range(self._SLIDES):
            end = self._last + step
            pair, slack = self._model.closest(end)
            if slack >= least:
                return step
            gradient = np.zeros_like(step)
            for joint in np.flatnonzero(~IS_GRIPPER):
                beside = end.copy()
                beside[joint] += self._NUDGE
                gradient[joint] = (self._model.between(beside, pair) - slack) / self._NUDGE
            square = float(gradient @ gradient)
            if square < self._FLAT:
                return None
            step = step + gradient * ((least - slack + self._SPARE) / square)
            step = np.clip(self._last + np.clip(step, slowest, fastest), low, high) - self._last
        return step

    def _offends(self, end: np.ndarray, after: Clearance) -> np.ndarray | None:
        """Returns which arms come too close on the way to a pose, or None if none does.

        A pose that is too close already may be left, but not worsened.
        """
        before = self._last_clearance
        least = min(0.0, before.slack) - self._TOLERANCE
        if after.slack < least:
            return after.sides
        # No point of an arm moves further than this.
        moved = np.abs(end - self._last) * self._levers
        paths = (float(moved[:PER_ARM].sum()), float(moved[PER_ARM:].sum()))
        return self._sweep(self._last, before, end, after, paths, least, self.SWEEPS)

    def _sweep(
        self,
        start: np.ndarray,
        before: Clearance,
        end: np.ndarray,
        after: Clearance,
        paths: tuple[float, float],
        least: float,
        depth: int,
    ) -> np.ndarray | None:
        """Looks between two clear poses, as far as they are too near an obstacle to be sure."""
        together = sum(paths)
        table_is_clear = before.table + after.table - max(paths) >= 2 * least
        arms_are_clear = before.arms + after.arms - together >= 2 * least
        if (table_is_clear and arms_are_clear) or depth == 0 or together < 0.01:
            return None
        middle = (start + end) / 2
        between = self._clearance(middle)
        if between.slack < least:
            return between.sides
        half = (paths[0] / 2, paths[1] / 2)
        first = self._sweep(start, before, middle, between, half, least, depth - 1)
        if first is not None:
            return first
        return self._sweep(middle, between, end, after, half, least, depth - 1)


@functools.cache
def _levers() -> np.ndarray:
    """Returns [14] how far a unit step of each joint moves any point of its arm at most (m).

    The reach from each joint to the fingertips along the stretched arm, links' thickness included.
    """
    source = scene.load("insert").model
    levers = []
    for side in SIDES:
        bodies = [int(source.joint(f"{side}/{joint}").bodyid[0]) for joint in joints.ARM_JOINTS]
        finger = int(source.joint(f"{side}/{joints.FINGER_JOINTS[0]}").bodyid[0])
        palm = int(source.body_parentid[finger])
        chain = [*bodies, palm, finger]
        # From the fingertips back: each joint's lever is the next one's plus the link between.
        reach = 0.1 + float(np.linalg.norm(source.body_pos[finger]))
        reach += float(np.linalg.norm(source.body_pos[palm]))
        along = [reach]
        for body in reversed(chain[1:6]):
            reach += float(np.linalg.norm(source.body_pos[body]))
            along.append(reach)
        # Roll joints turn the links behind them about an axis that runs along the arm.
        levers += [*reversed(along), 1.0]
    return np.array(levers)
