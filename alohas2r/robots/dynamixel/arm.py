"""The servos of one arm, and units of their joints."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from alohas2r.config import check
from alohas2r.robots.dynamixel.registers import CENTRE_TICK, RAD_PER_TICK, XM430_W350, XM540_W270


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


# Source: recipe, section 8; position limits from the published vx300s motor configuration.
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

    Source: recipe, section 8 (horn, rod); position of the finger links in the scene (offset).
    """

    horn: float = 0.022
    rod: float = 0.036
    offset: float = 0.0191

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.horn < self.rod, f"0 < horn < rod must hold: {self.horn}, {self.rod}")

    def travel(self, angle: Any) -> Any:
        """Returns the finger travel (m) at servo angles (rad)."""
        across = self.horn * np.cos(angle)
        return self.horn * np.sin(angle) + np.sqrt(self.rod**2 - across**2) - self.offset

    def angle(self, travel: Any) -> Any:
        """Returns the servo angle (rad) for finger travels (m); out of reach: the nearest angle.

        Source: law of cosines in the triangle of horn, rod and carriage.
        """
        distance = np.maximum(np.asarray(travel) + self.offset, 1e-6)
        sine = (distance**2 + self.horn**2 - self.rod**2) / (2 * distance * self.horn)
        return np.arcsin(np.clip(sine, -1.0, 1.0))

    def ratio(self, angle: Any) -> Any:
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
        plain = cls(offset=0.0)
        return cls(offset=float(plain.travel(angle)) - touching_travel)


def ticks_to_joint(ticks: Any, linkage: GripperLinkage) -> np.ndarray:
    """Converts servo positions [..., 7] of an arm to rad and, for the gripper, m of travel."""
    angles = (np.asarray(ticks, float) - CENTRE_TICK) * RAD_PER_TICK
    angles[..., -1] = linkage.travel(angles[..., -1])
    return angles


def joint_to_ticks(joints: Any, linkage: GripperLinkage) -> np.ndarray:
    """Converts an arm's positions [..., 7] to the nearest ticks within the servos' limits."""
    angles = np.array(joints, float)
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
      health_period_s: how often voltages and temperatures are read.
      linkage: the gripper's crank.
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
    health_period_s: float = 1.0
    linkage: GripperLinkage = dataclasses.field(default_factory=GripperLinkage)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.ports[0] != self.ports[1], f"both arms have the same port {self.ports[0]}")
        check(0 < self.reply_timeout_s < 1, "reply_timeout_s must lie in (0, 1)")
        check(0 <= self.retries <= 10, "retries must be in 0..10")
        check(0.06 <= self.watchdog_s <= 0.2, "watchdog_s must lie in 0.06..0.2")
        check(0 < self.max_speed_rad_s <= 10, "max_speed_rad_s must lie in (0, 10]")
        check(self.max_acceleration_rad_s2 >= 0, "max_acceleration_rad_s2 must not be negative")
        check(0 < self.gripper_current_a <= 3.2, "gripper_current_a must lie in (0, 3.2] A")
        check(self.health_period_s > 0, "health_period_s must be positive")
