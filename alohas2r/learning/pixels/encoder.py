"""What looks at pictures learns to tell where the block is before anything acts on it, of pictures at random poses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import PyTree
from alohas2r.embodiment.joints import ARM_JOINTS
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState, Scored
from alohas2r.envs.vision import Senses, SensesState
from alohas2r.learning.pixels.learner import PixelPpo, Weights
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.learner import LearnerState, Rollout
from alohas2r.learning.ppo.spread import Spread
from alohas2r.sim.signals import Readout

REACH = 0.35  # rad; by up to how much a joint is beside where it starts
OPENING = (0.0, 0.04)  # m; range of the fingers' travel


class EncoderLearner(PixelPpo):
    """The same learner, whose environments are pictures: each step is another start, with the arm somewhere else.

    Only what the pictures must tell is learnt, so neither what acts on them nor the critic changes.

    Args:
      config, env, senses, auxiliary, spread: as `PixelPpo`.
    """

    def __init__(
        self,
        config: PpoConfig,
        env: Env,
        senses: Senses,
        auxiliary: float,
        spread: Spread | None = None,
    ):
        super().__init__(config, env, senses, auxiliary, spread)
        self._draw_poses = jax.jit(self._poses)

    def look_and_roll(
        self,
        learner: LearnerState,
        state: EnvState,
        physics: PyTree,
        readout: Readout,
        sense: SensesState,
    ) -> tuple[Rollout, jax.Array, tuple[EnvState, PyTree, Readout, SensesState], list[Scored]]:
        """Collects as many pictures as an unroll has steps; returns as `PixelPpo` does, with rewards of 0."""
        count = self.env.num_envs
        every, nothing, steps = np.ones(count, bool), jnp.zeros(count), []
        for key in self.acting_keys(learner):
            qpos, ctrl = (np.asarray(part) for part in self._draw_poses(key, self.env.context))
            physics, readout = self.env.engine.reset(physics, every, qpos, ctrl)
            sense = self.senses.restart_some(sense, jnp.asarray(every))
            drawn = self.senses.draw(sense, readout.qpos)
            state, sense, step, _ = self.look_and_act(learner, state, readout, sense, drawn, key)
            steps.append({**step, "reward": nothing, "done": nothing, "truncated": nothing})
        final, (_, scored) = self.critic_view(state, readout), self.env.score_jit(state, readout)
        return Rollout(**self.together(steps)), final, (state, physics, readout, sense), [scored]

    def loss(
        self,
        params: PyTree,
        batch: dict[str, jax.Array],
        key: jax.Array,
        weights: Weights,
        start: PyTree | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns what the pictures tell wrongly, and all figures."""
        _, figures = super().loss(params, batch, key, weights, start)
        return figures["loss/objects"] + figures["loss/sighted"], figures

    def _poses(self, key: jax.Array, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns poses [N, nq] and targets [N, nu]: starts of the task, with joints and fingers moved at random."""
        task, count = self.env.task, len(context)
        start_key, joint_key, finger_key = jax.random.split(key, 3)
        stage = jnp.zeros(count, jnp.int32)
        keys = jax.random.split(start_key, count)
        _, start = jax.vmap(task.reset)(keys, context, stage)
        qpos, ctrl = start.qpos, start.ctrl
        shape = count, len(task.scene.arms)
        beside = jax.random.uniform(
            joint_key, (*shape, len(ARM_JOINTS)), minval=-REACH, maxval=REACH
        )
        travel = jax.random.uniform(finger_key, shape, minval=OPENING[0], maxval=OPENING[1])
        for index, arm in enumerate(task.scene.arms):
            joints, fingers = arm.qpos[: len(ARM_JOINTS)], arm.qpos[len(ARM_JOINTS) :]
            qpos = qpos.at[:, joints].add(beside[:, index])
            qpos = qpos.at[:, fingers].set(travel[:, index, None])
        return qpos, ctrl
