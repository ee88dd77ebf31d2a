"""Drives both arms over their Dynamixel buses, without ROS, on the vendor's SDK.

One bus (serial port) per arm, nine servos each. Shoulder and elbow have two servos; the second
one, the shadow, obeys packets to its master by its Secondary_ID, so only masters are commanded.
Everything the servos are told outside the loop is read back; nothing here moves an arm except
`command` and `stop`, and nothing reboots a servo or cuts its torque unless asked to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from alohas2r.embodiment.joints import JOINTS, PER_ARM, SIDES
from alohas2r.embodiment.poses import hold_pose
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Proprio
from alohas2r.robots.dynamixel.arm import (
    IDS,
    MASTERS,
    SERVO_BY_ID,
    SERVOS,
    DynamixelConfig,
    Servo,
    joint_to_ticks,
    ticks_to_joint,
)
from alohas2r.robots.dynamixel.bus import Bus, check_servos, discover
from alohas2r.robots.dynamixel.registers import (
    ACCELERATION_UNIT_RAD_S2,
    BUS_WATCHDOG,
    CENTRE_TICK,
    CURRENT_BASED_POSITION_MODE,
    CURRENT_UNIT_A,
    DRIVE_MODE,
    EEPROM_END,
    GOAL_CURRENT,
    GOAL_POSITION,
    HARDWARE_ERROR,
    INPUT_VOLTAGE,
    MAX_POSITION_LIMIT,
    MIN_POSITION_LIMIT,
    NO_SECONDARY_ID,
    OPERATING_MODE,
    POSITION_D_GAIN,
    POSITION_I_GAIN,
    POSITION_MODE,
    POSITION_P_GAIN,
    PRESENT_CURRENT,
    PRESENT_POSITION,
    PRESENT_VELOCITY,
    PROFILE_ACCELERATION,
    PROFILE_VELOCITY,
    RAD_PER_TICK,
    RETURN_DELAY_TIME,
    SECONDARY_ID,
    TEMPERATURE,
    TORQUE_ENABLE,
    VELOCITY_UNIT_RAD_S,
    VOLTAGE_UNIT_V,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_S,
    Register,
    describe_error,
    signed_value,
)


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

    def setup_problems(self) -> tuple[str, ...]:
        """Returns what a connection that only reads has seen in the servos' set-up."""
        return ()

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
        angle = (signed_value(data, PRESENT_POSITION, start) - CENTRE_TICK) * RAD_PER_TICK
        speed = signed_value(data, PRESENT_VELOCITY, start) * VELOCITY_UNIT_RAD_S
        if joint == PER_ARM - 1:
            speed *= float(self.config.linkage.ratio(angle))
            angle = float(self.config.linkage.travel(angle))
        self._position[side, joint] = angle
        self._velocity[side, joint] = speed
        self._current[side, joint] = signed_value(data, PRESENT_CURRENT, start) * CURRENT_UNIT_A

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
                volts = signed_value(data, INPUT_VOLTAGE, INPUT_VOLTAGE.address) * VOLTAGE_UNIT_V
                self._voltage[side, index] = volts
                self._temperature[side, index] = signed_value(
                    data, TEMPERATURE, INPUT_VOLTAGE.address
                )
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
            (servo, register, wanted, signed_value(tables[servo.id], register))
            for servo in servos
            for register, wanted in self._wanted(servo)
            if signed_value(tables[servo.id], register) != wanted
        ]
        powered = any(signed_value(table, TORQUE_ENABLE) for table in tables.values())
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
                        f"{SIDES[side]} servo {servo_id} ({SERVO_BY_ID[servo_id].name}) reports"
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
