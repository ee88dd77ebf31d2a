"""What looks at pairs of pictures: colour of the left imager, grey of the right one 18 mm beside it.

A point at depth z is seen in the right picture disparity = focal length * baseline / z pixels further left. At 48 x 48
pixels that is 6.5 pixels at 0.12 m and 1.9 at 0.4 m. All is made of matrix products, see `patches`.
"""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.policies.networks.patches import bordered, cut_patches, neighbours
from alohas2r.policies.spec import StereoNetworkConfig, StereoSpec

INVERSE_SIDE = 8  # places a side of the inverse depth that pairs are to tell
INVERSE_SCALE = 0.1  # m; a unit of it is the inverse of this depth
PATCH = 4  # pixels a side of the first patches
REACH = 2  # columns on both sides of one that a stem sees
# Of red, green and blue in luma. Source: ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CONTRAST = 0.02  # of full scale; a grey picture with less is not amplified further


def inverse_depth(depth: Array) -> jax.Array:
    """Returns mean inverse depth [..., 8, 8], in 1 / INVERSE_SCALE, of depth [..., S, S] (m); 0 where nothing is."""
    depth = jnp.asarray(depth)
    near = jnp.where(depth > 0, INVERSE_SCALE / jnp.maximum(depth, INVERSE_SCALE / 3), 0)
    cell = depth.shape[-1] // INVERSE_SIDE
    cells = near.reshape(*near.shape[:-2], INVERSE_SIDE, cell, INVERSE_SIDE, cell)
    return cells.mean((-3, -1))


def correlation(left: jax.Array, right: jax.Array, shifts: int) -> jax.Array:
    """Returns the products [B, H, W, shifts] of features [B, H, W, F] at disparities 0 .. shifts - 1."""
    width = left.shape[2]
    further = bordered(right, 2, shifts - 1, 0)
    products = [
        (left * further[:, :, shifts - 1 - shift : shifts - 1 - shift + width]).sum(-1)
        for shift in range(shifts)
    ]
    return jnp.stack(products, -1)


