from __future__ import annotations

from typing import Any

import jax
import mujoco
import numpy as np
import pytest

from alohas2r.sim import scene, signals
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.signals import Readout, Signals
from alohas2r.tasks.single_arm import grasped


def random_state(loaded: scene.Scene, seed: int) -> mujoco.MjData:
    draw = np.random.default_rng(seed)
    data = mujoco.MjData(loaded.model)
    data.qpos[:] = loaded.home_qpos
    for arm in loaded.arms:
        data.qpos[arm.qpos[:6]] += draw.normal(0, 0.4, 6)
        data.qpos[arm.qpos[6:]] = draw.uniform(0.01, 0.037, 2)
        data.qpos[arm.object_qpos[:3]] = draw.uniform([-0.2, -0.2, 0.1], [0.2, 0.2, 0.4])
        data.qpos[arm.object_qpos[3:]] = draw.normal(size=4)
    data.qvel[:] = draw.normal(size=loaded.model.nv)
    data.ctrl[:] = draw.uniform(loaded.ctrl_low, loaded.ctrl_high)
    mujoco.mj_normalizeQuat(loaded.model, data.qpos)
    mujoco.mj_forward(loaded.model, data)
    return data


def readout(data: mujoco.MjData) -> Readout:
    values = (data.qpos, data.qvel, data.ctrl, data.sensordata)
    return Readout(*(np.asarray(value, np.float32) for value in values))  # pyright: ignore[reportArgumentType]


def as_numpy(found: Signals) -> Signals:
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("name", scene.names())
@pytest.mark.parametrize("seed", [0, 1])
def test_signals_are_the_state_seen_from_each_base(name: str, seed: int) -> None:
    loaded = scene.load_physics(name)
    data = random_state(loaded, seed)
    found = as_numpy(signals.extractor(loaded)(readout(data)))
    for row, arm in enumerate(loaded.arms):
        base = np.zeros(9)
        mujoco.mju_quat2Mat(base, arm.base_quat)
        base = base.reshape(3, 3)

        def local(point: np.ndarray, base: np.ndarray = base, arm: scene.Arm = arm) -> np.ndarray:
            return base.T @ (point - arm.base_pos)

        def site(site_name: str, arm: scene.Arm = arm):
            return data.site(f"{arm.name}/{site_name}")

        close: dict[str, Any] = {"atol": 2e-6, "rtol": 2e-6}
        np.testing.assert_allclose(found.qpos[row], data.qpos[arm.qpos], **close)
        np.testing.assert_allclose(found.qvel[row], data.qvel[arm.qvel], **close)
        np.testing.assert_allclose(found.ctrl[row], data.ctrl[arm.ctrl], **close)
        tips = [site(f"{side}_fingertip").xpos for side in ("left", "right")]
        np.testing.assert_allclose(found.tip_pos[row], local(np.mean(tips, 0)), **close)
        across = site("right_finger").xpos - site("left_finger").xpos
        across = base.T @ across / np.linalg.norm(across)
        np.testing.assert_allclose(found.finger_axis[row], across, atol=1e-5)
        gripper = base.T @ site("gripper").xmat.reshape(3, 3)
        np.testing.assert_allclose(found.gripper_mat[row], gripper, **close)
        body = data.body(arm.object_name)
        turn = base.T @ body.xmat.reshape(3, 3)
        np.testing.assert_allclose(found.object_pos[row], local(body.xpos), **close)
        np.testing.assert_allclose(found.object_mat[row], turn, **close)
        # A free joint's linear velocity is in the world, its angular velocity in the body.
        velocity = data.qvel[arm.object_qvel]
        np.testing.assert_allclose(found.object_linvel[row], base.T @ velocity[:3], **close)
        np.testing.assert_allclose(found.object_angvel[row], turn @ velocity[3:], **close)
        grip = data.site(f"{arm.object_sensors}_grip_here").xpos
        np.testing.assert_allclose(found.grip_pos[row], local(grip), **close)
    if name.startswith("insert"):
        socket = data.site("socket_rear")
        end = socket.xmat.reshape(3, 3).T @ (data.site("peg_end1").xpos - socket.xpos)
        np.testing.assert_allclose(found.peg_end_in_socket, end, atol=2e-6)
    else:
        np.testing.assert_array_equal(found.peg_end_in_socket, 0)


def test_batches_are_rows() -> None:
    loaded = scene.load_physics("insert")
    extract = signals.extractor(loaded)
    single = [readout(random_state(loaded, seed)) for seed in range(3)]
    batch = extract(jax.tree.map(lambda *rows: np.stack(rows), *single))
    for row, one in enumerate(single):
        jax.tree.map(
            lambda many, alone, row=row: np.testing.assert_allclose(many[row], alone, atol=1e-6),
            batch,
            extract(one),
        )


HALF = 0.02  # of the block (m)


