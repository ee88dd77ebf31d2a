"""What the servos' control tables must say before an arm may be powered, and how to bring it there.

Three kinds of settings: volatile ones, and those of the arm's kind that the arm's usual software
writes at every start (how joints turn, which modes, which limits), are written whenever a driver
connects. All others may have been chosen by somebody: they are compared, named, and written by
`alohas2r setup-arms` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from alohas2r.embodiment.joints import PER_ARM
from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel.arm import IDS, MASTERS, SERVOS, DynamixelConfig, Servo
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.dynamixel.registers import (
    ACCELERATION_UNIT_RAD_S2,
    BUS_WATCHDOG,
    CURRENT_BASED_POSITION_MODE,
    CURRENT_LIMIT,
    DRIVE_MODE,
    EEPROM_END,
    FEEDFORWARD_1ST_GAIN,
    FEEDFORWARD_2ND_GAIN,
    GOAL_PWM,
    HOMING_OFFSET,
    MAX_POSITION_LIMIT,
    MAX_VOLTAGE_LIMIT,
    MIN_POSITION_LIMIT,
    MIN_VOLTAGE_LIMIT,
    NO_SECONDARY_ID,
    OPERATING_MODE,
    POSITION_D_GAIN,
    POSITION_I_GAIN,
    POSITION_MODE,
    POSITION_P_GAIN,
    PROFILE_ACCELERATION,
    PROFILE_VELOCITY,
    PWM_LIMIT,
    RETURN_DELAY_TIME,
    SECONDARY_ID,
    SHUTDOWN,
    STARTUP_CONFIGURATION,
    STATUS_RETURN_LEVEL,
    TEMPERATURE,
    TEMPERATURE_LIMIT,
    TORQUE_ENABLE,
    VELOCITY_LIMIT,
    VELOCITY_UNIT_RAD_S,
    XM430_W350,
    XM540_W270,
    Register,
    signed_value,
)

COMMAND = "alohas2r setup-arms"
FULL_PWM = 885  # 100%
# Largest Current_Limit of each model. Source: ROBOTIS e-Manual, Current Limit (38).
FULL_CURRENT = {XM540_W270: 2047, XM430_W350: 1193}
# What ALOHA's own instructions set for the grippers, which is enough to hold the parts.
# Source: README of the published ALOHA code, step 2.
LEAST_GRIPPER_CURRENT = 200
# Shutdown bits for overheating, electrical shock and overload: the factory's value.
GUARDED = 0x04 | 0x10 | 0x20
HOT_C, LEAST_HOT_C = 80, 60
# A shadow may be set apart from its master to make both agree; a worn horn is not mended that way.
SHADOW_TICKS = 100


class Rule(NamedTuple):
    """What one register of a servo must be.

    Attributes:
      register: which.
      wanted: what is written if it is not as it must be.
      low, high: between which values it may be; both equal `wanted` for most.
      mask: which of its bits count.
      written: whether every connection writes it, rather than `setup-arms` only.
      why: what another value does.
    """

    register: Register
    wanted: int
    low: int
    high: int
    mask: int
    written: bool
    why: str

    def accepts(self, value: int) -> bool:
        """Returns whether a value is as it must be."""
        return self.low <= (value & self.mask if self.mask >= 0 else value) <= self.high


class Difference(NamedTuple):
    """A register that is not as it must be."""

    servo: Servo
    rule: Rule
    value: int

    def __str__(self) -> str:
        """Says what it is, what it should be, and what that does."""
        rule = self.rule
        should = f"{rule.wanted}" if rule.low == rule.high else f"{rule.low}..{rule.high}"
        return (
            f"servo {self.servo.id} ({self.servo.name}) has {rule.register.name} {self.value}, not"
            f" {should}: {rule.why}"
        )


def rules(servo: Servo, config: DynamixelConfig) -> list[Rule]:
    """Returns what a servo's registers must be, in the order in which they are to be written."""
    gripper = servo.joint == PER_ARM - 1
    speed = 0 if gripper else round(config.max_speed_rad_s / VELOCITY_UNIT_RAD_S)
    acceleration = (
        0 if gripper else round(config.max_acceleration_rad_s2 / ACCELERATION_UNIT_RAD_S2)
    )
    mode = CURRENT_BASED_POSITION_MODE if gripper else POSITION_MODE
    master = NO_SECONDARY_ID if servo.shadow_of is None else servo.shadow_of
    p_gain, i_gain, d_gain = config.gains
    full = FULL_CURRENT[servo.model]
    offset = 0 if servo.shadow_of is None else SHADOW_TICKS
    return [
        *_chosen(gripper, full, offset),
        _written(RETURN_DELAY_TIME, 0, "answers come late"),
        _written(DRIVE_MODE, int(servo.reverse), "the joint turns the wrong way"),
        _written(OPERATING_MODE, mode, "the joint does not go where it is told"),
        _written(SECONDARY_ID, master, "both servos of a joint do not move together"),
        _written(MAX_POSITION_LIMIT, servo.high, "the joint can be driven into its stop"),
        _written(MIN_POSITION_LIMIT, servo.low, "the joint can be driven into its stop"),
        Rule(
            VELOCITY_LIMIT,
            max(speed, 131),
            speed or 100,
            1023,
            -1,
            True,
            "the joint is slower than its profile",
        ),
        _written(STATUS_RETURN_LEVEL, 2, "writes are not confirmed"),
        _written(POSITION_P_GAIN, p_gain, "another stiffness than in training"),
        _written(POSITION_I_GAIN, i_gain, "another stiffness than in training"),
        _written(POSITION_D_GAIN, d_gain, "another damping than in training"),
        _written(FEEDFORWARD_1ST_GAIN, 0, "the joint overshoots"),
        _written(FEEDFORWARD_2ND_GAIN, 0, "the joint overshoots"),
        _written(PROFILE_ACCELERATION, acceleration, "the joint starts otherwise than in training"),
        _written(PROFILE_VELOCITY, speed, "the joint may move faster than it should"),
        _written(GOAL_PWM, FULL_PWM, "too little torque to hold the arm's weight"),
    ]


