"""The networks as functions of named arrays, the same on NumPy and JAX: the robot computes what the learner does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from alohas2r.core.types import Array
from alohas2r.embodiment.camera import preprocess
from alohas2r.policies.online.spec import TEMPOS, LearntSpec, SeeingSpec
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig

# Side and stride of the student's convolutions, see policies.networks.vision, whose weights these functions take.
_LAYERS = ((8, 4), (4, 2), (3, 1))
_EPSILON = 1e-6  # of layer normalization
LIMIT = 10.0  # standard deviations beyond which a feature says no more
LOG_STD = -5.0  # least logarithm of the exploration's spread


class Sees(Protocol):
    """What has a student's eyes: what pictures are like, and the shapes of what looks at them."""

    @property
    def cameras(self) -> CameraSpec: ...  # noqa: D102
    @property
    def network(self) -> StudentNetworkConfig: ...  # noqa: D102


def dense(weights: Mapping[str, Array], name: str, values: Array) -> Array:
    """Returns a linear layer's outputs."""
    return values @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def mlp(
    weights: Mapping[str, Array], name: str, values: Array, layers: int, xp: Array = np
) -> Array:
    """Runs layers of rectified units, normalized where there are scales, and a linear one.

    Args:
      weights: "NAME/layerI/kernel" [n, m], "bias" [m], perhaps "scale" [m].
      name: of the network.
      values: [..., n].
      layers: hidden ones.
      xp: the array namespace.
    """
    for index in range(layers):
        values = dense(weights, f"{name}/layer{index}", values)
        if f"{name}/layer{index}/scale" in weights:
            centred = values - values.mean(-1, keepdims=True)
            spread = xp.sqrt((centred * centred).mean(-1, keepdims=True) + _EPSILON)
            values = centred / spread * weights[f"{name}/layer{index}/scale"]
        values = xp.maximum(values, 0.0)
    return dense(weights, f"{name}/layer{layers}", values)


def init_mlp(
    draw: np.random.Generator,
    name: str,
    sizes: Sequence[int],
    last: float = 1.0,
    normalized: bool = False,
) -> dict[str, np.ndarray]:
    """Returns random weights of `mlp` for layers of these sizes, input first.

    Args:
      draw: source of the numbers. name: of the network. sizes: of input, hidden layers and output.
      last: factor of the last layer's weights.
      normalized: whether hidden layers are.
    """
    weights: dict[str, np.ndarray] = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        final = index == len(sizes) - 2
        bound = np.sqrt((3.0 if final else 6.0) / inputs) * (last if final else 1.0)
        kernel = draw.uniform(-bound, bound, (inputs, outputs))
        weights[f"{name}/layer{index}/kernel"] = kernel.astype(np.float32)
        weights[f"{name}/layer{index}/bias"] = np.zeros(outputs, np.float32)
        if normalized and not final:
            weights[f"{name}/layer{index}/scale"] = np.ones(outputs, np.float32)
    return weights


