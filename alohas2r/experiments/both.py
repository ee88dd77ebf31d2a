"""Both arms pick at once, as one task: what symmetric deployment of a single-arm policy avoids.

One policy drives both arms (14 actions, 106 observations) and is paid the sum of both arms' rewards, so that each
arm's success is credited to the other arm's actions as well. Only `contamination.py` uses it.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import PyTree
from alohas2r.envs.noise import Measured
from alohas2r.envs.task import Outcome, Start
from alohas2r.sim import geometry
from alohas2r.sim.objects import TABLE_HEIGHT
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.pick.task import PickState, PickTask
from alohas2r.tasks.single_arm import SINGLE_ARM_OBSERVATION

Arms = TypeVar("Arms", Measured, Signals)


class _OneArm(PickTask):
    """The pick task's formulas on the two-arm scene, in the base frame of either arm."""

    def __init__(self, scene: Scene, config: PickConfig):
        self.config = config
        arm = scene.arms[0]
        self._base = jnp.array(arm.base_pos, jnp.float32)
        self._home_arm = jnp.array(scene.home_qpos[arm.qpos], jnp.float32)
        self._half_length = float(scene.model.geom_size[scene.id("geom", "red_peg"), 0])
        self._crossed = config.crossed_x - float(arm.base_pos[0])


class BothTask:
    """Two pick tasks side by side; the state's leaves have a leading axis of arms."""

    name = "both"
    action_size = 14
    observation_spec = tuple(
        (f"{side}/{name}", size, unit)
        for side in ("left", "right")
        for name, size, unit in SINGLE_ARM_OBSERVATION
    )
    observation_size = 2 * PickTask.observation_size
    extra_sensors: tuple[tuple[str, int], ...] = ()
    context_size = 4  # half side (m) and mass (kg) of each object
    privileged_size = 2 * PickTask.privileged_size

    def __init__(self, scene: Scene, config: PickConfig):
        self.scene = scene
        self.config = config
        self._one = _OneArm(scene, config)

    def reset(
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[PickState, Start]:
        """Draws a start of each arm in its own base frame, by the pick task's distribution."""
        start = self.config.start
        qpos = jnp.array(self.scene.home_qpos, jnp.float32)
        ctrl = jnp.array(self.scene.home_ctrl, jnp.float32)
        states = []
        for index, (arm, arm_key) in enumerate(
            zip(self.scene.arms, jax.random.split(key), strict=True)
        ):
            draw = jax.random.uniform(arm_key, (7,))
            waist = start.waist[0] + draw[0] * (start.waist[1] - start.waist[0])
            radius = start.radius[0] + draw[1] * (start.radius[1] - start.radius[0])
            low, high = np.deg2rad(start.angle_deg)
            angle = low + draw[2] * (high - low)
            yaw = angle + np.deg2rad(start.yaw_deg) * (2 * draw[3] - 1)
            base = jnp.array(arm.base_pos, jnp.float32)
            quat = jnp.array(arm.base_quat, jnp.float32)
            local = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), 0.0])
            height = TABLE_HEIGHT + context[2 * index]
            centre = (base + geometry.quat_to_mat(quat) @ local).at[2].set(height)
            pose = jnp.concatenate([centre, geometry.quat_multiply(quat, geometry.yaw_quat(yaw))])
            qpos = qpos.at[np.asarray(arm.object_qpos)].set(pose).at[int(arm.qpos[0])].set(waist)
            ctrl = ctrl.at[int(arm.ctrl[0])].set(waist)
            target = (
                jnp.array(start.target) - self._one._base + start.target_range * (2 * draw[4:7] - 1)
            )
            zero, best, reached = jnp.zeros((), jnp.int32), -jnp.ones(()), jnp.zeros((), bool)
            kept = jnp.broadcast_to(stage, (2,))[index]
            states.append(PickState(zero, target, height - base[2], best, reached, kept))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), Start(qpos=qpos, ctrl=ctrl)

    def observation(self, measured: Measured, state: PickState) -> jax.Array:
        """Returns both arms' observations [106]."""
        axes = _per_arm(Measured, "socket_minus_peg")
        one = jax.vmap(
            lambda m, s: self._one.observation(_as_single(m, "socket_minus_peg"), s),
            in_axes=(axes, 0),
        )
        return one(measured, state).reshape(-1)

    def privileged(self, signals: Signals, state: PickState, context: jax.Array) -> jax.Array:
        """Returns both arms' privileged views [130]."""
        one = jax.vmap(
            lambda s, t, c: self._one.privileged(_as_single(s, "peg_end_in_socket"), t, c),
            in_axes=(_per_arm(Signals, "peg_end_in_socket"), 0, 0),
        )
        return one(signals, state, context.reshape(2, 2)).reshape(-1)

    def step(self, signals: Signals, state: PickState, context: jax.Array) -> Outcome:
        """Scores both arms; the reward is the sum, and the episode ends when either arm's does."""
        one = jax.vmap(
            lambda s, t, c: self._one.step(_as_single(s, "peg_end_in_socket"), t, c),
            in_axes=(_per_arm(Signals, "peg_end_in_socket"), 0, 0),
        )
        new, reward, done, truncated, measures = one(signals, state, context.reshape(2, 2))
        return Outcome(new, reward.sum(), done.any(), truncated.any(), measures)


def _per_arm(kind: type[Measured] | type[Signals], shared: str) -> PyTree:
    """Returns the axes to map over: arms, but for the one field that both arms share."""
    return kind._make(None if name == shared else 0 for name in kind._fields)


def _as_single(item: Arms, shared: str) -> Arms:
    """Gives one arm's slice the leading arm axis that the pick task expects."""
    return item._make(
        value if name in (shared, "extra") else value[None]
        for name, value in item._asdict().items()
    )
