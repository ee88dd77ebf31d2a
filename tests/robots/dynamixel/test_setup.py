"""Whatever torque-on, the guard and the safety page rely on is compared before an arm is powered."""

import dataclasses

import pytest

from alohas2r.deployment import arm_setup, doctor
from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel import setup
from alohas2r.robots.dynamixel.arm import SERVOS, DynamixelConfig
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig

pytest.importorskip("dynamixel_sdk")

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def stepped():
    with Emulator(EmulatorConfig(realtime=False)) as emu:
        yield emu


@pytest.fixture
def emu(stepped):
    stepped.reset()
    return stepped


@pytest.fixture
def config(emu):
    return DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5)


SPOILED = [
    ("PWM_Limit", 200, 1),
    ("Current_Limit", 50, 1),
    ("Current_Limit", 50, 9),
    ("Shutdown", 0, 1),
    ("Shutdown", 0x10, 8),
    ("Temperature_Limit", 100, 2),
    ("Temperature_Limit", 40, 9),
    ("Min_Voltage_Limit", 110, 1),
    ("Max_Voltage_Limit", 120, 3),
    ("Homing_Offset", 512, 1),
    ("Homing_Offset", -40, 8),
    ("Homing_Offset", 300, 5),
    ("Startup_Configuration", 1, 7),
]


@pytest.mark.parametrize(("name", "value", "servo"), SPOILED)
def test_what_somebody_left_in_a_servo_is_named_and_put_right(emu, config, name, value, servo):
    emu.poke("right", servo, name, value)
    with pytest.raises(RobotFault, match=f"servo {servo} .*{name} {value}.*setup-arms") as refused:
        DynamixelRobot(config).__enter__()
    assert emu.ports[1] in str(refused.value)
    assert not emu.state().torque.any()
    line = next(one for one in doctor.arms(emu.ports) if one.name == "right set-up")
    assert (line.status, name in line.text) == ("fail", True)
    changes = [one for one in arm_setup.plan(config) if one.setting == name]
    assert [(one.side, one.servo_id, one.value) for one in changes] == [("right", servo, value)]
    assert emu.peek("right", servo, name) == value  # planning writes nothing
    arm_setup.write(config, arm_setup.plan(config))
    assert emu.peek("right", servo, name) == changes[0].becomes
    assert arm_setup.plan(config) == []
    with DynamixelRobot(config) as robot:
        robot.enable()
        assert emu.state().torque.all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Velocity_Limit", 60),
        ("Feedforward_1st_Gain", 2000),
        ("Goal_PWM", 100),
        ("Status_Return_Level", 1),
        ("Status_Return_Level", 0),
        ("Drive_Mode", 5),
        ("Operating_Mode", 1),
        ("Secondary_ID", 6),
        ("Max_Position_Limit", 2000),
        ("Position_P_Gain", 100),
        ("Return_Delay_Time", 250),
    ],
)
def test_what_every_run_writes_is_mended(emu, config, name, value):
    emu.poke("left", 4, name, value)
    with DynamixelRobot(config):
        tables = {servo: emu.peek("left", servo.id, name) for servo in SERVOS}
    wanted = {rule.register.name: rule for rule in setup.rules(SERVOS[3], config)}[name]
    assert wanted.accepts(tables[SERVOS[3]])


def test_everything_that_is_wrong_is_said_at_once(emu, config):
    for servo in SERVOS:
        emu.poke("left", servo.id, "Shutdown", 0)
    emu.poke("left", 8, "PWM_Limit", 100)
    with pytest.raises(RobotFault) as refused:
        DynamixelRobot(config).__enter__()
    text = str(refused.value)
    assert "servos 1, 2, 3, 4, 5, 6, 7, 8, 9 have Shutdown 0, not 52" in text
    assert "servo 8 (wrist_rotate) has PWM_Limit 100, not 885" in text


def test_settings_are_not_written_under_torque(emu, config):
    emu.poke("left", 1, "PWM_Limit", 200)
    emu.poke("left", 6, "Torque_Enable", 1)
    with pytest.raises(RobotFault, match="torque is on"):
        arm_setup.write(config, arm_setup.plan(config))
    assert emu.peek("left", 1, "PWM_Limit") == 200


def test_the_grippers_may_be_limited_as_alohas_instructions_say(emu, config):
    emu.poke("left", 9, "Current_Limit", 200)
    with DynamixelRobot(config) as robot:
        robot.enable()
    assert emu.state().torque.all()
    assert emu.peek("left", 9, "Goal_Current") == 200
    assert emu.peek("right", 9, "Goal_Current") == 297
    with DynamixelRobot(config) as robot:
        robot.disable()
    (change,) = arm_setup.plan(config, full_grip=True)[:1]
    assert (change.setting, change.value, change.becomes) == ("Current_Limit", 200, 1193)
    arm_setup.write(config, [change])
    assert emu.peek("left", 9, "Current_Limit") == 1193


