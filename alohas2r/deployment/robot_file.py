"""The robot file: what is known about one pair of arms, so that nothing has to be typed twice.

One TOML file, `robot.toml`, that all commands around real arms read; options on the command line
come before it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tomllib
from collections.abc import Sequence
from typing import Literal, TypedDict

from alohas2r.config import check, from_dict, to_dict
from alohas2r.core.files import write_atomic
from alohas2r.embodiment.joints import ARM_JOINTS, JOINTS, SIDES
from alohas2r.errors import ConfigError
from alohas2r.robots.dynamixel.arm import (
    NO_OFFSETS,
    DynamixelConfig,
    GripperLinkage,
    check_offsets,
)
from alohas2r.robots.dynamixel.leader import GRIPPER_TRAVEL_RAD
from alohas2r.robots.realsense.config import STREAM, check_stream

DEFAULT = pathlib.Path("robot.toml")
VARIABLE = "ALOHAS2R_ROBOT"  # names another file


@dataclasses.dataclass(frozen=True)
class ArmFile:
    """What is known about one arm.

    Attributes:
      port: its serial port.
      gripper_closed_rad: servo angle at which its fingers just touch; None: as the scene's.
      joint_offsets_rad: by how much the servos of its six joints read too much, waist first.
      command_delay_s: from a command to the motion, beyond the simulated arm's; None: not measured.
    """

    port: str
    gripper_closed_rad: float | None = None
    joint_offsets_rad: tuple[float, ...] = NO_OFFSETS
    command_delay_s: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(bool(self.port), "port must name a serial port, such as /dev/ttyDXL_follower_left")
        if self.gripper_closed_rad is not None:
            GripperLinkage.measured(self.gripper_closed_rad)
        check_offsets(self.joint_offsets_rad)
        _check_delay("command_delay_s", self.command_delay_s)


@dataclasses.dataclass(frozen=True)
class LeaderFile:
    """What is known about one leader arm, with which a person shows a task.

    Attributes:
      port: its serial port; None: /dev/ttyDXL_leader_left or _right.
      gripper_travel_rad: by how much its gripper's servo turns from closed to open.
    """

    port: str | None = None
    gripper_travel_rad: float = GRIPPER_TRAVEL_RAD

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.port != "", "port must name a serial port, such as /dev/ttyDXL_leader_left")
        check(
            0.2 <= self.gripper_travel_rad <= 3.0,
            f"gripper_travel_rad = {self.gripper_travel_rad} must lie in 0.2..3.0 rad; ALOHA's leaders have"
            f" {GRIPPER_TRAVEL_RAD} to 1",
        )


@dataclasses.dataclass(frozen=True)
class CameraFile:
    """What is known about one wrist camera.

    Attributes:
      serial: its serial number; "": none is known.
      upside_down: whether it is mounted turned by 180 degrees.
      picture_delay_s: from the motion to the picture that shows it; None: not measured.
    """

    serial: str = ""
    upside_down: bool = False
    picture_delay_s: float | None = None

    def __post_init__(self) -> None:
        """Checks the range."""
        _check_delay("picture_delay_s", self.picture_delay_s)


Measured = tuple[float, float, float]  # a value, and the ends of its 95% interval


@dataclasses.dataclass(frozen=True)
class ArmCalibration:
    """What `alohas2r calibrate` measured of one arm; each as value and ends of its 95% interval, () if it did not.

    Attributes:
      command_delay_s: from a command to the reading that shows it, beyond the simulated arm's.
      gain, damping: of seven joints, waist first, gripper last: factors on the simulated ones.
      joint_friction: likewise; of the joints whose simulated ones have none it says 1.
      backlash_deg: of six joints.
      zero_deg: by how much the readings of six joints are too large beyond joint_offsets_rad.
      travel_m, travel_scale: the gripper reads travel_scale * travel + travel_m, closing at gripper_closed_rad.
    """

    command_delay_s: tuple[float, ...] = ()
    gain: tuple[Measured, ...] = ()
    damping: tuple[Measured, ...] = ()
    joint_friction: tuple[Measured, ...] = ()
    backlash_deg: tuple[Measured, ...] = ()
    zero_deg: tuple[Measured, ...] = ()
    travel_m: tuple[float, ...] = ()
    travel_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks that there is one interval for each joint, in order."""
        for name in ("command_delay_s", "travel_m", "travel_scale"):
            value = getattr(self, name)
            check(len(value) in (0, 3), f"{name} = {value} must be [value, low, high]")
        for name in ("gain", "damping", "joint_friction", "backlash_deg", "zero_deg"):
            rows = getattr(self, name)
            count = len(ARM_JOINTS) + (name in ("gain", "damping", "joint_friction"))
            check(
                len(rows) in (0, count),
                f"{name} must have {count} rows [value, low, high], one for each joint, not {len(rows)}",
            )

    @property
    def empty(self) -> bool:
        """Whether nothing was measured."""
        return self == ArmCalibration()


