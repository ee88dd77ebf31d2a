"""What the policy sees of the robot."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.embodiment.observation import proprioception
from alohas2r.robots.base import Frame, Proprio


def observe(
    reading: Proprio, frames: Mapping[str, Frame], target: np.ndarray, switched: bool
) -> dict[str, np.ndarray]:
    """Builds what a policy observes, raw: preprocessing is part of the policy.

    Args:
      reading: the joints.
      frames: newest picture of "left" and "right".
      target: [14] the last command.
      switched: whether the insertion policy is in charge.

    Returns:
      "left_rgb", "right_rgb" [H, W, 3] uint8; "left_depth", "right_depth" [H, W] float32 (m); where cameras give
      it, "left_grey", "right_grey" [H, W] uint8 of their right imagers;
      "proprioception" [32] float32: joint positions 8 + 8, positions minus targets 8 + 8 (rad, m);
      "switched" [] bool.
    """
    values = proprioception(reading.joint_position(), target.reshape(len(SIDES), PER_ARM))
    observation = {
        "proprioception": values.astype(np.float32),
        "switched": np.array(switched),
    }
    for side in SIDES:
        observation[f"{side}_rgb"] = frames[side].rgb
        observation[f"{side}_depth"] = frames[side].depth.astype(np.float32)
        grey = frames[side].grey
        if grey is not None:
            observation[f"{side}_grey"] = grey
    return observation
