"""The student: a policy on wrist pictures and proprioception, its networks and its artifact.

An artifact is one directory like a teacher's: policy.json, weights.npz (no pickle) and check.npz. What it takes is
raw, as a robot gives it: pictures as `Frame` has them, joints as `deploy.observe` has them; scaling is part of the
policy. Source of the networks: recipe, section 6.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alohas2r import config, history, images, networks, policy, runlog, scene
from alohas2r.config import check
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.history import HistoryConfig
from alohas2r.policy import ActionSpec, ObservationPart
from alohas2r.scene import Scene
from alohas2r.switching import Switch

OBSERVATIONS = ("rgbd", "depth", "rgb", "state")
SIDES = ("left", "right")
# Filters' side and stride of the colour encoder. Source: recipe, section 6.
ENCODER_LAYERS = ((8, 4), (4, 2), (3, 1))
# Those of the depth-only network, whose last pictures are 4 x 4: about 400,000 parameters in all.
DEPTH_LAYERS = ((8, 4), (4, 2), (3, 2))
PROPRIOCEPTION = (
    ("left/joint_pos", 8, "rad, m"),
    ("right/joint_pos", 8, "rad, m"),
    ("left/joint_pos_minus_target", 8, "rad, m"),
    ("right/joint_pos_minus_target", 8, "rad, m"),
)
_PICTURES = 16  # that are encoded at once in matrix products, so that they stay in a core's cache
AUXILIARY_SCALE = 0.1  # m; size of one unit of the predicted object positions

Tree = Any


@dataclasses.dataclass(frozen=True)
class CameraSpec:
    """The wrist cameras, left first.

    Attributes:
      size: side of the square pictures (pixels).
      fovy_deg: vertical field of view. Source: recipe, section 6.
      depth_cutoff: depth beyond this counts as unknown, 0 (m).
    """

    size: int = 32
    fovy_deg: float = 58.0
    depth_cutoff: float = 0.4

    def __post_init__(self) -> None:
        check(8 <= self.size <= 512, f"size must be in 8..512 pixels, not {self.size}")
        check(0 < self.fovy_deg < 180, f"fovy_deg must be in (0, 180), not {self.fovy_deg}")
        check(0.05 <= self.depth_cutoff <= 10, "depth_cutoff must be in 0.05..10 m")


@dataclasses.dataclass(frozen=True)
class StudentNetworkConfig:
    """Shapes of the networks.

    Attributes:
      hidden: hidden layers after pictures and proprioception are joined.
      activation: between them.
      filters: of the three convolutions.
      embedding: numbers that each picture is reduced to.
      depth_side: side to which a depth picture is reduced where no convolution sees it.
      places: numbers that each place of the encoder's last pictures is reduced to, which keeps where something is
        beside what it is; 0 for their mean over all places alone. Source: ours, see docs/ablations.md.
      patches: numbers of each patch of 4 x 4 pixels of a depth picture, and of each 2 x 2 of these patches, beside
        the reduced picture; () for none. Source: ours, likewise.
    """

    hidden: tuple[int, ...] = (256, 256, 256)
    activation: str = "swish"
    filters: tuple[int, int, int] = (32, 64, 64)
    embedding: int = 64
    depth_side: int = 8
    places: int = 0
    patches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choices = ", ".join(networks.ACTIVATIONS)
        check(self.activation in networks.ACTIVATIONS, f"activation must be one of {choices}")
        check(
            len(self.hidden) > 0 and min(*self.hidden, *self.filters, self.embedding) >= 1,
            "a network needs one or more layers of one or more units",
        )
        check(1 <= self.depth_side <= 64, f"depth_side must be in 1..64, not {self.depth_side}")
        check(0 <= self.places <= 1024, f"places must be in 0..1024, not {self.places}")
        check(
            len(self.patches) in (0, 2) and min(self.patches, default=1) >= 1,
            "patches must be none or two numbers >= 1",
        )


@dataclasses.dataclass(frozen=True)
class StudentSpec:
    """Everything but the weights.

    Attributes:
      kind: "student".
      phase: "insert".
      observation: "rgbd", "depth", "rgb", or "state" for the teacher's own observation.
      cameras: what the pictures are like.
      proprioception: the parts of the vector that is observed beside the pictures, in order.
      history: what is remembered of that vector.
      switch: when insertion takes over; the policy observes its state.
      action: what the actions mean.
      network: shapes.
    """

    kind: str
    phase: str
    observation: str
    cameras: CameraSpec
    proprioception: tuple[ObservationPart, ...]
    history: HistoryConfig
    switch: Switch
    action: ActionSpec
    network: StudentNetworkConfig

    def __post_init__(self) -> None:
        choices = ", ".join(OBSERVATIONS)
        check(
            self.observation in OBSERVATIONS,
            f"observation must be one of {choices}, not '{self.observation}'",
        )
        check(
            not self.network.patches or self.cameras.size % 8 == 0,
            f"patches need pictures whose side is a multiple of 8, not {self.cameras.size}",
        )

    @property
    def vector(self) -> str:
        """Name of the vector that is observed beside the pictures."""
        return "observation" if self.observation == "state" else "proprioception"

    @property
    def vector_size(self) -> int:
        """Its length."""
        return sum(part.size for part in self.proprioception)

    @property
    def features(self) -> int:
        """Numbers the network gets of it, with what is remembered."""
        return self.history.size(self.vector_size)

    @property
    def has_rgb(self) -> bool:
        """Whether colour is observed."""
        return self.observation in ("rgbd", "rgb")

    @property
    def has_depth(self) -> bool:
        """Whether depth is observed."""
        return self.observation in ("rgbd", "depth")

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], str, str]]:
        """What `StudentPolicy.act` takes: name -> shape, dtype, unit."""
        size = self.cameras.size
        found: dict[str, tuple[tuple[int, ...], str, str]] = {}
        for side in SIDES:
            if self.has_rgb:
                found[f"{side}_rgb"] = ((size, size, 3), "uint8", "sRGB")
            if self.has_depth:
                found[f"{side}_depth"] = ((size, size), "float32", "m")
        found[self.vector] = ((self.vector_size,), "float32", "rad, m")
        found["switched"] = ((), "bool", "1")
        return found


def make_spec(
    model: Scene,
    observation: str,
    network: StudentNetworkConfig,
    cameras: CameraSpec,
    memory: HistoryConfig,
    switch: Switch,
    scale: float,
    state_parts: tuple[ObservationPart, ...] = (),
) -> StudentSpec:
    """Returns the description of a student on a two-arm scene.

    Args:
      model: the scene.
      observation: one of OBSERVATIONS.
      network: shapes. cameras: pictures. memory: of the proprioception.
      switch: of the teacher. scale: change of a target by a full action (rad; m).
      state_parts: the teacher's observation; needed by a state student.

    Raises:
      ConfigError: unknown observation.
    """
    ctrl = np.concatenate([arm.ctrl for arm in model.arms])
    parts = tuple(ObservationPart(*part) for part in PROPRIOCEPTION)
    return StudentSpec(
        kind="student",
        phase="insert",
        observation=observation,
        cameras=cameras,
        proprioception=state_parts if observation == "state" else parts,
        history=memory,
        switch=switch,
        action=ActionSpec(
            joints=tuple(f"{arm.name}/{name}" for arm in model.arms for name in scene.ACTUATORS),
            scale=scale,
            low=tuple(float(x) for x in model.ctrl_low[ctrl]),
            high=tuple(float(x) for x in model.ctrl_high[ctrl]),
            control_period_s=scene.CONTROL_PERIOD_S,
        ),
        network=network,
    )


def scale_rgb(rgb: Any) -> Any:
    """Turns colours [..., H, W, 3] uint8 into numbers in 0..1, float32; see `images.preprocess`."""
    rgb = jnp.asarray(rgb)
    height, width = rgb.shape[-3:-1]
    blind = jnp.zeros((height, width), jnp.float32)  # colour does not depend on depth
    return images.preprocess(rgb, blind, images.PreprocessConfig(height, width))[0]


def scale_depth(depth: Any, cutoff: float) -> Any:
    """Turns depth [..., H, W] (m) into 0..1; what is beyond the cut-off is 0; see `images.preprocess`."""
    depth = jnp.asarray(depth)
    height, width = depth.shape[-2:]
    black = jnp.zeros((height, width, 3), jnp.uint8)
    settings = images.PreprocessConfig(height, width, cutoff)
    return images.preprocess(black, depth, settings)[1]


def reduce_nearest(pictures: Any, side: int) -> Any:
    """Picks the pixel nearest to the centre of each cell: [..., S, S] -> [..., side, side]."""
    if pictures.shape[-1] % side == 0:  # the same as below, in a slice instead of two gathers
        step = pictures.shape[-1] // side
        rows = jax.lax.slice_in_dim(pictures, step // 2, None, step, -2)
        return jax.lax.slice_in_dim(rows, step // 2, None, step, -1)
    index = ((np.arange(side) + 0.5) * pictures.shape[-1] / side).astype(int)
    return pictures[..., index, :][..., index]


def shift_pictures(key: jax.Array, rgb: Any, depth: Any, pad: int) -> tuple[Any, Any]:
    """Shifts pictures at random; the border is repeated where a picture leaves it (traceable).

    Args:
      key: random key.
      rgb: [B, C, H, W, 3] or None. depth: [B, C, H, W] or None; a camera's colour and depth move alike.
      pad: largest shift along each axis (pixels).

    Returns:
      Colour and depth, shifted.

    """

    def moved(pictures: Any) -> Any:
        if pictures is None or pad == 0:
            return pictures
        flat = jnp.asarray(pictures).reshape(-1, *pictures.shape[2:])
        return images.random_shift(key, flat, pad).reshape(pictures.shape)

    return moved(rgb), moved(depth)


def cut_patches(pictures: jax.Array, side: int) -> jax.Array:
    """Cuts pictures [B, H, W, F] into squares: [B, H / side, W / side, side * side * F]; the sides must divide."""
    batch, height, width, features = pictures.shape
    rows, columns = height // side, width // side
    cut = pictures.reshape(batch, rows, side, columns, side, features)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, side * side * features)


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
        switched: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps a batch.

        Args:
          rgb: [B, C, E] encoded colour pictures, with `places` [B, C, H, W, E], or None.
          depth: [B, C, S, S] in 0..1, or None.
          features: [B, F] normalized.
          switched: [B] bool.

        Returns:
          Actions before tanh [B, n], those of the next `ahead` steps after them [B, (1 + ahead) n];
          and, if `auxiliary`, where the objects are in the gripper's frame [B, 2, 3] in units of
          AUXILIARY_SCALE.
        """
        network = self.spec.network
        activation = networks.ACTIVATIONS[network.activation]
        batch, seen = features.shape[0], []

        def embed(name: str, values: jax.Array) -> None:
            """Reduces each camera's numbers [B, C, ...] by a layer of its own."""
            for camera, side in enumerate(SIDES):
                layer = nn.Dense(network.embedding, name=f"{side}_{name}")
                seen.append(layer(values[:, camera].reshape(batch, -1)))

        if rgb is not None and network.places:
            embed("rgb", rgb.mean((2, 3)))
            places = rgb.reshape(-1, rgb.shape[-1])  # matrices make simple programs
            places = nn.relu(nn.Dense(network.places, name="places")(places))
            embed("places", places.reshape(batch, len(SIDES), -1))
        elif rgb is not None:
            embed("rgb", rgb)
        if depth is not None:
            embed("depth", self._depth(depth))
            if network.patches and self.spec.observation != "depth":
                embed("patches", self._patches(depth))
        flag = (2.0 * switched - 1.0).reshape(-1, 1)
        values = jnp.concatenate([*seen, features, flag], -1)
        for index, size in enumerate(network.hidden):
            values = activation(nn.Dense(size, name=f"layer{index}")(values))
        small = nn.initializers.variance_scaling(0.01, "fan_in", "uniform")
        actions = len(self.spec.action.joints) * (1 + self.ahead)
        logits = nn.Dense(actions, kernel_init=small, name=f"layer{len(network.hidden)}")(values)
        if not (self.auxiliary and seen):
            return logits, None
        guess = activation(nn.Dense(network.embedding, name="objects0")(jnp.concatenate(seen, -1)))
        guess = nn.Dense(len(SIDES) * 3, name="objects1")(guess)
        return logits, guess.reshape(-1, len(SIDES), 3)

    def _depth(self, depth: jax.Array) -> jax.Array:
        """Returns [B, C, K]: the reduced pictures, or convolutions if depth is all that is seen."""
        network = self.spec.network
        batch, cameras = depth.shape[:2]
        if self.spec.observation != "depth":
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
) -> dict[str, Tree]:
    """Returns random parameters: "head", and "encoder" where colour is observed."""
    encoder_key, head_key = jax.random.split(key)
    size, network = spec.cameras.size, spec.network
    params: dict[str, Tree] = {}
    if spec.has_rgb:
        picture = jnp.zeros((1, size, size, 3))
        params["encoder"] = Encoder(network.filters).init(encoder_key, picture)["params"]
    rgb = None
    if spec.has_rgb:
        pictures = jnp.zeros((1, len(SIDES), size, size, 3), jnp.uint8)
        rgb = jax.eval_shape(functools.partial(encode, spec, params["encoder"]), pictures)
        rgb = jnp.zeros(rgb.shape)
    depth = jnp.zeros((1, len(SIDES), size, size)) if spec.has_depth else None
    features, switched = jnp.zeros((1, spec.features)), jnp.zeros(1, bool)
    head = Head(spec, auxiliary, ahead).init(head_key, rgb, depth, features, switched)
    params["head"] = head["params"]
    return params


