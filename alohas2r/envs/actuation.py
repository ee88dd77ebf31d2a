"""From actions in [-1, 1] to actuator targets: the one definition for training, evaluation and robot."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alohas2r.config import check
from alohas2r.embodiment.control import (
    ACTION_SCALE,
    ACTIONS_PER_ARM,
    DELAY_WEIGHTS,
    next_target,
)
from alohas2r.sim.variation import Held, undo


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """How actions move the targets.

    Attributes:
      scale: change of a target by a full action (rad; m for the gripper).
      delay_weights: relative probability of a delay by 0, 1, 2, ... steps, drawn anew each step.
      gripper_delay_steps: the gripper's delay is uniform on 0 .. this.
      extra_delay_steps: constant delay on top.
    """

    scale: float = ACTION_SCALE
    delay_weights: tuple[float, ...] = DELAY_WEIGHTS
    gripper_delay_steps: int = 3
    extra_delay_steps: int = 0

    def __post_init__(self) -> None:
        check(0 < self.scale <= 0.1, f"scale must be in (0, 0.1], not {self.scale}")
        check(
            len(self.delay_weights) > 0
            and min(self.delay_weights) >= 0
            and sum(self.delay_weights) > 0,
            "delay_weights must be one or more numbers >= 0 with a positive sum",
        )
        check(0 <= self.gripper_delay_steps <= 20, "gripper_delay_steps must be in 0..20")
        check(0 <= self.extra_delay_steps <= 20, "extra_delay_steps must be in 0..20")

    @property
    def history(self) -> int:
        """Number of past actions that must be kept, the newest included."""
        return max(len(self.delay_weights), self.gripper_delay_steps + 1) + self.extra_delay_steps


IDEAL = ControlConfig(delay_weights=(1.0,), gripper_delay_steps=0)


class ControlState(NamedTuple):
    """Past actions of one environment, newest first, zeros after a reset; past targets where robots vary."""

    actions: jax.Array  # [history, A * 7]


def init(config: ControlConfig, actions: int) -> ControlState:
    """Returns the state after a reset for `actions` numbers per step."""
    return ControlState(jnp.zeros((config.history, actions), jnp.float32))


def init_targets(config: ControlConfig, longest: int, targets: jax.Array) -> ControlState:
    """Returns the state after a reset of a robot that varies: the targets [A * 7], all along.

    Args:
      config: delays of single steps. longest: delay (steps) that a robot may have on top.
      targets: in terms of readings.
    """
    return ControlState(jnp.tile(targets, (config.history + longest, 1)))


def commanded(
    config: ControlConfig,
    state: ControlState,
    key: jax.Array,
    action: jax.Array,
    held: Held,
    limits: tuple[jax.Array, jax.Array],
    position: jax.Array,
) -> tuple[ControlState, jax.Array]:
    """Moves the targets of one robot that varies, and returns what its actuators get now.

    The policy's side counts in readings, as on a robot: its targets move at once, and arrive late as a whole. What
    arrives is off by the robot's calibration, and moves nothing within its backlash.

    Args:
      config: delays of single steps. state: past targets. key: of this step. action: [A * 7] in [-1, 1].
      held: of the robot. limits: [A * 7] least and largest target. position: [A * 7] where joints are.

    Returns:
      The new state and the actuators' targets [A * 7].
    """
    target = next_target(state.actions[0], action, *limits, config.scale)
    targets = jnp.concatenate([target[None], state.actions[:-1]])
    arm, gripper = _delays(config, key, action.shape[0] // ACTIONS_PER_ARM)
    arrived = undo(held, _arrived(targets, arm + held.action_delay, gripper + held.action_delay))
    play = held.backlash / 2
    return ControlState(targets), arrived - jnp.clip(arrived - position, -play, play)


def delayed(
    config: ControlConfig, state: ControlState, key: jax.Array, action: jax.Array
) -> tuple[ControlState, jax.Array]:
    """Pushes an action and returns the one that takes effect now, for one environment.

    Args:
      config: delays.
      state: past actions.
      key: random key of this step.
      action: [A * 7] in [-1, 1].

    Returns:
      The new state and the effective action [A * 7]; all arm joints share one delay, each gripper has its own.
    """
    actions = jnp.concatenate([action[None], state.actions[:-1]])
    arm, gripper = _delays(config, key, action.shape[0] // ACTIONS_PER_ARM)
    return ControlState(actions), _arrived(actions, arm, gripper)


def _delays(config: ControlConfig, key: jax.Array, arms: int) -> tuple[jax.Array, jax.Array]:
    """Returns this step's delays: of all arm joints [], and of each gripper [A]."""
    arm_key, gripper_key = jax.random.split(key)
    weights = jnp.array(config.delay_weights) / sum(config.delay_weights)
    drawn = jax.random.uniform(arm_key)
    arm = jnp.sum(drawn > jnp.cumsum(weights)[:-1]) + config.extra_delay_steps
    gripper = jax.random.randint(gripper_key, (arms,), 0, config.gripper_delay_steps + 1)
    return arm, gripper + config.extra_delay_steps


def _arrived(past: jax.Array, arm: jax.Array, gripper: jax.Array) -> jax.Array:
    """Returns what of the past [history, A * 7] has arrived [A * 7], by delays of the arm joints and grippers."""
    arms = gripper.shape[0]
    effective = past[arm].reshape(arms, ACTIONS_PER_ARM)
    of_gripper = past.reshape(-1, arms, ACTIONS_PER_ARM)[gripper, jnp.arange(arms), -1]
    return effective.at[:, -1].set(of_gripper).reshape(-1)
