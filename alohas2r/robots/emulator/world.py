"""The physics behind emulated arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import mujoco
import numpy as np

from alohas2r.embodiment.joints import GRIPPERS, PER_ARM, SIDES
from alohas2r.robots.dynamixel import setup
from alohas2r.robots.dynamixel.arm import MASTERS, SERVOS, DynamixelConfig, GripperLinkage
from alohas2r.robots.dynamixel.arm import Servo as ServoKind
from alohas2r.robots.dynamixel.registers import (
    CENTRE_TICK,
    CURRENT_UNIT_A,
    RAD_PER_TICK,
    TICKS_PER_TURN,
    VELOCITY_UNIT_RAD_S,
    XL430_W250,
    XM430_W350,
    XM540_W270,
)
from alohas2r.robots.emulator.hidden import Hidden, HiddenConfig
from alohas2r.robots.emulator.servo import Servo
from alohas2r.robots.emulator.table import FACTORY_P_GAIN, FIELDS
from alohas2r.sim import changed, scene

# Torque per ampere at 12 V. Source: stall torque and current in the ROBOTIS e-Manual.
STALL_TORQUE = {XM540_W270: 10.6, XM430_W350: 4.1, XL430_W250: 1.5}  # N m
TORQUE_PER_AMPERE = {XM540_W270: 10.6 / 4.4, XM430_W350: 4.1 / 2.3, XL430_W250: 1.5 / 1.4}


class World:
    """Both arms in the insertion scene, driven by what the servos' control tables say.

    Attributes:
      servos: per side, the nine servos.
      model, data: the physics.
      joints: [14] addresses of the joints in qpos; actuators: [14] ids.
      home: [nq] the pose of the keyframe home.
    """

    def __init__(
        self,
        linkage: GripperLinkage | None = None,
        hidden: HiddenConfig | None = None,
        kinds: Sequence[ServoKind] = SERVOS,
    ) -> None:
        """Starts at the keyframe home, with torque off.

        Args:
          linkage: the grippers' cranks; None: the scene's.
          hidden: from which robots it is one; None: the simulated one.
          kinds: the servos of each arm.
        """
        insert = scene.load("insert")
        self.model = scene.spec("insert").compile()  # its actuators change: not the shared one
        self.data = mujoco.MjData(self.model)
        self._arms = insert.arms
        self._linkage = linkage or GripperLinkage()
        self.joints = np.array([arm.qpos[:PER_ARM] for arm in insert.arms]).reshape(-1)
        self._dofs = np.array([arm.qvel[:PER_ARM] for arm in insert.arms]).reshape(-1)
        self.actuators = np.array([arm.ctrl for arm in insert.arms]).reshape(-1)
        hidden = hidden or HiddenConfig()
        self._hidden = Hidden(hidden, self.model)
        self._gain = self.model.actuator_gainprm[self.actuators, 0].copy()
        self.home = changed.home_qpos(hidden.world, insert)
        self.servos = {
            side: [Servo(kind, self._position_of(side, kind)) for kind in kinds] for side in SIDES
        }
        self._reference = np.zeros(len(self.actuators))
        self._speed = np.zeros(len(self.actuators))
        self._goal = np.zeros(len(self.actuators))
        self._driven = np.zeros(len(self.actuators), bool)
        self._max_speed = np.full(len(self.actuators), np.inf)
        self._max_acceleration = np.full(len(self.actuators), np.inf)
        self._max_torque = np.full(len(self.actuators), np.inf)
        self.place(self.home)

    @property
    def time_s(self) -> float:
        """Simulated seconds since the start."""
        return float(self.data.time)

    def set_up(self) -> None:
        """Sets all servos up as a run does, and as `alohas2r setup-arms` does."""
        for servo in self._all():
            for rule in setup.rules(servo.kind, DynamixelConfig()):
                if not rule.accepts(servo[rule.register.name]):
                    servo[rule.register.name] = rule.wanted
            servo.reset_turns()
        self.place(self.data.qpos.copy())

    def place(
        self,
        qpos: np.ndarray,
        qvel: np.ndarray | None = None,
        goals: np.ndarray | None = None,
    ) -> None:
        """Puts everything somewhere; servos with torque strive for goals [14], or hold there."""
        self.data.qpos[:] = qpos
        self.data.qvel[:] = 0.0 if qvel is None else qvel
        self.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        wanted = self.data.qpos[self.joints] if goals is None else goals
        for side, servos in self.servos.items():
            for servo in servos:
                index = SIDES.index(side) * PER_ARM + servo.kind.joint
                tick = self._tick(servo, index, float(wanted[index]))
                servo["Goal_Position"] = tick - TICKS_PER_TURN * servo.turns
        self._reference[:] = wanted
        self._speed[:] = 0.0
        if self._hidden.late:
            self._take_over()
            self._hidden.hold(self._goal)

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
        torque = self.data.actuator_force[self.actuators[index]] * per_rad * sign
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
        trajectory = self._tick(servo, index, float(self._reference[index]))
        servo["Position_Trajectory"] = trajectory - TICKS_PER_TURN * servo.turns
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
        travel = self._hidden.reading(index, self.data.qpos[self.joints[index]])
        ratio = float(self._linkage.ratio(self._linkage.angle(travel)))
        return max(ratio, 1e-3) / float(self._hidden.scale[index])

    def _tick(self, servo: Servo, index: int, joint_value: float) -> int:
        """Returns what a servo of joint `index` reports when that is somewhere."""
        gripper = servo.kind.joint == PER_ARM - 1
        joint_value = self._hidden.reading(index, joint_value)
        angle = float(self._linkage.angle(joint_value)) if gripper else joint_value
        turn = round(self._sign(servo) * angle / RAD_PER_TICK)
        return CENTRE_TICK + turn + servo.homing

    def _joint_value(self, servo: Servo, index: int, tick: int) -> float:
        ticks = tick + TICKS_PER_TURN * servo.turns - servo.homing - CENTRE_TICK
        angle = self._sign(servo) * ticks * RAD_PER_TICK
        gripper = servo.kind.joint == PER_ARM - 1
        reading = float(self._linkage.travel(angle)) if gripper else angle
        return self._hidden.actual(index, reading)

    def _position_of(self, side: str, kind: ServoKind) -> Callable[[Servo], int]:
        index = SIDES.index(side) * PER_ARM + kind.joint
        address = self.joints[index]
        return lambda servo: self._tick(servo, index, float(self.data.qpos[address]))

    def _take_over(self) -> None:
        """Reads goals, gains and profiles from the control tables."""
        for place, side in enumerate(SIDES):
            for kind in MASTERS:
                index = place * PER_ARM + kind.joint
                twins = self._twins(side, kind.joint)
                drivers = [servo for servo in twins if servo.torque]
                actuator = self.actuators[index]
                gain = self._gain[index] * sum(
                    servo["Position_P_Gain"] / FACTORY_P_GAIN / len(twins) for servo in drivers
                )
                self.model.actuator_gainprm[actuator, 0] = gain
                self.model.actuator_biasprm[actuator, 1] = -gain
                if drivers:
                    if not self._driven[index]:
                        self._reference[index] = self.data.qpos[self.joints[index]]
                        self._speed[index] = 0.0
                    goals = [
                        self._joint_value(servo, index, servo["Goal_Position"]) for servo in drivers
                    ]
                    self._goal[index] = sum(goals) / len(goals)
                    if not self._driven[index]:
                        self._hidden.hold(self._goal, np.arange(len(self._goal)) == index)
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
        torque = np.inf
        if servo["Operating_Mode"] == 5:
            amperes = abs(servo["Goal_Current"]) * CURRENT_UNIT_A
            torque = amperes * TORQUE_PER_AMPERE[servo.kind.model]
        voltage = min(abs(servo["Goal_PWM"]), servo["PWM_Limit"]) / FIELDS["PWM_Limit"].default
        if voltage < 1:
            torque = min(torque, voltage * STALL_TORQUE[servo.kind.model])
        self._max_torque[index] = torque

    def _advance_references(self) -> None:
        """Moves each servo's internal set point towards its goal along its profile."""
        dt = self.model.opt.timestep
        distance = self._hidden.arrived(self._goal) - self._reference
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
        position = self.data.qpos[self.joints]
        gain = self.model.actuator_gainprm[self.actuators, 0]
        ratio = np.ones(len(position))
        grippers = list(GRIPPERS)
        travel = (self._hidden.scale * position + self._hidden.offset)[grippers]
        per_rad = np.maximum(self._linkage.ratio(self._linkage.angle(travel)), 1e-3)
        ratio[grippers] = per_rad / self._hidden.scale[grippers]
        reach = self._max_torque / ratio / np.maximum(gain, 1e-9)
        target = self._hidden.played(self._reference, position)
        self.data.ctrl[self.actuators] = np.clip(target, position - reach, position + reach)
