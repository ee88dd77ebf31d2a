"""The convolution of `policies.online.encoder`, in JAX."""

from __future__ import annotations

import jax

from alohas2r.core.types import Array


def convolve(values: Array, kernel: Array, stride: int) -> jax.Array:
    """Returns a convolution of [B, H, W, F] with [h, w, F, G], without padding."""
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        values, kernel, (stride, stride), "VALID", dimension_numbers=order
    )
