"""The ROS adapter against stand-ins that have exactly the published signatures.

ROS cannot run here. The stand-ins below repeat the signatures of interbotix_ros_toolboxes (ROS 2:
xs_robot/arm.py, xs_robot/core.py, common_robot/robot.py; ROS 1: arm.py, core.py), so that a call
which the real modules would refuse fails here too; behind them a servo moves half way each message.
"""

import sys
import time
import types
from typing import Any

import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable, ConfigError, RobotFault
from alohas2r.robots.base import Robot
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.interbotix import MOTORS, InterbotixConfig, InterbotixRobot

MODES = {"position", "current_based_position"}
REGISTERS = {
    "Goal_Current",
    "Hardware_Error_Status",
    "Present_Temperature",
    "Present_Input_Voltage",
}


class Bench:
    """The motors of one arm."""

    def __init__(self) -> None:
        self.angle = np.array([0.25, -0.4, 1.5, 0.0, -0.73, 0.0, 1.2])
        self.goal = self.angle.copy()
        self.torque = np.zeros(7, bool)
        self.modes: dict[str, str] = {}
        self.registers = {
            "Goal_Current": np.full(7, 100),
            "Hardware_Error_Status": np.zeros(7, int),
            "Present_Temperature": np.full(7, 41),
            "Present_Input_Voltage": np.full(7, 121),
        }
        self.messages = 0
        self.publishing = True

    def select(self, cmd_type: str, name: str) -> slice:
        assert (cmd_type, name) in {("group", "arm"), ("single", "gripper")}
        return slice(0, 6) if cmd_type == "group" else slice(6, 7)


class CoreBase:
    """The methods that ROS 1 and ROS 2 have in common, ROS 2 signatures."""

    bench: Bench

    def robot_set_operating_modes(
        self,
        cmd_type: str,
        name: str,
        mode: str,
        profile_type: str = "velocity",
        profile_velocity: int = 0,
        profile_acceleration: int = 0,
    ) -> None:
        assert mode in MODES
        assert profile_type in {"velocity", "time"}
        assert isinstance(profile_velocity, int)
        self.bench.select(cmd_type, name)
        self.bench.modes[name] = mode

    def robot_torque_enable(self, cmd_type: str, name: str, enable: bool) -> None:
        self.bench.torque[self.bench.select(cmd_type, name)] = enable

    def robot_set_motor_registers(self, cmd_type: str, name: str, reg: str, value: int) -> None:
        assert reg in REGISTERS
        self.bench.registers[reg][self.bench.select(cmd_type, name)] = value

    def robot_get_motor_registers(self, cmd_type: str, name: str, reg: str) -> Any:
        return self.bench.registers[reg][self.bench.select(cmd_type, name)].tolist()

    def robot_write_commands(self, group_name: str, commands: list[float]) -> None:
        assert group_name == "arm"
        assert len(commands) == 6
        assert all(type(command) is float for command in commands)
        self.bench.goal[:6] = commands

    def robot_write_joint_command(self, joint_name: str, command: float) -> None:
        assert joint_name == "gripper"
        assert type(command) is float
        self.bench.goal[6] = command

    def robot_get_joint_states(self):
        bench = self.bench
        if bench.publishing:
            bench.messages += 1
            moved = bench.angle + 0.5 * (bench.goal - bench.angle)
            bench.angle = np.where(bench.torque, moved, bench.angle)
        seconds, nanoseconds = divmod(bench.messages * 10_000_000, 1_000_000_000)
        finger = GripperLinkage(offset=0.0).travel(bench.angle[6])
        return types.SimpleNamespace(
            header=types.SimpleNamespace(stamp=self.stamp(seconds, nanoseconds)),
            name=[*MOTORS, "left_finger", "right_finger"],
            position=[*bench.angle, finger, -finger],
            velocity=[0.1] * 9,
            effort=[150.0] * 9,
        )

    def stamp(self, seconds: int, nanoseconds: int):
        return types.SimpleNamespace(sec=seconds, nanosec=nanoseconds)


