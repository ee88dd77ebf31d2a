"""What every robot and camera offers, whether real, emulated or simulated.

A robot is two arms of seven joints each, left arm first: waist, shoulder, elbow, forearm_roll,
wrist_angle, wrist_rotate, gripper. Arm joints are in rad, the gripper in metres of finger travel,
exactly as the actuators of the scene. All times are seconds of the monotonic clock, which never
jumps, unlike the wall clock.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from alohas2r.embodiment.joints import two_fingers
from alohas2r.errors import RobotFault


class ServoFault(NamedTuple):
    """A servo that reports a hardware error.

    Attributes:
      side: "left" or "right".
      servo_id: its id on that arm's bus.
      name: its place in the arm, such as "elbow_shadow".
      words: what it reports, such as "overload".
    """

    side: str
    servo_id: int
    name: str
    words: str

    def __str__(self) -> str:
        """Says it as a person would."""
        return f"{self.side} servo {self.servo_id} ({self.name}) reports {self.words}"


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
      torque: [14] whether all servos of the joint have torque; None where that is not read.
      pair_gap: [14] by how much the two servos of a joint disagree about where it is (rad), 0 where there is one servo;
        None where that is not read.
      servo_faults: the servos that report hardware errors, in words.

    What has never been read is NaN.
    """

    time_s: float
    position: np.ndarray
    velocity: np.ndarray
    current: np.ndarray
    age_s: np.ndarray
    temperature_c: np.ndarray
    voltage_v: np.ndarray
    hardware_error: np.ndarray
    torque: np.ndarray | None = None
    pair_gap: np.ndarray | None = None
    servo_faults: tuple[ServoFault, ...] = ()

    def joint_position(self) -> np.ndarray:
        """Returns [2, 8] joint positions as the scene has them: six joints and two fingers."""
        return two_fingers(self.position)

    def joint_velocity(self) -> np.ndarray:
        """Returns [2, 8] joint velocities as the scene has them: six joints and two fingers."""
        return two_fingers(self.velocity)


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The newest colour and the newest depth picture of a wrist camera, cropped and scaled to the simulated camera.

    Each stream has its own time and number, because each can stop while the other goes on.

    Attributes:
      rgb: [H, W, 3] uint8.
      depth: [H, W] float32, metres along the optical axis; 0 where unknown.
      time_s: when the colour picture came (monotonic clock).
      number: the colour stream's frame counter.
      depth_time_s, depth_number: those of the depth stream; None: the same, as both were taken together.
      grey: [H, W] uint8 of the right imager, cropped by its own intrinsics; None of a camera that gives none.
      grey_time_s, grey_number: those of its stream, likewise.
    """

    rgb: np.ndarray
    depth: np.ndarray
    time_s: float
    number: int
    depth_time_s: float | None = None
    depth_number: int | None = None
    grey: np.ndarray | None = None
    grey_time_s: float | None = None
    grey_number: int | None = None

    def streams(self) -> tuple[Stream, ...]:
        """Returns its streams: colour, depth and, where there is one, grey."""

        def stream(
            name: str, picture: np.ndarray, time_s: float | None, number: int | None
        ) -> Stream:
            return Stream(
                name,
                picture,
                self.time_s if time_s is None else time_s,
                self.number if number is None else number,
            )

        found = [
            Stream("colour", self.rgb, self.time_s, self.number),
            stream("depth", self.depth, self.depth_time_s, self.depth_number),
        ]
        if self.grey is not None:
            found.append(stream("grey", self.grey, self.grey_time_s, self.grey_number))
        return tuple(found)


class Stream(NamedTuple):
    """One of a camera's streams, as it stands: "colour", "depth" or "grey", its picture, time and number."""

    name: str
    picture: np.ndarray
    time_s: float
    number: int


def check_command(enabled: bool, ctrl: np.ndarray) -> None:
    """Raises RobotFault unless torque is on and all targets [14] are finite."""
    if not enabled:
        raise RobotFault("Torque is off: call enable() before command().")
    if not np.isfinite(ctrl).all():
        raise RobotFault(f"A command must be finite; it has {ctrl}.")


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

    def setup_problems(self) -> tuple[str, ...]:
        """Returns what is set up otherwise than readings and commands rely on, each with its remedy.

        A robot that is entered to be moved refuses to be entered instead; what is left are the
        problems of one that only reads, such as a joint that is set up to turn the other way.
        """
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
        """Switches torque off. An arm that does not rest on something falls.

        Every servo that answers is switched off, whatever the others do.

        Raises:
          RobotFault: some did not confirm; the text names them.
        """
        ...


@runtime_checkable
class Rearming(Protocol):
    """A robot whose servos stop by themselves when they hear nothing, and can be told to go on."""

    def rearm(self) -> None:
        """Lets them move again, from where they are. Raises RobotFault if one does not confirm."""
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
