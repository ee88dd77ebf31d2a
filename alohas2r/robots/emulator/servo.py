"""One emulated servo."""

from __future__ import annotations

import math
import termios
from collections.abc import Callable

from alohas2r.robots.dynamixel.arm import Servo as ServoKind
from alohas2r.robots.dynamixel.registers import TICKS_PER_TURN
from alohas2r.robots.emulator.table import (
    EEPROM_END,
    FIELD_AT,
    FIELDS,
    GOALS,
    INDIRECT,
    MODEL_LIMITS,
    OPERATING_MODES,
    RAM_DEFAULTS,
    TABLE_SIZE,
    Field,
)

# Errors in status packets. Source: ROBOTIS e-Manual, protocol 2.0.
RESULT_FAIL, INSTRUCTION_ERROR, CRC_ERROR = 1, 2, 3
RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 4, 5, 6, 7
ALERT = 0x80
# Hardware errors. Source: ROBOTIS e-Manual, Hardware Error Status (70).
VOLTAGE_ERROR, OVERHEATING, OVERLOAD = 0x01, 0x04, 0x20

BAUD_RATES = {
    0: termios.B9600,
    1: termios.B57600,
    2: termios.B115200,
    3: termios.B1000000,
    4: termios.B2000000,
    5: termios.B3000000,
    6: termios.B4000000,
}
REBOOT_S = 0.3  # for how long a rebooting servo does not answer


