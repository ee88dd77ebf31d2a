"""Policies on the state of the simulation, computed by NumPy or JAX."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

import numpy as np

from alohas2r import config
from alohas2r.core.files import digest
from alohas2r.core.types import Array, JsonObject
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

    file: ClassVar[str] = "policy.json"
    called: ClassVar[str] = "policy of one task"
    made_by: ClassVar[str] = "alohas2r train-teacher"
    output: ClassVar[str] = "actions"

    def __init__(
        self, spec: PolicySpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, object]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained: JsonObject = dict(trained)
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
        check_shapes(self.weights, expected)

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, features: Array, xp: ModuleType) -> Array:
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
        return digest(self.spec, self.weights)

    def describe(self) -> JsonObject:
        """Returns what policy.json says of it."""
        return config.to_dict(self.spec)

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> StatePolicy:
        """Makes a policy of its description and weights."""
        fields = {field.name: description[field.name] for field in dataclasses.fields(PolicySpec)}
        return cls(config.from_dict(PolicySpec, fields), weights, description.get("trained", {}))

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the recorded observations [T, n]; what a switch said meanwhile is kept for a staged policy."""
        return recorded_rows(recorded)

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [T, n] for recorded observations, one after the other."""
        self.reset()
        actions = np.stack([self.act(observation) for observation in rows["observations"]])
        self.reset()
        return actions


def check_shapes(
    weights: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ArtifactError unless the weights have the names and shapes that the description asks for."""
    shapes = {name: value.shape for name, value in weights.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise ArtifactError(
                f"The weights do not fit policy.json: '{name}' is {shapes.get(name)}, not {expected.get(name)}."
            )


def recorded_rows(recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns "observations" [T, n] float32 and "switched" [T] bool, false where it was not recorded."""
    observations = np.asarray(recorded["observations"], np.float32)
    switched = recorded.get("switched", np.zeros(len(observations), bool))
    return {"observations": observations, "switched": np.asarray(switched, bool)}


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


def activate(name: str, values: Array, xp: ModuleType) -> Array:
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
