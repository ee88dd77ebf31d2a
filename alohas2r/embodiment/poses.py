"""Named poses of the arms, and how to hold one."""

from __future__ import annotations

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER

# The folded pose in which an arm rests on itself and torque may go off: six joints, then the
# gripper half open. Source: sleep_positions of the published vx300s motor configuration.
SLEEP_POSE = np.array([0.0, -1.85, 1.55, 0.0, 0.8, 0.0, 0.02] * 2)
# A pose with both grippers well above the table, on the way to and from the sleep pose.
# Source: START_ARM_POSE of the published ALOHA software.
STAGED_POSE = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.02] * 2)
for _pose in (SLEEP_POSE, STAGED_POSE):
    _pose.setflags(write=False)


def hold_pose(sent: np.ndarray | None, measured: np.ndarray, slack: float = 0.1) -> np.ndarray:
    """Returns targets that hold an arm still.

    The last command is kept as far as it lies within `slack` of the measured pose: a servo under
    load stands a little below its goal, and a goal set to the measured pose would let it sag
    further each time. Beyond that the goal is drawn in, so that an arm that pushes against
    something stops pushing.

    Args:
      sent: [14] the last command, or None if there was none.
      measured: [14] measured positions.
      slack: rad; for the grippers, whose distance to the goal is their grip, no limit applies.
    """
    if sent is None:
        return measured.copy()
    near = measured + np.clip(sent - measured, -slack, slack)
    return np.where(IS_GRIPPER, sent, near)
