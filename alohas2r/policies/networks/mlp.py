"""Networks as flax modules."""

from __future__ import annotations

import dataclasses
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from alohas2r.config import check
from alohas2r.core.types import PyTree
from alohas2r.policies import spec

ACTIVATIONS = {name: getattr(nn, name) for name in spec.ACTIVATIONS}


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Shapes of the networks.

    Attributes:
      policy: hidden layer sizes of the policy.
      value: hidden layer sizes of the critic.
      activation: one of ACTIVATIONS.
    """

    policy: tuple[int, ...] = (128, 128)
    value: tuple[int, ...] = (128, 128)
    activation: str = "swish"

    def __post_init__(self) -> None:
        check(self.activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}")
        for sizes in (self.policy, self.value):
            check(
                len(sizes) >= 1 and min(sizes) >= 1,
                "a network needs one or more layers of one or more units",
            )


class MLP(nn.Module):
    """Fully connected layers with an activation between them; the last layer starts small.

    Attributes:
      hidden: sizes of the hidden layers.
      outputs: size of the output.
      activation: name of the activation.
      last_scale: scale of the last layer's initial weights.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: str = "swish"
    last_scale: float = 1.0

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., n] to [..., outputs]."""
        activation = ACTIVATIONS[self.activation]
        values = inputs
        for size in self.hidden:
            values = activation(nn.Dense(size, kernel_init=nn.initializers.lecun_uniform())(values))
        last = nn.initializers.variance_scaling(self.last_scale, "fan_in", "uniform")
        return nn.Dense(self.outputs, kernel_init=last)(values)


def policy_network(config: NetworkConfig, actions: int) -> MLP:
    """Returns the network from normalized features to 2 * actions distribution parameters."""
    return MLP(config.policy, 2 * actions, config.activation, last_scale=0.01)


def value_network(config: NetworkConfig) -> MLP:
    """Returns the network from the normalized privileged view to one value."""
    return MLP(config.value, 1, config.activation)


def apply(network: nn.Module, params: PyTree, inputs: jax.Array) -> jax.Array:
    """Runs a network that has one output and no state of its own."""
    return cast(jax.Array, network.apply(params, inputs))


def normalize(inputs: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns (inputs - mean) / std, limited to +-10 standard deviations."""
    return jnp.clip((inputs - mean) / std, -10.0, 10.0)
