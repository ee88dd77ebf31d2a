"""Inputs to convert and verify networks with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.embodiment import history
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.rendering import registry as renderers
from alohas2r.rendering import stereo
from alohas2r.rendering.protocol import CAMERAS
from alohas2r.sim import scene

Arrays = Mapping[str, np.ndarray]


def wrist_views(
    size: int,
    count: int,
    seed: int = 0,
    names: Sequence[str] = embodiment_joints.SIDES,
    paired: bool = False,
) -> dict[str, np.ndarray]:
    """Renders what wrist cameras see at random poses of arms and objects.

    Args:
      size: side of the pictures (pixels).
      count: how many.
      seed: of the poses.
      names: what the cameras are called, the left one first.
      paired: whether to render what their right imagers see as well.

    Returns:
      "left_rgb" and so on [N, size, size, 3] uint8; "left_depth" and so on [N, size, size] float32 (m); of pairs
      "left_grey" and so on [N, size, size] uint8.
    """
    loaded = scene.load("insert")
    draw = np.random.default_rng(seed)
    poses = np.repeat(loaded.home_qpos[None], count, axis=0)
    for arm in loaded.arms:
        joints = arm.qpos[: len(embodiment_joints.ARM_JOINTS)]
        poses[:, joints] += draw.uniform(-0.3, 0.3, (count, len(joints)))
        poses[:, arm.object_qpos[:3]] += draw.uniform(-0.1, 0.1, (count, 3))
    # Of the ray casters the one that starts quickest; all draw the same.
    options: dict[str, object] = {
        "width": size,
        "height": size,
        "shadows": False,
        "threads": 1,
        "caster": "mujoco",
    }
    if paired:
        options["cameras"] = stereo.cameras(CAMERAS)
    frames = renderers.make("raycast", loaded, **options).render(poses)
    views = {f"{name}_rgb": frames.rgb[:, index] for index, name in enumerate(names)}
    views |= {f"{name}_depth": frames.depth[:, index] for index, name in enumerate(names)}
    if paired:
        greys = stereo.luma(frames.rgb[:, len(CAMERAS) :])
        views |= {f"{name}_grey": greys[:, index] for index, name in enumerate(names)}
    return views


def random_flags(recorded: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Draws the switch's state [S]: the recorded sequence, then a random one."""
    drawn = np.random.default_rng(seed).random(samples) < 0.5
    missing = max(samples - len(recorded), 0)
    if missing > 1 and len(set(drawn[:missing].tolist())) == 1:
        drawn[0] ^= True  # both states are to be seen
    return np.concatenate([recorded.astype(bool), drawn])[:samples]


def random_features(
    remembered: HistoryConfig,
    normal: tuple[np.ndarray, np.ndarray],
    recorded: np.ndarray,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Draws features [S, F]: the recorded sequence, then a smooth one of the policy's own mean and deviation [F]."""
    size = recorded.shape[1]
    mean, std = (values[:size] for values in normal)
    noise = np.random.default_rng(seed).normal(size=(samples, size))
    rows, state, value = [], history.init(remembered, size, np), noise[0]
    for step in range(samples):
        if step == len(recorded):  # a new episode
            state = history.init(remembered, size, np)
        value = 0.8 * value + 0.6 * noise[step]
        observed = recorded[step] if step < len(recorded) else mean + std * value
        state, features = history.update(remembered, state, np.float32(observed), np)
        rows.append(features)
    return np.stack(rows)
