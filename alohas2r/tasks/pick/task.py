"""Pick: one arm lifts a block and brings it to a target.

Source of the rules: the published report. Everything is a pure function of one environment; `Env` maps it over the
batch.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.envs.noise import Measured, exact
from alohas2r.envs.task import Now, Outcome, Start
from alohas2r.sim import geometry
from alohas2r.sim.objects import TABLE_HEIGHT
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.grasping import GraspGuide
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.single_arm import (
    LIFTED,
    SINGLE_ARM_OBSERVATION,
    arm_observations,
    grasped,
    home_pose,
    slow_joints,
)


class PickState(NamedTuple):
    """One environment's task state."""

    step: jax.Array  # [] int32 control steps since the reset
    target_pos: jax.Array  # [3] in the arm's base frame (m)
    start_height: jax.Array  # [] block's centre at the start, base frame (m)
    best: jax.Array  # [] best sum of the progress terms so far; negative before the first step
    reached: jax.Array  # [] bool
    stage: jax.Array  # [] int32 curriculum stage; survives resets


class PickMeasures(NamedTuple):
    """What evaluation and training metrics read, per step."""

    position_error: jax.Array  # [] m
    rotation_error: jax.Array  # [] rad, geodesic
    reached: jax.Array  # [] bool
    grasped: jax.Array  # [] bool
    lifted: jax.Array  # [] bool
    crossed: jax.Array  # [] bool
    success: jax.Array  # [] bool, by the stage's thresholds
    stage: jax.Array  # [] int32
    joint_speed: jax.Array  # [] fastest arm joint (rad/s)
    contact_force: jax.Array  # [] largest finger force (N)


