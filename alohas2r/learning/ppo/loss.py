"""What PPO minimizes, and how large its steps are."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from brax.training import distribution

from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.gae import normal_kl


def clipped_loss(
    config: PpoConfig,
    dist: distribution.NormalTanhDistribution,
    logits: jax.Array,
    value: jax.Array,
    batch: Mapping[str, jax.Array],
    noise_key: jax.Array,
    entropy_weight: jax.Array,
    guide_weight: jax.Array | float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of a minibatch, and figures.

    Args:
      config: weights and clipping. dist: of the actions.
      logits: [B, 2 n] what the policy says now. value: [B] what the critic does.
      batch: "raw_action" [B, n] before tanh, "log_prob" [B] and "logits" [B, 2 n] as they were taken, "advantage" and
        "return" [B]; "guided" [B, n] where a guide is imitated.
      noise_key: of the entropy's estimate. entropy_weight: [].
      guide_weight: [] share of the policy's loss that is imitation of a guide, in squared error of all n actions.

    Source: Schulman et al., Proximal Policy Optimization Algorithms (2017), eq. 7 and 9.
    """
    log_prob = dist.log_prob(logits, batch["raw_action"])
    ratio = jnp.exp(log_prob - batch["log_prob"])
    clipped = jnp.clip(ratio, 1 - config.clipping, 1 + config.clipping)
    policy_loss = -jnp.minimum(ratio * batch["advantage"], clipped * batch["advantage"]).mean()
    value_loss = jnp.square(value - batch["return"]).mean()
    entropy = dist.entropy(logits, noise_key).mean()
    acting = policy_loss - entropy_weight * entropy
    figures = {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "loss/entropy": entropy,
        "loss/clipped": (jnp.abs(ratio - 1) > config.clipping).mean(),
        "loss/kl": normal_kl(dist, batch["logits"], logits).mean(),
    }
    if "guided" in batch:
        imitation = jnp.square(dist.mode(logits) - batch["guided"]).sum(-1).mean()
        acting = (1 - guide_weight) * acting + guide_weight * imitation
        figures["loss/guide"] = imitation
    return acting + config.value_weight * value_loss, figures


def step_size(
    config: PpoConfig, rate: jax.Array, divergence: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns the next step size after a minibatch that moved the policy by this KL divergence from where it acted."""
    rate = jnp.where(divergence > 2 * target, rate / 1.2, rate)
    rate = jnp.where(divergence < target / 2, rate * 1.1, rate)
    return jnp.clip(rate, *config.learning_rate_range)
