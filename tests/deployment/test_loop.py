"""The control loop on simulated arms, and through the vendor's SDK on emulated ones."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import robot_cases

from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter, Run, read_run, replay, summarize, views
from alohas2r.deployment.loop import Deployment, start_pose
from alohas2r.deployment.observation import observe
from alohas2r.deployment.pacer import ClockPacer, SteppedPacer
from alohas2r.deployment.recovery import torque_off
from alohas2r.deployment.report import Report
from alohas2r.deployment.rig import RigConfig
from alohas2r.deployment.terms import load_policy, open_policy, terms
from alohas2r.deployment.timing import Tally
from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.embodiment.poses import SLEEP_POSE
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError, RobotFault
from alohas2r.policies.onnx.interface import Input, Interface
from alohas2r.policies.remote.served import ServedPolicy
from alohas2r.robots.base import Camera, Frame, Robot
from alohas2r.robots.dynamixel.arm import DynamixelConfig
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.cameras import EmulatedCameras
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, cameras
from alohas2r.safety.config import FULL, SafetyConfig
from alohas2r.safety.model import SafetyModel
from alohas2r.safety.paths import at_rest
from alohas2r.safety.reactions import Mode
from alohas2r.sim import scene

pytestmark = pytest.mark.alone

INSERT = scene.load("insert")
HOME = start_pose()
IMPATIENT = SafetyConfig(patience_s=0.0)


class Painter:
    """A renderer that is cheap: stripes that move with the arm that carries the camera."""

    def render(self, poses, looks=None):
        rows, columns = np.mgrid[:32, :32]
        rgb, depth = [], []
        for arm in INSERT.arms:
            phase = float(poses[0, arm.qpos[:6]] @ [40, 31, 23, 17, 13, 11])
            stripes = np.sin(0.7 * rows + 0.4 * columns + phase)
            rgb.append(np.repeat((120 + 100 * stripes)[..., None], 3, axis=2).astype(np.uint8))
            depth.append((0.2 + 0.05 * stripes).astype(np.float32))
        return np.array(rgb)[None], np.array(depth)[None]


class Script:
    """A policy of fixed rules: `rule(step, observation)`."""

    def __init__(self, rule) -> None:
        self.rule = rule
        self.step = 0
        self.resets = 0

    def reset(self) -> None:
        self.step = 0
        self.resets += 1

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        self.step += 1
        return self.rule(self.step, observation)


def sway(step: int, observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """Reacts to everything it sees, so that a replay must see the same."""
    seen = sum(float(observation[f"{side}_depth"].mean()) for side in ("left", "right"))
    seen += float(observation["left_rgb"].mean()) / 255 + float(observation["proprioception"].sum())
    return 0.5 * np.sin(0.1 * step + np.arange(14) + seen) * ~IS_GRIPPER


def still(step: int, observation: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.zeros(14)


class Recorder:
    """Passes everything on to a robot and notes it."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.commands: list[np.ndarray] = []
        self.calls: list[str] = []
        self.spoil = lambda reading: reading

    def __enter__(self):
        self.robot.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.robot.__exit__(kind, error, trace)

    def setup_problems(self):
        return self.robot.setup_problems()

    def read(self):
        return self.spoil(self.robot.read())

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        self.commands.append(ctrl.copy())
        self.calls.append("command")
        return self.robot.command(ctrl)

    def stop(self) -> None:
        self.calls.append("stop")
        self.robot.stop()

    def enable(self) -> None:
        self.calls.append("enable")
        self.robot.enable()

    def disable(self) -> None:
        self.calls.append("disable")
        self.robot.disable()


class Bad:
    """A camera that shows `spoil(frame)`, or raises what that raises."""

    def __init__(self, camera: Camera, spoil) -> None:
        self.name = camera.name
        self.camera = camera
        self.spoil = spoil

    def __enter__(self):
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass

    def read(self, max_age_s: float) -> Frame:
        return self.spoil(self.camera.read(max_age_s))


class Rig:
    """A simulated robot with everything around it."""

    def __init__(self) -> None:
        self.world = SimulatedWorld()
        self.simulated = SimulatedRobot(self.world)
        self.robot = Recorder(self.simulated)
        self.cameras: list[Any] = list(cameras(self.world, Painter()))
        self.reports: list[Report] = []

    def deployment(
        self, rule, config: DeployConfig, log=None, safety=None, slow=FULL
    ) -> Deployment:
        return Deployment(
            self.robot,
            self.cameras,
            Script(rule),
            config,
            SteppedPacer(self.world.advance),
            log,
            safety,
            slow,
            self.reports.append,
        )

    def check_commands(self) -> None:
        commands = np.array(self.robot.commands)
        assert np.isfinite(commands).all()
        assert np.abs(np.diff(commands, axis=0)).max() <= 0.02 + 1e-6
        model = SafetyModel(FULL)
        assert min(model.clearance(command).slack for command in commands[::5]) >= -1e-6