def _check_delay(name: str, seconds: float | None) -> None:
    check(
        seconds is None or -0.1 <= seconds <= 1.0,
        f"{name} = {seconds} must lie in -0.1..1.0 s; alohas2r measure-delay measures it",
    )


@dataclasses.dataclass(frozen=True)
class RobotFile:
    """Two arms, left and right, on a table.

    Attributes:
      left, right: the arms.
      left_camera, right_camera: their wrist cameras.
      base_distance_m: from one arm's waist axis to the other's; None: not measured.
      table_height_m: of the table's top above the bottom of the arms' bases, negative where they stand
        on plates; None: not measured.
      exposure_us: fixed exposure of both cameras; None: automatic.
      stream_size: width and height in which both cameras stream (pixels).
      left_calibration, right_calibration: what `alohas2r calibrate` measured.
      left_leader, right_leader: the leader arms, if there are any.
    """

    left: ArmFile = dataclasses.field(default_factory=lambda: ArmFile(DynamixelConfig.ports[0]))
    right: ArmFile = dataclasses.field(default_factory=lambda: ArmFile(DynamixelConfig.ports[1]))
    left_camera: CameraFile = dataclasses.field(default_factory=CameraFile)
    right_camera: CameraFile = dataclasses.field(default_factory=CameraFile)
    base_distance_m: float | None = None
    table_height_m: float | None = None
    exposure_us: float | None = None
    stream_size: tuple[int, int] = STREAM
    left_calibration: ArmCalibration = ArmCalibration()
    right_calibration: ArmCalibration = ArmCalibration()
    left_leader: LeaderFile = LeaderFile()
    right_leader: LeaderFile = LeaderFile()

    def __post_init__(self) -> None:
        """Checks that both arms are two."""
        check(self.left.port != self.right.port, f"both arms have the same port {self.left.port}")
        for leader in (self.left_leader, self.right_leader):
            check(leader.port not in self.ports, f"a leader has the port of an arm, {leader.port}")
        serials = self.left_camera.serial, self.right_camera.serial
        check(
            serials[0] != serials[1] or not serials[0], "both cameras have the same serial number"
        )
        check(
            self.base_distance_m is None or 0.3 <= self.base_distance_m <= 2.0,
            f"base_distance_m = {self.base_distance_m} must lie in 0.3..2.0 m",
        )
        check(
            self.table_height_m is None or abs(self.table_height_m) <= 0.2,
            f"table_height_m = {self.table_height_m} must lie in -0.2..0.2 m",
        )
        check_stream(self.stream_size)
        check(
            self.exposure_us is None or 1 <= self.exposure_us <= 165_000,
            f"exposure_us = {self.exposure_us} must lie in 1..165000 µs, or be left out: automatic",
        )

    @property
    def ports(self) -> tuple[str, str]:
        """Serial ports of the left and the right arm."""
        return self.left.port, self.right.port

    @property
    def serials(self) -> tuple[str, str] | None:
        """Serial numbers of both cameras, if both are known."""
        serials = self.left_camera.serial, self.right_camera.serial
        return serials if all(serials) else None

    @property
    def gripper_closed_rad(self) -> tuple[float, float] | None:
        """The grippers' angles, if both are known."""
        left, right = self.left.gripper_closed_rad, self.right.gripper_closed_rad
        return None if left is None or right is None else (left, right)

    @property
    def calibrations(self) -> tuple[ArmCalibration, ArmCalibration]:
        """What was measured of the left and the right arm."""
        return self.left_calibration, self.right_calibration

    @property
    def delays(self) -> tuple[tuple[str, float | None, float | None], ...]:
        """Side, and how late its arm and its camera are (s); None: not measured."""
        return (
            (SIDES[0], self.left.command_delay_s, self.left_camera.picture_delay_s),
            (SIDES[1], self.right.command_delay_s, self.right_camera.picture_delay_s),
        )


