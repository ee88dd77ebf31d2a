"""A person leads with a leader arm on an emulated bus, or with a SpaceMouse."""

import os
import struct

import leader_cases
import numpy as np
import online_cases
import pytest

from alohas2r.core import assets
from alohas2r.core.records import RecordReader
from alohas2r.deployment import robot_file
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.coach import Coach, Coached
from alohas2r.deployment.online.deciders import Looking, Verdict
from alohas2r.deployment.online.explorer import Explorer, Phase
from alohas2r.deployment.online.hands import LeaderHand, SpaceMouseHand, find_hand
from alohas2r.deployment.online.insert_coach import InsertCoach
from alohas2r.deployment.online.keyboard import Keyboard, Shown
from alohas2r.deployment.online.opened import open_world, shipped_base, stage_config
from alohas2r.deployment.online.scripts import ScriptedExpert
from alohas2r.deployment.online.stage import Ended, Plan, Stage
from alohas2r.deployment.online.truth import Truth
from alohas2r.deployment.rig import RigConfig
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import PER_ARM
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.learning.online.experience import Row, read_all
from alohas2r.policies.online import networks
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.published import Published
from alohas2r.policies.online.spec import HOLD
from alohas2r.policies.onnx.base import insert_spec, read_base
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.dynamixel.leader import GRIPPER_TRAVEL_RAD, LeaderArm
from alohas2r.robots.emulator.bus import SYNC_READ
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.spacemouse import SpaceMouse

SPEC = online_cases.spec()
# Where the leader is: nowhere near the follower.
ELSEWHERE = np.array([-0.4, -0.9, 1.1, 0.3, 0.2, -0.2, 0.03])


@pytest.fixture(scope="module")
def arms():
    with Emulator(EmulatorConfig(realtime=False, leaders=True)) as emulator:
        yield emulator


@pytest.fixture
def leaders(arms):
    arms.reset()
    leader_cases.put(arms, ELSEWHERE)
    return arms


def leader_hand(emulator: Emulator, travel_rad: float = GRIPPER_TRAVEL_RAD) -> LeaderHand:
    return LeaderHand(LeaderArm(emulator.ports[0], reply_timeout_s=0.1), travel_rad)


class Follower:
    """An arm that goes where a hand leads it."""

    def __init__(self, hand: LeaderHand | SpaceMouseHand) -> None:
        self.hand = hand
        self.targets = np.tile(online_cases.HOME, 2)

    def decide(self, keyed: np.ndarray | None = None) -> np.ndarray:
        """Carries a decision out, behind its control steps; returns the joints' actions [14]."""
        for _ in range(HOLD):
            self.hand.poll()
        felt = online_cases.proprioception(self.targets)
        keyed = np.zeros(5, np.float32) if keyed is None else keyed
        joints = SPEC.move(felt, self.hand.act(SPEC, felt, keyed))
        self.targets = self.targets + HOLD * ACTION_SCALE * joints
        return joints


def test_a_leader_leads_joint_by_joint_from_where_both_are(leaders):
    hand = leader_hand(leaders)
    hand.open()
    follower = Follower(hand)
    assert not follower.decide().any()  # however far apart they are
    moved = np.array([0.15, 0.1, -0.1, 0.5, 0.1, -0.5, 0.0])
    leader_cases.put(leaders, ELSEWHERE + moved)
    first = follower.decide()
    assert 0 < np.abs(first).max() <= 1  # no faster than any other decision
    for _ in range(15):
        follower.decide()
    expected = online_cases.HOME + moved * [1, 1, 1, 0, 1, 0, 0]  # two joints stay as they are
    np.testing.assert_allclose(follower.targets[:PER_ARM], expected, atol=3e-3)
    np.testing.assert_array_equal(follower.targets[PER_ARM:], online_cases.HOME)
    hand.begin()  # given back and taken again, from elsewhere
    leader_cases.put(leaders, ELSEWHERE)
    for _ in range(2):
        assert not follower.decide().any()
    hand.close()
    assert set(leaders.instructions("left")) == {SYNC_READ}
    assert not leaders.state().torque.any()


