"""Insertion episodes in which an object may be missing: what teaches a student not to grasp at thin air.

A held-out object lies behind its arm, out of the cameras' sight; the right action of that arm is to stand still with
an open gripper.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array
from alohas2r.embodiment.control import ACTIONS_PER_ARM
from alohas2r.envs.task import Outcome, Start
from alohas2r.sim.objects import SOCKET_HALF, TABLE_HEIGHT
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.task import InsertState, InsertTask

# Where a held-out object lies on the table, in its arm's base frame (m): behind the arm, beside its base.
AWAY = (-0.08, 0.31)
_LEAD_BACK = (
    0.2  # share of a gripper's way back to open that a step takes; slow enough for delayed actions
)
_STREAM = 0x401D  # of the random numbers that decide what is held out


@dataclasses.dataclass(frozen=True)
class HoldOutConfig:
    """How often objects are missing.

    Attributes:
      probability: of the left and of the right arm's object, independently. Source: the published report.
      one: exactly one object is missing in every episode instead, either one as often as the other.
    """

    probability: tuple[float, float] = (0.07, 0.07)
    one: bool = False

    def __post_init__(self) -> None:
        check(
            0 <= min(self.probability) <= max(self.probability) <= 1,
            f"probability must be two numbers in 0..1, not {self.probability}",
        )


class HoldOutState(NamedTuple):
    """One environment's task state: as InsertState, and what is missing."""

    step: jax.Array  # [] int32
    switched: jax.Array  # [] bool
    held: jax.Array  # [] int32
    lifted: jax.Array  # [2] bool
    stage: jax.Array  # [] int32
    held_out: jax.Array  # [2] bool, left arm's object first


class HoldOutTask(InsertTask):
    """Whole insertion episodes with objects missing at times.

    Args:
      scene: the two-arm scene.
      config: the insertion task.
      hold_out: how often.
    """

    def __init__(self, scene: Scene, config: InsertConfig, hold_out: HoldOutConfig):
        super().__init__(scene, config)
        self.hold_out = hold_out

    def reset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[HoldOutState, Start]:
        """Draws a start as InsertTask does from the same key, then moves away what is held out."""
        state, start = super().reset(key, context, stage)
        drawn = jax.random.uniform(jax.random.fold_in(key, _STREAM), (2,))
        if self.hold_out.one:
            held_out = jnp.stack([drawn[0] < 0.5, drawn[0] >= 0.5])
        else:
            held_out = drawn < jnp.array(self.hold_out.probability)
        qpos = start.qpos
        for index, arm in enumerate(self._arms):
            half = SOCKET_HALF if index == 0 else context[0]
            local = jnp.array([*AWAY, 0.0])
            centre = self._base[index] + self._base_mat[index] @ local
            pose = jnp.concatenate(
                [centre.at[2].set(TABLE_HEIGHT + half), jnp.array(arm.base_quat, jnp.float32)]
            )
            where = np.asarray(arm.object_qpos)
            qpos = qpos.at[where].set(jnp.where(held_out[index], pose, qpos[where]))
        return HoldOutState(*state, held_out=held_out), start._replace(qpos=qpos)

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, signals: Signals, state: HoldOutState, context: jax.Array
    ) -> Outcome:
        """Scores a new state as InsertTask does; what is held out stays so until the reset."""
        outcome = super().step(signals, InsertState(*state[:-1]), context)
        return outcome._replace(state=HoldOutState(*outcome.state, held_out=state.held_out))


def still(
    actions: Array,
    held_out: Array,
    grips: Array,
    open_grip: Array,
    scale: float,
    xp: ModuleType = jnp,
) -> Array:
    """Lets the arms stand still, their grippers open, whose object is missing.

    A student's actions are never exactly zero. Nothing would stop a gripper from closing bit by bit, which is why
    this one is led back.

    Args:
      actions: [..., 14] left arm first. held_out: [..., 2] bool.
      grips: [..., 2] the grippers' targets (m); open_grip: [2] those of the home pose.
      scale: change of a target by a full action.
      xp: numpy or jax.numpy.

    Returns:
      [..., 14]; an action of zero keeps a target where it is.
    """
    back = xp.clip(_LEAD_BACK * (open_grip - grips) / scale, -1.0, 1.0)[..., None]
    rest = xp.zeros((*back.shape[:-1], ACTIONS_PER_ARM - 1), back.dtype)
    quiet = xp.concatenate([rest, back], -1).reshape(*back.shape[:-2], -1)
    return xp.where(xp.repeat(held_out, ACTIONS_PER_ARM, -1), quiet, actions)


def object_in_gripper(signals: Signals) -> jax.Array:
    """Returns where each arm's object is from its fingertips, in the gripper's frame, [..., 2, 3] (m)."""
    apart = signals.object_pos - signals.tip_pos
    return jnp.einsum("...ji,...j->...i", signals.gripper_mat, apart)


def closed_on_air(signals: Signals, empty_travel: float) -> jax.Array:
    """Returns whether a gripper was told to close and has closed on nothing, [..., 2] bool.

    Args:
      signals: the state.
      empty_travel: finger travel (m) below which it holds nothing.
    """
    return (signals.ctrl[..., 6] < empty_travel) & (signals.qpos[..., 6] < empty_travel)
