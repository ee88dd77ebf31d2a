"""A policy from pixels that begins as a student: first it imitates a teacher on the state, then reinforcement goes on.

The student acts, with some noise, and the teacher says what it would have done (DAgger). Source of that: Ross et al., A
Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning (2011).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.student_step import Observed
from alohas2r.envs.vision import Senses
from alohas2r.learning.pixels.config import StudentStartConfig
from alohas2r.learning.pixels.learner import PixelPpo, Weights
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.gae import normal_kl
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.learning.ppo.spread import Spread
from alohas2r.policies.state import StatePolicy

_LEAST_SIGMA = 0.001  # that brax's distribution adds to what the network says of it


class ImitationLearner(PixelPpo):
    """The same learner, whose policy learns to do what a teacher would; the critic stays as it is.

    Args:
      config, env, senses, auxiliary, spread: as `PixelPpo`; the environments remember what the teacher does.
      student: how it is imitated. teacher: on the state.
    """

    def __init__(
        self,
        config: PpoConfig,
        env: Env,
        senses: Senses,
        auxiliary: float,
        spread: Spread | None,
        student: StudentStartConfig,
        teacher: StatePolicy,
    ):
        self.student, self.teacher = student, teacher
        super().__init__(config, env, senses, auxiliary, spread)

    def init(self, key: jax.Array) -> LearnerState:
        """Returns the state before the first update; actions have the spread of `student.sigma`."""
        state = super().init(key)
        policy, actions = dict(state.params["policy"]), self.env.task.action_size
        last = f"layer{len(self.spec.network.hidden)}"
        # The means stand first; spreads are softplus of what the network says, plus the least one.
        spread = float(np.log(np.expm1(self.student.sigma - _LEAST_SIGMA)))
        bias = policy[last]["bias"].at[actions:].set(spread)
        policy[last] = {**policy[last], "bias": bias}
        return state._replace(params={**state.params, "policy": policy}, start=policy)

    def labels(self, observed: Observed) -> dict[str, jax.Array]:
        """Returns what the teacher would do (traceable)."""
        return {"wanted": self.teacher.apply(observed.known, jnp)}

    def weigh(self, progress: jax.Array) -> Weights:
        """Returns what an update goes by when this share of the imitation is behind."""
        first, last = self.student.learning_rate
        return super().weigh(progress)._replace(rate=first + progress * (last - first))

    def next_rate(self, rate: jax.Array, divergence: jax.Array, weights: Weights) -> jax.Array:
        """Returns the update's step size (traceable)."""
        assert weights.rate is not None
        return weights.rate

    def loss(
        self,
        params: PyTree,
        batch: dict[str, jax.Array],
        key: jax.Array,
        weights: Weights,
        start: PyTree | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns how far the policy is from its teacher and what the pictures tell wrongly, and all figures."""
        _, figures = super().loss(params, batch, key, weights, start)
        logits, told = self.seen_outputs(params, batch)
        actions = self.distribution.mode(logits)
        figures["loss/imitation"] = jnp.square(actions - batch["wanted"]).mean()
        total = figures["loss/imitation"]
        if told is not None:
            total += self.auxiliary * (figures["loss/objects"] + figures["loss/sighted"])
        return total, figures


class TetheredPpo(PixelPpo):
    """The same learner, whose policy begins as a student: first the critic learns alone, then the policy is let go.

    Args:
      config, env, senses, auxiliary, spread: as `PixelPpo`.
      student: how it begins. updates: of the stage.
    """

    def __init__(
        self,
        config: PpoConfig,
        env: Env,
        senses: Senses,
        auxiliary: float,
        spread: Spread | None,
        student: StudentStartConfig,
        updates: int,
    ):
        self.student, self.updates = student, updates
        super().__init__(config, env, senses, auxiliary, spread)

    def weigh(self, progress: jax.Array) -> Weights:
        """Returns what an update goes by when this share of the stage is behind."""
        student, behind = self.student, float(progress)
        tether = student.tether * max(1 - behind / student.tether_share, 0)
        acts = round(behind * self.updates) >= student.critic_updates
        weights = super().weigh(progress)
        if acts and not tether:
            return weights
        return weights._replace(tether=jnp.float32(tether), acts=jnp.asarray(acts))

    def next_rate(self, rate: jax.Array, divergence: jax.Array, weights: Weights) -> jax.Array:
        """Returns the next step size (traceable); it stays while only the critic learns."""
        after = super().next_rate(rate, divergence, weights)
        return after if weights.acts is None else jnp.where(weights.acts, after, rate)

    def loss(
        self,
        params: PyTree,
        batch: dict[str, jax.Array],
        key: jax.Array,
        weights: Weights,
        start: PyTree | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a minibatch, and figures (traceable)."""
        total, figures = super().loss(params, batch, key, weights)
        if weights.tether is None or weights.acts is None:
            return total, figures
        before, _ = self.seen_outputs({"policy": start}, batch)
        now, _ = self.seen_outputs(params, batch)
        figures["loss/from_start"] = normal_kl(self.distribution, before, now).mean()
        critic = self.config.value_weight * figures["loss/value"]
        tied = total + weights.tether * figures["loss/from_start"]
        return jnp.where(weights.acts, tied, critic), figures
