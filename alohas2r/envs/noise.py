"""Observation noise as a declared table, and the observation delay."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alohas2r.config import check
from alohas2r.embodiment.control import DELAY_WEIGHTS
from alohas2r.sim import geometry
from alohas2r.sim.signals import Signals


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Half widths of uniform noise, drawn anew each step and independently per axis.

    Source: the published report.

    Attributes:
      joint_pos: arm joint positions (rad); the fingers are exact.
      joint_vel: arm joint velocities (rad/s).
      object_pos: object position (m).
      object_linvel: object velocity (m/s).
      object_angvel: object angular velocity (rad/s).
      tip_to_grip: fingertips to grip point (m); the difference of two such draws.
      gripper_angle_deg: the gripper's rotation turns about a random axis by up to this.
      object_angle_deg: the object's likewise.
      delay_weights: relative probability that the observation is 0, 1, 2, ... steps old.
    """

    joint_pos: float = 0.1
    joint_vel: float = 0.1
    object_pos: float = 0.015
    object_linvel: float = 0.015
    object_angvel: float = 0.2
    tip_to_grip: float = 0.015
    gripper_angle_deg: float = 5.0
    object_angle_deg: float = 5.0
    delay_weights: tuple[float, ...] = DELAY_WEIGHTS

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "delay_weights":
                value = getattr(self, field.name)
                check(value >= 0, f"{field.name} must be >= 0, not {value}")
        check(
            len(self.delay_weights) > 0
            and min(self.delay_weights) >= 0
            and sum(self.delay_weights) > 0,
            "delay_weights must be one or more numbers >= 0 with a positive sum",
        )


NONE = NoiseConfig(0, 0, 0, 0, 0, 0, 0, 0, (1.0,))


class Measured(NamedTuple):
    """What the policy may know of one environment's state: signals with noise; A arms."""

    qpos: jax.Array  # [A, 8]
    qvel: jax.Array  # [A, 8]
    ctrl: jax.Array  # [A, 7]
    gripper_mat: jax.Array  # [A, 3, 3]
    object_pos: jax.Array  # [A, 3]
    object_mat: jax.Array  # [A, 3, 3]
    object_linvel: jax.Array  # [A, 3]
    object_angvel: jax.Array  # [A, 3]
    tip_to_grip: jax.Array  # [A, 3] fingertip midpoint minus grip point
    socket_minus_peg: (
        jax.Array
    )  # [3] socket rear minus leading peg end, in the left base frame; zeros in the pick scene


def exact(signals: Signals) -> Measured:
    """Returns the measurement without any noise, for any leading batch axes."""
    return Measured(
        qpos=signals.qpos,
        qvel=signals.qvel,
        ctrl=signals.ctrl,
        gripper_mat=signals.gripper_mat,
        object_pos=signals.object_pos,
        object_mat=signals.object_mat,
        object_linvel=signals.object_linvel,
        object_angvel=signals.object_angvel,
        tip_to_grip=signals.tip_pos - signals.grip_pos,
        socket_minus_peg=-(signals.object_mat[..., 0, :, :] @ signals.peg_end_in_socket[..., None])[
            ..., 0
        ],
    )


def measure(config: NoiseConfig, key: jax.Array, signals: Signals) -> Measured:
    """Adds one draw of the noise to one environment's signals (all measured in one go).

    The peg's end relative to the socket is the difference of two object positions and gets the noise of both.
    """
    clean = exact(signals)
    arms = clean.qpos.shape[0]
    uniform_key, normal_key = jax.random.split(key)
    draws = jax.random.uniform(uniform_key, (arms, 32), minval=-1.0, maxval=1.0)
    gauss = jax.random.normal(normal_key, (arms, 6))
    joints = 6
    mask = jnp.arange(8) < joints
    pad = ((0, 0), (0, 8 - joints))
    turn_gripper = geometry.axis_angle_to_mat(
        geometry.unit_vector(gauss[:, :3]),
        jnp.deg2rad(config.gripper_angle_deg) * jnp.abs(draws[:, 30]),
    )
    turn_object = geometry.axis_angle_to_mat(
        geometry.unit_vector(gauss[:, 3:]),
        jnp.deg2rad(config.object_angle_deg) * jnp.abs(draws[:, 31]),
    )
    shift = config.object_pos * draws[:, 12:15]
    return Measured(
        qpos=clean.qpos + config.joint_pos * mask * jnp.pad(draws[:, 0:6], pad),
        qvel=clean.qvel + config.joint_vel * mask * jnp.pad(draws[:, 6:12], pad),
        ctrl=clean.ctrl,
        gripper_mat=turn_gripper @ clean.gripper_mat,
        object_pos=clean.object_pos + shift,
        object_mat=turn_object @ clean.object_mat,
        object_linvel=clean.object_linvel + config.object_linvel * draws[:, 15:18],
        object_angvel=clean.object_angvel + config.object_angvel * draws[:, 18:21],
        tip_to_grip=clean.tip_to_grip + config.tip_to_grip * (draws[:, 21:24] - draws[:, 24:27]),
        socket_minus_peg=clean.socket_minus_peg
        + config.object_pos * (draws[0, 27:30] - draws[-1, 27:30]) * (arms > 1),
    )


class DelayState(NamedTuple):
    """The last observations of one environment, newest first, and how many are valid."""

    observations: jax.Array  # [delays, n]
    seen: jax.Array  # [] int32


def init_delay(config: NoiseConfig, size: int, longest: int = 0) -> DelayState:
    """Returns the state after a reset; the first observation fills the history.

    Args:
      config: delays of single observations. size: of an observation.
      longest: delay (steps) that a robot may have on top.
    """
    return DelayState(
        jnp.zeros((len(config.delay_weights) + longest, size), jnp.float32),
        jnp.zeros((), jnp.int32),
    )


def delay(
    config: NoiseConfig,
    state: DelayState,
    key: jax.Array,
    observation: jax.Array,
    constant: jax.Array | int = 0,
) -> tuple[DelayState, jax.Array]:
    """Pushes an observation [n] of one environment and returns the one that arrives now [n].

    Args:
      config, state: as from `init_delay`. key: of this step. observation: the newest.
      constant: delay (steps) of this robot on top.
    """
    weights = jnp.array(config.delay_weights) / sum(config.delay_weights)
    steps = jnp.sum(jax.random.uniform(key) > jnp.cumsum(weights)[:-1]) + constant
    observations = jnp.concatenate([observation[None], state.observations[:-1]])
    arrived = observations[jnp.minimum(steps, state.seen)]
    return DelayState(observations, state.seen + 1), arrived
