"""Drives both arms through the Interbotix modules for ROS 2 (or ROS 1), for labs that run them.

The modules and ROS are imported only when a robot is entered; nothing here needs them otherwise.
Per arm, the xs_sdk node of Interbotix owns the bus: it must be running under the names given here.
Only a part of the published interface is used that ROS 1 and ROS 2 have in common.
"""

from __future__ import annotations

import dataclasses
import importlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Untyped
from alohas2r.embodiment.joints import ARM_JOINTS, JOINTS, PER_ARM, SIDES
from alohas2r.embodiment.poses import hold_pose
from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.base import Proprio, check_command
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.dynamixel.registers import (
    CURRENT_UNIT_A,
    VELOCITY_UNIT_RAD_S,
    VOLTAGE_UNIT_V,
    describe_error,
)

GRIPPER = "gripper"
MOTORS = (*ARM_JOINTS, GRIPPER)


@dataclasses.dataclass(frozen=True)
class InterbotixConfig:
    """How the Interbotix nodes are reached and set up.

    Attributes:
      robot_model: the arm's model, as Interbotix names it.
      robot_names: namespaces of the left and the right arm's xs_sdk node.
      group: name of the group of the six arm joints.
      max_speed_rad_s: Profile_Velocity of the arm joints.
      gripper_current_a: limit of the gripper's current, hence of its force.
      health_period_s: how often errors and temperatures are asked for.
      start_s: how long to wait for the first joint states.
      linkages: the cranks of the left and the right gripper.
    """

    robot_model: str = "vx300s"
    robot_names: tuple[str, str] = ("follower_left", "follower_right")
    group: str = "arm"
    max_speed_rad_s: float = 3.14
    gripper_current_a: float = 0.8
    health_period_s: float = 1.0
    start_s: float = 5.0
    linkages: tuple[GripperLinkage, GripperLinkage] = (GripperLinkage(), GripperLinkage())

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.robot_names[0] != self.robot_names[1], "both arms have the same name")
        check(0 < self.max_speed_rad_s <= 10, "max_speed_rad_s must lie in (0, 10]")
        check(0 < self.gripper_current_a <= 3.2, "gripper_current_a must lie in (0, 3.2] A")
        check(self.health_period_s > 0 and self.start_s > 0, "periods must be positive")


class Core(Protocol):
    """What is used of InterbotixRobotXSCore. Source: interbotix_ros_toolboxes, xs_robot/core.py."""

    def robot_set_operating_modes(
        self,
        cmd_type: str,
        name: str,
        mode: str,
        profile_type: str = ...,
        profile_velocity: int = ...,
        profile_acceleration: int = ...,
    ) -> None:
        """Sets the operating mode of a motor or a group."""
        ...

    def robot_torque_enable(self, cmd_type: str, name: str, enable: bool) -> None:
        """Switches torque of a motor or a group."""
        ...

    def robot_set_motor_registers(self, cmd_type: str, name: str, reg: str, value: int) -> None:
        """Writes a register of a motor or a group."""
        ...

    def robot_get_motor_registers(self, cmd_type: str, name: str, reg: str) -> Untyped:
        """Reads a register of a motor or of each motor of a group."""
        ...

    def robot_write_commands(self, group_name: str, commands: list[float]) -> None:
        """Sends targets to a group."""
        ...

    def robot_write_joint_command(self, joint_name: str, command: float) -> None:
        """Sends a target to a motor."""
        ...

    def robot_get_joint_states(self) -> Untyped:
        """Returns a copy of the newest JointState message."""
        ...


