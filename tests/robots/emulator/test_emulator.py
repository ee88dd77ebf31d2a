"""The emulated bus, spoken to by the vendor's SDK as it is."""

import os
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.dynamixel.arm import IDS, SERVOS
from alohas2r.robots.dynamixel.registers import XM430_W350, XM540_W270
from alohas2r.robots.emulator import bus as emulated_bus
from alohas2r.robots.emulator import cameras
from alohas2r.robots.emulator import server as emulator_server
from alohas2r.robots.emulator import servo as emulated_servo
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.sim import scene

sdk = pytest.importorskip("dynamixel_sdk")

pytestmark = pytest.mark.alone

LED, TORQUE, GOAL, WATCHDOG, DRIVE_MODE, SECONDARY = 65, 64, 116, 98, 10, 12
HOME = scene.load("insert").home_qpos
WAIST = scene.load("insert").arms[0].qpos[0]


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """An emulator in a thread of this process, where its lines are counted as covered."""
    directory = tmp_path_factory.mktemp("arms")
    ready = threading.Event()
    serving = threading.Thread(
        target=emulator_server.serve, args=(EmulatorConfig(realtime=False), directory, ready.set)
    )
    serving.start()
    assert ready.wait(60)
    with Emulator(directory=directory) as emulator:
        yield emulator
        emulator.stop()
    serving.join(10)
    assert not serving.is_alive()
    assert list(directory.iterdir()) == []  # ports and socket are gone


@pytest.fixture
def emu(stepped):
    stepped.reset()
    return stepped


@pytest.fixture
def bus(emu, monkeypatch):
    # A busy machine answers late at times: as if the USB adapter had a slow latency timer.
    monkeypatch.setattr(sys.modules[sdk.PortHandler.__module__], "LATENCY_TIMER", 200)
    handler = sdk.PortHandler(emu.ports[0])
    assert handler.openPort()
    yield handler
    handler.closePort()


packets = sdk.PacketHandler(2.0)


@given(st.binary(max_size=80))
def test_checksum_is_the_sdks(data):
    assert emulated_bus.crc16(data) == packets.updateCRC(0, data, len(data))


def test_every_servo_answers_a_ping(bus):
    found, result = packets.broadcastPing(bus)
    assert result == sdk.COMM_SUCCESS
    assert {servo_id: model for servo_id, (model, _) in found.items()} == {
        servo.id: servo.model for servo in SERVOS
    }
    model, result, error = packets.ping(bus, 8)
    assert (model, result, error) == (XM430_W350, sdk.COMM_SUCCESS, 0)
    assert packets.ping(bus, 1)[0] == XM540_W270
    assert packets.ping(bus, 42)[1] == sdk.COMM_RX_TIMEOUT


def test_values_of_every_size_come_back(bus):
    assert packets.write1ByteTxRx(bus, 1, LED, 1) == (0, 0)
    assert packets.write2ByteTxRx(bus, 1, 84, 640) == (0, 0)
    assert packets.write4ByteTxRx(bus, 1, GOAL, 3000) == (0, 0)
    assert packets.read1ByteTxRx(bus, 1, LED) == (1, 0, 0)
    assert packets.read2ByteTxRx(bus, 1, 84) == (640, 0, 0)
    assert packets.read4ByteTxRx(bus, 1, GOAL) == (3000, 0, 0)


def test_data_that_looks_like_a_header_survives(bus):
    """Goal_Velocity -1 then Profile_Acceleration 253 contain FF FF FD, which is stuffed."""
    data = [0xFF] * 4 + [0xFD, 0, 0, 0]
    assert packets.writeTxRx(bus, 1, 104, 8, data) == (0, 0)
    assert packets.readTxRx(bus, 1, 104, 8) == (data, 0, 0)


