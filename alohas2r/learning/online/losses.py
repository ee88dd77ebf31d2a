"""What critics and policy learn from a batch; pure JAX on named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.learning.online.replay import Batch
from alohas2r.policies.online import networks
from alohas2r.policies.online.config import OnlineConfig
from alohas2r.policies.online.spec import LearntSpec

Weights = Mapping[str, Array]

# Of critics that say a distribution (HL-Gauss: Farebrother et al., Stop Regressing, 2024): its range, where a success
# is worth 1, with room for what a number is spread over; the spread, in widths of a bin.
_RANGE = -0.1, 1.1
_SPREAD = 0.75


class Drawn(NamedTuple):
    """What the policy does: [B, A] joined with the base, the logarithm of its density [B], its mean [B, O]."""

    action: Array
    log_density: Array
    mean: Array


def init_critics(
    spec: LearntSpec, config: OnlineConfig, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns random critics: each array has them all on its first axis."""
    sizes = (spec.features + spec.actions, *config.hidden, config.bins or 1)
    several = [
        networks.init_mlp(draw, "critic", sizes, normalized=config.normalized)
        for _ in range(config.critics)
    ]
    return {name: np.stack([one[name] for one in several]) for name in several[0]}


def values(config: OnlineConfig, critics: Weights, normal: Array, action: Array) -> Array:
    """Returns what each critic thinks of actions, [K, B]."""
    said = _said(config, critics, normal, action)
    if not config.bins:
        return said[..., 0]
    edges = _edges(config)
    return jax.nn.softmax(said) @ ((edges[1:] + edges[:-1]) / 2)


def _said(config: OnlineConfig, critics: Weights, normal: Array, action: Array) -> Array:
    """Returns what critics say as they do, [K, B, 1 or bins]."""
    inputs = jnp.concatenate([normal, action], -1)
    critics = {name: critics[name] for name in critics if name.startswith("critic/")}

    def one(weights: Weights) -> Array:
        return networks.mlp(weights, "critic", inputs, len(config.hidden), jnp)

    return jax.vmap(one)(critics)


def _edges(config: OnlineConfig) -> Array:
    """Returns the bins' edges [bins + 1]."""
    return jnp.linspace(*_RANGE, config.bins + 1)


def spread(config: OnlineConfig, target: Array) -> Array:
    """Returns numbers [B] as distributions over the bins, [B, bins]."""
    edges = _edges(config)
    width = _SPREAD * (edges[1] - edges[0])
    below = jax.scipy.stats.norm.cdf(edges, jnp.clip(target, 0, 1)[..., None], width)
    share = below[..., 1:] - below[..., :-1]
    return share / share.sum(-1, keepdims=True)


def act(spec: LearntSpec, weights: Weights, normal: Array, noise: Array) -> Drawn:
    """Returns what base and policy do with noise [B, O]."""
    base = networks.base_action(spec, weights, normal, jnp)
    mean, log_std = networks.policy_heads(spec, weights, normal, base, jnp)
    drawn = mean + jnp.exp(log_std) * noise
    squashed = jnp.tanh(drawn)
    gauss = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
    # log(1 - tanh^2), stable: 2 (log 2 - x - softplus(-2x)).
    change = 2 * (jnp.log(2.0) - drawn - jax.nn.softplus(-2 * drawn))
    action = networks.joined(spec, base, squashed, jnp)
    return Drawn(action, (gauss - change).sum(-1), jnp.tanh(mean))


def _asked(spec: LearntSpec, config: OnlineConfig, features: Array, action: Array) -> Array:
    """Returns what critics are asked about where actions [B, A] are wanted."""
    return spec.possible(features, action, jnp) if config.possible else action


def critic_loss(
    config: OnlineConfig,
    critics: Weights,
    target: Array,
    normal: Array,
    action: Array,
) -> tuple[Array, Array]:
    """Returns the squared error of all critics, or the cross entropy of their bins, and their mean value."""
    value = values(config, critics, normal, action)
    if not config.bins:
        return ((value - target[None]) ** 2).mean(), value.mean()
    said = jax.nn.log_softmax(_said(config, critics, normal, action))
    return -(spread(config, target) * said).sum(-1).mean(), value.mean()


def target_value(
    spec: LearntSpec,
    config: OnlineConfig,
    weights: Weights,
    slow: Weights,
    batch: Batch,
    key: jax.Array,
    temperature: Array,
    slow_features: Array | None = None,
) -> Array:
    """Returns what the critics should say [B]: rewards, and the least value where they led.

    Args:
      spec: the policy. config: how it learns.
      weights: of the policy. slow: of the critics' slow copies.
      batch: decisions. key: of what is drawn.
      temperature: worth of entropy, where it counts.
      slow_features: [B, F] of where they led, as the slow encoder sees it; None: as in the batch.
    """
    noise_key, choice_key = jax.random.split(key)
    normal = networks.normalize(weights, batch.next_features, jnp)
    noise = jax.random.normal(noise_key, (*batch.action.shape[:-1], spec.outputs))
    drawn = act(spec, weights, normal, noise)
    action = _asked(spec, config, batch.next_features, drawn.action)
    seen = normal
    if slow_features is not None:
        seen = networks.normalize(weights, slow_features, jnp)
    said = values(config, slow, seen, action)
    chosen = jax.random.permutation(choice_key, config.critics)[: config.least_of]
    worth = said[chosen].min(0)
    if config.soft:
        worth -= temperature * drawn.log_density
    return batch.returns + batch.discount * worth


def policy_loss(
    spec: LearntSpec,
    config: OnlineConfig,
    policy: Weights,
    weights: Weights,
    critics: Weights,
    temperature: Array,
    batch: Batch,
    noise: Array,
    near: Array,
) -> tuple[Array, Array]:
    """Returns the policy's loss and the mean entropy.

    Args:
      spec: the policy. config: how it learns.
      policy: what is differentiated. weights: all others of the policy. critics: who judge.
      temperature: worth of entropy.
      batch: decisions. noise: [B, O] that is drawn.
      near: weight of the distance from what was executed, in units of the critics' values (TD3+BC).
    """
    normal = networks.normalize(weights, batch.features, jnp)
    weights = {**weights, **policy}
    drawn = act(spec, weights, normal, noise)
    action = _asked(spec, config, batch.features, drawn.action)
    said = values(config, critics, normal, action)
    worth = said.min(0) if config.critics == config.least_of else said.mean(0)
    loss = (temperature * drawn.log_density - worth).mean()
    still = act(spec, weights, normal, jnp.zeros_like(noise)).action
    away = ((_asked(spec, config, batch.features, still) - batch.action) ** 2).mean()
    loss += near * jax.lax.stop_gradient(jnp.abs(worth).mean()) * away
    if config.demo_weight:
        apart = ((drawn.mean[..., : spec.actions] - batch.action) ** 2).mean(-1)
        share = batch.demo.astype(jnp.float32)
        loss += config.demo_weight * (apart * share).sum() / jnp.maximum(share.sum(), 1.0)
    return loss, -drawn.log_density.mean()
