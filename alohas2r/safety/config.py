"""Limits of what may be commanded."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check
from alohas2r.embodiment import joints


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """Limits. Arm joints in rad, grippers in m of finger travel.

    A step of zero must always be allowed: an arm that may accelerate less in one control step than
    it may move could not stop in time, so `max_acceleration * period_s >= max_speed` is required.

    Attributes:
      period_s: control period.
      position_margin: distance kept from the ends of the arm joints' ranges.
      max_speed: of every joint's target, per second.
      max_acceleration: of every joint's target, per second squared.
      arm_clearance: least distance between the two arms' safety capsules (m).
      table_clearance: least height of links above the table (m).
      finger_table_clearance: the same for the fingers' own capsules; a little below zero, because
        targets slightly under the table are how fingers rest on it.
      tracking_error: largest distance of an arm joint from its target.
      tracking_steps: for how many steps in a row that may be exceeded.
      pair_gap: largest disagreement of the two servos of a joint about its position (rad).
      proprio_age_s: joint readings older than this are not acted on.
      silent_s: a servo silent for this long is a hardware fault.
      frame_age_s: pictures older than this are not acted on.
      black_steps: after how many black pictures in a row a camera counts as blind.
      frozen_travel: a picture that stays the same to the last bit while its arm moves this far
        counts as frozen.
      bad_actions: after how many unusable actions in a row the policy counts as broken.
      missed_deadlines: after how many late control steps in a row the arms are held.
      temperature_note_c: servo temperature worth a note.
      temperature_limit_c: servo temperature that is too hot to go on.
      least_voltage_v: supply voltage below which the arms are brought to rest.
      patience_s: how long a hold may last before the arms retreat.
    """

    period_s: float = joints.CONTROL_PERIOD_S
    position_margin: float = 0.02
    max_speed: float = 0.4
    max_acceleration: float = 16.0
    arm_clearance: float = 0.01
    table_clearance: float = 0.005
    finger_table_clearance: float = -0.005
    tracking_error: float = 0.3
    tracking_steps: int = 5
    pair_gap: float = 0.1
    proprio_age_s: float = 0.1
    silent_s: float = 0.5
    frame_age_s: float = 0.15
    black_steps: int = 4
    frozen_travel: float = 0.03
    bad_actions: int = 3
    missed_deadlines: int = 3
    temperature_note_c: float = 60.0
    temperature_limit_c: float = 72.0
    least_voltage_v: float = 10.5
    patience_s: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.period_s <= 0.2, "period_s must lie in (0, 0.2]")
        check(0 <= self.position_margin <= 0.2, "position_margin must lie in 0..0.2")
        check(0 < self.max_speed <= 3, "max_speed must lie in (0, 3]")
        check(
            self.max_acceleration * self.period_s >= self.max_speed,
            f"max_acceleration = {self.max_acceleration} must be at least max_speed / period_s ="
            f" {self.max_speed / self.period_s}, or the arm could not stop within one step",
        )
        check(-0.02 <= self.finger_table_clearance <= 0.05, "finger_table_clearance: -0.02..0.05")
        check(0 <= self.table_clearance <= 0.05, "table_clearance must lie in 0..0.05")
        check(0 <= self.arm_clearance <= 0.05, "arm_clearance must lie in 0..0.05")
        check(self.tracking_error > 0, "tracking_error must be positive")
        check(self.pair_gap > 0, "pair_gap must be positive")
        for name in ("tracking_steps", "black_steps", "bad_actions", "missed_deadlines"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1")
        check(0 < self.proprio_age_s < self.silent_s, "0 < proprio_age_s < silent_s must hold")
        check(self.frame_age_s > 0, "frame_age_s must be positive")
        check(self.patience_s >= 0, "patience_s must not be negative")
        check(
            self.temperature_note_c <= self.temperature_limit_c < 80,
            "temperature_note_c <= temperature_limit_c < 80, where servos shut down, must hold",
        )


# A policy's full action moves a target by 0.02 per step, and the next may be the opposite.
FULL = SafetyConfig()
SLOW = SafetyConfig(max_speed=0.15, max_acceleration=4.0)
