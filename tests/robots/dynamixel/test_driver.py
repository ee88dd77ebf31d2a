"""The arm driver, through the vendor's SDK and a pseudo-terminal, against the emulated servos."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.embodiment.poses import SLEEP_POSE, hold_pose
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.base import Robot
from alohas2r.robots.dynamixel import registers as dynamixel_registers
from alohas2r.robots.dynamixel.arm import (
    MASTERS,
    SERVOS,
    DynamixelConfig,
    GripperLinkage,
    joint_to_ticks,
    ticks_to_joint,
)
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.dynamixel.registers import RAD_PER_TICK
from alohas2r.robots.emulator import bus as emulated_bus
from alohas2r.robots.emulator import table as emulated_table
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.sim import scene

pytest.importorskip("dynamixel_sdk")

pytestmark = pytest.mark.alone
INSERT = scene.load("insert")
LINKAGE = GripperLinkage()
TICK = np.where(IS_GRIPPER, 5e-5, RAD_PER_TICK)  # half a tick, and the grippers' travel in it


@pytest.fixture(scope="module")
def stepped():
    with Emulator(EmulatorConfig(realtime=False)) as emu:
        yield emu


@pytest.fixture
def emu(stepped):
    """Emulated arms whose time passes only when `step` is called, so that no test is a race."""
    stepped.reset()
    return stepped


@pytest.fixture
def config(emu):
    # A busy machine answers late at times; the timeout only matters where something is silent.
    return DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5)


@pytest.fixture
def robot(config):
    with DynamixelRobot(config) as robot:
        yield robot


def joints(emu: Emulator) -> np.ndarray:
    qpos = emu.state().qpos
    return np.concatenate([qpos[arm.qpos[:7]] for arm in INSERT.arms])


# --- conversions ------------------------------------------------------------------------------


@pytest.mark.parametrize(("angle", "distance"), [(1.4910, 0.05800), (-0.6213, 0.01844)])
def test_linkage_agrees_with_the_published_gripper_constants(angle, distance):
    """Open and closed of the ALOHA follower, in rad and in m, as its software states them."""
    assert GripperLinkage(offset=0.0).travel(angle) == pytest.approx(distance, abs=1.5e-4)


@given(st.floats(-1.2, 1.45))
def test_linkage_inverts_and_differentiates(angle):
    assert LINKAGE.angle(LINKAGE.travel(angle)) == pytest.approx(angle, abs=1e-6)
    slope = (LINKAGE.travel(angle + 1e-6) - LINKAGE.travel(angle - 1e-6)) / 2e-6
    assert LINKAGE.ratio(angle) == pytest.approx(slope, abs=1e-8)


def test_linkage_offset_is_the_scenes_and_its_reach_covers_the_range():
    for side in ("left", "right"):
        body = INSERT.id("body", f"{side}/left_finger_link")
        assert INSERT.model.body_pos[body, 0] == pytest.approx(LINKAGE.offset)
    low, high = INSERT.ctrl_low[6], INSERT.ctrl_high[6]
    assert LINKAGE.travel(LINKAGE.angle(low)) == pytest.approx(low)
    assert LINKAGE.travel(LINKAGE.angle(high)) == pytest.approx(high)
    moved = GripperLinkage.closed_at(0.3)
    assert moved.travel(0.3) == pytest.approx(0.0079)


@given(st.lists(st.integers(1100, 2800), min_size=7, max_size=7))
def test_ticks_and_joints_round_trip(ticks):
    np.testing.assert_array_equal(joint_to_ticks(ticks_to_joint(ticks, LINKAGE), LINKAGE), ticks)


def test_ticks_stay_within_the_servos_limits_over_the_whole_range_of_the_scene():
    for bound in (INSERT.ctrl_low[:7], INSERT.ctrl_high[:7]):
        ticks = joint_to_ticks(bound, LINKAGE)
        for tick, servo in zip(ticks, MASTERS, strict=True):
            assert servo.low <= tick <= servo.high
        np.testing.assert_allclose(ticks_to_joint(ticks, LINKAGE), bound, atol=2 * RAD_PER_TICK)


def test_registers_are_where_the_emulated_control_table_has_them():
    names = {"HARDWARE_ERROR": "Hardware_Error_Status", "INPUT_VOLTAGE": "Present_Input_Voltage"}
    names |= {"TEMPERATURE": "Present_Temperature", "SECONDARY_ID": "Secondary_ID"}
    names |= {"PWM_LIMIT": "PWM_Limit", "GOAL_PWM": "Goal_PWM"}
    names |= {
        f"FEEDFORWARD_{one}_GAIN": f"Feedforward_{one.lower()}_Gain" for one in ("1ST", "2ND")
    }
    registers = {
        k: v
        for k, v in vars(dynamixel_registers).items()
        if isinstance(v, dynamixel_registers.Register)
    }
    assert len(registers) > 30
    for name, register in registers.items():
        field_name = names.get(name, name.title())
        field = emulated_table.FIELDS[field_name]
        assert (register.address, register.size) == (field.address, field.size)
        assert register.signed == field.signed
        assert register.name == field_name


def test_hold_pose_keeps_the_load_but_not_the_push():
    measured = np.zeros(14)
    sent = np.full(14, 0.05)
    sent[0], sent[6] = 0.5, -0.4
    held = hold_pose(sent, measured)
    assert held[0] == 0.1  # pushed against something: drawn in
    assert held[1] == 0.05  # sagging under load: kept
    assert held[6] == -0.4  # the grip is kept
    np.testing.assert_array_equal(hold_pose(None, measured), measured)


# --- set-up -----------------------------------------------------------------------------------


def test_set_up_from_factory_values_is_written_and_power_stays_off(robot, emu):
    assert isinstance(robot, Robot)
    for side in ("left", "right"):
        for servo in SERVOS:
            assert emu.peek(side, servo.id, "Drive_Mode") == servo.reverse
            assert emu.peek(side, servo.id, "Secondary_ID") == (servo.shadow_of or 255)
            assert emu.peek(side, servo.id, "Min_Position_Limit") == servo.low
            assert emu.peek(side, servo.id, "Max_Position_Limit") == servo.high
            assert emu.peek(side, servo.id, "Return_Delay_Time") == 0
            assert emu.peek(side, servo.id, "Operating_Mode") == (5 if servo.id == 9 else 3)
    assert not emu.state().torque.any()
    with pytest.raises(RobotFault, match=r"enable\(\)"):
        robot.command(np.zeros(14))


def test_a_spoiled_set_up_is_mended_shadows_too(config, emu):
    """A shadow hears packets to its master; mending the master must not spoil it."""
    with DynamixelRobot(config):
        pass
    emu.poke("right", 2, "Drive_Mode", 0)
    emu.poke("right", 4, "Operating_Mode", 16)
    emu.poke("right", 5, "Return_Delay_Time", 250)
    with DynamixelRobot(config):
        assert emu.peek("right", 2, "Drive_Mode") == 1
        assert emu.peek("right", 3, "Drive_Mode") == 0
        assert emu.peek("right", 4, "Operating_Mode") == 3
        assert emu.peek("right", 5, "Return_Delay_Time") == 0


def test_set_up_does_not_touch_what_is_right_already(config, emu):
    with DynamixelRobot(config):
        pass
    before = emu.instructions("left").get(emulated_bus.WRITE, 0)
    with DynamixelRobot(config):
        after = emu.instructions("left").get(emulated_bus.WRITE, 0)
    assert after == before > 0


def test_a_passive_connection_only_reads(config, emu):
    with DynamixelRobot(config, passive=True) as robot:
        assert robot.read().age_s.max() == 0
        with pytest.raises(RobotFault, match="only reads"):
            robot.enable()
        robot.stop()
    heard = emu.instructions("left")
    assert heard.pop(emulated_bus.SYNC_READ) > 0
    assert heard == {}


def test_set_up_refuses_what_it_cannot_write_under_torque(config, emu):
    with DynamixelRobot(config) as robot:
        robot.enable()
    emu.poke("left", 7, "Drive_Mode", 0)
    with pytest.raises(RobotFault, match=r"servo 7 .wrist_angle.*torque is on"):
        DynamixelRobot(config).__enter__()
    assert emu.state().torque.all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("Model_Number", 1060, "model 1060, not 1120"), ("ID", 77, r"no answer from servo 4 .elbow")],
)
def test_a_wrong_or_missing_servo_is_named(config, emu, name, value, message):
    emu.poke("left", 4, name, value)
    with pytest.raises(RobotFault, match=message):
        DynamixelRobot(config).__enter__()


@pytest.mark.parametrize(
    "wrong",
    [{"ports": ("a", "a")}, {"watchdog_s": 0.5}, {"retries": -1}, {"gripper_current_a": 9.0}],
)
def test_configuration_refuses_nonsense(wrong):
    with pytest.raises(ConfigError):
        DynamixelConfig(**wrong)


def test_a_missing_port_says_so():
    with pytest.raises(RobotFault, match="no serial port"):
        Bus("/dev/no-such-port").open()


# --- reading and commanding -------------------------------------------------------------------


def test_reading_agrees_with_the_physics(robot, emu):
    pose = INSERT.home_qpos.copy()
    rng = np.random.default_rng(0)
    for arm in INSERT.arms:
        pose[arm.qpos[:6]] = rng.uniform(-0.5, 0.5, 6)
        pose[arm.qpos[6:]] = rng.uniform(0.005, 0.035)
    robot.enable()
    emu.place(pose)
    emu.step(0.1)
    reading, truth = robot.read(), joints(emu)
    assert np.abs((reading.position - truth) / TICK).max() < 2
    assert reading.age_s.max() == 0
    assert set(reading.temperature_c) == {35}
    assert reading.voltage_v == pytest.approx(12.0)
    assert reading.joint_position().shape == (2, 8)
    np.testing.assert_array_equal(reading.joint_position()[:, 6], reading.joint_position()[:, 7])


def test_commands_move_joints_and_velocities_follow(robot, emu):
    robot.enable()
    target = robot.read().position
    speeds, start = [], target.copy()
    for _ in range(20):
        target = target + np.where(IS_GRIPPER, -0.0005, -0.01)
        np.testing.assert_array_equal(robot.command(target), target)
        emu.step(0.05)
        speeds.append(robot.read().velocity)
    moved = joints(emu) - start
    expected = np.where(IS_GRIPPER, -0.01, -0.2)
    np.testing.assert_allclose(moved, expected, rtol=0.35)
    np.testing.assert_allclose(np.median(speeds[8:], axis=0), expected, rtol=0.25)
    assert np.abs(robot.read().current).max() > 0.05


def test_data_that_looks_like_a_header_is_read_right(emu):
    """FF FF FD in an answer is stuffed with one more byte on the wire."""
    emu.poke("left", 6, "Goal_Velocity", -1)  # FF FF FF FF
    emu.poke("left", 6, "Profile_Acceleration", 0xFD)
    emu.poke("left", 6, "Bus_Watchdog", 0)
    with Bus(emu.ports[0], reply_timeout_s=0.2) as bus:
        expected = b"\xff\xff\xff\xff\xfd\x00\x00\x00"
        assert bus.sync_read([6], 104, 8) == {6: expected}
        assert bus.read(6, dynamixel_registers.Register(106, 4)) == 0x00FDFFFF
        assert bus.counts["repeated"] == 0


def test_enabling_holds_the_present_pose(robot, emu):
    emu.step(0.3)  # the arms hang and sink meanwhile
    before = joints(emu)
    robot.enable()
    for _ in range(8):
        robot.read()
        emu.step(0.02)
    assert emu.state().torque.all()
    drift = np.abs(joints(emu) - before)[~IS_GRIPPER]
    assert drift.max() < 0.06  # no jump; the servos give way under the weight a little
    np.testing.assert_allclose(emu.state().goals, before, atol=0.03)


def test_commands_are_clipped_to_the_servos_limits_but_not_rounded(robot):
    robot.enable()
    sent = robot.command(np.full(14, 10.0))
    highest = ticks_to_joint([servo.high for servo in MASTERS], LINKAGE)
    np.testing.assert_allclose(sent[:6], highest[:6])
    assert sent[6] == pytest.approx(LINKAGE.travel(np.pi / 2))
    quarter_tick = RAD_PER_TICK / 4
    sent = robot.command(np.zeros(14))
    for _ in range(8):
        sent = robot.command(sent + quarter_tick)
    np.testing.assert_allclose(sent[0], 2 * RAD_PER_TICK)  # small steps add up
    for bad in (np.nan, np.inf):
        with pytest.raises(RobotFault, match="finite"):
            robot.command(np.full(14, bad))


def test_leaving_the_context_leaves_the_arms_holding(config, emu):
    with DynamixelRobot(config) as robot:
        robot.enable()
        robot.command(robot.read().position)
    emu.step(0.3)
    state = emu.state()
    assert state.torque.all()
    assert (state.watchdog == 0).all()
    with DynamixelRobot(config) as robot:
        robot.disable()
    assert not emu.state().torque.any()


def test_stop_holds_where_the_arm_is(robot, emu):
    robot.enable()
    target = robot.read().position
    target[0] += 1.0  # the waist sets off at its profile's speed
    robot.command(target)
    emu.step(0.08)
    reading = robot.read()
    robot.stop()
    goals = emu.state().goals
    assert abs(goals[0] - reading.position[0]) <= 0.1 + RAD_PER_TICK
    assert abs(goals[0] - target[0]) > 0.3


# --- faults -----------------------------------------------------------------------------------


def test_two_processes_cannot_drive_one_bus(robot, emu):
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        message = pool.apply(_open_bus, (emu.ports[0],))
    assert "in use by another process" in message
    with pytest.raises(RobotFault, match="in use"):
        Bus(emu.ports[1]).open()


def _open_bus(port: str) -> str:
    try:
        Bus(port).open()
    except RobotFault as fault:
        return str(fault)
    return "opened"


def test_one_silent_servo_grows_old_while_the_others_stay_fresh(emu):
    config = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.1)
    with DynamixelRobot(config) as robot:
        emu.set_faults("left", Faults(silent=(4,)))
        ages = np.array([robot.read().age_s for _ in range(3)])
        assert (np.delete(ages, 2, axis=1) == 0).all()
        assert (np.diff(ages[:, 2]) > 0.04).all()
        assert ages[-1, 2] > 0.15
        emu.set_faults("left")
        assert robot.read().age_s.max() == 0


def test_damaged_packets_are_repeated(emu):
    """5% of all answers damaged: almost every reading is complete, none is wrong."""
    config = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.05)
    with DynamixelRobot(config) as robot:
        _read_through_damage(robot, emu)


def _read_through_damage(robot: DynamixelRobot, emu: Emulator) -> None:
    truth = joints(emu)
    for side in ("left", "right"):
        emu.set_faults(side, Faults(corrupt=0.05))
    stale = []
    for _ in range(40):
        reading = robot.read()
        stale.append(reading.age_s > 0)
        assert np.abs(reading.position - truth)[IS_GRIPPER].max() < 2e-4
    assert np.mean(stale) < 0.005
    assert sum(bus.counts["damaged"] + bus.counts["unanswered"] for bus in robot.buses) >= 5
    for side in ("left", "right"):
        emu.set_faults(side)


def test_hardware_errors_are_seen_at_the_next_reading(robot, emu):
    robot.enable()
    assert robot.read().hardware_error.max() == 0
    emu.overload("right", 3)  # the shadow: its joint is the shoulder
    errors = robot.read().hardware_error
    assert errors[7 + 1] == 0x20
    assert np.count_nonzero(errors) == 1
    assert dynamixel_registers.describe_error(0x24) == "overheating, overload"
    torque = emu.state().torque
    assert torque.sum() == 17  # only the servo itself let go; its twin holds the joint
    with pytest.raises(RobotFault, match=r"shoulder_shadow.*overload"):
        robot.enable()
    restart = threading.Timer(0.1, emu.step, (0.5,))  # lets time pass for the servo
    restart.start()
    robot.reboot("right", [3])
    restart.join()
    assert robot.read().hardware_error.max() == 0
    assert emu.peek("right", 3, "Profile_Velocity") > 0  # set up again


def test_temperatures_are_polled(emu):
    config = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5, health_period_s=0.05)
    with DynamixelRobot(config) as robot:
        emu.heat("left", 5, 71)
        time.sleep(0.06)
        assert robot.read().temperature_c[2] == 71
        assert robot.read().temperature_c[7 + 2] == 35


def test_an_unplugged_bus_is_a_fault_and_the_other_arm_holds(config, emu):
    with DynamixelRobot(config) as robot:
        robot.enable()
        target = robot.read().position
        emu.unplug("left")
        with pytest.raises(RobotFault, match="left is gone"):
            robot.read()
        with pytest.raises(RobotFault, match="left is gone"):
            robot.command(target + 0.01)
        # The right arm got its command nevertheless.
        assert emu.state().goals[7] == pytest.approx(target[7] + 0.01, abs=RAD_PER_TICK)
        robot.stop()
        emu.step(0.3)
        assert (emu.state().watchdog[0] == 255).all()  # the left arm has stopped by itself
        assert emu.state().torque.all()
    emu.plug("left")
    with DynamixelRobot(config) as robot:  # and it comes back
        assert robot.read().age_s.max() == 0


def test_a_pause_trips_the_watchdog_until_rearmed(robot, emu):
    robot.enable()
    target = robot.read().position
    emu.step(0.35)
    time.sleep(0.12)  # on the driver's clock, which is what makes it suspicious
    with pytest.raises(RobotFault, match="rearm"):
        robot.command(target)
    robot.rearm()
    np.testing.assert_allclose(robot.command(target), target)
    assert (emu.state().watchdog == 6).all()


def test_a_pause_is_noticed_whatever_is_sent_after_it(robot, emu):
    robot.enable()
    target = robot.read().position
    assert not robot.stopped
    emu.step(0.35)
    time.sleep(0.12)
    robot.goals()  # a packet that asks for something else
    with pytest.raises(RobotFault, match="rearm"):
        robot.command(target)
    assert robot.stopped
    robot.rearm()
    assert not robot.stopped


def test_a_jump_of_the_wall_clock_changes_nothing(robot, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert robot.read().age_s.max() == 0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    reading = robot.read()
    assert reading.age_s.max() == 0
    assert abs(reading.time_s - time.monotonic()) < 1


def _drive_on(ports: tuple[str, str], started: Any) -> None:
    """Swings both waists on and on, as a deployment would."""
    with DynamixelRobot(DynamixelConfig(ports=ports, reply_timeout_s=0.2)) as robot:
        robot.enable()
        target = robot.read().position
        while True:
            target[[0, 7]] += 0.02
            try:
                target = robot.command(target)
            except RobotFault:  # a busy machine paused this process
                robot.rearm()
                target = robot.read().position
            robot.read()
            started.set()
            time.sleep(0.03)


def test_killing_the_driver_stops_the_arms_within_200_ms():
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    with Emulator() as emu:  # in real time
        driver = context.Process(target=_drive_on, args=(emu.ports, started))
        driver.start()
        try:
            assert started.wait(60)
            time.sleep(0.5)
            assert driver.pid is not None
            os.kill(driver.pid, signal.SIGKILL)
            killed = emu.state()
        finally:
            driver.kill()
            driver.join()
        while emu.state().time_s < killed.time_s + 0.2:
            time.sleep(0.01)
        stopped = emu.state()
        assert (stopped.watchdog == 255).all()
        time.sleep(0.3)
        after = emu.state()
        # The set points stand still since; the arms settle on them.
        np.testing.assert_array_equal(after.goals, stopped.goals)
        assert after.goals[0] > INSERT.home_qpos[0] + 0.05  # they had been under way
        assert np.abs(after.qvel[[arm.qvel[0] for arm in INSERT.arms]]).max() < 0.02
        assert after.torque.all()


def test_answers_come_in_time(robot):
    """A control period is 50 ms; reading and writing both arms takes a small part of it."""
    robot.enable()
    target = robot.read().position
    taken = []
    for _ in range(60):
        start_s = time.perf_counter()
        robot.read()
        robot.command(target)
        taken.append(time.perf_counter() - start_s)
    assert np.min(taken) < 0.015


def test_stop_is_safe_before_and_after_everything(config):
    robot = DynamixelRobot(config)
    robot.stop()
    with robot:
        robot.stop()
        robot.enable()
    robot.stop()
    assert threading.active_count() < 20


def test_the_sleep_pose_is_within_the_servos_limits(robot):
    robot.enable()
    np.testing.assert_allclose(robot.command(SLEEP_POSE), SLEEP_POSE, atol=1e-3)


def test_stepped_driving_is_reproducible():
    def run() -> list[np.ndarray]:
        with (
            Emulator(EmulatorConfig(realtime=False)) as emu,
            DynamixelRobot(DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5)) as robot,
        ):
            robot.enable()
            target, readings = robot.read().position, []
            for step in range(12):
                target = robot.command(target + 0.02 * np.sin(step + np.arange(14)) * ~IS_GRIPPER)
                emu.step()
                readings.append(robot.read().position)
            return readings

    np.testing.assert_array_equal(run(), run())


def test_joint_offsets_count_in_what_is_read_and_in_what_is_commanded(config, emu):
    offsets = ((0.05, -0.04, 0.03, 0.0, 0.02, -0.06), (0.0,) * 6)
    exact = dataclasses.replace(config, joint_offsets_rad=offsets)
    with DynamixelRobot(config) as robot:
        plain = robot.read().position
    with DynamixelRobot(exact) as robot:
        np.testing.assert_allclose(plain[:6] - robot.read().position[:6], offsets[0], atol=1e-9)
        np.testing.assert_allclose(plain[6:], robot.read().position[6:], atol=1e-9)
        robot.enable()
        emu.step()
        # Torque goes on where the arm is, whatever the offsets say.
        np.testing.assert_allclose(emu.state().goals, plain, atol=0.002)
        robot.command(robot.read().position + np.eye(14)[0] * 0.1)
        emu.step(0.0)
        assert emu.state().goals[0] == pytest.approx(plain[0] + 0.1, abs=0.002)
    with pytest.raises(ConfigError, match="joint_offsets_rad"):
        dataclasses.replace(config, joint_offsets_rad=((0.5, 0, 0, 0, 0, 0), (0.0,) * 6))