@pytest.fixture
def rig() -> Rig:
    return Rig()


SHORT = DeployConfig(mode="full", episode_s=1.0, approach=False, frozen_s=0.0)


# --- a run ------------------------------------------------------------------------------------


def test_a_run_approaches_acts_retreats_and_lets_go_at_rest_only(rig):
    config = DeployConfig(mode="full", episode_s=1.0, episodes=2)
    outcome = rig.deployment(sway, config).run()
    assert outcome.mode is Mode.ASLEEP
    assert (outcome.episodes, outcome.steps) == (2, 40)
    assert at_rest(rig.simulated.read().position)
    assert rig.robot.calls[0] == "enable"
    assert rig.robot.calls[-1] == "disable"
    assert rig.robot.calls.count("disable") == 1
    assert outcome.findings == {}
    assert [mode for mode, _ in outcome.reasons] == ["retreat", "asleep"]
    rig.check_commands()


def test_the_policy_starts_each_episode_afresh_from_the_start_pose(rig):
    seen = []

    def rule(step, observation):
        if step == 1:
            seen.append(observation["proprioception"][:8])
        return np.zeros(14)

    deployment = rig.deployment(rule, DeployConfig(mode="full", episode_s=0.2, episodes=2))
    deployment.run()
    assert len(seen) == 3  # the pre-flight check asks once
    for first in seen[1:]:
        np.testing.assert_allclose(first[:6], HOME[:6], atol=0.06)


@pytest.mark.parametrize("mode", ["dry-run", "shadow"])
def test_modes_without_torque_read_and_log_but_move_nothing(rig, mode, tmp_path):
    config = DeployConfig(mode=mode, episode_s=0.5)
    with LogWriter(tmp_path / "run", log_header(config, FULL, "sim", "script")) as log:
        outcome = rig.deployment(sway, config, log).run()
    assert rig.robot.calls == []
    assert outcome.steps == 10
    run = read_run(tmp_path / "run")
    assert len(run.stack("command")) == 10  # what would have been sent
    assert np.abs(run.stack("command") - run.stack("position")).max() > 0.001


def test_slow_mode_moves_at_the_slow_limits(rig):
    config = DeployConfig(mode="slow", episode_s=1.0, approach=False, retreat=False)
    rig.deployment(lambda *_: -np.ones(14) * ~IS_GRIPPER, config).run()
    assert np.abs(np.diff(rig.robot.commands, axis=0)).max() == pytest.approx(0.0075, rel=1e-6)


def test_actions_move_targets_from_what_was_sent(rig):
    action = np.where(np.arange(14) == 3, 0.5, 0.0)
    config = DeployConfig(mode="full", episode_s=0.5, approach=False, retreat=False)
    rig.deployment(lambda *_: action, config).run()
    steps = np.diff(rig.robot.commands, axis=0)
    np.testing.assert_allclose(steps, np.tile(0.02 * action, (len(steps), 1)), atol=1e-12)


def test_the_switch_follows_the_fingertips(rig):
    """Lift both arms with closed grippers that hold something, then lower one."""

    def rule(step, observation):
        action = np.zeros(14)
        action[[1, 8]] = -1 if step < 25 else 0
        action[1] = 1 if step >= 25 else action[1]
        return action

    config = DeployConfig(mode="full", episode_s=3.0, approach=False, retreat=False)
    rig.deployment(rule, config).run()
    switched = [report.switched for report in rig.reports]
    assert not switched[0]
    assert any(switched)
    assert not switched[-1]


def test_the_observation_has_positions_and_distances_to_the_target(rig):
    reading = rig.simulated.read()
    frames = {camera.name: camera.read(1.0) for camera in rig.cameras}
    target = reading.position + np.arange(14) / 100
    seen = observe(reading, frames, target, True)
    positions, errors = seen["proprioception"].reshape(2, 2, 8)
    np.testing.assert_allclose(positions, reading.joint_position(), atol=1e-6)
    np.testing.assert_allclose(errors[0, :7], -np.arange(7) / 100, atol=1e-6)
    assert errors[1, 6] == errors[1, 7] == pytest.approx(-0.13)
    assert seen["switched"]
    np.testing.assert_array_equal(seen["right_rgb"], frames["right"].rgb)


