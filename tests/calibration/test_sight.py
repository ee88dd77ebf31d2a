"""Pictures tell zeros, travel and mounts; the derivatives are those of the pictures."""

import numpy as np
import pytest

from alohas2r.calibration import motion, sight
from alohas2r.calibration.sight import Eye, View
from alohas2r.embodiment.camera import DEPTH_CUTOFF
from alohas2r.embodiment.joints import IS_GRIPPER, SIDES
from alohas2r.errors import RobotFault
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles
POSES = np.array(motion.POSES).reshape(len(motion.POSES), -1)
SIZE = 24


@pytest.mark.parametrize("side", SIDES)
def test_slopes_are_those_of_the_picture(side: str) -> None:
    eye, joints, mount = Eye(side, SIZE), POSES[3], np.zeros(sight.MOUNT)
    depth, slopes = eye.look(joints, mount)
    assert ((depth > 0) & (depth <= DEPTH_CUTOFF)).mean() > 0.2
    step = 1e-5
    told = 0
    for column in range(len(joints) + sight.MOUNT):
        nudge = np.zeros(len(joints) + sight.MOUNT)
        nudge[column] = step

        def seen(sign: int, nudge: np.ndarray = nudge) -> np.ndarray:
            return eye.look(joints + sign * nudge[:14], mount + sign * nudge[14:])[0]

        change = (seen(1) - seen(-1)) / (2 * step)
        # Where an edge passes, a pixel jumps.
        same = (depth > 0) & np.isfinite(slopes[:, column]) & (np.abs(change) < 20)
        assert np.quantile(np.abs(change - slopes[:, column])[same], 0.98) < 1e-6
        told += np.abs(slopes[same, column]).max() > 0.01
    assert told >= 6 + sight.MOUNT  # own joints but for the waist, fingers, the mount


def test_depth_is_that_of_the_shared_renderer() -> None:
    pytest.importorskip("jax")
    from alohas2r.rendering import registry as renderers

    insert = scene.load("insert")
    qpos = insert.home_qpos.copy()
    for arm in insert.arms:
        qpos[arm.object_qpos[:3]] = (0, 0, -10)
    drawn = renderers.make("raycast", insert, width=32, height=32, batch=1).render(qpos[None])[1]
    joints = np.concatenate([qpos[arm.qpos[:7]] for arm in insert.arms])
    for index, side in enumerate(SIDES):
        real = np.asarray(drawn)[0, index].reshape(-1)
        ours = Eye(side, 32).look(joints, np.zeros(sight.MOUNT))[0]
        same = np.abs(ours - np.where(real > DEPTH_CUTOFF, 0, real)) < 1e-5
        assert same.mean() > 0.99  # but for edges


@pytest.fixture(scope="module")
def views() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[View]]:
    """Offsets, scales, mounts, and what is seen with them, but for things that lie about and holes."""
    draw = np.random.default_rng(3)
    offset = np.where(IS_GRIPPER, draw.uniform(-0.002, 0.002, 14), draw.uniform(-0.025, 0.025, 14))
    scale = np.where(IS_GRIPPER, draw.uniform(0.95, 1.05, 14), 1.0)
    mounts = draw.uniform(-1, 1, (2, sight.MOUNT)) * np.repeat([0.008, 0.04], 3)
    eyes, made = [Eye(side, 32) for side in SIDES], []
    for pose in POSES:
        depth = np.array([eye.look(pose, m)[0] for eye, m in zip(eyes, mounts, strict=True)])
        depth += draw.normal(0, 0.0005, depth.shape) * (depth > 0)
        depth[draw.random(depth.shape) < 0.05] = 0.0
        block = depth.reshape(2, 32, 32)
        block[0, 20:25, 8:14] -= 0.03 * (block[0, 20:25, 8:14] > 0.05)
        made.append(View(scale * pose + offset, block))
    return offset, scale, mounts, made


def test_zeros_travel_and_mounts_are_found(views) -> None:
    offset, scale, mounts, made = views
    found = sight.fit(made)
    assert np.rad2deg(np.abs(found.offset - offset)[~IS_GRIPPER]).max() < 0.15
    for travel in (0.010, 0.034):
        error = found.scale * travel + found.offset - scale * travel - offset
        assert np.abs(error[IS_GRIPPER]).max() < 3e-4
    assert np.abs(found.mount - mounts)[:, :3].max() < 0.001
    assert found.after_mm < 1.0 < found.before_mm
    assert np.rad2deg(found.offset_half[~IS_GRIPPER]).max() < 0.5
    assert found.offset_half[~IS_GRIPPER].min() > 0


def test_too_little_to_see_is_refused(views) -> None:
    made = views[-1]
    with pytest.raises(RobotFault, match="stood still in 2 poses"):
        sight.fit(made[:2])
    blind = [one._replace(depth=np.zeros_like(one.depth)) for one in made]
    with pytest.raises(RobotFault, match="hardly know any depth"):
        sight.fit(blind)
