"""Random crops of pictures, and what an encoder of its own sees of them; JAX."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from alohas2r.core.types import Array
from alohas2r.embodiment.camera import preprocess
from alohas2r.policies.networks.convolution import convolve
from alohas2r.policies.online.encoder import encode, pictures_of
from alohas2r.policies.online.spec import EncoderSpec, SeeingSpec


def crop(pictures: Array, side: int, key: jax.Array) -> Array:
    """Returns a crop of each picture, [B, side, side, F] of [B, H, W, F], where the key says."""
    count, height, width, channels = pictures.shape
    limits = jnp.array([height, width]) - side + 1
    first = jax.random.randint(key, (count, 2), 0, limits)

    def one(picture: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(picture, (at[0], at[1], 0), (side, side, channels))

    return jax.vmap(one)(pictures, first)


def pictures(spec: SeeingSpec, rgb: Array, depth: Array) -> Array:
    """Returns pictures [B, H, W, 4] in 0..1 of raw ones, [B, H, W, 3] uint8 and [B, H, W] m."""
    return pictures_of(*preprocess(rgb, depth, spec.cameras.depth_cutoff), jnp)


def see(spec: EncoderSpec, weights: Mapping[str, Array], crops: Array) -> Array:
    """Returns what is seen [B, n] of crops [B, crop, crop, 4]."""
    return encode(spec, weights, crops, convolve, jnp)
