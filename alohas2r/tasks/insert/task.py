"""Insert: two arms, one holds the socket, the other brings in the peg.

Source of the rules: the published report. The same task serves whole episodes from the home pose (evaluation,
distillation, collecting switch states) and insertion training, whose episodes start from a pool of switch states. Pure
functions of one environment.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.envs.noise import Measured, exact
from alohas2r.envs.task import Now, Outcome, Start
from alohas2r.sim import geometry
from alohas2r.sim.objects import HALF_LENGTH, HOLE_HALF, SOCKET_HALF, TABLE_HEIGHT
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.grasping import GraspGuide
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.guide import Guide, Sizes
from alohas2r.tasks.single_arm import (
    LIFTED,
    SINGLE_ARM_OBSERVATION,
    arm_observations,
    grasped,
    home_pose,
    slow_joints,
)

OBSERVATION = (
    *((f"left/{name}", size, unit) for name, size, unit in SINGLE_ARM_OBSERVATION),
    *((f"right/{name}", size, unit) for name, size, unit in SINGLE_ARM_OBSERVATION),
    ("socket_rear_minus_peg_end_in_left_base", 3, "m"),
)
SINGLE = sum(size for _, size, _ in SINGLE_ARM_OBSERVATION)

_DEEP = -0.034  # m; no deeper insertion is rewarded, because it brings the grippers together
_BEYOND = 0.008  # m that is rewarded beyond what counts as inserted, where that depends on the peg's length

# Capsules around what two grippers could meet with: start, end, radius (m), in the gripper's frame (forward, left,
# up) from the midpoint of the fingertips. The fingers' move sideways with the finger travel.
# Source: extents of the parts of the published model.
CAPSULES = (
    ((-0.129, -0.015, 0.093), (-0.129, 0.015, 0.093), 0.031),
    ((-0.143, -0.020, 0.060), (-0.143, 0.020, 0.060), 0.020),
    ((-0.089, -0.055, 0.003), (-0.089, 0.055, 0.003), 0.030),
    ((-0.060, 0.006, 0.003), (-0.002, 0.006, 0.003), 0.018),
    ((-0.060, -0.006, 0.003), (-0.002, -0.006, 0.003), 0.018),
)
# Sensors of the contact scene: whether a hand touches the other hand's object, and the net force (N).
HAND_ON_OTHER = ("left/hand_on_peg_force", "right/hand_on_socket_force")
# What a metre of finger travel moves each of them to the left (m).
_FINGER_SIDE = (0.0, 0.0, 0.0, 1.0, -1.0)


class InsertState(NamedTuple):
    """One environment's task state."""

    step: jax.Array  # [] int32
    switched: jax.Array  # [] bool
    held: jax.Array  # [] int32 consecutive steps inserted
    lifted: jax.Array  # [2] bool, ever lifted and above fall_height
    stage: jax.Array  # [] int32, unused; kept so that tasks have the same interface


class InsertMeasures(NamedTuple):
    """What evaluation and training metrics read, per step."""

    grasped: jax.Array  # [2] bool
    lifted: jax.Array  # [2] bool
    switched: jax.Array  # [] bool
    entered: jax.Array  # [] bool
    in_place: jax.Array  # [] bool, this step
    inserted: jax.Array  # [] bool, for hold_steps
    dropped: jax.Array  # [2] bool, an object that was lifted lies low again
    tip_error: jax.Array  # [2] m
    peg_end: jax.Array  # [3] m, in the socket's frame
    arm_distance: jax.Array  # [] m, least distance between the grippers; negative: they meet
    joint_speed: jax.Array  # [] rad/s
    contact_force: jax.Array  # [] N
    success: jax.Array  # [] bool, as inserted
    reached: jax.Array  # [] bool
    stage: jax.Array  # [] int32
    hand_on_other: jax.Array  # [] largest force between a hand and the other hand's object (N)


class Fit(NamedTuple):
    """How the peg stands to the socket in one environment."""

    end: jax.Array  # [3] its leading end in the socket's frame (m)
    angle: jax.Array  # [] between the axes (rad)
    tip_error: jax.Array  # [2] of the fingertips from the grip points (m)
    deep: jax.Array | float  # depth up to which the insertion is rewarded (m)
    entered: jax.Array  # [] bool
    in_place: jax.Array  # [] bool


class Pool(NamedTuple):
    """Switch states by physics variant: [V, S, ...]; environment i uses variant i.

    What is remembered of observations, from `delay` on, is None for policies that begin without.
    """

    qpos: Array
    qvel: Array
    ctrl: Array
    actions: Array
    delay: Array | None
    delay_count: Array | None
    averages: Array | None
    seen: Array | None


