"""Pictures as matrices: what networks of patches are made of, simple programs that all machines compute fast."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cut_patches(pictures: jax.Array, side: int) -> jax.Array:
    """Cuts pictures [B, H, W, F] into squares: [B, H / side, W / side, side * side * F]; the sides must divide."""
    batch, height, width, features = pictures.shape
    rows, columns = height // side, width // side
    cut = pictures.reshape(batch, rows, side, columns, side, features)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, side * side * features)


def bordered(values: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Adds so many zeros to an axis, which must be as long; unlike `jnp.pad` it can be exported for any batch."""
    length = values.shape[axis]
    first = jax.lax.slice_in_dim(values, 0, before, axis=axis) * 0
    last = jax.lax.slice_in_dim(values, length - after, length, axis=axis) * 0
    return jnp.concatenate([first, values, last], axis)


def neighbours(pictures: jax.Array) -> jax.Array:
    """Puts the 3 x 3 places around each place of [B, H, W, F] side by side: [B, H, W, 9 * F]; 0 beyond the border."""
    height, width = pictures.shape[1:3]
    around = bordered(bordered(pictures, 1, 1, 1), 2, 1, 1)
    return jnp.concatenate(
        [
            around[:, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        ],
        -1,
    )
