"""Switches torque off after a run that ended in a hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Robot
from alohas2r.robots.dynamixel.arm import IDS, MASTERS, DynamixelConfig, ticks_to_joint
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.recovery import Released, release, restart
from alohas2r.robots.dynamixel.registers import PRESENT_POSITION
from alohas2r.safety.paths import at_rest


def torque_off(robot: Robot, anywhere: bool = False) -> None:
    """Switches torque off, in the sleep pose only unless told otherwise.

    Args:
      robot: an entered robot.
      anywhere: whether to let go wherever the arms are. They fall: support them.

    Raises:
      RobotFault: the arms do not rest in the sleep pose.
    """
    if not anywhere and not at_rest(robot.read().position):
        raise RobotFault(
            "The arms are not in the sleep pose; without torque they would fall. Bring them there"
            " first, or support them and ask for it explicitly."
        )
    robot.disable()


def let_go(
    config: DynamixelConfig,
    sides: Sequence[str] = SIDES,
    anywhere: bool = False,
    reboot: Mapping[str, Sequence[int]] | None = None,
) -> list[Released]:
    """Switches off the torque of every servo that answers, arm by arm.

    What is wrong with one arm or one servo keeps no other from letting go.

    Args:
      config: how the arms are connected.
      sides: which arms.
      anywhere: whether to let go wherever the arms are. They fall: support them.
      reboot: by arm, ids of servos to restart after that.

    Returns:
      What became of each arm.
    """
    results = []
    for side in sides:
        place = SIDES.index(side)
        bus = Bus(config.ports[place], config.baudrate, config.reply_timeout_s, config.retries)
        try:
            with bus:
                problem = "" if anywhere else _not_resting(bus, config, place)
                result = Released(side, (), problem) if problem else release(side, bus)
                restarted = (reboot or {}).get(side, ())
                if restarted and not problem:
                    restart(bus, restarted)
                    result = release(side, bus)
        except RobotFault as fault:
            result = Released(side, (), str(fault))
        results.append(result)
    return results


def _not_resting(bus: Bus, config: DynamixelConfig, place: int) -> str:
    """Returns why an arm must not be let go of; "" if it rests in the sleep pose."""
    ticks = bus.read_all(IDS, PRESENT_POSITION)
    silent = [servo.id for servo in MASTERS if servo.id not in ticks]
    if silent:
        names = ", ".join(servo_text(servo_id) for servo_id in silent)
        return (
            f"{names} on {bus.port} do not answer, so nobody knows where the arm is. Support it and"
            " ask for it explicitly: alohas2r torque-off --anywhere."
        )
    pose = ticks_to_joint(
        [ticks[servo.id] for servo in MASTERS],
        config.linkages[place],
        config.joint_offsets_rad[place],
    )
    both = SLEEP_POSE.reshape(len(SIDES), PER_ARM).copy()
    both[place] = pose
    if at_rest(np.asarray(both.reshape(-1))):
        return ""
    return (
        "it is not in the sleep pose; without torque it would fall. Bring it there first, or support"
        " it and ask for it explicitly: alohas2r torque-off --anywhere."
    )
