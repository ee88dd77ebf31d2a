"""What the SDK, the operating system and other programs do to a bus comes out as one sentence with a remedy."""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys
import time

import pytest

from alohas2r.deployment import doctor, recovery
from alohas2r.errors import Alohas2rError, ConfigError, RobotFault
from alohas2r.robots.dynamixel import adapter
from alohas2r.robots.dynamixel.arm import DynamixelConfig, GripperLinkage
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig

sdk = pytest.importorskip("dynamixel_sdk")

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


# --- the SDK ----------------------------------------------------------------------------------

PACKETS = type(sdk.PacketHandler(2.0))
CALLS = {
    name: (kind, function)
    for kind in (PACKETS, sdk.PortHandler)
    for name, function in vars(kind).items()
    if inspect.isfunction(function) and not name.startswith("__")
}
# What a bus calls at all, and, of these, often.
OFTEN = (
    *("syncReadTx", "setPacketTimeoutMillis", "txRxPacket", "txPacket", "rxPacket", "writeTxRx"),
    *("addStuffing", "removeStuffing", "updateCRC", "clearPort", "writePort", "readPort"),
)
CALLED = (
    *("openPort", "setBaudRate", "getCFlagBaud", "setupPort", "closePort", "ping", "readTx"),
    *("syncWriteTxOnly", "isPacketTimeout", "getTimeSinceStart", *OFTEN),
)


def use(config: DynamixelConfig) -> None:
    """Everything that is done with a bus."""
    with DynamixelRobot(config) as robot:
        robot.enable()
        robot.command(robot.read().position)
        robot.stop()
        robot.disable()
    with Bus(config.ports[0], reply_timeout_s=0.5) as bus:
        bus.ping(1)


def test_the_walk_misses_no_call(config, monkeypatch):
    called = set()

    def noted(name, function):
        def call(*arguments, **named):
            called.add(name)
            return function(*arguments, **named)

        return call

    for name, (kind, function) in CALLS.items():
        monkeypatch.setattr(kind, name, noted(name, function))
    use(config)
    # The clock is asked only where an answer is waited for, which a quiet machine may not need.
    waiting = {"getTimeSinceStart", "isPacketTimeout"} & set(CALLED)
    assert called | waiting == set(CALLED)