def test_the_preflight_names_everything_that_fails(rig):
    deployment = rig.deployment(lambda *_: np.full(14, np.nan), SHORT)
    checks = {one.name: one.passed for one in deployment.preflight()}
    assert checks == {
        "joints": True,
        "range": True,
        "clearance": True,
        "cameras": True,
        "policy": False,
    }
    with pytest.raises(RobotFault, match="policy: it returned"):
        deployment.run()
    assert "enable" not in rig.robot.calls


@pytest.mark.parametrize(
    "wrong", [{"mode": "fast"}, {"episodes": 0}, {"episode_s": 0.0}, {"action_scale": 1.0}]
)
def test_configuration_refuses_nonsense(wrong):
    with pytest.raises(ConfigError):
        DeployConfig(**wrong)


# --- faults -----------------------------------------------------------------------------------


def after(step: int, bad, good=sway):
    return lambda now, seen: bad(now, seen) if now > step else good(now, seen)


def test_a_policy_that_breaks_leads_to_the_retreat_within_three_steps(rig):
    outcome = rig.deployment(after(10, lambda *_: np.full(14, np.nan)), SHORT).run()
    assert outcome.mode is Mode.ASLEEP
    assert outcome.findings == {"bad action": 3}
    assert "bad action" in outcome.reasons[0][1]
    assert outcome.steps == 13
    rig.check_commands()


def test_closing_closed_grippers_is_no_intervention(rig):
    close = np.tile([0, 0, 0, 0, 0, 0, -1.0], 2)
    outcome = rig.deployment(lambda *_: close, DeployConfig(mode="full", episode_s=3)).run()
    assert outcome.interventions == {}
    rig.check_commands()


def gone(*_: object) -> np.ndarray:
    raise ConnectionError("server gone")


def test_a_policy_server_that_is_gone_is_waited_for_then_the_arms_retreat(rig):
    safety = SafetyConfig(patience_s=0.5)
    outcome = rig.deployment(after(5, gone), SHORT, safety=safety).run()
    assert outcome.mode is Mode.ASLEEP
    assert "late policy" in outcome.reasons[1][1]
    assert [mode for mode, _ in outcome.reasons][:2] == ["hold", "retreat"]
    assert 10 <= outcome.findings["late policy"] <= 12  # half a second


def test_a_policy_that_answers_again_goes_on(rig):
    def rule(step, observation):
        return gone() if 5 < step < 9 else sway(step, observation)

    outcome = rig.deployment(rule, SHORT).run()
    assert outcome.findings == {"late policy": 3}
    assert [mode for mode, _ in outcome.reasons] == ["hold", "run", "retreat", "asleep"]


def test_a_policy_that_pushes_into_the_table_is_clamped(rig):
    push = np.tile([0, 1, 0.3, 0, 0, 0, 0], 2)
    outcome = rig.deployment(lambda *_: push, DeployConfig(mode="full", episode_s=3)).run()
    assert outcome.interventions["collision"] > 10
    assert outcome.mode is Mode.ASLEEP
    rig.check_commands()


def black(frame: Frame) -> Frame:
    return Frame(np.zeros_like(frame.rgb), np.zeros_like(frame.depth), frame.time_s, frame.number)


class Freeze:
    """Shows the first picture for ever, with a counter that goes on."""

    def __init__(self) -> None:
        self.first: Frame | None = None

    def __call__(self, frame: Frame) -> Frame:
        self.first = self.first or frame
        return Frame(self.first.rgb, self.first.depth, frame.time_s, frame.number)


def lost(frame: Frame) -> Frame:
    raise RobotFault("The right camera's last picture is 0.40 s old: unplugged.")


@pytest.mark.parametrize(
    ("spoil", "kind", "within"),
    [(black, "black camera", 4), (Freeze(), "frozen camera", 8), (lost, "stale camera", 1)],
)
def test_a_camera_that_fails_holds_the_arms_and_then_they_retreat(rig, spoil, kind, within):
    since = []

    def later(frame: Frame) -> Frame:
        if rig.reports and rig.reports[-1].step >= 10:
            since.append(len(rig.reports))
            return spoil(frame)
        return frame

    rig.cameras[1] = Bad(rig.cameras[1], later)
    outcome = rig.deployment(sway, SHORT, safety=IMPATIENT).run()
    assert outcome.mode is Mode.ASLEEP
    assert set(outcome.findings) == {kind}
    held = next(index for index, report in enumerate(rig.reports) if report.findings)
    assert held - since[0] < within
    rig.check_commands()


def test_swapped_cameras_are_found_while_the_arms_approach(rig):
    left, right = rig.cameras
    left.name, right.name = "right", "left"
    view = [left._view, right._view]
    assert view[0] is view[1]
    rig.cameras = [Swapped("left", right), Swapped("right", left)]
    outcome = rig.deployment(sway, DeployConfig(mode="full", episode_s=1.0)).run()
    assert outcome.findings["swapped cameras"] >= 1
    assert outcome.steps == 0  # before the policy acted at all
    assert outcome.mode is Mode.ASLEEP


