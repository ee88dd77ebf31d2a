"""What a teacher would do, and how sure it is of that."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

from alohas2r.envs.vision import Seen
from alohas2r.evaluation.actors import network_inputs
from alohas2r.policies import state as state_policy
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.state import StatePolicy

Teacher: TypeAlias = StagedPolicy | StagedPixelsPolicy  # on the state; or one that sees

LEAST_STD = 0.05  # of an action in [-1, 1]; a teacher is never trusted to be more precise


def wanted(teacher: Teacher, known: jax.Array, seen: Seen | None, switched: jax.Array) -> jax.Array:
    """Returns what a teacher would do in N environments, [N, 14] in [-1, 1] (traceable).

    Args:
      teacher: the mean over several measurements is taken of one on the state.
      known: [N, D, F] what such a one observes. seen: what one observes that sees.
      switched: [N] bool, whether insertion has taken over.
    """
    if isinstance(teacher, StagedPolicy):
        flags = jnp.broadcast_to(switched[:, None], known.shape[:2])
        return teacher.apply(known, flags, jnp).mean(1)
    assert seen is not None
    inputs = network_inputs(teacher.spec, seen, switched)
    return vision_network.forward(teacher.spec, teacher.weights, inputs)


def teacher_std(policy: StatePolicy, features: jax.Array) -> jax.Array:
    """Returns how uncertain a trained policy is of its actions in [-1, 1]: standard deviations [..., n].

    The network's second half of outputs is the scale of a normal distribution before tanh, as PPO trains it;
    the derivative of tanh at the mean carries it over.
    """
    values = jnp.clip((features - policy.weights["mean"]) / policy.weights["std"], -10.0, 10.0)
    layers = len(policy.spec.hidden) + 1
    for layer in range(layers):
        values = (
            values @ policy.weights[f"layer{layer}/kernel"] + policy.weights[f"layer{layer}/bias"]
        )
        if layer < layers - 1:
            values = state_policy.activate(policy.spec.activation, values, jnp)
    mean, raw = jnp.split(values, 2, -1)
    scale = jax.nn.softplus(raw) + 0.001  # Source: brax NormalTanhDistribution, min_std
    return scale * (1 - jnp.tanh(mean) ** 2)


def staged_std(teacher: StagedPolicy, features: jax.Array, switched: jax.Array) -> jax.Array:
    """Returns `teacher_std` of the policy in charge, [..., 14]."""
    size, rates = teacher.pick.spec.observation_size, len(teacher.spec.history.rates)
    bank = features.reshape(*features.shape[:-1], 1 + rates, -1)
    arms = [bank[..., :size], bank[..., size : 2 * size]]
    pick = [teacher_std(teacher.pick, arm.reshape(*arm.shape[:-2], -1)) for arm in arms]
    insert = teacher_std(teacher.insert, features)
    return jnp.where(switched[..., None], insert, jnp.concatenate(pick, -1))
