"""ALOHA's own names and units, as its software, LeRobot's data sets and OpenPI's servers have them.

Joints are in radians; a gripper is the share of its travel, 0 closed and 1 open, measured and commanded alike.
"""

from __future__ import annotations

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, SIDES

# Source: ALOHA's software and LeRobot's data sets: left_waist .. right_gripper, cam_left_wrist, cam_right_wrist.
MOTORS = tuple(name.replace("/", "_") for name in JOINTS)
CAMERAS = tuple(f"cam_{side}_wrist" for side in SIDES)
# Finger travel (m) of a closed and of an open gripper: the range of the simulated actuator, see xmls.
CLOSED_M, OPEN_M = 0.002, 0.037
# What policies that read language are told to do.
INSERT_TASK = "Pick up the socket with the left arm and the peg with the right one, and insert the peg into the socket."


def to_units(joints: np.ndarray) -> np.ndarray:
    """Turns joints [..., 14] (rad; finger travel in m) into ALOHA's units, float32."""
    shares = (joints - CLOSED_M) / (OPEN_M - CLOSED_M)
    return np.where(IS_GRIPPER, shares, joints).astype(np.float32)


def from_units(values: np.ndarray) -> np.ndarray:
    """Turns values [..., 14] in ALOHA's units into joints (rad; finger travel in m)."""
    return np.where(IS_GRIPPER, CLOSED_M + values * (OPEN_M - CLOSED_M), values)
