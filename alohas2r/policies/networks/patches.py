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


def neighbours(pictures: jax.Array) -> jax.Array:
    """Puts the 3 x 3 places around each place of [B, H, W, F] side by side: [B, H, W, 9 * F]; 0 beyond the border."""
    height, width = pictures.shape[1:3]
    around = jnp.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [
            around[:, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        ],
        -1,
    )