class InterbotixRobot:
    """Two arms behind Interbotix' ROS nodes: the `Robot` protocol.

    The nodes poll the servos themselves, so a bus watchdog would never notice that this process
    ended; the arms then hold the last target, at most one control step away.

    Attributes:
      config: how the nodes are reached.
      passive: whether it only reads.
      enabled: whether this object has switched torque on.
    """

    def __init__(self, config: InterbotixConfig | None = None, passive: bool = False) -> None:
        """Prepares; entering the context connects.

        Args:
          config: how the nodes are reached.
          passive: only ever reads: no set-up, no torque, no commands.
        """
        self.config = config or InterbotixConfig()
        self.passive = passive
        self.enabled = False
        self._cores: tuple[Core, ...] = ()
        self._shut_down: Callable[[], None] = lambda: None
        self._stamps: list[tuple[int, ...] | None] = [None, None]
        self._seen_s = np.full(len(SIDES), -np.inf)
        self._sent: np.ndarray | None = None
        self._position = np.full((len(SIDES), PER_ARM), np.nan)
        self._velocity = np.zeros((len(SIDES), PER_ARM))
        self._current = np.zeros((len(SIDES), PER_ARM))
        self._health = np.zeros((3, len(SIDES), PER_ARM))  # error bits, degrees, volts
        self._health_problem: Exception | None = None
        self._stopping = threading.Event()
        self._poller: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Connects to both nodes and sets the operating modes. Torque stays as it is.

        Raises:
          BackendUnavailable: ROS or the Interbotix modules are not there.
          RobotFault: a node does not answer.
        """
        self._cores, self._shut_down = _connect(self.config)
        try:
            if not self.passive:
                for core in self._cores:
                    self._set_up(core)
            self._poll_health()
            until_s = time.monotonic() + self.config.start_s
            while not np.isfinite(self._take_states()).all():
                if time.monotonic() > until_s:
                    raise RobotFault(
                        f"No joint states from {' and '.join(self.config.robot_names)} within"
                        f" {self.config.start_s} s. Are both xs_sdk nodes running?"
                    )
                time.sleep(0.01)
        except BaseException:
            self._shut_down()
            raise
        self._stopping.clear()
        self._poller = threading.Thread(target=self._poll, name="motor health", daemon=True)
        self._poller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Disconnects; arms that hold keep holding."""
        self._stopping.set()
        if self._poller is not None:
            self._poller.join(2 * self.config.health_period_s)
            self._poller = None
        self._shut_down()

    def read(self) -> Proprio:
        """Returns the newest joint states; `age_s` tells how old they are.

        Raises:
          RobotFault: a node's services failed.
        """
        if self._health_problem is not None:
            raise RobotFault(f"An Interbotix node does not answer: {self._health_problem}.")
        self._take_states()
        now_s = time.monotonic()
        # The nodes publish at 100 Hz: two missing messages in a row are no accident.
        age_s = now_s - self._seen_s
        age_s = np.where(age_s < 0.03, 0.0, age_s)
        errors, celsius, volts = self._health.reshape(3, -1)
        return Proprio(
            time_s=now_s,
            position=self._position.reshape(-1).copy(),
            velocity=self._velocity.reshape(-1).copy(),
            current=self._current.reshape(-1).copy(),
            age_s=np.repeat(age_s, PER_ARM),
            temperature_c=celsius.copy(),
            voltage_v=volts.copy(),
            hardware_error=errors.astype(int),
        )

    def setup_problems(self) -> tuple[str, ...]:
        """Returns nothing: the nodes set their servos up by themselves."""
        return ()

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sends targets [14] (rad; m for the grippers) and returns them.

        Raises:
          RobotFault: torque is off, or a number is not finite.
        """
        check_command(self.enabled, ctrl)
        sent = np.array(ctrl, float)
        arms = sent.reshape(len(SIDES), PER_ARM)
        for core, linkage, arm in zip(self._cores, self.config.linkages, arms, strict=True):
            core.robot_write_commands(self.config.group, [float(angle) for angle in arm[:-1]])
            angle = float(linkage.angle(arm[-1]))
            core.robot_write_joint_command(GRIPPER, angle)
        self._sent = sent
        return sent.copy()

    def stop(self) -> None:
        """Holds both arms where they are; torque stays on."""
        if self.enabled:
            self._take_states()
            self.command(hold_pose(self._sent, self._position.reshape(-1)))

    def enable(self) -> None:
        """Switches torque on; the servos then hold their present pose.

        Raises:
          RobotFault: a motor reports a hardware error, or this connection only reads.
        """
        if self.passive:
            raise RobotFault(
                "This connection only reads; connect without passive to move the arms."
            )
        self._poll_health()
        faulty = np.flatnonzero(self._health[0].reshape(-1))
        if faulty.size:
            bits = int(self._health[0].reshape(-1)[faulty[0]])
            raise RobotFault(
                f"{JOINTS[int(faulty[0])]} reports {describe_error(bits)}. Find the cause, support"
                " the arm, and reboot the motor."
            )
        self._torque(True)
        self._sent = None
        self.enabled = True
        self.stop()

    def disable(self) -> None:
        """Switches torque off on both arms. An arm that does not rest on something falls."""
        self._torque(False)
        self.enabled = False
        self._sent = None

    def _torque(self, on: bool) -> None:
        for core in self._cores:
            core.robot_torque_enable("group", self.config.group, on)
            core.robot_torque_enable("single", GRIPPER, on)

    def _set_up(self, core: Core) -> None:
        core.robot_set_operating_modes(
            "group",
            self.config.group,
            "position",
            profile_type="velocity",
            profile_velocity=round(self.config.max_speed_rad_s / VELOCITY_UNIT_RAD_S),
            profile_acceleration=0,
        )
        core.robot_set_operating_modes("single", GRIPPER, "current_based_position")
        units = round(self.config.gripper_current_a / CURRENT_UNIT_A)
        core.robot_set_motor_registers("single", GRIPPER, "Goal_Current", units)

    def _take_states(self) -> np.ndarray:
        """Takes over the newest message of each arm; returns the positions [2, 7]."""
        for side, core in enumerate(self._cores):
            message = core.robot_get_joint_states()
            if message is None:
                continue
            stamp = message.header.stamp
            # ROS 2 says sec and nanosec, ROS 1 secs and nsecs.
            key = tuple(
                getattr(stamp, name)
                for name in ("sec", "nanosec", "secs", "nsecs")
                if hasattr(stamp, name)
            )
            if key == self._stamps[side]:
                continue
            self._stamps[side] = key
            self._seen_s[side] = time.monotonic()
            order = [list(message.name).index(motor) for motor in MOTORS]
            position, velocity, effort = (
                np.array(values, float)[order]
                for values in (message.position, message.velocity, message.effort)
            )
            linkage = self.config.linkages[side]
            velocity[-1] *= linkage.ratio(position[-1])
            position[-1] = linkage.travel(position[-1])
            self._position[side], self._velocity[side] = position, velocity
            self._current[side] = effort / 1000  # the node reports mA
        return self._position

    def _poll(self) -> None:
        while not self._stopping.wait(self.config.health_period_s):
            try:
                self._poll_health()
            except Exception as error:  # whatever ROS raises ends up in the next read
                self._health_problem = error
                return

    def _poll_health(self) -> None:
        registers = ("Hardware_Error_Status", "Present_Temperature", "Present_Input_Voltage")
        for side, core in enumerate(self._cores):
            for row, register in enumerate(registers):
                arm = _values(core.robot_get_motor_registers("group", self.config.group, register))
                gripper = _values(core.robot_get_motor_registers("single", GRIPPER, register))
                scale = VOLTAGE_UNIT_V if row == 2 else 1
                self._health[row, side] = np.array([*arm[: PER_ARM - 1], gripper[0]]) * scale


def _values(answer: Untyped) -> list[int]:
    """Returns register values: ROS 2 hands out the list, ROS 1 the service's whole answer."""
    return list(getattr(answer, "values", answer))


