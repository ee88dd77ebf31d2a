"""A controller that grips an object and lifts it, from the exact state: what a policy may imitate.

The gripper points down and forward, its fingers on both sides of the object, and comes in along its own axis: the
further it is from that line, the further back it stays. It closes when it is there, and lifts when both fingers press.
Each arm does so by itself, by damped least squares on the Jacobian of its fingertips, or of the object in its hand.

Source: Wampler, Manipulator Inverse Kinematic Solutions Based on Vector Formulations and Damped Least-Squares Methods
(1986).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.sim import geometry
from alohas2r.sim.chain import JOINTS, Chain, jacobian, least_squares
from alohas2r.sim.kinematics import quaternion_matrix
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals

_UP = np.array([0.0, 0.0, 1.0], np.float32)
_OPENING, _CLOSING = 1.0, -1.0  # actions of a gripper


@dataclasses.dataclass(frozen=True)
class GraspConfig:
    """Settings of the controller.

    Attributes:
      share: of what is left, and not on its way, that a step commands.
      pitch_deg: angle by which the gripper points down.
      behind: of the grip point, away from where the object leads, that is gripped (m); below: under it.
      above_table: least height of fingertips above the object's lower side, which may lie on the table (m).
      under: share of the distance under the line of approach that counts as beside it.
      lateral: distance from the line of approach that is as good as none (m); angle_deg: angle likewise.
      backward: metres that the fingertips stay back per metre beside the line; backward_turn: per radian.
      back: the furthest that they stay back (m).
      near: distance at which the gripper closes (m); close_deg: the largest angle at which it does.
      far: distance at which one that closes opens again (m); open_deg: angle likewise.
      squeeze: by how much the travel must fail to follow the target (m), and force: how hard each finger must press
        (N), to count as holding.
      clear: height above the arm's base from which an object is brought where it is to be, not only up (m).
      stride: largest distance that counts as left (m); turn: largest angle (rad).
      damping: of the least squares; arm: lever by which angles are weighed (m).
    """

    share: float = 0.3
    pitch_deg: float = 54.0
    behind: float = 0.005
    below: float = 0.005
    above_table: float = 0.011
    under: float = 0.5
    lateral: float = 0.008
    angle_deg: float = 10.0
    backward: float = 2.0
    backward_turn: float = 0.3
    back: float = 0.06
    near: float = 0.012
    close_deg: float = 20.0
    far: float = 0.03
    open_deg: float = 40.0
    squeeze: float = 0.006
    force: float = 1.5
    clear: float = 0.03
    stride: float = 0.15
    turn: float = 0.4
    damping: float = 1e-3
    arm: float = 0.1


class _Arm(NamedTuple):
    """One arm's part of the signals, in its base frame; see `Signals`."""

    qpos: jax.Array  # [8]
    ctrl: jax.Array  # [7]
    tip_pos: jax.Array  # [3]
    gripper_mat: jax.Array  # [3, 3]
    finger_force: jax.Array  # [2, 3]
    object_pos: jax.Array  # [3]
    object_mat: jax.Array  # [3, 3]
    grip_pos: jax.Array  # [3]


