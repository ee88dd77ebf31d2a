"""When the insertion policy takes over from the pick policy, from proprioception alone.

Nothing on the robot knows where the objects are. Forward kinematics gives the height of both
fingertip midpoints; together with the grippers' travel that decides. The same functions run on
NumPy arrays (robot), JAX arrays (training, batched) and whatever else has NumPy's names.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import ModelError
from alohas2r.sim import scene


class Link(NamedTuple):
    """One joint on the way from the world to the fingers, fixed offset first."""

    offset: np.ndarray  # [3] m, in the parent's frame
    rotation: np.ndarray  # [3, 3] at joint position zero
    axis: np.ndarray  # [3, 3] cross-product matrix of a hinge axis; zero for a slide
    slide: np.ndarray  # [3] direction of a slide; zero for a hinge


class Chain(NamedTuple):
    """The kinematics of one arm: six hinges, a fixed frame, then two fingers side by side."""

    hinges: tuple[Link, ...]
    palm: Link
    fingers: tuple[Link, ...]
    tips: tuple[np.ndarray, ...]  # [3] m, the fingertip in each finger's frame


@functools.cache
def chains() -> tuple[Chain, ...]:
    """Reads the kinematic constants of both arms from the insertion scene, left first.

    Raises:
      ModelError: the scene lacks one of the joints or sites, or its links follow in another order.
    """
    insert = scene.load("insert")
    model, lookup = insert.model, insert.id

    def link(body: int, joint: int | None) -> Link:
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.body_quat[body])
        axis, slide = np.zeros((3, 3)), np.zeros(3)
        if joint is not None:
            x, y, z = model.jnt_axis[joint]
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
                slide = np.array([x, y, z])
            else:
                axis = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return Link(model.body_pos[body].copy(), rotation.reshape(3, 3), axis, slide)

    arms = []
    for side in SIDES:
        hinge_ids = [lookup("joint", f"{side}/{joint}") for joint in joints.ARM_JOINTS]
        finger_ids = [lookup("joint", f"{side}/{joint}") for joint in joints.FINGER_JOINTS]
        bodies = [int(model.jnt_bodyid[joint]) for joint in hinge_ids]
        hinges = [link(body, joint) for body, joint in zip(bodies, hinge_ids, strict=True)]
        base = link(int(model.body_parentid[bodies[0]]), None)
        # The base does not move: fold it into the first hinge.
        hinges[0] = Link(
            base.offset + base.rotation @ hinges[0].offset,
            base.rotation @ hinges[0].rotation,
            hinges[0].axis,
            hinges[0].slide,
        )
        fingers = [int(model.jnt_bodyid[joint]) for joint in finger_ids]
        palm = int(model.body_parentid[fingers[0]])
        parents = [int(model.body_parentid[body]) for body in (*bodies[1:], palm, fingers[1])]
        if parents != [*bodies, palm] or model.body_parentid[model.body_parentid[bodies[0]]] != 0:
            raise ModelError(f"The {side} arm of scene_insert.xml is not one chain of six hinges.")
        arms.append(
            Chain(
                hinges=tuple(hinges),
                palm=link(palm, None),
                fingers=tuple(
                    link(body, joint) for body, joint in zip(fingers, finger_ids, strict=True)
                ),
                tips=tuple(
                    model.site_pos[lookup("site", f"{side}/{finger}tip")].copy()
                    for finger in joints.FINGER_JOINTS
                ),
            )
        )
    return tuple(arms)


def tip_midpoints(joint_position: Array, xp: ModuleType = np) -> Array:
    """Returns the midpoint between the two fingertips of each arm, in the world frame.

    Args:
      joint_position: [..., 2, 8] left arm first: six arm joints (rad), two fingers (m).
      xp: the array namespace, numpy or jax.numpy.

    Returns:
      [..., 2, 3] m.
    """
    midpoints = []
    for index, chain in enumerate(chains()):
        angles = joint_position[..., index, :]
        rotation, position = xp.eye(3), xp.zeros(3)
        for joint, hinge in enumerate(chain.hinges):
            position = position + rotation @ hinge.offset
            sine = xp.sin(angles[..., joint])[..., None, None]
            versine = 1 - xp.cos(angles[..., joint])[..., None, None]
            # Source: Rodrigues' rotation formula.
            turn = xp.eye(3) + sine * hinge.axis + versine * (hinge.axis @ hinge.axis)
            rotation = rotation @ hinge.rotation @ turn
        position = position + rotation @ chain.palm.offset
        rotation = rotation @ chain.palm.rotation
        local = xp.zeros(3)
        for finger, (link, tip) in enumerate(zip(chain.fingers, chain.tips, strict=True)):
            travel = angles[..., len(chain.hinges) + finger, None]
            slid = (link.rotation @ link.slide) * travel
            local = local + (link.offset + link.rotation @ tip + slid) / len(chain.tips)
        midpoints.append(position + (rotation @ local[..., None])[..., 0])
    return xp.stack(midpoints, axis=-2)


def tip_heights(joint_position: Array, xp: ModuleType = np) -> Array:
    """Returns the height of each arm's fingertip midpoint above the world's origin.

    Args:
      joint_position: [..., 2, 8] left arm first: six arm joints (rad), two fingers (m).
      xp: the array namespace, numpy or jax.numpy.

    Returns:
      [..., 2] m.
    """
    return tip_midpoints(joint_position, xp)[..., 2]
