"""From an action to the actuators' targets, the same in simulation and on the robot."""

from __future__ import annotations

from alohas2r.core.types import Array

ACTIONS_PER_ARM = 7  # six arm joints, then the gripper
# Probability of 0, 1, 2, 3 steps of delay, before normalization. Source: the published report.
DELAY_WEIGHTS = (0.83, 0.104, 0.02, 0.014)
ACTION_SCALE = 0.02  # rad (metres of finger travel) per control step. Source: the published report.


def next_target(
    target: Array, action: Array, low: Array, high: Array, scale: float = ACTION_SCALE
) -> Array:
    """Moves the targets by an action and keeps them within the actuators' ranges.

    Args:
      target: [..., nu] last target (what was sent, on the robot).
      action: [..., nu] in [-1, 1].
      low: [nu] and high: [nu] actuator ranges.
      scale: change by a full action.

    Returns:
      [..., nu] the new targets; numpy in, numpy out, JAX in, JAX out.
    """
    return (target + scale * action.clip(-1.0, 1.0)).clip(low, high)
