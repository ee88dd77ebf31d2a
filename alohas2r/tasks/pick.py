"""Pick: one arm lifts a block and brings it to a target. Source: recipe, section 3.

Everything is a pure function of one environment; `env.py` maps it over the batch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import geometry
from alohas2r.config import check
from alohas2r.env import Start
from alohas2r.noise import Measured, exact
from alohas2r.randomize import BlockConfig
from alohas2r.scene import Scene
from alohas2r.signals import Signals

TABLE_HEIGHT = 0.0008  # m. Source: recipe, section 1.
SINGLE_ARM_OBSERVATION = (
    ("joint_pos", 8, "rad, m"),
    ("joint_vel", 8, "rad/s, m/s"),
    ("object_linvel_in_base", 3, "m/s"),
    ("object_angvel_in_base", 3, "rad/s"),
    ("gripper_rotation_rows_2_3_in_base", 6, "1"),
    ("object_rotation_rows_2_3_in_base", 6, "1"),
    ("fingertips_minus_grip_point_in_base", 3, "m"),
    ("target_minus_object_in_base", 3, "m"),
    ("target_minus_object_rotation_rows_1_2_in_base", 6, "1"),
    ("target_ctrl_minus_joint_pos", 7, "rad, m"),
)


@dataclasses.dataclass(frozen=True)
class PickStart:
    """Distribution of starts and targets.

    Attributes:
      waist: range of the waist angle (rad); the other joints start as in keyframe home.
      radius: range of the distance from the arm's base to the block's centre (m).
      angle_deg: range of the block's direction, seen from the base, from the base's x axis.
      yaw_deg: the block's yaw is its direction plus or minus this.
      target: centre of the target's box in the world (m); target_range: its half size per axis.
    """

    waist: tuple[float, float] = (-0.2, 0.45)
    radius: tuple[float, float] = (0.20, 0.45)
    angle_deg: tuple[float, float] = (-25.0, 35.0)
    yaw_deg: float = 5.0
    target: tuple[float, float, float] = (-0.10, 0.0, 0.25)
    target_range: float = 0.1

    def __post_init__(self) -> None:
        check(0.15 <= self.radius[0] <= self.radius[1] <= 0.6, "radius must lie in 0.15..0.6 m")
        check(self.angle_deg[0] <= self.angle_deg[1], "angle_deg must be (low, high)")
        check(self.waist[0] <= self.waist[1], "waist must be (low, high)")
        check(0 <= self.target_range <= 0.3, "target_range must lie in 0..0.3 m")


@dataclasses.dataclass(frozen=True)
class PickReward:
    """Weights of the reward terms.

    The first five are paid only for progress: each step pays how far their sum exceeds its best so far. The
    others are paid every step.

    Attributes:
      reach: fingertips close to the grip point.
      bring: block close to the target, once the grip point has been reached.
      lifted: block's centre 5 cm above its start.
      grasped: both fingers press on the block, at its grip point.
      success: block within the thresholds of the curriculum stage.
      hold: every step: lifted block close to the target, on a wide and a narrow scale.
      stay: every step: success by the thresholds of the curriculum stage.
      grip: every step: a lifted block held close to its grip point; held near an edge it creeps out of the fingers.
      finger_force: every step: finger force when grasped, up to 7 N.
      no_table: every step: no contact of fingers or gripper with the table.
      slow: every step: slow joints.
      home: every step: near the home pose.
      finish: once, in the last step: lifted block close to the target, on the same scales as `hold`. Paid at the
        same time however long the grasp takes, so that it rewards a sure grasp rather than a quick one.
      crossed: paid once when the far end of the block crosses the middle of the table; ends the episode.
    """

    reach: float = 4.0
    bring: float = 16.0
    lifted: float = 0.5
    grasped: float = 0.5
    success: float = 0.5
    hold: float = 0.25
    stay: float = 0.1
    grip: float = 0.0
    finger_force: float = 0.007
    no_table: float = 0.005
    slow: float = 0.005
    home: float = 0.001
    finish: float = 0.0
    crossed: float = -1.0


@dataclasses.dataclass(frozen=True)
class PickConfig:
    """The pick task.

    Attributes:
      steps: control steps per episode.
      start: distribution of starts.
      block: distribution of blocks.
      reward: weights.
      rotation_weight: of the rotation error against the position error in `bring`.
      stages: number of curriculum stages; position_mm and angle_deg: first and last thresholds.
      reach_distance: distance at which the grip point counts as reached (m).
      crossed_x: where the far end of the block must not go (m, world).
    """

    steps: int = 160
    start: PickStart = PickStart()
    block: BlockConfig = BlockConfig()
    reward: PickReward = PickReward()
    rotation_weight: float = 0.23
    stages: int = 5
    position_mm: tuple[float, float] = (40.0, 5.0)
    angle_deg: tuple[float, float] = (15.0, 2.5)
    reach_distance: float = 0.015
    crossed_x: float = 0.073

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 10_000, f"steps must be in 1..10000, not {self.steps}")
        check(1 <= self.stages <= 100, f"stages must be in 1..100, not {self.stages}")
        check(0 <= self.rotation_weight <= 1, "rotation_weight must be in [0, 1]")


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


def grasped(signals: Signals, minimum: float = 2.5, angle_deg: float = 75.0) -> jax.Array:
    """Returns [..., A]: both fingers press with at least `minimum` N along the line between them.

    Source: recipe, section 3 (2.5 N, within 75 deg of the line between the fingers).
    """
    force = signals.finger_force
    size = jnp.linalg.norm(force, axis=-1)
    inward = jnp.stack([signals.finger_axis, -signals.finger_axis], -2)
    aligned = (force * inward).sum(-1) > math.cos(math.radians(angle_deg)) * size
    return ((size > minimum) & aligned).all(-1)


def slow_joints(qvel: jax.Array, bound: float = 0.5, margin: float = 2.0) -> jax.Array:
    """Reciprocal tolerance of the joint speeds' norm [..., n] -> [...]: 1 up to the bound, 0.1 at bound + margin.

    Source: dm_control rewards.tolerance, sigmoid "reciprocal", value_at_margin 0.1.
    """
    speed = jnp.linalg.norm(qvel, axis=-1)
    return 1 / (1 + 9 * jnp.maximum(speed - bound, 0) / margin)


def home_pose(qpos: jax.Array, home: jax.Array) -> jax.Array:
    """Returns 1 - tanh |qpos - home| over the last axis."""
    return 1 - jnp.tanh(jnp.linalg.norm(qpos - home, axis=-1))


def single_arm_observation(
    qpos: jax.Array,
    qvel: jax.Array,
    ctrl: jax.Array,
    linvel: jax.Array,
    angvel: jax.Array,
    gripper_mat: jax.Array,
    object_mat: jax.Array,
    tip_to_grip: jax.Array,
    object_pos: jax.Array,
    target_pos: jax.Array,
    target_mat: jax.Array,
) -> jax.Array:
    """Assembles one arm's observation, `SINGLE_ARM_OBSERVATION` [..., 53], all in its base frame."""
    lead = qpos.shape[:-1]
    difference = target_mat[..., :2, :] - object_mat[..., :2, :]
    return jnp.concatenate(
        [
            qpos,
            qvel,
            linvel,
            angvel,
            gripper_mat[..., 1:, :].reshape(*lead, 6),
            object_mat[..., 1:, :].reshape(*lead, 6),
            tip_to_grip,
            target_pos - object_pos,
            jnp.broadcast_to(difference, (*object_mat.shape[:-2], 2, 3)).reshape(*lead, 6),
            ctrl - qpos[..., :7],
        ],
        -1,
    )


