"""Handover: the left arm picks up a block and gives it to the right arm. See docs/adding-a-task.md."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.config import check
from alohas2r.envs.actuation import ControlConfig
from alohas2r.envs.noise import Measured, NoiseConfig, exact
from alohas2r.envs.task import Outcome, Start
from alohas2r.sim import geometry
from alohas2r.sim.objects import TABLE_HEIGHT
from alohas2r.sim.physics_randomization import resize_box
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.protocol import PlainProtocol
from alohas2r.tasks.registry import TaskEntry, register
from alohas2r.tasks.scoring import SuccessScorer
from alohas2r.tasks.single_arm import (
    SINGLE_ARM_OBSERVATION,
    arm_observations,
    grasped,
    slow_joints,
)
from alohas2r.tasks.stages import SecondStage

HALF_SIZE = (0.070, 0.012, 0.012)  # m, of the block, as in the MJCF
GIVER_GRIP = 0.035  # m, from the block's centre to the giver's grip point, along -x
# The raised giver (rad): its gripper 0.15 m above the table, before the middle; how far starts lie about that.
RAISED_ARM, SPREAD = np.array([0.0, -0.332, 0.958, 0, 0, 0]), np.array([0.15, 0.06, 0.06, 0, 0, 0])
GIVING = np.array([0.0, -0.173, 0.813, 0, -0.19, 0])  # either arm where they meet (rad)
FINGERS_ON_BLOCK = 0.0205  # m of travel at which the fingers touch the block's sides
WAIST, DIRECTION_DEG, YAW_DEG = 0.1, 14.5, 5.0  # half ranges about the home pose
REACH = 0.03  # m, farthest that a grip may be from its point
PPO = ("ppo.entropy=0.01,0.002", "ppo.reward_scale=0.05", "ppo.target_kl=0.02,0.008")
QUICK = ("evaluations=1", "evaluation_episodes=32")
FLAGS = ("grasped", "lifted", "both_held", "received", "dropped", "out", "unstable")


@dataclasses.dataclass(frozen=True)
class HandoverConfig:
    """The task.

    Attributes:
      steps: control steps per episode.
      raised: share of the episodes that start with the block raised by the giver, the receiver at home or about to
        take it; the others start on the table.
      radius: range of the distance from the giver's base to the block's centre (m).
      meeting: where the block's centre is to be handed over (m, world).
      mass: range of the block's mass (kg).
      height: height in the world (m) above which the block counts as lifted; below half of it, as dropped.
      clear: least distance of the giver's fingertips from where they held the block (m), for a success.
      hold_steps: steps that the receiver must hold the lifted block alone.
    """

    steps: int = 200
    raised: float = 0.0
    radius: tuple[float, float] = (0.27, 0.42)
    meeting: tuple[float, float, float] = (0.0, -0.019, 0.18)
    mass: tuple[float, float] = (0.04, 0.10)
    height: float = 0.10
    clear: float = 0.03
    hold_steps: int = 10

    def __post_init__(self) -> None:
        check(1 <= self.steps <= 10_000, f"steps must be in 1..10000, not {self.steps}")
        check(0 <= self.raised <= 1, f"raised must be in 0..1, not {self.raised}")


class HandoverState(NamedTuple):
    """One environment's task state."""

    step: jax.Array  # [] int32
    stage: jax.Array  # [] int32, not used
    best: jax.Array  # [] best sum of the progress terms so far; negative before the first step
    lifted: jax.Array  # [] bool, at some time
    alone: jax.Array  # [] int32, steps in a row that the receiver has held the block alone


class HandoverMeasures(NamedTuple):
    """What the scorer and training metrics read, per step."""

    grasped: jax.Array  # [] bool, by the giver at its grip point
    lifted: jax.Array  # [] bool
    both_held: jax.Array  # [] bool
    received: jax.Array  # [] bool, held by the receiver alone, the giver clear of it
    success: jax.Array  # [] bool, so for `hold_steps` in a row
    dropped: jax.Array  # [] bool
    joint_speed: jax.Array  # [] fastest arm joint (rad/s)
    contact_force: jax.Array  # [] largest finger force (N)