def _written(register: Register, wanted: int, why: str) -> Rule:
    return Rule(register, wanted, wanted, wanted, -1, True, why)


def _chosen(gripper: bool, full_current: int, offset: int) -> list[Rule]:
    """Returns the rules for what somebody may have chosen."""
    weak = "too weak a grip" if gripper else "too little torque to hold the arm's weight"
    least = LEAST_GRIPPER_CURRENT if gripper else full_current
    return [
        Rule(HOMING_OFFSET, 0, -offset, offset, -1, False, "the joint is elsewhere than it reads"),
        Rule(
            TEMPERATURE_LIMIT, HOT_C, LEAST_HOT_C, HOT_C, -1, False, "it shuts down at another heat"
        ),
        Rule(MAX_VOLTAGE_LIMIT, 160, 130, 160, -1, False, "it shuts down at another voltage"),
        Rule(MIN_VOLTAGE_LIMIT, 95, 95, 100, -1, False, "it shuts down at another voltage"),
        Rule(PWM_LIMIT, FULL_PWM, FULL_PWM, FULL_PWM, -1, False, weak),
        Rule(CURRENT_LIMIT, full_current, least, full_current, -1, False, weak),
        Rule(STARTUP_CONFIGURATION, 0, 0, 0, -1, False, "it may switch its torque on by itself"),
        Rule(
            SHUTDOWN,
            GUARDED,
            GUARDED,
            GUARDED,
            GUARDED,
            False,
            "it does not let go when it overheats or is overloaded",
        ),
    ]


def read_tables(bus: Bus, ids: Iterable[int] = IDS) -> dict[int, bytes]:
    """Reads the control tables of the servos of an arm.

    Raises:
      RobotFault: one does not answer.
    """
    ids = tuple(ids)
    tables = bus.sync_read(ids, 0, TEMPERATURE.address + TEMPERATURE.size)
    missing = [servo_id for servo_id in ids if servo_id not in tables]
    if missing:
        raise RobotFault(f"{bus.port}: servos {missing} stopped answering. Check the cables.")
    return tables


