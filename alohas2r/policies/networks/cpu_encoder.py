"""The colour encoder as matrix products, which a CPU computes faster."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from alohas2r.core.types import Array, PyTree
from alohas2r.policies.networks.patches import cut_patches
from alohas2r.policies.networks.vision import ENCODER_LAYERS, encode, scale_rgb
from alohas2r.policies.spec import StudentSpec

_PICTURES = 16  # that are encoded at once in matrix products, so that they stay in a core's cache


def encode_in_products(spec: StudentSpec, encoder: PyTree, rgb: Array) -> jax.Array:
    """Does the same as `encode`, in matrix products of a few pictures at a time.

    On a CPU that takes 50 us per picture of 32 x 32 instead of 80 us, and rounds differently (1e-5 of a value). What
    looks at pairs is made of products already.
    """
    flat = rgb.reshape(-1, *rgb.shape[2:])
    count = len(flat)
    at_once = next(size for size in range(min(_PICTURES, count), 0, -1) if count % size == 0)

    def some(pictures: jax.Array) -> jax.Array:
        if spec.paired:
            return encode(spec, encoder, pictures[:, None])[:, 0]
        values = scale_rgb(pictures)
        for index, (_, stride) in enumerate(ENCODER_LAYERS):
            values = nn.relu(_convolve(values, encoder[f"Conv_{index}"]["kernel"], stride))
        return values if spec.network.places else values.mean((1, 2))

    encoded = jax.lax.map(some, flat.reshape(-1, at_once, *flat.shape[1:]))
    return encoded.reshape(*rgb.shape[:2], *encoded.shape[2:])


def _convolve(values: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves pictures [B, H, W, F] with padding "SAME"; the stride divides the kernel's side.

    Cells of stride x stride pixels are cut once; what a kernel covers are then a few neighbouring cells.
    """
    batch, height, width, _ = values.shape
    rows, columns = -(-height // stride), -(-width // stride)
    around = [
        max((count - 1) * stride + kernel.shape[0] - side, 0)
        for count, side in ((rows, height), (columns, width))
    ]
    before = [total // 2 for total in around]
    whole = [
        -(-(side + total) // stride) * stride
        for side, total in zip((height, width), around, strict=True)
    ]
    after = [
        full - side - first
        for full, side, first in zip(whole, (height, width), before, strict=True)
    ]
    values = jnp.pad(values, ((0, 0), *zip(before, after, strict=True), (0, 0)))
    cells = cut_patches(values, stride)
    reach = kernel.shape[0] // stride
    covered = jnp.concatenate(
        [
            cells[:, row : row + rows, column : column + columns]
            for row in range(reach)
            for column in range(reach)
        ],
        -1,
    )
    cut = kernel.reshape(reach, stride, reach, stride, *kernel.shape[2:])
    matrix = cut.transpose(0, 2, 1, 3, 4, 5).reshape(-1, kernel.shape[-1])
    product = covered.reshape(-1, covered.shape[-1]) @ matrix
    return product.reshape(batch, rows, columns, -1)
