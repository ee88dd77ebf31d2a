"""What tests of learning on the robot share."""

from __future__ import annotations

from typing import Any

import numpy as np

from alohas2r.core import assets
from alohas2r.embodiment.joints import two_fingers
from alohas2r.embodiment.observation import proprioception as joint_values
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import make_spec

HOME = np.array([0.25, -0.4, 1.5, 0.0, -0.73, 0.0, 0.037])


def spec(task: str = "reach", **changes: Any) -> OnlineSpec:
    """Returns a policy with the shipped student's eyes."""
    _, cameras, network = read_eyes(assets.data_path("params") / "student", "left")
    settings: dict[str, Any] = {"hidden": (16, 16), **changes}
    return make_spec(task, cameras, network, **settings)


def proprioception(targets: np.ndarray) -> np.ndarray:
    """Returns what arms feel [32] that are where they were told [14]."""
    position = two_fingers(np.asarray(targets, float))
    return joint_values(position, position[:, :7]).astype(np.float32)


def observed(targets: np.ndarray, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns what a step's record has of an observation: random pictures, arms where they were told [14]."""
    arrays = {"observation/proprioception": proprioception(targets)}
    for side in ("left", "right"):
        arrays[f"observation/{side}_rgb"] = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        arrays[f"observation/{side}_depth"] = draw.uniform(0.05, 0.5, (32, 32)).astype(np.float32)
    return arrays