class GraspGuide:
    """The controller of a scene's arms; see the module.

    Args:
      scene: where. config: settings.
    """

    def __init__(self, scene: Scene, config: GraspConfig = GraspConfig()) -> None:
        self.config = config
        self._chains = [Chain.of(scene, arm) for arm in scene.arms]
        self._base_pos = [np.float32(arm.base_pos) for arm in scene.arms]
        self._base_mat = [np.float32(quaternion_matrix(arm.base_quat)) for arm in scene.arms]
        self._open = [float(scene.ctrl_high[arm.ctrl[-1]]) for arm in scene.arms]

    def action(
        self,
        signals: Signals,
        targets: jax.Array,
        halves: jax.Array,
        scale: float,
        under_way: jax.Array,
    ) -> jax.Array:
        """Returns what the arms should do [A * 7], in -1..1.

        Args:
          signals: of one environment, joints and targets in terms of readings.
          targets: [A, 3] where the objects are to be brought, in the arms' base frames (m).
          halves: [A] half sides of the objects (m).
          scale: change of a target by an action of 1 (rad).
          under_way: [A * 7] by how much the last steps have changed the targets (rad; m of the grippers).
        """
        under_way = under_way.reshape(len(self._chains), -1)[:, :JOINTS]
        parts = []
        for index in range(len(self._chains)):
            arm = _Arm(*(getattr(signals, name)[index] for name in _Arm._fields))
            left, closes = self._correction(index, arm, targets[index], halves[index])
            share = jnp.clip(self.config.share * (left - under_way[index]) / scale, -1, 1)
            parts += [share, jnp.where(closes, _CLOSING, _OPENING)[None]]
        return jnp.concatenate(parts)

    def _correction(
        self, index: int, arm: _Arm, target: jax.Array, half: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns by how much an arm's joints [6] are off (rad), and whether its gripper is to close."""
        config = self.config
        wanted, flat = self._grip(arm.object_mat)
        forward = wanted[:, 0]
        goal = arm.grip_pos - config.below * _UP - config.behind * flat
        goal = goal.at[2].max(arm.grip_pos[2] - half + config.above_table)
        away = goal - arm.tip_pos
        turn = geometry.rotation_vector(wanted @ arm.gripper_mat.T)
        distance = jnp.linalg.norm(away)
        # Fingers that point across the object pass on both sides of it, from above at any pitch.
        across, upper = wanted[:, 1], wanted[:, 2]
        beside = jnp.maximum(jnp.abs(away @ across), config.under * (away @ upper))
        angle = jnp.arccos(jnp.clip(arm.gripper_mat[:, 1] @ across, -1, 1))
        back = config.backward * jnp.maximum(beside - config.lateral, 0)
        back += config.backward_turn * jnp.maximum(angle - math.radians(config.angle_deg), 0)
        reach = away - forward * jnp.minimum(back, config.back)

        travel, commanded = arm.qpos[JOINTS], arm.ctrl[JOINTS]
        closing = commanded < 0.75 * self._open[index]
        closes = (distance < jnp.where(closing, config.far, config.near)) & (
            jnp.linalg.norm(turn)
            < jnp.deg2rad(jnp.where(closing, config.open_deg, config.close_deg))
        )
        pressed = jnp.linalg.norm(arm.finger_force, axis=-1).min() > config.force
        holds = closes & closing & pressed & (travel - commanded > config.squeeze)

        # First up, then to the target, level.
        clear = arm.object_pos[2] > config.clear
        bring = target - arm.object_pos
        bring = jnp.where(clear, bring, bring * jnp.array([0.3, 0.3, 1.0]))
        level = geometry.rotation_vector(geometry.upright_quarter(arm.object_mat).T) * clear

        point = jnp.where(holds, arm.object_pos, arm.tip_pos)
        move = geometry.shortened(jnp.where(holds, bring, reach), config.stride)
        turn = geometry.shortened(jnp.where(holds, level, turn), config.turn)
        mat = self._base_mat[index]
        anchors, axes = self._chains[index].hinges(arm.qpos[:JOINTS])
        rows = jacobian(anchors, axes, self._base_pos[index] + mat @ point)
        weights = jnp.array([1.0] * 3 + [config.arm] * 3)
        twist = jnp.concatenate([mat @ move, mat @ turn])
        return least_squares(rows * weights[:, None], twist * weights, config.damping), closes

    def _grip(self, object_mat: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the rotation [3, 3] of a gripper about an object, and the object's direction [3] on the table."""
        pitch = math.radians(self.config.pitch_deg)
        flat = object_mat[:, 0] * (1 - _UP)
        flat = flat / (jnp.linalg.norm(flat) + 1e-6) * jnp.where(flat[0] < 0, -1.0, 1.0)
        forward = math.cos(pitch) * flat - math.sin(pitch) * _UP
        left = jnp.cross(jnp.asarray(_UP), flat)
        return jnp.stack([forward, left, jnp.cross(forward, left)], -1), flat
