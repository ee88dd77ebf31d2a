"""Stereo wrist cameras: where the right imagers sit, and what they show.

A D405 has two imagers, 18 mm apart; its colour comes from the left one, and the right one gives grey. The pair is
rigid: where a mount holds the camera otherwise than the drawing says, both imagers go along, and what is left between
them is what the factory's rectification leaves. So the right imager's pose follows from the left one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alohas2r.core.types import Array
from alohas2r.embodiment.camera import BASELINE_M
from alohas2r.errors import ConfigError

SUFFIX = "_r"  # of a right imager's camera: wrist_cam_left_r belongs to wrist_cam_left
# By how much a right imager sits (m, along each axis) and is turned (degrees) otherwise than rectification says, at
# most. Source: ours; a D405's own calibration is within about that.
PLACE_M, TURN_DEG = 2e-4, 0.1
# Fields of looks [N, R, 3]: m and rad, in the left imager's frame.
PLACE, TURN = "rig_pos", "rig_turn"
_RIG = 0x57E2E0  # stream of their random numbers
# Of red, green and blue in luma, in thousandths. Source: ITU-R BT.601.
LUMA = (299, 587, 114)


class Rig(NamedTuple):
    """The right imagers that a prepared model has beside its scene's cameras.

    Attributes:
      scene_cameras: [S] ids of the scene's cameras in the prepared model, in the scene's order.
      rights: [R] ids of the right imagers; lefts: [R] places of their left ones among the scene's cameras.
      pos: [S, 3] nominal positions of the scene's cameras (m); quat: [S, 4] their orientations.
    """

    scene_cameras: np.ndarray
    rights: np.ndarray
    lefts: np.ndarray
    pos: np.ndarray
    quat: np.ndarray


def cameras(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of cameras and, after all of them, of their right imagers."""
    return (*names, *(f"{name}{SUFFIX}" for name in names))


def luma(rgb: Array) -> Array:
    """Turns colours [..., 3] uint8 into grey [...] uint8; the same bits of NumPy and JAX arrays."""
    red, green, blue = (rgb[..., k].astype(np.int32) * weight for k, weight in enumerate(LUMA))
    return ((red + green + blue + 500) // 1000).astype(np.uint8)


def right_pose(
    pos: Array, quat: Array, place: Array, turn: Array, xp: Array
) -> tuple[Array, Array]:
    """Returns positions [..., 3] (m) and orientations [..., 4] (w, x, y, z) of right imagers.

    Args:
      pos, quat: those of the left ones, in the frame of the body that carries them.
      place, turn: [..., 3] how far the right one is off (m), and by which rotation vector it is turned (rad), both in
        the left imager's frame: x right, y up, z backwards.
      xp: NumPy or JAX's.
    """
    offset = place + xp.asarray([BASELINE_M, 0.0, 0.0], pos.dtype)
    w, v = quat[..., :1], quat[..., 1:]
    half = turn / 2  # so short, it is the vector part of a unit quaternion, to 1e-9
    across = 2 * xp.cross(v, offset)
    moved = pos + offset + w * across + xp.cross(v, across)
    real = xp.sqrt(1 - (half * half).sum(-1, keepdims=True))
    turned = [
        w * real - (v * half).sum(-1, keepdims=True),
        w * half + real * v + xp.cross(v, half),
    ]
    return moved, xp.concatenate(turned, -1)


def rigged(rig: Rig, looks: Mapping[str, Array], xp: Array) -> dict[str, Array]:
    """Returns looks with the poses of all cameras of a prepared model, the right imagers' after the left ones'.

    Args:
      rig: of the model.
      looks: field -> [N, ...], of the scene's cameras; may hold PLACE and TURN of the right imagers, else each pair
        is exact.
      xp: NumPy or JAX's.

    Raises:
      ConfigError: fields of another shape.
    """
    values = {name: value for name, value in looks.items() if name not in (PLACE, TURN)}
    if not {"cam_pos", "cam_quat", PLACE, TURN} & looks.keys():
        return values
    count, cameras = len(next(iter(looks.values()))), len(rig.scene_cameras)
    pos, quat = (
        _shaped(name, looks, (count, cameras, nominal.shape[1]), nominal, xp)
        for name, nominal in (("cam_pos", rig.pos), ("cam_quat", rig.quat))
    )
    exact = np.zeros((1, 3), np.float32)
    place, turn = (
        _shaped(name, looks, (count, len(rig.rights), 3), exact, xp) for name in (PLACE, TURN)
    )
    right_pos, right_quat = right_pose(pos[:, rig.lefts], quat[:, rig.lefts], place, turn, xp)
    order = np.argsort(np.concatenate([rig.scene_cameras, rig.rights]))
    return values | {
        "cam_pos": xp.concatenate([pos, right_pos.astype(pos.dtype)], 1)[:, order],
        "cam_quat": xp.concatenate([quat, right_quat.astype(quat.dtype)], 1)[:, order],
    }


def _shaped(
    name: str, looks: Mapping[str, Array], shape: tuple[int, ...], nominal: np.ndarray, xp: Array
) -> Array:
    """Returns a field of looks, or its nominal value.

    Raises:
      ConfigError: it has another shape.
    """
    value = looks.get(name)
    if value is None:
        return xp.broadcast_to(xp.asarray(nominal), shape)
    if tuple(value.shape) != shape:
        raise ConfigError(f"looks['{name}'] must be {shape}, not {tuple(value.shape)}.")
    return value


def sample_rig(key: Array, count: int) -> dict[str, Array]:
    """Draws how far `count` right imagers of an environment are off: PLACE and TURN [count, 3] (JAX, traceable)."""
    import jax
    import jax.numpy as jnp

    place, axis, angle = jax.random.split(jax.random.fold_in(key, _RIG), 3)
    direction = jax.random.normal(axis, (count, 3))
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return {
        PLACE: jax.random.uniform(place, (count, 3), minval=-PLACE_M, maxval=PLACE_M),
        TURN: direction * jax.random.uniform(angle, (count, 1), maxval=np.radians(TURN_DEG)),
    }


def no_error(count: int) -> dict[str, np.ndarray]:
    """Returns the fields of an exact pair: PLACE and TURN [count, 3]."""
    return {name: np.zeros((count, 3), np.float32) for name in (PLACE, TURN)}
