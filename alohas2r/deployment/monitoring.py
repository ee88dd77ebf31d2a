"""Looks at both arms without doing anything to them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, SIDES
from alohas2r.robots.dynamixel.arm import SERVOS, DynamixelConfig, GripperLinkage
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.dynamixel.registers import CENTRE_TICK, PRESENT_POSITION, RAD_PER_TICK

# An adapter whose latency timer is still at 16 ms shall be seen too, if not at full pace.
PATIENT_S = 0.03


class Row(NamedTuple):
    """A joint as it is; None where it is not known.

    Attributes:
      joint: "left/waist".
      unit: of position and goal: "deg", or "mm" of finger travel.
      position, goal: where it is and where its servo strives to.
      current_a, temperature_c, voltage_v: of its servos, the worst of them.
      torque: whether all its servos drive.
      pair_gap_deg: how far apart its two servos are.
      words: what is wrong with its servos; "" if nothing.
    """

    joint: str
    unit: str
    position: float | None
    goal: float | None
    current_a: float | None
    temperature_c: float | None
    voltage_v: float | None
    torque: bool | None
    pair_gap_deg: float | None
    words: str


Look = Callable[[], tuple[list[Row], list[str]]]


@contextlib.contextmanager
def watch(
    ports: tuple[str, str], gripper_closed_rad: tuple[float, float] | None = None
) -> Iterator[Look]:
    """Connects to both arms to read only; gives a function that reads all joints once.

    Args:
      ports: of the left and the right arm.
      gripper_closed_rad: servo angles at which the fingers touch; None: as the scene's.

    Raises:
      RobotFault: a port or servo is missing.
    """
    linkages = (GripperLinkage(), GripperLinkage())
    if gripper_closed_rad is not None:
        left, right = gripper_closed_rad
        linkages = GripperLinkage.measured(left), GripperLinkage.measured(right)
    config = DynamixelConfig(ports=ports, linkages=linkages, reply_timeout_s=PATIENT_S)
    with DynamixelRobot(config, passive=True) as robot:

        def look() -> tuple[list[Row], list[str]]:
            reading, goals = robot.read(), robot.goals()
            words = {
                joint: ", ".join(
                    f"servo {fault.servo_id}: {fault.words}"
                    for fault in reading.servo_faults
                    if joint == f"{fault.side}/{fault.name.removesuffix('_shadow')}"
                )
                for joint in JOINTS
            }
            rows = []
            for index, joint in enumerate(JOINTS):
                scale = 1000.0 if IS_GRIPPER[index] else 180 / math.pi
                silent_s = float(reading.age_s[index])
                silent = f"silent for {silent_s:.1f} s" if silent_s > 0 else ""
                gap = None if reading.pair_gap is None else reading.pair_gap[index]
                rows.append(
                    Row(
                        joint,
                        "mm" if IS_GRIPPER[index] else "deg",
                        _known(reading.position[index] * scale),
                        _known(goals[index] * scale),
                        _known(reading.current[index]),
                        _known(reading.temperature_c[index]),
                        _known(reading.voltage_v[index]),
                        None if reading.torque is None else bool(reading.torque[index]),
                        None if gap is None else _known(abs(math.degrees(gap))),
                        words[joint] or silent,
                    )
                )
            return rows, list(robot.setup_problems())

        yield look


def gripper_angles(ports: tuple[str, str]) -> tuple[float, float]:
    """Returns the servo angles (rad) of both grippers as they are now.

    Raises:
      RobotFault: a port or a gripper's servo does not answer.
    """
    angles = []
    for port, _ in zip(ports, SIDES, strict=True):
        with Bus(port, reply_timeout_s=PATIENT_S) as bus:
            tick = bus.read(SERVOS[-1].id, PRESENT_POSITION)
        angles.append((tick - CENTRE_TICK) * RAD_PER_TICK)
    left, right = angles
    return left, right


def _known(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