def _connect(config: InterbotixConfig) -> tuple[tuple[Core, ...], Callable[[], None]]:
    """Returns both arms' cores and how to shut down."""
    common = {
        "robot_model": config.robot_model,
        "group_name": config.group,
        "gripper_name": GRIPPER,
    }
    try:
        arm = importlib.import_module("interbotix_xs_modules.xs_robot.arm")
        node_module = importlib.import_module("interbotix_common_modules.common_robot.robot")
    except ImportError:
        arm = node_module = None
    if arm is not None and node_module is not None:
        node = node_module.create_interbotix_global_node("alohas2r")
        bots = [
            arm.InterbotixManipulatorXS(**common, robot_name=name, node=node)
            for name in config.robot_names
        ]
        node_module.robot_startup(node)
        return tuple(bot.core for bot in bots), lambda: node_module.robot_shutdown(node)
    try:
        arm = importlib.import_module("interbotix_xs_modules.arm")
    except ImportError as error:
        raise BackendUnavailable(
            "--robot aloha-ros needs the Interbotix modules: source the ROS workspace in which they"
            " were built, or use --robot aloha, which needs no ROS."
        ) from error
    bots = [
        arm.InterbotixManipulatorXS(**common, robot_name=name, init_node=number == 0)
        for number, name in enumerate(config.robot_names)
    ]
    return tuple(bot.dxl for bot in bots), lambda: None
