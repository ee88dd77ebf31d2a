"""The control table of the servos."""

from __future__ import annotations

import math
from typing import NamedTuple


class Register(NamedTuple):
    """Where a value lies in a servo's control table."""

    address: int
    size: int
    signed: bool = False

    @property
    def name(self) -> str:
        """Its name in the manual and in Dynamixel Wizard."""
        return NAMES.get(self.address, f"address {self.address}")


# Source: ROBOTIS e-Manual, control table of the XM540-W270 and XM430-W350.
MODEL_NUMBER = Register(0, 2)
FIRMWARE_VERSION = Register(6, 1)
BAUD_RATE = Register(8, 1)
RETURN_DELAY_TIME = Register(9, 1)
DRIVE_MODE = Register(10, 1)
OPERATING_MODE = Register(11, 1)
SECONDARY_ID = Register(12, 1)
HOMING_OFFSET = Register(20, 4, signed=True)
TEMPERATURE_LIMIT = Register(31, 1)
MAX_VOLTAGE_LIMIT = Register(32, 2)
MIN_VOLTAGE_LIMIT = Register(34, 2)
PWM_LIMIT = Register(36, 2)
CURRENT_LIMIT = Register(38, 2)
VELOCITY_LIMIT = Register(44, 4)
MAX_POSITION_LIMIT = Register(48, 4)
MIN_POSITION_LIMIT = Register(52, 4)
STARTUP_CONFIGURATION = Register(60, 1)
SHUTDOWN = Register(63, 1)
TORQUE_ENABLE = Register(64, 1)
STATUS_RETURN_LEVEL = Register(68, 1)
HARDWARE_ERROR = Register(70, 1)
POSITION_D_GAIN = Register(80, 2)
POSITION_I_GAIN = Register(82, 2)
POSITION_P_GAIN = Register(84, 2)
FEEDFORWARD_2ND_GAIN = Register(88, 2)
FEEDFORWARD_1ST_GAIN = Register(90, 2)
BUS_WATCHDOG = Register(98, 1)
GOAL_PWM = Register(100, 2, signed=True)
GOAL_CURRENT = Register(102, 2, signed=True)
PROFILE_ACCELERATION = Register(108, 4)
PROFILE_VELOCITY = Register(112, 4)
GOAL_POSITION = Register(116, 4, signed=True)
PRESENT_CURRENT = Register(126, 2, signed=True)
PRESENT_VELOCITY = Register(128, 4, signed=True)
PRESENT_POSITION = Register(132, 4, signed=True)
INPUT_VOLTAGE = Register(144, 2)
TEMPERATURE = Register(146, 1)
NAMES = {
    value.address: name.title().replace("Pwm", "PWM").replace("1St", "1st").replace("2Nd", "2nd")
    for name, value in list(globals().items())
    if isinstance(value, Register)
} | {
    12: "Secondary_ID",
    70: "Hardware_Error_Status",
    144: "Present_Input_Voltage",
    146: "Present_Temperature",
}
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
# What causes each, and what to do.
ERROR_REMEDIES = {
    0x01: "The supply is too weak or too strong: measure it (12 V) and check its plugs.",
    0x04: "Let it cool down; find out what it pushes against.",
    0x08: "Restart it; if that does not help, the servo is broken.",
    0x10: "Look for a short circuit, a wrong plug or a broken cable.",
    0x20: "Find out what blocks it; a gripper that squeezes for long overloads as well.",
}
XM540_W270, XM430_W350, XL430_W250 = 1120, 1020, 1060
# Older firmware lacks Drive_Mode, without which three joints of each arm turn the wrong way.
# Source: ROBOTIS e-Manual, XM540-W270, Drive Mode (10): available after firmware version 38.
LEAST_FIRMWARE = 38
# Codes of Baud_Rate. Source: ROBOTIS e-Manual, Baud Rate (8).
BAUD_RATES = {
    0: 9_600,
    1: 57_600,
    2: 115_200,
    3: 1_000_000,
    4: 2_000_000,
    5: 3_000_000,
    6: 4_000_000,
}
MODEL_NAMES = {
    XM540_W270: "XM540-W270",
    XM430_W350: "XM430-W350",
    XL430_W250: "XL430-W250",
}


def describe_error(bits: int) -> str:
    """Returns a servo's hardware error bits in words."""
    unread = "an error that it has not named yet" if bits & ALERT_BIT else "none"
    return ", ".join(name for bit, name in ERROR_BITS.items() if bits & bit) or unread


def signed_value(data: bytes, register: Register, start: int = 0) -> int:
    """Returns a register's value from bytes that were read from address `start` on."""
    place = register.address - start
    return int.from_bytes(data[place : place + register.size], "little", signed=register.signed)