class Swapped:
    """A camera under the wrong name."""

    def __init__(self, name: str, shown: Any) -> None:
        self.name, self.shown = name, shown

    def __enter__(self):
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass

    def read(self, max_age_s: float) -> Frame:
        return self.shown._view.frame(0 if self.name == "right" else 1)


def test_a_motor_fault_holds_for_good_and_keeps_torque_on(rig):
    def spoil(reading):
        if rig.reports and rig.reports[-1].step >= 10:
            reading.hardware_error[3] = 0x20
        return reading

    rig.robot.spoil = spoil
    outcome = rig.deployment(sway, SHORT).run()
    assert outcome.mode is Mode.FROZEN
    assert "disable" not in rig.robot.calls
    assert rig.robot.calls[-1] == "stop"
    assert rig.simulated.enabled


@pytest.mark.parametrize(("presses", "mode"), [(1, Mode.ASLEEP), (2, Mode.FROZEN)])
def test_ctrl_c_once_retreats_twice_holds(rig, presses, mode):
    def rule(step, observation):
        if step == 10:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        return sway(step, observation)

    before = signal.getsignal(signal.SIGINT)
    outcome = rig.deployment(rule, SHORT).run()
    assert outcome.mode is mode
    assert outcome.reasons[0][1].startswith("request: Ctrl-C")
    assert ("disable" in rig.robot.calls) == (presses == 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_jump_of_the_wall_clock_changes_nothing(rig, monkeypatch):
    def rule(step, observation):
        monkeypatch.setattr(time, "time", lambda: 4e9 if step % 2 else 0.0)
        return sway(step, observation)

    outcome = rig.deployment(rule, SHORT).run()
    assert outcome.findings == {}
    assert outcome.mode is Mode.ASLEEP


def test_torque_goes_off_in_the_sleep_pose_or_by_explicit_wish_only(rig):
    rig.robot.enable()
    with pytest.raises(RobotFault, match="not in the sleep pose"):
        torque_off(rig.robot)
    assert rig.simulated.enabled
    torque_off(rig.robot, anywhere=True)
    assert not rig.simulated.enabled
    pose = INSERT.home_qpos.copy()
    pose[rig.world.joints] = SLEEP_POSE
    rig.world.place(pose)
    rig.robot.enable()
    torque_off(rig.robot)
    assert not rig.simulated.enabled


def test_whatever_goes_wrong_in_the_loop_the_arms_hold(rig):
    def rule(step, observation):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        rig.deployment(after(10, rule), SHORT).run()
    assert rig.robot.calls[-1] == "stop"
    assert "disable" not in rig.robot.calls


# --- a policy server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return robot_cases.student(tmp_path_factory)


def test_a_served_policy_acts_like_the_file(rig, student):
    config = DeployConfig(mode="full", episode_s=0.5, approach=False, retreat=False)
    with (
        robot_cases.serving(student) as port,
        ServedPolicy(f"127.0.0.1:{port}", timeout_s=5) as served,
        open_policy(student, None) as local,
    ):
        assert terms(served)[1:] == terms(local)[1:]
        assert terms(served).switch.on_height == 0.16
        reading = rig.simulated.read()
        frames = {camera.name: camera.read(1.0) for camera in rig.cameras}
        for switched in (False, True, True):  # the third depends on the memory of the first two
            seen = observe(reading, frames, reading.position + 0.01, switched)
            np.testing.assert_allclose(served.act(seen), local.act(seen), atol=1e-6)
        deployment = Deployment(
            rig.robot, rig.cameras, served, config, SteppedPacer(rig.world.advance)
        )
        outcome = deployment.run()
    assert outcome.findings == {}
    assert outcome.steps == 10


def test_a_server_that_dies_holds_the_arms_until_it_is_back(rig, student, tmp_path):
    steps = []

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        port = first.enter_context(robot_cases.serving(student))
        policy = stack.enter_context(ServedPolicy(f"127.0.0.1:{port}", timeout_s=5))

        def advance() -> None:
            steps.append(len(steps))
            if len(steps) == 10:
                first.close()
            if len(steps) == 14:
                stack.enter_context(robot_cases.serving(student, port))
                patience_s = time.monotonic() + 20
                while policy._next is None and time.monotonic() < patience_s:
                    time.sleep(0.01)
            rig.world.advance()

        config = DeployConfig(mode="full", episode_s=1.0, approach=False, retreat=False)
        log = stack.enter_context(LogWriter(tmp_path / "run", log_header(config, FULL, "sim", "")))
        deployment = Deployment(
            rig.robot, rig.cameras, policy, config, SteppedPacer(advance), log, SafetyConfig()
        )
        outcome = deployment.run()
        log.close()
    assert [mode for mode, _ in outcome.reasons] == ["hold", "run"]
    assert outcome.findings == {"late policy": 4}
    assert outcome.steps == 16
    assert policy.renewals == 1
    rig.check_commands()
    run = read_run(tmp_path / "run")
    # The server forgot the past; a replay does so at the same step.
    assert [step.values["step"] for step in run.steps if step.values["episode_start"]] == [0, 14]


def test_a_slow_server_is_not_waited_for(rig, student):
    with (
        robot_cases.serving(student) as port,
        ServedPolicy(f"127.0.0.1:{port}", timeout_s=1e-6) as served,
    ):
        reading = rig.simulated.read()
        frames = {camera.name: camera.read(1.0) for camera in rig.cameras}
        seen = observe(reading, frames, reading.position, False)
        with pytest.raises(BackendUnavailable, match="did not answer within"):
            served.act(seen)
        with pytest.raises(BackendUnavailable, match="trying again"):
            served.act(seen)
    with pytest.raises(BackendUnavailable, match="No policy server"):
        ServedPolicy("127.0.0.1:9")


# --- what a policy asks for -------------------------------------------------------------------


def test_a_policy_says_how_it_is_run(student):
    policy = load_policy(student)
    wants = terms(policy)
    assert (wants.action_scale, wants.switch.on_height, wants.size) == (0.015, 0.16, 32)
    strange = Input("socket_minus_peg", (3,), "float32", "m")
    policy.interface = Interface((*policy.interface.inputs, strange), (), 14)
    with pytest.raises(ArtifactError, match=r"socket_minus_peg.*Deploy a student"):
        terms(policy)
    policy = load_policy(student)
    policy.action = {**policy.action, "control_period_s": 0.1}
    with pytest.raises(ArtifactError, match=r"every 0\.1 s"):
        terms(policy)
    with pytest.raises(ArtifactError, match="is a folder"):
        open_policy(student.parent, None)
    for both in ((None, None), (student, "ws://there")):
        with pytest.raises(ConfigError, match="one of"):
            open_policy(*both)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"robot": "aloah"}, "one of aloha"),
        ({"robot": "aloha"}, "serial numbers"),
        ({"robot": "aloha", "serials": ("1", "1")}, "same serial number"),
        ({"robot": "aloha", "serials": ("1", "2"), "stepped": True}, "stepped"),
        ({"robot": "aloha-ros", "stub_cameras": True}, "cameras that see"),
        ({"robot": "sim", "serials": ("1", "2")}, "draws its own"),
        ({"robot": "sim", "gripper_closed_rad": 0.1}, "scene's grippers"),
        ({"robot": "sim", "stub_cameras": True, "recordings": ("a", "b")}, "choose one"),
    ],
)
def test_a_rig_refuses_what_does_not_fit_together(wrong, words):
    with pytest.raises(ConfigError, match=words):
        RigConfig(**wrong)


