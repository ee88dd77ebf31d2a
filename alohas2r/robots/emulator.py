"""Two arms' Dynamixel buses on pseudo-terminals, with physics behind them.

Each bus speaks protocol 2.0 as nine servos of a ViperX 300 S would, so that unmodified software for
real arms runs against it: control tables with their access rules, status packets, shadows, the bus
watchdog, reboots, and faults on demand. The joints move in the MuJoCo insertion scene, in real time
or step by step. The emulator runs in a process of its own, `serve`; an `Emulator` starts it, or
joins one that runs, and steps, inspects and disturbs it over a control socket.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import json
import math
import multiprocessing
import multiprocessing.process
import os
import pathlib
import pty
import select
import selectors
import shutil
import signal
import socket
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import mujoco
import numpy as np

from alohas2r import runlog, scene
from alohas2r.config import check
from alohas2r.errors import Alohas2rError, ConfigError, RobotFault, did_you_mean
from alohas2r.robots import GRIPPERS, PER_ARM, SIDES, Frame
from alohas2r.robots.dynamixel import (
    CENTRE_TICK,
    CURRENT_UNIT_A,
    MASTERS,
    RAD_PER_TICK,
    SERVOS,
    VELOCITY_UNIT_RAD_S,
    XM430_W350,
    XM540_W270,
    GripperLinkage,
)
from alohas2r.robots.dynamixel import Servo as ServoKind

BROADCAST_ID = 0xFE
PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 0x10
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
STATUS = 0x55
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
# Torque per ampere at 12 V. Source: stall torque and current in the ROBOTIS e-Manual.
TORQUE_PER_AMPERE = {XM540_W270: 10.6 / 4.4, XM430_W350: 4.1 / 2.3}
FACTORY_P_GAIN = 800  # the gain that corresponds to the scene's actuators


class Field(NamedTuple):
    """One entry of the control table."""

    address: int
    size: int
    writable: bool
    default: int
    low: int = 0
    high: int = -1  # -1: whatever the size holds
    signed: bool = False


# Source: ROBOTIS e-Manual, control tables of the XM540-W270 and XM430-W350.
FIELDS: dict[str, Field] = {
    "Model_Number": Field(0, 2, False, 0),
    "Model_Information": Field(2, 4, False, 0),
    "Firmware_Version": Field(6, 1, False, 46),
    "ID": Field(7, 1, True, 1, 0, 252),
    "Baud_Rate": Field(8, 1, True, 3, 0, 7),
    "Return_Delay_Time": Field(9, 1, True, 250, 0, 254),
    "Drive_Mode": Field(10, 1, True, 0, 0, 0x0D),
    "Operating_Mode": Field(11, 1, True, 3, 0, 16),
    "Secondary_ID": Field(12, 1, True, 255, 0, 255),
    "Protocol_Type": Field(13, 1, True, 2, 1, 2),
    "Homing_Offset": Field(20, 4, True, 0, -1044479, 1044479, signed=True),
    "Moving_Threshold": Field(24, 4, True, 10, 0, 1023),
    "Temperature_Limit": Field(31, 1, True, 80, 0, 100),
    "Max_Voltage_Limit": Field(32, 2, True, 160, 95, 160),
    "Min_Voltage_Limit": Field(34, 2, True, 95, 95, 160),
    "PWM_Limit": Field(36, 2, True, 885, 0, 885),
    "Current_Limit": Field(38, 2, True, 2047, 0, 2047),
    "Velocity_Limit": Field(44, 4, True, 128, 0, 1023),
    "Max_Position_Limit": Field(48, 4, True, 4095, 0, 4095),
    "Min_Position_Limit": Field(52, 4, True, 0, 0, 4095),
    "Startup_Configuration": Field(60, 1, True, 0, 0, 3),
    "Shutdown": Field(63, 1, True, 52),
    "Torque_Enable": Field(64, 1, True, 0, 0, 1),
    "LED": Field(65, 1, True, 0, 0, 1),
    "Status_Return_Level": Field(68, 1, True, 2, 0, 2),
    "Registered_Instruction": Field(69, 1, False, 0),
    "Hardware_Error_Status": Field(70, 1, False, 0),
    "Velocity_I_Gain": Field(76, 2, True, 1920, 0, 16383),
    "Velocity_P_Gain": Field(78, 2, True, 100, 0, 16383),
    "Position_D_Gain": Field(80, 2, True, 0, 0, 16383),
    "Position_I_Gain": Field(82, 2, True, 0, 0, 16383),
    "Position_P_Gain": Field(84, 2, True, FACTORY_P_GAIN, 0, 16383),
    "Feedforward_2nd_Gain": Field(88, 2, True, 0, 0, 16383),
    "Feedforward_1st_Gain": Field(90, 2, True, 0, 0, 16383),
    "Bus_Watchdog": Field(98, 1, True, 0, 0, 127),
    "Goal_PWM": Field(100, 2, True, 885, -885, 885, signed=True),
    "Goal_Current": Field(102, 2, True, 0, -2047, 2047, signed=True),
    "Goal_Velocity": Field(104, 4, True, 0, -1023, 1023, signed=True),
    "Profile_Acceleration": Field(108, 4, True, 0, 0, 32767),
    "Profile_Velocity": Field(112, 4, True, 0, 0, 32767),
    "Goal_Position": Field(116, 4, True, 0, -1048575, 1048575, signed=True),
    "Realtime_Tick": Field(120, 2, False, 0),
    "Moving": Field(122, 1, False, 0),
    "Moving_Status": Field(123, 1, False, 0),
    "Present_PWM": Field(124, 2, False, 0, signed=True),
    "Present_Current": Field(126, 2, False, 0, signed=True),
    "Present_Velocity": Field(128, 4, False, 0, signed=True),
    "Present_Position": Field(132, 4, False, 0, signed=True),
    "Velocity_Trajectory": Field(136, 4, False, 0, signed=True),
    "Position_Trajectory": Field(140, 4, False, 0, signed=True),
    "Present_Input_Voltage": Field(144, 2, False, 120),
    "Present_Temperature": Field(146, 1, False, 35),
}
EEPROM_END = 64
TABLE_SIZE = 662
# Indirect addresses and the data behind them: (first address, first datum, how many).
INDIRECT = ((168, 224, 28), (578, 634, 28))
GOALS = ("Goal_PWM", "Goal_Current", "Goal_Velocity", "Goal_Position")
OPERATING_MODES = (0, 1, 3, 4, 5, 16)
_FIELD_AT = {field.address: name for name, field in FIELDS.items()}
_RAM_DEFAULTS = {
    name: field.default
    for name, field in FIELDS.items()
    if field.address >= EEPROM_END and field.writable
}
# The limits of the two models, where they differ from the table above.
_MODEL_LIMITS = {
    XM540_W270: {"Current_Limit": 2047, "Velocity_Limit": 128},
    XM430_W350: {"Current_Limit": 1193, "Velocity_Limit": 200},
}


class Servo:
    """The control table of one servo, with the rules of its firmware.

    Attributes:
      kind: what servo it is.
      torque: whether it drives its joint.
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
        self.changed = True  # since the physics looked last
        self.factory_reset(keep_id=False)

    def factory_reset(self, keep_id: bool) -> None:
        """Sets every value to its default; the arm's own set-up is lost but for the id."""
        servo_id = self["ID"] if keep_id else self.kind.id
        for name, field in FIELDS.items():
            self[name] = field.default
        for name, value in _MODEL_LIMITS[self.kind.model].items():
            self[name] = value
        for first, data, count in INDIRECT:
            for index in range(count):
                self._store(first + 2 * index, 2, data + index)
        self["Model_Number"] = self.kind.model
        self["ID"] = servo_id
        self.reboot()

    def reboot(self) -> None:
        """Starts anew: torque off, errors cleared, volatile values at their defaults."""
        for name, default in _RAM_DEFAULTS.items():
            self[name] = default
        self["Hardware_Error_Status"] = 0
        self["Goal_Current"] = self["Current_Limit"]
        self["Goal_PWM"] = self["PWM_Limit"]
        self["Goal_Velocity"] = self["Velocity_Limit"]
        self["Goal_Position"] = self.position()
        self["Registered_Instruction"] = 0
        self._registered = None
        self.changed = True

    def position(self) -> int:
        """Returns where the servo is (ticks)."""
        return self._position(self)

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
            name = _FIELD_AT.get(target)
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
        if self["Operating_Mode"] == 3:
            limits["Goal_Position"] = (self["Min_Position_Limit"], self["Max_Position_Limit"])
        low, high = limits.get(name, (value, value))
        return 0 if low <= value <= high else LIMIT_ERROR

    def _accept(self, name: str, value: int) -> None:
        before = self[name]
        self[name] = value
        if name == "Torque_Enable" and value and not before:
            self["Goal_Position"] = self.position()
        if name == "Operating_Mode" and value != before:
            for reset in ("Position_P_Gain", "Position_I_Gain", "Position_D_Gain"):
                self[reset] = FIELDS[reset].default
            self["Profile_Velocity"] = self["Profile_Acceleration"] = 0
            self["Goal_Current"] = self["Current_Limit"]

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