def convolve(weights: Mapping[str, Array], rgb: Array) -> np.ndarray:
    """Returns the student's convolutions of pictures [B, H, W, 3] in 0..1: [B, H', W', F]; NumPy."""
    values = np.asarray(rgb)
    for index, (side, stride) in enumerate(_LAYERS):
        kernel = weights[f"eyes/Conv_{index}/kernel"]
        size = values.shape[1]
        reached = -(-size // stride)
        pad = max((reached - 1) * stride + side - size, 0)  # as "SAME"
        around = (pad // 2, pad - pad // 2)
        padded = np.pad(values, ((0, 0), around, around, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
        windows = windows[:, ::stride, ::stride]  # [B, H', W', F, side, side]
        flat = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)
        values = np.maximum(flat @ kernel.reshape(-1, kernel.shape[-1]), 0)
    return values


def see(
    spec: Sees,
    weights: Mapping[str, Array],
    places: Array,
    depth: Array,
    xp: Array = np,
) -> Array:
    """Returns what the student's first layers make of a wrist camera's pictures, [B, n].

    Args:
      spec: the policy.
      weights: "eyes/..." as the student has them, without the names of sides.
      places: [B, H', W', F] convolutions of the colours. depth: [B, H, W] in 0..1.
      xp: the array namespace.
    """
    network, batch = spec.network, depth.shape[0]
    seen = [dense(weights, "eyes/rgb", places.mean((1, 2)))]
    if network.places:
        flat = xp.maximum(dense(weights, "eyes/places", places), 0.0)
        seen.append(dense(weights, "eyes/side_places", flat.reshape(batch, -1)))
    size, side = depth.shape[-1], network.depth_side
    step = size // side
    reduced = depth[:, step // 2 :: step, step // 2 :: step].reshape(batch, -1)
    seen.append(dense(weights, "eyes/depth", reduced))
    if network.patches:
        values = xp.stack([depth, (depth > 0).astype(depth.dtype)], -1)
        for index, cut in enumerate((4, 2)):
            values = _patches(values, cut)
            values = xp.maximum(dense(weights, f"eyes/patches{index}", values), 0.0)
        seen.append(dense(weights, "eyes/side_patches", values.reshape(batch, -1)))
    return xp.concatenate(seen, -1)


def _patches(pictures: Array, side: int) -> Array:
    """Cuts pictures [B, H, W, F] into squares [B, H / side, W / side, side * side * F]."""
    batch, height, width, features = pictures.shape
    rows, columns = height // side, width // side
    cut = pictures.reshape(batch, rows, side, columns, side, features)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, side * side * features)


def look(
    spec: Sees, weights: Mapping[str, Array], rgb: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """Returns what is seen of raw pictures, [B, n]; NumPy.

    Args:
      spec: the policy. weights: "eyes/...".
      rgb: [B, H, W, 3] uint8. depth: [B, H, W] m.
    """
    colours, near = preprocess(rgb, depth, spec.cameras.depth_cutoff)
    return see(spec, weights, convolve(weights, colours), near)


def normalize(weights: Mapping[str, Array], features: Array, xp: Array = np) -> Array:
    """Returns features [..., n] by their means and standard deviations."""
    return xp.clip((features - weights["mean"]) / weights["std"], -LIMIT, LIMIT)


def base_action(
    spec: LearntSpec, weights: Mapping[str, Array], normal: Array, xp: Array = np
) -> Array:
    """Returns the base's action [..., A] for normalized features; zero where there is no base.

    One that is made elsewhere is among the features, which do not change it when they are normalized.
    """
    if spec.given:
        return normal[..., -spec.actions :]
    if not spec.base:
        return xp.zeros((*normal.shape[:-1], spec.actions), normal.dtype)
    return xp.tanh(mlp(weights, "base", normal, len(spec.hidden), xp))


def policy_heads(
    spec: LearntSpec, weights: Mapping[str, Array], normal: Array, base: Array, xp: Array = np
) -> tuple[Array, Array]:
    """Returns mean and logarithm of the spread [..., O] of what the policy draws, before tanh."""
    inputs = xp.concatenate([normal, base], -1) if spec.base else normal
    outputs = mlp(weights, "policy", inputs, len(spec.hidden), xp)
    mean, spread = outputs[..., : spec.outputs], outputs[..., spec.outputs :]
    low, high = LOG_STD, spec.loudest
    return mean, low + 0.5 * (high - low) * (xp.tanh(spread) + 1.0)


def joined(spec: LearntSpec, base: Array, action: Array, xp: Array = np) -> Array:
    """Returns what base [..., A] and policy [..., O] in [-1, 1] ask for together, [..., A]."""
    both = xp.clip(base + spec.scale * action[..., : spec.actions], -1.0, 1.0)
    if spec.outputs == spec.actions:
        return both
    return xp.clip(tempo(action[..., spec.actions :], xp) * both, -1.0, 1.0)


def tempo(action: Array, xp: Array = np) -> Array:
    """Returns the factor of movements that a policy asks for by a number in [-1, 1]: 1 at 0, TEMPOS at the ends."""
    slowest, fastest = TEMPOS
    faster, slower = xp.maximum(action, 0.0), xp.minimum(action, 0.0)
    return 1.0 + (fastest - 1.0) * faster + (1.0 - slowest) * slower


def decide(
    spec: LearntSpec,
    weights: Mapping[str, Array],
    features: Array,
    noise: Array | None = None,
    xp: Array = np,
) -> tuple[Array, Array]:
    """Returns the base's action and what is asked for, both [..., A].

    Args:
      spec: the policy. weights: all of them.
      features: [..., F].
      noise: [..., O] normal numbers, to explore; None: the most likely action.
      xp: the array namespace.
    """
    normal = normalize(weights, features, xp)
    base = base_action(spec, weights, normal, xp)
    if not spec.policy:
        return base, base
    mean, log_std = policy_heads(spec, weights, normal, base, xp)
    drawn = mean if noise is None else mean + xp.exp(log_std) * noise
    return base, joined(spec, base, xp.tanh(drawn), xp)


def shapes(spec: LearntSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of base, policy, normalization and, where it is its own, encoder by name."""
    wanted: dict[str, tuple[int, ...]] = {"mean": (spec.features,), "std": (spec.features,)}
    if isinstance(spec, SeeingSpec):
        wanted |= spec.encoder.shapes
    if spec.base:
        wanted |= mlp_shapes("base", (spec.features, *spec.hidden, spec.actions))
    if spec.policy:
        inputs = spec.features + spec.actions * spec.base
        wanted |= mlp_shapes("policy", (inputs, *spec.hidden, 2 * spec.outputs))
    return wanted


def mlp_shapes(name: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of `mlp`'s weights for layers of these sizes, input first."""
    wanted: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        wanted[f"{name}/layer{index}/kernel"] = (inputs, outputs)
        wanted[f"{name}/layer{index}/bias"] = (outputs,)
    return wanted
