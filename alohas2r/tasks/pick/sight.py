"""Whether the wrist camera sees the block before the arm moves."""

from __future__ import annotations

import copy
import math

import mujoco
import numpy as np

from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG, SIZE
from alohas2r.rendering.protocol import CAMERAS, GROUPS
from alohas2r.sim import scene
from alohas2r.sim.objects import HALF_LENGTH

LEAST_PIXELS = 4  # of a picture of 32 x 32 that a block must cover to count as seen


def block_pixels(qpos: np.ndarray, half_sides: np.ndarray) -> np.ndarray:
    """Returns how many pixels of the nominal wrist camera's picture show the block, nearer than the cut-off, [N].

    Args:
      qpos: [N, nq] of the scene pick.
      half_sides: [N] of the blocks (m).
    """
    drawn = scene.load("pick")
    model = copy.copy(drawn.model)
    data = mujoco.MjData(model)
    box, camera = drawn.id("geom", "box"), drawn.id("camera", CAMERAS[0])
    shown = np.isin(np.arange(mujoco.mjNGROUP), GROUPS).astype(np.uint8)
    rays = _rays()
    geoms, ways = np.empty(len(rays), np.int32), np.empty(len(rays))
    counts = np.zeros(len(qpos), int)
    for index, (pose, half) in enumerate(zip(qpos, half_sides, strict=True)):
        size = np.array([HALF_LENGTH, half, half])
        model.geom_size[box], model.geom_aabb[box, 3:] = size, size
        model.geom_rbound[box] = np.linalg.norm(size)
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        turn = data.cam_xmat[camera].reshape(3, 3)
        mujoco.mj_multiRay(
            model,
            data,
            data.cam_xpos[camera],
            (rays @ turn.T).reshape(-1),
            shown,
            True,
            -1,
            geoms,
            ways,
            None,
            len(rays),
            mujoco.mjMAXVAL,
        )
        # A ray's length is such that the way along it is the depth.
        counts[index] = ((geoms == box) & (ways < DEPTH_CUTOFF)).sum()
    return counts


def _rays() -> np.ndarray:
    """Returns a ray for each pixel in the camera's frame [SIZE * SIZE, 3], 1 along its axis."""
    edge = math.tan(math.radians(FOVY_DEG) / 2)
    places = ((np.arange(SIZE) + 0.5) / SIZE * 2 - 1) * edge
    x, y = np.meshgrid(places, -places)
    return np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
