"""Proximal policy optimization (Schulman et al. 2017) with an asymmetric critic and an adaptive step size.

The policy sees delayed, noisy, filtered observations; the critic sees the exact state. The step size follows the
measured KL divergence between old and new policy (as in the RSL-RL and Isaac Gym learners), which needs no tuning
between phases.
"""

from __future__ import annotations

import copy
import functools
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from brax.training import distribution
from brax.training.acme import running_statistics, specs

from alohas2r.core.types import PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState, Guided, Scored
from alohas2r.errors import ConfigError
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.gae import generalized_advantages
from alohas2r.learning.ppo.loss import clipped_loss, step_size
from alohas2r.learning.ppo.spread import AXIS, BY_ROW, BY_STEP, WHOLE, Spread, mean
from alohas2r.policies.networks import mlp
from alohas2r.sim.signals import Readout

ACTING, LEARNING, WORLDS = 0, 1, 2  # streams of random keys


class LearnerState(NamedTuple):
    """All that learning changes, as plain arrays."""

    params: PyTree  # {"policy": ..., "value": ...}
    optimizer: PyTree
    policy_stats: PyTree  # running mean and std of the features
    value_stats: PyTree  # of the privileged view
    learning_rate: jax.Array  # []
    key: jax.Array
    updates: jax.Array  # [] int32
    start: PyTree | None = (
        None  # parameters of the policy that reinforcement began with, if it matters
    )


class Rollout(NamedTuple):
    """One unroll, [T, N, ...]."""

    features: jax.Array
    privileged: jax.Array
    raw_action: jax.Array  # before tanh
    log_prob: jax.Array
    logits: jax.Array
    reward: jax.Array
    done: jax.Array
    truncated: jax.Array
    # Of a policy that sees.
    depth: jax.Array | None = None  # [T, N, C, H, W] uint16, see `envs.vision.pack_depth`
    objects: jax.Array | None = None  # [T, N, C, 3] where they are in the gripper's frame (m)
    sighted: jax.Array | None = None  # [T, N, C] bool, whether they are in the camera's sight
    wanted: jax.Array | None = None  # [T, N, A] what a teacher, or a guide, would have done


