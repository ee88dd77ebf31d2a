"""Refuses observations in other units than a policy was trained in, where the numbers tell."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from alohas2r.embodiment.joints import ARM_JOINTS, FINGER_JOINTS, SIDES
from alohas2r.errors import ArtifactError

FAR_M = 20.0  # no wrist camera sees further
TURN_RAD = 1.05 * 2 * math.pi  # no joint is turned further
TRAVEL_M = 0.1  # no finger goes further
PROPRIOCEPTION = "proprioception"


def check_units(observation: Mapping[str, object]) -> None:
    """Refuses depth that is not in metres, angles that are not in radians, travel that is not in metres.

    What has another shape or type than it must have is left to the policy, which says so.

    Raises:
      ArtifactError: what is in another unit, and in which it must be.
    """
    for name, value in observation.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or not value.size:
            continue
        if str(name).endswith("_depth"):
            low, high = float(value.min()), float(value.max())
            if low < 0:
                raise ArtifactError(
                    f"'{name}' goes down to {low:.3g}: depth is in metres, and 0 where nothing is known."
                )
            if high > FAR_M:
                raise ArtifactError(
                    f"'{name}' reaches {high:.4g}: depth must be in metres, not in millimetres."
                )
        if name == PROPRIOCEPTION:
            _check_joints(value)


def _check_joints(value: np.ndarray) -> None:
    joints = len(ARM_JOINTS) + len(FINGER_JOINTS)
    if value.shape[-1:] != (2 * len(SIDES) * joints,):
        return
    positions = np.abs(value.reshape(-1, joints)[: len(SIDES)])
    angle = float(positions[:, : len(ARM_JOINTS)].max())
    if angle > TURN_RAD:
        raise ArtifactError(
            f"'{PROPRIOCEPTION}' has a joint at {angle:.4g}: joints must be in radians, not in degrees."
        )
    travel = float(positions[:, len(ARM_JOINTS) :].max())
    if travel > TRAVEL_M:
        raise ArtifactError(
            f"'{PROPRIOCEPTION}' has a finger at {travel:.4g}: fingers must be in metres of travel, 0 to 0.041."
        )