class World:
    """Both arms in the insertion scene, driven by what the servos' control tables say.

    Attributes:
      servos: per side, the nine servos.
      model, data: the physics.
      home: [nq] the pose of the keyframe home.
    """

    def __init__(self, linkage: GripperLinkage | None = None) -> None:
        """Starts at the keyframe home, with torque off."""
        insert = scene.load("insert")
        self.model = scene.spec("insert").compile()  # its actuators change: not the shared one
        self.data = mujoco.MjData(self.model)
        self._arms = insert.arms
        self._linkage = linkage or GripperLinkage()
        self._joints = np.array([arm.qpos[:PER_ARM] for arm in insert.arms]).reshape(-1)
        self._dofs = np.array([arm.qvel[:PER_ARM] for arm in insert.arms]).reshape(-1)
        self._actuators = np.array([arm.ctrl for arm in insert.arms]).reshape(-1)
        self._gain = self.model.actuator_gainprm[self._actuators, 0].copy()
        self.home = insert.home_qpos
        self.servos = {
            side: [Servo(kind, self._position_of(side, kind)) for kind in SERVOS] for side in SIDES
        }
        self._reference = np.zeros(len(self._actuators))
        self._speed = np.zeros(len(self._actuators))
        self._goal = np.zeros(len(self._actuators))
        self._driven = np.zeros(len(self._actuators), bool)
        self._max_speed = np.full(len(self._actuators), np.inf)
        self._max_acceleration = np.full(len(self._actuators), np.inf)
        self._max_torque = np.full(len(self._actuators), np.inf)
        self.place(self.home)

    @property
    def time_s(self) -> float:
        """Simulated seconds since the start."""
        return float(self.data.time)

    def place(self, qpos: np.ndarray, qvel: np.ndarray | None = None) -> None:
        """Puts everything somewhere; servos with torque hold there."""
        self.data.qpos[:] = qpos
        self.data.qvel[:] = 0.0 if qvel is None else qvel
        self.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        for servo in self._all():
            servo["Goal_Position"] = servo.position()
        self._reference[:] = self.data.qpos[self._joints]
        self._speed[:] = 0.0

    def step(self, count: int = 1) -> None:
        """Advances by physics steps of 5 ms."""
        for _ in range(count):
            if any(servo.changed for servo in self._all()):
                self._take_over()
            self._advance_references()
            self._push()
            mujoco.mj_step(self.model, self.data)

    def refresh(self, side: str, servo: Servo) -> None:
        """Brings the measured values of a servo's table up to date."""
        index = SIDES.index(side) * PER_ARM + servo.kind.joint
        sign = self._sign(servo)
        per_rad = self._per_rad(index)
        velocity = self.data.qvel[self._dofs[index]] / per_rad * sign
        drivers = [twin for twin in self._twins(side, servo.kind.joint) if twin.torque]
        torque = self.data.actuator_force[self._actuators[index]] * per_rad * sign
        share = 1 / len(drivers) if servo.torque else 0.0
        current = torque * share / TORQUE_PER_AMPERE[servo.kind.model]
        values = {
            "Present_Position": servo.position(),
            "Present_Velocity": round(velocity / VELOCITY_UNIT_RAD_S),
            "Present_Current": int(np.clip(round(current / CURRENT_UNIT_A), -2047, 2047)),
            "Realtime_Tick": int(self.data.time * 1000) % 32768,
        }
        changed = servo.changed
        for name, value in values.items():
            servo[name] = value
        servo["Moving"] = int(abs(servo["Present_Velocity"]) > servo["Moving_Threshold"])
        servo["Position_Trajectory"] = self._tick(servo, float(self._reference[index]))
        servo.changed = changed

    def goals(self) -> np.ndarray:
        """Returns [14] what the servos strive for, in the joints' units."""
        self._take_over()
        return self._goal.copy()

    def _all(self) -> Iterator[Servo]:
        for servos in self.servos.values():
            yield from servos

    def _twins(self, side: str, joint: int) -> list[Servo]:
        return [servo for servo in self.servos[side] if servo.kind.joint == joint]

    def _sign(self, servo: Servo) -> int:
        """+1 if more ticks mean more joint angle: set-up and mounting cancel each other."""
        mounted = -1 if servo.kind.reverse else 1
        return mounted * (-1 if servo["Drive_Mode"] & 1 else 1)

    def _per_rad(self, index: int) -> float:
        """Returns how far joint `index` moves per rad of its servo."""
        if index not in GRIPPERS:
            return 1.0
        travel = self.data.qpos[self._joints[index]]
        return max(float(self._linkage.ratio(self._linkage.angle(travel))), 1e-3)

    def _tick(self, servo: Servo, joint_value: float) -> int:
        """Returns what a servo reports when its joint is somewhere."""
        gripper = servo.kind.joint == PER_ARM - 1
        angle = float(self._linkage.angle(joint_value)) if gripper else joint_value
        turn = round(self._sign(servo) * angle / RAD_PER_TICK)
        return CENTRE_TICK + turn + servo["Homing_Offset"]

    def _joint_value(self, servo: Servo, tick: int) -> float:
        angle = self._sign(servo) * (tick - servo["Homing_Offset"] - CENTRE_TICK) * RAD_PER_TICK
        gripper = servo.kind.joint == PER_ARM - 1
        return float(self._linkage.travel(angle)) if gripper else angle

    def _position_of(self, side: str, kind: ServoKind) -> Callable[[Servo], int]:
        address = self._joints[SIDES.index(side) * PER_ARM + kind.joint]
        return lambda servo: self._tick(servo, float(self.data.qpos[address]))

    def _take_over(self) -> None:
        """Reads goals, gains and profiles from the control tables."""
        for place, side in enumerate(SIDES):
            for kind in MASTERS:
                index = place * PER_ARM + kind.joint
                twins = self._twins(side, kind.joint)
                drivers = [servo for servo in twins if servo.torque]
                actuator = self._actuators[index]
                gain = self._gain[index] * sum(
                    servo["Position_P_Gain"] / FACTORY_P_GAIN / len(twins) for servo in drivers
                )
                self.model.actuator_gainprm[actuator, 0] = gain
                self.model.actuator_biasprm[actuator, 1] = -gain
                if drivers:
                    if not self._driven[index]:
                        self._reference[index] = self.data.qpos[self._joints[index]]
                        self._speed[index] = 0.0
                    goals = [self._joint_value(servo, servo["Goal_Position"]) for servo in drivers]
                    self._goal[index] = sum(goals) / len(goals)
                    self._set_profile(index, drivers[0])
                self._driven[index] = bool(drivers)
                for servo in twins:
                    servo.changed = False

    def _set_profile(self, index: int, servo: Servo) -> None:
        per_rad = self._per_rad(index)
        speed, acceleration = servo["Profile_Velocity"], servo["Profile_Acceleration"]
        self._max_speed[index] = speed * VELOCITY_UNIT_RAD_S * per_rad if speed else np.inf
        self._max_acceleration[index] = (
            acceleration * 214.577 * 2 * math.pi / 3600 * per_rad if acceleration else np.inf
        )
        limited = servo["Operating_Mode"] == 5
        amperes = abs(servo["Goal_Current"]) * CURRENT_UNIT_A
        torque = amperes * TORQUE_PER_AMPERE[servo.kind.model]
        self._max_torque[index] = torque if limited else np.inf

    def _advance_references(self) -> None:
        """Moves each servo's internal set point towards its goal along its profile."""
        dt = self.model.opt.timestep
        distance = self._goal - self._reference
        # Fast enough to arrive, slow enough to stop there.
        with np.errstate(invalid="ignore"):  # no limit, no distance
            stopping = np.sqrt(2 * self._max_acceleration * np.abs(distance))
        speed = np.sign(distance) * np.fmin(
            np.abs(distance) / dt, np.fmin(self._max_speed, stopping)
        )
        change = self._max_acceleration * dt
        self._speed = np.clip(speed, self._speed - change, self._speed + change)
        self._reference += self._speed * dt

    def _push(self) -> None:
        """Hands the set points to the actuators, no further away than the force limit allows."""
        position = self.data.qpos[self._joints]
        gain = self.model.actuator_gainprm[self._actuators, 0]
        ratio = np.ones(len(position))
        grippers = list(GRIPPERS)
        angle = self._linkage.angle(position[grippers])
        ratio[grippers] = np.maximum(self._linkage.ratio(angle), 1e-3)
        reach = self._max_torque / ratio / np.maximum(gain, 1e-9)
        self.data.ctrl[self._actuators] = np.clip(
            self._reference, position - reach, position + reach
        )