class PickTask:
    """The task on a scene; see the module."""

    name = "pick"
    action_size = 7
    observation_spec = SINGLE_ARM_OBSERVATION
    observation_size = sum(size for _, size, _ in SINGLE_ARM_OBSERVATION)
    extra_sensors: tuple[tuple[str, int], ...] = ()
    context_size = 2  # half side (m), mass (kg)
    privileged_size = observation_size + 12

    def __init__(self, scene: Scene, config: PickConfig):
        self.scene = scene
        self.config = config
        arm = scene.arms[0]
        self._base = jnp.array(arm.base_pos, jnp.float32)
        self._qpos = np.asarray(arm.qpos)
        self._object = np.asarray(arm.object_qpos)
        self._home_qpos = jnp.array(scene.home_qpos, jnp.float32)
        self._home_ctrl = jnp.array(scene.home_ctrl, jnp.float32)
        self._home_arm = self._home_qpos[self._qpos]
        self._half_length = float(scene.model.geom_size[scene.id("geom", "box"), 0])
        self._crossed = config.crossed_x - float(arm.base_pos[0])

    def reset(
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[PickState, Start]:
        """Draws a start.

        Args:
          key: random key.
          context: [2] half side and mass of this environment's block.
          stage: [] curriculum stage to keep.

        Returns:
          The task state and the start.
        """
        start = self.config.start
        draw = jax.random.uniform(key, (7,))

        def between(index: int, low: float, high: float) -> jax.Array:
            return low + draw[index] * (high - low)

        waist = between(0, *start.waist)
        radius = between(1, *start.radius)
        angle = jnp.deg2rad(between(2, *start.angle_deg))
        yaw = angle + jnp.deg2rad(between(3, -start.yaw_deg, start.yaw_deg))
        height = TABLE_HEIGHT + context[0]
        centre = jnp.stack(
            [
                self._base[0] + radius * jnp.cos(angle),
                self._base[1] + radius * jnp.sin(angle),
                height,
            ]
        )
        qpos = self._home_qpos.at[self._qpos[0]].set(waist)
        qpos = qpos.at[self._object].set(jnp.concatenate([centre, geometry.yaw_quat(yaw)]))
        ctrl = self._home_ctrl.at[0].set(waist)
        target = jnp.array(start.target) + start.target_range * (2 * draw[4:7] - 1)
        state = PickState(
            step=jnp.zeros((), jnp.int32),
            target_pos=target - self._base,
            start_height=height - self._base[2],
            best=-jnp.ones(()),
            reached=jnp.zeros((), bool),
            stage=stage,
        )
        return state, Start(qpos=qpos, ctrl=ctrl)

    def observation(self, measured: Measured, state: PickState) -> jax.Array:
        """Returns the policy's observation [53] of a measurement."""
        return arm_observations(measured, state.target_pos, jnp.eye(3))[0]

    def privileged(self, signals: Signals, state: PickState, context: jax.Array) -> jax.Array:
        """Returns what the critic sees [65]: the exact observation, the block, and the task's memory."""
        config = self.config
        memory = jnp.stack(
            [
                context[0] / 0.03,
                context[1] / 0.1,
                state.step / config.steps,
                state.best / 10,
                state.reached.astype(jnp.float32),
                state.stage / config.stages,
                grasped(signals)[0].astype(jnp.float32),
                signals.on_table[0].astype(jnp.float32),
                signals.object_pos[0, 2] - state.start_height,
            ]
        )
        return jnp.concatenate(
            [self.observation(exact(signals), state), memory, signals.object_pos[0]]
        )

    @functools.cached_property
    def _guide(self) -> GraspGuide:
        return GraspGuide(self.scene)

    def guide(self, now: Now, state: PickState, context: jax.Array, scale: float) -> jax.Array:
        """Returns what the controller of `tasks.grasping` would do [7], see `envs.task.Guided`."""
        target, half = state.target_pos[None], context[:1]
        return self._guide.action(now.signals, target, half, scale, now.under_way)

    def thresholds(self, stage: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the success thresholds of a stage: position (m) and angle (rad)."""
        config = self.config
        share = jnp.minimum(stage, config.stages - 1) / max(config.stages - 1, 1)
        position = config.position_mm[0] + share * (config.position_mm[1] - config.position_mm[0])
        angle = config.angle_deg[0] + share * (config.angle_deg[1] - config.angle_deg[0])
        return position / 1000, jnp.deg2rad(angle)

    def step(self, signals: Signals, state: PickState, context: jax.Array) -> Outcome:
        """Scores a new state; no episode is cut off by time alone: the critic sees the time, the end is an end."""
        config, weight = self.config, self.config.reward
        object_pos, object_mat = signals.object_pos[0], signals.object_mat[0]
        tip_error = jnp.linalg.norm(signals.tip_pos[0] - signals.grip_pos[0])
        position_error = jnp.linalg.norm(state.target_pos - object_pos)
        angle_error = geometry.rotation_angle(object_mat, jnp.eye(3))
        rows_error = jnp.linalg.norm(jnp.eye(3)[:2] - object_mat[:2])
        reached = state.reached | (tip_error < config.reach_distance)
        holding = grasped(signals)[0]
        held_right = holding & (tip_error < config.reach_distance)
        lifted = object_pos[2] > state.start_height + LIFTED
        position_limit, angle_limit = self.thresholds(state.stage)
        success = (position_error < position_limit) & (angle_error < angle_limit)
        share = config.rotation_weight
        bring = 1 - jnp.tanh(5 * ((1 - share) * position_error + share * rows_error))
        total = (
            weight.reach * (1 - jnp.tanh(5 * tip_error))
            + weight.bring * bring * reached
            + weight.lifted * lifted
            + weight.grasped * held_right
            + weight.success * success
        )
        first = state.best < 0
        progress = jnp.where(first, 0.0, jnp.maximum(total - state.best, 0.0))
        forces = jnp.linalg.norm(signals.finger_force[0], axis=-1)
        force = jnp.minimum(forces.sum(), 7.0) / 7.0
        wide = 1 / (1 + (position_error / 0.10) ** 2 + (angle_error / 0.50) ** 2)
        narrow = 1 / (1 + (position_error / 0.012) ** 2 + (angle_error / 0.10) ** 2)
        crossed = object_pos[0] + self._half_length * object_mat[0, 0] > self._crossed
        step = state.step + 1
        out = (jnp.abs(object_pos + self._base) > 1.0).any()
        finished = step >= config.steps
        reward = (
            progress
            + (weight.hold + weight.finish * finished) * lifted * 0.5 * (wide + narrow)
            + weight.stay * success
            + weight.grip * (holding & lifted) / (1 + (tip_error / 0.01) ** 2)
            + weight.finger_force * force * holding
            + weight.pressed * jnp.minimum(forces.max() / weight.pressed_force, 1.0) * ~holding
            + weight.no_table * ~signals.on_table[0]
            + weight.slow * slow_joints(signals.qvel[0])
            + weight.home * home_pose(signals.qpos[0], self._home_arm)
            + weight.crossed * crossed
        )
        done = crossed | out | finished
        stage = jnp.minimum(state.stage + (success & finished), config.stages - 1)
        new = PickState(
            step,
            state.target_pos,
            state.start_height,
            jnp.maximum(total, state.best),
            reached,
            stage,
        )
        measures = PickMeasures(
            position_error=position_error,
            rotation_error=angle_error,
            reached=reached,
            grasped=held_right,
            lifted=lifted,
            crossed=crossed,
            success=success,
            stage=stage,
            joint_speed=jnp.abs(signals.qvel[0, :6]).max(),
            contact_force=forces.max(),
        )
        return Outcome(new, reward, done, jnp.zeros((), bool), measures)
