"""Where the fingertips are, from joint positions alone; the robot knows no more of itself than that."""

from __future__ import annotations

import threading

import mujoco
import numpy as np

from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import SIDES
from alohas2r.sim import scene


class _Workspace(threading.local):
    """MuJoCo's data of the insertion scene, one per thread, since kinematics write into it."""

    def __init__(self) -> None:
        insert = scene.load("insert")
        self.model = insert.model
        self.data = mujoco.MjData(self.model)
        self.joints = np.array([arm.qpos for arm in insert.arms])
        self.tips = np.array(
            [
                [insert.id("site", f"{side}/{finger}tip") for finger in joints.FINGER_JOINTS]
                for side in SIDES
            ]
        )


_workspace: list[_Workspace] = []


def tip_midpoints(joint_position: np.ndarray) -> np.ndarray:
    """Returns the midpoint between the two fingertips of each arm, in the world frame.

    A pose takes 5 µs. Simulation needs no such function: there the fingertips are sensors.

    Args:
      joint_position: [..., 2, 8] left arm first: six arm joints (rad), two fingers (m).

    Returns:
      [..., 2, 3] m.
    """
    if not _workspace:
        _workspace.append(_Workspace())  # not at import time: it reads the scene
    space = _workspace[0]
    poses = np.asarray(joint_position, float).reshape(-1, *space.joints.shape)
    midpoints = np.empty((len(poses), len(SIDES), 3))
    for pose, midpoint in zip(poses, midpoints, strict=True):
        space.data.qpos[space.joints] = pose
        mujoco.mj_kinematics(space.model, space.data)
        midpoint[:] = space.data.site_xpos[space.tips].mean(axis=1)
    return midpoints.reshape(*joint_position.shape[:-2], len(SIDES), 3)


def tip_heights(joint_position: np.ndarray) -> np.ndarray:
    """Returns the height of each arm's fingertip midpoint above the world's origin.

    Args:
      joint_position: [..., 2, 8] left arm first: six arm joints (rad), two fingers (m).

    Returns:
      [..., 2] m.
    """
    return tip_midpoints(joint_position)[..., 2]


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Returns the rotation matrix [3, 3] of a unit quaternion [4], w first."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quaternion, np.float64))
    return matrix.reshape(3, 3)


def rotation_matrix(turn_rad: np.ndarray) -> np.ndarray:
    """Returns the matrix [3, 3] of a rotation vector [3] (rad)."""
    quaternion = np.zeros(4)
    angle = float(np.linalg.norm(turn_rad))
    axis = turn_rad / angle if angle > 1e-12 else np.array([0.0, 0.0, 1.0])
    mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
    return quaternion_matrix(quaternion)
