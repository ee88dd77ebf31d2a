"""The control table of the servos."""

from __future__ import annotations

import math
from typing import NamedTuple


class Register(NamedTuple):
    """Where a value lies in a servo's control table."""

    address: int
    size: int
    signed: bool = False


# Source: ROBOTIS e-Manual, control table of the XM540-W270 and XM430-W350; recipe, section 8.
MODEL_NUMBER = Register(0, 2)
FIRMWARE_VERSION = Register(6, 1)
RETURN_DELAY_TIME = Register(9, 1)
DRIVE_MODE = Register(10, 1)
OPERATING_MODE = Register(11, 1)
SECONDARY_ID = Register(12, 1)
HOMING_OFFSET = Register(20, 4, signed=True)
VELOCITY_LIMIT = Register(44, 4)
MAX_POSITION_LIMIT = Register(48, 4)
MIN_POSITION_LIMIT = Register(52, 4)
SHUTDOWN = Register(63, 1)
TORQUE_ENABLE = Register(64, 1)
HARDWARE_ERROR = Register(70, 1)
POSITION_D_GAIN = Register(80, 2)
POSITION_I_GAIN = Register(82, 2)
POSITION_P_GAIN = Register(84, 2)
BUS_WATCHDOG = Register(98, 1)
GOAL_CURRENT = Register(102, 2, signed=True)
PROFILE_ACCELERATION = Register(108, 4)
PROFILE_VELOCITY = Register(112, 4)
GOAL_POSITION = Register(116, 4, signed=True)
PRESENT_CURRENT = Register(126, 2, signed=True)
PRESENT_VELOCITY = Register(128, 4, signed=True)
PRESENT_POSITION = Register(132, 4, signed=True)
INPUT_VOLTAGE = Register(144, 2)
TEMPERATURE = Register(146, 1)
EEPROM_END = 64  # below this address, registers are read-only while torque is on

# Units of the registers. Source: ROBOTIS e-Manual, X series.
TICKS_PER_TURN = 4096
CENTRE_TICK = 2048
RAD_PER_TICK = 2 * math.pi / TICKS_PER_TURN
VELOCITY_UNIT_RAD_S = 0.229 * 2 * math.pi / 60
ACCELERATION_UNIT_RAD_S2 = 214.577 * 2 * math.pi / 3600
CURRENT_UNIT_A = 0.00269
VOLTAGE_UNIT_V = 0.1
WATCHDOG_UNIT_S = 0.02

POSITION_MODE = 3
CURRENT_BASED_POSITION_MODE = 5
WATCHDOG_TRIPPED = 255
NO_SECONDARY_ID = 255
ALERT_BIT = 0x80
# Source: ROBOTIS e-Manual, Hardware Error Status (70).
ERROR_BITS = {
    0x01: "input voltage",
    0x04: "overheating",
    0x08: "motor encoder",
    0x10: "electrical shock",
    0x20: "overload",
}
XM540_W270, XM430_W350 = 1120, 1020
MODEL_NAMES = {XM540_W270: "XM540-W270", XM430_W350: "XM430-W350"}


def describe_error(bits: int) -> str:
    """Returns a servo's hardware error bits in words."""
    return ", ".join(name for bit, name in ERROR_BITS.items() if bits & bit) or "none"


def signed_value(data: bytes, register: Register, start: int = 0) -> int:
    """Returns a register's value from bytes that were read from address `start` on."""
    place = register.address - start
    return int.from_bytes(data[place : place + register.size], "little", signed=register.signed)