def test_a_grippers_own_fingers_shift_its_linkage():
    rig = RigConfig("aloha", serials=("1", "2"), gripper_closed_rad=-0.3)
    assert rig.linkages[1].travel(-0.3) == pytest.approx(0.0079)
    assert RigConfig("sim").linkages[0].offset == 0.0191


# --- simulated episodes -----------------------------------------------------------------------


def test_a_simulated_episode_that_a_fault_ends_does_not_end_the_next(rig):
    class Fresh:
        def begin(self, episode: int) -> np.ndarray:
            rig.world.place(INSERT.home_qpos)
            return HOME

        def over(self) -> bool:
            return False

    episodes = []

    def rule(step, observation):
        if step == 1:
            episodes.append(step)
        broken = len(episodes) == 2 + 1 and step > 5  # the pre-flight check asks once
        return np.full(14, np.nan) if broken else sway(step, observation)

    config = DeployConfig(mode="full", episode_s=1.0, episodes=3, approach=False, retreat=False)
    outcome = rig.deployment(rule, config).run(Fresh())
    assert (outcome.episodes, outcome.aborted) == (2, 1)
    assert outcome.mode is Mode.RUN
    assert outcome.findings == {"bad action": 3}


def test_the_tally_tells_late_steps_and_leaves_the_pictures_out_of_the_loop():
    tally = Tally()
    assert tally.figures() == {"steps": 0}
    laps = {"read": 0.004, "look": 0.03, "infer": 0.002, "guard": 0.001, "write": 0.001}
    for number in range(10):
        took_s = 0.06 if number == 3 else 0.04
        tally(Report(0, number, Mode.RUN, False, took_s, laps, True, (), (), {}))
    tally(Report(0, 10, Mode.HOLD, False, 1.0, laps, True, (), (), {}))
    tally(Report(0, 11, Mode.RUN, False, 1.0, laps, False, (), (), {}))
    figures = tally.figures()
    assert (figures["steps"], figures["late_steps"], figures["late_share"]) == (10, 1, 0.1)
    assert figures["milliseconds"]["loop"]["p99"] == pytest.approx(8)
    assert figures["milliseconds"]["look"]["median"] == pytest.approx(30)
    assert tally.rate_hz is not None
    assert "late_steps" not in tally.figures(paced=False)