class InsertTask:
    """The task on a scene; see the module.

    Args:
      scene: the two-arm scene.
      config: the task.
      pool: switch states to start from; None to start whole episodes from the home pose.
    """

    name = "insert"
    action_size = 14
    observation_spec = OBSERVATION
    observation_size = sum(size for _, size, _ in OBSERVATION)
    privileged_size = observation_size + 28

    def __init__(self, scene: Scene, config: InsertConfig, pool: Pool | None = None):
        self.scene = scene
        self.config = config
        # Half side of the peg (m), index of the physics variant; half length of the peg, half width of the hole (m).
        self.context_size = 4 if config.sized else 2
        self.pool = pool
        self.extra_sensors: tuple[tuple[str, int], ...] = tuple(
            (name, 4) for name in HAND_ON_OTHER if name in scene.sensors
        )
        self._arms = scene.arms
        self._base = jnp.array([arm.base_pos for arm in scene.arms], jnp.float32)
        self._base_mat = geometry.quat_to_mat(
            jnp.array([arm.base_quat for arm in scene.arms], jnp.float32)
        )
        self._home_qpos = jnp.array(scene.home_qpos, jnp.float32)
        self._home_ctrl = jnp.array(scene.home_ctrl, jnp.float32)
        self._home_arm = jnp.stack([self._home_qpos[arm.qpos] for arm in scene.arms])
        targets = jnp.array(config.start.targets) - self._base
        self.targets = jnp.einsum(
            "aji,aj->ai", self._base_mat, targets
        )  # [2, 3] each in its base frame

    def reset(
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[InsertState, Start]:
        """Draws a start: from the pool of switch states if there is one, else from the home pose.

        Args:
          key: random key.
          context: [2], or [4] where objects are of any size.
          stage: ignored.
        """
        if self.pool is not None:
            return self._reset_from_pool(key, context)
        start = self.config.start
        draw = jax.random.uniform(key, (2, 4), minval=-1.0, maxval=1.0)
        qpos, ctrl = self._home_qpos, self._home_ctrl
        for index, arm in enumerate(self._arms):
            home = self._home_arm[index, 0]
            waist = home + start.waist * draw[index, 0]
            radius = start.radius[0] + (draw[index, 1] + 1) / 2 * (
                start.radius[1] - start.radius[0]
            )
            angle = home + math.radians(start.angle_deg) * draw[index, 2]
            yaw = angle + math.radians(start.yaw_deg) * draw[index, 3]
            half = SOCKET_HALF if index == 0 else context[0]
            local = jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle), jnp.zeros(())])
            centre = (
                (self._base[index] + self._base_mat[index] @ local).at[2].set(TABLE_HEIGHT + half)
            )
            quat = geometry.quat_multiply(
                jnp.array(arm.base_quat, jnp.float32), geometry.yaw_quat(yaw)
            )
            qpos = qpos.at[np.asarray(arm.qpos)[0]].set(waist)
            qpos = qpos.at[np.asarray(arm.object_qpos)].set(jnp.concatenate([centre, quat]))
            ctrl = ctrl.at[int(arm.ctrl[0])].set(waist)
        return self._state(jnp.zeros((), bool)), Start(qpos=qpos, ctrl=ctrl)

    def _state(self, switched: jax.Array) -> InsertState:
        zero = jnp.zeros((), jnp.int32)
        return InsertState(zero, switched, zero, jnp.broadcast_to(switched, (2,)), zero)

    def _reset_from_pool(self, key: jax.Array, context: jax.Array) -> tuple[InsertState, Start]:
        assert self.pool is not None
        variant = context[1].astype(jnp.int32)
        index = jax.random.randint(key, (), 0, self.pool.qpos.shape[1])
        row = jax.tree.map(lambda x: x[variant, index], self.pool)
        return self._state(jnp.ones((), bool)), Start(
            qpos=row.qpos,
            ctrl=row.ctrl,
            qvel=row.qvel,
            actions=row.actions,
            delay=row.delay,
            delay_count=row.delay_count,
            averages=row.averages,
            seen=row.seen,
        )

    def observation(self, measured: Measured, state: InsertState) -> jax.Array:
        """Returns the observation [109]: both pick observations and socket rear minus peg end."""
        single = arm_observations(measured, self.targets, jnp.eye(3))
        return jnp.concatenate([single.reshape(-1), measured.socket_minus_peg])

    def privileged(self, signals: Signals, state: InsertState, context: jax.Array) -> jax.Array:
        """Returns what the critic sees [137]: the exact observation, geometry of the insertion, physics, time."""
        end = signals.peg_end_in_socket
        held = grasped(signals).astype(jnp.float32)
        forces = jnp.linalg.norm(signals.finger_force, axis=-1).reshape(-1) / 10
        socket = signals.object_mat[0]
        peg = self._base_mat[1] @ signals.object_mat[1]
        extra = jnp.concatenate(
            [
                end,
                jnp.linalg.norm(end[1:], keepdims=True),
                socket[:, 0],
                peg[:, 0],
                socket.T @ peg[:, 0],
                held,
                forces,
                signals.object_pos.reshape(-1),
                jnp.stack(
                    [state.held / 5.0, context[0] / 0.02 - 1, state.step / self.config.steps]
                ),
            ]
        )
        return jnp.concatenate([self.observation(exact(signals), state), extra])

    @functools.cached_property
    def _guides(self) -> tuple[GraspGuide, Guide]:
        return GraspGuide(self.scene), Guide(self.scene)

    def guide(self, now: Now, state: InsertState, context: jax.Array, scale: float) -> jax.Array:
        """Returns what the controllers would do [14], see `envs.task.Guided`.

        That of `tasks.grasping` until the switch, then that of `insert.guide`.
        """
        half_length, hole = HALF_LENGTH, HOLE_HALF
        if self.config.sized:
            half_length, hole = context[2], context[3]
        sizes = Sizes(context[0], half_length, hole, self._goal(context)[1])
        lifting, inserting = self._guides
        picking = lifting.action(
            now.signals,
            self.targets,
            jnp.stack([jnp.float32(SOCKET_HALF), context[0]]),
            scale,
            now.under_way,
        )
        inserted = inserting.action(now.qpos, sizes, scale, now.under_way)
        return jnp.where(state.switched, inserted, picking)

    def _goal(self, context: jax.Array) -> tuple[jax.Array | float, jax.Array | float]:
        """Returns half the width of the section (m) and the depth in the socket (m) that count as inserted."""
        config = self.config
        if config.inside > 0:
            return context[3], HALF_LENGTH - 2 * config.inside * context[2]
        return config.hole, config.inserted_x

    def _fit(self, signals: Signals, context: jax.Array) -> Fit:
        """Returns how the peg stands to the socket."""
        config = self.config
        end = signals.peg_end_in_socket
        tip_error = jnp.linalg.norm(signals.tip_pos - signals.grip_pos, axis=-1)
        hole, inserted_x = self._goal(context)
        deep = inserted_x - _BEYOND if config.inside > 0 else _DEEP
        section = (jnp.abs(end[1:]) <= hole).all()
        entered = section & (end[0] <= HALF_LENGTH) & (end[0] > -0.06)
        in_place = (
            section
            & (end[0] <= inserted_x)
            & (end[0] > -0.06)
            & (tip_error <= config.grip_distance).all()
        )
        return Fit(end, self._axis_angle(signals), tip_error, deep, entered, in_place)

    def step(self, signals: Signals, state: InsertState, context: jax.Array) -> Outcome:
        """Scores a new state."""
        config, weight = self.config, self.config.reward
        end, angle, tip_error, deep, entered, in_place = self._fit(signals, context)
        lateral = jnp.linalg.norm(end[1:])
        held = jnp.where(in_place, state.held + 1, 0)
        height = signals.object_pos[:, 2] + self._base[:, 2]
        rest = TABLE_HEIGHT + jnp.stack([jnp.asarray(SOCKET_HALF), context[0]])
        lifted = height > rest + LIFTED
        heights = signals.tip_pos[:, 2] + self._base[:, 2]
        switched = config.switch.update(
            state.switched, heights, signals.qpos[:, 6], signals.ctrl[:, 6], jnp
        )
        # On its way up an object is lifted before it is above the height below which it counts as fallen.
        carried = state.lifted | (lifted & (height >= config.fall_height))
        fallen = carried & (height < config.fall_height)

        align = 1 / (1 + (lateral / 0.02) ** 2 + (angle / 0.2) ** 2)
        gate = jnp.where(
            entered,
            1.0,
            jnp.clip(1.5 - lateral / 0.02, 0.0, 1.0) * jnp.clip(1.5 - angle / 0.4, 0.0, 1.0),
        )
        depth = jnp.clip(1 - jnp.maximum(end[0] - deep, 0.0) / 0.25, 0.0, 1.0)
        rotation = geometry.rotation_angle(signals.object_mat, jnp.eye(3))
        distance = self._arm_distance(signals)
        hand_on_other = self._hand_on_other(signals)
        step = state.step + 1
        timeout = step >= config.steps
        reward = (
            weight.align * align
            + weight.depth * depth * gate
            + weight.inserted * in_place
            + weight.finish * timeout * (0.2 * depth * gate + 0.8 * in_place)
            + weight.grip * (1 - jnp.tanh(5 * tip_error)).mean() * (tip_error < 0.05).all()
            + weight.level * (1 - jnp.tanh(2 * rotation)).mean()
            + weight.slow * slow_joints(signals.qvel).mean()
            + weight.home * home_pose(signals.qpos, self._home_arm).mean()
            + weight.near * jnp.clip(1 - distance / weight.near_distance, 0.0, 2.0)
            + weight.pushed * jnp.minimum(hand_on_other / weight.pushed_force, 1.0)
        )
        object_world = jnp.einsum("aij,aj->ai", self._base_mat, signals.object_pos) + self._base
        out = (jnp.abs(object_world) > 1.0).any()
        if self.pool is None:
            done, truncated = timeout | out, timeout
        else:
            lost = fallen.any() | ~switched | (rotation > math.radians(config.tilt_deg)).any()
            reward = reward + weight.dropped * lost
            done = timeout | out | lost
            # Where the last step is paid for, the end is an end: the critic sees the time.
            truncated = timeout & ~(out | lost) & (weight.finish == 0)
        new = InsertState(step, switched, held, carried, state.stage)
        inserted = held >= config.hold_steps
        measures = InsertMeasures(
            grasped=grasped(signals),
            lifted=lifted,
            switched=switched,
            entered=entered,
            in_place=in_place,
            inserted=inserted,
            dropped=fallen,
            tip_error=tip_error,
            peg_end=end,
            arm_distance=distance,
            joint_speed=jnp.abs(signals.qvel[:, :6]).max(),
            contact_force=jnp.linalg.norm(signals.finger_force, axis=-1).max(),
            success=inserted,
            reached=entered,
            stage=state.stage,
            hand_on_other=hand_on_other,
        )
        return Outcome(new, reward, done, truncated, measures)

    def _hand_on_other(self, signals: Signals) -> jax.Array:
        """Largest force between a hand and the other hand's object (N); 0 in a scene where they do not touch."""
        if not self.extra_sensors:
            return jnp.zeros(())
        forces = jnp.stack([signals.extra[name][1:] for name, _ in self.extra_sensors])
        return jnp.linalg.norm(forces, axis=-1).max()

    def _axis_angle(self, signals: Signals) -> jax.Array:
        """Angle between the peg's and the socket's axis (rad)."""
        socket_axis = signals.object_mat[0][:, 0]
        peg_axis = (self._base_mat[1] @ signals.object_mat[1])[:, 0]
        cosine = -(socket_axis * peg_axis).sum()
        return jnp.arctan2(jnp.linalg.norm(jnp.cross(socket_axis, peg_axis)), cosine)

    def _arm_distance(self, signals: Signals) -> jax.Array:
        """Least distance between the capsules around the two grippers and their cameras (m)."""
        ends = jnp.array([[start, end] for start, end, _ in CAPSULES])  # [K, 2, 3]
        radius = jnp.array([radius for _, _, radius in CAPSULES])
        aside = jnp.array(_FINGER_SIDE)[:, None, None] * jnp.array([0.0, 1.0, 0.0])
        placed = []
        for index in range(2):
            local = ends + aside * signals.qpos[index, 6]
            local = local @ signals.gripper_mat[index].T + signals.tip_pos[index]
            placed.append(local @ self._base_mat[index].T + self._base[index])
        left, right = placed[0][:, None], placed[1][None]
        apart = geometry.segment_distance(*_ends(left), *_ends(right))
        return (apart - radius[:, None] - radius[None]).min()


def _ends(segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    return segments[..., 0, :], segments[..., 1, :]


def single_arm_features(features: Array, arm: int, rates: int) -> Array:
    """Cuts one arm's pick features out of the two-arm features.

    Args:
      features: [..., (1 + rates) * 109]. arm: 0 left, 1 right. rates: number of moving averages.

    Returns:
      [..., (1 + rates) * 53], as the pick policy takes them.
    """
    lead = features.shape[:-1]
    bank = features.reshape(*lead, 1 + rates, -1)
    return bank[..., arm * SINGLE : (arm + 1) * SINGLE].reshape(*lead, -1)