@dataclasses.dataclass(frozen=True)
class Faults:
    """What is wrong with a bus.

    Attributes:
      drop: probability that an answer is lost.
      corrupt: probability that an answer has a flipped bit.
      garbage: probability that noise precedes an answer.
      latency_s: delay of every answer.
      silent: ids that do not answer (nor listen).
    """

    drop: float = 0.0
    corrupt: float = 0.0
    garbage: float = 0.0
    latency_s: float = 0.0
    silent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("drop", "corrupt", "garbage"):
            check(0 <= getattr(self, name) <= 1, f"{name} must be a probability")
        check(0 <= self.latency_s <= 10, "latency_s must lie in 0..10")


def crc16(data: bytes) -> int:
    """Returns the checksum of a packet.

    Source: ROBOTIS e-Manual, protocol 2.0: CRC-16 with polynomial 0x8005, start 0, not reflected.
    """
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC[value >> 8 ^ byte]
    return value


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x8005) & 0xFFFF if value & 0x8000 else value << 1
        table.append(value)
    return table


_CRC = _crc_table()
HEADER = b"\xff\xff\xfd\x00"


def status_packet(servo_id: int, error: int, data: bytes) -> bytes:
    """Builds a status packet, stuffed and with its checksum."""
    body = bytes([STATUS, error]) + data
    body = body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
    packet = HEADER + bytes([servo_id]) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc16(packet).to_bytes(2, "little")