@pytest.mark.parametrize(
    ("address", "size", "value", "error"),
    [
        (132, 4, 5, emulated_servo.ACCESS_ERROR),  # read-only
        (0, 2, 5, emulated_servo.ACCESS_ERROR),
        (150, 1, 5, emulated_servo.ACCESS_ERROR),  # nothing there
        (TORQUE, 1, 2, emulated_servo.RANGE_ERROR),
        (11, 1, 7, emulated_servo.RANGE_ERROR),  # no such operating mode
        (84, 2, 20000, emulated_servo.RANGE_ERROR),
        (GOAL, 4, 4096, emulated_servo.LIMIT_ERROR),  # beyond Max_Position_Limit
        (84, 2, 700, 0),
        (GOAL, 2, 5, emulated_servo.LENGTH_ERROR),  # half a value
    ],
)
def test_rules_of_the_control_table(bus, address, size, value, error):
    data = list(value.to_bytes(size, "little"))
    before = packets.readTxRx(bus, 1, address, size)[0]
    assert packets.writeTxRx(bus, 1, address, size, data) == (0, error)
    assert (packets.readTxRx(bus, 1, address, size)[0] == before) == bool(error)


def test_eeprom_is_locked_while_torque_is_on(bus):
    assert packets.write1ByteTxRx(bus, 1, 9, 0) == (0, 0)
    assert packets.write1ByteTxRx(bus, 1, TORQUE, 1) == (0, 0)
    assert packets.write1ByteTxRx(bus, 1, 9, 100) == (0, emulated_servo.ACCESS_ERROR)
    assert packets.read1ByteTxRx(bus, 1, 9)[0] == 0
    assert packets.write2ByteTxRx(bus, 1, 84, 640) == (0, 0)  # RAM is open
    assert packets.write1ByteTxRx(bus, 1, TORQUE, 0) == (0, 0)
    assert packets.write1ByteTxRx(bus, 1, 9, 100) == (0, 0)


def test_sync_and_bulk_reads_and_writes(bus):
    goals = {servo_id: 2048 + 10 * servo_id for servo_id in IDS}
    writer = sdk.GroupSyncWrite(bus, packets, GOAL, 4)
    for servo_id, goal in goals.items():
        writer.addParam(servo_id, list(goal.to_bytes(4, "little")))
    assert writer.txPacket() == sdk.COMM_SUCCESS
    reader = sdk.GroupSyncRead(bus, packets, GOAL, 4)
    for servo_id in IDS:
        reader.addParam(servo_id)
    for read in (reader.txRxPacket, reader.fastSyncRead):
        assert read() == sdk.COMM_SUCCESS
        assert {servo_id: reader.getData(servo_id, GOAL, 4) for servo_id in IDS} == goals

    bulk = sdk.GroupBulkWrite(bus, packets)
    bulk.addParam(1, LED, 1, [1])
    bulk.addParam(2, 84, 2, [1, 2])
    assert bulk.txPacket() == sdk.COMM_SUCCESS
    bulk_reader = sdk.GroupBulkRead(bus, packets)
    bulk_reader.addParam(1, LED, 1)
    bulk_reader.addParam(2, 84, 2)
    for read in (bulk_reader.txRxPacket, bulk_reader.fastBulkRead):
        assert read() == sdk.COMM_SUCCESS
        assert bulk_reader.getData(1, LED, 1) == 1
        assert bulk_reader.getData(2, 84, 2) == 0x201


def test_registered_writes_wait_for_the_action(bus):
    assert packets.regWriteTxRx(bus, 1, LED, 1, [1]) == (0, 0)
    assert packets.read1ByteTxRx(bus, 1, 69)[0] == 1
    assert packets.read1ByteTxRx(bus, 1, LED)[0] == 0
    assert packets.action(bus, sdk.BROADCAST_ID) == sdk.COMM_SUCCESS
    assert packets.read1ByteTxRx(bus, 1, LED)[0] == 1


def test_indirect_addresses_point(bus):
    assert packets.write2ByteTxRx(bus, 1, 168, LED) == (0, 0)
    assert packets.write1ByteTxRx(bus, 1, 224, 1) == (0, 0)
    assert packets.read1ByteTxRx(bus, 1, LED)[0] == 1
    assert packets.read1ByteTxRx(bus, 1, 224)[0] == 1


