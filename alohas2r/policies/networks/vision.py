"""The student's network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alohas2r.core.types import Array, PyTree
from alohas2r.embodiment import camera as camera_contract
from alohas2r.policies.networks import mlp, stereo
from alohas2r.policies.networks.patches import cut_patches
from alohas2r.policies.online import insertion
from alohas2r.policies.online.eyes import eyes_of
from alohas2r.policies.online.networks import see
from alohas2r.policies.spec import (
    PIXELS,
    ResidualSpec,
    StagedPixelsSpec,
    StereoSpec,
    StudentSpec,
)

# Filters' side and stride of the colour encoder. Source: the published report.
ENCODER_LAYERS = ((8, 4), (4, 2), (3, 1))
# Those of the depth-only network, whose last pictures are 4 x 4: about 400,000 parameters in all.
DEPTH_LAYERS = ((8, 4), (4, 2), (3, 2))
AUXILIARY_SCALE = 0.1  # m; size of one unit of the predicted object positions
_ONLY_LEARNING = (
    "head/objects",
    "inverse/",
)  # what the names of weights begin with that only training needs


def scale_rgb(rgb: Array) -> Array:
    """Turns colours [..., H, W, 3] uint8 into numbers in 0..1, float32; see `embodiment.camera`."""
    rgb = jnp.asarray(rgb)
    height, width = rgb.shape[-3:-1]
    blind = jnp.zeros((height, width), jnp.float32)  # colour does not depend on depth
    return camera_contract.preprocess(rgb, blind)[0]


def scale_depth(depth: Array, cutoff: float) -> Array:
    """Turns depth [..., H, W] (m) into 0..1; what is beyond the cut-off is 0; see `embodiment.camera`."""
    depth = jnp.asarray(depth)
    height, width = depth.shape[-2:]
    black = jnp.zeros((height, width, 3), jnp.uint8)
    return camera_contract.preprocess(black, depth, cutoff)[1]


def reduce_nearest(pictures: Array, side: int) -> Array:
    """Picks the pixel nearest to the centre of each cell: [..., S, S] -> [..., side, side]."""
    if pictures.shape[-1] % side == 0:  # the same as below, in a slice instead of two gathers
        step = pictures.shape[-1] // side
        rows = jax.lax.slice_in_dim(pictures, step // 2, None, step, -2)
        return jax.lax.slice_in_dim(rows, step // 2, None, step, -1)
    index = ((np.arange(side) + 0.5) * pictures.shape[-1] / side).astype(int)
    return pictures[..., index, :][..., index]


class Encoder(nn.Module):
    """Colour picture [B, H, W, 3] in 0..1 -> [B, filters[-1]]: three convolutions and the mean.

    Attributes:
      filters: of the convolutions.
      mean: whether to take the mean of the last pictures; else they are returned, [B, H', W', filters[-1]].
    """

    filters: tuple[int, ...] = (32, 64, 64)
    mean: bool = True

    @nn.compact
    def __call__(self, rgb: jax.Array) -> jax.Array:
        """Encodes a batch of pictures."""
        values = rgb
        for count, (side, stride) in zip(self.filters, ENCODER_LAYERS, strict=True):
            conv = nn.Conv(count, (side, side), (stride, stride), padding="SAME", use_bias=False)
            values = nn.relu(conv(values))
        return values.mean((1, 2)) if self.mean else values


class Head(nn.Module):
    """Everything after the colour encoder: pictures' embeddings and proprioception -> actions."""

    spec: StudentSpec
    auxiliary: bool = False
    ahead: int = 0

    @nn.compact
    def __call__(
        self,
        rgb: jax.Array | None,
        depth: jax.Array | None,
        features: jax.Array,
        switched: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps a batch.

        Args:
          rgb: [B, C, E] encoded colour pictures, with `places` [B, C, H, W, E], or None.
          depth: [B, C, S, S] in 0..1, or None.
          features: [B, F] normalized.
          switched: [B] bool, or None of a policy that observes no switch.

        Returns:
          Actions before tanh [B, n], those of the next `ahead` steps after them [B, (1 + ahead) n];
          and, if `auxiliary`, where the objects are in the gripper's frame [B, C, 3] in units of
          AUXILIARY_SCALE; of a policy from pixels [B, C, 4], the last the logit of being in sight.
        """
        network, views = self.spec.network, self.spec.views
        activation = mlp.ACTIVATIONS[network.activation]
        batch, seen = features.shape[0], []

        def embed(name: str, values: jax.Array) -> None:
            """Reduces each camera's numbers [B, C, ...] by a layer of its own."""
            for camera, view in enumerate(views):
                layer = nn.Dense(network.embedding, name=f"{view}_{name}")
                seen.append(layer(values[:, camera].reshape(batch, -1)))

        if rgb is not None and network.places:
            embed("rgb", rgb.mean((2, 3)))
            places = rgb.reshape(-1, rgb.shape[-1])  # matrices make simple programs
            places = nn.relu(nn.Dense(network.places, name="places")(places))
            embed("places", places.reshape(batch, len(views), -1))
        elif rgb is not None:
            embed("rgb", rgb)
        if depth is not None:
            embed("depth", self._depth(depth))
            if network.patches and not self.spec.convolves_depth:
                embed("patches", self._patches(depth))
        flag = [] if switched is None else [(2.0 * switched - 1.0).reshape(-1, 1)]
        values = jnp.concatenate([*seen, features, *flag], -1)
        for index, size in enumerate(network.hidden):
            values = activation(nn.Dense(size, name=f"layer{index}")(values))
        small = nn.initializers.variance_scaling(0.01, "fan_in", "uniform")
        actions = len(self.spec.action.joints) * (1 + self.ahead)
        logits = nn.Dense(actions, kernel_init=small, name=f"layer{len(network.hidden)}")(values)
        if not (self.auxiliary and seen):
            return logits, None
        guess = activation(nn.Dense(network.embedding, name="objects0")(jnp.concatenate(seen, -1)))
        told = 4 if self.spec.kind == PIXELS else 3
        guess = nn.Dense(len(views) * told, name="objects1")(guess)
        return logits, guess.reshape(-1, len(views), told)

    def _depth(self, depth: jax.Array) -> jax.Array:
        """Returns [B, C, K]: the reduced pictures, or convolutions if depth is all that is seen."""
        network = self.spec.network
        batch, cameras = depth.shape[:2]
        if not self.spec.convolves_depth:
            return reduce_nearest(depth, network.depth_side).reshape(batch, cameras, -1)
        values = depth.reshape(-1, *depth.shape[2:], 1)
        for index, (count, (side, stride)) in enumerate(
            zip(network.filters, DEPTH_LAYERS, strict=True)
        ):
            conv = nn.Conv(
                count, (side, side), (stride, stride), padding="SAME", name=f"depth{index}"
            )
            values = nn.relu(conv(values))
        return values.reshape(batch, cameras, -1)

    def _patches(self, depth: jax.Array) -> jax.Array:
        """Returns [B, C, K]: what is in each patch, from depth and whether it is known, then in 2 x 2 of them."""
        first, second = self.spec.network.patches
        batch, cameras, *size = depth.shape
        pictures = depth.reshape(-1, *size)
        values = jnp.stack([pictures, jnp.asarray(pictures > 0, jnp.float32)], -1)
        for index, (count, side) in enumerate(((first, 4), (second, 2))):
            cut = cut_patches(values, side)
            flat = cut.reshape(-1, cut.shape[-1])  # matrices make simple programs
            values = nn.relu(nn.Dense(count, name=f"patches{index}")(flat))
            values = values.reshape(*cut.shape[:-1], count)
        return values.reshape(batch, cameras, -1)


def init(
    spec: StudentSpec, key: jax.Array, auxiliary: bool = False, ahead: int = 0
) -> dict[str, PyTree]:
    """Returns random parameters: "head"; "encoder" where colour is observed; "inverse" of pairs, if `auxiliary`."""
    encoder_key, head_key = jax.random.split(key)
    size, network = spec.cameras.size, spec.network
    params: dict[str, PyTree] = {}
    channels = 4 if spec.paired else 3
    if isinstance(spec, StereoSpec):
        params |= stereo.init(spec, encoder_key, auxiliary)
    elif spec.has_rgb:
        picture = jnp.zeros((1, size, size, 3))
        params["encoder"] = Encoder(network.filters).init(encoder_key, picture)["params"]
    rgb = None
    if spec.has_rgb:
        pictures = jnp.zeros((1, len(spec.views), size, size, channels), jnp.uint8)
        rgb = jax.eval_shape(functools.partial(encode, spec, params["encoder"]), pictures)
        rgb = jnp.zeros(rgb.shape)
    depth = jnp.zeros((1, len(spec.views), size, size)) if spec.has_depth else None
    features, switched = jnp.zeros((1, spec.features)), None
    if spec.switches:
        switched = jnp.zeros(1, bool)
    head = Head(spec, auxiliary, ahead).init(head_key, rgb, depth, features, switched)
    params["head"] = head["params"]
    return params


def encode(spec: StudentSpec, encoder: PyTree, rgb: Array) -> jax.Array:
    """Encodes colour pictures [B, C, H, W, 3] uint8 -> [B, C, E], or [B, C, H', W', E] where places count.

    Pairs of pictures are [B, C, H, W, 4], the last channel the right imager's grey.
    """
    if isinstance(spec, StereoSpec):
        return stereo.encode(spec, encoder, rgb)
    flat = scale_rgb(rgb).reshape(-1, *rgb.shape[2:])
    features = Encoder(spec.network.filters, not spec.network.places).apply(
        {"params": encoder}, flat
    )
    encoded = cast(jax.Array, features)
    return encoded.reshape(*rgb.shape[:2], *encoded.shape[1:])


def head(
    spec: StudentSpec,
    params: PyTree,
    rgb: Array,
    depth: Array,
    features: Array,
    switched: Array | None,
    auxiliary: bool = False,
    ahead: int = 0,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the head.

    Args:
      spec: the student.
      params: of the head.
      rgb: from `encode`, or None. depth: [B, C, S, S] metres, or None.
      features: [B, F] normalized. switched: [B] bool, or None of a policy that observes no switch.
      auxiliary: whether to predict where the objects are.
      ahead: for how many steps to predict actions on top of the present one.

    Returns:
      As `Head`.
    """
    depth = None if depth is None else scale_depth(depth, spec.cameras.depth_cutoff)
    output = Head(spec, auxiliary, ahead).apply({"params": params}, rgb, depth, features, switched)
    return cast(Array, output)


def forward(
    spec: StudentSpec, weights: Mapping[str, Array], inputs: Mapping[str, Array]
) -> jax.Array:
    """Computes actions [B, n] in [-1, 1] from raw pictures and features; pure JAX.

    Args:
      spec: the student.
      weights: name -> array, as in weights.npz.
      inputs: the pictures of `spec.inputs` with a batch axis, "features" [B, F] (the vector with
        its moving averages) and, where there is a switch, "switched" [B] bool.
    """
    if isinstance(spec, StagedPixelsSpec):
        return _staged(spec, weights, inputs)
    tree = tree_of(weights)
    rgb = depth = None
    if spec.has_rgb:
        pictures = jnp.stack([inputs[f"{view}_rgb"] for view in spec.views], 1)
        if spec.paired:
            grey = jnp.stack([inputs[f"{view}_grey"] for view in spec.views], 1)
            pictures = jnp.concatenate([pictures, grey[..., None]], -1)
        rgb = encode(spec, tree["encoder"], pictures)
    if spec.has_depth:
        depth = jnp.stack([inputs[f"{view}_depth"] for view in spec.views], 1)
    features = mlp.normalize(inputs["features"], weights["mean"], weights["std"])
    switched = inputs["switched"] if spec.switches else None
    logits, _ = head(spec, tree["head"], rgb, depth, features, switched)
    actions = jnp.tanh(logits)
    if not isinstance(spec, ResidualSpec):
        return actions
    assert rgb is not None
    near = scale_depth(depth, spec.cameras.depth_cutoff)
    seen = [
        see(spec, eyes_of(weights, view, spec.network), rgb[:, at], near[:, at], jnp)
        for at, view in enumerate(spec.views)
    ]
    told = insertion.features_of(seen, jnp.asarray(inputs["features"]), actions, jnp)
    other = insertion.corrected(spec, weights, told, actions, jnp)
    return jnp.where(inputs["switched"][:, None], other, actions)


def _staged(
    spec: StagedPixelsSpec, weights: Mapping[str, Array], inputs: Mapping[str, Array]
) -> jax.Array:
    """Does the same as `forward` for two policies from pixels, whose weights are "pick/..." and "insert/..."."""

    def part(name: str) -> dict[str, Array]:
        lead = f"{name}/"
        return {key.removeprefix(lead): weights[key] for key in weights if key.startswith(lead)}

    features, arms = jnp.asarray(inputs["features"]), len(spec.views)
    # Newest and averages; positions, and positions less targets; arms; joints.
    times, joints = 1 + len(spec.history.rates), spec.vector_size // (2 * arms)
    bank = features.reshape(-1, times, 2, arms, joints)
    apart = []
    for arm, view in enumerate(spec.views):
        own = bank[:, :, :, arm].reshape(-1, times, 2 * joints)
        # Where to bring the object never changes, nor do its averages.
        target = own[..., :3] * 0 + jnp.asarray(spec.targets[arm], jnp.float32)
        seen = jnp.concatenate([own, target], -1).reshape(-1, spec.pick.features)
        alone = {"features": seen, f"{spec.pick.views[0]}_depth": inputs[f"{view}_depth"]}
        apart.append(forward(spec.pick, part("pick"), alone))
    both = forward(spec.insert, part("insert"), inputs)
    return jnp.where(inputs["switched"][:, None], both, jnp.concatenate(apart, -1))


def flatten(params: Mapping[str, PyTree], mean: Array, std: Array) -> dict[str, np.ndarray]:
    """Returns weights by name for a StudentPolicy; what only training needs is left out."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    weights = {name: value for name, value in flat.items() if not name.startswith(_ONLY_LEARNING)}
    return {
        name: np.asarray(value) for name, value in (weights | {"mean": mean, "std": std}).items()
    }


def tree_of(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns weights by name as a tree: "mean", "std", "head", and "encoder" where colour is observed."""
    return traverse_util.unflatten_dict(dict(weights), sep="/")
