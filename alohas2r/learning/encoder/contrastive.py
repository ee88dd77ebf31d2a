"""The loss by which encoders learn to tell pictures apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def info_nce(
    bilinear: jax.Array, queries: jax.Array, keys: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the contrastive loss: which of the keys [B, E] belongs to each query [B, E].

    Without any knowledge it is log(B). Source: van den Oord et al., CPC (2018), eq. 4; bilinear similarity as
    in CURL.
    """
    logits = queries @ bilinear @ jax.lax.stop_gradient(keys).T
    labels = jnp.arange(len(logits))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), {"accuracy": (jnp.argmax(logits, -1) == labels).mean()}
