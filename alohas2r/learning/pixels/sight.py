"""Where the objects are, and whether a wrist camera can see them: what the pictures are trained to tell."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.policies.spec import CameraSpec
from alohas2r.rendering.protocol import CAMERAS
from alohas2r.sim.kinematics import quaternion_matrix
from alohas2r.sim.objects import HALF_LENGTH, SOCKET_HALF
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals

# Points of an object that are looked for: the corners, and the middles of edges, faces and body.
_GRID = np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.float32)


def object_in_gripper(signals: Signals) -> jax.Array:
    """Returns where each arm's object is from its fingertips, in the gripper's frame, [..., A, 3] (m)."""
    apart = signals.object_pos - signals.tip_pos
    return jnp.einsum("...ji,...j->...i", signals.gripper_mat, apart)


class Sight:
    """Says whether any part of each arm's object is within what its wrist camera shows.

    What the gripper hides is not considered.

    Args:
      scene: where. cameras: the pictures.
    """

    def __init__(self, scene: Scene, cameras: CameraSpec):
        self._reach = math.tan(math.radians(cameras.fovy_deg) / 2)
        self._cutoff = cameras.depth_cutoff
        places = [_mount(scene, arm) for arm in range(len(scene.arms))]
        self._turn = jnp.asarray(np.stack([turn for turn, _ in places]), jnp.float32)  # [A, 3, 3]
        self._offset = jnp.asarray(np.stack([offset for _, offset in places]), jnp.float32)

    def __call__(self, signals: Signals, half: jax.Array) -> jax.Array:
        """Returns [N, A] bool (traceable).

        Args:
          signals: the exact state.
          half: [N] half the side of each environment's block or peg (m); of two arms, the first holds the socket.
        """
        halves = half[:, None]  # [N, A]
        if len(self._turn) == 2:
            halves = jnp.stack([jnp.full_like(half, SOCKET_HALF), half], 1)
        sides = jnp.stack([jnp.full_like(halves, HALF_LENGTH), halves, halves], -1)
        corners = _GRID * sides[:, :, None]  # [N, A, K, 3]
        points = jnp.einsum("naij,nakj->naki", signals.object_mat, corners)
        points = points + (signals.object_pos - signals.tip_pos)[..., None, :]
        in_gripper = jnp.einsum("naji,nakj->naki", signals.gripper_mat, points)
        seen = jnp.einsum(
            "aji,nakj->naki", self._turn, in_gripper - self._offset[:, None]
        )  # a camera looks along -z
        depth = -seen[..., 2]
        limit = self._reach * depth
        within = (jnp.abs(seen[..., 0]) < limit) & (jnp.abs(seen[..., 1]) < limit)
        return (within & (depth > 0) & (depth < self._cutoff)).any(-1)


def _mount(scene: Scene, arm: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a wrist camera's rotation in its gripper's frame, and its place from the fingertips there (m)."""
    data = mujoco.MjData(scene.model)
    data.qpos[:] = scene.home_qpos
    mujoco.mj_forward(scene.model, data)
    name = scene.arms[arm].name
    base = quaternion_matrix(scene.arms[arm].base_quat)
    gripper = base @ quaternion_matrix(data.sensordata[scene.sensor(f"{name}/gripper_quat", 4)])
    fingers = [
        data.sensordata[scene.sensor(f"{name}/{side}_fingertip_pos", 3)]
        for side in ("left", "right")
    ]
    tips = scene.arms[arm].base_pos + base @ np.mean(fingers, 0)
    camera = scene.id("camera", CAMERAS[("left", "right").index(name)])
    turn = gripper.T @ data.cam_xmat[camera].reshape(3, 3)
    return turn, gripper.T @ (data.cam_xpos[camera] - tips)
