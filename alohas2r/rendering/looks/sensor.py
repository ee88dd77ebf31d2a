"""What the sensors make of pictures drawn with the looks "transfer": a colour camera, and depth as of a D405 (JAX).

Renderers give roots of radiance; the camera turns them into the numbers that a driver hands out. Everything that stays
for an episode is in the fields `nominal.SENSOR_FIELDS`; the gain of the automatic exposure is a state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.embodiment.camera import FOVY_DEG
from alohas2r.rendering.corruption import normal, random_words, uniform
from alohas2r.rendering.looks.config import TransferConfig
from alohas2r.rendering.looks.texture import once

_LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)
_SHADOWS = 7  # pixels that a stereo shadow is wide at most
_EDGE = 0.015  # m; a step of depth that counts as an edge
_SPECKLE_DEPTH = (0.07, 0.5)  # m; of pixels with a wrong distance
_BLOCK = 4  # pixels; side of the smallest patch that is lost
_SATURATED = 247  # numbers from which a pixel shines

Fields = Mapping[str, Array]


def sense(
    keys: Array,
    rgb: Array | None,
    depth: Array | None,
    fields: Fields,
    gain: Array,
    first: Array,
    config: TransferConfig,
    noise: bool = True,
) -> tuple[Array | None, Array | None, Array]:
    """Turns drawn pictures into those of sensors (traceable).

    Environment i depends on its own key alone, not on N.

    Args:
      keys: [N, 2] random keys.
      rgb: [N, C, H, W, 3] uint8, roots of radiance; None if there is none.
      depth: [N, C, H, W] (m), 0 where nothing is seen; or None.
      fields: SENSOR_FIELDS of the environments, [N, ...].
      gain: [N, C] logarithm of the automatic exposure's gain.
      first: [N] bool, whether it is an episode's first picture, for which the gain has settled.
      config: ranges.
      noise: whether there is noise; without it depth is as drawn.

    Returns:
      rgb and depth of the same shapes, and the gain after them.
    """

    def one(
        key: Array, rgb: Array, depth: Array, fields: Fields, gain: Array, first: Array
    ) -> tuple[Array, Array, Array]:
        colour_key, depth_key = jax.random.split(key)
        shining = None if rgb is None else (rgb >= _SATURATED).any(-1)
        if rgb is not None:
            rgb, gain = colour_camera(colour_key, rgb, fields, gain, first, config, noise)
        if depth is not None and noise:
            depth = depth_camera(depth_key, depth, shining, fields, config)
        return rgb, depth, gain

    return jax.vmap(one)(keys, rgb, depth, dict(fields), gain, first)


def colour_camera(
    key: Array,
    rgb: Array,
    fields: Fields,
    gain: Array,
    first: Array,
    config: TransferConfig,
    noise: bool = True,
) -> tuple[Array, Array]:
    """Exposes one environment's pictures [C, H, W, 3] uint8; see `sense`.

    Light falls off towards the corners and is blurred by the lens, is filtered into colours, exposed, noisy, cut off,
    and curved.
    """
    ranges = config.camera
    root = rgb.astype(jnp.float32) * np.float32(1 / 255)
    falloff = _falloff(rgb.shape[1:3], fields["vignetting"]) * fields["light"]
    light = _blurred(once(root * root * falloff), fields["blur"])
    matrix = fields["colours"]
    light = (
        light[..., :1] * matrix[:, 0]
        + light[..., 1:2] * matrix[:, 1]
        + light[..., 2:] * matrix[:, 2]
    )
    mean = (light.mean((1, 2)) * _LUMINANCE).sum(-1)  # [C]
    most = np.float32(math.log(ranges.most))
    wanted = jnp.clip(jnp.log(fields["target"] / jnp.maximum(mean, 1e-4)), -most, most)
    used = jnp.where(first, wanted, gain)
    after = used + fields["lag"] * (wanted - used)
    factor = jnp.where(fields["automatic"] > 0, jnp.exp(used), 1) * fields["exposure"]
    light = light * factor[:, None, None, None]
    if noise:
        # Two halves of a word make a triangle: no logarithm is needed.
        words = jnp.stack(random_words(key, rgb.shape[:-1]), -1)
        halves = (words >> 16) + (words & np.uint32(0xFFFF))
        drawn = halves.astype(jnp.int32).astype(jnp.float32) * np.float32(2**-16) - 1
        light = light + drawn * fields["noise"] * 2 * (jnp.sqrt(jnp.maximum(light, 0)) + 0.3)
    grey = (light * _LUMINANCE).sum(-1, keepdims=True)
    light = light + (grey - light) * fields["grey"]
    light = jnp.clip(light, 1e-6, 1)
    value = jnp.exp(jnp.log(light) * fields["gamma"]) * fields["kept"]
    return (value * 255 + 0.5).astype(jnp.uint8), after


def _falloff(shape: tuple[int, ...], loss: Array) -> Array:
    """Returns what is left of the light of each pixel [H, W, 1]: less by `loss` in the corners."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    square = (x[None] ** 2 + y[:, None] ** 2) / 2
    return 1 - loss * jnp.asarray(square)[..., None]