def compare(
    tables: Mapping[int, bytes], config: DynamixelConfig, servos: Sequence[Servo] = SERVOS
) -> list[Difference]:
    """Returns what in the servos' control tables is not as it must be."""
    return [
        Difference(servo, rule, value)
        for servo in servos
        for rule in rules(servo, config)
        if not rule.accepts(value := signed_value(tables[servo.id], rule.register))
    ]


def misread(tables: Mapping[int, bytes], config: DynamixelConfig) -> list[Difference]:
    """Returns what makes readings wrong, also of an arm that something else drives."""
    return [
        one for one in compare(tables, config) if one.rule.register in (DRIVE_MODE, HOMING_OFFSET)
    ]


def explain(port: str, differences: Sequence[Difference]) -> str:
    """Returns in one line what is not as it must be, and what to do."""
    grouped: dict[tuple[Register, int], list[Difference]] = {}
    for one in differences:
        grouped.setdefault((one.rule.register, one.value), []).append(one)
    texts = []
    for alike in grouped.values():
        text = str(alike[0])
        if len(alike) > 1:
            ids = ", ".join(str(one.servo.id) for one in alike)
            text = f"servos {ids} have{text.partition(' has')[2]}"
        texts.append(text)
    return f"{port}: {'; '.join(texts)}. `{COMMAND}` shows and makes the changes."


def ask_for_answers(bus: Bus) -> None:
    """Tells all servos to answer everything, which only a person can have told them not to do."""
    bus.sync_write(STATUS_RETURN_LEVEL, dict.fromkeys(IDS, 2))


def prepare(bus: Bus, config: DynamixelConfig) -> None:
    """Refuses what somebody may have chosen, and writes and verifies the rest.

    Raises:
      RobotFault: a setting is not as it must be, or cannot be written.
    """
    ask_for_answers(bus)
    chosen = [one for one in compare(read_tables(bus), config) if not one.rule.written]
    if chosen:
        raise RobotFault(explain(bus.port, chosen))
    bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))  # a crash may have left it tripped
    write(bus, config)


def require_no_torque(bus: Bus) -> None:
    """Makes sure that settings can be written.

    Raises:
      RobotFault: torque is on somewhere, or unknown.
    """
    torque = bus.read_all(IDS, TORQUE_ENABLE)
    if len(torque) < len(IDS) or any(torque.values()):
        raise RobotFault(
            f"{bus.port}: torque is on, or not every servo says that it is off; settings cannot be"
            " written then. Bring the arm to rest, then: alohas2r torque-off."
        )


def write(bus: Bus, config: DynamixelConfig) -> None:
    """Writes all that is not as it must be, masters first, and verifies it.

    A shadow obeys packets to its master, so writing a master may spoil its shadow; shadows
    are therefore compared and written after all masters.

    Raises:
      RobotFault: torque is on, or a servo does not take a value.
    """
    for servos in (MASTERS, [servo for servo in SERVOS if servo.shadow_of is not None]):
        # Writing one value may reset others: a new operating mode resets gains and profile.
        for _ in range(3):
            tables = read_tables(bus)
            wrong = compare(tables, config, servos)
            _require_writable(bus.port, tables, wrong)
            for one in wrong:
                bus.write(one.servo.id, one.rule.register, one.rule.wanted)
            if not wrong:
                break
    for one in compare(read_tables(bus), config):
        raise RobotFault(f"{bus.port}: {one.rule.wanted} was written, but {one}.")


def _require_writable(port: str, tables: Mapping[int, bytes], wrong: Sequence[Difference]) -> None:
    powered = any(signed_value(table, TORQUE_ENABLE) for table in tables.values())
    for one in wrong:
        if powered and one.rule.register.address < EEPROM_END:
            raise RobotFault(
                f"{port}: {one}. That cannot be written while torque is on: bring the arm to rest,"
                " switch its torque off (alohas2r torque-off), and connect again."
            )