class PickTask:
    """The task on a scene; see the module."""

    name = "pick"
    action_size = 7
    observation_spec = SINGLE_ARM_OBSERVATION
    observation_size = sum(size for _, size, _ in SINGLE_ARM_OBSERVATION)
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
        return single_arm_observation(
            measured.qpos[0],
            measured.qvel[0],
            measured.ctrl[0],
            measured.object_linvel[0],
            measured.object_angvel[0],
            measured.gripper_mat[0],
            measured.object_mat[0],
            measured.tip_to_grip[0],
            measured.object_pos[0],
            state.target_pos,
            jnp.eye(3),
        )

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

    def thresholds(self, stage: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the success thresholds of a stage: position (m) and angle (rad)."""
        config = self.config
        share = jnp.minimum(stage, config.stages - 1) / max(config.stages - 1, 1)
        position = config.position_mm[0] + share * (config.position_mm[1] - config.position_mm[0])
        angle = config.angle_deg[0] + share * (config.angle_deg[1] - config.angle_deg[0])
        return position / 1000, jnp.deg2rad(angle)

    def step(
        self, signals: Signals, state: PickState, context: jax.Array
    ) -> tuple[PickState, jax.Array, jax.Array, jax.Array, PickMeasures]:
        """Scores a new state.

        Returns:
          The task state, the reward [], whether the episode ends [] (time-out included), whether it was cut off by
          time alone [] (never: the critic sees the time, so that the end is an end), and the measures.
        """
        config, weight = self.config, self.config.reward
        object_pos, object_mat = signals.object_pos[0], signals.object_mat[0]
        tip_error = jnp.linalg.norm(signals.tip_pos[0] - signals.grip_pos[0])
        position_error = jnp.linalg.norm(state.target_pos - object_pos)
        angle_error = geometry.rotation_angle(object_mat, jnp.eye(3))
        rows_error = jnp.linalg.norm(jnp.eye(3)[:2] - object_mat[:2])
        reached = state.reached | (tip_error < config.reach_distance)
        holding = grasped(signals)[0]
        held_right = holding & (tip_error < config.reach_distance)
        lifted = object_pos[2] > state.start_height + 0.05
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
        force = jnp.minimum(jnp.linalg.norm(signals.finger_force[0], axis=-1).sum(), 7.0) / 7.0
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
            contact_force=jnp.linalg.norm(signals.finger_force[0], axis=-1).max(),
        )
        return new, reward, done, jnp.zeros((), bool), measures
