"""Drives both arms over their Dynamixel buses, without ROS, on the vendor's SDK.

One bus (serial port) per arm, nine servos each. Shoulder and elbow have two servos; the second
one, the shadow, obeys packets to its master by its Secondary_ID, so only masters are commanded.
Everything the servos are told outside the loop is read back; nothing here moves an arm except
`command` and `stop`, and nothing reboots a servo or cuts its torque unless asked to.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from alohas2r.config import check
from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots import JOINTS, PER_ARM, SIDES, Proprio, hold_pose

Answer = TypeVar("Answer")


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


class Servo(NamedTuple):
    """What a servo of an arm must be."""

    id: int
    name: str
    joint: int  # 0..6, index into the arm's joints
    model: int
    reverse: bool  # Drive_Mode: turns the other way round
    shadow_of: int | None  # id of the master whose packets it obeys
    low: int  # position limits (ticks)
    high: int


# Source: recipe, section 8; position limits from the published vx300s motor configuration.
SERVOS = (
    Servo(1, "waist", 0, XM540_W270, False, None, 0, 4095),
    Servo(2, "shoulder", 1, XM540_W270, True, None, 841, 2867),
    Servo(3, "shoulder_shadow", 1, XM540_W270, False, 2, 841, 2867),
    Servo(4, "elbow", 2, XM540_W270, True, None, 898, 3094),
    Servo(5, "elbow_shadow", 2, XM540_W270, False, 4, 898, 3094),
    Servo(6, "forearm_roll", 3, XM540_W270, False, None, 0, 4095),
    Servo(7, "wrist_angle", 4, XM540_W270, True, None, 830, 3504),
    Servo(8, "wrist_rotate", 5, XM430_W350, False, None, 0, 4095),
    Servo(9, "gripper", 6, XM430_W350, False, None, 0, 4095),
)
IDS = tuple(servo.id for servo in SERVOS)
MASTERS = tuple(servo for servo in SERVOS if servo.shadow_of is None)
_BY_ID = {servo.id: servo for servo in SERVOS}


@dataclasses.dataclass(frozen=True)
class GripperLinkage:
    """The crank that turns the gripper servo's angle into the travel of each finger.

    The crank gives the distance of a finger's carriage from the gripper's middle; the scene counts
    travel from where its slide joint has zero, `offset` away from the middle. Other fingers than
    the scene's touch each other at another angle: `closed_at` finds the offset for them.

    Attributes:
      horn: length of the servo horn (m).
      rod: length of the connecting rod (m).
      offset: distance of the finger carriage from the middle at travel zero (m).

    Source: recipe, section 8 (horn, rod); position of the finger links in the scene (offset).
    """

    horn: float = 0.022
    rod: float = 0.036
    offset: float = 0.0191

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(0 < self.horn < self.rod, f"0 < horn < rod must hold: {self.horn}, {self.rod}")

    def travel(self, angle: Any) -> Any:
        """Returns the finger travel (m) at servo angles (rad)."""
        across = self.horn * np.cos(angle)
        return self.horn * np.sin(angle) + np.sqrt(self.rod**2 - across**2) - self.offset

    def angle(self, travel: Any) -> Any:
        """Returns the servo angle (rad) for finger travels (m); out of reach: the nearest angle.

        Source: law of cosines in the triangle of horn, rod and carriage.
        """
        distance = np.maximum(np.asarray(travel) + self.offset, 1e-6)
        sine = (distance**2 + self.horn**2 - self.rod**2) / (2 * distance * self.horn)
        return np.arcsin(np.clip(sine, -1.0, 1.0))

    def ratio(self, angle: Any) -> Any:
        """Returns the derivative of travel by angle (m/rad)."""
        across = self.horn * np.cos(angle)
        return across * (1 + self.horn * np.sin(angle) / np.sqrt(self.rod**2 - across**2))

    @classmethod
    def closed_at(cls, angle: float, touching_travel: float = 0.0079) -> GripperLinkage:
        """Returns the linkage of a gripper whose closed fingers were measured at a servo angle.

        Args:
          angle: servo angle (rad) at which the fingers just touch.
          touching_travel: travel (m) at which the scene's fingers touch.
        """
        plain = cls(offset=0.0)
        return cls(offset=float(plain.travel(angle)) - touching_travel)


def ticks_to_joint(ticks: Any, linkage: GripperLinkage) -> np.ndarray:
    """Converts servo positions [..., 7] of an arm to rad and, for the gripper, m of travel."""
    angles = (np.asarray(ticks, float) - CENTRE_TICK) * RAD_PER_TICK
    angles[..., -1] = linkage.travel(angles[..., -1])
    return angles


def joint_to_ticks(joints: Any, linkage: GripperLinkage) -> np.ndarray:
    """Converts an arm's positions [..., 7] to the nearest ticks within the servos' limits."""
    angles = np.array(joints, float)
    angles[..., -1] = linkage.angle(angles[..., -1])
    ticks = np.rint(angles / RAD_PER_TICK + CENTRE_TICK).astype(int)
    return np.clip(ticks, [servo.low for servo in MASTERS], [servo.high for servo in MASTERS])


@dataclasses.dataclass(frozen=True)
class DynamixelConfig:
    """How the arms are connected and set up.

    Attributes:
      ports: serial ports of the left and the right arm.
      baudrate: of both buses.
      reply_timeout_s: how long to wait for an answer beyond its time on the wire. It must exceed
        the latency timer of the USB adapter, which is to be set from 16 ms to 1 ms.
      retries: how often a packet that was lost or damaged is sent again.
      watchdog_s: a servo that hears no packet for this long stops by itself.
      max_speed_rad_s: Profile_Velocity of the arm joints; the gripper has none.
      max_acceleration_rad_s2: Profile_Acceleration of the arm joints; 0: none.
      gripper_current_a: limit of the gripper's current, hence of its force.
      gains: position P, I and D gain of every servo.
      health_period_s: how often voltages and temperatures are read.
      linkage: the gripper's crank.
    """

    ports: tuple[str, str] = ("/dev/ttyDXL_follower_left", "/dev/ttyDXL_follower_right")
    baudrate: int = 1_000_000
    reply_timeout_s: float = 0.004
    retries: int = 2
    watchdog_s: float = 0.12
    max_speed_rad_s: float = 3.14
    max_acceleration_rad_s2: float = 0.0
    gripper_current_a: float = 0.8
    gains: tuple[int, int, int] = (800, 0, 0)
    health_period_s: float = 1.0
    linkage: GripperLinkage = dataclasses.field(default_factory=GripperLinkage)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.ports[0] != self.ports[1], f"both arms have the same port {self.ports[0]}")
        check(0 < self.reply_timeout_s < 1, "reply_timeout_s must lie in (0, 1)")
        check(0 <= self.retries <= 10, "retries must be in 0..10")
        check(0.06 <= self.watchdog_s <= 0.2, "watchdog_s must lie in 0.06..0.2")
        check(0 < self.max_speed_rad_s <= 10, "max_speed_rad_s must lie in (0, 10]")
        check(self.max_acceleration_rad_s2 >= 0, "max_acceleration_rad_s2 must not be negative")
        check(0 < self.gripper_current_a <= 3.2, "gripper_current_a must lie in (0, 3.2] A")
        check(self.health_period_s > 0, "health_period_s must be positive")


class Bus:
    """One serial port with servos on it, locked for this process while it is open.

    Attributes:
      port: path of the serial port.
      counts: how often a packet went "unanswered", came "damaged" or was "repeated".
      alerts: ids of the servos whose last answer had the alert bit set.
      last_packet_s: when the last instruction was sent (monotonic clock).
    """

    def __init__(
        self, port: str, baudrate: int = 1_000_000, reply_timeout_s: float = 0.004, retries: int = 2
    ) -> None:
        """Prepares; `open` connects."""
        self.port = port
        self.counts: collections.Counter[str] = collections.Counter()
        self.alerts: set[int] = set()
        self.last_packet_s = -math.inf
        self._baudrate = baudrate
        self._reply_timeout_s = reply_timeout_s
        self._retries = retries
        self._sdk = _sdk()
        self._packets: Any = self._sdk.PacketHandler(2.0)
        self._handler: Any = None
        self._expect_late = False  # an answer was missed, and may yet come

    def __enter__(self) -> Self:
        """Opens the port."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the port."""
        self.close()

    def open(self) -> None:
        """Opens and locks the port.

        Raises:
          RobotFault: it is missing, not permitted, or used by another process.
        """
        handler = _port_handler(self._sdk, self.port, self._baudrate, self._reply_timeout_s)
        try:
            opened = handler.openPort()
        except OSError as error:
            raise RobotFault(_explain_open(self.port, error)) from error
        if not opened:
            raise RobotFault(f"{self.port} does not do {self._baudrate} baud; use 1000000.")
        try:
            fcntl.flock(handler.ser.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handler.closePort()
            raise RobotFault(
                f"{self.port} is in use by another process; two must not drive one arm. Stop the"
                f" other one (`fuser -v {self.port}` names it)."
            ) from error
        self._handler = handler

    def close(self) -> None:
        """Closes and unlocks the port; does nothing if it is closed."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.closePort()

    def ping(self, servo_id: int) -> int | None:
        """Returns the model number of a servo, or None if there is no answer."""
        try:
            model, _ = self._repeat(
                lambda: self._packets.ping(self._handler, servo_id), f"servo {servo_id}"
            )
        except _NoAnswer:
            return None
        return int(model)

    def read(self, servo_id: int, register: Register) -> int:
        """Reads one register.

        Raises:
          RobotFault: no answer, or the servo refuses.
        """

        def ask() -> tuple[bytes, int, int]:
            result = self._packets.readTx(self._handler, servo_id, register.address, register.size)
            while result == self._sdk.COMM_SUCCESS:
                packet, result = self._packets.rxPacket(self._handler, False)
                # The SDK would take a late answer to an earlier question, checksum and all.
                if result == self._sdk.COMM_SUCCESS and _answers(packet, servo_id, register.size):
                    return bytes(packet[9 : 9 + register.size]), result, packet[8]
            return b"", result, 0

        data, error = self._repeat(ask, f"servo {servo_id}")
        self._check_status(servo_id, error, f"reading address {register.address}")
        return int.from_bytes(data, "little", signed=register.signed)

    def write(self, servo_id: int, register: Register, value: int) -> None:
        """Writes one register; the servo confirms.

        Raises:
          RobotFault: no answer, or the servo refuses the value.
        """
        data = list(value.to_bytes(register.size, "little", signed=value < 0))

        def send() -> tuple[None, int, int]:
            result, error = self._packets.writeTxRx(
                self._handler, servo_id, register.address, register.size, data
            )
            return None, result, error

        _, error = self._repeat(send, f"servo {servo_id}")
        self._check_status(servo_id, error, f"writing {value} to address {register.address}")

    def reboot(self, servo_id: int) -> None:
        """Restarts a servo, which clears its hardware error and cuts its torque.

        Raises:
          RobotFault: no answer.
        """

        def send() -> tuple[None, int, int]:
            result, error = self._packets.reboot(self._handler, servo_id)
            return None, result, error

        self._repeat(send, f"servo {servo_id}")

    def sync_read(
        self, ids: Iterable[int], address: int, size: int, retries: int | None = None
    ) -> dict[int, bytes]:
        """Reads the same addresses of many servos with one packet.

        Servos whose answer is lost or damaged are asked again; those that stay silent are missing
        in the result. The error byte of each answer updates `alerts`.

        Args:
          ids: servos to ask.
          address: first address.
          size: number of bytes.
          retries: instead of the bus's own number.

        Raises:
          RobotFault: the port is gone.
        """
        waiting, answers = set(ids), {}
        for attempt in range(1 + (self._retries if retries is None else retries)):
            if not waiting:
                break
            self.counts["repeated"] += attempt > 0
            with self._guarded():
                sent = self._packets.syncReadTx(
                    self._handler, address, size, sorted(waiting), len(waiting), False
                )
                if sent != self._sdk.COMM_SUCCESS:
                    continue
                self._collect(waiting, answers, size)
        return answers

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """Writes one register of many servos with one packet, which no servo confirms.

        Raises:
          RobotFault: the port is gone.
        """
        parameters: list[int] = []
        for servo_id, value in values.items():
            parameters.append(servo_id)
            parameters += value.to_bytes(register.size, "little", signed=value < 0)
        with self._guarded():
            result = self._packets.syncWriteTxOnly(
                self._handler, register.address, register.size, parameters, len(parameters)
            )
        if result != self._sdk.COMM_SUCCESS:
            raise RobotFault(f"{self.port}: {self._packets.getTxRxResult(result)}")

    def read_all(self, ids: Iterable[int], register: Register) -> dict[int, int]:
        """Reads one register of many servos; those that stay silent are missing in the result.

        Raises:
          RobotFault: the port is gone.
        """
        answers = self.sync_read(ids, register.address, register.size)
        return {
            servo_id: int.from_bytes(data, "little", signed=register.signed)
            for servo_id, data in answers.items()
        }

    def write_all(self, register: Register, values: Mapping[int, int]) -> None:
        """Writes one register of many servos and reads it back.

        Raises:
          RobotFault: a servo does not answer or does not take its value.
        """
        found: dict[int, int] = {}
        for _ in range(1 + self._retries):
            self.sync_write(register, values)
            found = self.read_all(values, register)
            if found == values:
                return
        wrong = ", ".join(
            f"servo {servo_id} has {found.get(servo_id, 'no answer')}"
            for servo_id, value in values.items()
            if found.get(servo_id) != value
        )
        raise RobotFault(f"{self.port}: address {register.address} is not as written: {wrong}.")

    def _collect(self, waiting: set[int], answers: dict[int, bytes], size: int) -> None:
        """Takes answers off the wire until all are there or the time is up."""
        damaged = 0
        while len(waiting) > damaged:  # a damaged answer is one that will not come again
            packet, result = self._packets.rxPacket(self._handler, False)
            if result == self._sdk.COMM_RX_TIMEOUT:
                self.counts["unanswered"] += len(waiting)
                self._expect_late = True
                return
            if result != self._sdk.COMM_SUCCESS:
                self.counts["damaged"] += 1
                damaged += 1
                continue
            servo_id = packet[4]
            if servo_id not in waiting or not _answers(packet, servo_id, size):
                continue  # a late answer to an earlier question
            self._note_alert(servo_id, packet[8])
            answers[servo_id] = bytes(packet[9 : 9 + size])
            waiting.discard(servo_id)

    def _repeat(self, send: Callable[[], tuple[Answer, int, int]], what: str) -> tuple[Answer, int]:
        result = 0
        for attempt in range(1 + self._retries):
            self.counts["repeated"] += attempt > 0
            with self._guarded():
                answer, result, error = send()
            if result == self._sdk.COMM_SUCCESS:
                return answer, error
            kind = "unanswered" if result == self._sdk.COMM_RX_TIMEOUT else "damaged"
            self.counts[kind] += 1
            self._expect_late = True
        reason = self._packets.getTxRxResult(result).partition("] ")[2]
        raise _NoAnswer(f"{what} on {self.port}: {reason} Check power and cables along the chain.")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns the operating system's errors on the port into RobotFault."""
        if self._handler is None:
            raise RobotFault(f"{self.port} is not open.")
        self._handler.is_using = False  # an earlier exception may have left it set
        try:
            if self._expect_late:  # let what still comes pass by; sending clears it away
                time.sleep(self._reply_timeout_s)
                self._expect_late = False
            self.last_packet_s = time.monotonic()
            yield
        except (OSError, termios.error) as error:
            raise RobotFault(
                f"{self.port} is gone ({error}). The arm's servos hold by their watchdog. Check the"
                " USB cable and the adapter, then connect again."
            ) from error

    def _note_alert(self, servo_id: int, error: int) -> None:
        (self.alerts.add if error & ALERT_BIT else self.alerts.discard)(servo_id)

    def _check_status(self, servo_id: int, error: int, what: str) -> None:
        self._note_alert(servo_id, error)
        if error & ~ALERT_BIT:
            reason = self._packets.getRxPacketError(error & ~ALERT_BIT).partition("] ")[2]
            raise RobotFault(f"Servo {servo_id} on {self.port} refuses {what}: {reason}")


class FoundServo(NamedTuple):
    """A servo that answered."""

    id: int
    model: int
    firmware: int


def discover(bus: Bus, ids: Sequence[int] = IDS) -> list[FoundServo]:
    """Returns which of the servos are there.

    Raises:
      RobotFault: the port is gone.
    """
    answers = bus.sync_read(ids, MODEL_NUMBER.address, FIRMWARE_VERSION.address + 1)
    return [
        FoundServo(servo_id, _value(data, MODEL_NUMBER), _value(data, FIRMWARE_VERSION))
        for servo_id, data in sorted(answers.items())
    ]


def check_servos(found: Sequence[FoundServo], port: str) -> None:
    """Compares the servos on a bus with those of an arm.

    Raises:
      RobotFault: one is missing or of another model.
    """
    models = {servo.id: servo.model for servo in found}
    missing = [f"{servo.id} ({servo.name})" for servo in SERVOS if servo.id not in models]
    if missing:
        raise RobotFault(
            f"{port}: no answer from servo {', '.join(missing)} of {len(SERVOS)}. Check power,"
            " cables along the chain, ids and the baud rate (1 Mbps)."
        )
    wrong = [
        f"servo {servo.id} ({servo.name}) is model {models[servo.id]}, not {servo.model}"
        f" ({MODEL_NAMES[servo.model]})"
        for servo in SERVOS
        if models[servo.id] != servo.model
    ]
    if wrong:
        raise RobotFault(f"{port}: {'; '.join(wrong)}. This is not a ViperX 300 S.")


def describe_error(bits: int) -> str:
    """Returns a servo's hardware error bits in words."""
    return ", ".join(name for bit, name in ERROR_BITS.items() if bits & bit) or "none"


class DynamixelRobot:
    """Two ViperX 300 S arms on two buses: the `Robot` protocol on real servos.

    Attributes:
      config: how it is connected.
      passive: whether it only reads.
      buses: left, right; with their counts of lost and repeated packets.
      enabled: whether this object has switched torque on.
    """

    def __init__(self, config: DynamixelConfig | None = None, passive: bool = False) -> None:
        """Prepares; entering the context connects.

        Args:
          config: how the arms are connected and set up.
          passive: only ever reads: no set-up, no torque, no commands.
        """
        self.config = config or DynamixelConfig()
        self.passive = passive
        self.buses = tuple(
            Bus(
                port,
                self.config.baudrate,
                self.config.reply_timeout_s,
                self.config.retries,
            )
            for port in self.config.ports
        )
        self.enabled = False
        self._sent: np.ndarray | None = None
        self._position = np.full((len(SIDES), PER_ARM), np.nan)
        self._velocity = np.zeros((len(SIDES), PER_ARM))
        self._current = np.zeros((len(SIDES), PER_ARM))
        # Per servo rather than per joint: [2, 9].
        servos = (len(SIDES), len(SERVOS))
        self._seen_s = np.full(servos, time.monotonic())
        self._read_s = np.full(len(SIDES), time.monotonic())
        self._temperature = np.zeros(servos)
        self._voltage = np.zeros(servos)
        self._error = np.zeros(servos, int)
        self._health_s = -math.inf
        self._tripped = False

    def __enter__(self) -> Self:
        """Connects, checks the models, writes and verifies the set-up. Torque stays as it is.

        Raises:
          RobotFault: a port or servo is missing, of the wrong kind, or refuses its set-up.
        """
        try:
            for bus in self.buses:
                bus.open()
            for bus in self.buses:
                check_servos(discover(bus), bus.port)
                if not self.passive:
                    self._set_up(bus)
            proprio = self.read()
        except BaseException:
            self._close()
            raise
        if not np.isfinite(proprio.position).all():
            silent = [name for name, age in zip(JOINTS, proprio.age_s, strict=True) if age > 0]
            self._close()
            raise RobotFault(f"No answer from {', '.join(silent)} after the set-up; try again.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects. Arms that hold keep holding: their watchdogs are switched off first."""
        if self.enabled:
            for bus in self.buses:
                try:
                    bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))
                except RobotFault:
                    continue  # that arm's watchdog will hold it
        self._close()

    def read(self) -> Proprio:
        """Reads both arms.

        A servo that does not answer keeps its last values and grows older; `age_s` tells. Error
        bits are read as soon as a servo raises its alert, temperatures once in a while.

        Raises:
          RobotFault: a port is gone.
        """
        self._check_watchdog()
        size = PRESENT_POSITION.address + PRESENT_POSITION.size - PRESENT_CURRENT.address
        for side, bus in enumerate(self.buses):
            # A servo known to be silent is asked, but not waited for again and again.
            silent = np.ptp(self._seen_s[side]) > self.config.watchdog_s
            self._read_s[side] = time.monotonic()
            answers = bus.sync_read(
                IDS, PRESENT_CURRENT.address, size, retries=0 if silent else None
            )
            for index, servo in enumerate(SERVOS):
                if servo.id not in answers:
                    continue
                self._seen_s[side, index] = self._read_s[side]
                if servo.shadow_of is None:
                    self._store(side, servo.joint, answers[servo.id])
            self._read_errors(side, bus)
        if time.monotonic() - self._health_s > self.config.health_period_s:
            self._read_health()
        return self._proprio()

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sends targets to both arms.

        Args:
          ctrl: [14] rad, m for the grippers.

        Returns:
          [14] the targets as clipped to the servos' limits. They are not rounded to ticks, so that
          a policy's small steps add up; what moves differs by half a tick (0.8 mrad) at most.

        Raises:
          RobotFault: torque is off, a number is not finite, the port is gone, or the watchdog has
            stopped the arms since the last command.
        """
        if not self.enabled:
            raise RobotFault("Torque is off: call enable() before command().")
        if not np.isfinite(ctrl).all():
            raise RobotFault(f"A command must be finite; it has {ctrl}.")
        self._check_watchdog()
        if self._tripped:
            raise RobotFault(
                f"The servos heard nothing for {self.config.watchdog_s} s and have stopped by"
                " themselves; call rearm() once the cause is known."
            )
        sent = self._clip(ctrl)
        faults = self._send(sent)
        if faults:
            raise faults[0]
        return sent.copy()

    def stop(self) -> None:
        """Holds both arms where they are. A bus that is gone is left to its servos' watchdogs."""
        if not self.enabled or self._tripped:
            return
        measured = self._position.reshape(-1)
        self._send(self._clip(hold_pose(self._sent, measured)))

    def enable(self) -> None:
        """Switches torque on; the arms hold their present pose. Verified.

        Raises:
          RobotFault: a servo refuses, for instance because of a hardware error.
        """
        if self.passive:
            raise RobotFault(
                "This connection only reads; connect without passive to move the arms."
            )
        self._require_no_errors()
        present = self.read()
        if present.age_s.max() > self.config.watchdog_s:
            raise RobotFault("Some servos do not answer; torque stays off.")
        units = round(self.config.gripper_current_a / CURRENT_UNIT_A)
        for side, bus in enumerate(self.buses):
            ticks = joint_to_ticks(self._position[side], self.config.linkage)
            goals = {servo.id: int(tick) for servo, tick in zip(MASTERS, ticks, strict=True)}
            bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))  # a tripped one refuses goals
            bus.write_all(GOAL_POSITION, goals)
            bus.write_all(GOAL_CURRENT, {MASTERS[-1].id: units})
            bus.write_all(TORQUE_ENABLE, dict.fromkeys(IDS, 1))
        self._sent = self._clip(self._position.reshape(-1))
        self.enabled = True
        self._start_watchdogs()

    def disable(self) -> None:
        """Switches torque off on both arms. An arm that does not rest on something falls.

        Raises:
          RobotFault: a servo does not confirm; the other arm is switched off all the same.
        """
        failed: RobotFault | None = None
        for bus in self.buses:
            try:
                bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))
                bus.write_all(TORQUE_ENABLE, dict.fromkeys(IDS, 0))
            except RobotFault as fault:
                failed = fault
        self.enabled = False
        self._sent = None
        if failed is not None:
            raise failed

    def rearm(self) -> None:
        """Lets servos that stopped by their watchdog move again, from where they are.

        Raises:
          RobotFault: a servo does not confirm.
        """
        for bus in self.buses:
            bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))
        self._tripped = False
        self._sent = None
        self.read()
        if self.enabled:
            self.stop()
            self._start_watchdogs()

    def reboot(self, side: str, ids: Sequence[int]) -> None:
        """Restarts servos after a hardware error. Their torque is off afterwards: support the arm.

        Args:
          side: "left" or "right".
          ids: the servos.

        Raises:
          RobotFault: a servo does not come back within two seconds or refuses its set-up.
        """
        bus = self.buses[SIDES.index(side)]
        self.enabled = False
        for servo_id in ids:
            bus.reboot(servo_id)
        patience_s = time.monotonic() + 2.0
        while len(discover(bus, ids)) < len(ids):
            if time.monotonic() > patience_s:
                raise RobotFault(f"{bus.port}: servos {list(ids)} did not come back from a reboot.")
            time.sleep(0.05)
        bus.alerts.difference_update(ids)
        self._error[SIDES.index(side)] = 0
        self._set_up(bus)
        self.read()

    def _close(self) -> None:
        for bus in self.buses:
            bus.close()

    def _clip(self, ctrl: np.ndarray) -> np.ndarray:
        """Clips [14] targets to what the servos' position limits allow."""
        low, high = (
            ticks_to_joint([getattr(servo, end) for servo in MASTERS], self.config.linkage)
            for end in ("low", "high")
        )
        # The gripper servo may turn freely; its crank reaches from -90 to 90 degrees.
        low[-1], high[-1] = self.config.linkage.travel(np.array([-math.pi / 2, math.pi / 2]))
        return np.clip(ctrl, np.tile(low, len(SIDES)), np.tile(high, len(SIDES)))

    def _send(self, targets: np.ndarray) -> list[RobotFault]:
        """Sends [14] targets; a bus that is gone does not keep the other from getting its own."""
        faults = []
        for bus, arm in zip(self.buses, targets.reshape(len(SIDES), PER_ARM), strict=True):
            ticks = joint_to_ticks(arm, self.config.linkage)
            goals = {servo.id: int(tick) for servo, tick in zip(MASTERS, ticks, strict=True)}
            try:
                bus.sync_write(GOAL_POSITION, goals)
            except RobotFault as fault:
                faults.append(fault)
        self._sent = targets
        return faults

    def _store(self, side: int, joint: int, data: bytes) -> None:
        start = PRESENT_CURRENT.address
        angle = (_value(data, PRESENT_POSITION, start) - CENTRE_TICK) * RAD_PER_TICK
        speed = _value(data, PRESENT_VELOCITY, start) * VELOCITY_UNIT_RAD_S
        if joint == PER_ARM - 1:
            speed *= float(self.config.linkage.ratio(angle))
            angle = float(self.config.linkage.travel(angle))
        self._position[side, joint] = angle
        self._velocity[side, joint] = speed
        self._current[side, joint] = _value(data, PRESENT_CURRENT, start) * CURRENT_UNIT_A

    def _read_errors(self, side: int, bus: Bus) -> None:
        """Reads the error bits of the servos that raise their alert; clears those that do not."""
        raised = bus.alerts & set(IDS)
        if raised:
            for servo_id, bits in bus.read_all(raised, HARDWARE_ERROR).items():
                self._error[side, IDS.index(servo_id)] = bits
        for index, servo_id in enumerate(IDS):
            if servo_id not in raised:
                self._error[side, index] = 0

    def _read_health(self) -> None:
        size = TEMPERATURE.address + TEMPERATURE.size - INPUT_VOLTAGE.address
        for side, bus in enumerate(self.buses):
            answers = bus.sync_read(IDS, INPUT_VOLTAGE.address, size, retries=0)
            for servo_id, data in answers.items():
                index = IDS.index(servo_id)
                volts = _value(data, INPUT_VOLTAGE, INPUT_VOLTAGE.address) * VOLTAGE_UNIT_V
                self._voltage[side, index] = volts
                self._temperature[side, index] = _value(data, TEMPERATURE, INPUT_VOLTAGE.address)
        self._health_s = time.monotonic()

    def _proprio(self) -> Proprio:
        now_s = time.monotonic()
        joints = np.array([servo.joint for servo in SERVOS])
        # A joint is as old, hot and faulty as the worst of its servos.
        oldest = np.full((len(SIDES), PER_ARM), np.inf)
        lowest = np.full((len(SIDES), PER_ARM), np.inf)
        hottest = np.zeros((len(SIDES), PER_ARM))
        errors = np.zeros((len(SIDES), PER_ARM), int)
        for side in range(len(SIDES)):
            np.minimum.at(oldest[side], joints, self._seen_s[side])
            np.minimum.at(lowest[side], joints, self._voltage[side])
            np.maximum.at(hottest[side], joints, self._temperature[side])
            np.bitwise_or.at(errors[side], joints, self._error[side])
        age_s = np.where(oldest >= self._read_s[:, None], 0.0, now_s - oldest)
        return Proprio(
            time_s=now_s,
            position=self._position.reshape(-1).copy(),
            velocity=self._velocity.reshape(-1).copy(),
            current=self._current.reshape(-1).copy(),
            age_s=age_s.reshape(-1),
            temperature_c=hottest.reshape(-1),
            voltage_v=lowest.reshape(-1),
            hardware_error=errors.reshape(-1),
        )

    def _set_up(self, bus: Bus) -> None:
        """Writes what differs from the wanted set-up, masters first, and verifies all of it.

        A shadow obeys packets to its master, so writing a master may spoil its shadow; shadows
        are therefore compared and written after all masters.
        """
        bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))  # a crash may have left it tripped
        for servos in (MASTERS, [servo for servo in SERVOS if servo.shadow_of is not None]):
            # Writing one value may reset others: a new operating mode resets gains and profile.
            for _ in range(3):
                wrong = self._wrong(bus, servos)
                for servo, register, wanted, _ in wrong:
                    bus.write(servo.id, register, wanted)
                if not wrong:
                    break
        for servo, register, wanted, found in self._wrong(bus, SERVOS):
            raise RobotFault(
                f"{bus.port}: servo {servo.id} ({servo.name}) has {found} at address"
                f" {register.address} after {wanted} was written."
            )

    def _wrong(self, bus: Bus, servos: Sequence[Servo]) -> list[tuple[Servo, Register, int, int]]:
        """Returns what differs from the wanted set-up: servo, register, wanted, found."""
        tables = self._tables(bus)
        wrong = [
            (servo, register, wanted, _value(tables[servo.id], register))
            for servo in servos
            for register, wanted in self._wanted(servo)
            if _value(tables[servo.id], register) != wanted
        ]
        powered = any(_value(table, TORQUE_ENABLE) for table in tables.values())
        for servo, register, _, _ in wrong:
            if powered and register.address < EEPROM_END:
                raise RobotFault(
                    f"{bus.port}: servo {servo.id} ({servo.name}) needs another set-up (address"
                    f" {register.address}), which cannot be written while torque is on. Bring the"
                    " arm to rest, switch its torque off, and connect again."
                )
        return wrong

    def _tables(self, bus: Bus) -> dict[int, bytes]:
        """Reads the whole control table of every servo of an arm."""
        tables = bus.sync_read(IDS, 0, TEMPERATURE.address + TEMPERATURE.size)
        missing = [servo_id for servo_id in IDS if servo_id not in tables]
        if missing:
            raise RobotFault(f"{bus.port}: servos {missing} stopped answering. Check the cables.")
        return tables

    def _wanted(self, servo: Servo) -> list[tuple[Register, int]]:
        gripper = servo.joint == PER_ARM - 1
        speed = 0 if gripper else round(self.config.max_speed_rad_s / VELOCITY_UNIT_RAD_S)
        acceleration = (
            0 if gripper else round(self.config.max_acceleration_rad_s2 / ACCELERATION_UNIT_RAD_S2)
        )
        p_gain, i_gain, d_gain = self.config.gains
        return [
            (RETURN_DELAY_TIME, 0),
            (DRIVE_MODE, int(servo.reverse)),
            (OPERATING_MODE, CURRENT_BASED_POSITION_MODE if gripper else POSITION_MODE),
            (SECONDARY_ID, NO_SECONDARY_ID if servo.shadow_of is None else servo.shadow_of),
            (MAX_POSITION_LIMIT, servo.high),
            (MIN_POSITION_LIMIT, servo.low),
            (POSITION_P_GAIN, p_gain),
            (POSITION_I_GAIN, i_gain),
            (POSITION_D_GAIN, d_gain),
            (PROFILE_ACCELERATION, acceleration),
            (PROFILE_VELOCITY, speed),
        ]

    def _require_no_errors(self) -> None:
        for side, bus in enumerate(self.buses):
            for servo_id, bits in bus.read_all(IDS, HARDWARE_ERROR).items():
                if bits:
                    raise RobotFault(
                        f"{SIDES[side]} servo {servo_id} ({_BY_ID[servo_id].name}) reports"
                        f" {describe_error(bits)}. Find the cause, support the arm, and reboot it."
                    )

    def _start_watchdogs(self) -> None:
        units = round(self.config.watchdog_s / WATCHDOG_UNIT_S)
        for bus in self.buses:
            bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, units))

    def _check_watchdog(self) -> None:
        """Finds out whether the servos stopped by themselves, after a gap between packets."""
        if not self.enabled or self._tripped:
            return
        for bus in self.buses:
            # The servos' clocks are not ours: suspect a little early.
            if time.monotonic() - bus.last_packet_s > 0.8 * self.config.watchdog_s:
                found = bus.read_all(IDS, BUS_WATCHDOG)
                self._tripped |= WATCHDOG_TRIPPED in found.values()


