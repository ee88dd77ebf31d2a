"""What every robot and camera offers, whether real, emulated or simulated.

A robot is two arms of seven joints each, left arm first: waist, shoulder, elbow, forearm_roll,
wrist_angle, wrist_rotate, gripper. Arm joints are in rad, the gripper in metres of finger travel,
exactly as the actuators of the scene. All times are seconds of the monotonic clock, which never
jumps, unlike the wall clock.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from alohas2r.embodiment.joints import two_fingers


@dataclasses.dataclass(frozen=True, eq=False)
class Proprio:
    """One reading of both arms.

    Attributes:
      time_s: when the answers had arrived (monotonic clock).
      position: [14] rad; m of finger travel for the grippers.
      velocity: [14] rad/s; m/s for the grippers.
      current: [14] A, positive along the joint; that of the commanded servo of a pair.
      age_s: [14] how old each value is at `time_s`; 0 unless its servo failed to answer.
      temperature_c: [14] degrees Celsius, the hottest servo of each joint.
      voltage_v: [14] supply voltage, the lowest of the joint's servos.
      hardware_error: [14] the error bits of the joint's servos, or-ed (0: none).
    """

    time_s: float
    position: np.ndarray
    velocity: np.ndarray
    current: np.ndarray
    age_s: np.ndarray
    temperature_c: np.ndarray
    voltage_v: np.ndarray
    hardware_error: np.ndarray

    def joint_position(self) -> np.ndarray:
        """Returns [2, 8] joint positions as the scene has them: six joints and two fingers."""
        return two_fingers(self.position)

    def joint_velocity(self) -> np.ndarray:
        """Returns [2, 8] joint velocities as the scene has them: six joints and two fingers."""
        return two_fingers(self.velocity)


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a wrist camera, cropped and scaled to the simulated camera.

    Attributes:
      rgb: [H, W, 3] uint8.
      depth: [H, W] float32, metres along the optical axis; 0 where unknown.
      time_s: when it was taken (monotonic clock).
      number: the camera's frame counter.
    """

    rgb: np.ndarray
    depth: np.ndarray
    time_s: float
    number: int


@runtime_checkable
class Robot(Protocol):
    """Two arms. Entering the context connects and sets up without moving or powering anything.

    Leaving it closes the connection and leaves torque as it is: an arm that holds keeps holding.
    """

    def __enter__(self) -> Self:
        """Connects. Raises RobotFault if something is missing or not as expected."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects; arms that hold keep holding."""
        ...

    def read(self) -> Proprio:
        """Reads both arms. Raises RobotFault when a bus is gone; silent servos only grow old."""
        ...

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sends targets [14] and returns what was sent, from which the next target starts."""
        ...

    def stop(self) -> None:
        """Holds both arms where they are; torque stays on. Safe to call at any time."""
        ...

    def enable(self) -> None:
        """Switches torque on; the arms hold their present pose."""
        ...

    def disable(self) -> None:
        """Switches torque off. An arm that does not rest on something falls."""
        ...


@runtime_checkable
class Camera(Protocol):
    """One wrist camera."""

    name: str

    def __enter__(self) -> Self:
        """Starts streaming and waits for the first pictures."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops streaming."""
        ...

    def read(self, max_age_s: float) -> Frame:
        """Returns the newest picture.

        Raises:
          RobotFault: there is none younger than `max_age_s`.
        """
        ...
