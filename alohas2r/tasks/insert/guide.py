"""A controller that inserts, from the exact state: what a policy may imitate before reinforcement goes on.

Both arms together turn the peg onto the socket's axis and bring its end to where it is wanted, by damped least squares
on the Jacobian of the peg's end in the socket. Before the mouth the peg waits until it is in line with the hole, and
goes back where it is not. It takes a share of what is left less what is on its way already, so that a robot that acts
late is not asked twice. Of loads and grips it knows nothing.

Source: Wampler, Manipulator Inverse Kinematic Solutions Based on Vector Formulations and Damped Least-Squares Methods
(1986); Smith, Closer Control of Loops with Dead Time (1957).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alohas2r.sim import geometry
from alohas2r.sim.chain import JOINTS, Chain, jacobian, least_squares
from alohas2r.sim.objects import HALF_LENGTH
from alohas2r.sim.scene import Scene

_TURNED = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))  # the peg's frame in the socket's
_CLOSING = -1.0  # action of a gripper


class Sizes(NamedTuple):
    """Of what is to be inserted (m)."""

    half_side: jax.Array | float  # of the peg
    half_length: jax.Array | float  # of the peg
    hole_half: jax.Array | float  # half width of the hole
    inserted_x: jax.Array | float  # of the peg's end in the socket's frame, to count as inserted


@dataclasses.dataclass(frozen=True)
class GuideConfig:
    """Settings of the controller.

    Attributes:
      share: of what is left, and not on its way, that a step commands.
      beyond: depth that is wanted beyond what counts as inserted (m).
      before: distance from the mouth at which the peg waits (m).
      inside: depth from which the peg counts as inside (m).
      fit: share of the hole's play within which the peg is in line; angle_deg: largest angle of a peg in line.
      stride: largest distance that counts as left along the axis; across: in all (m).
      turn: largest angle that counts as left (rad).
      damping: of the least squares; arm: lever by which angles are weighed (m).
    """

    share: float = 0.3
    beyond: float = 0.008
    before: float = 0.012
    inside: float = 0.003
    fit: float = 1.0
    angle_deg: float = 3.0
    stride: float = 0.04
    across: float = 0.06
    turn: float = 0.3
    damping: float = 1e-5
    arm: float = 0.1


class Guide:
    """The controller of a scene with two arms; see the module.

    Args:
      scene: where. config: settings.
    """

    def __init__(self, scene: Scene, config: GuideConfig = GuideConfig()) -> None:
        self.config = config
        self._chains = [Chain.of(scene, arm) for arm in scene.arms]
        self._joints = [arm.qpos[:JOINTS] for arm in scene.arms]
        self._objects = [arm.object_qpos for arm in scene.arms]

    def action(
        self, qpos: jax.Array, sizes: Sizes, scale: float, under_way: jax.Array
    ) -> jax.Array:
        """Returns what both arms should do [14], in -1..1.

        Args:
          qpos: [nq] of the simulation. sizes: of the objects.
          scale: change of a target by an action of 1 (rad).
          under_way: [14] by how much the last steps have changed the targets (rad; m of the grippers).
        """
        left = (
            self.correction(qpos, sizes).reshape(2, JOINTS) - under_way.reshape(2, -1)[:, :JOINTS]
        )
        arms = jnp.clip(self.config.share * left / scale, -1, 1)
        return jnp.concatenate([arms, jnp.full((2, 1), _CLOSING)], -1).reshape(-1)

    def correction(self, qpos: jax.Array, sizes: Sizes) -> jax.Array:
        """Returns by how much the joints [12] are off, left arm first (rad); arguments as of `action`."""
        config = self.config
        socket_pos, socket = _pose(qpos[self._objects[0]])
        peg_pos, peg = _pose(qpos[self._objects[1]])
        point = peg_pos + peg[:, 0] * sizes.half_length
        end = socket.T @ (point - socket_pos)
        wanted = socket @ jnp.array(_TURNED)
        # Sections are square: the nearest of four rotations that look alike.
        turn = -wanted @ geometry.rotation_vector(geometry.upright_quarter(wanted.T @ peg))
        angle, aside = jnp.linalg.norm(turn), jnp.abs(end[1:]).max()

        goal = sizes.inserted_x - config.beyond
        in_line = (aside < config.fit * (sizes.hole_half - sizes.half_side)) & (
            angle < jnp.deg2rad(config.angle_deg)
        )
        outside = end[0] > HALF_LENGTH - config.inside
        within = ~outside & (aside < sizes.hole_half)
        along = jnp.where(within | in_line, goal, HALF_LENGTH + config.before) - end[0]
        # A peg beside the socket goes back first.
        across = jnp.where(outside | within, -end[1:], 0.0)
        along = jnp.clip(along, -config.stride, config.stride)
        move = geometry.shortened(socket @ jnp.concatenate([along[None], across]), config.across)
        twist = jnp.concatenate([move, config.arm * geometry.shortened(turn, config.turn)])

        parts = []
        for chain, joints, sign in zip(self._chains, self._joints, (-1.0, 1.0), strict=True):
            parts.append(sign * jacobian(*chain.hinges(qpos[joints]), point))
        rows = jnp.concatenate(parts, -1) * jnp.array([1.0] * 3 + [config.arm] * 3)[:, None]
        return least_squares(rows, twist, config.damping)


def _pose(free: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns position [3] and rotation [3, 3] of a free joint's qpos [7]."""
    return free[:3], geometry.quat_to_mat(free[3:])
