"""The joints of two arms, in the order of simulation and robot."""

from __future__ import annotations

import numpy as np

SIDES = ("left", "right")
# Order of the joints and actuators of one arm, as on the robot. Source: the published code.
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
FINGER_JOINTS = ("left_finger", "right_finger")
ACTUATORS = (*ARM_JOINTS, "gripper")
CONTROL_PERIOD_S = 0.05
JOINTS = tuple(f"{side}/{joint}" for side in SIDES for joint in (*ARM_JOINTS, "gripper"))
PER_ARM = len(ARM_JOINTS) + 1
GRIPPERS = tuple(index for index, joint in enumerate(JOINTS) if joint.endswith("/gripper"))
IS_GRIPPER = np.array([joint.endswith("/gripper") for joint in JOINTS])
# A gripper holds something if its fingers stand this much wider apart than they were told to (m of travel each). An
# empty one follows its target to less than 1 mm.
HELD_GAP_M = 0.002


def two_fingers(values: np.ndarray) -> np.ndarray:
    """Turns [..., 14] values into [..., 2, 8]: one gripper servo moves both fingers alike."""
    arms = values.reshape(*values.shape[:-1], len(SIDES), PER_ARM)
    return np.concatenate([arms, arms[..., -1:]], axis=-1)
