"""The eyes that a policy has of its own: convolutions over colour and depth, the same on NumPy and JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from alohas2r.core.types import Array
from alohas2r.embodiment.camera import preprocess
from alohas2r.policies.online import networks
from alohas2r.policies.online.spec import CHANNELS, EncoderSpec, OnlineSpec, SeeingSpec

_EPSILON = 1e-5  # of layer normalization
Convolve = Callable[[Array, Array, int], Array]


def init_encoder(spec: EncoderSpec, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns random weights by name."""
    weights: dict[str, np.ndarray] = {}
    for name, shape in spec.shapes.items():
        if name.endswith("kernel"):
            bound = np.sqrt((6.0 if len(shape) == 4 else 3.0) / np.prod(shape[:-1]))
            weights[name] = draw.uniform(-bound, bound, shape).astype(np.float32)
        else:
            fill = 1.0 if name.endswith("scale") else 0.0
            weights[name] = np.full(shape, fill, np.float32)
    return weights


def convolve(values: Array, kernel: Array, stride: int) -> np.ndarray:
    """Returns a convolution of [B, H, W, F] with [3, 3, F, G], without padding; NumPy."""
    windows = np.lib.stride_tricks.sliding_window_view(values, kernel.shape[:2], (1, 2))
    windows = windows[:, ::stride, ::stride]  # [B, H', W', F, 3, 3]
    flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)
    return flat @ kernel.reshape(-1, kernel.shape[-1])


def encode(
    spec: EncoderSpec,
    weights: Mapping[str, Array],
    pictures: Array,
    convolve: Convolve = convolve,
    xp: Array = np,
) -> Array:
    """Returns what is seen [B, n] of crops [B, crop, crop, 4] in 0..1.

    Args:
      spec: the encoder. weights: "encoder/...".
      pictures: crops.
      convolve: a convolution without padding, of values, kernel and stride.
      xp: the array namespace.
    """
    values = pictures
    for index in range(spec.layers):
        kernel = weights[f"encoder/layer{index}/kernel"]
        values = convolve(values, kernel, 1 if index else 2)
        values = xp.maximum(values + weights[f"encoder/layer{index}/bias"], 0.0)
    values = networks.dense(weights, "encoder/out", values.reshape(pictures.shape[0], -1))
    centred = values - values.mean(-1, keepdims=True)
    spread = xp.sqrt((centred * centred).mean(-1, keepdims=True) + _EPSILON)
    return centred / spread * weights["encoder/norm/scale"] + weights["encoder/norm/bias"]


def pictures_of(colours: Array, near: Array, xp: Array = np) -> Array:
    """Returns pictures [..., H, W, 4] of colours [..., H, W, 3] and depth [..., H, W], all in 0..1."""
    return xp.concatenate([colours, near[..., None]], -1)


def middle(spec: EncoderSpec, pictures: Array) -> Array:
    """Returns the crop [B, crop, crop, 4] in the middle of pictures [B, H, W, 4]: where a robot looks."""
    assert pictures.shape[-1] == CHANNELS
    first = (pictures.shape[1] - spec.crop) // 2
    return pictures[:, first : first + spec.crop, first : first + spec.crop]


def look(
    spec: OnlineSpec, weights: Mapping[str, Array], rgb: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Returns what is seen of raw pictures, [B, n], by eyes of its own or by a student's; NumPy.

    Args:
      spec: the policy. weights: all of them.
      rgb: [B, H, W, 3] uint8. depth: [B, H, W] m.
    """
    if not isinstance(spec, SeeingSpec):
        return networks.look(spec, weights, rgb, depth)
    pictures = pictures_of(*preprocess(rgb, depth, spec.cameras.depth_cutoff))
    return encode(spec.encoder, weights, middle(spec.encoder, pictures))