def strips(grey: jax.Array) -> jax.Array:
    """Puts PATCH rows and the columns around each one of [B, H, W, 1] side by side: [B, H / 4, W, 4 * 5]."""
    batch, height, width, _ = grey.shape
    rows = grey.reshape(batch, height // PATCH, PATCH, width).transpose(0, 1, 3, 2)
    around = bordered(rows, 2, REACH, REACH)
    columns = [around[:, :, start : start + width] for start in range(2 * REACH + 1)]
    return jnp.concatenate(columns, -1)


def _dense(size: int, name: str, bias: bool = True) -> nn.Dense:
    return nn.Dense(size, use_bias=bias, name=name)


class StereoEncoder(nn.Module):
    """Pairs [B, H, W, 4] in 0..1 -> the last pictures [B, H / 8, W / 8, filters[1]]."""

    config: StereoNetworkConfig

    @nn.compact
    def __call__(self, pairs: jax.Array) -> jax.Array:
        """Encodes a batch of pairs."""
        config = self.config
        colour, right = pairs[..., :3], pairs[..., 3:]
        left = colour @ _LUMA[:, None]
        if config.right == "left":
            right = left
        elif config.right == "black":
            right = jnp.zeros_like(left)
        if config.network == "early":
            values = self._patches(jnp.concatenate([colour, right], -1), "colour")
        else:
            compare = self._cost if config.network == "cost" else self._attention
            seen = [self._patches(colour, "colour"), compare(_even(left), _even(right))]
            values = jnp.concatenate(seen, -1)
        values = nn.relu(_flat(_dense(config.filters[1], "joined"), cut_patches(values, 2)))
        return nn.relu(_flat(_dense(config.filters[1], "mixed"), neighbours(values)))

    def _patches(self, pictures: jax.Array, name: str) -> jax.Array:
        layer = _dense(self.config.filters[0], name)
        return nn.relu(_flat(layer, cut_patches(pictures, PATCH)))

    def _cost(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """Returns [B, H / 4, W / 4, F]: what the comparison of both pictures shows in each patch.

        Strips of four rows are compared at every column: along the rows disparity needs whole pixels, across it none.
        """
        stem = _dense(self.config.stem, "stem")
        left, right = (_unit(_flat(stem, strips(grey))) for grey in (left, right))
        cost = correlation(left, right, self.config.shifts)
        batch, height, width, shifts = cost.shape
        cut = cost.reshape(batch, height, width // PATCH, PATCH * shifts)
        return nn.relu(_flat(_dense(self.config.filters[0], "cost"), cut))

    def _attention(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """Returns likewise, of patches that look along their row of the right picture, as a rectified pair allows."""
        size, heads = self.config.filters[0], self.config.heads
        stem = _dense(size, "stem")
        left, right = (nn.relu(_flat(stem, cut_patches(grey, PATCH))) for grey in (left, right))
        batch, height, width, _ = left.shape
        nearby: Array = self.param("nearby", nn.initializers.zeros, (heads, width, width))

        def split(values: jax.Array) -> jax.Array:
            """Returns [B * H, heads, W, F / heads]."""
            rows = values.reshape(batch * height, width, heads, size // heads)
            return rows.transpose(0, 2, 1, 3)

        for layer in range(self.config.layers):
            query, key, value = (
                # A bias of the keys would change no weight of the attention.
                split(_flat(_dense(size, f"{name}{layer}", name != "key"), of))
                for name, of in (("query", left), ("key", right), ("value", right))
            )
            alike = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(size // heads))
            found = nn.softmax(alike + nearby) @ value
            rows = found.transpose(0, 2, 1, 3).reshape(batch, height, width, size)
            left = left + nn.relu(_flat(_dense(size, f"looked{layer}"), rows))
        return left


def _flat(layer: nn.Dense, values: jax.Array) -> jax.Array:
    """Applies a layer to the last axis as one matrix product, which makes simple programs."""
    product = layer(values.reshape(-1, values.shape[-1]))
    return product.reshape(*values.shape[:-1], -1)


def _even(grey: jax.Array) -> jax.Array:
    """Takes a grey picture's [B, H, W, 1] brightness and contrast away: two sensors never agree about them."""
    centred = grey - grey.mean((1, 2), keepdims=True)
    return centred / (jnp.sqrt((centred * centred).mean((1, 2), keepdims=True)) + _CONTRAST)


def _unit(values: jax.Array) -> jax.Array:
    """Returns features of about unit length; those of nothing stay small."""
    return values / jnp.sqrt((values * values).sum(-1, keepdims=True) + np.float32(0.01))


def init(spec: StereoSpec, key: jax.Array, auxiliary: bool) -> dict[str, PyTree]:
    """Returns random parameters: "encoder", and "inverse" if `auxiliary`."""
    size = spec.cameras.size
    encoder_key, inverse_key = jax.random.split(key)
    pair = jnp.zeros((1, size, size, 4))
    params: dict[str, PyTree] = {
        "encoder": StereoEncoder(spec.stereo).init(encoder_key, pair)["params"]
    }
    if auxiliary and spec.network.places:
        code = jnp.zeros((1, (size // 8) ** 2 * spec.stereo.filters[1]))
        params["inverse"] = nn.Dense(INVERSE_SIDE**2).init(inverse_key, code)["params"]
    return params


def encode(spec: StereoSpec, encoder: PyTree, pairs: Array) -> jax.Array:
    """Encodes pairs [B, C, H, W, 4] uint8 -> [B, C, H / 8, W / 8, E], or their mean [B, C, E] without places."""
    values = jnp.asarray(pairs).reshape(-1, *pairs.shape[2:]).astype(jnp.float32)
    network = StereoEncoder(spec.stereo)
    code = cast(jax.Array, network.apply({"params": encoder}, values * np.float32(1 / 255)))
    if not spec.network.places:
        code = code.mean((1, 2))
    return code.reshape(*pairs.shape[:2], *code.shape[1:])


def tell_inverse(params: PyTree, code: jax.Array) -> jax.Array:
    """Returns the inverse depth [B, C, 8, 8] that codes [B, C, H', W', E] tell, as `inverse_depth` has it."""
    flat = code.reshape(code.shape[0] * code.shape[1], -1)
    told = cast(jax.Array, nn.Dense(INVERSE_SIDE**2).apply({"params": params}, flat))
    return told.reshape(*code.shape[:2], INVERSE_SIDE, INVERSE_SIDE)