def test_the_grippers_travel_is_scaled_and_slips_at_its_ends(leaders):
    closed, opened = (float(GripperLinkage().angle(travel)) for travel in (0.004, 0.034))
    middle = float(GripperLinkage().travel((closed + opened) / 2))
    hand = leader_hand(leaders, opened - closed)
    pose = ELSEWHERE.copy()

    def squeeze(travel: float) -> float:
        pose[-1] = travel
        leader_cases.put(leaders, pose)
        for _ in range(4):
            follower.decide()
        return float(follower.targets[PER_ARM - 1])

    hand.open()
    follower = Follower(hand)
    low, high = SPEC.box.low[-1], SPEC.box.high[-1]
    assert squeeze(middle) == pytest.approx(online_cases.HOME[-1], abs=1e-3)
    assert squeeze(0.004) == pytest.approx((low + high) / 2, abs=1e-3)  # half its travel
    assert squeeze(0.034) == pytest.approx(high, abs=1e-3)
    assert squeeze(0.004) == pytest.approx(low, abs=1e-3)  # by now both ends are one
    assert squeeze(middle) == pytest.approx((low + high) / 2, abs=1e-3)
    hand.close()


class Shower:
    """A person who leads a leader arm as a script says; a director of one episode after the other."""

    def __init__(self, emulator: Emulator, truth: Truth, state, episodes: int) -> None:
        self._emulator, self._state, self._episodes = emulator, state, episodes
        self._expert = ScriptedExpert(SPEC, truth.grip, noise=0.0)
        self._expert.begin((0,))
        self.pose, self.unplug_at = ELSEWHERE.copy(), -1
        self.ended_: list[Ended] = []
        self.targets: list[np.ndarray] = []

    def next(self) -> Plan | None:
        number = len(self.ended_)
        return Plan(number, (0, number), True, True, False) if number < self._episodes else None

    def ended(self, episode, state) -> None:
        self.ended_.append(episode)

    def __call__(self, report) -> None:
        """Moves the leader after a control step, by as much as the script moves a follower."""
        self.targets.append(self._state()[2].copy())
        if len(self.targets) == self.unplug_at:
            self._emulator.unplug("left")
        if 0 < self.unplug_at <= len(self.targets):
            return
        felt = online_cases.proprioception(self.targets[-1])
        step = ACTION_SCALE * SPEC.move(felt, self._expert.act(felt))[:PER_ARM]
        self.pose[:-1] += 0.8 * step[:-1]
        leader_cases.put(self._emulator, self.pose)


def play(tmp_path, leaders, keyboard, unplug_at: int = -1) -> tuple[Shower, list]:
    """Shows reach in the control loop, without pictures; returns the person and the log."""
    rig = RigConfig("sim", stepped=True, stub_cameras=True)
    with (
        open_world(SPEC, rig) as (arms, simulation, truth),
        LogWriter(tmp_path / "0.run", {}) as log,
    ):
        assert isinstance(truth, Truth)
        person = Shower(leaders, truth, simulation.state, 1)
        person.unplug_at = unplug_at
        explorer = Explorer(SPEC, Shown(SPEC, keyboard), lambda felt: None, truth.done, 3.0)
        stage = Stage(explorer, simulation, truth, person, log, False)
        deploy = stage_config(SPEC)
        Deployment(arms.robot, arms.cameras, explorer, deploy, stage, log, on_step=person).run(
            stage
        )
    return person, list(RecordReader(tmp_path / "0.run").poll())


def test_a_leader_shows_reach_in_the_control_loop(tmp_path, leaders, terminal):
    said: list[str] = []
    with Keyboard(said.append, terminal[1], leader_hand(leaders)) as keyboard:
        person, records = play(tmp_path, leaders, keyboard)
    (episode,) = person.ended_
    assert (episode.truth, episode.aborted) == (True, False)
    assert episode.steps == 60  # stubs see no reward
    rows = [one for one in read_all(SPEC, records) if isinstance(one, Row)]
    assert [one.source for one in rows if one.source] == ["human"] * 15
    np.testing.assert_array_equal(person.targets[HOLD - 1], person.targets[0])  # nothing jumps
    assert any("leader arm leads" in line for line in said)
    assert set(leaders.instructions("left")) == {SYNC_READ}
    assert not leaders.state().torque.any()


def test_a_leader_that_is_pulled_ends_its_episode_and_the_arm_holds(tmp_path, leaders, terminal):
    said: list[str] = []
    with Keyboard(said.append, terminal[1], leader_hand(leaders)) as keyboard:
        person, records = play(tmp_path, leaders, keyboard, unplug_at=18)
        assert not person.ended_[0].success
        assert len(said) == 3
        assert "is gone" in said[2]
        assert "The arm holds; an episode that had begun failed" in said[2]
        last = [one for one in records if one.kind == "step"][-1].values["learning"]
        assert (last["truncated"], last["terminated"], last["reward"]) == (True, False, 0.0)
        assert np.abs(person.targets[17] - person.targets[4]).max() > 0.01
        np.testing.assert_array_equal(person.targets[-1], person.targets[17])
        keyboard.begin(())
        assert keyboard.judge() is Verdict.WAIT
        leaders.plug("left")
        online_cases.wait_for(lambda: keyboard.judge() is Verdict.NONE, 10.0)
        felt = online_cases.proprioception(np.tile(online_cases.HOME, 2))
        assert not keyboard.act(felt).any()
        assert said[-1] == "It is there again."


