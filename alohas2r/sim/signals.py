"""From a physics readout to named, batched quantities in each arm's base frame, in SI units.

Tasks see only these `Signals`; whatever they need from physics is declared as a sensor in the MJCF,
or is qpos, qvel or ctrl. The same function serves every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.sim import geometry
from alohas2r.sim.scene import Scene


class Readout(NamedTuple):
    """What an engine reports after a step: float32 arrays, any leading batch axes.

    qpos and qvel are the new state and all frame sensors describe it; contact sensors describe the
    state one physics step earlier.
    """

    qpos: Array  # [..., nq]
    qvel: Array  # [..., nv]
    ctrl: Array  # [..., nu]
    sensordata: Array  # [..., nsensordata]


class Signals(NamedTuple):
    """One state of the scene; A arms (left first), each with the object that it handles.

    Positions in metres, rotations as matrices, all in the base frame of the arm of that row.
    """

    qpos: jax.Array  # [..., A, 8] six arm joints (rad), two fingers (m)
    qvel: jax.Array  # [..., A, 8]
    ctrl: jax.Array  # [..., A, 7] position targets (rad, m)
    tip_pos: jax.Array  # [..., A, 3] midpoint of the fingertips
    finger_axis: jax.Array  # [..., A, 3] unit vector from the left to the right finger
    gripper_mat: jax.Array  # [..., A, 3, 3]
    finger_force: (
        jax.Array
    )  # [..., A, 2, 3] net contact force that the left, right finger exerts (N)
    on_table: jax.Array  # [..., A] whether a finger or the gripper touches the table
    object_pos: jax.Array  # [..., A, 3] object's centre
    object_mat: jax.Array  # [..., A, 3, 3]
    object_linvel: jax.Array  # [..., A, 3]
    object_angvel: jax.Array  # [..., A, 3]
    grip_pos: jax.Array  # [..., A, 3] the point where the object is to be gripped
    peg_end_in_socket: (
        jax.Array
    )  # [..., 3] leading peg end in the socket's frame; zeros in a scene without them
    # What else a task asks for, by sensor, [..., size] as the MJCF has it.
    extra: Mapping[str, jax.Array] = {}


def extractor(scene: Scene, extra: Sequence[tuple[str, int]] = ()) -> Callable[[Readout], Signals]:
    """Returns the function from a readout of `scene` to its signals, for any leading batch axes.

    Args:
      scene: where.
      extra: name and size of further sensors to hand on.

    Raises:
      ModelError: the scene lacks a sensor, or it has the wrong size.
    """
    arms = scene.arms

    def addresses(template: str, dim: int) -> np.ndarray:
        return np.stack(
            [
                np.arange(dim)
                + scene.sensor(template.format(arm=arm.name, object=arm.object_sensors), dim).start
                for arm in arms
            ]
        )

    tips = [addresses(f"{{arm}}/{finger}_fingertip_pos", 3) for finger in ("left", "right")]
    fingers = [addresses(f"{{arm}}/{finger}_finger_pos", 3) for finger in ("left", "right")]
    gripper_quat = addresses("{arm}/gripper_quat", 4)
    forces = np.stack(
        [addresses(f"{{arm}}/{finger}_finger_force", 4)[:, 1:] for finger in ("left", "right")], 1
    )
    table = np.concatenate(
        [
            addresses(f"{{arm}}/{geom}_on_table", 1)
            for geom in ("left_finger_bottom", "right_finger_bottom", "gripper_base")
        ],
        1,
    )
    object_pos = addresses("{object}_pos", 3)
    object_quat = addresses("{object}_quat", 4)
    object_linvel = addresses("{object}_linvel", 3)
    object_angvel = addresses("{object}_angvel", 3)
    grip_pos = addresses("{object}_grip_pos", 3)

    def place(name: str, dim: int) -> np.ndarray:
        return np.arange(dim) + scene.sensor(name, dim).start

    peg_end = place("peg_end_in_socket", 3) if "peg_end_in_socket" in scene.sensors else None
    further = {name: place(name, size) for name, size in extra}
    base_mat = geometry.quat_to_mat(
        jnp.array([arm.base_quat for arm in arms], jnp.float32)
    )  # [A, 3, 3]
    qpos_at = np.stack([arm.qpos for arm in arms])
    qvel_at = np.stack([arm.qvel for arm in arms])
    ctrl_at = np.stack([arm.ctrl for arm in arms])

    def extract(readout: Readout) -> Signals:
        data = readout.sensordata
        axis = data[..., fingers[1]] - data[..., fingers[0]]
        return Signals(
            qpos=readout.qpos[..., qpos_at],
            qvel=readout.qvel[..., qvel_at],
            ctrl=readout.ctrl[..., ctrl_at],
            tip_pos=(data[..., tips[0]] + data[..., tips[1]]) / 2,
            finger_axis=axis / (jnp.linalg.norm(axis, axis=-1, keepdims=True) + 1e-9),
            gripper_mat=geometry.quat_to_mat(data[..., gripper_quat]),
            finger_force=jnp.einsum("aji,...afj->...afi", base_mat, data[..., forces]),
            on_table=(data[..., table] > 0).any(-1),
            object_pos=data[..., object_pos],
            object_mat=geometry.quat_to_mat(data[..., object_quat]),
            object_linvel=data[..., object_linvel],
            object_angvel=data[..., object_angvel],
            grip_pos=data[..., grip_pos],
            peg_end_in_socket=data[..., peg_end]
            if peg_end is not None
            else jnp.zeros((*data.shape[:-1], 3)),
            extra={name: data[..., where] for name, where in further.items()},
        )

    return extract


def upright(signal: Signals) -> Signals:
    """Returns signals [..., A] with each object in the most upright of the four rotations that look alike.

    Sections are square, so a quarter turn about an object's length changes nothing.
    """
    turned = geometry.upright_quarter(signal.object_mat)
    in_base = jnp.einsum(
        "...ij,...j->...i", signal.object_mat[..., 0, :, :], signal.peg_end_in_socket
    )
    peg_end = jnp.einsum("...ji,...j->...i", turned[..., 0, :, :], in_base)
    return signal._replace(object_mat=turned, peg_end_in_socket=peg_end)