class Held:
    """A block between the fingers at many finger travels and shifts along the line between them.

    Nothing has moved yet: all forces come from how deep the fingers are in the block.
    """

    def __init__(self) -> None:
        self.scene = scene.load_physics("pick")
        arm = self.scene.arms[0]
        data = mujoco.MjData(self.scene.model)
        data.qpos[:] = self.scene.home_qpos
        mujoco.mj_forward(self.scene.model, data)
        tips = [data.site(f"left/{side}_fingertip").xpos for side in ("left", "right")]
        gripper = data.site("left/gripper").xmat.reshape(3, 3)
        across = (tips[1] - tips[0]) / np.linalg.norm(tips[1] - tips[0])
        gap = np.linalg.norm(tips[1] - tips[0]) / 2 - self.scene.home_qpos[arm.qpos[6]]
        travel, shift = np.meshgrid(
            np.linspace(0.020, 0.037, 18), [-0.012, -0.006, 0, 0.006, 0.012]
        )
        self.travel, self.shift = travel.ravel(), shift.ravel()
        self.gap = gap
        count = self.travel.size
        self.qpos = np.tile(self.scene.home_qpos, (count, 1))
        self.ctrl = np.tile(self.scene.home_ctrl, (count, 1))
        self.qpos[:, arm.qpos[6:]] = self.travel[:, None]
        self.ctrl[:, arm.ctrl[6]] = self.travel
        centre = np.mean(tips, 0) + gripper[:, 0] * 0.02
        self.qpos[:, arm.object_qpos[:3]] = centre + self.shift[:, None] * across
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, gripper.ravel())
        self.qpos[:, arm.object_qpos[3:]] = quat
        self.engine = CpuEngine(self.scene, count)
        everyone = np.ones(count, bool)
        self.physics, self.readout = self.engine.reset(None, everyone, self.qpos, self.ctrl)
        self.signals = as_numpy(signals.extractor(self.scene)(self.readout))
        self.force = self.signals.finger_force[:, 0]  # [N, finger, 3]
        self.size = np.linalg.norm(self.force, axis=-1)


@pytest.fixture(scope="module")
def held() -> Held:
    return Held()


def test_each_finger_pushes_the_block_away_from_itself(held: Held) -> None:
    axis = held.signals.finger_axis[:, 0]
    along = np.einsum("nfi,ni->nf", held.force, axis)
    left, right = held.size[:, 0] > 1, held.size[:, 1] > 1  # not a mere touch (N)
    assert left.any()
    assert right.any()
    assert (along[left, 0] > 0.9 * held.size[left, 0]).all()
    assert (along[right, 1] < -0.9 * held.size[right, 1]).all()


def test_finger_forces_are_all_that_moves_a_block_in_the_air(held: Held) -> None:
    arm = held.scene.arms[0]
    data, model = mujoco.MjData(held.scene.model), held.scene.model
    for row in range(len(held.qpos)):
        data.qpos[:], data.ctrl[:] = held.qpos[row], held.ctrl[row]
        data.qvel[:] = 0
        data.qacc_warmstart[:] = 0
        mujoco.mj_forward(model, data)
        # Newton's second law for the block: its constraint force is the sum over the fingers.
        total = data.qfrc_constraint[arm.object_qvel[:3]]
        np.testing.assert_allclose(held.force[row].sum(0), total, atol=1e-3, rtol=1e-4)


def test_grasped_says_whether_both_fingers_press(held: Held) -> None:
    found = np.asarray(grasped(held.signals))[:, 0]
    np.testing.assert_array_equal(found, (held.size > 2.5).all(1))
    assert found.any()
    # How far each finger's pad is from the block.
    centred = held.shift == 0
    space = held.travel + held.gap - HALF
    tight = centred & found
    assert space[tight].max() < space[centred & ~found].max()
    # A wide open gripper touches nothing.
    wide = centred & (held.travel > 0.036)
    assert (held.size[wide] == 0).all()
    # With the block to one side, only that finger touches, and that is no grasp.
    for side, finger in ((-1, 0), (1, 1)):
        beside = (np.sign(held.shift) == side) & (held.travel > 0.036) & (held.size[:, finger] > 0)
        assert beside.any()
        assert (held.size[beside, 1 - finger] == 0).all()
        assert not found[beside].any()


def test_a_grasp_needs_forces_along_the_line_between_the_fingers(held: Held) -> None:
    row = int(np.flatnonzero(np.asarray(grasped(held.signals))[:, 0])[0])
    one = jax.tree.map(lambda x: x[row], held.signals)
    axis = one.finger_axis[0]
    sideways = np.cross(axis, [0, 0, 1.0])
    sideways /= np.linalg.norm(sideways)

    def with_angle(degrees: float, newtons: float) -> bool:
        angle = np.deg2rad(degrees)
        along = np.cos(angle) * axis
        force = newtons * np.stack([along, -along] + np.sin(angle) * sideways)
        return bool(grasped(one._replace(finger_force=force[None].astype(np.float32)))[0])

    assert with_angle(0, 2.6)
    assert not with_angle(0, 2.4)
    assert with_angle(74, 10)
    assert not with_angle(76, 10)
    assert not with_angle(180, 10)  # pulled apart


def test_table_contact_of_fingers_and_gripper() -> None:
    loaded = scene.load_physics("pick")
    arm = loaded.arms[0]
    shoulder = np.linspace(-0.4, 0.4, 33)
    qpos = np.tile(loaded.home_qpos, (33, 1))
    qpos[:, arm.qpos[1]] = shoulder
    qpos[:, arm.object_qpos[0]] = 0.4  # out of the way
    ctrl = np.tile(loaded.home_ctrl, (33, 1))
    engine = CpuEngine(loaded, 33)
    _, report = engine.reset(None, np.ones(33, bool), qpos, ctrl)
    found = as_numpy(signals.extractor(loaded)(report))
    touching = found.on_table[:, 0]
    # Lowering the arm brings the fingertips to the table once, and they stay there.
    assert not touching[0]
    assert touching[-1]
    assert np.flatnonzero(np.diff(touching.astype(int))).size == 1
    height = found.tip_pos[:, 0, 2] + arm.base_pos[2]
    assert height[touching].max() < 0.03
    assert (np.linalg.norm(found.finger_force[~touching, 0], axis=-1) == 0).all()
