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
from alohas2r.robots.base import Proprio, check_command
from alohas2r.robots.dynamixel import adapter, recovery
from alohas2r.robots.dynamixel import setup as servo_setup
from alohas2r.robots.dynamixel.arm import (
    IDS,
    MASTERS,
    DynamixelConfig,
    GripperLinkage,
    joint_to_ticks,
    ticks_to_joint,
)
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.discovery import check_servos, discover, misplaced
from alohas2r.robots.dynamixel.readings import HEALTH, MOTION, Readings
from alohas2r.robots.dynamixel.registers import (
    BUS_WATCHDOG,
    CURRENT_LIMIT,
    CURRENT_UNIT_A,
    GOAL_CURRENT,
    GOAL_POSITION,
    HARDWARE_ERROR,
    TORQUE_ENABLE,
    WATCHDOG_TRIPPED,
    WATCHDOG_UNIT_S,
    describe_error,
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
        self._readings = Readings(self.config.linkages, self.config.joint_offsets_rad)
        self._problems: list[str] = []
        self._turn = 0  # which arm is asked for what is not needed at every reading
        self._health_s = [-math.inf] * len(SIDES)
        self._heard: list[tuple[int, ...]] = [IDS] * len(SIDES)
        self._suspect = [False] * len(SIDES)  # whether servos may have stopped by their watchdogs
        self._tripped = False

    def __enter__(self) -> Self:
        """Connects, checks the models, writes and verifies the set-up. Torque stays as it is.

        Raises:
          RobotFault: a port or servo is missing, of the wrong kind, or not set up as it must be.
        """
        try:
            for bus in self.buses:
                bus.open()
                self._check_adapter(bus)
            for bus in self.buses:
                if not self.passive:
                    servo_setup.ask_for_answers(bus)
                check_servos(discover(bus), bus)
                if not self.passive:
                    servo_setup.prepare(bus, self.config)
            self._start_reading()
        except BaseException:
            self._close()
            raise
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
        for side, bus in enumerate(self.buses):
            # A servo known to be silent is asked, but not waited for again and again.
            silent = self._readings.silent_s(side) > self.config.watchdog_s
            self._readings.ask(side)
            answers = bus.sync_read(IDS, *MOTION, retries=0 if silent else None)
            self._readings.take_motion(side, answers)
            self._heard[side] = tuple(answers)  # who is silent is not waited for a second time
            raised = bus.alerts & set(IDS)
            self._readings.take_errors(
                side, raised, bus.read_all(raised, HARDWARE_ERROR) if raised else {}
            )
        # Torque of one arm and health of the other: each is known again after two readings.
        self._turn = 1 - self._turn
        self._read_torque(self._turn, retries=0)
        period_s = self.config.health_period_s
        for side in range(len(SIDES)):
            waited_s = time.monotonic() - self._health_s[side]
            if waited_s > period_s if period_s else side != self._turn:
                self._read_health(side, retries=0)
        return self._readings.proprio()

    def goals(self) -> np.ndarray:
        """Returns [14] what the servos strive for (rad; m); NaN where a servo does not say.

        Raises:
          RobotFault: a port is gone.
        """
        goals = np.full((len(SIDES), len(MASTERS)), np.nan)
        for side, bus in enumerate(self.buses):
            answers = bus.read_all([servo.id for servo in MASTERS], GOAL_POSITION)
            ticks = np.array([answers.get(servo.id, np.nan) for servo in MASTERS])
            goals[side] = ticks_to_joint(ticks, *self._calibration(side))
        return goals.reshape(-1)

    def setup_problems(self) -> tuple[str, ...]:
        """Returns what in the servos makes readings wrong or torque dangerous, each with its remedy.

        Of a connection that moves the arms, the set-up has been written or refused already.
        """
        return tuple(self._problems)

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
        check_command(self.enabled, ctrl)
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

    @property
    def stopped(self) -> bool:
        """Whether the servos have stopped by their watchdogs; commands are refused until `rearm`."""
        return self._tripped

    def stop(self) -> None:
        """Holds both arms where they are. A bus that is gone is left to its servos' watchdogs."""
        if not self.enabled or self._tripped:
            return
        measured = self._readings.position.reshape(-1)
        self._send(self._clip(hold_pose(self._sent, measured)))

    def enable(self) -> None:
        """Switches torque on; the arms hold their present pose. Verified.

        If that fails half way, what was switched on is switched off again.

        Raises:
          RobotFault: a servo refuses, for instance because of a hardware error, or servos are where
            torque would do harm.
        """
        if self.passive:
            raise RobotFault(
                "This connection only reads; connect without passive to move the arms."
            )
        self._require_no_errors()
        present = self.read()
        if present.age_s.max() > self.config.watchdog_s:
            silent = JOINTS[int(present.age_s.argmax())]
            raise RobotFault(f"{silent} does not answer; torque stays off. Check its cable.")
        wrong = self._misplaced()
        if wrong:
            raise RobotFault(f"Torque stays off: {'; '.join(wrong)}.")
        powered = [self._powered(side) for side in range(len(SIDES))]
        try:
            for side in range(len(SIDES)):
                self._enable_arm(side)
            self._sent = self._clip(self._readings.position.reshape(-1))
            self.enabled = True
            self._start_watchdogs()
        except RobotFault as fault:
            self.enabled, self._sent = False, None
            raise RobotFault(f"{fault} {self._undo(powered)}") from fault

    def disable(self) -> None:
        """Switches torque off on both arms. An arm that does not rest on something falls.

        Raises:
          RobotFault: a servo does not confirm; all others are switched off all the same.
        """
        self.enabled, self._sent = False, None
        stuck = []
        for side, bus in zip(SIDES, self.buses, strict=True):
            released = recovery.release(side, bus)
            if not released.complete:
                stuck.append(str(released))
        if stuck:
            raise RobotFault(" ".join(stuck))

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
        recovery.restart(bus, ids)
        if not self.passive:
            servo_setup.prepare(bus, self.config)
        self.read()

    def _calibration(self, side: int) -> tuple[GripperLinkage, tuple[float, ...]]:
        """Returns what makes an arm's ticks joint positions: its crank and its joints' offsets."""
        return self.config.linkages[side], self.config.joint_offsets_rad[side]

    def _close(self) -> None:
        for bus in self.buses:
            bus.close()

    def _clip(self, ctrl: np.ndarray) -> np.ndarray:
        """Clips [14] targets to what the servos' position limits allow."""
        low, high = [], []
        for side, linkage in enumerate(self.config.linkages):
            least = ticks_to_joint([servo.low for servo in MASTERS], *self._calibration(side))
            most = ticks_to_joint([servo.high for servo in MASTERS], *self._calibration(side))
            # The gripper servo may turn freely; its crank reaches from -90 to 90 degrees.
            least[-1], most[-1] = linkage.travel(np.array([-math.pi / 2, math.pi / 2]))
            low.append(least)
            high.append(most)
        return np.clip(ctrl, np.concatenate(low), np.concatenate(high))

    def _goals(self, side: int, arm: np.ndarray) -> dict[int, int]:
        """Returns the goals of an arm's masters, by id, for targets [7]."""
        ticks = joint_to_ticks(arm, *self._calibration(side))
        return {servo.id: int(tick) for servo, tick in zip(MASTERS, ticks, strict=True)}

    def _send(self, targets: np.ndarray) -> list[RobotFault]:
        """Sends [14] targets; a bus that is gone does not keep the other from getting its own."""
        faults = []
        for side, arm in enumerate(targets.reshape(len(SIDES), PER_ARM)):
            try:
                self.buses[side].sync_write(GOAL_POSITION, self._goals(side, arm))
            except RobotFault as fault:
                faults.append(fault)
        self._sent = targets
        return faults

    def _check_adapter(self, bus: Bus) -> None:
        if not self.passive:
            adapter.check_latency(bus.port, "20 steps a second")

    def _start_reading(self) -> None:
        """Reads everything once, and looks at what it means.

        Raises:
          RobotFault: a servo does not answer, or, unless only reading, is not where torque may go on.
        """
        for side in range(len(SIDES)):
            self._read_health(side, retries=None)
            self._read_torque(side, retries=None)
        proprio = self.read()
        if not np.isfinite(proprio.position).all():
            silent = [name for name, age in zip(JOINTS, proprio.age_s, strict=True) if age > 0]
            raise RobotFault(f"No answer from {', '.join(silent)} after the set-up; try again.")
        if self.passive:
            self._problems = [
                text for side, bus in enumerate(self.buses) for text in self._misreadings(side, bus)
            ]
            return
        wrong = self._misplaced()
        if wrong:
            raise RobotFault(f"{'; '.join(wrong)}.")

    def _misreadings(self, side: int, bus: Bus) -> list[str]:
        """Returns what makes the readings of an arm wrong; of that, where its servos are, comes last."""
        differences = servo_setup.misread(servo_setup.read_tables(bus), self.config)
        if differences:
            return [servo_setup.explain(bus.port, differences)]
        return [f"{text}." for text in misplaced(self._readings.ticks(side), SIDES[side])]

    def _misplaced(self) -> list[str]:
        return [
            text
            for side, name in enumerate(SIDES)
            for text in misplaced(self._readings.ticks(side), name)
        ]

    def _read_torque(self, side: int, retries: int | None) -> None:
        answers = self.buses[side].read_all(self._heard[side], TORQUE_ENABLE, retries)
        self._readings.take_torque(side, answers)

    def _read_health(self, side: int, retries: int | None) -> None:
        answers = self.buses[side].sync_read(self._heard[side], *HEALTH, retries=retries)
        self._readings.take_health(side, answers)
        self._health_s[side] = time.monotonic()

    def _enable_arm(self, side: int) -> None:
        bus = self.buses[side]
        bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))  # a tripped one refuses goals
        bus.write_all(GOAL_POSITION, self._goals(side, self._readings.position[side]))
        gripper = MASTERS[-1].id
        units = round(self.config.gripper_current_a / CURRENT_UNIT_A)
        # Somebody may have limited the grippers to what ALOHA's instructions say.
        bus.write_all(GOAL_CURRENT, {gripper: min(units, bus.read(gripper, CURRENT_LIMIT))})
        bus.write_all(TORQUE_ENABLE, dict.fromkeys(IDS, 1))

    def _powered(self, side: int) -> set[int]:
        """Returns the ids of the servos of an arm that drive already."""
        bus = self.buses[side]
        answers = bus.read_all(IDS, TORQUE_ENABLE)
        unknown = [servo_id for servo_id in IDS if servo_id not in answers]
        if unknown:
            names = ", ".join(servo_text(servo_id) for servo_id in unknown)
            raise RobotFault(f"{bus.port}: {names} do not answer; torque stays as it is.")
        return {servo_id for servo_id, on in answers.items() if on}

    def _undo(self, powered: Sequence[set[int]]) -> str:
        """Switches off again what did not drive before; returns what became of it."""
        stuck = []
        for side, bus in enumerate(self.buses):
            switched = [servo_id for servo_id in IDS if servo_id not in powered[side]]
            try:
                answers = bus.try_all(TORQUE_ENABLE, dict.fromkeys(switched, 0))
            except RobotFault:
                answers = {}
            stuck += [
                f"{SIDES[side]} {servo_text(servo_id)}"
                for servo_id in switched
                if answers.get(servo_id) != 0
            ]
        if stuck:
            return f"Torque may be on at {', '.join(stuck)}: alohas2r torque-off."
        return "What had been switched on is off again."

    def _require_no_errors(self) -> None:
        for side, bus in zip(SIDES, self.buses, strict=True):
            for servo_id, bits in bus.read_all(IDS, HARDWARE_ERROR).items():
                if bits:
                    raise RobotFault(
                        f"{side} {servo_text(servo_id)} reports {describe_error(bits)}. Find the"
                        " cause, support the arm, and restart it: alohas2r torque-off --anywhere"
                        f" --reboot {side}:{servo_id}."
                    )

    def _start_watchdogs(self) -> None:
        units = round(self.config.watchdog_s / WATCHDOG_UNIT_S)
        for bus in self.buses:
            bus.write_all(BUS_WATCHDOG, dict.fromkeys(IDS, units))
            bus.take_pause_s()  # what was before does not count
        self._suspect = [False] * len(SIDES)

    def _check_watchdog(self) -> None:
        """Finds out whether the servos stopped by themselves, after a gap between any two packets."""
        if not self.enabled or self._tripped:
            return
        for side, bus in enumerate(self.buses):
            # The servos' clocks are not ours: suspect a little early.
            self._suspect[side] |= bus.take_pause_s() > 0.8 * self.config.watchdog_s
            heard = self._heard[side]
            if self._suspect[side] and heard:  # until all that were heard lately have answered
                answers = bus.read_all(heard, BUS_WATCHDOG, retries=0)
                self._tripped |= WATCHDOG_TRIPPED in answers.values()
                self._suspect[side] = len(answers) < len(heard)
