"""Rendered wrist pictures with what is in them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.learning.encoder.config import PretrainConfig
from alohas2r.rendering import corruption, visual_randomization
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering.looks import draw as looks_draw
from alohas2r.rendering.looks import sensor
from alohas2r.rendering.looks.config import find_looks
from alohas2r.rendering.looks.nominal import SENSOR_FIELDS
from alohas2r.rendering.protocol import Frames
from alohas2r.rendering.raycast.renderer import Worker
from alohas2r.rendering.registry import make_renderer
from alohas2r.sim import kinematics, objects, scene

OBJECTS = ("socket", "peg")


class Pictures(NamedTuple):
    """Pictures with what is to be known of them; O objects. Classes are for CIFAR-10, the rest is rendered."""

    rgb: np.ndarray  # [M, H, W, 3] uint8
    label: np.ndarray  # [M] int32 class
    visible: np.ndarray  # [M, O] bool
    position: np.ndarray  # [M, O, 3] in the nominal camera's frame (m)
    rotation: np.ndarray  # [M, O, 6] first two rows of the rotation in that frame


def random_poses(random: np.random.Generator, count: int) -> np.ndarray:
    """Draws poses of the insertion scene as they come up in an episode, [count, nq].

    Arms are anywhere between home and the moment before insertion, each object lies before its arm, is held by
    it, or is out of the way.
    """
    loaded = scene.load("insert")
    model = loaded.model
    key = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_KEY, "preinsert")
    before = model.key_qpos[key] if key >= 0 else loaded.home_qpos
    poses = np.repeat(loaded.home_qpos[None], count, 0)
    on_the_way = random.random((count, 1)) * (random.random((count, 1)) < 0.7)
    joints = np.concatenate([arm.qpos[:6] for arm in loaded.arms])
    poses[:, joints] += on_the_way * (before - loaded.home_qpos)[joints]
    poses[:, joints] += random.normal(0, 0.12, (count, len(joints)))
    tips = kinematics.tip_midpoints(np.stack([poses[:, arm.qpos] for arm in loaded.arms], 1))
    for index, arm in enumerate(loaded.arms):
        half = objects.SOCKET_HALF if arm.object_name == "socket" else objects.PEG_HALF
        base_mat = kinematics.quaternion_matrix(arm.base_quat)
        radius, angle = random.uniform(0.2, 0.45, count), random.uniform(-0.4, 0.7, count)
        local = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(count)], 1)
        place = arm.base_pos + local @ base_mat.T
        place[:, 2] = objects.TABLE_HEIGHT + half
        yaw, tilt = angle + random.normal(0, 0.15, count), np.zeros((count, 2))
        held = random.random(count) < 0.5
        yaw = np.where(held, random.normal(0, 0.3, count), yaw)
        tilt[held] = random.normal(0, 0.2, (int(held.sum()), 2))
        turn = np.stack([np.ones(count), tilt[:, 0] / 2, tilt[:, 1] / 2, np.tan(yaw / 2)], 1)
        turn /= np.linalg.norm(turn, axis=1, keepdims=True)
        quat = np.empty((count, 4))
        for row in range(count):
            mujoco.mju_mulQuat(quat[row], arm.base_quat, turn[row])
        matrix = _matrices(quat)
        # Held at the grip point, 20 mm behind the centre. Source: the published report.
        in_hand = tips[:, index] + matrix @ np.array([0.02, 0, 0])
        in_hand += random.normal(0, 0.004, (count, 3))
        place = np.where(held[:, None], in_hand, place)
        place[random.random(count) < 0.07] = (0.0, 0.0, -5.0)
        poses[:, arm.object_qpos] = np.concatenate([place, quat], 1)
        width = np.where(held, half + 0.008, random.choice([0.002, 0.037], count))
        poses[:, arm.qpos[6:]] = width[:, None]
    return poses


def _matrices(quat: np.ndarray) -> np.ndarray:
    """Turns quaternions [N, 4] into matrices [N, 3, 3]."""
    return np.stack([kinematics.quaternion_matrix(value) for value in quat])


class Studio:
    """Renders random wrist pictures and says what is in them.

    Args:
      settings: the configuration. threads, renderer: see `rendering.registry.make_renderer`.
    """

    def __init__(self, settings: PretrainConfig, threads: int = 0, renderer: str = "auto"):
        self.settings = settings
        self.renderer = make_renderer(renderer, settings.size, threads, looks=settings.looks)
        self._transfer = find_looks(settings.looks)
        self._scene = scene.load("insert")
        self._corrupt = jax.jit(functools.partial(corruption.corrupt, config=settings.corrupt))

    def shoot(self, key: jax.Array, count: int) -> Pictures:
        """Returns `count` pictures, both cameras' of count / 2 poses; the same ones for the same key."""
        poses_key, looks_key, noise_key = jax.random.split(key, 3)
        random = np.random.default_rng(np.asarray(poses_key).tolist())
        number = count // 2
        poses = random_poses(random, number)
        sample = self._sample(looks_key, poses)
        half = random.uniform(0.010, 0.017, number)
        sizes = np.repeat(self._scene.model.geom_size[None], number, 0)
        sizes[:, self._scene.id("geom", "red_peg"), 1:] = half[:, None]
        sample["geom_size"] = sizes
        frames = self.renderer.render(poses, sample)
        rgb = self._sensed(noise_key, frames, sample)
        visible, position, rotation = self._know(poses, sample, half, np.asarray(frames.depth))
        whole = np.asarray(rgb).reshape(-1, *rgb.shape[2:])
        return Pictures(whole, np.zeros(len(whole), np.int32), visible, position, rotation)

    def _sample(self, key: jax.Array, poses: np.ndarray) -> dict[str, np.ndarray]:
        """Draws the looks of poses [N, nq]."""
        number = len(poses)
        if self._transfer is None:
            return dict(visual_randomization.sample_looks(key, number, self._scene))
        start = np.stack([poses[:, arm.object_qpos[:2]] for arm in self._scene.arms], 1)
        return looks_draw.sample_looks(key, number, self._scene.model, self._transfer, start)

    def _sensed(self, key: jax.Array, frames: Frames, sample: Mapping[str, Array]) -> Array:
        """Returns the colour pictures after the sensor."""
        if self._transfer is None:
            blank = np.zeros((1, self.settings.size, self.settings.size), np.float16)
            rgb, _ = self._corrupt(key, frames.rgb, frames.depth, sample["brightness"], blank)
            return rgb
        number = len(frames.rgb)
        fields = {name: sample[name] for name in SENSOR_FIELDS}
        gain = np.zeros((number, 2), np.float32)
        first = np.ones(number, bool)
        keys = jax.random.split(key, number)
        rgb, _, _ = sensor.compiled(self._transfer)(keys, frames.rgb, None, fields, gain, first)
        return rgb

    def _know(
        self, poses: np.ndarray, sample: Mapping[str, Array], half: np.ndarray, depth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns visibility [M, O], position [M, O, 3] and rotation [M, O, 6].

        Positions and rotations are those in the frame that each camera would have without randomization, which is
        fixed to its gripper: what the arm has to know. Where the camera really is can only be read from the picture.
        """
        prepared = self.renderer.prepared
        number, size = len(poses), self.settings.size
        worker = Worker(prepared, number)
        exact = {name: value for name, value in sample.items() if not name.startswith("cam_")}
        fixed = worker.place(poses, rendering_protocol.check_looks(prepared, exact, number))
        fixed_pos, fixed_mat = fixed["cam_xpos"].copy(), fixed["cam_xmat"].copy()
        placed = worker.place(poses, rendering_protocol.check_looks(prepared, sample, number))
        camera_pos, camera_mat = placed["cam_xpos"], placed["cam_xmat"]  # [N, C, 3], [N, C, 3, 3]
        fovy = prepared.model.cam_fovy[prepared.camera_ids[0]]
        focal = np.full((number, 2, 1), size / 2 / np.tan(np.deg2rad(fovy) / 2))
        middle = np.full((number, 2, 1, 2), size / 2)
        if "cam_intrinsic" in sample:  # of each camera: in parts of the picture
            intrinsic = np.asarray(sample["cam_intrinsic"])[:, prepared.camera_ids]
            focal = size * intrinsic[..., :1]
            middle = middle + size * np.array([-1, -1]) * intrinsic[:, :, None, 2:]
        labels: tuple[list[np.ndarray], ...] = ([], [], [])
        for arm in self._scene.arms:
            pose = poses[:, arm.object_qpos]
            matrix = _matrices(pose[:, 3:])
            centre = np.einsum("ncji,ncj->nci", camera_mat, pose[:, None, :3] - camera_pos)
            turned = np.einsum("ncji,njk->ncik", camera_mat, matrix)
            across = np.full(number, objects.SOCKET_HALF) if arm.object_name == "socket" else half
            corners = np.stack(
                np.meshgrid([-0.9, 0.0, 0.9], [-0.9, 0.9], [-0.9, 0.9], indexing="ij"), -1
            ).reshape(-1, 3)
            extent = np.stack([np.full(number, objects.HALF_LENGTH), across, across], 1)
            points = corners[None] * extent[:, None]  # [N, P, 3]
            points = np.einsum("ncij,npj->ncpi", turned, points) + centre[:, :, None]
            ahead = np.maximum(-points[..., 2], 1e-6)
            column = np.floor(middle[..., 0] + focal * points[..., 0] / ahead).astype(int)
            row = np.floor(middle[..., 1] - focal * points[..., 1] / ahead).astype(int)
            inside = (points[..., 2] < -0.01) & (np.minimum(row, column) >= 0)
            inside &= np.maximum(row, column) < size
            row, column = np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)
            env, camera = np.ogrid[:number, :2]
            drawn = depth[env[..., None], camera[..., None], row, column]
            # A point is seen if what is drawn there is about as far away.
            seen = inside & (np.abs(drawn - ahead) < 0.015)
            labels[0].append(seen.sum(-1) >= 2)
            apart = pose[:, None, :3] - fixed_pos
            labels[1].append(np.einsum("ncji,ncj->nci", fixed_mat, apart))
            turned = np.einsum("ncji,njk->ncik", fixed_mat, matrix)
            labels[2].append(turned[..., :2, :].reshape(number, 2, 6))
        visible, position, rotation = (np.stack(parts, 2) for parts in labels)
        return (
            visible.reshape(-1, len(OBJECTS)),
            position.reshape(-1, len(OBJECTS), 3).astype(np.float32),
            rotation.reshape(-1, len(OBJECTS), 6).astype(np.float32),
        )
