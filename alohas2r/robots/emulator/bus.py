"""An emulated bus: packets in, packets out, and faults."""

from __future__ import annotations

import collections
import dataclasses
import math
import termios
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.config import check
from alohas2r.robots.emulator.servo import (
    BAUD_RATES,
    CRC_ERROR,
    INSTRUCTION_ERROR,
    REBOOT_S,
    RESULT_FAIL,
    Servo,
    alert,
    word,
)
from alohas2r.robots.emulator.world import World

BROADCAST_ID = 0xFE
PING, READ, WRITE, REG_WRITE, ACTION, FACTORY_RESET, REBOOT, CLEAR = 1, 2, 3, 4, 5, 6, 8, 0x10
SYNC_READ, SYNC_WRITE, FAST_SYNC_READ = 0x82, 0x83, 0x8A
BULK_READ, BULK_WRITE, FAST_BULK_READ = 0x92, 0x93, 0x9A
STATUS = 0x55


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
                status_packet(servo_id, CRC_ERROR | alert(servo), b"")
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
            error, data = servo.read(word(parameters, 0), word(parameters, 2))
        elif instruction == WRITE and len(parameters) > 2:
            error = servo.write(word(parameters, 0), parameters[2:])
        elif instruction == REG_WRITE and len(parameters) > 2:
            error = servo.register(word(parameters, 0), parameters[2:])
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
            error = RESULT_FAIL if servo.torque else 0
            if not error:
                servo.reset_turns()
        else:
            error = INSTRUCTION_ERROR
        return self._status(servo, error, data, level_needed)

    def _status(self, servo: Servo, error: int, data: bytes, level_needed: int) -> list[bytes]:
        if servo["Status_Return_Level"] < level_needed:
            return []
        return [status_packet(servo["ID"], error | alert(servo), data)]

    def _broadcast(
        self, instruction: int, parameters: bytes, listening: list[Servo], now_s: float
    ) -> list[bytes]:
        by_id = {servo["ID"]: servo for servo in listening}
        if instruction in (SYNC_READ, FAST_SYNC_READ) and len(parameters) > 4:
            address, length = word(parameters, 0), word(parameters, 2)
            asked = [(servo_id, address, length) for servo_id in parameters[4:]]
            return self._read_many(asked, by_id, fast=instruction == FAST_SYNC_READ)
        if instruction in (BULK_READ, FAST_BULK_READ):
            asked = [
                (parameters[at], word(parameters, at + 1), word(parameters, at + 3))
                for at in range(0, len(parameters) - 4, 5)
            ]
            return self._read_many(asked, by_id, fast=instruction == FAST_BULK_READ)
        if instruction == SYNC_WRITE and len(parameters) > 4:
            address, length = word(parameters, 0), word(parameters, 2)
            for at in range(4, len(parameters) - length, length + 1):
                self._write_to(
                    parameters[at], address, parameters[at + 1 : at + 1 + length], listening
                )
        elif instruction == BULK_WRITE:
            at = 0
            while at + 5 <= len(parameters):
                length = word(parameters, at + 3)
                data = parameters[at + 5 : at + 5 + length]
                self._write_to(parameters[at], word(parameters, at + 1), data, listening)
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
            results.append((servo_id, error | alert(servo), data))
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
