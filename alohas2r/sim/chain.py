"""Kinematics of an arm as a pure function of its joints, for compiled loops: where its joints' axes are."""

from __future__ import annotations

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.sim import geometry
from alohas2r.sim.kinematics import quaternion_matrix
from alohas2r.sim.scene import Arm, Scene

JOINTS = 6  # of an arm


class Hinge(NamedTuple):
    """What turns a body, in the body's frame."""

    number: int  # counted from the base
    anchor: np.ndarray  # [3] m
    axis: np.ndarray  # [3]


class Link(NamedTuple):
    """A body of the chain, in its parent's frame."""

    pos: np.ndarray  # [3] m
    mat: np.ndarray  # [3, 3]
    hinge: Hinge | None


class Chain(NamedTuple):
    """The bodies of an arm from the world to its gripper."""

    links: tuple[Link, ...]

    @classmethod
    def of(cls, scene: Scene, arm: Arm) -> Self:
        """Returns the chain of one arm of a scene, with its base where the scene has it."""
        model = scene.model
        hinges: dict[int, Hinge] = {}  # by body
        body = 0
        for number, address in enumerate(arm.qpos[:JOINTS]):
            joint = int(np.flatnonzero(model.jnt_qposadr == address)[0])
            body = int(model.jnt_bodyid[joint])
            hinges[body] = Hinge(number, model.jnt_pos[joint].copy(), model.jnt_axis[joint].copy())
        links = []
        while body:  # from the gripper to the world
            mat = quaternion_matrix(model.body_quat[body])
            links.append(Link(model.body_pos[body].copy(), mat, hinges.get(body)))
            body = int(model.body_parentid[body])
        return cls(tuple(reversed(links)))

    def hinges(self, joints: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where the hinges are and what they turn about.

        Args:
          joints: [6] positions (rad).

        Returns:
          [6, 3] points (m) and [6, 3] unit axes, both in the world.
        """
        pos, mat = jnp.zeros(3), jnp.eye(3)
        anchors, axes = [], []
        for link in self.links:
            pos, mat = pos + mat @ link.pos, mat @ link.mat
            hinge = link.hinge
            if hinge is not None:
                anchor = pos + mat @ hinge.anchor
                anchors.append(anchor)
                axes.append(mat @ hinge.axis)
                angle = joints[hinge.number]
                mat = mat @ geometry.axis_angle_to_mat(jnp.asarray(hinge.axis), angle)
                pos = anchor - mat @ hinge.anchor
        return jnp.stack(anchors), jnp.stack(axes)


def least_squares(rows: jax.Array, twist: jax.Array, damping: float) -> jax.Array:
    """Returns the joints' change [n] that comes nearest to a twist, and is small where none comes near.

    Args:
      rows: [6, n] Jacobian. twist: [6] what is wanted. damping: weight of the change.
    """
    return rows.T @ jnp.linalg.solve(rows @ rows.T + damping * jnp.eye(6), twist)


def jacobian(anchors: jax.Array, axes: jax.Array, point: jax.Array) -> jax.Array:
    """Returns how a point that the gripper holds moves with the joints.

    Args:
      anchors, axes: as from `Chain.hinges`. point: [3] in the world (m).

    Returns:
      [6, 6]: rows are the point's velocity and the gripper's angular velocity in the world, columns the joints.
    """
    return jnp.concatenate([jnp.cross(axes, point - anchors), axes], -1).T