class HandoverTask:
    """The task on a scene; pure functions of one environment."""

    action_size = 14
    observation_spec = tuple(
        (f"{side}_{name}", size, unit)
        for side in ("giver", "receiver")
        for name, size, unit in SINGLE_ARM_OBSERVATION
    )
    observation_size = sum(size for _, size, _ in observation_spec)
    extra_sensors: tuple[tuple[str, int], ...] = ()
    context_size = 1  # mass (kg)
    privileged_size = observation_size + 7

    def __init__(self, scene: Scene, config: HandoverConfig):
        self.scene, self.config = scene, config
        self._home = jnp.asarray(scene.home_qpos), jnp.asarray(scene.home_ctrl)
        self._base = jnp.array([arm.base_pos for arm in scene.arms], jnp.float32)
        turns = geometry.quat_to_mat(jnp.array([a.base_quat for a in scene.arms], jnp.float32))
        # The block in its meeting place, in each arm's base frame: it lies along the world's x axis.
        self._target_mat = jnp.swapaxes(turns, 1, 2)
        ways = jnp.array(config.meeting, jnp.float32) - self._base
        self._target_pos = jnp.einsum("aij,aj->ai", self._target_mat, ways)
        self._pool = jnp.array(_raised(scene), jnp.float32)

    def reset(
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[HandoverState, Start]:
        """Draws a start: block on the table, or raised by the giver."""
        config, (left, right) = self.config, self.scene.arms
        (qpos, ctrl), draw = self._home, jax.random.uniform(key, (8,))
        waists = qpos[left.qpos[0]] + WAIST * (2 * draw[:2] - 1)
        for arm, waist in zip((left, right), waists, strict=True):
            qpos, ctrl = qpos.at[arm.qpos[0]].set(waist), ctrl.at[arm.ctrl[0]].set(waist)
        radius = config.radius[0] + draw[2] * (config.radius[1] - config.radius[0])
        angle = self._home[0][left.qpos[0]] + jnp.deg2rad(DIRECTION_DEG) * (2 * draw[3] - 1)
        yaw = angle + jnp.deg2rad(YAW_DEG) * (2 * draw[4] - 1)
        flat = self._base[0] + radius * jnp.stack([jnp.cos(angle), jnp.sin(angle), 0 * angle])
        flat = flat.at[2].set(TABLE_HEIGHT + HALF_SIZE[2])
        lying = qpos.at[left.object_qpos].set(jnp.concatenate([flat, geometry.yaw_quat(yaw)]))
        raised, up = self._pool[(draw[5] * len(self._pool)).astype(int)], draw[6] < config.raised
        held = qpos.at[left.qpos].set(raised[:8]).at[right.qpos].set(raised[8:16])
        held = held.at[left.object_qpos].set(raised[16:23])
        closed = ctrl.at[left.ctrl].set(jnp.append(raised[:6], self.scene.ctrl_low[left.ctrl[6]]))
        closed = closed.at[right.ctrl].set(jnp.append(raised[8:14], raised[23]))
        state = HandoverState(jnp.int32(0), stage, -jnp.ones(()), up, jnp.int32(0))
        return state, Start(qpos=jnp.where(up, held, lying), ctrl=jnp.where(up, closed, ctrl))

    def observation(self, measured: Measured, state: HandoverState) -> jax.Array:
        """Returns both arms' observations [106] of a measurement; the target is the meeting place."""
        return arm_observations(measured, self._target_pos, self._target_mat).reshape(-1)

    def privileged(self, signals: Signals, state: HandoverState, context: jax.Array) -> jax.Array:
        """Returns what the critic sees [113]: the exact observation, and the task's memory."""
        share, best = state.step / self.config.steps, state.best / 30
        task = [share, best, state.lifted, state.alone / 10, *grasped(signals), context[0] / 0.1]
        memory = jnp.stack([jnp.asarray(value, jnp.float32) for value in task])
        return jnp.concatenate([self.observation(exact(signals), state), memory])

    def step(self, signals: Signals, state: HandoverState, context: jax.Array) -> Outcome:
        """Scores a new state; progress is paid once, holding alone in every step."""
        apart = jnp.linalg.norm(signals.tip_pos - signals.grip_pos, axis=-1)  # [2] m
        holding = grasped(signals) & (apart < REACH)
        forces = jnp.linalg.norm(signals.finger_force, axis=-1)  # [2, 2] N
        position, limits = signals.object_pos[0] + self._base[0], self.config  # m, world
        lifted = position[2] > limits.height
        missing = jnp.linalg.norm(self._target_pos[0] - signals.object_pos[0])
        turned = geometry.rotation_angle(signals.object_mat[0], self._target_mat[0])
        near, bring = 1 - jnp.tanh(5 * apart), 1 - jnp.tanh(4 * missing + 0.25 * turned)
        received = holding[1] & lifted & (forces[0].max() < 0.1)
        clear = received & (apart[0] > limits.clear)
        giving = 4 * near[0] + 2 * holding[0] + 3 * (lifted & holding[1])
        giving = giving + 6 * (holding[0] | lifted) * bring * (1 + lifted * near[1])
        total = jnp.where(received, 22 + 6 * jnp.minimum(apart[0] / limits.clear, 1), giving)
        progress = jnp.where(state.best < 0, 0.0, jnp.maximum(total - state.best, 0.0))
        alone, best = jnp.where(clear, state.alone + 1, 0), jnp.maximum(total, state.best)
        success = alone >= limits.hold_steps
        dropped, step = state.lifted & (position[2] < 0.5 * limits.height), state.step + 1
        each = 0.02 * (holding[0] & lifted) + 0.1 * (holding[1] & lifted) + 1.0 * clear
        reward = progress + each + 0.005 * slow_joints(signals.qvel).sum() - 2.0 * dropped
        new = HandoverState(step, state.stage, best, state.lifted | lifted, alone)
        flags = (holding[0], lifted, holding.all(), clear, success, dropped)
        measures = HandoverMeasures(*flags, jnp.abs(signals.qvel[:, :6]).max(), forces.max())
        done = dropped | (jnp.abs(position) > 1.0).any() | (step >= limits.steps)
        return Outcome(new, reward, done, jnp.zeros((), bool), measures)


def _raised(scene: Scene, count: int = 256) -> np.ndarray:
    """Returns starts [count, 24]: qpos of giver [8], receiver [8], block [7]; the receiver's gripper target (m)."""
    model, (giver, receiver), data = scene.model, scene.arms, mujoco.MjData(scene.model)
    random, rows, level = np.random.default_rng(0), [], None
    tips = [model.site(f"{giver.name}/{finger}_fingertip").id for finger in ("left", "right")]
    gripper = model.site(f"{giver.name}/gripper").id
    home, low = scene.home_qpos[receiver.qpos], scene.ctrl_low[receiver.ctrl[6]]
    for number in range(count):
        # Shares of the giver's way to the meeting place, and of the receiver's to the block; there both may hold it.
        giving, noise = min(random.uniform(0, 3), 1.0) * (number > 0), random.uniform(-1, 1, 6)
        taking = np.clip(random.uniform(-0.2, 1.6), 0, 1) * (giving == 1)
        joints = RAISED_ARM + giving * (GIVING - RAISED_ARM)
        joints = joints + (1 - giving) * (number > 0) * noise * SPREAD
        data.qpos[giver.qpos] = [*joints, FINGERS_ON_BLOCK, FINGERS_ON_BLOCK]
        mujoco.mj_kinematics(model, data)
        turn = data.site_xmat[gripper].reshape(3, 3)
        level = turn.copy() if level is None else level  # the first gripper holds the block level
        block, quat = turn @ level.T, np.empty(4)
        mujoco.mju_mat2Quat(quat, block.ravel())
        centre = data.site_xpos[tips].mean(0) + block @ (GIVER_GRIP, 0, 0)
        fingers, target = (FINGERS_ON_BLOCK, low) if taking == 1 else (home[6], home[6])
        other = home[:6] + taking * (GIVING - home[:6])
        other = other + (1 - taking) * WAIST * noise * np.eye(6)[0]
        rows.append([*data.qpos[giver.qpos], *other, fingers, fingers, *centre, *quat, target])
    return np.array(rows)


def _randomize(
    scene: Scene, config: HandoverConfig, draws: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    mass = config.mass[0] + draws[:, 0] * (config.mass[1] - config.mass[0])
    return resize_box(scene, "box", np.tile(HALF_SIZE, (len(mass), 1)), mass), mass[:, None]


HANDOVER_V1 = PlainProtocol("handover-v1", HandoverConfig(), ControlConfig(), NoiseConfig())
ENTRY = register(
    TaskEntry(
        name="handover",
        scene="handover",
        config=HandoverConfig(raised=0.5),
        noise=NoiseConfig(),
        task=HandoverTask,
        randomize=_randomize,
        draws=1,
        protocol=HANDOVER_V1,
        conditions=PlainProtocol.conditions,
        scorer=lambda rules, context: SuccessScorer(
            rules.task.steps, len(context), FLAGS, "received"
        ),
        watched=("success", "held_at_end", "grasped", "lifted", "both_held", "dropped"),
        presets={
            "default": ("total_steps=12e6", "ppo.learning_rate=3e-4", *PPO),
            "quick": ("total_steps=100e3", "ppo.num_envs=128", "checkpoints=5", *QUICK),
        },
        second=SecondStage(),
        view=((0.0, 0.0, 0.12), 1.2, 90.0, -25.0),
    )
)