def ros2_modules(benches: dict[str, Bench]) -> dict[str, types.ModuleType]:
    class InterbotixRobotNode:
        pass

    class InterbotixManipulatorXS:
        def __init__(
            self,
            robot_model: str,
            group_name: str = "arm",
            gripper_name: str = "gripper",
            robot_name: str | None = None,
            moving_time: float = 2.0,
            accel_time: float = 0.3,
            gripper_pressure: float = 0.5,
            gripper_pressure_lower_limit: int = 150,
            gripper_pressure_upper_limit: int = 350,
            topic_joint_states: str = "joint_states",
            logging_level: int = 20,
            node_name: str = "robot_manipulation",
            node: InterbotixRobotNode | None = None,
            start_on_init: bool = True,
            iterative_update_fk: bool = True,
            args=None,
        ) -> None:
            assert robot_model == "vx300s"
            assert isinstance(node, InterbotixRobotNode)
            self.core = CoreBase()
            self.core.bench = benches[str(robot_name)]

    def create_interbotix_global_node(
        node_name: str = "interbotix_robot_manipulation", namespace: str | None = None
    ) -> InterbotixRobotNode:
        return InterbotixRobotNode()

    def robot_startup(node=None, node_name: str = "", namespace: str | None = None) -> None:
        assert isinstance(node, InterbotixRobotNode)

    def robot_shutdown(node=None) -> None:
        assert isinstance(node, InterbotixRobotNode)
        benches["shut down"] = Bench()

    arm = types.ModuleType("interbotix_xs_modules.xs_robot.arm")
    arm.__dict__.update(InterbotixManipulatorXS=InterbotixManipulatorXS)
    robot = types.ModuleType("interbotix_common_modules.common_robot.robot")
    robot.__dict__.update(
        create_interbotix_global_node=create_interbotix_global_node,
        robot_startup=robot_startup,
        robot_shutdown=robot_shutdown,
    )
    return {
        "interbotix_xs_modules": types.ModuleType("interbotix_xs_modules"),
        "interbotix_xs_modules.xs_robot": types.ModuleType("interbotix_xs_modules.xs_robot"),
        "interbotix_xs_modules.xs_robot.arm": arm,
        "interbotix_common_modules": types.ModuleType("interbotix_common_modules"),
        "interbotix_common_modules.common_robot": types.ModuleType("common_robot"),
        "interbotix_common_modules.common_robot.robot": robot,
    }


def ros1_modules(benches: dict[str, Bench]) -> dict[str, types.ModuleType]:
    nodes: list[bool] = []

    class InterbotixRobotXSCore(CoreBase):
        def robot_get_motor_registers(self, cmd_type, name, reg):
            values = super().robot_get_motor_registers(cmd_type, name, reg)
            return types.SimpleNamespace(values=values)

        def stamp(self, seconds: int, nanoseconds: int):
            return types.SimpleNamespace(secs=seconds, nsecs=nanoseconds)

    class InterbotixManipulatorXS:
        def __init__(
            self,
            robot_model,
            group_name="arm",
            gripper_name="gripper",
            robot_name=None,
            moving_time=2.0,
            accel_time=0.3,
            gripper_pressure=0.5,
            gripper_pressure_lower_limit=150,
            gripper_pressure_upper_limit=350,
            init_node=True,
        ):
            nodes.append(init_node)
            assert nodes in ([True], [True, False])  # a process is one node
            self.dxl = InterbotixRobotXSCore()
            self.dxl.bench = benches[str(robot_name)]

    arm = types.ModuleType("interbotix_xs_modules.arm")
    arm.__dict__.update(InterbotixManipulatorXS=InterbotixManipulatorXS)
    package = types.ModuleType("interbotix_xs_modules")
    return {"interbotix_xs_modules": package, "interbotix_xs_modules.arm": arm}


@pytest.fixture
def benches() -> dict[str, Bench]:
    return {"follower_left": Bench(), "follower_right": Bench()}


