"""What the servos have said last, and how it becomes one reading of both arms."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.robots.base import Proprio, ServoFault
from alohas2r.robots.dynamixel.arm import (
    IDS,
    NO_OFFSETS,
    SERVO_BY_ID,
    SERVOS,
    GripperLinkage,
)
from alohas2r.robots.dynamixel.registers import (
    ALERT_BIT,
    CENTRE_TICK,
    CURRENT_UNIT_A,
    INPUT_VOLTAGE,
    PRESENT_CURRENT,
    PRESENT_POSITION,
    PRESENT_VELOCITY,
    RAD_PER_TICK,
    TEMPERATURE,
    VELOCITY_UNIT_RAD_S,
    VOLTAGE_UNIT_V,
    describe_error,
    signed_value,
)

MOTION = PRESENT_CURRENT.address, PRESENT_POSITION.address + 4 - PRESENT_CURRENT.address
HEALTH = INPUT_VOLTAGE.address, TEMPERATURE.address + 1 - INPUT_VOLTAGE.address
_JOINTS = np.array([servo.joint for servo in SERVOS])
_PAIRS = [
    (servo.joint, IDS.index(servo.id), IDS.index(servo.shadow_of))
    for servo in SERVOS
    if servo.shadow_of is not None
]


class Readings:
    """The last values of every servo of both arms; NaN where nothing is known yet.

    Attributes:
      position: [2, 7] rad; m of finger travel for the grippers.
    """

    def __init__(
        self,
        linkages: Sequence[GripperLinkage],
        offsets: Sequence[Sequence[float]] = (NO_OFFSETS, NO_OFFSETS),
    ) -> None:
        """Starts with nothing known.

        Args:
          linkages: the cranks of the left and the right gripper.
          offsets: [2, 6] by how much the joints' servos read too much (rad).
        """
        self._linkages, self._offsets = linkages, offsets
        arms, servos = (len(SIDES), PER_ARM), (len(SIDES), len(SERVOS))
        self.position = np.full(arms, np.nan)
        self._velocity = np.zeros(arms)
        self._current = np.zeros(arms)
        # Per servo rather than per joint.
        self._ticks = np.full(servos, np.nan)
        self._torque = np.full(servos, np.nan)
        self._temperature = np.full(servos, np.nan)
        self._voltage = np.full(servos, np.nan)
        self._error = np.zeros(servos, int)
        self._seen_s = np.full(servos, time.monotonic())
        self._asked_s = np.full(len(SIDES), time.monotonic())

    def silent_s(self, side: int) -> float:
        """Returns how much longer ago the quietest servo of an arm was heard than the newest."""
        return float(np.ptp(self._seen_s[side]))

    def ticks(self, side: int) -> dict[int, int]:
        """Returns the last known position of each servo of an arm, by id."""
        known = zip(IDS, self._ticks[side], strict=True)
        return {servo_id: int(tick) for servo_id, tick in known if np.isfinite(tick)}

    def ask(self, side: int) -> None:
        """Notes that an arm's servos are asked for their motion now."""
        self._asked_s[side] = time.monotonic()

    def take_motion(self, side: int, answers: Mapping[int, bytes]) -> None:
        """Takes currents, velocities and positions over."""
        start = PRESENT_CURRENT.address
        for index, servo in enumerate(SERVOS):
            data = answers.get(servo.id)
            if data is None:
                continue
            self._seen_s[side, index] = self._asked_s[side]
            tick = signed_value(data, PRESENT_POSITION, start)
            self._ticks[side, index] = tick
            if servo.shadow_of is not None:
                continue
            angle = (tick - CENTRE_TICK) * RAD_PER_TICK
            speed = signed_value(data, PRESENT_VELOCITY, start) * VELOCITY_UNIT_RAD_S
            if servo.joint == PER_ARM - 1:
                linkage = self._linkages[side]
                speed *= float(linkage.ratio(angle))
                angle = float(linkage.travel(angle))
            else:
                angle -= self._offsets[side][servo.joint]
            self.position[side, servo.joint] = angle
            self._velocity[side, servo.joint] = speed
            self._current[side, servo.joint] = (
                signed_value(data, PRESENT_CURRENT, start) * CURRENT_UNIT_A
            )

    def take_errors(self, side: int, raised: set[int], bits: Mapping[int, int]) -> None:
        """Takes hardware errors over.

        Args:
          side: of which arm.
          raised: ids of the servos that raise their alert.
          bits: what they say; of one that does not say it, only the alert is known.
        """
        for index, servo_id in enumerate(IDS):
            if servo_id in raised:
                self._error[side, index] = bits.get(servo_id) or ALERT_BIT
            else:
                self._error[side, index] = 0

    def take_health(self, side: int, answers: Mapping[int, bytes]) -> None:
        """Takes voltages and temperatures over."""
        start = INPUT_VOLTAGE.address
        for servo_id, data in answers.items():
            place = side, IDS.index(servo_id)
            self._voltage[place] = signed_value(data, INPUT_VOLTAGE, start) * VOLTAGE_UNIT_V
            self._temperature[place] = signed_value(data, TEMPERATURE, start)

    def take_torque(self, side: int, answers: Mapping[int, int]) -> None:
        """Takes over whether servos drive."""
        for servo_id, on in answers.items():
            self._torque[side, IDS.index(servo_id)] = on

    def proprio(self) -> Proprio:
        """Returns the reading: a joint is as old, hot, weak and faulty as the worst of its servos."""
        now_s = time.monotonic()
        arms = (len(SIDES), PER_ARM)
        oldest, lowest, driven = (np.full(arms, np.inf) for _ in range(3))
        hottest = np.full(arms, -np.inf)
        errors = np.zeros(arms, int)
        apart = np.zeros(arms)
        for side in range(len(SIDES)):
            np.minimum.at(oldest[side], _JOINTS, self._seen_s[side])
            np.minimum.at(lowest[side], _JOINTS, self._voltage[side])
            np.minimum.at(driven[side], _JOINTS, self._torque[side])
            np.maximum.at(hottest[side], _JOINTS, self._temperature[side])
            np.bitwise_or.at(errors[side], _JOINTS, self._error[side])
            for joint, shadow, master in _PAIRS:
                apart[side, joint] = self._ticks[side, shadow] - self._ticks[side, master]
        age_s = np.where(oldest >= self._asked_s[:, None], 0.0, now_s - oldest)
        apart = np.where(age_s > 0, 0.0, apart * RAD_PER_TICK)  # both must be of one reading
        return Proprio(
            time_s=now_s,
            position=self.position.reshape(-1).copy(),
            velocity=self._velocity.reshape(-1).copy(),
            current=self._current.reshape(-1).copy(),
            age_s=age_s.reshape(-1),
            temperature_c=hottest.reshape(-1),
            voltage_v=lowest.reshape(-1),
            hardware_error=errors.reshape(-1),
            torque=None if np.isnan(driven).any() else driven.reshape(-1) > 0,
            pair_gap=apart.reshape(-1),
            servo_faults=self._faults(),
        )

    def _faults(self) -> tuple[ServoFault, ...]:
        return tuple(
            ServoFault(
                SIDES[side],
                IDS[index],
                SERVO_BY_ID[IDS[index]].name,
                describe_error(int(self._error[side, index])),
            )
            for side, index in np.argwhere(self._error)
        )