def test_a_shadow_obeys_its_master_in_silence(bus):
    assert packets.write1ByteTxRx(bus, 3, SECONDARY, 2) == (0, 0)
    assert packets.write1ByteTxRx(bus, 2, LED, 1) == (0, 0)
    assert bus.getBytesAvailable() == 0
    assert packets.read1ByteTxRx(bus, 3, LED)[0] == 1
    assert packets.read1ByteTxRx(bus, 5, LED)[0] == 0
    writer = sdk.GroupSyncWrite(bus, packets, GOAL, 4)
    writer.addParam(2, [0, 9, 0, 0])
    writer.txPacket()
    assert packets.read4ByteTxRx(bus, 3, GOAL)[0] == 0x900
    # Writing the shadow leaves the master alone.
    assert packets.write1ByteTxRx(bus, 3, LED, 0) == (0, 0)
    assert packets.read1ByteTxRx(bus, 2, LED)[0] == 1


def test_a_reboot_clears_volatile_values_only(emu, bus):
    packets.write1ByteTxRx(bus, 1, 9, 7)
    packets.write2ByteTxRx(bus, 1, 84, 640)
    packets.write1ByteTxRx(bus, 1, TORQUE, 1)
    assert packets.reboot(bus, 1) == (0, 0)
    assert packets.ping(bus, 1)[1] == sdk.COMM_RX_TIMEOUT
    emu.step(0.4)
    assert packets.ping(bus, 1)[1] == sdk.COMM_SUCCESS
    assert [packets.read1ByteTxRx(bus, 1, address)[0] for address in (9, TORQUE)] == [7, 0]
    assert packets.read2ByteTxRx(bus, 1, 84)[0] == 800


def test_a_servo_at_another_baud_rate_is_not_heard(emu, bus):
    emu.poke("left", 4, "Baud_Rate", 1)
    assert packets.ping(bus, 4)[1] == sdk.COMM_RX_TIMEOUT
    assert packets.ping(bus, 5)[1] == sdk.COMM_SUCCESS
    assert bus.setBaudRate(57600)
    assert packets.ping(bus, 4)[1] == sdk.COMM_SUCCESS
    assert packets.ping(bus, 5)[1] == sdk.COMM_RX_TIMEOUT


def test_the_watchdog_stops_a_servo_until_it_is_cleared(emu, bus):
    packets.write1ByteTxRx(bus, 1, TORQUE, 1)
    packets.write4ByteTxRx(bus, 1, GOAL, 3000)
    packets.write1ByteTxRx(bus, 1, WATCHDOG, 5)
    emu.step(0.09)
    assert packets.read1ByteTxRx(bus, 1, WATCHDOG)[0] == 5
    moving = packets.read4ByteTxRx(bus, 1, 132)[0]
    emu.step(0.2)
    assert packets.read1ByteTxRx(bus, 1, WATCHDOG)[0] == 255
    emu.step(0.5)
    stopped = packets.read4ByteTxRx(bus, 1, 132)[0]
    assert moving < stopped < 2800
    emu.step(0.5)
    assert abs(packets.read4ByteTxRx(bus, 1, 132)[0] - stopped) <= 1
    assert packets.write4ByteTxRx(bus, 1, GOAL, 3000) == (0, emulated_servo.RANGE_ERROR)
    assert packets.write1ByteTxRx(bus, 1, WATCHDOG, 0) == (0, 0)
    assert packets.write4ByteTxRx(bus, 1, GOAL, 3000) == (0, 0)
    assert packets.read1ByteTxRx(bus, 1, TORQUE)[0] == 1  # it held all the time


def test_a_hardware_error_raises_the_alert_and_lets_go(emu, bus):
    packets.write1ByteTxRx(bus, 1, TORQUE, 1)
    emu.overload("left", 1)
    value, result, error = packets.read1ByteTxRx(bus, 1, 70)
    assert (value, result, error) == (emulated_servo.OVERLOAD, 0, emulated_servo.ALERT)
    assert packets.read1ByteTxRx(bus, 1, TORQUE)[0] == 0
    code = emulated_servo.ALERT | emulated_servo.RESULT_FAIL
    assert packets.write1ByteTxRx(bus, 1, TORQUE, 1) == (0, code)
    assert packets.read1ByteTxRx(bus, 2, 70)[2] == 0
    emu.heat("left", 2, 70)  # hot, but within its limit
    assert packets.read1ByteTxRx(bus, 2, 70) == (0, 0, 0)
    emu.heat("left", 2, 85)
    assert packets.read1ByteTxRx(bus, 2, 70)[0] == emulated_servo.OVERHEATING


