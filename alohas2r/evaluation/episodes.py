"""Which episodes an evaluation runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_ENVS = 2048  # episodes simulated at once; results do not depend on it


def episode_keys(seed: int, first: int, count: int) -> jax.Array:
    """Returns the random keys [count, 2] of episodes first .. first + count - 1 of a seed."""
    root = jax.random.PRNGKey(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.arange(first, first + count))
