"""Advantages and divergences that PPO learns from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from brax.training import distribution


def normal_kl(
    dist: distribution.NormalTanhDistribution, old: jax.Array, new: jax.Array
) -> jax.Array:
    """Returns KL(old || new) [...] of the policies with these parameters; tanh leaves it as it is."""
    first, second = dist.create_dist(old), dist.create_dist(new)
    variances = jnp.square(first.scale) + jnp.square(first.loc - second.loc)
    return (
        jnp.log(second.scale / first.scale) + variances / (2 * jnp.square(second.scale)) - 0.5
    ).sum(-1)


def generalized_advantages(
    rewards: jax.Array,
    done: jax.Array,
    values: jax.Array,
    bootstrap: jax.Array,
    discount: float,
    gae: float,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation.

    Args:
      rewards: [T, N]. done: [T, N] whether the episode ended with that step. values: [T, N] before each step.
      bootstrap: [N] value after the last step.
      discount: per step.
      gae: lambda.

    Returns:
      Advantages and value targets, [T, N] each.

    Source: Schulman et al., High-Dimensional Continuous Control Using GAE (2016), eq. 16.
    """
    following = jnp.concatenate([values[1:], bootstrap[None]])
    alive = 1.0 - done
    deltas = rewards + discount * alive * following - values

    def step(carry: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, alive = inputs
        carry = delta + discount * gae * alive * carry
        return carry, carry

    _, advantages = jax.lax.scan(step, jnp.zeros_like(bootstrap), (deltas, alive), reverse=True)
    return advantages, advantages + values