@pytest.mark.parametrize("servo", [1, 5, 9])
def test_enabling_that_fails_half_way_is_undone(emu, config, servo, monkeypatch):
    """The right arm fails after the left one is on; what held before goes on holding."""
    short = dataclasses.replace(config, reply_timeout_s=0.1)
    with DynamixelRobot(short) as robot:
        emu.poke("left", 2, "Torque_Enable", 1)
        enable = robot._enable_arm

        def spoiled(side):
            if side == 1:
                emu.set_faults("right", Faults(silent=(servo,)))
            enable(side)

        monkeypatch.setattr(robot, "_enable_arm", spoiled)
        with pytest.raises(RobotFault, match=f"servo {servo} .*torque-off"):
            robot.enable()
        torque = emu.state().torque
        assert torque.sum() == 1
        assert torque[0, 1]
        assert not robot.enabled
        emu.set_faults("right")
        monkeypatch.undo()
        robot.enable()
        assert emu.state().torque.all()


@pytest.mark.parametrize(("servo", "turns"), [(8, 1), (8, -1), (6, 2), (9, 1)])
def test_a_joint_that_was_turned_by_a_whole_turn_is_named(emu, config, servo, turns):
    emu.turn("right", servo, turns)
    with pytest.raises(RobotFault, match=f"right servo {servo} .*whole turn.*back by hand"):
        DynamixelRobot(config).__enter__()
    with DynamixelRobot(config, passive=True) as robot:
        assert any("whole turn" in one for one in robot.setup_problems())
    emu.turn("right", servo, -turns)
    with DynamixelRobot(config) as robot:
        robot.enable()


@pytest.mark.parametrize(("master", "shadow", "ticks"), [(4, 5, 60), (2, 3, -90)])
def test_two_servos_of_a_joint_that_disagree_are_not_powered(emu, config, master, shadow, ticks):
    emu.poke("left", shadow, "Homing_Offset", ticks)
    with pytest.raises(RobotFault, match=rf"servo {master} .*servo {shadow} .*degrees apart"):
        DynamixelRobot(config).__enter__()


@pytest.mark.parametrize(("servo", "joint"), [(3, 8), (4, 9)])
def test_a_pair_that_comes_apart_later_is_read_at_once(emu, config, servo, joint):
    with DynamixelRobot(config) as robot:
        robot.enable()
        gap = robot.read().pair_gap
        assert gap is not None
        assert abs(gap).max() < 0.01
        emu.poke("right", servo, "Homing_Offset", 100)
        gap = robot.read().pair_gap
        assert gap is not None
        assert abs(gap[joint]) == pytest.approx(100 * 2 * 3.14159 / 4096, abs=0.01)
        with pytest.raises(RobotFault, match="degrees apart"):
            robot.enable()


def test_a_connection_that_only_reads_says_what_it_misreads(emu, config):
    """An arm fresh from the factory has no joint reversed."""
    with DynamixelRobot(config, passive=True) as robot:
        text = " ".join(robot.setup_problems())
        assert "Drive_Mode 0, not 1" in text
    with DynamixelRobot(config):
        pass
    with DynamixelRobot(config, passive=True) as robot:
        assert robot.setup_problems() == ()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("servo", [1, 5, 9])
def test_torque_that_went_off_is_read_within_two_readings(emu, config, side, servo):
    """A brown-out or a restart, also of a shadow or of the gripper."""
    with DynamixelRobot(config) as robot:
        robot.enable()
        robot.read()
        torque = robot.read().torque
        assert torque is not None
        assert torque.all()
        emu.reboot(("left", "right")[side], servo)
        robot.read()
        torque = robot.read().torque
        assert torque is not None
        assert list((~torque).nonzero()[0]) == [7 * side + SERVOS[servo - 1].joint]


def test_a_sinking_voltage_is_read_within_two_readings(emu, config):
    with DynamixelRobot(config) as robot:
        emu.feed("right", 10.1)
        robot.read()
        reading = robot.read()
        assert reading.voltage_v[7:] == pytest.approx(10.1)
        assert reading.voltage_v[:7] == pytest.approx(12.0)
        emu.feed("right", 9.0, servo=6)
        (fault,) = robot.read().servo_faults
        assert str(fault) == "right servo 6 (forearm_roll) reports input voltage"


def test_answers_lost_at_the_start_are_asked_for_again(emu):
    config = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.03, retries=4)
    for side in ("left", "right"):
        emu.set_faults(side, Faults(drop=0.05))
    for _ in range(8):
        with DynamixelRobot(config, passive=True) as robot:
            reading = robot.read()
            assert (reading.voltage_v > 11).all()
            assert (reading.temperature_c > 30).all()
            assert reading.torque is not None


def test_an_alert_whose_cause_is_not_read_yet_is_a_fault(emu, config, monkeypatch):
    with DynamixelRobot(config) as robot:
        emu.overload("left", 3)
        monkeypatch.setattr(robot.buses[0], "read_all", lambda *_, **__: {})
        reading = robot.read()
        assert reading.hardware_error[1]
        assert "not named yet" in str(reading.servo_faults[0])
