"""Cloning of demonstrations: what a base or a policy begins with."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.core.types import Array, PyTree
from alohas2r.learning.online.replay import Replay
from alohas2r.policies.online import networks
from alohas2r.policies.online.spec import LearntSpec

_BATCH, _RATE, _DECAY = 128, 1e-3, 1e-4
_GROUP = 50  # steps of one compiled call


def clone(
    spec: LearntSpec,
    weights: Mapping[str, np.ndarray],
    demos: Replay,
    steps: int,
    noise: float,
    seed: int,
) -> tuple[dict[str, np.ndarray], float]:
    """Learns to do what demonstrations do: the base, or the policy's most likely action where there is no base.

    Args:
      spec: the policy. weights: all of them, to begin with.
      demos: what was done. steps: of learning.
      noise: of normalized features. seed: of all that is drawn.

    Returns:
      The weights, and the mean squared error at the end.
    """
    part = "base" if spec.base else "policy"
    learnt = {name: jnp.asarray(weights[name]) for name in weights if name.startswith(f"{part}/")}
    fixed = {name: jnp.asarray(value) for name, value in weights.items() if name not in learnt}
    optimizer = optax.adamw(_RATE, weight_decay=_DECAY)
    state: PyTree = optimizer.init(learnt)

    def loss(learnt: Mapping[str, Array], features: Array, action: Array, key: Array) -> Array:
        every = {**fixed, **learnt}
        normal = networks.normalize(every, features, jnp)
        normal = normal + noise * jax.random.normal(key, normal.shape)
        if spec.base:
            said = networks.base_action(spec, every, normal, jnp)
        else:
            base = networks.base_action(spec, every, normal, jnp)
            said = jnp.tanh(networks.policy_heads(spec, every, normal, base, jnp)[0])
        return ((said - action) ** 2).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def learn(learnt: PyTree, state: PyTree, features: Array, action: Array, keys: Array) -> PyTree:
        def step(carried: PyTree, given: PyTree) -> PyTree:
            learnt, state = carried
            value, slope = jax.value_and_grad(loss)(learnt, *given)
            change, state = optimizer.update(slope, state, learnt)
            return (optax.apply_updates(learnt, change), state), value

        (learnt, state), losses = jax.lax.scan(step, (learnt, state), (features, action, keys))
        return learnt, state, losses

    draw, last = np.random.default_rng([seed, 7]), float("nan")
    for first in range(0, steps, _GROUP):
        several = [demos.sample(draw, _BATCH, 1, 0.0) for _ in range(_GROUP)]
        features = np.stack([one.features for one in several])
        action = np.stack([one.action for one in several])
        keys = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(seed), first), _GROUP)
        learnt, state, losses = learn(learnt, state, features, action, keys)
        last = float(losses.mean())
    done = {name: np.asarray(value) for name, value in learnt.items()}
    return {**weights, **done}, last
