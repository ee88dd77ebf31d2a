"""Trains a colour encoder."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.core.types import Array, PyTree
from alohas2r.learning.encoder.cifar10 import CLASSES
from alohas2r.learning.encoder.config import (
    ORDER_STREAM,
    POSE_SCALE,
    SHIFT_STREAM,
    WEIGHTS_STREAM,
    PretrainConfig,
)
from alohas2r.learning.encoder.contrastive import info_nce
from alohas2r.learning.encoder.pictures import OBJECTS, Pictures
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.networks.vision import Encoder
from alohas2r.rendering import augmentation


class _Finder(nn.Module):
    """What reads the code in supervised training: classes of CIFAR-10, or objects of rendered pictures."""

    data: str

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        if self.data == "cifar10":
            return nn.Dense(CLASSES)(code)
        values = nn.relu(nn.Dense(128)(code))
        return nn.Dense(len(OBJECTS) * 10)(values).reshape(-1, len(OBJECTS), 10)


class LearnerState(NamedTuple):
    """What learning changes."""

    params: PyTree  # "encoder", and "finder" or "bilinear"
    target: PyTree  # the key encoder; empty where there is none
    optimizer: PyTree
    updates: jax.Array  # [] int32


class Pretrainer:
    """Losses and updates of both methods.

    Args:
      settings: the configuration.
      seed: of everything random.
      updates: gradient steps in all, over which the learning rate falls.
    """

    def __init__(self, settings: PretrainConfig, seed: int, updates: int):
        self.settings, self.seed = settings, seed
        self.encoder = Encoder(settings.filters)
        self.finder = _Finder(settings.data)
        schedule = optax.cosine_decay_schedule(settings.learning_rate, max(updates, 1))
        self.optimizer = optax.adam(schedule)
        self._step = jax.jit(self._one_step, donate_argnums=0)
        self.measure = jax.jit(self._measure)

    def init(self) -> LearnerState:
        """Returns the learner before the first step."""
        keys = jax.random.split(
            jax.random.fold_in(jax.random.PRNGKey(self.seed), WEIGHTS_STREAM), 2
        )
        size = self.settings.size if self.settings.data == "sim" else 32
        encoder = jax.jit(self.encoder.init)(keys[0], jnp.zeros((1, size, size, 3)))["params"]
        code = jnp.zeros((1, self.settings.filters[-1]))
        params: dict[str, PyTree] = {"encoder": encoder}
        target: PyTree = {}
        if self.settings.method == "supervised":
            params["finder"] = self.finder.init(keys[1], code)["params"]
        else:
            side = code.shape[1]
            # At first, how alike two codes are.
            params["bilinear"] = 0.1 * jnp.eye(side) + 0.01 * jax.random.normal(
                keys[1], (side, side)
            )
            target = encoder
        return LearnerState(params, target, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def encode(self, params: PyTree, rgb: Array) -> jax.Array:
        """Encodes pictures [B, H, W, 3] uint8."""
        return self.encoder.apply({"params": params}, vision_network.scale_rgb(rgb))  # pyright: ignore[reportReturnType]

    def loss(
        self, params: PyTree, target: PyTree, key: jax.Array, batch: Pictures, shift: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of a batch, and figures; see PretrainConfig.method."""
        query_key, key_key, flip_key = jax.random.split(key, 3)
        rgb = augmentation.random_shift(query_key, jnp.asarray(batch.rgb), shift)
        if self.settings.data == "cifar10" and shift:
            flip = jax.random.bernoulli(flip_key, shape=(len(rgb), 1, 1, 1))
            rgb = jnp.where(flip, rgb[:, :, ::-1], rgb)
        code = self.encode(params["encoder"], rgb)
        if self.settings.method == "contrastive":
            other = augmentation.random_shift(key_key, jnp.asarray(batch.rgb), shift)
            codes = _standardized(code), _standardized(self.encode(target, other))
            return info_nce(params["bilinear"], *codes)
        outputs: Array = self.finder.apply({"params": params["finder"]}, code)
        if self.settings.data == "cifar10":
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.label)
            right = jnp.argmax(outputs, -1) == batch.label
            return losses.mean(), {"accuracy": right.mean()}
        visible = jnp.asarray(batch.visible, jnp.float32)
        seen = optax.sigmoid_binary_cross_entropy(outputs[..., 0], visible).mean()
        apart = outputs[..., 1:4] - jnp.clip(batch.position / POSE_SCALE, -4, 4)
        turned = outputs[..., 4:] - batch.rotation
        count = jnp.maximum(visible.sum(), 1)
        position = (jnp.square(apart).mean(-1) * visible).sum() / count
        rotation = (jnp.square(turned).mean(-1) * visible).sum() / count
        figures = {
            "accuracy": ((outputs[..., 0] > 0) == batch.visible).mean(),
            "position_error_mm": 1000
            * POSE_SCALE
            * ((jnp.linalg.norm(apart, axis=-1) * visible).sum() / count),
            "rotation_loss": rotation,
        }
        return seen + position + rotation, figures

    def train(
        self, learner: LearnerState, pictures: Pictures, key: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Passes once over pictures [M], in whole batches; returns figures of each batch.

        One compiled step per batch: inside a compiled loop XLA's gradients of convolutions are some fifty times
        slower on a CPU.
        """
        settings = self.settings
        count = pictures.rgb.shape[0]
        batches = count // settings.batch
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, ORDER_STREAM), count))
        learner = jax.tree.map(
            jnp.copy, learner
        )  # the steps reuse the memory of what they are given
        rows = []
        for chosen in order[: batches * settings.batch].reshape(batches, -1):
            batch = jax.tree.map(lambda leaf, chosen=chosen: np.asarray(leaf)[chosen], pictures)
            learner, figures = self._step(learner, batch, key)
            rows.append(figures)
        return learner, jax.tree.map(lambda *values: jnp.stack(values), *rows)

    def _one_step(
        self, learner: LearnerState, batch: Pictures, key: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Takes one gradient step on a batch."""
        settings = self.settings
        shift_key = jax.random.fold_in(jax.random.fold_in(key, SHIFT_STREAM), learner.updates)
        (loss, figures), gradient = jax.value_and_grad(self.loss, has_aux=True)(
            learner.params, learner.target, shift_key, batch, settings.shift
        )
        updates, optimizer = self.optimizer.update(gradient, learner.optimizer)
        params: PyTree = optax.apply_updates(learner.params, updates)
        target = learner.target
        if settings.method == "contrastive":
            target = optax.incremental_update(params["encoder"], target, 1 - settings.momentum)
        new = LearnerState(params, target, optimizer, learner.updates + 1)
        return new, {"loss": loss, **figures}

    def _measure(
        self, learner: LearnerState, pictures: Pictures, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns figures on pictures [M] that nothing was learnt from."""
        settings = self.settings
        shift = settings.shift if settings.method == "contrastive" else 0
        size = min(settings.batch, pictures.rgb.shape[0])
        batches = pictures.rgb.shape[0] // size

        def one(index: jax.Array) -> dict[str, jax.Array]:
            batch = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(jnp.asarray(leaf), index * size, size),
                pictures,
            )
            loss, figures = self.loss(
                learner.params, learner.target, jax.random.fold_in(key, index), batch, shift
            )
            return {"loss": loss, **figures}

        measured = jax.lax.map(one, jnp.arange(batches))
        return {name: value.mean() for name, value in measured.items()}


def _standardized(code: jax.Array) -> jax.Array:
    """Gives each code [B, E] mean 0 and variance 1, as the layer norm in CURL does."""
    code = code - code.mean(-1, keepdims=True)
    return code / (jnp.sqrt(jnp.square(code).mean(-1, keepdims=True)) + 1e-6)
