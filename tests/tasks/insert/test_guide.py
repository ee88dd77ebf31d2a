from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from alohas2r.core import assets
from alohas2r.envs.actuation import ControlState
from alohas2r.envs.task import EnvState, Guided
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Runner
from alohas2r.policies import artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.sim import scene
from alohas2r.sim.objects import HALF_LENGTH, HOLE_HALF
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert.guide import Guide, GuideConfig, Sizes
from alohas2r.tasks.protocol import EVAL_V1, EVAL_V2, TaskProtocol, without_causes

pytestmark = pytest.mark.compiles

SIZES = Sizes(0.010, HALF_LENGTH, HOLE_HALF, 0.0)
MEETING = np.array([0.0, -0.019, 0.25])  # where the socket is held (m)


class Held:
    """Both arms, each with its object in its hand: an object moves as the gripper does."""

    def __init__(self, end: tuple[float, float, float], turn_deg: tuple[float, float, float]):
        self.scene = scene.load_physics("insert")
        self.data = mujoco.MjData(self.scene.model)
        self.qpos = self.scene.home_qpos.copy()
        self.guide = Guide(self.scene)
        self.correction = jax.jit(self.guide.correction)
        peg = Rotation.from_euler("xyz", turn_deg, degrees=True) * Rotation.from_euler(
            "z", 180, degrees=True
        )
        length = peg.apply([HALF_LENGTH, 0, 0])
        self.place(0, MEETING, Rotation.identity())
        self.place(1, MEETING + end - length, peg)
        self.grips = [self.in_gripper(side) for side in (0, 1)]

    def place(self, side: int, pos: np.ndarray, turn: Rotation) -> None:
        quat = np.roll(turn.as_quat(), 1)
        self.qpos[self.scene.arms[side].object_qpos] = [*pos, *quat]

    def pose(self, side: int) -> tuple[np.ndarray, Rotation]:
        free = self.qpos[self.scene.arms[side].object_qpos]
        return free[:3], Rotation.from_quat(np.roll(free[3:], -1))

    def gripper(self, side: int) -> tuple[np.ndarray, Rotation]:
        self.data.qpos[:] = self.qpos
        mujoco.mj_kinematics(self.scene.model, self.data)
        site = self.data.site(f"{self.scene.arms[side].name}/gripper")
        return site.xpos.copy(), Rotation.from_matrix(site.xmat.reshape(3, 3))

    def in_gripper(self, side: int) -> tuple[np.ndarray, Rotation]:
        (origin, hand), (pos, turn) = self.gripper(side), self.pose(side)
        return hand.inv().apply(pos - origin), hand.inv() * turn

    def off(self) -> tuple[np.ndarray, float]:
        """Returns the peg's end in the socket's frame (m), and the angle between the axes (rad)."""
        (place, socket), (pos, peg) = self.pose(0), self.pose(1)
        end = pos + peg.apply([HALF_LENGTH, 0, 0])
        cosine = -socket.apply([1, 0, 0]) @ peg.apply([1, 0, 0])
        return socket.inv().apply(end - place), float(np.arccos(np.clip(cosine, -1, 1)))

    def left(self) -> np.ndarray:
        return np.asarray(self.correction(jnp.asarray(self.qpos, jnp.float32), SIZES))

    def act(self, scale: float, under_way: np.ndarray | None = None) -> np.ndarray:
        under_way = np.zeros(14) if under_way is None else under_way
        qpos = jnp.asarray(self.qpos, jnp.float32)
        return np.asarray(self.guide.action(qpos, SIZES, scale, jnp.asarray(under_way)))

    def step(self, share: float = 0.2) -> None:
        change = share * self.left().reshape(2, 6)
        for side, arm in enumerate(self.scene.arms):
            self.qpos[arm.qpos[:6]] += change[side]
        for side, (pos, turn) in enumerate(self.grips):
            origin, hand = self.gripper(side)
            self.place(side, origin + hand.apply(pos), hand * turn)


@pytest.mark.parametrize("turn_deg", [(0, 0, 0), (10, 8, -12), (-20, -10, 5)])
@pytest.mark.parametrize("end", [(0.12, 0.03, -0.02), (0.20, -0.04, 0.05), (0.07, 0.0, 0.012)])
def test_it_brings_the_peg_in(
    end: tuple[float, float, float], turn_deg: tuple[float, float, float]
) -> None:
    case = Held(end, turn_deg)
    before_the_mouth = np.inf
    for _ in range(120):
        case.step()
        x, *aside = case.off()[0]
        if np.abs(aside).max() > HOLE_HALF:
            before_the_mouth = min(before_the_mouth, x)
    place, angle = case.off()
    assert abs(place[0] + GuideConfig().beyond) < 0.002, "not as deep as it is to be"
    assert abs(place[1:]).max() < 0.001
    assert angle < np.deg2rad(0.5)
    assert before_the_mouth > HALF_LENGTH, "went in without being in line"