# --- the log ----------------------------------------------------------------------------------


def test_a_log_keeps_every_array_as_it_was(tmp_path):
    arrays = {
        "flag": np.array(True),
        "picture": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],
        "none": np.zeros((0, 3), np.float32),
    }
    with LogWriter(tmp_path / "run", {"period_s": 0.05}) as log:
        log.write("step", {}, arrays)
    found = read_run(tmp_path / "run").steps[0].arrays
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)


def test_a_replay_reproduces_the_logged_actions_and_another_policy_does_not(rig, tmp_path):
    path = tmp_path / "runs" / "one"
    with LogWriter(path, log_header(SHORT, FULL, "sim", "script")) as log:
        rig.deployment(sway, DeployConfig(mode="full", episode_s=1.0, episodes=2), log).run()
    run = read_run(path)
    assert replay(run, Script(sway)) == 0.0
    assert replay(run, Script(still)) > 0.1
    changed = run.steps[300].arrays
    assert any(name.startswith("observation/") for step in run.steps for name in step.arrays)
    assert changed["command"].shape == (14,)
    pictures = list(views(run, scale=2))
    assert len(pictures) == 40
    assert pictures[0].shape == (2 * 64, 2 * 64, 3)
    assert not np.array_equal(pictures[0], pictures[-1])
    figures = summarize(run)
    assert figures["complete"]
    assert figures["modes"]["retreat"] > 50
    assert figures["steps"] == len(run.steps) == len(rig.reports)
    assert figures["milliseconds"]["total"]["p99"] > 0
    with pytest.raises(ArtifactError, match="cannot be written"):
        LogWriter(path, {})


def test_a_damaged_log_is_read_up_to_the_damage(tmp_path):
    path = tmp_path / "run"
    with LogWriter(path, {"period_s": 0.05}) as log:
        for number in range(10):
            log.write("step", {"number": number}, {"position": np.arange(14.0) * number})
    whole = path.read_bytes()
    for cut in range(len(whole) - 40, len(whole)):
        path.write_bytes(whole[:cut])
        run = read_run(path)
        assert len(run.steps) == 9
        assert run.end is None
    run = read_run(path)
    np.testing.assert_array_equal(run.steps[3].arrays["position"], np.arange(14.0) * 3)
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 1
    path.write_bytes(bytes(spoiled))
    assert 2 <= len(read_run(path).steps) <= 8
    path.write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="no log"):
        read_run(path)
    with pytest.raises(ArtifactError, match="could not be read"):
        read_run(tmp_path / "none")


def _log_for_ever(path: str, started: Any, written_s: Any) -> None:
    with LogWriter(path, {"period_s": 0.05}) as log:
        while True:
            now_s = time.monotonic()
            log.write("step", {"time_s": now_s}, {"position": np.random.rand(20000)})
            written_s.value = now_s
            started.set()
            time.sleep(0.005)


def test_a_log_survives_a_kill_up_to_the_last_100_ms(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, written_s = context.Event(), context.Value("d", 0.0)
    path = tmp_path / "run"
    writer = context.Process(target=_log_for_ever, args=(str(path), started, written_s))
    writer.start()
    assert started.wait(60)
    time.sleep(0.3)
    writer.kill()
    writer.join()
    times = read_run(path).stack("time_s")
    assert len(times) >= 1
    # Whatever was written is there; a control step writes every 50 ms.
    assert times[-1] >= written_s.value > 0


# --- on emulated arms -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stepped():
    with Emulator(EmulatorConfig(realtime=False)) as emulator:
        yield emulator


def run_stepped(tmp_path, name: str) -> list[np.ndarray]:
    config = DeployConfig(
        mode="full", episode_s=1.0, episodes=2, approach=False, retreat=False, frozen_s=0.0
    )
    with (
        Emulator(EmulatorConfig(realtime=False)) as emu,
        DynamixelRobot(DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5)) as robot,
        LogWriter(tmp_path / name, log_header(config, FULL, "emulated", "script")) as log,
    ):
        deployment = Deployment(
            robot,
            EmulatedCameras(emu, Painter()).cameras(),
            Script(sway),
            config,
            SteppedPacer(emu.step),
            log,
        )
        outcome = deployment.run(Placed(emu))
        assert outcome.episodes == 2
        assert outcome.findings == {}
    return [step.arrays["command"] for step in read_run(tmp_path / name).steps]