class Ppo:
    """The learner for an environment.

    Args:
      config: hyperparameters.
      env: environments to learn in.
      spread: the processes that learn together, each in environments of its own; None for this one alone.

    Raises:
      ConfigError: a guide is to be imitated, and the task has none.
    """

    def __init__(self, config: PpoConfig, env: Env, spread: Spread | None = None):
        if config.guided and not isinstance(env.task, Guided):
            raise ConfigError("ppo.guide needs a task that has a guide: 'pick' or 'insert'.")
        self.config, self.spread = config, spread
        self.env = env
        actions = env.task.action_size
        self.distribution = distribution.NormalTanhDistribution(event_size=actions)
        self.policy = mlp.policy_network(config.network, actions)
        self.value = mlp.value_network(config.network)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.max_gradient), optax.scale_by_adam(eps=1e-5)
        )
        self.act = jax.jit(self._act)
        self._update_at_once = jax.jit(self._update)
        if spread is not None:
            self._update_at_once = jax.jit(
                jax.shard_map(
                    self._update,
                    mesh=spread.mesh,
                    in_specs=(WHOLE, BY_STEP, BY_ROW, WHOLE),
                    out_specs=(WHOLE, WHOLE),
                    check_vma=False,
                )
            )
        self._privileged = jax.jit(lambda state, readout: env.observe(state, readout)[2])
        self._unroll = jax.jit(self._unroll_traced)
        self._stack = jax.jit(lambda items: jax.tree.map(lambda *leaves: jnp.stack(leaves), *items))

    def init(self, key: jax.Array) -> LearnerState:
        """Returns the state before the first update."""
        policy_key, value_key, key = jax.random.split(key, 3)
        features, privileged = self.env.features, self.env.privileged_size
        params = {
            "policy": self.policy.init(policy_key, jnp.zeros((1, features))),
            "value": self.value.init(value_key, jnp.zeros((1, privileged))),
        }
        state = LearnerState(
            params=params,
            optimizer=self.optimizer.init(params),
            policy_stats=running_statistics.init_state(specs.Array((features,), jnp.float32)),
            value_stats=running_statistics.init_state(specs.Array((privileged,), jnp.float32)),
            learning_rate=jnp.array(self.config.learning_rate, jnp.float32),
            key=key,
            updates=jnp.zeros((), jnp.int32),
        )
        # Plain numbers among the statistics become arrays, so that a checkpoint restores the same types.
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, getattr(leaf, "dtype", jnp.float32)), state
        )

    def beside(self, env: Env) -> Self:
        """Returns the same learner for other environments like these, not on a traceable engine.

        It uses what this one compiles, so whatever differs between the environments must be in their states.
        """
        other = copy.copy(self)
        other.env = env
        return other

    def logits(self, params: PyTree, stats: PyTree, features: jax.Array) -> jax.Array:
        """Returns what the policy's network says of features [..., F]."""
        inputs = mlp.normalize(features, stats.mean, stats.std)
        return mlp.apply(self.policy, params["policy"], inputs)

    def values(self, params: PyTree, stats: PyTree, privileged: jax.Array) -> jax.Array:
        """Returns what the critic says of the views [..., P]."""
        inputs = mlp.normalize(privileged, stats.mean, stats.std)
        return mlp.apply(self.value, params["value"], inputs)[..., 0]

    def _act(
        self, params: PyTree, stats: PyTree, state: EnvState, readout: Readout, key: jax.Array
    ) -> tuple[EnvState, dict[str, jax.Array], jax.Array]:
        wanted = self.env.guided(state, readout) if self.config.guided else None
        state, features, privileged = self.env.observe(state, readout)
        logits = self.logits(params, stats, features)
        raw = self.distribution.sample_no_postprocessing(logits, key)
        log_prob = self.distribution.log_prob(logits, raw)
        state, ctrl = self.env.control(state, readout, jnp.tanh(raw))
        step = {
            "features": features,
            "privileged": privileged,
            "raw_action": raw,
            "log_prob": log_prob,
            "logits": logits,
        }
        if wanted is not None:
            step["wanted"] = wanted
        return state, step, ctrl

    def rollout(
        self, learner: LearnerState, env_state: EnvState, physics: PyTree, readout: Readout
    ) -> tuple[Rollout, jax.Array, EnvState, PyTree, Readout, list[Scored]]:
        """Collects one unroll.

        Returns:
          The rollout, the critic's view after it [N, P], the environments' state, physics, readout, and each
          step's `Scored`. Where the engine is traceable the whole runs on the device, and of the scores there is
          only the last step's, but `finite` of all steps [T, N].

        Raises:
          ModelError: something did not fit into the engine's buffers.
        """
        if self.env.engine.traceable:
            rollout, final, env_state, physics, readout, scored, _ = self._unroll(
                learner, env_state, physics, readout
            )
            self.env.engine.check(physics)
            return rollout, final, env_state, physics, readout, [scored]
        steps, scores = [], []
        for key in self.acting_keys(learner):
            env_state, step, ctrl = self.act(
                learner.params, learner.policy_stats, env_state, readout, key
            )
            env_state, physics, readout, scored = self.env.advance(env_state, physics, ctrl)
            steps.append(
                {
                    **step,
                    "reward": scored.reward,
                    "done": scored.done,
                    "truncated": scored.truncated,
                }
            )
            scores.append(scored)
        final = self._privileged(env_state, readout)
        return Rollout(**self._stack(steps)), final, env_state, physics, readout, scores

    def targets(
        self, learner: LearnerState, env_state: EnvState, physics: PyTree, readout: Readout
    ) -> jax.Array:
        """Returns the actuator targets [T, N, nu] of an unroll on a traceable engine, as `rollout` makes it."""
        return self._unroll(learner, env_state, physics, readout)[-1]

    def acting_keys(self, learner: LearnerState) -> jax.Array:
        """Returns the random keys [T, 2] of an unroll's steps."""
        key = jax.random.fold_in(jax.random.fold_in(learner.key, ACTING), learner.updates)
        return jax.random.split(key, self.config.unroll)

    def _unroll_traced(
        self, learner: LearnerState, env_state: EnvState, physics: PyTree, readout: Readout
    ) -> tuple[Rollout, jax.Array, EnvState, PyTree, Readout, Scored, jax.Array]:
        """One unroll inside `jax.jit`; returns as `rollout`, and the actuator targets [T, N, nu]."""

        def one(carry: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
            env_state, physics, readout = carry
            env_state, step, ctrl = self._act(
                learner.params, learner.policy_stats, env_state, readout, key
            )
            env_state, physics, readout, scored = self.env.advance_traced(env_state, physics, ctrl)
            step |= {"reward": scored.reward, "done": scored.done, "truncated": scored.truncated}
            return (env_state, physics, readout), (step, scored, ctrl)

        carry, (steps, scores, ctrl) = jax.lax.scan(
            one, (env_state, physics, readout), self.acting_keys(learner)
        )
        env_state, physics, readout = carry
        final = self.env.observe(env_state, readout)[2]
        last: Scored = jax.tree.map(lambda leaf: leaf[-1], scores)
        last = last._replace(finite=scores.finite)
        return Rollout(**steps), final, env_state, physics, readout, last, ctrl

    def update(
        self, learner: LearnerState, rollout: Rollout, final: jax.Array, progress: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Learns from an unroll.

        Args:
          learner: the state. rollout: the unroll. final: [N, P] the critic's view after it.
          progress: [] share of the training that is behind.

        Returns:
          The new state, and figures.
        """
        spread = self.spread
        if spread is None:
            return self._update_at_once(learner, rollout, final, progress)
        given = spread.put(learner, WHOLE), spread.put(rollout, BY_STEP), spread.put(final, BY_ROW)
        return spread.own(self._update_at_once(*given, np.float32(progress)))

    def prepare(
        self, learner: LearnerState, rollout: Rollout, final: jax.Array
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree, jax.Array]:
        """Turns an unroll into what a loss takes (traceable).

        Args:
          learner: the state. rollout: the unroll. final: [N, P] the critic's view after it.

        Returns:
          Rows [T, N, ...] by name; the new statistics of policy and critic; and [] the share of the returns' variance
          that the critic explains.
        """
        config = self.config
        axis = None if self.spread is None else AXIS
        policy_stats = running_statistics.update(
            learner.policy_stats, rollout.features, pmap_axis_name=axis
        )
        value_stats: PyTree = running_statistics.update(
            learner.value_stats, rollout.privileged, pmap_axis_name=axis
        )
        # The policy is judged by the statistics it acted with; the critic uses the new ones throughout.
        values = self.values(learner.params, value_stats, rollout.privileged)
        bootstrap = self.values(learner.params, value_stats, final)
        # An episode that was only cut off goes on: the value before its last step stands for the one after it.
        rewards = (
            rollout.reward * config.reward_scale + config.discount * values * rollout.truncated
        )
        advantages, returns = generalized_advantages(
            rewards, rollout.done, values, bootstrap, config.discount, config.gae
        )
        explained = mean(1 - jnp.var(returns - values) / (jnp.var(returns) + 1e-8), self.spread)
        middle, deviation = advantages.mean(), advantages.std()
        if self.spread is not None:
            middle = mean(middle, self.spread)
            deviation = jnp.sqrt(mean(jnp.square(advantages - middle).mean(), self.spread))
        advantages = (advantages - middle) / (deviation + 1e-8)
        stats = learner.policy_stats
        rows = {
            "features": mlp.normalize(rollout.features, stats.mean, stats.std),
            "privileged": mlp.normalize(rollout.privileged, value_stats.mean, value_stats.std),
            "raw_action": rollout.raw_action,
            "log_prob": rollout.log_prob,
            "logits": rollout.logits,
            "advantage": advantages,
            "return": returns,
        }
        if config.guided and rollout.wanted is not None:
            rows["guided"] = rollout.wanted
        return rows, policy_stats, value_stats, explained

    def _update(
        self, learner: LearnerState, rollout: Rollout, final: jax.Array, progress: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        config = self.config
        rows, policy_stats, value_stats, explained = self.prepare(learner, rollout, final)
        size = rollout.reward.size
        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), rows)
        entropy_weight = config.entropy[0] + progress * (config.entropy[1] - config.entropy[0])
        guide_weight = config.guide[0] + progress * (config.guide[1] - config.guide[0])
        target_kl = config.target_kl[0] + progress * (config.target_kl[1] - config.target_kl[0])
        key = jax.random.fold_in(jax.random.fold_in(learner.key, LEARNING), learner.updates)

        def minibatch(carry: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
            params, optimizer, rate = carry
            indices, noise_key = inputs
            batch = jax.tree.map(lambda x: x[indices], flat)
            (_, figures), gradient = jax.value_and_grad(self._loss, has_aux=True)(
                params, batch, noise_key, entropy_weight, guide_weight
            )
            gradient, figures = mean((gradient, figures), self.spread)
            rate = step_size(config, rate, figures["loss/kl"], target_kl)
            updates, optimizer = self.optimizer.update(gradient, optimizer, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, optimizer, rate), figures

        permute_keys, noise_keys = jnp.split(
            jax.random.split(key, 2 * config.epochs).reshape(2 * config.epochs, 2), 2
        )
        order = jax.vmap(lambda k: jax.random.permutation(k, size))(permute_keys)
        order = order.reshape(config.epochs * config.minibatches, -1)
        noise_keys = jax.vmap(lambda k: jax.random.split(k, config.minibatches))(
            noise_keys
        ).reshape(-1, 2)
        carry = (learner.params, learner.optimizer, learner.learning_rate)
        (params, optimizer, rate), figures = jax.lax.scan(minibatch, carry, (order, noise_keys))
        metrics = {name: value.mean() for name, value in figures.items()}
        metrics["loss/kl_last"] = figures["loss/kl"][-1]
        metrics |= {
            "loss/learning_rate": rate,
            "loss/explained_variance": explained,
            "train/reward": mean(rollout.reward.mean(), self.spread),
        }
        learner = LearnerState(
            params, optimizer, policy_stats, value_stats, rate, learner.key, learner.updates + 1
        )
        return learner, metrics

    def _loss(
        self,
        params: PyTree,
        batch: dict[str, jax.Array],
        noise_key: jax.Array,
        entropy_weight: jax.Array,
        guide_weight: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a minibatch, and figures."""
        logits = mlp.apply(self.policy, params["policy"], batch["features"])
        value = mlp.apply(self.value, params["value"], batch["privileged"])[..., 0]
        return clipped_loss(
            self.config,
            self.distribution,
            logits,
            value,
            batch,
            noise_key,
            entropy_weight,
            guide_weight,
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _deterministic(
    ppo: Ppo, env: Env, params: PyTree, stats: PyTree, state: EnvState, readout: Readout
) -> PyTree:
    state, features, _ = env.observe(state, readout)
    logits = ppo.logits(params, stats, features)
    return env.control(state, readout, ppo.distribution.mode(logits))


def rollout_measures(ppo: Ppo, env: Env, learner: LearnerState, keys: jax.Array) -> list[Scored]:
    """Runs the deterministic policy for one episode in every environment of `env` and returns each step's scores."""
    state, physics, readout = env.reset(keys)
    scores = []
    for _ in range(env.task.config.steps):
        state, ctrl = _deterministic(ppo, env, learner.params, learner.policy_stats, state, readout)
        state, physics, readout, scored = env.advance(state, physics, ctrl)
        scores.append(jax.tree.map(np.asarray, scored._replace(reset_qpos=0, reset_ctrl=0)))
    return scores
