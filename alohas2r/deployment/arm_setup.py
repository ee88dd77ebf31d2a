"""Plans and writes the changes that bring both arms' servos to what a run relies on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel import setup
from alohas2r.robots.dynamixel.arm import MASTERS, SERVOS, DynamixelConfig
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.dynamixel.discovery import SLOW_REPLY_S, check_servos, discover
from alohas2r.robots.dynamixel.registers import CURRENT_LIMIT, signed_value


class Change(NamedTuple):
    """A setting of a servo that is to be written.

    Attributes:
      side: of which arm.
      servo: "4 (elbow)".
      servo_id: its id.
      setting: the register's name in the manual.
      value: what it is.
      becomes: what is to be written.
      why: what the present value does.
    """

    side: str
    servo: str
    servo_id: int
    setting: str
    value: int
    becomes: int
    why: str


def plan(
    config: DynamixelConfig, sides: Sequence[str] = SIDES, full_grip: bool = False
) -> list[Change]:
    """Returns what has to be written; writes nothing.

    Args:
      config: how the arms are connected and set up.
      sides: which arms.
      full_grip: whether the grippers are to get the whole current of their servos.

    Raises:
      RobotFault: a port or servo is missing or of the wrong kind.
    """
    changes = []
    for side in sides:
        with _bus(config, side) as bus:
            check_servos(discover(bus), bus)
            tables = setup.read_tables(bus)
        differences = setup.compare(tables, config)
        gripper = MASTERS[-1]
        current, full = signed_value(tables[gripper.id], CURRENT_LIMIT), _full_current(config)
        listed = any(
            one.rule.register == CURRENT_LIMIT for one in differences if one.servo == gripper
        )
        if full_grip and current != full.wanted and not listed:
            differences.append(setup.Difference(gripper, full, current))
        changes += [
            Change(
                side,
                f"{one.servo.id} ({one.servo.name})",
                one.servo.id,
                one.rule.register.name,
                one.value,
                one.rule.wanted,
                one.rule.why,
            )
            for one in differences
        ]
    return changes


def write(config: DynamixelConfig, changes: Sequence[Change]) -> None:
    """Writes changes, verifies them, and that everything is as it must be then.

    Raises:
      RobotFault: torque is on, or a servo does not take a value; what was written before stays.
    """
    for side in SIDES:
        mine = [one for one in changes if one.side == side]
        if not mine:
            continue
        with _bus(config, side) as bus:
            setup.require_no_torque(bus)
            for one in mine:
                if one.setting == CURRENT_LIMIT.name:
                    bus.write(one.servo_id, CURRENT_LIMIT, one.becomes)
            setup.write(bus, config)
            left = setup.compare(setup.read_tables(bus), config)
            if left:
                raise RobotFault(f"{bus.port}: {left[0]}, though it was written.")


def _bus(config: DynamixelConfig, side: str) -> Bus:
    port = config.ports[SIDES.index(side)]
    return Bus(port, config.baudrate, max(config.reply_timeout_s, SLOW_REPLY_S), config.retries)


def _full_current(config: DynamixelConfig) -> setup.Rule:
    rules = setup.rules(SERVOS[-1], config)
    return next(rule for rule in rules if rule.register == CURRENT_LIMIT)