@pytest.mark.parametrize(
    ("name", "call"), [*((name, 1) for name in CALLED), *((name, 40) for name in OFTEN)]
)
def test_an_error_of_the_sdk_is_one_of_ours(emu, config, monkeypatch, name, call):
    kind, real = CALLS[name]
    calls = [0]

    def spoiled(*arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            raise TypeError("'NoneType' object cannot be interpreted as an integer")
        return real(*arguments, **named)

    monkeypatch.setattr(kind, name, spoiled)
    said = ""
    try:
        use(config)
    except Alohas2rError as fault:
        said = str(fault)
    assert "\n" not in said
    # Closing a port that is gone is no fault; all else that fails is said.
    assert said or calls[0] < call or name in ("closePort",)
    monkeypatch.undo()
    use(config)  # and nothing is left behind


# --- the port ---------------------------------------------------------------------------------

HOLD = "import sys,time; f=open(sys.argv[1],'r+b',buffering=0); print('open',flush=True); time.sleep(60)"


def test_a_program_that_has_the_port_open_is_named(emu):
    """Such as Dynamixel Wizard, which asks for no lock."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, emu.ports[0]], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RobotFault, match=rf"in use .*\({other.pid}\).*Dynamixel Wizard"):
            Bus(emu.ports[0]).open()
        assert any(str(other.pid) in one.text for one in doctor.arms(emu.ports))
        Bus(emu.ports[1]).open()
    finally:
        other.kill()
        other.wait()
    with Bus(emu.ports[0]):
        pass


def _kept(port: str) -> bool:
    import fcntl

    from alohas2r.robots.emulator.server import TIOCGEXCL

    with pathlib.Path(port).open("r+b", buffering=0) as terminal:  # root may open it all the same
        return fcntl.ioctl(terminal.fileno(), TIOCGEXCL, bytes(4)) != bytes(4)


def test_an_open_port_is_kept_from_programs_that_ask_for_no_lock(emu):
    assert not _kept(emu.ports[0])
    with Bus(emu.ports[0]):
        assert _kept(emu.ports[0])
        with Bus(emu.ports[1], reply_timeout_s=0.1) as other, other.patience(0.2, 57_600):
            assert _kept(emu.ports[1])  # speaking at another rate opens it for nobody
    assert not _kept(emu.ports[0])


def test_a_port_whose_user_was_killed_is_free_again():
    keep = (
        "import sys,time; from alohas2r.robots.dynamixel.bus import Bus\n"
        "Bus(sys.argv[1]).open(); print('open', flush=True); time.sleep(60)"
    )
    with Emulator(EmulatorConfig(realtime=False)) as emu:
        user = subprocess.Popen(
            [sys.executable, "-c", keep, emu.ports[0]], stdout=subprocess.PIPE, text=True
        )
        assert user.stdout is not None
        assert user.stdout.readline() == "open\n"
        assert _kept(emu.ports[0])
        user.kill()
        user.wait()
        until_s = time.monotonic() + 10
        while _kept(emu.ports[0]) and time.monotonic() < until_s:
            time.sleep(0.1)
        assert not _kept(emu.ports[0])


# --- why a servo is not heard -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda emu: emu.set_faults("left", Faults(latency_s=0.016)),
            "too late.*latency timer.*sudo tee",
        ),
        (
            lambda emu: emu.poke("left", 4, "Baud_Rate", 1),
            r"servo 4 \(elbow\) at 57600 baud.*Wizard",
        ),
        (
            lambda emu: emu.poke("left", 6, "Baud_Rate", 2),
            r"servo 6 \(forearm_roll\) at 115200 baud",
        ),
        (lambda emu: emu.poke("left", 7, "ID", 1), "servo 7 .*a new servo has id 1"),
        (
            lambda emu: emu.set_faults("left", Faults(silent=(7, 8, 9))),
            r"up to 6 .*between servo 6 .*servo 7",
        ),
        (lambda emu: emu.set_faults("left", Faults(silent=tuple(range(1, 10)))), "power on"),
        (lambda emu: emu.poke("left", 3, "Firmware_Version", 30), "firmware of servo 3 .*Wizard"),
    ],
)
def test_why_a_servo_is_not_heard(emu, spoil, words):
    spoil(emu)
    with pytest.raises(RobotFault, match=words):
        DynamixelRobot(DynamixelConfig(ports=emu.ports, reply_timeout_s=0.01)).__enter__()


def test_an_adapter_that_is_too_slow_is_named_before_anything_is_asked(
    emu, config, tmp_path, monkeypatch
):
    timer = tmp_path / pathlib.Path(emu.ports[0]).resolve().name / "latency_timer"
    timer.parent.mkdir()
    timer.write_text("16\n")
    monkeypatch.setattr(adapter, "ADAPTERS", tmp_path)
    with pytest.raises(RobotFault, match=r"stands at 16 ms.*echo 1 \| sudo tee"):
        DynamixelRobot(config).__enter__()
    timer.write_text("1\n")
    with DynamixelRobot(config):
        pass


# --- letting go -------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [(7, 8, 9), (1,), (2, 4)])
def test_every_servo_that_answers_lets_go(emu, config, silent):
    short = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.1)
    with DynamixelRobot(config) as robot:
        robot.enable()
    emu.set_faults("left", Faults(silent=silent))
    left, right = recovery.let_go(short, anywhere=True)
    torque = emu.state().torque
    assert not torque[1].any()
    assert [servo for servo in range(1, 10) if torque[0, servo - 1]] == list(silent)
    assert right.complete
    assert all(f"servo {one} (" in str(left) for one in silent)
    robot = DynamixelRobot(short, passive=True)
    with robot.buses[0], robot.buses[1], pytest.raises(RobotFault, match=f"servo {silent[0]} "):
        robot.disable()


def test_an_arm_that_is_unplugged_keeps_the_other_from_nothing(emu, config):
    with DynamixelRobot(config) as robot:
        robot.enable()
    emu.unplug("left")
    left, right = recovery.let_go(config, anywhere=True)
    assert not emu.state().torque[1].any()
    assert (left.off, right.complete) == ((), True)
    assert "Plug in" in str(left)
    emu.plug("left")


def test_one_arm_alone_lets_go(emu, config):
    with DynamixelRobot(config) as robot:
        robot.enable()
    (right,) = recovery.let_go(config, ("right",), anywhere=True)
    assert right.complete
    assert list(emu.state().torque.all(axis=1)) == [True, False]


def test_an_arm_whose_place_is_unknown_is_not_let_go_of(emu, config):
    with DynamixelRobot(config) as robot:
        robot.enable()
    short = DynamixelConfig(ports=emu.ports, reply_timeout_s=0.1)
    emu.set_faults("right", Faults(silent=(2,)))
    results = recovery.let_go(short)
    assert emu.state().torque.all()
    assert "not in the sleep pose" in str(results[0])
    assert "nobody knows where the arm is" in str(results[1])


# --- numbers with units -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (148.5, r"degrees as Dynamixel Wizard shows them it is -0\.55 rad"),
        (-31.5, r"degrees from the centre it is -0\.55 rad"),
        (1690.0, r"ticks it is -0\.55 rad"),
        (2.5, "between -1.57 and 1.57"),
        (0.62, "open to .* mm each, not 37 mm"),
    ],
)
def test_a_gripper_angle_in_another_unit_is_refused(value, words):
    with pytest.raises(ConfigError, match=words):
        GripperLinkage.measured(value)


@pytest.mark.parametrize("value", [-0.55, -0.3, 0.0])
def test_a_gripper_angle_in_rad_is_taken(value):
    assert GripperLinkage.measured(value).travel(value) == pytest.approx(0.0079)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reply_timeout_s": 4.0},
        {"max_speed_rad_s": 180.0},
        {"max_acceleration_rad_s2": 1e6},
        {"gripper_current_a": 800.0},
        {"gains": (800, 0, -1)},
        {"baudrate": 1_000_001},
        {"health_period_s": 1000.0},
        {"watchdog_s": 120.0},
    ],
)
def test_settings_in_another_unit_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        DynamixelConfig(**wrong)