class Settings(TypedDict):
    """What of a `RigConfig` depends on the pair of arms."""

    ports: tuple[str, str]
    serials: tuple[str, str] | None
    exposure_us: float | None
    gripper_closed_rad: tuple[float, float] | None
    upside_down: tuple[bool, bool]
    stream_size: tuple[int, int]
    joint_offsets_rad: tuple[tuple[float, ...], tuple[float, ...]]
    delays: tuple[tuple[str, float | None, float | None], ...]


def rig_settings(
    known: RobotFile | None,
    ports: tuple[str, str] | None = None,
    serials: tuple[str, str] | None = None,
    exposure_us: float | None = None,
    gripper_closed_rad: tuple[float, float] | None = None,
    cameras: bool = True,
) -> Settings:
    """Returns what options say, and where they say nothing, what the robot file says.

    Args:
      known: the robot file, if there is one.
      ports, serials, exposure_us, gripper_closed_rad: options; None: not given.
      cameras: whether real cameras are used at all.
    """
    robot = known or RobotFile()
    return Settings(
        ports=ports or robot.ports,
        serials=serials or (robot.serials if cameras else None),
        exposure_us=exposure_us if exposure_us is not None else robot.exposure_us,
        gripper_closed_rad=gripper_closed_rad or robot.gripper_closed_rad,
        upside_down=(robot.left_camera.upside_down, robot.right_camera.upside_down),
        stream_size=robot.stream_size,
        joint_offsets_rad=(robot.left.joint_offsets_rad, robot.right.joint_offsets_rad),
        delays=robot.delays,
    )


def where(path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns which robot file counts: the one given, that of ALOHAS2R_ROBOT, or ./robot.toml."""
    return pathlib.Path(path or os.environ.get(VARIABLE) or DEFAULT)


def load(path: str | os.PathLike[str] | None = None) -> RobotFile | None:
    """Reads the robot file.

    Args:
      path: which; None: the one that counts, which may be missing.

    Returns:
      What it says; None if there is none and none was asked for.

    Raises:
      ConfigError: it is missing though asked for, cannot be read, or a value is out of range.
    """
    file = where(path)
    if not file.is_file():
        if path is None and VARIABLE not in os.environ:
            return None
        raise ConfigError(f"There is no robot file {file}; alohas2r setup-robot writes one.")
    try:
        return from_dict(RobotFile, tomllib.loads(file.read_text()), partial=True)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The robot file {file} cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"The robot file {file}: {error}") from error


def save(robot: RobotFile, path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Writes the robot file, whole or not at all; returns where.

    Raises:
      ArtifactError: it cannot be written.
    """
    file = where(path)
    lines, tables = [], []
    for name, value in to_dict(robot).items():
        if isinstance(value, dict):
            known = {key: one for key, one in value.items() if one is not None and one != []}
            if known:
                rows = [f"{key} = {json.dumps(one)}" for key, one in known.items()]
                tables += ["", f"[{name}]", *rows]
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value)}")
    head = "# Read by the commands around real arms; written by alohas2r setup-robot. Units are in the names."
    return write_atomic(file, "\n".join([head, *lines, *tables, ""]).encode())


