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
from typing import Self, TypeVar

from alohas2r.core.types import Untyped
from alohas2r.errors import Alohas2rError, BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import SERVO_BY_ID
from alohas2r.robots.dynamixel.registers import ALERT_BIT, Register

Answer = TypeVar("Answer")


class Bus:
    """One serial port with servos on it, locked for this process while it is open.

    Attributes:
      port: path of the serial port.
      baudrate: of the bus.
      reply_timeout_s: how long to wait for an answer beyond its time on the wire.
      counts: how often a packet went "unanswered", came "damaged" or was "repeated".
      alerts: ids of the servos whose last answer had the alert bit set.
    """

    def __init__(
        self, port: str, baudrate: int = 1_000_000, reply_timeout_s: float = 0.004, retries: int = 2
    ) -> None:
        """Prepares; `open` connects."""
        self.port = port
        self.counts: collections.Counter[str] = collections.Counter()
        self.alerts: set[int] = set()
        self._last_packet_s = -math.inf
        self._longest_pause_s = 0.0
        self.baudrate = baudrate
        self.reply_timeout_s = reply_timeout_s
        self._retries = retries
        self._sdk = _sdk()
        self._packets = self._sdk.PacketHandler(2.0)
        self._handler: Untyped = None
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
        """Opens the port and keeps other programs away from it.

        Programs that ask for the lock are turned away by it; all others by the operating system,
        unless they run as root.

        Raises:
          RobotFault: it is missing, not permitted, or used by another process.
        """
        others = adapter.holders(self.port)
        if others:
            raise RobotFault(_explain_use(self.port, others))
        try:
            handler = _port_handler(self._sdk, self.port, self.baudrate, self.reply_timeout_s)
            opened = handler.openPort()
        except Exception as error:
            raise RobotFault(_explain_open(self.port, error)) from error
        if not opened:
            raise RobotFault(f"{self.port} does not do {self.baudrate} baud; use 1000000.")
        try:
            fcntl.flock(handler.ser.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.ioctl(handler.ser.fileno(), termios.TIOCEXCL)
        except OSError as error:
            with contextlib.suppress(Exception):
                handler.closePort()
            raise RobotFault(_explain_use(self.port, adapter.holders(self.port))) from error
        self._handler = handler

    def close(self) -> None:
        """Closes the port and lets others use it; does nothing if it is closed."""
        handler, self._handler = self._handler, None
        if handler is None:
            return
        with contextlib.suppress(Exception):  # the port may be gone
            fcntl.ioctl(handler.ser.fileno(), termios.TIOCNXCL)
        with contextlib.suppress(Exception):
            handler.closePort()

    @contextlib.contextmanager
    def patience(self, reply_timeout_s: float, baudrate: int | None = None) -> Iterator[None]:
        """Waits otherwise for answers for a while, or speaks at another rate.

        Raises:
          RobotFault: the port is gone, or does not do that rate.
        """
        before, self.reply_timeout_s = self.reply_timeout_s, reply_timeout_s
        try:
            self._set_pace(baudrate or self.baudrate)
            yield
        finally:
            self.reply_timeout_s = before
            self._set_pace(self.baudrate)

    def _set_pace(self, baudrate: int) -> None:
        with self._guarded():  # the SDK's own way would close the port, and let others in
            self._handler.reply_timeout_s = self.reply_timeout_s
            if self._handler.ser.baudrate != baudrate:
                self._handler.ser.baudrate = baudrate
                self._handler.tx_time_per_byte = 10_000 / baudrate

    def ping(self, servo_id: int) -> int | None:
        """Returns the model number of a servo, or None if there is no answer."""
        try:
            model, _ = self._repeat(lambda: self._packets.ping(self._handler, servo_id), servo_id)
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

        data, error = self._repeat(ask, servo_id)
        self._check_status(servo_id, error, f"reading {register.name}")
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

        _, error = self._repeat(send, servo_id)
        self._check_status(servo_id, error, f"writing {value} to {register.name}")

    def reboot(self, servo_id: int) -> None:
        """Restarts a servo, which clears its hardware error and cuts its torque.

        Raises:
          RobotFault: no answer.
        """

        def send() -> tuple[None, int, int]:
            result, error = self._packets.reboot(self._handler, servo_id)
            return None, result, error

        self._repeat(send, servo_id)

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
            reason = "" if result == self._sdk.COMM_SUCCESS else self._packets.getTxRxResult(result)
        if reason:
            raise RobotFault(f"{self.port}: nothing could be sent ({reason}).")

    def take_pause_s(self) -> float:
        """Returns the longest time without an instruction since this was asked last (s), the present one included."""
        longest = max(self._longest_pause_s, time.monotonic() - self._last_packet_s)
        self._longest_pause_s = 0.0
        return longest

    def read_all(
        self, ids: Iterable[int], register: Register, retries: int | None = None
    ) -> dict[int, int]:
        """Reads one register of many servos; those that stay silent are missing in the result.

        Raises:
          RobotFault: the port is gone.
        """
        answers = self.sync_read(ids, register.address, register.size, retries)
        return {
            servo_id: int.from_bytes(data, "little", signed=register.signed)
            for servo_id, data in answers.items()
        }

    def write_all(self, register: Register, values: Mapping[int, int]) -> None:
        """Writes one register of many servos and reads it back.

        Raises:
          RobotFault: a servo does not answer or does not take its value.
        """
        answers = self.try_all(register, values)
        wrong = ", ".join(
            f"{servo_text(servo_id)} has {answers.get(servo_id, 'no answer')}"
            for servo_id, value in values.items()
            if answers.get(servo_id) != value
        )
        if wrong:
            raise RobotFault(f"{self.port}: {register.name} is not as written: {wrong}.")

    def try_all(self, register: Register, values: Mapping[int, int]) -> dict[int, int]:
        """Writes one register of many servos, whoever listens, and returns what is there then.

        Raises:
          RobotFault: the port is gone.
        """
        answers: dict[int, int] = {}
        for _ in range(1 + self._retries):
            self.sync_write(register, values)
            answers |= self.read_all(values, register)
            if answers == values:
                break
        return answers

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

    def _repeat(
        self, send: Callable[[], tuple[Answer, int, int]], servo_id: int
    ) -> tuple[Answer, int]:
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
        with self._guarded():
            reason = self._packets.getTxRxResult(result).partition("] ")[2]
        raise _NoAnswer(
            f"{servo_text(servo_id)} on {self.port}: {reason} Check power and cables along the chain."
        )

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns every error of the operating system and of the SDK into RobotFault."""
        if self._handler is None:
            raise RobotFault(f"{self.port} is not open.")
        try:
            self._handler.is_using = False  # an earlier exception may have left it set
            if self._expect_late:  # let what still comes pass by; sending clears it away
                time.sleep(self.reply_timeout_s)
                self._expect_late = False
            now_s = time.monotonic()
            self._longest_pause_s = max(self._longest_pause_s, now_s - self._last_packet_s)
            self._last_packet_s = now_s
            yield
        except (OSError, termios.error) as error:
            raise RobotFault(
                f"{self.port} is gone ({error}). The arm's servos hold by their watchdog. Check the"
                " USB cable and the adapter, then connect again."
            ) from error
        except Alohas2rError:
            raise
        except Exception as error:  # whatever the SDK makes of bytes that it did not expect
            raise RobotFault(
                f"{self.port}: dynamixel-sdk fails ({type(error).__name__}: {error}). Check the USB"
                " cable and the adapter, then connect again."
            ) from error

    def _note_alert(self, servo_id: int, error: int) -> None:
        (self.alerts.add if error & ALERT_BIT else self.alerts.discard)(servo_id)

    def _check_status(self, servo_id: int, error: int, what: str) -> None:
        self._note_alert(servo_id, error)
        if error & ~ALERT_BIT:
            with self._guarded():
                reason = self._packets.getRxPacketError(error & ~ALERT_BIT).partition("] ")[2]
            raise RobotFault(f"{servo_text(servo_id)} on {self.port} refuses {what}: {reason}")


def servo_text(servo_id: int) -> str:
    """Returns how to speak of a servo: "servo 4 (elbow)"."""
    servo = SERVO_BY_ID.get(servo_id)
    return f"servo {servo_id}" if servo is None else f"servo {servo_id} ({servo.name})"


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


def _sdk() -> Untyped:
    try:
        import dynamixel_sdk
    except ImportError as error:
        raise BackendUnavailable(
            "Driving the arms needs dynamixel-sdk: pip install 'alohas2r[robot]'."
        ) from error
    return dynamixel_sdk


def _port_handler(sdk: Untyped, path: str, baudrate: int, reply_timeout_s: float) -> Untyped:
    """Returns the SDK's port handler with two habits mended.

    It measured time with the wall clock, which may jump, and it waited 34 ms for each answer, most
    of a control period, because it reckons with a slow USB adapter.
    """

    class PortHandler(sdk.PortHandler):
        def setPacketTimeout(self, packet_length: int) -> None:
            self.setPacketTimeoutMillis(
                self.tx_time_per_byte * packet_length + 1000 * self.reply_timeout_s
            )

        def getCurrentTime(self) -> float:
            return time.monotonic() * 1000.0

        def setupPort(self, cflag_baud: int) -> bool:
            opened = super().setupPort(cflag_baud)
            self.ser.timeout = 0.001  # sleep until bytes come instead of spinning
            return opened

    handler = PortHandler(path)
    handler.baudrate = baudrate
    handler.reply_timeout_s = reply_timeout_s
    return handler


def _explain_use(port: str, others: Sequence[str]) -> str:
    who = f"{', '.join(others)}" if others else f"`sudo fuser -v {port}` names it"
    return (
        f"{port} is in use by another process ({who}); two must not drive one arm. Close it:"
        " Dynamixel Wizard, an Interbotix node, or another run."
    )


def _explain_open(port: str, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT or not os.path.exists(port):
        return (
            f"There is no serial port {port}. Plug in and power the arm; `ls /dev/ttyDXL*"
            " /dev/ttyUSB*` shows what is there."
        )
    if number == errno.EACCES:
        return f"{port} may not be opened: add yourself to the group dialout and log in again."
    if number == errno.EBUSY:
        return _explain_use(port, adapter.holders(port))
    return f"{port} could not be opened ({type(error).__name__}: {error}). Check the adapter."
