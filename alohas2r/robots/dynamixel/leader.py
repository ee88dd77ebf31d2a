"""A leader arm, a WidowX 250 S that a person moves by hand.

Nothing is ever written to it: reading alone cannot switch its torque on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from alohas2r.embodiment.joints import PER_ARM
from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import Servo
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.discovery import discover
from alohas2r.robots.dynamixel.registers import (
    CENTRE_TICK,
    DRIVE_MODE,
    PRESENT_POSITION,
    RAD_PER_TICK,
    TORQUE_ENABLE,
    XL430_W250,
    XM430_W350,
    XM540_W270,
)

# Source: the published wx250s motor configuration of Interbotix.
LEADER_SERVOS = (
    Servo(1, "waist", 0, XM430_W350, False, None, 0, 4095),
    Servo(2, "shoulder", 1, XM430_W350, False, None, 819, 3345),
    Servo(3, "shoulder_shadow", 1, XM430_W350, True, 2, 819, 3345),
    Servo(4, "elbow", 2, XM430_W350, False, None, 648, 3094),
    Servo(5, "elbow_shadow", 2, XM430_W350, True, 4, 648, 3094),
    Servo(6, "forearm_roll", 3, XM430_W350, False, None, 0, 4095),
    Servo(7, "wrist_angle", 4, XM430_W350, True, None, 910, 3447),
    Servo(8, "wrist_rotate", 5, XL430_W250, False, None, 0, 4095),
    Servo(9, "gripper", 6, XL430_W250, False, None, 0, 4095),
)
# By how much a leader's gripper turns from closed to open (rad): the least of what ALOHA's published code has for
# its leaders (-1.65 .. -0.8; -0.0552 .. 0.8298; -0.6842 .. 0.3083), so that a closed hand closes the follower.
GRIPPER_TRAVEL_RAD = 0.85
LOST_S = 0.25  # without an answer of a joint, the arm is gone
_IDS = tuple(servo.id for servo in LEADER_SERVOS)
_MASTERS = tuple(servo for servo in LEADER_SERVOS if servo.shadow_of is None)


class LeaderArm:
    """Reads where a person's hand holds a leader arm.

    Args:
      port: its serial port.
      reply_timeout_s: how long to wait for an answer beyond its time on the wire.
    """

    def __init__(self, port: str, reply_timeout_s: float = 0.004) -> None:
        self.port = port
        self._bus = Bus(port, reply_timeout_s=reply_timeout_s)
        self._signs = np.ones(PER_ARM)
        self._position = np.full(PER_ARM, np.nan)
        self._heard_s = np.zeros(PER_ARM)
        self._asked_s = -math.inf

    def open(self) -> None:
        """Connects, and makes sure that it is a leader without torque.

        Raises:
          RobotFault: it is missing, in use, no leader, or drives.
        """
        adapter.check_latency(self.port, "a leader arm")
        self._bus.open()
        try:
            self._check_servos()
            self._check_torque()
            self._signs = self._directions()
            self._position[:] = np.nan
            self.read()
            if np.isnan(self._position).any():
                raise RobotFault(f"{self.port}: not all of the leader's joints answer; try again.")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnects."""
        self._bus.close()

    def read(self) -> np.ndarray:
        """Returns where the joints are [7] (rad, as the follower's turn; the gripper's servo opens with more).

        A joint that does not answer stays where it was for a moment.

        Raises:
          RobotFault: the port is gone, or a joint has not answered for `LOST_S`.
        """
        ids = [servo.id for servo in _MASTERS]
        asked_s = time.monotonic()
        if asked_s - self._asked_s > LOST_S:  # nobody asked meanwhile: that is not its silence
            self._heard_s[:] = asked_s
        self._asked_s = asked_s
        try:
            ticks = self._bus.read_all(ids, PRESENT_POSITION, retries=0)
        except RobotFault as fault:
            raise RobotFault(
                f"The leader arm on {self.port} is gone: check its USB cable and its adapter."
            ) from fault
        for place, servo in enumerate(_MASTERS):
            if servo.id in ticks:
                turned = (ticks[servo.id] - CENTRE_TICK) * RAD_PER_TICK
                self._position[place] = self._signs[place] * turned
                self._heard_s[place] = asked_s
        if asked_s - self._heard_s.min() > LOST_S:
            silent = servo_text(_MASTERS[int(self._heard_s.argmin())].id)
            raise RobotFault(
                f"The leader arm on {self.port} does not answer any more ({silent}): check its power and cables."
            )
        return self._position.copy()

    def _check_servos(self) -> None:
        models = {servo.id: servo.model for servo in discover(self._bus, _IDS)}
        missing = ", ".join(str(servo_id) for servo_id in _IDS if servo_id not in models)
        if missing:
            raise RobotFault(
                f"{self.port}: no answer from servo {missing} of the leader arm's 9. Is its power on, and is this its"
                " adapter? Ids must be 1..9 and the baud rate 1 Mbps."
            )
        if XM540_W270 in models.values():
            raise RobotFault(
                f"{self.port} is a follower (its servos are XM540-W270), not a leader arm; name the leaders' ports in"
                " the robot file: [left_leader] port."
            )

    def _check_torque(self) -> None:
        torque = self._every(TORQUE_ENABLE.address, "Torque_Enable")
        driven = ", ".join(servo_text(servo_id) for servo_id, on in torque.items() if on)
        if driven:
            raise RobotFault(
                f"The leader arm on {self.port} holds itself ({driven} has torque), so that no hand can move it. Close"
                " the program that drives it, hold the arm, and switch its power off and on."
            )

    def _directions(self) -> np.ndarray:
        """Returns [7] which way a joint turns with more ticks: as the servos are set up, or else the other way."""
        modes = self._every(DRIVE_MODE.address, "Drive_Mode")
        return np.array(
            [1.0 if bool(modes[one.id] & 1) == one.reverse else -1.0 for one in _MASTERS]
        )

    def _every(self, address: int, name: str) -> Mapping[int, int]:
        """Returns a byte of every servo."""
        answers = self._bus.sync_read(_IDS, address, 1)
        if len(answers) < len(_IDS):
            raise RobotFault(
                f"{self.port}: not every servo of the leader says its {name}; try again."
            )
        return {servo_id: data[0] for servo_id, data in sorted(answers.items())}