class BusEmulator:
    """One arm's bus: takes bytes, gives bytes.

    Attributes:
      side: "left" or "right".
      faults: what is wrong with it.
      heard_s: when the last instruction came (world's clock).
      instructions: how many instructions of each kind came.
    """

    def __init__(self, side: str, world: World, seed: int = 0) -> None:
        """Creates the bus of one arm of the world."""
        self.side = side
        self.faults = Faults()
        self.heard_s = -math.inf
        self.instructions: collections.Counter[int] = collections.Counter()
        self.baud: Callable[[], int] = lambda: termios.B1000000
        self._world = world
        self._servos = world.servos[side]
        self._buffer = bytearray()
        self._rng = np.random.default_rng(seed)

    def receive(self, data: bytes, now_s: float) -> list[bytes]:
        """Takes bytes from the wire and returns the answers."""
        self._buffer += data
        answers: list[bytes] = []
        while (packet := self._next_packet()) is not None:
            answers += self._handle(packet, now_s)
        return [damaged for answer in answers for damaged in self._disturb(answer)]

    def watch(self, now_s: float) -> None:
        """Lets servos stop that have not heard from their controller for too long."""
        for servo in self._servos:
            limit = servo["Bus_Watchdog"]
            if 0 < limit < 255 and now_s - self.heard_s > limit * 0.02:
                servo["Bus_Watchdog"] = 255
                servo["Goal_Position"] = servo.position()

    def _next_packet(self) -> bytes | None:
        """Cuts the next whole packet off the buffer, skipping whatever is none."""
        while True:
            start = self._buffer.find(HEADER)
            if start < 0:
                del self._buffer[: max(0, len(self._buffer) - len(HEADER) + 1)]
                return None
            del self._buffer[:start]
            if len(self._buffer) < 7:
                return None
            length = int.from_bytes(self._buffer[5:7], "little")
            if not 3 <= length <= 1024:
                del self._buffer[: len(HEADER)]
                continue
            if len(self._buffer) < 7 + length:
                return None
            packet = bytes(self._buffer[: 7 + length])
            del self._buffer[: 7 + length]
            return packet

    def _handle(self, packet: bytes, now_s: float) -> list[bytes]:
        servo_id, instruction = packet[4], packet[7]
        baud = self.baud()
        listening = [
            servo
            for servo in self._servos
            if servo["ID"] not in self.faults.silent
            and now_s >= servo.silent_until_s
            and BAUD_RATES.get(servo["Baud_Rate"]) == baud
        ]
        if crc16(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
            return [
                status_packet(servo_id, CRC_ERROR | _alert(servo), b"")
                for servo in listening
                if servo["ID"] == servo_id
            ]
        self.heard_s = now_s
        self.instructions[instruction] += 1
        parameters = packet[8:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        if servo_id == BROADCAST_ID:
            return self._broadcast(instruction, parameters, listening, now_s)
        answers = []
        for servo in listening:
            if servo["ID"] == servo_id:
                answers += self._answer(servo, instruction, parameters, now_s)
            elif servo["Secondary_ID"] == servo_id and instruction != PING:
                self._answer(servo, instruction, parameters, now_s)  # obeys, but stays silent
        return answers

    def _answer(
        self, servo: Servo, instruction: int, parameters: bytes, now_s: float
    ) -> list[bytes]:
        """Carries out an instruction to one servo and returns its status packet, if any."""
        error, data = 0, b""
        level_needed = 2
        if instruction == PING:
            level_needed = 0
            data = servo.read(0, 2)[1] + servo.read(6, 1)[1]
        elif instruction == READ and len(parameters) == 4:
            level_needed = 1
            self._world.refresh(self.side, servo)
            error, data = servo.read(_word(parameters, 0), _word(parameters, 2))
        elif instruction == WRITE and len(parameters) > 2:
            error = servo.write(_word(parameters, 0), parameters[2:])
        elif instruction == REG_WRITE and len(parameters) > 2:
            error = servo.register(_word(parameters, 0), parameters[2:])
        elif instruction == ACTION:
            servo.act()
        elif instruction == REBOOT:
            answer = self._status(servo, 0, b"", 2)
            servo.reboot()
            servo.silent_until_s = now_s + REBOOT_S
            return answer
        elif instruction == FACTORY_RESET and len(parameters) == 1:
            answer = self._status(servo, 0, b"", 2)
            servo.factory_reset(keep_id=parameters[0] != 0xFF)
            servo.silent_until_s = now_s + REBOOT_S
            return answer
        elif instruction == CLEAR and parameters[:1] == b"\x01":
            error = 0  # turns are not counted here, so there are none to clear
        else:
            error = INSTRUCTION_ERROR
        return self._status(servo, error, data, level_needed)

    def _status(self, servo: Servo, error: int, data: bytes, level_needed: int) -> list[bytes]:
        if servo["Status_Return_Level"] < level_needed:
            return []
        return [status_packet(servo["ID"], error | _alert(servo), data)]

    def _broadcast(
        self, instruction: int, parameters: bytes, listening: list[Servo], now_s: float
    ) -> list[bytes]:
        by_id = {servo["ID"]: servo for servo in listening}
        if instruction in (SYNC_READ, FAST_SYNC_READ) and len(parameters) > 4:
            address, length = _word(parameters, 0), _word(parameters, 2)
            asked = [(servo_id, address, length) for servo_id in parameters[4:]]
            return self._read_many(asked, by_id, fast=instruction == FAST_SYNC_READ)
        if instruction in (BULK_READ, FAST_BULK_READ):
            asked = [
                (parameters[at], _word(parameters, at + 1), _word(parameters, at + 3))
                for at in range(0, len(parameters) - 4, 5)
            ]
            return self._read_many(asked, by_id, fast=instruction == FAST_BULK_READ)
        if instruction == SYNC_WRITE and len(parameters) > 4:
            address, length = _word(parameters, 0), _word(parameters, 2)
            for at in range(4, len(parameters) - length, length + 1):
                self._write_to(
                    parameters[at], address, parameters[at + 1 : at + 1 + length], listening
                )
        elif instruction == BULK_WRITE:
            at = 0
            while at + 5 <= len(parameters):
                length = _word(parameters, at + 3)
                data = parameters[at + 5 : at + 5 + length]
                self._write_to(parameters[at], _word(parameters, at + 1), data, listening)
                at += 5 + length
        elif instruction == PING:
            return [
                answer
                for servo in sorted(listening, key=lambda servo: servo["ID"])
                for answer in self._answer(servo, PING, b"", now_s)
            ]
        elif instruction in (WRITE, REG_WRITE, ACTION, REBOOT, FACTORY_RESET, CLEAR):
            for servo in listening:
                self._answer(servo, instruction, parameters, now_s)
        return []

    def _write_to(self, servo_id: int, address: int, data: bytes, listening: list[Servo]) -> None:
        for servo in listening:
            if servo_id in (servo["ID"], servo["Secondary_ID"]):
                servo.write(address, data)

    def _read_many(
        self, asked: Sequence[tuple[int, int, int]], by_id: Mapping[int, Servo], fast: bool
    ) -> list[bytes]:
        results = []
        for servo_id, address, length in asked:
            servo = by_id.get(servo_id)
            if servo is None or servo["Status_Return_Level"] < 1:
                continue
            self._world.refresh(self.side, servo)
            error, data = servo.read(address, length)
            results.append((servo_id, error | _alert(servo), data))
        if not fast:
            return [status_packet(*result) for result in results]
        if len(results) < len(asked):
            return []  # the chain of answers breaks at the missing servo
        body = bytes([STATUS])
        size = 1 + sum(len(data) + 4 for _, _, data in results)
        packet = HEADER + bytes([BROADCAST_ID]) + size.to_bytes(2, "little") + body
        for servo_id, error, data in results:
            packet += bytes([error, servo_id]) + data
            packet += crc16(packet).to_bytes(2, "little")
        return [packet]

    def _disturb(self, answer: bytes) -> list[bytes]:
        faults = self.faults
        if faults.drop and self._rng.random() < faults.drop:
            return []
        if faults.corrupt and self._rng.random() < faults.corrupt:
            place, bit = self._rng.integers(len(answer)), self._rng.integers(8)
            damaged = bytearray(answer)
            damaged[place] ^= 1 << int(bit)
            answer = bytes(damaged)
        if faults.garbage and self._rng.random() < faults.garbage:
            answer = self._rng.bytes(int(self._rng.integers(1, 12))) + answer
        return [answer]


def _word(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8


def _alert(servo: Servo) -> int:
    return ALERT if servo["Hardware_Error_Status"] else 0


@dataclasses.dataclass(frozen=True)
class EmulatorConfig:
    """How the emulator runs.

    Attributes:
      realtime: whether the physics follows the clock; otherwise it moves only when told to.
      seed: of the disturbances.
      linkage: the grippers' cranks.
    """

    realtime: bool = True
    seed: int = 0
    linkage: GripperLinkage = dataclasses.field(default_factory=GripperLinkage)


class _Port:
    """A pseudo-terminal under a path of its own."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.master, False)
        path.unlink(missing_ok=True)
        path.symlink_to(os.ttyname(self.slave))

    def baud(self) -> int:
        return termios.tcgetattr(self.slave)[4]

    def drain(self) -> bytes:
        """Returns all bytes that the other side has written so far.

        The kernel hands bytes on a moment after they were written; a mark written behind them
        tells when the last of them has come. More may be written behind the mark meanwhile, and a
        port that is opened or flushed meanwhile loses the mark.
        """
        mark = b"\x00end of what was written\x00"
        os.write(self.slave, mark)
        data = bytearray()
        while mark not in data and select.select([self.master], [], [], 1.0)[0]:
            data += os.read(self.master, 4096)
        return bytes(data.replace(mark, b""))

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.slave)
        os.close(self.master)


class _Server:
    """The event loop of the emulator's process: two buses, the physics, the control socket."""

    # A starved emulator lets its world run slower rather than jump: no time passes unattended.
    MAX_LAG_S = 0.05
    LOOK_UP_S = 0.2  # how often to see whether a signal asked to stop

    def __init__(self, config: EmulatorConfig, directory: pathlib.Path) -> None:
        self._config = config
        self._directory = directory
        self._world = World(config.linkage)
        self._buses = {
            side: BusEmulator(side, self._world, config.seed + place)
            for place, side in enumerate(SIDES)
        }
        self._ports: dict[str, _Port] = {}
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        self._stopping = False
        for side in SIDES:
            self._plug(side)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / "control"))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        parent = multiprocessing.process.parent_process()
        if parent is not None:  # end with the process that started us, however it ends
            self._selector.register(parent.sentinel, selectors.EVENT_READ, self.stop)

    def run(self) -> None:
        start_s = time.monotonic()
        while not self._stopping:
            for key, _ in self._selector.select(self._patience(start_s)):
                key.data()
            if self._config.realtime:
                start_s = self._follow_clock(start_s)
            self._flush()
        for port in self._ports.values():
            port.close()
        self._listener.close()
        (self._directory / "control").unlink(missing_ok=True)

    def _patience(self, start_s: float) -> float:
        """Returns how long to wait for packets before something else is due."""
        waits = []
        now_s = time.monotonic()
        if self._config.realtime:
            waits.append(start_s + self._world.time_s + self._world.model.opt.timestep - now_s)
        if self._due:
            waits.append(self._due[0][0] - now_s)
        return max(0.0, min(waits, default=self.LOOK_UP_S))

    def _follow_clock(self, start_s: float) -> float:
        dt = self._world.model.opt.timestep
        lag = time.monotonic() - start_s - self._world.time_s
        if lag > self.MAX_LAG_S:
            start_s += lag - dt
            lag = dt
        self._advance(int(lag / dt))
        return start_s

    def _advance(self, steps: int) -> None:
        for _ in range(steps):
            for bus in self._buses.values():
                bus.watch(self._world.time_s)
            self._world.step()

    def _plug(self, side: str) -> None:
        port = _Port(self._directory / side)
        self._ports[side] = port
        self._buses[side].baud = port.baud
        self._selector.register(port.master, selectors.EVENT_READ, lambda: self._receive(side))

    def _unplug(self, side: str) -> None:
        port = self._ports.pop(side, None)
        if port is not None:
            self._selector.unregister(port.master)
            port.close()

    def _receive(self, side: str) -> None:
        try:
            data = os.read(self._ports[side].master, 4096)
        except (BlockingIOError, OSError):
            return
        self._take(side, data)

    def _take(self, side: str, data: bytes) -> None:
        bus = self._buses[side]
        due_s = time.monotonic() + bus.faults.latency_s
        for answer in bus.receive(data, self._world.time_s):
            self._count += 1
            heapq.heappush(self._due, (due_s, self._count, side, answer))
        self._flush()

    def _flush(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, side, answer = heapq.heappop(self._due)
            if side in self._ports:
                try:
                    os.write(self._ports[side].master, answer)
                except BlockingIOError:
                    continue  # nobody reads: the bytes are lost, as on a wire

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        stream = connection.makefile("rwb")

        def serve() -> None:
            line = stream.readline()
            if not line:
                self._selector.unregister(connection)
                stream.close()
                connection.close()
                return
            try:
                reply = {"ok": self._control(**json.loads(line))}
            except (Alohas2rError, TypeError, ValueError, KeyError, IndexError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()

        self._selector.register(connection, selectors.EVENT_READ, serve)

    def _control(self, op: str, **arguments: Any) -> Any:
        operations: dict[str, Callable[..., Any]] = {
            "state": self._state,
            "step": self._step,
            "place": self._place,
            "faults": self._set_faults,
            "overload": lambda side, servo: self._servo(side, servo).fail(OVERLOAD),
            "temperature": self._heat,
            "unplug": self._unplug,
            "plug": self._replug,
            "peek": lambda side, servo, name: self._servo(side, servo)[name],
            "poke": self._poke,
            "instructions": lambda side: dict(self._buses[side].instructions),
            "reset": self._reset,
            "stop": self.stop,
        }
        if op not in operations:
            raise ConfigError(f"Unknown operation '{op}'.{did_you_mean(op, operations)}")
        self._drain()  # what was sent over the buses before comes first
        return operations[op](**arguments)

    def _servo(self, side: str, servo: int) -> Servo:
        return next(one for one in self._world.servos[side] if one.kind.id == servo)

    def _poke(self, side: str, servo: int, name: str, value: int) -> None:
        self._servo(side, servo)[name] = value

    def _drain(self) -> None:
        for side, port in self._ports.items():
            self._take(side, port.drain())

    def _state(self) -> dict[str, Any]:
        world = self._world
        return {
            "time_s": world.time_s,
            "qpos": world.data.qpos.tolist(),
            "qvel": world.data.qvel.tolist(),
            "goals": world.goals().tolist(),
            "torque": [[servo.torque for servo in world.servos[side]] for side in SIDES],
            "watchdog": [[servo["Bus_Watchdog"] for servo in world.servos[side]] for side in SIDES],
        }

    def _step(self, seconds: float) -> float:
        self._advance(round(seconds / self._world.model.opt.timestep))
        return self._world.time_s

    def _place(self, qpos: list[float], qvel: list[float] | None = None) -> None:
        speeds = None if qvel is None else np.array(qvel)
        self._world.place(np.array(qpos), speeds)

    def _set_faults(self, side: str, **faults: Any) -> None:
        if "silent" in faults:
            faults["silent"] = tuple(faults["silent"])
        self._buses[side].faults = Faults(**faults)

    def _heat(self, side: str, servo: int, celsius: int) -> None:
        one = self._servo(side, servo)
        one["Present_Temperature"] = celsius
        if celsius > one["Temperature_Limit"]:
            one.fail(OVERHEATING)

    def _replug(self, side: str) -> None:
        if side not in self._ports:
            self._plug(side)

    def _reset(self) -> None:
        for side, bus in self._buses.items():
            self._replug(side)
            bus.faults = Faults()
            bus.instructions.clear()
            for servo in self._world.servos[side]:
                servo.factory_reset(keep_id=False)
                servo.silent_until_s = -math.inf
        self._world.place(self._world.home)

    def stop(self) -> None:
        self._stopping = True


def serve(
    config: EmulatorConfig,
    directory: str | os.PathLike[str],
    ready: Callable[[], None] | None = None,
) -> None:
    """Runs an emulator in this process until it is told to stop, or until Ctrl-C or SIGTERM.

    Args:
      config: how it runs.
      directory: where the ports `left` and `right` and the socket `control` appear.
      ready: called once the ports are there.

    Raises:
      RobotFault: an emulator runs in that directory already.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    control = directory / "control"
    if control.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(control)) == 0:
                raise RobotFault(f"An emulator runs in {directory} already.")
        control.unlink()  # left behind by one that was killed
    server = _Server(config, directory)
    with runlog.StopSignal(server.stop):
        if ready is not None:
            ready()
        server.run()


def _serve_child(config: EmulatorConfig, directory: pathlib.Path) -> None:
    """Runs an emulator for the process that started this one, which alone decides about Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Server(config, directory).run()


class EmulatedState(NamedTuple):
    """What an emulator's world looks like."""

    time_s: float  # simulated
    qpos: np.ndarray  # [nq] of the insertion scene
    qvel: np.ndarray  # [nv]
    goals: np.ndarray  # [14] what the servos strive for (rad, m)
    torque: np.ndarray  # [2, 9] bool
    watchdog: np.ndarray  # [2, 9] the Bus_Watchdog values; 255: stopped by it


class Emulator:
    """A handle on an emulator in another process.

    Attributes:
      directory: where its ports are.
      ports: serial ports of the left and the right arm.
    """

    def __init__(
        self, config: EmulatorConfig | None = None, directory: str | os.PathLike[str] | None = None
    ) -> None:
        """Prepares. Entering the context starts the emulator, or joins the one that runs.

        Args:
          config: how it runs.
          directory: joins the emulator that runs there; None starts one in a new directory, which
            ends with the context.
        """
        self._config = config or EmulatorConfig()
        self._owned = directory is None
        self.directory = pathlib.Path(directory or ".")
        self._process: multiprocessing.process.BaseProcess | None = None
        self._socket: socket.socket | None = None
        self._stream: Any = None

    @property
    def ports(self) -> tuple[str, str]:
        """Serial ports of the left and the right arm."""
        return str(self.directory / "left"), str(self.directory / "right")

    def __enter__(self) -> Self:
        """Starts or joins.

        Raises:
          RobotFault: it does not come up, or none runs in the directory.
        """
        if self._owned:
            self.directory = pathlib.Path(tempfile.mkdtemp(prefix="alohas2r-"))
            context = multiprocessing.get_context("spawn")
            self._process = context.Process(
                target=_serve_child, args=(self._config, self.directory), daemon=True
            )
            self._process.start()
        patience_s = time.monotonic() + (60.0 if self._owned else 1.0)
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.connect(str(self.directory / "control"))
                break
            except OSError as error:
                self._socket.close()
                ended = self._process is not None and not self._process.is_alive()
                if ended or time.monotonic() > patience_s:
                    self.__exit__(None, None, None)
                    raise RobotFault(f"No emulator answers in {self.directory}.") from error
                time.sleep(0.02)
        self._stream = self._socket.makefile("rwb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves; an emulator that this handle started ends."""
        if self._process is not None:
            if self._stream is not None and self._process.is_alive():
                self.stop()
            self._process.join(2.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None
            shutil.rmtree(self.directory, ignore_errors=True)
        for end in (self._stream, self._socket):
            if end is not None:
                end.close()
        self._stream = self._socket = None

    def state(self) -> EmulatedState:
        """Returns what the world looks like now."""
        reply = self._ask("state")
        return EmulatedState(reply.pop("time_s"), **{k: np.array(v) for k, v in reply.items()})

    def step(self, seconds: float = scene.CONTROL_PERIOD_S) -> float:
        """Advances a stepped emulator; returns its time (s)."""
        return float(self._ask("step", seconds=seconds))

    def place(self, qpos: np.ndarray, qvel: np.ndarray | None = None) -> None:
        """Puts arms and objects somewhere [nq]; servos with torque hold there."""
        speeds = None if qvel is None else qvel.tolist()
        self._ask("place", qpos=qpos.tolist(), qvel=speeds)

    def set_faults(self, side: str, faults: Faults | None = None) -> None:
        """Disturbs a bus from now on; None ends all disturbances."""
        self._ask("faults", side=side, **dataclasses.asdict(faults or Faults()))

    def overload(self, side: str, servo: int) -> None:
        """Lets a servo shut down by overload."""
        self._ask("overload", side=side, servo=servo)

    def heat(self, side: str, servo: int, celsius: int) -> None:
        """Sets a servo's temperature; above its limit (80) it shuts down."""
        self._ask("temperature", side=side, servo=servo, celsius=celsius)

    def unplug(self, side: str) -> None:
        """Takes a bus away, as pulling its USB plug does."""
        self._ask("unplug", side=side)

    def plug(self, side: str) -> None:
        """Brings a bus back, under the same path."""
        self._ask("plug", side=side)

    def peek(self, side: str, servo: int, name: str) -> int:
        """Reads a servo's control table past the bus."""
        return int(self._ask("peek", side=side, servo=servo, name=name))

    def poke(self, side: str, servo: int, name: str, value: int) -> None:
        """Writes a servo's control table past the bus and its rules."""
        self._ask("poke", side=side, servo=servo, name=name, value=value)

    def reset(self) -> None:
        """Gives every servo its factory values, plugs everything in, and puts the arms home."""
        self._ask("reset")

    def stop(self) -> None:
        """Ends the emulator, also one that this handle has only joined."""
        self._ask("stop")

    def instructions(self, side: str) -> dict[int, int]:
        """Returns how many instructions of each kind a bus has heard."""
        counts = self._ask("instructions", side=side)
        return {int(kind): count for kind, count in counts.items()}

    def _ask(self, op: str, **arguments: Any) -> Any:
        try:
            self._stream.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except (OSError, AttributeError) as error:
            raise RobotFault(f"The emulator in {self.directory} is gone.") from error
        if not line:
            raise RobotFault(f"The emulator in {self.directory} is gone.")
        reply = json.loads(line)
        if "error" in reply:
            raise ConfigError(f"The emulator refuses {op}: {reply['error']}")
        return reply["ok"]


class Renderer(Protocol):
    """What draws the emulated cameras' pictures, for instance `renderers.make("raycast", ...)`."""

    def render(self, poses: Any, looks: Any = None) -> Any:
        """Returns rgb [1, C, H, W, 3] and depth [1, C, H, W] of poses [1, nq]."""
        ...


class EmulatedCameras:
    """Draws both wrist cameras of an emulator from its present state.

    Pictures are drawn when they are asked for and one state is drawn but once, so that both cameras
    share one call of the renderer.
    """

    def __init__(self, emulator: Emulator, renderer: Renderer) -> None:
        """Joins an emulator and a renderer whose cameras are the two wrist cameras, left first."""
        self._emulator = emulator
        self._renderer = renderer
        self._drawn_s = -1.0
        self._number = 0
        self._rgb = self._depth = np.zeros(0)

    def cameras(self) -> tuple[EmulatedCamera, EmulatedCamera]:
        """Returns the left and the right camera."""
        return EmulatedCamera(SIDES[0], self), EmulatedCamera(SIDES[1], self)

    def frame(self, index: int) -> Frame:
        """Returns the picture of camera 0 (left) or 1 (right) as the world is now."""
        state = self._emulator.state()
        if state.time_s != self._drawn_s:
            rgb, depth = self._renderer.render(state.qpos[None])
            self._rgb, self._depth = np.asarray(rgb)[0], np.asarray(depth)[0]
            self._drawn_s = state.time_s
            self._number += 1
        return Frame(self._rgb[index], self._depth[index], time.monotonic(), self._number)


class EmulatedCamera:
    """One wrist camera of an emulator: the `Camera` protocol.

    Attributes:
      name: "left" or "right".
    """

    def __init__(self, name: str, cameras: EmulatedCameras) -> None:
        """Picks one of two cameras."""
        self.name = name
        self._cameras = cameras

    def __enter__(self) -> Self:
        """Needs nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing."""

    def read(self, max_age_s: float) -> Frame:
        """Returns the present picture; it is always new enough."""
        return self._cameras.frame(SIDES.index(self.name))