class Coaching:
    """A policy that a person helps, step by step."""

    def __init__(self, coach: Coach) -> None:
        eyes, *_ = read_eyes(assets.data_path("params") / "student", SPEC.side)
        learned = Looking(SPEC, eyes)
        weights = {name: np.full(shape, 0.01) for name, shape in networks.shapes(SPEC).items()}
        learned.use(Published(7, weights))
        self.explorer = Explorer(SPEC, Coached(SPEC, learned, coach), lambda felt: None, None, 60.0)
        self._draw = np.random.default_rng(0)

    def decision(self) -> tuple[str, np.ndarray]:
        """Returns who decided, and the joints' actions [14]."""
        source, actions = "", np.zeros(0)
        for number in range(HOLD):
            arrays = online_cases.observed(np.tile(online_cases.HOME, 2), self._draw)
            seen = {name.removeprefix("observation/"): value for name, value in arrays.items()}
            joints = self.explorer.act(seen)
            if number == 0:
                source, actions = self.explorer.notes().values["source"], joints
            if self.explorer.phase is not Phase.ACT:
                break
        return source, actions


def test_a_coach_takes_over_with_a_leader_and_loses_it(leaders, terminal):
    person, stream = terminal
    said: list[str] = []
    with Coach(said.append, stream, leader_hand(leaders)) as coach:
        coaching = Coaching(coach)
        coaching.explorer.begin((0,), True, False)
        leader_cases.put(leaders, ELSEWHERE + 0.2)  # moves nothing while the policy leads
        source, actions = coaching.decision()
        assert source == "policy"
        assert actions.any()
        os.write(person, b"c")
        assert coaching.decision() == ("human", pytest.approx(np.zeros(14), abs=0))
        pose = ELSEWHERE + 0.2
        pose[0] += 0.05
        leader_cases.put(leaders, pose)
        source, actions = coaching.decision()
        assert source == "human"
        assert actions[0] > 0
        leaders.unplug("left")
        _, actions = coaching.decision()
        assert not actions.any()
        assert coaching.explorer.phase is Phase.IDLE
        assert coaching.explorer.notes().values["truncated"]
        assert not coach.leads
        assert "the episode failed, and the policy leads again" in said[-1]
        coaching.explorer.begin((1,), True, False)
        os.write(person, b"c")
        assert coaching.decision()[0] == "policy"  # there is nothing to lead with
        assert "no serial port" in said[-1]
        leaders.plug("left")
        os.write(person, b"c")
        assert coaching.decision() == ("human", pytest.approx(np.zeros(14), abs=0))
        assert said[-1] == "You lead."
        os.write(person, b"c")
        coaching.decision()
        leaders.unplug("left")
        source, actions = coaching.decision()
        assert source == "policy"
        assert actions.any()
        assert coaching.explorer.phase is Phase.ACT
        assert "The policy leads on; c looks for it again" in said[-1]


def test_each_leader_leads_its_own_arm_of_an_insertion(leaders, terminal):
    person, stream = terminal
    said: list[str] = []
    leader_cases.put(leaders, ELSEWHERE, 1)
    hands = [LeaderHand(LeaderArm(port, reply_timeout_s=0.1), 0.9) for port in leaders.ports]
    felt = online_cases.proprioception(np.tile(online_cases.HOME, 2))
    moved = ELSEWHERE.copy()
    moved[0] += 0.05
    with InsertCoach(said.append, stream, hands) as coach:
        coach.use_both(insert_spec(read_base(shipped_base())))
        coach.begin((0,))
        for side, key in enumerate((b"c", b"2")):
            os.write(person, key)
            for at, wanted in ((ELSEWHERE, 0.0), (moved, 0.5)):
                leader_cases.put(leaders, at, side)
                coach.judge()
                own, other = (coach.lead(felt).reshape(2, 6)[one] for one in (side, 1 - side))
                assert own[0] >= wanted
                assert (own[0] == 0) == (wanted == 0)
                assert not other.any()
        assert said[-1] == "You lead the right arm."
        leaders.unplug("left")
        os.write(person, b"1")
        coach.judge()
        coach.lead(felt)
        assert "no serial port" in said[-2]
        assert coach.judge() is Verdict.FAILURE
        assert not coach.leads
    leaders.plug("left")


def push(writes: int, *values: int) -> None:
    os.write(writes, b"\x01" + struct.pack("<6h", *values))


