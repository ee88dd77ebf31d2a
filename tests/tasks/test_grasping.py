from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from alohas2r.core import assets
from alohas2r.envs.task import EnvState, Guided
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Runner
from alohas2r.policies import artifact
from alohas2r.policies.state import StatePolicy
from alohas2r.sim import scene
from alohas2r.sim.objects import PEG_HALF, SOCKET_HALF, TABLE_HEIGHT
from alohas2r.sim.signals import Readout, Signals, extractor
from alohas2r.tasks.grasping import GraspConfig, GraspGuide
from alohas2r.tasks.protocol import EVAL_V1

pytestmark = pytest.mark.compiles

HALVES = np.array([SOCKET_HALF, PEG_HALF])
TARGETS = np.array([[0.37, 0.02, 0.23], [0.37, -0.02, 0.23]])  # in the arms' bases (m)
SCALE = 0.012
CONFIG = GraspConfig()
OPEN, CLOSED = 0.037, 0.002  # finger travel (m)


class Arms:
    """Both arms with open grippers at home, objects before them on the table; all goes where it is told at once."""

    def __init__(self, radius: float = 0.33, angle_deg: float = 5.0, yaw_deg: float = 3.0) -> None:
        self.scene = scene.load_physics("insert")
        self.data = mujoco.MjData(self.scene.model)
        self.qpos = self.scene.home_qpos.copy()
        self.guide = GraspGuide(self.scene)
        self._act = jax.jit(self.guide.action, static_argnums=3)
        self._extract = extractor(self.scene)
        for side, arm in enumerate(self.scene.arms):
            base = Rotation.from_quat(np.roll(arm.base_quat, -1))
            place = Rotation.from_euler("z", angle_deg, degrees=True).apply([radius, 0, 0])
            pos = arm.base_pos + base.apply(place)
            pos[2] = TABLE_HEIGHT + HALVES[side]
            turn = base * Rotation.from_euler("z", angle_deg + yaw_deg, degrees=True)
            self.qpos[arm.object_qpos] = [*pos, *np.roll(turn.as_quat(), 1)]

    def signals(self, travel: float = OPEN, target: float = OPEN, force: float = 0.0) -> Signals:
        """What is, with grippers so far open (m), told to go so far (m), their fingers pressing (N)."""
        self.data.qpos[:] = self.qpos
        mujoco.mj_forward(self.scene.model, self.data)
        data = self.data
        readout = Readout(data.qpos, data.qvel, data.ctrl, data.sensordata)
        found = self._extract(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), readout))
        return found._replace(
            qpos=found.qpos.at[:, 6].set(travel),
            ctrl=found.ctrl.at[:, 6].set(target),
            finger_force=jnp.full((2, 2, 3), force / np.sqrt(3)),
        )

    def act(self, signals: Signals, under_way: np.ndarray | None = None) -> np.ndarray:
        under_way = np.zeros(14) if under_way is None else under_way
        action = self._act(signals, TARGETS, HALVES, SCALE, under_way)
        return np.asarray(action).reshape(2, 7)

    def move(self, action: np.ndarray, holding: bool = False) -> None:
        """Moves the arms, and what they hold."""
        before = [self._gripper(side) for side in (0, 1)]
        for side, arm in enumerate(self.scene.arms):
            self.qpos[arm.qpos[:6]] += SCALE * action[side, :6]
        for side, arm in enumerate(self.scene.arms):
            if holding:
                moved = self._gripper(side) @ np.linalg.inv(before[side])
                pose = self.qpos[arm.object_qpos]
                turn = Rotation.from_matrix(moved[:3, :3]) * Rotation.from_quat(
                    np.roll(pose[3:], -1)
                )
                pos = moved[:3, :3] @ pose[:3] + moved[:3, 3]
                self.qpos[arm.object_qpos] = [*pos, *np.roll(turn.as_quat(), 1)]

    def _gripper(self, side: int) -> np.ndarray:
        self.data.qpos[:] = self.qpos
        mujoco.mj_kinematics(self.scene.model, self.data)
        site = self.data.site(f"{self.scene.arms[side].name}/gripper")
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = site.xmat.reshape(3, 3), site.xpos
        return pose

    def reach(self) -> np.ndarray:
        """Goes on until both grippers are to close, and returns the way of the fingertips from the grip points."""
        way = []
        for _ in range(120):
            signals = self.signals()
            way.append(np.asarray(signals.tip_pos - signals.grip_pos))
            action = self.act(signals)
            if (action[:, 6] < 0).all():
                return np.array(way)
            # One that is to close waits for the other.
            self.move(np.where(action[:, 6:] < 0, 0, action))
        raise AssertionError("the grippers do not both get there")