def test_what_is_beside_the_socket_goes_back_first() -> None:
    case = Held((0.01, 0.06, 0.0), (0, 0, 0))
    aside = []
    while case.off()[0][0] < HALF_LENGTH - GuideConfig().inside:
        aside.append(abs(case.off()[0][1]))
        case.step()
        assert len(aside) < 60
    assert min(aside) > 0.055
    for _ in range(120):
        case.step()
    assert case.off()[0][0] < 0


@pytest.mark.parametrize("quarter", [90, 180, 270])
def test_a_quarter_turn_about_the_pegs_length_changes_nothing(quarter: int) -> None:
    case = Held((0.12, 0.03, -0.02), (3, 8, -12))
    expected = case.left()
    pos, turn = case.pose(1)
    case.place(1, pos, turn * Rotation.from_euler("x", quarter, degrees=True))
    np.testing.assert_allclose(case.left(), expected, atol=1e-5)


def test_a_tight_hole_asks_for_more_precision() -> None:
    case = Held((0.055, 0.004, 0.0), (0, 0, 0))
    qpos = jnp.asarray(case.qpos, jnp.float32)
    loose = SIZES._replace(half_side=HOLE_HALF - 0.006)
    tight = SIZES._replace(half_side=HOLE_HALF - 0.002)

    def along(sizes: Sizes) -> float:
        place = case.off()[0][0]
        other = Held((0.055, 0.004, 0.0), (0, 0, 0))
        change = 0.1 * np.asarray(case.guide.correction(qpos, sizes)).reshape(2, 6)
        for side, arm in enumerate(other.scene.arms):
            other.qpos[arm.qpos[:6]] += change[side]
        for side, (pos, turn) in enumerate(other.grips):
            origin, hand = other.gripper(side)
            other.place(side, origin + hand.apply(pos), hand * turn)
        return other.off()[0][0] - place

    assert along(loose) < -0.001 < 0.0 < along(tight)


def test_actions_are_bounded_and_close_the_grippers() -> None:
    case = Held((0.25, 0.10, -0.08), (40, 30, -30))
    action = case.act(0.001)
    assert action.shape == (14,)
    assert abs(action).max() == 1.0
    np.testing.assert_array_equal(action[[6, 13]], -1.0)


def test_what_is_on_its_way_is_not_asked_for_again() -> None:
    case = Held((0.12, 0.01, -0.005), (2, 0, 3))
    left = case.left().reshape(2, 6)
    both = np.concatenate([left, [[0.01], [-0.02]]], -1).reshape(-1)  # grippers do not count
    np.testing.assert_allclose(case.act(1.0, both).reshape(2, 7)[:, :6], 0, atol=1e-6)
    half = case.act(1.0, both / 2).reshape(2, 7)[:, :6]
    np.testing.assert_allclose(half, GuideConfig().share * left / 2, atol=1e-6)


class _GuidedActor:
    """Does from home to insertion as the task's guide says."""

    def __init__(self, runner: Runner) -> None:
        env = runner.setting.env

        def act(state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
            wanted = env.guided(state, readout)
            state, _, _ = env.observe(state, readout)
            return env.control(state, readout, wanted)

        self.act = jax.jit(act)

    def reset(self, keys: jax.Array) -> None:
        del keys


def _teacher(name: str) -> StagedPolicy:
    return artifact.load(assets.data_path("params") / name, StagedPolicy)


@pytest.mark.parametrize(
    ("teacher", "protocol"), [("teacher", EVAL_V1), ("transfer/teacher", EVAL_V2)]
)
def test_what_the_last_steps_asked_for_is_on_its_way(teacher: str, protocol: TaskProtocol) -> None:
    runner = Runner(_teacher(teacher), protocol, episode_keys(7, 0, 2))
    env = runner.setting.env
    state, _, readout = env.reset(episode_keys(7, 0, 2))
    scale, share = env.config.control.scale, GuideConfig().share
    past = state.control.actions  # [N, history, 14]
    steps = past.shape[1] - 1
    asked = 0.1  # of the largest action, in each of the last steps
    if state.held is None:
        past = past.at[:, :-1].set(asked)
    else:
        past = past + asked * scale * jnp.arange(steps, -1, -1)[:, None]
    later = state._replace(control=ControlState(past))
    before = np.asarray(env.guided(state, readout)).reshape(2, 2, 7)[..., :6]
    change = np.asarray(env.guided(later, readout)).reshape(2, 2, 7)[..., :6] - before
    expected = np.clip(before - share * asked * steps, -1, 1) - before
    np.testing.assert_allclose(change[abs(before) < 1], expected[abs(before) < 1], atol=1e-4)
    assert (abs(before) < 1).sum() >= 6


def test_both_guides_pick_and_insert_in_the_physics() -> None:
    runner = Runner(_teacher("transfer/teacher"), without_causes(EVAL_V2), episode_keys(7, 0, 8))
    assert isinstance(runner.setting.env.task, Guided)
    runner.actor = _GuidedActor(runner)
    table = runner.run().table
    assert table["lifted_both"].all()
    assert table["success"].sum() >= 7
    assert table["held_at_end"].sum() >= 7
    assert table["dropped"].sum() <= 1