def update(
    known: RobotFile,
    ports: tuple[str, str] | None = None,
    serials: tuple[str, str] | None = None,
    upside_down: Literal["none", "left", "right", "both"] | None = None,
    gripper_closed_rad: tuple[float, float] | None = None,
    base_distance_m: float | None = None,
    table_height_m: float | None = None,
    exposure_us: float | None = None,
    stream_size: tuple[int, int] | None = None,
    joint_offsets: Sequence[str] = (),
    delays: Sequence[tuple[float, float]] | None = None,
) -> RobotFile:
    """Returns a robot file with what is given in place of what it said.

    Args:
      known: what it said.
      ports, serials, upside_down, gripper_closed_rad, base_distance_m, table_height_m, exposure_us, stream_size: see
        `RobotFile`.
      joint_offsets: such as "left/waist=0.02" (rad).
      delays: of the left and the right side: command and picture delay (s).

    Raises:
      ConfigError: a value is out of range.
    """
    arms, cameras = [known.left, known.right], [known.left_camera, known.right_camera]
    for place, side in enumerate(SIDES):
        if ports is not None:
            arms[place] = dataclasses.replace(arms[place], port=ports[place])
        if gripper_closed_rad is not None:
            angle = round(gripper_closed_rad[place], 4)
            arms[place] = dataclasses.replace(arms[place], gripper_closed_rad=angle)
        if serials is not None:
            cameras[place] = dataclasses.replace(cameras[place], serial=serials[place])
        arms[place] = _with_offsets(arms[place], side, joint_offsets)
        if delays is not None:
            command_s, picture_s = (round(one, 4) for one in delays[place])
            arms[place] = dataclasses.replace(arms[place], command_delay_s=command_s)
            cameras[place] = dataclasses.replace(cameras[place], picture_delay_s=picture_s)
        if upside_down is not None:
            turned = upside_down in (side, "both")
            cameras[place] = dataclasses.replace(cameras[place], upside_down=turned)
    return dataclasses.replace(
        known,
        left=arms[0],
        right=arms[1],
        left_camera=cameras[0],
        right_camera=cameras[1],
        base_distance_m=known.base_distance_m if base_distance_m is None else base_distance_m,
        table_height_m=known.table_height_m if table_height_m is None else table_height_m,
        exposure_us=known.exposure_us if exposure_us is None else exposure_us,
        stream_size=stream_size or known.stream_size,
    )


def _with_offsets(arm: ArmFile, side: str, texts: Sequence[str]) -> ArmFile:
    """Returns an arm with those of the offsets "SIDE/JOINT=RAD" that are its own."""
    offsets = list(arm.joint_offsets_rad)
    for text in texts:
        joint, _, value = text.partition("=")
        try:
            angle = float(value)
        except ValueError:
            angle = None
        if angle is None or joint not in JOINTS or joint.endswith("gripper"):
            raise ConfigError(
                f"A joint offset '{text}' must be SIDE/JOINT=RAD, such as left/waist=0.02; the joints are"
                f" {', '.join(ARM_JOINTS)}."
            )
        if joint.startswith(f"{side}/"):
            offsets[ARM_JOINTS.index(joint.partition("/")[2])] = angle
    return dataclasses.replace(arm, joint_offsets_rad=tuple(offsets))


def next_steps(robot: RobotFile) -> list[str]:
    """Returns what is still to be found out about the arms, and with which command."""
    steps = {
        "alohas2r setup-robot --cameras LEFT RIGHT (alohas2r doctor lists the serial numbers)": (
            robot.serials
        ),
        "close both grippers by hand, then alohas2r setup-robot --measure-grippers": (
            robot.gripper_closed_rad
        ),
        "alohas2r setup-robot --base-distance METRES, from waist axis to waist axis": (
            robot.base_distance_m
        ),
        "alohas2r setup-robot --table-height METRES, above the bottom of the arms' bases": (
            robot.table_height_m
        ),
        "alohas2r measure-delay, which moves one joint of each arm slowly": (
            robot.left.command_delay_s
        ),
    }
    return [step for step, value in steps.items() if value is None]