@pytest.mark.parametrize("yaw_deg", [-5.0, 5.0])
@pytest.mark.parametrize(("radius", "angle_deg"), [(0.27, 14.0), (0.34, -14.0), (0.42, 0.0)])
def test_it_gets_there_from_above_and_closes(
    radius: float, angle_deg: float, yaw_deg: float
) -> None:
    arms = Arms(radius, angle_deg, yaw_deg)
    way = arms.reach()
    assert (np.linalg.norm(way[-1], axis=-1) < CONFIG.near + 0.01).all()
    signals = arms.signals()
    across = np.asarray(signals.finger_axis * signals.object_mat[:, :, 0]).sum(-1)
    assert (abs(across) < np.sin(np.deg2rad(10))).all(), "fingers do not stand across the object"
    down = -np.asarray(signals.gripper_mat)[:, 2, 0]
    pitch = np.rad2deg(np.arcsin(down))
    assert (abs(pitch - CONFIG.pitch_deg) < CONFIG.close_deg).all()
    lowest = way[..., 2] + HALVES  # of the fingertips above the table
    assert lowest.min() > 0.005, "goes into the table"


def test_fingers_that_are_aside_stay_back() -> None:
    arms = Arms()
    arms.reach()
    beside = arms.signals()
    across = np.asarray(beside.finger_axis)
    aside = beside._replace(tip_pos=beside.tip_pos + 0.04 * across, grip_pos=beside.grip_pos)
    forward = np.asarray(beside.gripper_mat)[..., 0]

    def along(signals: Signals) -> np.ndarray:
        """How far a step brings the fingertips forward (m)."""
        other = Arms()
        other.qpos[:] = arms.qpos
        start = np.asarray(other.signals().tip_pos)
        other.move(arms.act(signals))
        return ((np.asarray(other.signals().tip_pos) - start) * forward).sum(-1)

    assert (along(aside) < -0.001).all()
    assert (along(aside) < along(beside) - 0.001).all()
    assert (arms.act(aside)[:, 6] > 0).all()


def test_a_gripper_that_closes_goes_on_where_an_open_one_waits() -> None:
    arms = Arms()
    arms.reach()
    there = arms.signals()

    def closes(off: float, target: float) -> np.ndarray:
        up = jnp.array([0, 0, off])
        tip = there.grip_pos - jnp.array([0, 0, CONFIG.below]) + up
        return arms.act(arms.signals(target=target)._replace(tip_pos=tip))[:, 6] < 0

    assert closes(0.005, OPEN).all()
    assert not closes(0.022, OPEN).any()
    assert closes(0.022, CLOSED).all()
    assert not closes(0.05, CLOSED).any()


@pytest.mark.parametrize(
    ("travel", "target", "force", "lifts"),
    [
        (0.018, CLOSED, 5.0, True),
        (0.018, CLOSED, 0.5, False),  # fingers do not press
        (0.018, 0.016, 5.0, False),  # not closed upon it yet
        (0.018, OPEN, 5.0, False),  # opens
    ],
)
def test_it_lifts_what_it_holds(travel: float, target: float, force: float, lifts: bool) -> None:
    arms = Arms()
    arms.reach()
    signals = arms.signals(travel, target, force)
    before = np.asarray(signals.tip_pos)[:, 2]
    arms.move(arms.act(signals))
    rise = np.asarray(arms.signals().tip_pos)[:, 2] - before
    assert ((rise > 0.002) == lifts).all(), rise


def test_it_brings_both_objects_where_they_are_to_be_and_level() -> None:
    arms = Arms()
    arms.reach()
    heights = []
    for _ in range(150):
        signals = arms.signals(0.018, CLOSED, 5.0)
        heights.append(np.asarray(signals.object_pos)[:, 2])
        action = arms.act(signals)
        assert (action[:, 6] < 0).all()
        arms.move(action, holding=True)
    signals = arms.signals()
    np.testing.assert_allclose(signals.object_pos, TARGETS, atol=0.005)
    turned = Rotation.from_matrix(np.asarray(signals.object_mat)).magnitude()
    assert (turned < np.deg2rad(3)).all()
    assert (np.diff(heights, axis=0)[:20] > 0).all()


def test_what_is_on_its_way_is_not_asked_for_again() -> None:
    arms = Arms()
    signals = arms.signals()
    action = arms.act(signals)
    part = abs(action[:, :6]) < 1
    asked = 0.01 * np.ones((2, 7))
    later = arms.act(signals, asked.reshape(-1))
    expected = np.clip(action[:, :6] - CONFIG.share * 0.01 / SCALE, -1, 1)
    np.testing.assert_allclose(later[:, :6][part], expected[part], atol=1e-4)
    assert part.sum() >= 4


class _GuidedActor:
    """Does as the task's guide says."""

    def __init__(self, runner: Runner) -> None:
        env = runner.setting.env

        def act(state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
            wanted = env.guided(state, readout)
            state, _, _ = env.observe(state, readout)
            return env.control(state, readout, wanted)

        self.act = jax.jit(act)

    def reset(self, keys: jax.Array) -> None:
        del keys


def test_it_picks_a_block_in_the_physics() -> None:
    pick = artifact.load(assets.data_path("params") / "pick", StatePolicy)
    runner = Runner(pick, EVAL_V1, episode_keys(7, 0, 8))
    assert isinstance(runner.setting.env.task, Guided)
    runner.actor = _GuidedActor(runner)
    table = runner.run().table
    assert table["success"].sum() >= 7
