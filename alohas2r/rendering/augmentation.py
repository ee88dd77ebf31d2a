"""Random shifts of pictures, for learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alohas2r.core.types import Array


def shift_pictures(key: jax.Array, rgb: Array, depth: Array, pad: int) -> tuple[Array, Array]:
    """Shifts pictures at random; the border is repeated where a picture leaves it (traceable).

    Args:
      key: random key.
      rgb: [B, C, H, W, 3] or None. depth: [B, C, H, W] or None; a camera's colour and depth move alike.
      pad: largest shift along each axis (pixels).

    Returns:
      Colour and depth, shifted.

    """

    def moved(pictures: Array) -> Array:
        if pictures is None or pad == 0:
            return pictures
        flat = jnp.asarray(pictures).reshape(-1, *pictures.shape[2:])
        return random_shift(key, flat, pad).reshape(pictures.shape)

    return moved(rgb), moved(depth)


def random_shift(key: Array, pictures: Array, pad: int = 2) -> Array:
    """Shifts every picture by up to `pad` pixels each way; what comes in repeats the edge (JAX).

    Source: the published report; Yarats et al., Image Augmentation Is All You Need (2021).

    Args:
      key: a random key.
      pictures: [N, H, W] or [N, H, W, channels].
      pad: most pixels.
    """
    import jax
    import jax.numpy as jnp

    count, height, width = pictures.shape[:3]
    shift = jax.random.randint(key, (2, count), -pad, pad + 1)
    rows = jnp.clip(jnp.arange(height) + shift[0][:, None], 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + shift[1][:, None], 0, width - 1)
    every = jnp.arange(count)[:, None, None]
    return pictures[every, rows[:, :, None], columns[:, None, :]]
