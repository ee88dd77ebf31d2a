"""PPO from pictures: the policy sees late, noisy wrist depth and its joints, the critic the exact state.

Each minibatch is a call of its own: inside a compiled loop XLA's gradients of pictures are slow on a CPU.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from brax.training.acme import running_statistics, specs

from alohas2r.core.types import Array, PyTree
from alohas2r.envs import student_step
from alohas2r.envs.env import Env
from alohas2r.envs.student_step import Drawn, Observed
from alohas2r.envs.task import EnvState, Scored
from alohas2r.envs.vision import Senses, SensesState, pack_depth, unpack_depth
from alohas2r.learning.pixels.sight import Sight, object_in_gripper
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.learner import LEARNING, LearnerState, Ppo, Rollout
from alohas2r.learning.ppo.loss import clipped_loss, step_size
from alohas2r.learning.ppo.spread import BY_ROW, BY_STEP, WHOLE, Spread, mean
from alohas2r.policies.networks import mlp
from alohas2r.policies.networks import vision as vision_network
from alohas2r.sim.signals import Readout


class Learnt(NamedTuple):
    """What a minibatch changes, and what it began with."""

    params: PyTree
    optimizer: PyTree
    rate: jax.Array  # []
    start: PyTree | None = None  # as in `LearnerState`


class Weights(NamedTuple):
    """What the minibatches of an update go by, [] each; None where it plays no part."""

    entropy: Array
    target_kl: Array
    tether: Array | None = None  # weight of the divergence from where reinforcement began
    acts: Array | None = None  # bool, whether the policy learns, and not the critic alone
    rate: Array | None = None  # the step size


class Minibatches(NamedTuple):
    """What an update goes through."""

    rows: dict[str, jax.Array]  # [T * N, ...]
    order: jax.Array  # [epochs * minibatches, B] which rows
    keys: jax.Array  # [epochs * minibatches, 2]
    value_stats: PyTree
    policy_stats: PyTree
    explained: jax.Array  # [] share of the returns' variance that the critic explains


class PixelPpo(Ppo):
    """The learner for environments with senses.

    Args:
      config: hyperparameters. env: environments to learn in. senses: the policy's in them.
      auxiliary: weight of telling from the pictures where the objects are.
      spread: the processes that learn together; None for this one alone.

    Attributes:
      sight: what says whether objects are in sight.
    """

    def __init__(
        self,
        config: PpoConfig,
        env: Env,
        senses: Senses,
        auxiliary: float,
        spread: Spread | None = None,
    ):
        super().__init__(config, env, spread)
        self.senses, self.spec, self.auxiliary = senses, senses.spec, auxiliary
        self.sight = Sight(env.task.scene, self.spec.cameras)
        self.look_and_act = jax.jit(self._seen_and_acted)
        self.critic_view = jax.jit(lambda state, readout: env.observe(state, readout)[2])
        self.together = jax.jit(
            lambda items: jax.tree.map(lambda *leaves: jnp.stack(leaves), *items)
        )
        self._prepare = jax.jit(self._prepared)
        self._step = jax.jit(self._one_step)
        if spread is not None:
            shared = Minibatches._make([BY_ROW, *[WHOLE] * (len(Minibatches._fields) - 1)])
            self._prepare = jax.jit(
                jax.shard_map(
                    self._prepared,
                    mesh=spread.mesh,
                    in_specs=(WHOLE, BY_STEP, BY_ROW),
                    out_specs=shared,
                    check_vma=False,
                )
            )
            self._step = jax.jit(
                jax.shard_map(
                    self._one_step,
                    mesh=spread.mesh,
                    in_specs=(WHOLE, BY_ROW, WHOLE, WHOLE, WHOLE),
                    out_specs=(WHOLE, WHOLE),
                    check_vma=False,
                )
            )
        self._means = jax.jit(
            lambda rows: jax.tree.map(lambda *values: jnp.stack(values).mean(), *rows)
        )

    def with_senses(self, senses: Senses) -> Self:
        """Returns the same learner with the senses of other environments; see `beside`."""
        other = copy.copy(self)
        other.senses = senses
        return other

    def init(self, key: jax.Array) -> LearnerState:
        """Returns the state before the first update."""
        policy_key, value_key, key = jax.random.split(key, 3)
        privileged = self.env.privileged_size
        start = vision_network.init(self.spec, policy_key, self.auxiliary > 0, ahead=1)
        params = {
            "policy": start["head"],
            "value": self.value.init(value_key, jnp.zeros((1, privileged))),
        }
        state = LearnerState(
            params=params,
            optimizer=self.optimizer.init(params),
            policy_stats=running_statistics.init_state(
                specs.Array((self.spec.features,), jnp.float32)
            ),
            value_stats=running_statistics.init_state(specs.Array((privileged,), jnp.float32)),
            learning_rate=jnp.array(self.config.learning_rate, jnp.float32),
            key=key,
            updates=jnp.zeros((), jnp.int32),
        )
        # Plain numbers among the statistics become arrays, so that a checkpoint restores the same types.
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, getattr(leaf, "dtype", jnp.float32)), state
        )

    def outputs(
        self, params: PyTree, depth: jax.Array, features: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the distribution's parameters [B, 2 n], and what is told of the objects [B, C, 4].

        The means stand where a student has its action, the spreads where it has that of the next step.

        Args:
          params: of the policy. depth: [B, C, H, W] m. features: [B, F] normalized.
        """
        told = self.auxiliary > 0
        return vision_network.head(self.spec, params, None, depth, features, None, told, ahead=1)

    def seen_outputs(
        self, params: PyTree, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the same of a minibatch's rows, by all parameters."""
        return self.outputs(params["policy"], unpack_depth(batch["depth"]), batch["features"])

    def _seen_and_acted(
        self,
        learner: LearnerState,
        state: EnvState,
        readout: Readout,
        sense: SensesState,
        drawn: Drawn,
        key: jax.Array,
    ) -> tuple[EnvState, SensesState, dict[str, jax.Array], jax.Array]:
        observed = student_step.observe(self.env, self.senses, state, readout, sense, drawn)
        seen = observed.seen
        stats = learner.policy_stats
        features = mlp.normalize(seen.features, stats.mean, stats.std)
        assert seen.depth is not None
        assert observed.sense is not None
        logits, _ = self.outputs(learner.params["policy"], seen.depth, features)
        raw = self.distribution.sample_no_postprocessing(logits, key)
        state, ctrl = self.env.control(observed.state, readout, jnp.tanh(raw))
        step = {
            "features": seen.features,
            "privileged": observed.privileged,
            "raw_action": raw,
            "log_prob": self.distribution.log_prob(logits, raw),
            "logits": logits,
            "depth": pack_depth(seen.depth, self.spec.cameras.depth_cutoff),
            "objects": object_in_gripper(observed.signals),
            "sighted": self.sight(observed.signals, observed.state.context[:, 0]),
            **self.labels(observed),
        }
        return state, observed.sense, step, ctrl

    def labels(self, observed: Observed) -> dict[str, jax.Array]:
        """Returns what else is kept of a step (traceable): nothing."""
        del observed
        return {}

    def look_and_roll(
        self,
        learner: LearnerState,
        state: EnvState,
        physics: PyTree,
        readout: Readout,
        sense: SensesState,
    ) -> tuple[Rollout, jax.Array, tuple[EnvState, PyTree, Readout, SensesState], list[Scored]]:
        """Collects one unroll.

        Returns:
          The rollout, the critic's view after it [N, P], the state of environments, physics, readout and senses, and
          each step's `Scored`.
        """
        steps, scores = [], []
        for key in self.acting_keys(learner):
            drawn = self.senses.draw(sense, readout.qpos)
            state, sense, step, ctrl = self.look_and_act(learner, state, readout, sense, drawn, key)
            state, physics, readout, scored = self.env.advance(state, physics, ctrl)
            sense = self.senses.restart_some(sense, scored.done)
            outcome = {"reward": scored.reward, "done": scored.done, "truncated": scored.truncated}
            steps.append({**step, **outcome})
            scores.append(scored)
        final = self.critic_view(state, readout)
        return Rollout(**self.together(steps)), final, (state, physics, readout, sense), scores

    def update(
        self, learner: LearnerState, rollout: Rollout, final: jax.Array, progress: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Learns from an unroll; as `Ppo.update`."""
        spread, weights = self.spread, self.weigh(progress)
        reward = rollout.reward.mean()
        if spread is not None:
            learner, final = spread.put(learner, WHOLE), spread.put(final, BY_ROW)
            rollout = spread.put(rollout, BY_STEP)
            weights = jax.tree.map(np.asarray, weights)
        batches = self._prepare(learner, rollout, final)
        learnt = Learnt(learner.params, learner.optimizer, learner.learning_rate, learner.start)
        figures: list[dict[str, jax.Array]] = []
        for chosen, key in zip(np.asarray(batches.order), np.asarray(batches.keys), strict=True):
            learnt, said = self._step(learnt, batches.rows, chosen, key, weights)
            figures.append(said)
        metrics = self._means(figures) | {
            "loss/kl_last": figures[-1]["loss/kl"],
            "loss/learning_rate": learnt.rate,
            "loss/explained_variance": batches.explained,
            "train/reward": reward,
        }
        learner = learner._replace(
            params=learnt.params,
            optimizer=learnt.optimizer,
            policy_stats=batches.policy_stats,
            value_stats=batches.value_stats,
            learning_rate=learnt.rate,
            updates=learner.updates + 1,
        )
        if spread is None:
            return learner, metrics
        del metrics["train/reward"]
        return spread.own(learner), {**spread.own(metrics), "train/reward": reward}

    def weigh(self, progress: jax.Array) -> Weights:
        """Returns what an update goes by when this share of its stage is behind."""
        config = self.config
        both = (low + progress * (high - low) for low, high in (config.entropy, config.target_kl))
        return Weights(*both)

    def _prepared(self, learner: LearnerState, rollout: Rollout, final: jax.Array) -> Minibatches:
        """Returns the rows of an unroll with their advantages, and the order in which they are gone through."""
        config = self.config
        rows, policy_stats, value_stats, explained = self.prepare(learner, rollout, final)
        seen = {"depth": rollout.depth, "objects": rollout.objects, "sighted": rollout.sighted}
        if rollout.wanted is not None:
            seen["wanted"] = rollout.wanted
        size = rollout.reward.size
        key = jax.random.fold_in(jax.random.fold_in(learner.key, LEARNING), learner.updates)
        order_key, noise_key = jax.random.split(key)
        order = jax.vmap(lambda one: jax.random.permutation(one, size))(
            jax.random.split(order_key, config.epochs)
        )
        count = config.epochs * config.minibatches
        return Minibatches(
            jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), rows | seen),
            order.reshape(count, -1),
            jax.random.split(noise_key, count),
            value_stats,
            policy_stats,
            explained,
        )

    def _one_step(
        self,
        learnt: Learnt,
        rows: dict[str, jax.Array],
        chosen: jax.Array,
        key: jax.Array,
        weights: Weights,
    ) -> tuple[Learnt, dict[str, jax.Array]]:
        """Takes one gradient step on the chosen rows."""
        batch = {name: leaf[chosen] for name, leaf in rows.items()}
        gradient, figures = jax.grad(self.loss, has_aux=True)(
            learnt.params, batch, key, weights, learnt.start
        )
        gradient, figures = mean((gradient, figures), self.spread)
        rate = self.next_rate(learnt.rate, figures["loss/kl"], weights)
        updates, optimizer = self.optimizer.update(gradient, learnt.optimizer, learnt.params)
        params = jax.tree.map(lambda p, u: p - rate * u, learnt.params, updates)
        return Learnt(params, optimizer, rate, learnt.start), figures

    def next_rate(self, rate: jax.Array, divergence: jax.Array, weights: Weights) -> jax.Array:
        """Returns the next step size after a minibatch that moved the policy by a KL divergence (traceable)."""
        return step_size(self.config, rate, divergence, weights.target_kl)

    def loss(
        self,
        params: PyTree,
        batch: dict[str, jax.Array],
        key: jax.Array,
        weights: Weights,
        start: PyTree | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a minibatch, and figures (traceable).

        Args:
          params: what learns. batch: rows by name, [B, ...]. key: of the entropy's estimate.
          weights: of the update. start: parameters of the policy that reinforcement began with, where it matters.
        """
        del start
        logits, told = self.seen_outputs(params, batch)
        value = mlp.apply(self.value, params["value"], batch["privileged"])[..., 0]
        total, figures = clipped_loss(
            self.config, self.distribution, logits, value, batch, key, weights.entropy
        )
        if told is None:
            return total, figures
        figures |= self.told_wrong(told, batch)
        return total + self.auxiliary * (figures["loss/objects"] + figures["loss/sighted"]), figures

    def told_wrong(self, told: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns how wrongly the pictures tell of the objects: "loss/objects" and "loss/sighted" [] (traceable).

        Args:
          told: [B, C, 4] from `outputs`. batch: rows by name.
        """
        sighted = batch["sighted"]
        wanted = jnp.clip(batch["objects"] / vision_network.AUXILIARY_SCALE, -3, 3)
        errors = jnp.square(told[..., :3] - wanted).mean(-1) * sighted
        doubt = jnp.where(sighted, -told[..., 3], told[..., 3])
        return {
            "loss/objects": errors.sum() / jnp.maximum(sighted.sum(), 1),
            "loss/sighted": jax.nn.softplus(doubt).mean(),
        }
