"""One serial bus with the servos of an arm."""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import math
import os
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel.arm import IDS, SERVOS
from alohas2r.robots.dynamixel.registers import (
    ALERT_BIT,
    FIRMWARE_VERSION,
    MODEL_NAMES,
    MODEL_NUMBER,
    Register,
    signed_value,
)

Answer = TypeVar("Answer")


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
        FoundServo(servo_id, signed_value(data, MODEL_NUMBER), signed_value(data, FIRMWARE_VERSION))
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


class _NoAnswer(RobotFault):
    """A servo stayed silent, or its answers were damaged, through all retries."""


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
