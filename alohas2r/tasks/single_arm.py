"""What tasks of one arm share: its observation, grasp and posture."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from alohas2r.envs.noise import Measured
from alohas2r.envs.task import TARGETS_LEFT
from alohas2r.sim.signals import Signals

LIFTED = 0.05  # m above where it lay that an object counts as lifted. Source: the published report.
SINGLE_ARM_OBSERVATION = (
    ("joint_pos", 8, "rad, m"),
    ("joint_vel", 8, "rad/s, m/s"),
    ("object_linvel_in_base", 3, "m/s"),
    ("object_angvel_in_base", 3, "rad/s"),
    ("gripper_rotation_rows_2_3_in_base", 6, "1"),
    ("object_rotation_rows_2_3_in_base", 6, "1"),
    ("fingertips_minus_grip_point_in_base", 3, "m"),
    ("target_minus_object_in_base", 3, "m"),
    ("target_minus_object_rotation_rows_1_2_in_base", 6, "1"),
    (TARGETS_LEFT, 7, "rad, m"),
)


def grasped(signals: Signals, minimum: float = 2.5, angle_deg: float = 75.0) -> jax.Array:
    """Returns [..., A]: both fingers press with at least `minimum` N along the line between them.

    Source: the published report (2.5 N, within 75 deg of the line between the fingers).
    """
    force = signals.finger_force
    size = jnp.linalg.norm(force, axis=-1)
    inward = jnp.stack([signals.finger_axis, -signals.finger_axis], -2)
    aligned = (force * inward).sum(-1) > math.cos(math.radians(angle_deg)) * size
    return ((size > minimum) & aligned).all(-1)


def slow_joints(qvel: jax.Array, bound: float = 0.5, margin: float = 2.0) -> jax.Array:
    """Reciprocal tolerance of the joint speeds' norm [..., n] -> [...]: 1 up to the bound, 0.1 at bound + margin.

    Source: dm_control rewards.tolerance, sigmoid "reciprocal", value_at_margin 0.1.
    """
    speed = jnp.linalg.norm(qvel, axis=-1)
    return 1 / (1 + 9 * jnp.maximum(speed - bound, 0) / margin)


def home_pose(qpos: jax.Array, home: jax.Array) -> jax.Array:
    """Returns 1 - tanh |qpos - home| over the last axis."""
    return 1 - jnp.tanh(jnp.linalg.norm(qpos - home, axis=-1))


def arm_observations(measured: Measured, target_pos: jax.Array, target_mat: jax.Array) -> jax.Array:
    """Assembles each arm's observation, `SINGLE_ARM_OBSERVATION` [A, 53], all in its base frame.

    Args:
      measured: of A arms.
      target_pos: [A, 3] or [3], target_mat: [A, 3, 3] or [3, 3] where their objects should be.
    """
    lead = measured.qpos.shape[:-1]
    difference = target_mat[..., :2, :] - measured.object_mat[..., :2, :]
    return jnp.concatenate(
        [
            measured.qpos,
            measured.qvel,
            measured.object_linvel,
            measured.object_angvel,
            measured.gripper_mat[..., 1:, :].reshape(*lead, 6),
            measured.object_mat[..., 1:, :].reshape(*lead, 6),
            measured.tip_to_grip,
            target_pos - measured.object_pos,
            difference.reshape(*lead, 6),
            measured.ctrl - measured.qpos[..., :7],
        ],
        -1,
    )
