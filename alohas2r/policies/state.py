"""Policy artifacts: one directory with policy.json, weights.npz and check.npz.

policy.json says what goes in and what comes out, with shapes and units, and how the policy was trained;
weights.npz holds plain arrays (no pickle); check.npz holds inputs and the actions they must give, verified at
every load.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from alohas2r import config
from alohas2r.embodiment import history
from alohas2r.errors import ArtifactError
from alohas2r.policies.spec import PolicySpec


class StatePolicy:
    """A deterministic policy on state observations.

    Args:
      spec: its description.
      weights: "mean", "std" [F] of the features, and "layer<i>/kernel", "layer<i>/bias".
      trained: how it was trained, for policy.json.
    """

    def __init__(
        self, spec: PolicySpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, Any]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None
        sizes = [
            spec.history.size(spec.observation_size),
            *spec.hidden,
            2 * len(spec.action.joints),
        ]
        expected: dict[str, tuple[int, ...]] = {"mean": (sizes[0],), "std": (sizes[0],)}
        for layer, shape in enumerate(itertools.pairwise(sizes)):
            expected[f"layer{layer}/kernel"] = shape
            expected[f"layer{layer}/bias"] = shape[1:]
        found = {name: value.shape for name, value in self.weights.items()}
        if found != expected:
            wrong = sorted(
                name
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )[0]
            raise ArtifactError(
                f"The weights do not fit policy.json: '{wrong}' is {found.get(wrong)}, not {expected.get(wrong)}."
            )

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, features: Any, xp: Any) -> Any:
        """Maps features [..., F] to actions [..., n] in [-1, 1]; `xp` is numpy or jax.numpy."""
        values = xp.clip((features - self.weights["mean"]) / self.weights["std"], -10.0, 10.0)
        layers = len(self.spec.hidden) + 1
        for layer in range(layers):
            values = (
                values @ self.weights[f"layer{layer}/kernel"] + self.weights[f"layer{layer}/bias"]
            )
            if layer < layers - 1:
                values = activate(self.spec.activation, values, xp)
        return xp.tanh(values[..., : self.action_size])

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Returns the action [n] for one observation [53] and remembers it.

        Raises:
          ArtifactError: the observation has the wrong shape or is not finite.
        """
        self._memory, features = remember(self.spec, self._memory, observation)
        return self.apply(features, np)

    @property
    def hash(self) -> str:
        """Identifies what the policy computes: its description and weights."""
        digest = hashlib.sha256(config.digest(self.spec).encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()


def remember(
    spec: PolicySpec, memory: history.HistoryState | None, observation: np.ndarray
) -> tuple[history.HistoryState, np.ndarray]:
    """Returns the memory after an observation, and the features [..., F] that a network takes."""
    observation = np.asarray(observation, np.float32)
    size = spec.observation_size
    if observation.shape != (size,):
        raise ArtifactError(
            f"The observation must be float32 [{size}], not {list(observation.shape)}."
        )
    if not np.isfinite(observation).all():
        raise ArtifactError("The observation is not finite.")
    if memory is None:
        memory = history.init(spec.history, size, np)
    return history.update(spec.history, memory, observation, np)


def activate(name: str, values: Any, xp: Any) -> Any:
    """Applies an activation by name in numpy or jax.numpy."""
    if name == "swish":
        return values / (1.0 + xp.exp(-values))
    if name == "relu":
        return xp.maximum(values, 0.0)
    if name == "tanh":
        return xp.tanh(values)
    if name == "elu":
        return xp.where(values > 0, values, xp.exp(xp.minimum(values, 0.0)) - 1.0)
    raise ArtifactError(f"Unknown activation '{name}' in policy.json.")