@pytest.fixture
def mouse():
    reads, writes = os.pipe2(os.O_DIRECT)
    yield SpaceMouseHand(SpaceMouse(f"/proc/self/fd/{reads}")), writes
    os.close(reads)
    os.close(writes)


@pytest.mark.parametrize(
    ("pushed", "key"),
    [
        ((-350, 0, 0, 0, 0, 0), "a"),
        ((350, 0, 0, 0, 0, 0), "d"),
        ((0, -350, 0, 0, 0, 0), "w"),
        ((0, 0, -350, 0, 0, 0), "r"),
        ((0, 0, 0, -350, 0, 0), "g"),
        ((0, 0, 0, 0, 350, -350), ""),
    ],
)
def test_a_spacemouse_moves_as_keys_do(mouse, terminal, pushed, key):
    hand, writes = mouse
    person, stream = terminal
    felt = online_cases.proprioception(np.tile(online_cases.HOME, 2))
    with Keyboard(print, stream, hand) as keyboard:
        keyboard.use(SPEC)
        keyboard.begin(())
        assert keyboard.judge() is Verdict.NONE
        os.write(person, key.encode())
        expected = keyboard.act(felt)
        push(writes, *pushed)
        for _ in range(HOLD):
            keyboard.judge()
        np.testing.assert_allclose(keyboard.act(felt), expected)
        keyboard.judge()
        push(writes, 0, 0, 0, 0, 0, 0)
        keyboard.judge()  # let go after half of the time: half as far
        np.testing.assert_allclose(keyboard.act(felt)[:4], expected[:4] / 2)


def test_a_spacemouse_takes_over_without_a_jump_and_grips(mouse, terminal):
    hand, writes = mouse
    said: list[str] = []
    with Coach(said.append, terminal[1], hand) as coach:
        coaching = Coaching(coach)
        coaching.explorer.begin((0,), True, False)
        push(writes, 0, -350, 0, 0, 0, 0)
        assert coaching.decision()[0] == "policy"
        os.write(writes, b"\x03\x02\x00")  # the second button, while the cap is pushed
        assert coaching.decision() == ("human", pytest.approx(np.zeros(14), abs=0))
        push(writes, 0, 0, 0, 0, 0, 0)
        coaching.decision()
        push(writes, 0, -350, 0, 0, 0, 0)
        assert coaching.decision()[1][:6].any()
        push(writes, 0, 0, 0, 0, 0, 0)
        os.write(writes, b"\x03\x00\x00")
        os.write(writes, b"\x03\x01\x00")
        assert coaching.decision()[1][6] < 0  # open fingers close
        os.write(writes, b"\x03\x03\x00")
        assert coaching.decision()[0] == "policy"
        assert said[2:] == ["You lead.", "The policy leads."]


def test_a_spacemouse_gives_an_episode_up_and_goes_missing(mouse, terminal):
    hand, writes = mouse
    said: list[str] = []
    with Keyboard(said.append, terminal[1], hand) as keyboard:
        keyboard.use(SPEC)
        keyboard.begin(())
        os.write(writes, b"\x03\x02\x00")
        assert keyboard.judge() is Verdict.NONE
        keyboard.act(online_cases.proprioception(np.tile(online_cases.HOME, 2)))
        assert keyboard.gave_up
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), writes)
        assert keyboard.judge() is Verdict.FAILURE
        assert "is gone" in said[2]


def test_what_leads_is_named_by_the_robot_file(tmp_path, terminal):
    assert find_hand("keyboard") is None
    path = tmp_path / "robot.toml"
    path.write_text('[left_leader]\nport = "/dev/mine"\n[right_leader]\ngripper_travel_rad = 1.0\n')
    robot = robot_file.load(path)
    assert robot is not None
    assert robot_file.load(robot_file.save(robot, path)) == robot
    hands = find_hand("leader", path, "left"), find_hand("leader", path, "right")
    for hand, port in zip(hands, ("/dev/mine", "/dev/ttyDXL_leader_right"), strict=True):
        with pytest.raises(RobotFault, match=f"no serial port {port}"):
            Keyboard(print, terminal[1], hand).__enter__()
    with open(os.devnull) as nothing, pytest.raises(ConfigError, match="--coach leader needs"):
        Coach(print, nothing, find_hand("leader", path))
    for text in ('[left_leader]\nport = "/dev/ttyDXL_follower_left"', "[left_leader]\nport = ''"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="port"):
            find_hand("leader", path)
    path.write_text("[left_leader]\ngripper_travel_rad = 45.0")
    with pytest.raises(ConfigError, match=r"0\.2\.\.3\.0 rad"):
        find_hand("leader", path)