class Placed:
    """Starts every episode at home."""

    def __init__(self, emu: Emulator) -> None:
        self.emu = emu

    def begin(self, episode: int) -> np.ndarray:
        self.emu.place(INSERT.home_qpos)
        return HOME

    def over(self) -> bool:
        return False


def test_two_stepped_episodes_through_the_bus_are_reproducible(tmp_path):
    first, second = run_stepped(tmp_path, "one"), run_stepped(tmp_path, "two")
    assert len(first) == 40
    np.testing.assert_array_equal(first, second)
    assert replay(read_run(tmp_path / "one"), Script(sway)) == 0.0


def test_emulated_arms_follow_like_simulated_ones(tmp_path):
    """The same open-loop actions lead to the same joint angles, up to the servos' ticks."""

    def wave(step, observation):
        return np.sin(0.15 * step + np.arange(14)) * np.where(IS_GRIPPER, 0.1, 1.0)

    config = DeployConfig(mode="full", episode_s=2.0, approach=False, retreat=False, frozen_s=0.0)
    rig = Rig()
    rig.deployment(wave, config).run()
    rig.world.advance()
    simulated = rig.simulated.read().position
    with (
        Emulator(EmulatorConfig(realtime=False)) as emu,
        DynamixelRobot(DynamixelConfig(ports=emu.ports, reply_timeout_s=0.5)) as robot,
    ):
        lens = EmulatedCameras(emu, Painter()).cameras()
        pacer = SteppedPacer(emu.step)
        outcome = Deployment(robot, lens, Script(wave), config, pacer).run(Placed(emu))
        assert outcome.reasons == []
        emu.step()
        emulated = robot.read().position
    moved = np.abs(simulated - HOME)
    assert moved.max() > 0.1
    np.testing.assert_allclose(emulated, simulated, atol=0.006)


def drive(
    emulator: Emulator,
    rule,
    pacer,
    tmp_path,
    reply_timeout_s: float = 0.5,
    health_period_s: float = 1.0,
    safety: SafetyConfig = FULL,
    **settings: Any,
):
    """A run on emulated arms; whatever goes wrong in it, no command is beyond the limits."""
    emulator.reset()
    config = DeployConfig(mode="full", approach=False, frozen_s=0.3, **settings)
    path = tmp_path / "run"
    wires = DynamixelConfig(
        ports=emulator.ports, reply_timeout_s=reply_timeout_s, health_period_s=health_period_s
    )
    with (
        DynamixelRobot(wires) as robot,
        LogWriter(path, log_header(config, FULL, "emulated", "script")) as log,
    ):
        lens = EmulatedCameras(emulator, Painter()).cameras()
        deployment = Deployment(robot, lens, Script(rule), config, pacer, log, safety, slow=FULL)
        outcome = deployment.run()
    run = read_run(path)
    check_logged_commands(run)
    return outcome, run


def check_logged_commands(run: Run) -> None:
    steps = [step for step in run.steps if "command" in step.arrays]
    commands = np.array([step.arrays["command"] for step in steps])
    assert np.isfinite(commands).all()
    changes = np.abs(np.diff(commands, axis=0)).max(axis=1)
    # After their watchdog has stopped the servos, commands start anew from where they stand.
    rearmed_s = [event["time_s"] for event in run.events if "rearm" in event["text"]]
    for before, after, change in zip(steps[:-1], steps[1:], changes, strict=True):
        first_s, last_s = before.values["time_s"], after.values["time_s"]
        anew = any(first_s <= one_s <= last_s for one_s in rearmed_s)
        assert anew or change <= 0.02 + 1e-6
    model = SafetyModel(FULL)
    assert min(model.clearance(command).slack for command in commands[::5]) >= -1e-6


def test_the_loop_keeps_its_pace_in_real_time(tmp_path):
    with Emulator() as emulator:
        # A busy machine may be late with everything, which is not what this is about.
        busy = SafetyConfig(
            missed_deadlines=1000, patience_s=60, proprio_age_s=30, silent_s=60, frame_age_s=60
        )
        _, run = drive(
            emulator, still, ClockPacer(), tmp_path, safety=busy, episode_s=2.0, retreat=False
        )
    figures = summarize(run)
    assert figures["steps"] == 40
    assert 2 < figures["rate_hz"] < 20.5  # late at times, but never too fast
    assert figures["milliseconds"]["guard"]["median"] < 10


