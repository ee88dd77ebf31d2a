"""The servos of one arm, and units of their joints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from alohas2r.config import check
from alohas2r.embodiment.joints import ARM_JOINTS
from alohas2r.robots.dynamixel.registers import (
    BAUD_RATES,
    CENTRE_TICK,
    RAD_PER_TICK,
    XM430_W350,
    XM540_W270,
)


class Servo(NamedTuple):
    """What a servo of an arm must be."""

    id: int
    name: str
    joint: int  # 0..6, index into the arm's joints
    model: int
    reverse: bool  # Drive_Mode: turns the other way round
    shadow_of: int | None  # id of the master whose packets it obeys
    low: int  # position limits (ticks)
    high: int


# Source: the published vx300s motor configuration of Interbotix.
SERVOS = (
    Servo(1, "waist", 0, XM540_W270, False, None, 0, 4095),
    Servo(2, "shoulder", 1, XM540_W270, True, None, 841, 2867),
    Servo(3, "shoulder_shadow", 1, XM540_W270, False, 2, 841, 2867),
    Servo(4, "elbow", 2, XM540_W270, True, None, 898, 3094),
    Servo(5, "elbow_shadow", 2, XM540_W270, False, 4, 898, 3094),
    Servo(6, "forearm_roll", 3, XM540_W270, False, None, 0, 4095),
    Servo(7, "wrist_angle", 4, XM540_W270, True, None, 830, 3504),
    Servo(8, "wrist_rotate", 5, XM430_W350, False, None, 0, 4095),
    Servo(9, "gripper", 6, XM430_W350, False, None, 0, 4095),
)
IDS = tuple(servo.id for servo in SERVOS)
MASTERS = tuple(servo for servo in SERVOS if servo.shadow_of is None)
SERVO_BY_ID = {servo.id: servo for servo in SERVOS}


@dataclasses.dataclass(frozen=True)
class GripperLinkage:
    """The crank that turns the gripper servo's angle into the travel of each finger.

    The crank gives the distance of a finger's carriage from the gripper's middle; the scene counts
    travel from where its slide joint has zero, `offset` away from the middle. Other fingers than
    the scene's touch each other at another angle: `closed_at` finds the offset for them.

    Attributes:
      horn: length of the servo horn (m).
      rod: length of the connecting rod (m).
      offset: distance of the finger carriage from the middle at travel zero (m).

    Source: the published ALOHA code's gripper constants (horn, rod: see the test that compares
    them); position of the finger links in the scene (offset).
    """

    horn: float = 0.022
    rod: float = 0.036
    offset: float = 0.0191

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.horn < self.rod, f"0 < horn < rod must hold: {self.horn}, {self.rod}")
        check(abs(self.offset) < 0.1, f"offset = {self.offset} m must lie in (-0.1, 0.1)")

    def travel(self, angle: ArrayLike) -> np.ndarray:
        """Returns the finger travel (m) at servo angles (rad)."""
        across = self.horn * np.cos(angle)
        return self.horn * np.sin(angle) + np.sqrt(self.rod**2 - across**2) - self.offset

    def angle(self, travel: ArrayLike) -> np.ndarray:
        """Returns the servo angle (rad) for finger travels (m); out of reach: the nearest angle.

        Source: law of cosines in the triangle of horn, rod and carriage.
        """
        distance = np.maximum(np.asarray(travel) + self.offset, 1e-6)
        sine = (distance**2 + self.horn**2 - self.rod**2) / (2 * distance * self.horn)
        return np.arcsin(np.clip(sine, -1.0, 1.0))

    def ratio(self, angle: ArrayLike) -> np.ndarray:
        """Returns the derivative of travel by angle (m/rad)."""
        across = self.horn * np.cos(angle)
        return across * (1 + self.horn * np.sin(angle) / np.sqrt(self.rod**2 - across**2))

    @classmethod
    def closed_at(cls, angle: float, touching_travel: float = 0.0079) -> GripperLinkage:
        """Returns the linkage of a gripper whose closed fingers were measured at a servo angle.

        Args:
          angle: servo angle (rad) at which the fingers just touch.
          touching_travel: travel (m) at which the scene's fingers touch.
        """
        return cls(offset=float(cls(offset=0.0).travel(angle)) - touching_travel)

    @classmethod
    def measured(cls, angle: float) -> GripperLinkage:
        """Returns the linkage of a gripper as somebody typed in at which angle it closes.

        Raises:
          ConfigError: it is no angle in rad, or fingers that touch there do not open far enough.
        """
        check(abs(angle) <= math.pi / 2, f"gripper_closed_rad = {angle:g} {_in_rad(angle)}")
        linkage = cls.closed_at(angle)
        widest = float(linkage.travel(math.pi / 2))
        check(
            widest >= OPEN_M - 0.001,
            f"gripper_closed_rad = {angle:g}: fingers that touch there open to"
            f" {1000 * widest:.0f} mm each, not {1000 * OPEN_M:.0f} mm. Close the gripper by hand"
            " without torque and read servo 9 again (180 degrees in Dynamixel Wizard are 0 rad).",
        )
        return linkage


# Travel of each finger of the scene's grippers when open (m). Source: the actuators' range.
OPEN_M = 0.037


def _in_rad(value: float) -> str:
    """Says that an angle must be in rad, and what it is if it is in degrees or ticks."""
    text = "must be an angle in rad between -1.57 and 1.57, 0 at the servo's centre"
    if float(value).is_integer() and CENTRE_TICK / 2 <= value <= CENTRE_TICK * 1.5:
        return f"{text}. In ticks it is {(value - CENTRE_TICK) * RAD_PER_TICK:.2f} rad."
    if 90 <= value <= 270:
        wizard = math.radians(value - 180)
        return f"{text}. In degrees as Dynamixel Wizard shows them it is {wizard:.2f} rad."
    if 4 <= abs(value) <= 90:
        return f"{text}. In degrees from the centre it is {math.radians(value):.2f} rad."
    return f"{text}."


NO_OFFSETS = (0.0,) * len(ARM_JOINTS)
MOST_OFFSET_RAD = 0.15  # more is a horn that was mounted elsewhere, or a Homing_Offset


def ticks_to_joint(
    ticks: ArrayLike, linkage: GripperLinkage, offsets: Sequence[float] = NO_OFFSETS
) -> np.ndarray:
    """Converts servo positions [..., 7] of an arm to rad and, for the gripper, m of travel.

    Args:
      ticks: the positions.
      linkage: the gripper's crank.
      offsets: [6] by how much each joint's servo reads too much (rad).
    """
    angles = (np.asarray(ticks, float) - CENTRE_TICK) * RAD_PER_TICK
    angles[..., :-1] -= offsets
    angles[..., -1] = linkage.travel(angles[..., -1])
    return angles


def joint_to_ticks(
    joints: ArrayLike, linkage: GripperLinkage, offsets: Sequence[float] = NO_OFFSETS
) -> np.ndarray:
    """Converts an arm's positions [..., 7] to the nearest ticks within the servos' limits; see `ticks_to_joint`."""
    angles = np.array(joints, float)
    angles[..., :-1] += offsets
    angles[..., -1] = linkage.angle(angles[..., -1])
    ticks = np.rint(angles / RAD_PER_TICK + CENTRE_TICK).astype(int)
    return np.clip(ticks, [servo.low for servo in MASTERS], [servo.high for servo in MASTERS])


@dataclasses.dataclass(frozen=True)
class DynamixelConfig:
    """How the arms are connected and set up.

    Attributes:
      ports: serial ports of the left and the right arm.
      baudrate: of both buses.
      reply_timeout_s: how long to wait for an answer beyond its time on the wire. It must exceed
        the latency timer of the USB adapter, which is to be set from 16 ms to 1 ms.
      retries: how often a packet that was lost or damaged is sent again.
      watchdog_s: a servo that hears no packet for this long stops by itself.
      max_speed_rad_s: Profile_Velocity of the arm joints; the gripper has none.
      max_acceleration_rad_s2: Profile_Acceleration of the arm joints; 0: none.
      gripper_current_a: limit of the gripper's current, hence of its force.
      gains: position P, I and D gain of every servo.
      health_period_s: how often each arm's voltages and temperatures are read; 0: as often as
        there is time, with every second reading.
      linkages: the cranks of the left and the right gripper.
      joint_offsets_rad: by how much the servos of each arm's six joints read too much.
    """

    ports: tuple[str, str] = ("/dev/ttyDXL_follower_left", "/dev/ttyDXL_follower_right")
    baudrate: int = 1_000_000
    reply_timeout_s: float = 0.004
    retries: int = 2
    watchdog_s: float = 0.12
    max_speed_rad_s: float = 3.14
    max_acceleration_rad_s2: float = 0.0
    gripper_current_a: float = 0.8
    gains: tuple[int, int, int] = (800, 0, 0)
    health_period_s: float = 0.0
    linkages: tuple[GripperLinkage, GripperLinkage] = (GripperLinkage(), GripperLinkage())
    joint_offsets_rad: tuple[tuple[float, ...], tuple[float, ...]] = (NO_OFFSETS, NO_OFFSETS)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.ports[0] != self.ports[1], f"both arms have the same port {self.ports[0]}")
        check(
            self.baudrate in BAUD_RATES.values(),
            f"baudrate = {self.baudrate} must be one of {', '.join(map(str, BAUD_RATES.values()))}",
        )
        _within("reply_timeout_s", self.reply_timeout_s, 0.001, 1.0, "s")
        check(0 <= self.retries <= 10, f"retries = {self.retries} must be in 0..10")
        _within("watchdog_s", self.watchdog_s, 0.06, 0.2, "s")
        _within("max_speed_rad_s", self.max_speed_rad_s, 0.1, 10.0, "rad/s")
        _within("max_acceleration_rad_s2", self.max_acceleration_rad_s2, 0.0, 1000.0, "rad/s²")
        _within("gripper_current_a", self.gripper_current_a, 0.1, 3.2, "A")
        check(
            all(0 <= gain <= 16_383 for gain in self.gains),
            f"gains = {self.gains} must each be in 0..16383",
        )
        _within("health_period_s", self.health_period_s, 0.0, 10.0, "s")
        for offsets in self.joint_offsets_rad:
            check_offsets(offsets)


def check_offsets(offsets: Sequence[float]) -> None:
    """Checks the offsets of an arm's joints.

    Raises:
      ConfigError: they are not six, or one is out of range.
    """
    check(
        len(offsets) == len(ARM_JOINTS) and all(abs(one) <= MOST_OFFSET_RAD for one in offsets),
        f"joint_offsets_rad = {tuple(offsets)} must be {len(ARM_JOINTS)} angles ({', '.join(ARM_JOINTS)}) within"
        f" {MOST_OFFSET_RAD} rad; more is a horn to be mounted anew, or a Homing_Offset (alohas2r setup-arms)",
    )


def _within(name: str, value: float, low: float, high: float, unit: str) -> None:
    check(low <= value <= high, f"{name} = {value:g} must lie in {low:g}..{high:g} {unit}")
