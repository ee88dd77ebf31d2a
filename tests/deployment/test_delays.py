"""Delays that are put in are measured; a policy runs on no robot that is later than its training."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.deployment import delays, probe, robot_file
from alohas2r.deployment.config import LIMITS
from alohas2r.deployment.delays import beyond, measure, require_trained
from alohas2r.deployment.log import read_run
from alohas2r.deployment.rig import Rig, RigConfig
from alohas2r.deployment.robot_file import ArmFile, RobotFile
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.policies.delays import Delays, delays_from, trained_delays
from alohas2r.robots.base import Frame
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld, cameras
from alohas2r.robots.wrist_camera import WristCamera
from alohas2r.safety.config import FULL, SLOW
from alohas2r.sim import scene

INSERT = scene.load("insert")


class Stripes:
    """A renderer that is cheap: stripes that move with the arm that carries the camera."""

    def render(self, poses: np.ndarray, looks: object = None) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.mgrid[:32, :32]
        rgb, depth = [], []
        for arm in INSERT.arms:
            phase = 9 * float(poses[0, arm.qpos[:6]].sum())
            stripes = np.sin(0.3 * rows + 0.1 * columns + phase)
            rgb.append(np.repeat((120 + 100 * stripes)[..., None], 3, axis=2).astype(np.uint8))
            depth.append((0.2 + 0.05 * stripes).astype(np.float32))
        return np.array(rgb)[None], np.array(depth)[None]


class LateArms(SimulatedRobot):
    """Arms that do what they were told some control steps ago."""

    def __init__(self, world: SimulatedWorld, late: int) -> None:
        super().__init__(world)
        self.waiting = [np.concatenate([INSERT.home_ctrl[arm.ctrl] for arm in INSERT.arms])] * late

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        self.waiting.append(ctrl.copy())
        super().command(self.waiting.pop(0))
        return ctrl.copy()


class LateCamera:
    """A camera that shows what was to be seen some control steps ago."""

    def __init__(self, camera: WristCamera, late: int) -> None:
        self.name, self.camera, self.late = camera.name, camera, late
        self.seen: list[Frame] = []

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, max_age_s: float) -> Frame:
        frame = self.camera.read(max_age_s)
        self.seen = [*self.seen, frame][-self.late - 1 :]
        return dataclasses.replace(self.seen[0], time_s=frame.time_s, number=frame.number)


class Placed:
    """Starts at home; a stepped world's time."""

    realtime = False

    def __init__(self, world: SimulatedWorld) -> None:
        self.world, self.steps = world, 0

    def wait(self) -> None:
        self.steps += 1
        self.world.advance()

    def now_s(self) -> float:
        return self.steps * CONTROL_PERIOD_S

    def begin(self, episode: int) -> np.ndarray:
        self.world.place(INSERT.home_qpos)
        return np.concatenate([INSERT.home_ctrl[arm.ctrl] for arm in INSERT.arms])

    def over(self) -> bool:
        return False


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The log of a probe on arms that are two control steps late, and a right camera that is three steps late."""
    arms, pictures = 2, (0, 3)

    @contextlib.contextmanager
    def late(*_: object) -> Iterator[Rig]:
        world = SimulatedWorld()
        eyes = [
            LateCamera(one, count)
            for one, count in zip(cameras(world, Stripes()), pictures, strict=True)
        ]
        yield Rig(LateArms(world, arms), eyes, Placed(world))  # pyright: ignore[reportArgumentType]

    path = tmp_path_factory.mktemp("probe") / "delay.run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "open_rig", late)
        probe.probe(RigConfig("sim", stepped=True), path, fast=True)
    return path


def test_delays_that_are_put_in_are_measured(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = read_run(path)
    assert run.end is not None
    assert (run.end["interventions"], run.end["findings"]) == ({}, {})
    left, right = measure(run)
    for one in (left, right):
        assert one.command.seconds == pytest.approx(0.1, abs=0.004)
        assert one.command.explained > 0.99
    assert left.picture.seconds == pytest.approx(0.0, abs=0.005)
    assert right.picture.seconds == pytest.approx(0.15, abs=0.005)
    assert min(left.picture.explained, right.picture.explained) > 0.95
    pytest.importorskip("matplotlib")
    assert delays.draw((left, right), tmp_path / "plots").stat().st_size > 10_000


def test_what_shows_no_delay_is_refused(path: pathlib.Path) -> None:
    run = read_run(path)
    noise = np.random.default_rng(0)
    for step in run.steps:
        step.arrays["observation/left_rgb"] = noise.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    with pytest.raises(RobotFault, match="left camera's pictures do not follow its arm"):
        measure(run)
    for step in run.steps:
        step.arrays["position"] = noise.normal(0, 0.05, 14)
    with pytest.raises(RobotFault, match="left wrist_angle does not follow"):
        measure(run)
    run.header.pop("joint")
    with pytest.raises(ConfigError, match="none of measure-delay"):
        measure(run)


@pytest.mark.parametrize("limits", [SLOW, FULL])
def test_the_motion_stays_within_the_limits_of_its_mode(limits) -> None:
    assert {"slow", "full"} <= set(LIMITS)
    positions = probe.trajectory(0.9 * limits.max_speed)
    steps = np.diff(positions)
    assert np.abs(steps).max() <= 0.9 * limits.max_speed * CONTROL_PERIOD_S + 1e-12
    assert np.abs(np.diff(steps)).max() <= limits.max_acceleration * CONTROL_PERIOD_S**2
    assert positions[0] == 0.0
    assert positions[-1] == pytest.approx(0.0, abs=1e-9)
    assert positions.max() == pytest.approx(probe.STEP_RAD)
    with pytest.raises(ConfigError, match="joint must be one of"):
        probe.Probe("gripper", 0.1)


def test_a_policy_says_which_delays_it_was_trained_for() -> None:
    described = {
        "trained": {
            "config": {
                "control": {"delay_weights": [1.0, 0.5, 0.0], "extra_delay_steps": 1},
                "senses": {"delay_weights": [1.0]},
            }
        }
    }
    assert trained_delays(described) == pytest.approx((0.1, 0.0))
    described["trained"]["config"]["variation"] = {
        "action_delay_s": [0.0, 0.15],
        "view_delay_s": [0.0, 0.1],
    }
    assert trained_delays(described) == pytest.approx((0.25, 0.1))
    assert trained_delays({}) == pytest.approx((0.15, 0.15))  # the published report's
    assert delays_from({"command_s": 0.05, "picture_s": 0}) == (0.05, 0.0)
    assert delays_from(None) == delays_from({"command_s": "x"}) == trained_delays({})


def test_a_robot_that_is_too_late_is_refused_with_its_delays() -> None:
    measured = (("left", 0.02, 0.05), ("right", 0.2, None))
    assert beyond(measured, Delays(0.15, 0.15)) == [
        "the right arm follows after 200 ms, beyond the 150 ms of training"
    ]
    require_trained((("left", 0.02, 0.05), ("right", None, None)), Delays(0.15, 0.05))
    with pytest.raises(
        ConfigError, match=r"left camera shows after 50 ms, beyond the 0 ms.*--any-delay"
    ):
        require_trained(measured, Delays(0.3, 0.0))


def test_the_robot_file_keeps_delays_and_offsets(tmp_path) -> None:
    known = robot_file.update(
        RobotFile(), delays=[(0.0213, 0.0471), (0.02, 0.05)], joint_offsets=["right/elbow=-0.03"]
    )
    path = robot_file.save(known, tmp_path / "robot.toml")
    again = robot_file.load(path)
    assert again == known
    settings = robot_file.rig_settings(again)
    assert settings["delays"] == (("left", 0.0213, 0.0471), ("right", 0.02, 0.05))
    assert settings["joint_offsets_rad"][1][2] == -0.03
    for wrong in ("left/gripper=0.1", "left/waist", "left/waist=1.0", "waist=0.1"):
        with pytest.raises(ConfigError):
            robot_file.update(RobotFile(), joint_offsets=[wrong])
    with pytest.raises(ConfigError, match="command_delay_s"):
        ArmFile("/dev/one", command_delay_s=20.0)
