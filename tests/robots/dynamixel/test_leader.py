"""A leader arm on a bus: where a hand holds it is read, and nothing is written."""

import time

import leader_cases
import numpy as np
import pytest

from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.dynamixel.leader import LEADER_SERVOS, LOST_S, LeaderArm
from alohas2r.robots.dynamixel.registers import RAD_PER_TICK, XM540_W270
from alohas2r.robots.emulator.bus import SYNC_READ, Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig

POSE = np.array([0.3, -0.5, 0.9, 0.2, -0.4, 0.1, 0.02])  # rad; m of the emulated fingers


@pytest.fixture(scope="module")
def arms():
    with Emulator(EmulatorConfig(realtime=False, leaders=True)) as emulator:
        yield emulator


@pytest.fixture
def leaders(arms):
    arms.reset()
    return arms


def leader(emulator: Emulator) -> LeaderArm:
    return LeaderArm(emulator.ports[0], reply_timeout_s=0.1)


def test_it_says_where_a_hand_holds_it_however_it_is_set_up(leaders):
    expected = np.append(POSE[:-1], GripperLinkage().angle(POSE[-1]))
    leader_cases.put(leaders, POSE)
    for reversed_ in (
        [],
        [7],
        [2, 7],
        [1, 4, 9],
    ):  # as its maker ships it, as ALOHA's software sets it up, otherwise
        for servo in LEADER_SERVOS:
            leaders.poke("left", servo.id, "Drive_Mode", int(servo.id in reversed_))
        arm = leader(leaders)
        arm.open()
        np.testing.assert_allclose(arm.read(), expected, atol=RAD_PER_TICK)
        arm.close()


def test_its_torque_cannot_come_on_for_nothing_is_written(leaders):
    arm = leader(leaders)
    arm.open()
    for step in range(10):
        leader_cases.put(leaders, POSE + 0.01 * step)
        arm.read()
    arm.close()
    assert set(leaders.instructions("left")) == {SYNC_READ}
    assert not leaders.state().torque.any()


def test_one_that_drives_is_left_alone(leaders):
    leaders.poke("left", 4, "Torque_Enable", 1)
    with pytest.raises(RobotFault, match=r"holds itself \(servo 4 \(elbow\) has torque\)"):
        leader(leaders).open()
    assert leaders.peek("left", 4, "Torque_Enable") == 1
    assert set(leaders.instructions("left")) == {SYNC_READ}


def test_what_is_no_leader_is_said_in_a_line(leaders, tmp_path):
    with pytest.raises(RobotFault, match=r"There is no serial port .*leader"):
        LeaderArm(str(tmp_path / "leader")).open()
    leaders.poke("left", 2, "Model_Number", XM540_W270)
    with pytest.raises(RobotFault, match=r"is a follower .* not a leader arm"):
        leader(leaders).open()
    leaders.reset()
    leaders.set_faults("left", Faults(silent=(8, 9)))
    with pytest.raises(RobotFault, match="no answer from servo 8, 9 of the leader"):
        leader(leaders).open()
    leaders.set_faults("left")
    leader(leaders).open()  # each refusal let go of the port
    with pytest.raises(ConfigError, match="not set up"):
        EmulatorConfig(leaders=True, set_up=True)


def test_one_that_falls_silent_or_is_pulled_is_gone(leaders):
    arm = leader(leaders)
    arm.open()
    leader_cases.put(leaders, POSE)
    before = arm.read()
    leaders.set_faults("left", Faults(silent=(6,)))
    np.testing.assert_array_equal(arm.read(), before)  # for a moment it counts as it was
    leaders.set_faults("left")
    time.sleep(LOST_S + 0.1)  # nobody asked: that is not its silence
    leaders.set_faults("left", Faults(silent=(6,)))
    np.testing.assert_array_equal(arm.read(), before)
    begun_s = time.monotonic()

    def keep_reading() -> None:
        while time.monotonic() < begun_s + 5:
            arm.read()

    with pytest.raises(RobotFault, match=r"does not answer any more \(servo 6 \(forearm_roll\)\)"):
        keep_reading()
    assert LOST_S < time.monotonic() - begun_s < LOST_S + 1
    leaders.set_faults("left")
    np.testing.assert_array_equal(arm.read(), before)
    leaders.unplug("left")
    with pytest.raises(RobotFault, match=r"The leader arm on .* is gone: check its USB cable"):
        arm.read()
    arm.close()
