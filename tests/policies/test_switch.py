import mujoco
import numpy as np
import pytest

from alohas2r.embodiment import joints
from alohas2r.errors import ConfigError
from alohas2r.policies.switch import EMPTY_TRAVEL_M, Switch
from alohas2r.sim import scene
from alohas2r.sim.kinematics import tip_heights, tip_midpoints

INSERT = scene.load("insert")


def midpoints_in_mujoco(data: mujoco.MjData) -> np.ndarray:
    tips = [
        [data.site(f"{arm.name}/{finger}tip").xpos for finger in joints.FINGER_JOINTS]
        for arm in INSERT.arms
    ]
    return np.mean(tips, axis=1)


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    """[count, 2, 8] over the whole range of every joint, the two fingers independent."""
    rng = np.random.default_rng(seed)
    low, high = (
        np.array([bound[arm.ctrl] for arm in INSERT.arms])
        for bound in (INSERT.ctrl_low, INSERT.ctrl_high)
    )
    low, high = (np.concatenate([bound, bound[:, -1:]], axis=-1) for bound in (low, high))
    return rng.uniform(low, high, (count, 2, 8))


def test_kinematics_agree_with_mujoco():
    data = mujoco.MjData(INSERT.model)
    poses = random_poses(200)
    ours = tip_midpoints(poses)
    for pose, midpoint in zip(poses, ours, strict=True):
        for arm, angles in zip(INSERT.arms, pose, strict=True):
            data.qpos[arm.qpos] = angles
        mujoco.mj_kinematics(INSERT.model, data)
        np.testing.assert_allclose(midpoint, midpoints_in_mujoco(data), atol=1e-6)
    np.testing.assert_array_equal(tip_heights(poses), ours[..., 2])
    batch = poses.reshape(4, 50, 2, 8)
    np.testing.assert_array_equal(tip_midpoints(batch), ours.reshape(4, 50, 2, 3))


def test_every_joint_but_the_fingers_moves_the_midpoint():
    pose = random_poses(1, seed=2)
    for arm in range(2):
        for joint in range(6):
            moved = pose.copy()
            moved[0, arm, joint] += 0.1
            shift = np.abs(tip_midpoints(moved) - tip_midpoints(pose))[0]
            assert shift[1 - arm].max() == 0
            # Rolling the wrist turns the fingers about a line close to their midpoint.
            assert shift[arm].max() > (1e-5 if joint == 5 else 1e-3)
        opened = pose.copy()
        opened[0, arm, 6:] += 0.01  # both fingers alike: the midpoint moves along the palm only
        assert np.abs(tip_midpoints(opened) - tip_midpoints(pose)).max() < 1e-4


def test_kinematics_of_the_two_arms_are_one_under_a_half_turn():
    poses = random_poses(20, seed=3)
    left, right = np.moveaxis(tip_midpoints(poses[:, [0, 0]]), 1, 0)
    turned = np.stack([-left[:, 0], -0.019 * 2 - left[:, 1], left[:, 2]], axis=-1)
    np.testing.assert_allclose(right, turned, atol=1e-9)


HIGH, MIDDLE, LOW = 0.2, 0.15, 0.1
OPEN, HOLDS, EMPTY = 0.037, 0.018, 0.002


@pytest.mark.parametrize(
    ("before", "heights", "travel", "target", "after"),
    [
        (False, (HIGH, HIGH), (HOLDS, HOLDS), (EMPTY, EMPTY), True),  # both lifted
        (False, (HIGH, MIDDLE), (HOLDS, HOLDS), (EMPTY, EMPTY), False),  # only one lifted
        (True, (MIDDLE, MIDDLE), (HOLDS, HOLDS), (EMPTY, EMPTY), True),  # hysteresis
        (False, (MIDDLE, MIDDLE), (HOLDS, HOLDS), (EMPTY, EMPTY), False),  # hysteresis
        (True, (HIGH, LOW), (HOLDS, HOLDS), (EMPTY, EMPTY), False),  # one arm lowered
        (True, (HIGH, HIGH), (HOLDS, EMPTY), (EMPTY, EMPTY), False),  # closed on nothing
        (False, (HIGH, HIGH), (EMPTY, HOLDS), (EMPTY, EMPTY), False),  # nor does that go on
        (True, (HIGH, HIGH), (EMPTY, HOLDS), (OPEN, EMPTY), True),  # told to open, not yet open
        (True, (HIGH, HIGH), (OPEN, HOLDS), (EMPTY, EMPTY), True),  # told to close, not yet closed
    ],
)
def test_switch_cases(before, heights, travel, target, after):
    heights, travel, target = (np.array(values) for values in (heights, travel, target))
    assert bool(Switch().update(np.array(before), heights, travel, target)) is after


def test_switch_is_the_same_state_machine_batched_and_on_jax():
    jnp = pytest.importorskip("jax.numpy")
    import jax

    rng = np.random.default_rng(4)
    heights = rng.uniform(0.08, 0.22, (30, 64, 2))
    travel, target = rng.uniform(0, 0.037, (2, 30, 64, 2))
    switch, one_by_one = Switch(), np.zeros((31, 64), bool)
    on_jax = jnp.zeros(64, bool)
    step = jax.jit(lambda *state: switch.update(*state, xp=jnp))
    for now in range(30):
        for robot in range(64):
            one_by_one[now + 1, robot] = switch.update(
                one_by_one[now, robot], heights[now, robot], travel[now, robot], target[now, robot]
            )
        on_jax = step(on_jax, heights[now], travel[now], target[now])
        np.testing.assert_array_equal(on_jax, one_by_one[now + 1])
    assert 0.02 < one_by_one.mean() < 0.98


def test_empty_travel_separates_the_thinnest_object_from_nothing():
    """Close a gripper on the 20 mm peg and on nothing, in physics."""
    data = mujoco.MjData(INSERT.model)
    key = INSERT.id("key", "preinsert")
    mujoco.mj_resetDataKeyframe(INSERT.model, data, key)
    peg_arm = INSERT.arms[1]
    for arm in INSERT.arms:
        data.ctrl[arm.ctrl] = data.qpos[arm.qpos[:7]]
        data.ctrl[arm.ctrl[-1]] = INSERT.ctrl_low[arm.ctrl[-1]]
    for _ in range(40):
        mujoco.mj_step(INSERT.model, data)
    held = data.qpos[peg_arm.qpos[6:]]
    data.qpos[peg_arm.object_qpos[:3]] = (1.0, 1.0, 0.3)  # take the peg away
    for _ in range(200):
        mujoco.mj_step(INSERT.model, data)
    closed = data.qpos[peg_arm.qpos[6:]]
    assert held.min() > EMPTY_TRAVEL_M + 0.002
    assert closed.max() < EMPTY_TRAVEL_M - 0.002


@pytest.mark.parametrize(
    "wrong", [{"on_height": 0.1}, {"off_height": 0.2}, {"off_height": -1.0}, {"empty_travel": 0.1}]
)
def test_switch_refuses_nonsense(wrong):
    with pytest.raises(ConfigError):
        Switch(**wrong)