def test_disturbances_happen_about_as_often_as_told(emu, bus, monkeypatch):
    def failures(faults: Faults, count: int) -> float:
        emu.set_faults("left", faults)
        results = [packets.read1ByteTxRx(bus, 1, LED)[1] for _ in range(count)]
        return float(np.mean(np.array(results) != sdk.COMM_SUCCESS))

    assert failures(Faults(), 40) == 0
    assert failures(Faults(garbage=1.0), 40) == 0  # the SDK finds the packet in the noise
    emu.set_faults("left", Faults(latency_s=0.02))
    start_s = time.perf_counter()
    assert packets.ping(bus, 1)[1] == sdk.COMM_SUCCESS
    assert time.perf_counter() - start_s > 0.02
    monkeypatch.setattr(sys.modules[sdk.PortHandler.__module__], "LATENCY_TIMER", 16)
    assert 0.1 < failures(Faults(corrupt=0.3), 100) < 0.6
    emu.set_faults("left", Faults(silent=(1,)))
    assert packets.ping(bus, 1)[1] == sdk.COMM_RX_TIMEOUT
    assert packets.ping(bus, 2)[1] == sdk.COMM_SUCCESS
    emu.set_faults("left", Faults(drop=1.0))
    assert packets.ping(bus, 2)[1] == sdk.COMM_RX_TIMEOUT


def test_servos_drive_the_physics(emu, bus):
    """The waist follows its goal; a stretched arm sags, more on one servo than two, and falls."""
    stretched = HOME.copy()
    shoulder = scene.load("insert").arms[0].qpos[1]
    stretched[shoulder : shoulder + 2] = 0.0
    emu.place(stretched)
    for servo_id in IDS:
        packets.write1ByteTxRx(bus, servo_id, DRIVE_MODE, int(servo_id in (2, 4, 7)))
        packets.write1ByteTxRx(bus, servo_id, TORQUE, 1)
    packets.write4ByteTxRx(bus, 1, GOAL, 2048 + 300)
    emu.step(2.0)
    state = emu.state()
    assert state.qpos[WAIST] == pytest.approx(300 * 2 * np.pi / 4096, abs=2e-3)
    both = state.qpos[shoulder]
    assert 0.01 < both < 0.06
    assert packets.write1ByteTxRx(bus, 2, TORQUE, 0) == (0, 0)
    emu.step(2.0)
    one = emu.state().qpos[shoulder]
    assert 1.4 * both < one < 3 * both  # half the stiffness
    packets.write1ByteTxRx(bus, 3, TORQUE, 0)
    emu.step(2.0)
    assert emu.state().qpos[shoulder] > 3 * one


def test_the_profile_limits_speed(emu, bus):
    packets.write1ByteTxRx(bus, 1, TORQUE, 1)
    packets.write4ByteTxRx(bus, 1, 112, 20)  # 20 * 0.229 rpm
    packets.write4ByteTxRx(bus, 1, GOAL, 4000)
    emu.step(1.0)
    early = emu.state().qpos[WAIST]
    emu.step(1.0)
    assert emu.state().qpos[WAIST] - early == pytest.approx(20 * 0.0239808, rel=0.02)


def test_homing_offset_and_drive_mode_shift_and_turn(emu, bus):
    position = packets.read4ByteTxRx(bus, 1, 132)[0]
    assert position == 2048 + round(float(HOME[WAIST]) * 4096 / (2 * np.pi))
    packets.write4ByteTxRx(bus, 1, 20, 100)
    assert packets.read4ByteTxRx(bus, 1, 132)[0] == position + 100
    packets.write1ByteTxRx(bus, 1, DRIVE_MODE, 1)
    assert packets.read4ByteTxRx(bus, 1, 132)[0] == 2 * 2048 - position + 100


def test_gripper_force_is_limited_by_its_current(emu, bus):
    packets.write1ByteTxRx(bus, 9, 11, 5)
    packets.write1ByteTxRx(bus, 9, TORQUE, 1)
    packets.write2ByteTxRx(bus, 9, 102, 40)
    packets.write4ByteTxRx(bus, 9, GOAL, 2048 - 260)
    peak = 0
    for _ in range(20):
        emu.step(0.01)
        current = packets.read2ByteTxRx(bus, 9, 126)[0]
        peak = max(peak, abs(current - 65536 if current > 32767 else current))
    assert 30 < peak <= 44