class Servo:
    """The control table of one servo, with the rules of its firmware.

    Attributes:
      kind: what servo it is.
      torque: whether it drives its joint.
      turns: whole turns that are not counted: those before the count was reset to one turn, less
        those by which the joint was turned by hand beyond what the physics knows.
    """

    def __init__(self, kind: ServoKind, position: Callable[[Servo], int]) -> None:
        """Creates a servo as the arm's maker ships it.

        Args:
          kind: its place in the arm.
          position: returns a servo's present position in ticks.
        """
        self.kind = kind
        self._position = position
        self._memory = bytearray(TABLE_SIZE)
        self._registered: tuple[int, bytes] | None = None
        self.silent_until_s = -math.inf
        self.turns = 0
        self.changed = True  # since the physics looked last
        self.factory_reset(keep_id=False)

    def factory_reset(self, keep_id: bool) -> None:
        """Sets every value to its default; the arm's own set-up is lost but for the id."""
        servo_id = self["ID"] if keep_id else self.kind.id
        for name, field in FIELDS.items():
            self[name] = field.default
        for name, value in MODEL_LIMITS[self.kind.model].items():
            self[name] = value
        for first, data, count in INDIRECT:
            for index in range(count):
                self._store(first + 2 * index, 2, data + index)
        self["Model_Number"] = self.kind.model
        self["ID"] = servo_id
        self.reboot()

    def reboot(self) -> None:
        """Starts anew: torque off, errors cleared, volatile values at their defaults."""
        for name, default in RAM_DEFAULTS.items():
            self[name] = default
        self.reset_turns()
        self["Hardware_Error_Status"] = 0
        self["Goal_Current"] = self["Current_Limit"]
        self["Goal_PWM"] = self["PWM_Limit"]
        self["Goal_Velocity"] = self["Velocity_Limit"]
        self["Goal_Position"] = self.position()
        self["Registered_Instruction"] = 0
        self._registered = None
        # Source: ROBOTIS e-Manual, Startup Configuration (60): bit 0 is torque on.
        self["Torque_Enable"] = self["Startup_Configuration"] & 1
        self.changed = True

    def position(self) -> int:
        """Returns where the servo is (ticks); it counts turns while its torque is off."""
        return self._position(self) - TICKS_PER_TURN * self.turns

    def reset_turns(self) -> None:
        """Forgets whole turns: the position is one within a turn again, plus the homing offset."""
        self.turns = (self._position(self) - self.homing) // TICKS_PER_TURN

    @property
    def homing(self) -> int:
        """The homing offset that is in force (ticks)."""
        offset = self["Homing_Offset"]
        # Source: ROBOTIS e-Manual, Homing Offset (20): larger ones do not count in position mode.
        return 0 if self["Operating_Mode"] == 3 and abs(offset) > 1024 else offset

    @property
    def torque(self) -> bool:
        """Whether the servo drives its joint."""
        return bool(self["Torque_Enable"])

    def __getitem__(self, name: str) -> int:
        """Reads a value by name, past all rules."""
        field = FIELDS[name]
        data = self._memory[field.address : field.address + field.size]
        return int.from_bytes(data, "little", signed=field.signed)

    def __setitem__(self, name: str, value: int) -> None:
        """Writes a value by name, past all rules."""
        field = FIELDS[name]
        self._store(field.address, field.size, value)
        self.changed = True

    def _store(self, address: int, size: int, value: int) -> None:
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self._memory[address : address + size] = data

    def _resolve(self, address: int) -> int:
        """Follows an address in the indirect block to where it points."""
        for first, data, count in INDIRECT:
            if data <= address < data + count:
                place = first + 2 * (address - data)
                return int.from_bytes(self._memory[place : place + 2], "little")
        return address

    def read(self, address: int, length: int) -> tuple[int, bytes]:
        """Returns an error code and the bytes, as a Read instruction does."""
        if length == 0 or address + length > TABLE_SIZE:
            return ACCESS_ERROR, b""
        places = [self._resolve(place) for place in range(address, address + length)]
        return 0, bytes(self._memory[place] if place < TABLE_SIZE else 0 for place in places)

    def write(self, address: int, data: bytes) -> int:
        """Writes bytes as a Write instruction does; all or nothing. Returns an error code."""
        if address + len(data) > TABLE_SIZE or not data:
            return LENGTH_ERROR
        values: dict[str, int] = {}
        pointers: dict[int, int] = {}
        place = 0
        while place < len(data):
            target = self._resolve(address + place)
            pointed = target != address + place
            if not pointed and any(a <= target < a + 2 * n for a, _, n in INDIRECT):
                pointers[target] = data[place]
                place += 1
                continue
            name = FIELD_AT.get(target)
            if name is None:
                return ACCESS_ERROR
            field = FIELDS[name]
            chunk = data[place : place + field.size]
            if len(chunk) < field.size:
                return LENGTH_ERROR
            value = int.from_bytes(chunk, "little", signed=field.signed)
            error = self._refuses(name, field, value)
            if error:
                return error
            values[name] = value
            place += field.size
        for pointer, byte in pointers.items():
            self._memory[pointer] = byte
        for name, value in values.items():
            self._accept(name, value)
        return 0

    def _refuses(self, name: str, field: Field, value: int) -> int:
        if not field.writable or (field.address < EEPROM_END and self.torque):
            return ACCESS_ERROR
        high = field.high if field.high >= 0 else (1 << 8 * field.size) - 1
        if not field.low <= value <= high:
            return RANGE_ERROR
        if name == "Operating_Mode" and value not in OPERATING_MODES:
            return RANGE_ERROR
        if name in GOALS and self["Bus_Watchdog"] == 255:
            return RANGE_ERROR
        if name == "Torque_Enable" and value and self["Hardware_Error_Status"] & self["Shutdown"]:
            return RESULT_FAIL
        limits = {
            "Goal_Current": (-self["Current_Limit"], self["Current_Limit"]),
            "Goal_PWM": (-self["PWM_Limit"], self["PWM_Limit"]),
            "Goal_Velocity": (-self["Velocity_Limit"], self["Velocity_Limit"]),
        }
        if not self["Drive_Mode"] & 4:  # in a profile by time, it is no velocity
            limits["Profile_Velocity"] = (0, self["Velocity_Limit"])
        if self["Operating_Mode"] == 3:
            limits["Goal_Position"] = (self["Min_Position_Limit"], self["Max_Position_Limit"])
        low, high = limits.get(name, (value, value))
        return 0 if low <= value <= high else LIMIT_ERROR

    def _accept(self, name: str, value: int) -> None:
        before = self[name]
        self[name] = value
        if name == "Goal_Position" and self["Drive_Mode"] & 8 and not self.torque:
            self["Torque_Enable"] = 1  # Source: ROBOTIS e-Manual, Drive Mode (10), bit 3
        if name == "Torque_Enable" and value and not before:
            if self["Operating_Mode"] == 3:
                self.reset_turns()
            self["Goal_Position"] = self.position()
        if name == "Operating_Mode" and value != before:
            for reset in ("Position_P_Gain", "Position_I_Gain", "Position_D_Gain"):
                self[reset] = FIELDS[reset].default
            self["Profile_Velocity"] = self["Profile_Acceleration"] = 0
            self["Goal_Current"] = self["Current_Limit"]
            self["Goal_PWM"] = self["PWM_Limit"]
            if value == 3:
                self.reset_turns()

    def register(self, address: int, data: bytes) -> int:
        """Keeps a write for the next Action instruction."""
        self._registered = (address, data)
        self["Registered_Instruction"] = 1
        return 0

    def act(self) -> None:
        """Carries out the write that was kept."""
        if self._registered is not None:
            self.write(*self._registered)
            self._registered = None
            self["Registered_Instruction"] = 0

    def fail(self, error: int) -> None:
        """Raises a hardware error; the servo lets go if its Shutdown value says so."""
        self["Hardware_Error_Status"] |= error
        if self["Hardware_Error_Status"] & self["Shutdown"]:
            self["Torque_Enable"] = 0


def word(data: bytes, at: int) -> int:
    """Returns the two bytes at `at` as a number, low byte first."""
    return data[at] | data[at + 1] << 8


def alert(servo: Servo) -> int:
    """Returns the alert bit of a servo's status packets."""
    return ALERT if servo["Hardware_Error_Status"] else 0