@pytest.fixture(params=[ros2_modules, ros1_modules], ids=["ROS 2", "ROS 1"])
def ros(request, benches, monkeypatch):
    for name, module in request.param(benches).items():
        monkeypatch.setitem(sys.modules, name, module)
    return benches


CONFIG = InterbotixConfig(health_period_s=0.05, start_s=0.3)


def test_without_the_modules_the_remedy_is_named():
    with pytest.raises(BackendUnavailable, match="--robot aloha"):
        InterbotixRobot().__enter__()


def test_read_command_and_torque(ros):
    bench = ros["follower_left"]
    with InterbotixRobot(CONFIG) as robot:
        assert isinstance(robot, Robot)
        assert bench.modes == {"arm": "position", "gripper": "current_based_position"}
        assert not bench.torque.any()
        with pytest.raises(RobotFault, match=r"enable\(\)"):
            robot.command(np.zeros(14))
        robot.enable()
        assert bench.torque.all()
        reading = robot.read()
        np.testing.assert_allclose(reading.position[:6], bench.angle[:6])
        assert reading.position[6] == pytest.approx(GripperLinkage().travel(bench.angle[6]))
        assert reading.current == pytest.approx(0.15)
        assert reading.voltage_v == pytest.approx(12.1)
        assert reading.temperature_c == pytest.approx(41)
        assert reading.velocity[6] == pytest.approx(
            0.1 * GripperLinkage().ratio(bench.angle[6]), rel=1e-3
        )
        target = reading.position + 0.01
        target[[6, 13]] = 0.02
        np.testing.assert_array_equal(robot.command(target), target)
        for _ in range(20):
            reading = robot.read()
        np.testing.assert_allclose(reading.position, target, atol=1e-5)
        assert reading.age_s.max() == 0
        with pytest.raises(RobotFault, match="finite"):
            robot.command(np.full(14, np.nan))
        robot.disable()
        assert not bench.torque.any()


def test_enabling_and_stopping_hold_the_pose(ros):
    right = ros["follower_right"]
    right.goal[0] = 2.0  # left over from whatever ran before
    with InterbotixRobot(CONFIG) as robot:
        robot.enable()
        assert right.goal[0] == pytest.approx(right.angle[0], abs=1e-9)
        away = robot.read().position
        away[7] += 0.9
        robot.command(away)
        robot.read()
        robot.stop()
        assert abs(right.goal[0] - right.angle[0]) <= 0.1 + 1e-9
    assert right.torque.all()  # leaving lets the arms hold


def test_messages_that_stop_coming_grow_old(ros):
    with InterbotixRobot(CONFIG) as robot:
        assert robot.read().age_s.max() == 0
        ros["follower_right"].publishing = False
        robot.read()
        time.sleep(0.12)
        age_s = robot.read().age_s
        assert age_s[:7].max() == 0
        assert age_s[7:].min() > 0.1


def test_hardware_errors_come_through(ros):
    with InterbotixRobot(CONFIG) as robot:
        ros["follower_left"].registers["Hardware_Error_Status"][4] = 0x20
        time.sleep(0.15)
        assert robot.read().hardware_error[4] == 0x20
        with pytest.raises(RobotFault, match=r"left/wrist_angle reports overload"):
            robot.enable()


def test_a_node_that_never_publishes_is_named(ros, monkeypatch):
    monkeypatch.setattr(CoreBase, "robot_get_joint_states", lambda self: None)
    with pytest.raises(RobotFault, match="follower_left and follower_right"):
        InterbotixRobot(CONFIG).__enter__()


def test_services_that_fail_surface_in_the_next_reading(ros, monkeypatch):
    def broken(self, cmd_type, name, reg):
        raise RuntimeError("service is gone")

    with InterbotixRobot(CONFIG) as robot:
        monkeypatch.setattr(type(robot._cores[0]), "robot_get_motor_registers", broken)
        time.sleep(0.2)
        with pytest.raises(RobotFault, match="service is gone"):
            robot.read()


def test_configuration_refuses_nonsense():
    with pytest.raises(ConfigError):
        InterbotixConfig(robot_names=("a", "a"))