def test_an_unplugged_bus_holds_the_arms_for_good(stepped, tmp_path):
    def rule(step, observation):
        if step == 10:
            stepped.unplug("left")
        return sway(step, observation)

    outcome, run = drive(stepped, rule, SteppedPacer(stepped.step), tmp_path, episode_s=2.0)
    assert outcome.mode is Mode.FROZEN
    assert "left is gone" in outcome.reasons[-1][1]
    stepped.step(0.2)
    state = stepped.state()
    assert state.torque.all()
    assert (state.watchdog[0] == 255).all()
    assert any("left is gone" in event["text"] for event in run.events)


def test_an_overloaded_servo_holds_the_arms_for_good(stepped, tmp_path):
    def rule(step, observation):
        if step == 10:
            stepped.overload("right", 7)
        return sway(step, observation)

    outcome, _ = drive(stepped, rule, SteppedPacer(stepped.step), tmp_path, episode_s=2.0)
    assert outcome.mode is Mode.FROZEN
    assert "right/wrist_angle (0x20)" in outcome.reasons[-1][1]
    assert outcome.steps == 10  # seen in the next reading
    assert stepped.state().torque.sum() == 17


def at_step(number: int, happens, rule=sway):
    """A rule during whose step `number` something happens."""

    def act(step, observation):
        if step == number:
            happens()
        return rule(step, observation)

    return act


def test_a_servo_that_gets_hot_brings_the_arms_to_rest(stepped, tmp_path):
    rule = at_step(10, lambda: stepped.heat("left", 4, 75))
    pacer = SteppedPacer(stepped.step)
    outcome, run = drive(stepped, rule, pacer, tmp_path, health_period_s=1e-6, episode_s=2.0)
    assert outcome.steps == 10  # seen in the next reading
    assert outcome.mode is Mode.ASLEEP
    assert "left/elbow is at 75 C" in outcome.reasons[0][1]
    assert not stepped.state().torque.any()
    assert at_rest(run.steps[-1].arrays["position"])


def test_an_overheated_servo_holds_the_arms_for_good(stepped, tmp_path):
    rule = at_step(10, lambda: stepped.heat("left", 4, 85))
    pacer = SteppedPacer(stepped.step)
    outcome, _ = drive(stepped, rule, pacer, tmp_path, episode_s=2.0)
    assert outcome.mode is Mode.FROZEN
    assert "left/elbow (0x04)" in outcome.reasons[-1][1]
    assert outcome.steps == 10
    assert stepped.state().torque.sum() == 17  # the others hold, its twin too


def test_a_silent_servo_holds_the_arms_and_then_for_good(stepped, tmp_path):
    rule = at_step(10, lambda: stepped.set_faults("right", Faults(silent=(6,))))
    pacer = SteppedPacer(stepped.step)
    outcome, _ = drive(stepped, rule, pacer, tmp_path, reply_timeout_s=0.06, episode_s=20.0)
    assert outcome.mode is Mode.FROZEN
    assert [mode for mode, _ in outcome.reasons] == ["hold", "frozen"]
    assert "right/forearm_roll was last heard" in outcome.reasons[0][1]
    assert stepped.state().torque.all()


def test_damaged_answers_do_not_stop_a_run(stepped, tmp_path):
    def disturb() -> None:
        for side in ("left", "right"):
            stepped.set_faults(side, Faults(corrupt=0.05))

    pacer = SteppedPacer(stepped.step)
    outcome, _ = drive(
        stepped,
        at_step(2, disturb),
        pacer,
        tmp_path,
        reply_timeout_s=0.1,
        episode_s=2.0,
        retreat=False,
    )
    assert outcome.episodes == 1
    assert outcome.mode in (Mode.RUN, Mode.HOLD)
    # At most a servo whose answer was damaged three times in a row counts as silent, for a moment.
    assert set(outcome.findings) <= {"silent servo"}


def test_a_pause_lets_the_servos_stop_and_then_goes_on(stepped, tmp_path):
    def rule(step, observation):
        if step == 10:
            stepped.step(0.4)  # the world goes on while the policy thinks
            time.sleep(0.2)
        return sway(step, observation)

    outcome, run = drive(
        stepped, rule, SteppedPacer(stepped.step), tmp_path, episode_s=1.5, retreat=False
    )
    assert any("rearm" in event["text"] for event in run.events)
    assert outcome.findings == {"slow loop": 1}
    assert outcome.mode is Mode.RUN
    assert [mode for mode, _ in outcome.reasons] == ["hold", "run"]
    assert (stepped.state().watchdog == 0).all()  # switched off as the arms are left holding
