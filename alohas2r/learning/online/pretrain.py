"""What an encoder learns of demonstrations before anything else is learnt.

Each step is a compiled call: gradients of convolutions inside a compiled loop are far slower on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.core.types import Array, PyTree
from alohas2r.errors import ArtifactError
from alohas2r.learning.encoder.contrastive import info_nce
from alohas2r.learning.online.crops import crop, pictures, see
from alohas2r.learning.online.experience import Closed, Row
from alohas2r.policies.online.config import OnlineConfig
from alohas2r.policies.online.encoder import init_encoder
from alohas2r.policies.online.spec import EncoderSpec, SeeingSpec

_RATE = 1e-3  # of Adam. Source: FERM
Weights = Mapping[str, Array]
Loss = Callable[[Weights, Weights, Array, Array, jax.Array], Array]


def first_encoder(
    spec: SeeingSpec,
    config: OnlineConfig,
    rows: Sequence[Row | Closed],
    seed: int,
    stay: Callable[[], None] = lambda: None,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Returns the encoder that a run begins with.

    Args:
      spec: the policy. config: how it learns, and which encoder.
      rows: of demonstrations. seed: of all that is drawn.
      stay: called before each step; raises to leave.

    Returns:
      Weights "encoder/...", and the loss of each step: nats of telling crops of the same picture from those of others
      ("contrastive"), or the mean squared error of what is known beside a picture ("supervised"); none of "scratch".

    Raises:
      ArtifactError: the demonstrations hold fewer than two decisions.
    """
    weights = init_encoder(spec.encoder, np.random.default_rng([seed, 8]))
    if config.encoder == "scratch":
        return weights, []
    rgb, depth, told = labelled(spec, rows)
    if config.encoder == "contrastive":
        # At first, how alike two codes are.
        extra = {"bilinear": np.float32(0.1) * np.eye(spec.encoder.features, dtype=np.float32)}
        loss: Loss = functools.partial(_contrast, spec.encoder)
    else:
        draw = np.random.default_rng([seed, 9])
        kernel = draw.normal(0, 0.1, (spec.encoder.features, told.shape[1]))
        extra = {"kernel": kernel.astype(np.float32)}
        loss = functools.partial(_supervise, spec.encoder)
    shown = np.asarray(pictures(spec, jnp.asarray(rgb), jnp.asarray(depth)))
    return _train(loss, weights, extra, (shown, told), config, seed, stay)


def labelled(
    spec: SeeingSpec, rows: Sequence[Row | Closed]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pictures of decisions whose outcome is known, and what is known beside them.

    Returns:
      [N, H, W, 3] uint8, [N, H, W] m, and [N, A + 16]: what was done then, and what the arm felt; standardized.

    Raises:
      ArtifactError: N would be less than 2.
    """
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    told: list[np.ndarray] = []
    for index, one in enumerate(rows):
        after = rows[index + 1] if index + 1 < len(rows) else None
        if isinstance(one, Row) and isinstance(after, Closed):
            rgb, depth = (one.inputs[f"{spec.side}_{kind}"] for kind in ("rgb", "depth"))
            shown.append((rgb, depth))
            told.append(np.concatenate([after.action, spec.own(one.proprioception)]))
    if len(shown) < 2:
        raise ArtifactError(
            "The demonstrations hold fewer than two decisions to learn an encoder of: record others."
        )
    rgbs, depths = (np.stack(several) for several in zip(*shown, strict=True))
    values = np.stack(told)
    values = (values - values.mean(0)) / np.maximum(values.std(0), 0.01)
    return rgbs, depths, values.astype(np.float32)


def _contrast(
    spec: EncoderSpec, weights: Weights, slow: Weights, shown: Array, told: Array, key: jax.Array
) -> Array:
    """Returns how badly crops of pictures tell their own from others, as the slow copy sees those."""
    one, other = jax.random.split(key)
    queries = see(spec, weights, crop(shown, spec.crop, one))
    keys = see(spec, slow, crop(shown, spec.crop, other))
    return info_nce(weights["bilinear"], queries, keys)[0]


def _supervise(
    spec: EncoderSpec, weights: Weights, slow: Weights, shown: Array, told: Array, key: jax.Array
) -> Array:
    """Returns how badly a linear layer tells what is known beside a picture."""
    said = see(spec, weights, crop(shown, spec.crop, key)) @ weights["kernel"]
    return ((said - told) ** 2).mean()


def _train(
    loss: Loss,
    weights: Mapping[str, np.ndarray],
    extra: Mapping[str, np.ndarray],
    data: tuple[np.ndarray, np.ndarray],
    config: OnlineConfig,
    seed: int,
    stay: Callable[[], None],
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Returns the encoder's weights, without what only the loss needs, and the losses."""
    optimizer = optax.adam(_RATE)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carried: PyTree, shown: Array, told: Array, key: jax.Array) -> PyTree:
        learnt, slow, memory = carried
        value, slope = jax.value_and_grad(loss)(learnt, slow, shown, told, key)
        change, memory = optimizer.update(slope, memory, learnt)
        learnt = cast(dict[str, Array], optax.apply_updates(learnt, change))
        newest = {name: learnt[name] for name in slow}
        slow = jax.tree.map(lambda a, b: a + config.encoder_tau * (b - a), slow, newest)
        return (learnt, slow, memory), value

    learnt = {name: jnp.array(value) for name, value in {**weights, **extra}.items()}
    slow = {name: jnp.array(value) for name, value in weights.items()}
    carried: PyTree = (learnt, slow, optimizer.init(learnt))
    draw, first = np.random.default_rng([seed, 10]), jax.random.PRNGKey(seed)
    shown, told = data
    count, losses = min(config.batch, len(shown)), []
    for number in range(config.encoder_steps):
        stay()
        at = draw.choice(len(shown), count, replace=False)
        key = jax.random.fold_in(first, number)
        carried, value = step(carried, shown[at], told[at], key)
        losses.append(value)
    return {name: np.asarray(carried[0][name]) for name in weights}, [float(one) for one in losses]