def test_stepped_physics_is_reproducible_and_waits(emu):
    def run() -> np.ndarray:
        emu.reset()
        for _ in range(5):
            emu.step()
        return np.concatenate([emu.state().qpos, emu.state().qvel])

    first = run()
    time.sleep(0.05)
    before = emu.state().time_s
    np.testing.assert_array_equal(first, run())
    assert emu.state().time_s == pytest.approx(before + 0.25)


def test_wrong_requests_are_refused(emu):
    with pytest.raises(ConfigError, match="KeyError"):
        emu.peek("left", 1, "Presnt_Position")
    with pytest.raises(ConfigError):
        Faults(drop=2.0)
    with (
        pytest.raises(RobotFault, match="No emulator answers"),
        Emulator(directory="/tmp/no-emulator-here"),
    ):
        pass
    with Emulator(directory=emu.directory) as second:  # a second handle on the same one
        assert second.ports == emu.ports
    with pytest.raises(RobotFault, match="already"):
        emulator_server.serve(EmulatorConfig(realtime=False), emu.directory)


def test_an_emulator_that_was_killed_makes_room_for_the_next(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(tmp_path / "control"))
    serving = threading.Thread(
        target=emulator_server.serve, args=(EmulatorConfig(realtime=True), tmp_path)
    )
    serving.start()
    patience_s = time.monotonic() + 30
    while not (tmp_path / "right").exists() and time.monotonic() < patience_s:
        time.sleep(0.01)
    with Emulator(directory=tmp_path) as emulator:
        first = emulator.state().time_s
        time.sleep(0.2)
        assert emulator.state().time_s > first  # its time passes by itself
        emulator.stop()
    serving.join(10)
    assert not serving.is_alive()


def test_ctrl_c_is_the_parents_business():
    """A terminal sends Ctrl-C to all its processes; the emulator must outlive the retreat."""
    with Emulator(EmulatorConfig(realtime=False)) as emulator:
        assert emulator._process is not None
        assert emulator._process.pid is not None
        os.kill(emulator._process.pid, signal.SIGINT)
        before = emulator.state().time_s
        assert emulator.step() == pytest.approx(before + 0.05)


def test_real_time_physics_follows_the_clock():
    with Emulator() as emulator:
        emulator.state()
        start_s, simulated_s = time.monotonic(), emulator.state().time_s
        time.sleep(0.5)
        assert emulator.state().time_s - simulated_s == pytest.approx(
            time.monotonic() - start_s, abs=0.05
        )


class Painter:
    """A renderer that writes the camera's number and the waist angle into its pictures."""

    def __init__(self) -> None:
        self.calls = 0

    def render(self, poses, looks=None):
        self.calls += 1
        rgb = np.zeros((1, 2, 4, 4, 3), np.uint8)
        rgb[:, 1] = 1
        return rgb, np.full((1, 2, 4, 4), poses[0, WAIST], np.float32)


def test_cameras_show_the_present_state_once_drawn(emu):
    painter = Painter()
    left, right = cameras.EmulatedCameras(emu, painter).cameras()
    with left, right:
        first, other = left.read(0.1), right.read(0.1)
        assert (first.rgb.max(), other.rgb.max(), painter.calls) == (0, 1, 1)
        assert first.depth == pytest.approx(HOME[WAIST])
        qpos = HOME.copy()
        qpos[WAIST] = -0.1
        emu.place(qpos)
        emu.step()
        again = left.read(0.1)
        assert again.number == first.number + 1
        assert again.depth == pytest.approx(emu.state().qpos[WAIST])


def test_a_bus_that_is_pulled_while_its_bytes_arrive_ends_nothing(tmp_path):
    """Both may be found in one look at what is ready; the plug comes first then."""
    server = emulator_server.Server(EmulatorConfig(realtime=False), tmp_path)
    port = server._ports["left"].path
    wire = os.open(port, os.O_RDWR)
    os.write(wire, b"\xff\xff\xfd\x00")
    server._unplug("left")
    server._receive("left")
    os.close(wire)
    server.stop()
    server.run()
    assert not port.exists()