class _NoAnswer(RobotFault):
    """A servo stayed silent, or its answers were damaged, through all retries."""


def _value(data: bytes, register: Register, start: int = 0) -> int:
    """Returns a register's value from bytes that were read from address `start` on."""
    place = register.address - start
    return int.from_bytes(data[place : place + register.size], "little", signed=register.signed)


def _answers(packet: Sequence[int], servo_id: int, size: int) -> bool:
    """Returns whether a status packet is a servo's answer with that many bytes.

    A refusal carries no bytes whatever was asked for. The length is the one in the packet: the SDK
    takes stuffing out of a packet without shortening its list.
    """
    length = packet[5] | packet[6] << 8  # of instruction, error, data and checksum
    refused = bool(packet[8] & ~ALERT_BIT) and length == 4
    return packet[4] == servo_id and (length == 4 + size or refused)


def _sdk() -> Any:
    try:
        import dynamixel_sdk
    except ImportError as error:
        raise BackendUnavailable(
            "Driving the arms needs dynamixel-sdk: pip install 'alohas2r[robot]'."
        ) from error
    return dynamixel_sdk


def _port_handler(sdk: Any, path: str, baudrate: int, reply_timeout_s: float) -> Any:
    """Returns the SDK's port handler with two habits mended.

    It measured time with the wall clock, which may jump, and it waited 34 ms for each answer, most
    of a control period, because it reckons with a slow USB adapter.
    """

    class PortHandler(sdk.PortHandler):
        def setPacketTimeout(self, packet_length: int) -> None:
            self.setPacketTimeoutMillis(
                self.tx_time_per_byte * packet_length + 1000 * reply_timeout_s
            )

        def getCurrentTime(self) -> float:
            return time.monotonic() * 1000.0

        def setupPort(self, cflag_baud: int) -> bool:
            opened = super().setupPort(cflag_baud)
            self.ser.timeout = 0.001  # sleep until bytes come instead of spinning
            return opened

    handler = PortHandler(path)
    handler.baudrate = baudrate
    return handler


def _explain_open(port: str, error: OSError) -> str:
    if error.errno == errno.ENOENT or not os.path.exists(port):
        return (
            f"There is no serial port {port}. Plug in and power the arm; `ls /dev/ttyDXL*"
            " /dev/ttyUSB*` shows what is there."
        )
    if error.errno == errno.EACCES:
        return f"{port} may not be opened: add yourself to the group dialout and log in again."
    return f"{port} could not be opened: {error}"
