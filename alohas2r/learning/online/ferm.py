"""The arm that learns its encoder by the critics' gradient, from pictures, as FERM does.

Each update is a compiled call of its own: gradients of convolutions inside a compiled loop are far slower on a CPU.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.core.types import Array, PyTree
from alohas2r.learning.online import losses
from alohas2r.learning.online.algorithm import OnlineAlgorithm, State
from alohas2r.learning.online.crops import crop, pictures, see
from alohas2r.learning.online.replay import Batch, Replay, Shown
from alohas2r.policies.online import networks
from alohas2r.policies.online.config import SeeingRun

_ENCODER = "encoder/"


class FermAlgorithm(OnlineAlgorithm):
    """See `OnlineAlgorithm`; among what critics and their slow copies are is the encoder.

    The policy sees by the critics' encoder and does not change it.

    Args:
      folder: of the run. run: what it is. parent: as of `OnlineAlgorithm`.
    """

    def __init__(self, folder: pathlib.Path, run: SeeingRun, parent: int | None = None) -> None:
        self._seeing = run.spec
        super().__init__(folder, run, {}, parent)
        self._judge = jax.jit(self._judged, donate_argnums=0)
        self._act = jax.jit(self._acted, donate_argnums=0)

    def _replay(self, demos: bool) -> Replay:
        return Replay(self._seeing, {}, demos, pictures=True)

    def _critics(self, draw: np.random.Generator) -> dict[str, np.ndarray]:
        return {**super()._critics(draw), **self._eyes}

    def _first(self, draw: np.random.Generator) -> dict[str, np.ndarray]:
        weights = super()._first(draw)
        return {name: weights[name] for name in weights if not name.startswith(_ENCODER)}

    def _weights(self, state: State) -> dict[str, np.ndarray]:
        names = (name for name in state.critics if name.startswith(_ENCODER))
        return {
            **super()._weights(state),
            **{name: np.asarray(state.critics[name]) for name in names},
        }

    def _improve(
        self, learning: PyTree, draw: np.random.Generator, key: jax.Array, near: float = 0.0
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """Makes `policy_every` updates of the critics, and one of the policy."""
        every, total = self._run.config.policy_every, jnp.zeros(2)
        keys = jax.random.split(key, every + 1)
        several = [self._sample(draw) for _ in range(every)]
        for batch, each in zip(several, keys[1:], strict=True):
            learning, figures = self._judge(learning, self._fixed, batch, each)
            total = total + figures / every
        learning, figures = self._act(learning, self._fixed, several[-1], keys[0], near)
        return learning, {"critic_loss": total[0], "value": total[1], **figures}

    def _features(self, encoder: Mapping[str, Array], shown: Shown, key: jax.Array) -> Array:
        """Returns features [B, F] of random crops."""
        spec = self._seeing
        crops = crop(pictures(spec, shown["rgb"], shown["depth"]), spec.encoder.crop, key)
        return jnp.concatenate([see(spec.encoder, encoder, crops), shown["felt"]], -1)

    def _judged(
        self, learning: PyTree, fixed: Mapping[str, Array], batch: Batch, key: jax.Array
    ) -> tuple[PyTree, Array]:
        """An update of critics and encoder; returns the loss and the mean value."""
        spec, config = self._seeing, self._run.config
        policy, critics, slow, log_temperature, optimizers = learning
        weights = {**fixed, **policy}
        here, there, drawn = jax.random.split(key, 3)
        known = batch._replace(next_features=self._features(critics, batch.next_features, there))
        target = losses.target_value(
            spec,
            config,
            weights,
            slow,
            known,
            drawn,
            jnp.exp(log_temperature),
            self._features(slow, batch.next_features, there),
        )

        def loss(critics: Mapping[str, Array]) -> tuple[Array, Array]:
            seen = self._features(critics, batch.features, here)
            normal = networks.normalize(weights, seen, jnp)
            return losses.critic_loss(config, critics, target, normal, batch.action)

        (error, value), slope = jax.value_and_grad(loss, has_aux=True)(critics)
        change, memory = self._optimizers[1].update(slope, optimizers[1], critics)
        critics = cast(dict[str, Array], optax.apply_updates(critics, change))
        taus = {
            name: config.encoder_tau if name.startswith(_ENCODER) else config.tau for name in slow
        }
        slow = {name: old + taus[name] * (critics[name] - old) for name, old in slow.items()}
        memories = (optimizers[0], memory, optimizers[2])
        return (policy, critics, slow, log_temperature, memories), jnp.stack([error, value])

    def _acted(
        self,
        learning: PyTree,
        fixed: Mapping[str, Array],
        batch: Batch,
        key: jax.Array,
        near: Array,
    ) -> tuple[PyTree, dict[str, Array]]:
        """An update of the policy."""
        cropping, rest = jax.random.split(key)
        seen = self._features(learning[1], batch.features, cropping)
        return self._follow(learning, fixed, batch._replace(features=seen), rest, near)