def _blurred(light: Array, share: Array) -> Array:
    """Returns pictures [C, H, W, 3] of which each pixel has given a share to its neighbours along each axis."""
    for axis in (1, 2):
        length = light.shape[axis]
        pads = [(0, 0)] * light.ndim
        pads[axis] = (1, 1)
        around = jnp.pad(light, pads, mode="edge")
        before = jax.lax.slice_in_dim(around, 0, length, axis=axis)
        after = jax.lax.slice_in_dim(around, 2, length + 2, axis=axis)
        light = once(light + share * (0.5 * (before + after) - light))
    return light


def depth_camera(
    key: Array, depth: Array, shining: Array | None, fields: Fields, config: TransferConfig
) -> Array:
    """Measures one environment's depths [C, H, W] (m) by stereo; see `sense`.

    Source: Intel, D400 series data sheet (D405: baseline 18 mm, 70 mm at least); steps and noise of disparity as in
    `corruption.disparity_noise`.
    """
    ranges = config.depth
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    words = [word for part in keys for word in random_words(part, depth.shape)]
    drawn = [uniform(word) for word in words[:6]]
    lost = _stereo_shadow(depth, fields["side"], ranges.baseline)
    lost |= _edges(depth) & (drawn[0] < fields["edges"])
    lost |= depth < fields["nearest"]
    lost |= drawn[1] < fields["dropout"]
    lost |= _patches(drawn[2], fields["blobs"]) & (drawn[3] < 0.85)
    if shining is not None:
        lost |= shining & (drawn[4] < fields["shiny"])
    focal = 0.5 * ranges.width / math.tan(math.radians(FOVY_DEG) / 2)
    steps = np.float32(focal * ranges.baseline * ranges.steps)
    seen = depth > 0
    noise = normal(words[6]) * fields["depth_noise"] * np.float32(ranges.steps)
    disparity = jnp.maximum(jnp.round(steps / jnp.where(seen, depth, 1) + noise), 1)
    depth = jnp.where(seen & ~lost, fields["depth_scale"] * steps / disparity, 0)
    low, high = _SPECKLE_DEPTH
    wrong = uniform(words[7]) < fields["speckles"]
    depth = jnp.where(wrong, low + drawn[5] * (high - low), depth)
    black = uniform(words[8])[:, :1, :1] < fields["blackout"]
    return jnp.where(black, 0, depth)


def _stereo_shadow(depth: Array, side: Array, baseline: float) -> Array:
    """Returns what only one of two imagers sees [C, H, W]: far pixels beside near ones.

    A pixel is hidden from the other imager by one k pixels beside it whose disparity is k larger.

    Args:
      depth: [C, H, W]. side: 1 for shadows on the left of near things, -1 for the right.
      baseline: (m).
    """
    width = depth.shape[-1]
    focal = 0.5 * width / math.tan(math.radians(FOVY_DEG) / 2)
    disparity = once(jnp.where(depth > 0, focal * baseline / jnp.maximum(depth, 0.02), 0))
    disparity = jnp.where(side > 0, disparity, disparity[..., ::-1])
    most = max(1, min(_SHADOWS * width // 32, width - 1))
    hidden = jnp.zeros(depth.shape, bool)
    around = jnp.pad(disparity, [(0, 0), (0, 0), (0, most)])
    for step in range(1, most + 1):
        more = around[..., step : step + width] - disparity
        hidden |= jnp.abs(more - step) <= 0.5
    return jnp.where(side > 0, hidden, hidden[..., ::-1])


def _edges(depth: Array) -> Array:
    """Returns where depth [C, H, W] differs from a neighbour's by a step."""
    edge = jnp.zeros(depth.shape, bool)
    for axis in (1, 2):
        length = depth.shape[axis]
        step = jnp.abs(jnp.diff(depth, axis=axis)) > _EDGE
        pads = [(0, 0)] * 3
        pads[axis] = (1, 1)
        around = jnp.pad(step, pads)
        edge |= jax.lax.slice_in_dim(around, 0, length, axis=axis)
        edge |= jax.lax.slice_in_dim(around, 1, length + 1, axis=axis)
    return edge


def _patches(drawn: Array, share: Array) -> Array:
    """Returns square patches of pictures [C, H, W], a share of them, from random numbers of the same shape."""
    height, width = drawn.shape[1:]
    some = drawn[:, : -(-height // _BLOCK), : -(-width // _BLOCK)] < share
    return some.repeat(_BLOCK, 1).repeat(_BLOCK, 2)[:, :height, :width]


@functools.lru_cache(maxsize=8)
def compiled(config: TransferConfig, noise: bool = True) -> Array:
    """Returns `sense` compiled for ranges."""
    return jax.jit(functools.partial(sense, config=config, noise=noise))