def encode(spec: StudentSpec, encoder: Tree, rgb: Any) -> jax.Array:
    """Encodes colour pictures [B, C, H, W, 3] uint8 -> [B, C, E], or [B, C, H', W', E] where places count."""
    flat = scale_rgb(rgb).reshape(-1, *rgb.shape[2:])
    found = Encoder(spec.network.filters, not spec.network.places).apply({"params": encoder}, flat)
    encoded = cast(jax.Array, found)
    return encoded.reshape(*rgb.shape[:2], *encoded.shape[1:])


def encode_in_products(spec: StudentSpec, encoder: Tree, rgb: Any) -> jax.Array:
    """Does the same as `encode`, in matrix products of a few pictures at a time.

    On a CPU that takes 50 us per picture of 32 x 32 instead of 80 us, and rounds differently (1e-5 of a value).
    """
    flat = rgb.reshape(-1, *rgb.shape[2:])
    count = len(flat)
    at_once = next(size for size in range(min(_PICTURES, count), 0, -1) if count % size == 0)

    def some(pictures: jax.Array) -> jax.Array:
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
    found = covered.reshape(-1, covered.shape[-1]) @ matrix
    return found.reshape(batch, rows, columns, -1)


def head(
    spec: StudentSpec,
    params: Tree,
    rgb: Any,
    depth: Any,
    features: Any,
    switched: Any,
    auxiliary: bool = False,
    ahead: int = 0,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the head.

    Args:
      spec: the student.
      params: of the head.
      rgb: from `encode`, or None. depth: [B, C, S, S] metres, or None.
      features: [B, F] normalized. switched: [B] bool.
      auxiliary: whether to predict where the objects are.
      ahead: for how many steps to predict actions on top of the present one.

    Returns:
      As `Head`.
    """
    depth = None if depth is None else scale_depth(depth, spec.cameras.depth_cutoff)
    found = Head(spec, auxiliary, ahead).apply({"params": params}, rgb, depth, features, switched)
    return cast(Any, found)


def forward(spec: StudentSpec, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> jax.Array:
    """Computes actions [B, n] in [-1, 1] from raw pictures and features; pure JAX.

    Args:
      spec: the student.
      weights: name -> array, as in weights.npz.
      inputs: the pictures of `spec.inputs` with a batch axis, "features" [B, F] (the vector with
        its moving averages) and "switched" [B] bool.
    """
    tree = tree_of(weights)
    rgb = depth = None
    if spec.has_rgb:
        pictures = jnp.stack([inputs[f"{side}_rgb"] for side in SIDES], 1)
        rgb = encode(spec, tree["encoder"], pictures)
    if spec.has_depth:
        depth = jnp.stack([inputs[f"{side}_depth"] for side in SIDES], 1)
    features = networks.normalize(inputs["features"], weights["mean"], weights["std"])
    logits, _ = head(spec, tree["head"], rgb, depth, features, inputs["switched"])
    return jnp.tanh(logits)


def flatten(params: Mapping[str, Tree], mean: Any, std: Any) -> dict[str, np.ndarray]:
    """Returns weights by name for a StudentPolicy; what only training needs is left out."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    found = {name: value for name, value in flat.items() if not name.startswith("head/objects")}
    return {name: np.asarray(value) for name, value in (found | {"mean": mean, "std": std}).items()}


def tree_of(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns weights by name as a tree: "mean", "std", "head", and "encoder" where colour is observed."""
    return traverse_util.unflatten_dict(dict(weights), sep="/")


class StudentPolicy:
    """A deterministic policy on pictures and proprioception.

    Args:
      spec: its description.
      weights: "mean", "std" [F] of the features, "encoder/..." and "head/...".
      trained: how it was trained, for policy.json.

    Raises:
      ArtifactError: the weights do not fit the description.
    """

    def __init__(
        self, spec: StudentSpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, Any]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None
        expected = {
            name: value.shape for name, value in jax.eval_shape(lambda: _blank(spec)).items()
        }
        found = {name: value.shape for name, value in self.weights.items()}
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        if wrong:
            name = wrong[0]
            raise ArtifactError(
                f"The weights do not fit policy.json: '{name}' is {found.get(name)},"
                f" not {expected.get(name)}."
            )
        self._forward = jax.jit(functools.partial(forward, spec))

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, inputs: Mapping[str, Any]) -> jax.Array:
        """Computes actions [B, n] from a batch of inputs; see `forward`."""
        return self._forward(self.weights, dict(inputs))

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the action [n] for one observation, as `spec.inputs` lists it, and remembers it.

        Keys that are not needed are ignored, so that an observation of `deploy.observe` will do.

        Raises:
          ArtifactError: an input is missing, has another shape or type, or is not finite.
        """
        inputs: dict[str, Any] = {}
        for name, (shape, dtype, _) in self.spec.inputs.items():
            if name not in observation:
                raise ArtifactError(f"The observation lacks '{name}'.")
            value = np.asarray(observation[name])
            floats = dtype == "float32" and value.dtype.kind == "f"
            if value.shape != shape or not (floats or value.dtype == dtype):
                raise ArtifactError(
                    f"'{name}' must be {dtype} {list(shape)}, not {value.dtype} {list(value.shape)}."
                )
            if not np.isfinite(value).all():
                raise ArtifactError(f"'{name}' is not finite.")
            inputs[name] = value.astype(dtype)[None]
        vector = inputs.pop(self.spec.vector)[0]
        if self._memory is None:
            self._memory = history.init(self.spec.history, len(vector), np)
        self._memory, features = history.update(self.spec.history, self._memory, vector, np)
        return np.asarray(self.apply({**inputs, "features": features[None]}))[0]

    @property
    def hash(self) -> str:
        """Identifies what the policy computes: its description and weights."""
        return digest(self.spec, self.weights)


def digest(spec: Any, weights: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of a description and named arrays."""
    found = hashlib.sha256(config.digest(spec).encode())
    for name in sorted(weights):
        found.update(name.encode())
        found.update(np.ascontiguousarray(weights[name]).tobytes())
    return found.hexdigest()


def _blank(spec: StudentSpec) -> dict[str, jax.Array]:
    """Returns weights of the right shapes."""
    flat: dict[str, Any] = traverse_util.flatten_dict(init(spec, jax.random.PRNGKey(0)), sep="/")
    return flat | {"mean": jnp.zeros(spec.features), "std": jnp.ones(spec.features)}


def _check_actions(found: StudentPolicy, observations: Mapping[str, np.ndarray]) -> np.ndarray:
    found.reset()
    names = list(found.spec.inputs)
    count = len(observations[names[0]])
    actions = [
        found.act({name: observations[name][step] for name in names}) for step in range(count)
    ]
    found.reset()
    return np.stack(actions)


def save(
    found: StudentPolicy,
    folder: str | os.PathLike[str],
    observations: Mapping[str, np.ndarray],
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      found: what to save.
      folder: the directory.
      observations: a recorded sequence for check.npz: each of `spec.inputs` as [T, ...].

    Raises:
      ArtifactError: the folder cannot be written, or the observations are not the policy's.
    """
    missing = sorted(found.spec.inputs.keys() - observations.keys())
    if missing:
        raise ArtifactError(f"The recorded observations lack '{missing[0]}'.")
    rows = {name: np.asarray(observations[name]) for name in found.spec.inputs}
    actions = _check_actions(found, rows)
    description = {
        "format_version": policy.FORMAT_VERSION,
        "hash": found.hash,
        **config.to_dict(found.spec),
        "inputs": [
            {"name": name, "shape": list(shape), "dtype": dtype, "unit": unit}
            for name, (shape, dtype, unit) in found.spec.inputs.items()
        ],
        "trained": found.trained,
    }
    files = {
        "policy.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": policy._npz(found.weights),
        "check.npz": policy._npz({**rows, "actions": actions}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return runlog.write_folder_atomic(folder, write)


def load(folder: str | os.PathLike[str]) -> StudentPolicy:
    """Reads an artifact and verifies that it still computes what it did when it was saved.

    Raises:
      ArtifactError: missing, truncated, too new, no student, inconsistent, or its check fails.
    """
    description = policy.describe(folder)
    if description.get("kind") != "student":
        raise ArtifactError(f"{folder} is no student, but '{description.get('kind')}'.")
    weights = policy._read_npz(pathlib.Path(folder) / "weights.npz")
    try:
        fields = {field.name: description[field.name] for field in dataclasses.fields(StudentSpec)}
        spec = config.from_dict(StudentSpec, fields)
        found = StudentPolicy(spec, weights, description.get("trained", {}))
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder}/policy.json is not a valid policy: {error}") from error
    if found.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    recorded = policy._read_npz(pathlib.Path(folder) / "check.npz")
    missing = sorted({*spec.inputs, "actions"} - recorded.keys())
    if missing:
        raise ArtifactError(f"{folder}/check.npz is damaged: it lacks {missing[0]}.")
    difference = np.abs(_check_actions(found, recorded) - recorded["actions"]).max()
    if not difference <= policy.CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: actions differ by {difference:.2g} on this machine."
        )
    return found
