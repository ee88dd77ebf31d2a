"""What the fields of the looks "transfer" are where nothing is randomized: the scene's own looks."""

from __future__ import annotations

import functools

import mujoco
import numpy as np

from alohas2r.rendering import visual_randomization
from alohas2r.rendering.looks.config import COLUMNS, EXTRA_KINDS, OUT_OF_SIGHT, SLOTS

HEADLIGHT = 0.55  # ambient and diffuse light of the scenes' headlight, on what faces it
# Light of the scenes' own lamps and headlight on a white thing that faces them; radiance beyond its inverse is cut off.
_MOST_LIGHT = 2.75

# What the sensors are told about an episode; see `sensor`.
SENSOR_FIELDS = (
    *("radiance", "light", "exposure", "automatic", "target", "lag", "colours", "gamma", "blur"),
    *("vignetting", "noise", "grey", "kept", "nearest", "depth_scale", "depth_noise", "shiny"),
    *("edges", "speckles", "dropout", "blobs", "blackout", "side"),
)


def transfer(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Returns one environment's looks without randomization."""
    table = model.geom("table").id
    named = ("light_diffuse", "light_specular", "light_ambient")
    lights = {name: getattr(model, name).astype(np.float32) for name in named}
    return {
        **visual_randomization.nominal(model),
        **lights,
        "light_active": model.light_active.astype(bool),
        "cam_intrinsic": intrinsic(model),
        "finger_shift": np.zeros(3, np.float32),
        "table_half": model.geom_size[table, :2].astype(np.float32),
        **extras(),
        **surfaces(),
        **sensors(),
    }


def intrinsic(model: mujoco.MjModel) -> np.ndarray:
    """Returns the cameras' intrinsics [ncam, 4] for a sensor of size 1 x 1: focal lengths, principal point."""
    focal = 0.5 / np.tan(np.radians(model.cam_fovy) / 2)
    return np.stack([focal, focal, 0 * focal, 0 * focal], 1).astype(np.float32)


def extras() -> dict[str, np.ndarray]:
    """Returns fields of what is drawn beside the scene's geoms: nothing."""
    count = len(EXTRA_KINDS)
    return {
        "extra_pos": np.tile(np.array(OUT_OF_SIGHT, np.float32), (count, 1)),
        "extra_quat": np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        "extra_size": np.full((count, 3), 1e-3, np.float32),
        "extra_rgba": np.ones((count, 4), np.float32),
    }


def surfaces() -> dict[str, np.ndarray]:
    """Returns fields of textures and of the room: none, and darkness."""
    paint = np.zeros((len(SLOTS), len(COLUMNS)), np.float32)
    paint[:, COLUMNS.index("specular")] = -1
    return {
        "paint": paint,
        "room_rgb": np.zeros((2, 3), np.float32),
        "room_size": np.array([2.0, 2.0, 0.75], np.float32),
        "radiance": np.asarray(1 / _MOST_LIGHT, np.float32),
    }


@functools.cache
def sensors() -> dict[str, np.ndarray]:
    """Returns fields of the sensors: what a perfect one shows."""
    plain = {
        **dict.fromkeys(("exposure", "gamma", "kept", "depth_scale", "side", "lag"), 1.0),
        **dict.fromkeys(("automatic", "blur", "vignetting", "noise", "grey", "nearest"), 0.0),
        **dict.fromkeys(("depth_noise", "shiny", "edges", "speckles", "dropout"), 0.0),
        **dict.fromkeys(("blobs", "blackout"), 0.0),
        "target": 0.4,
        "light": _MOST_LIGHT,
    }
    arrays = {name: np.asarray(value, np.float32) for name, value in plain.items()}
    return {**arrays, "colours": np.eye(3, dtype=np.float32)}
