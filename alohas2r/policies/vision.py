"""The student: a policy on wrist pictures and proprioception.

What it takes is raw, as a robot gives it: pictures as `Frame` has them, joints as `deploy.observe` has them; scaling
is part of the policy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alohas2r import config
from alohas2r.core.files import digest
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.embodiment import history
from alohas2r.errors import ArtifactError
from alohas2r.policies.networks.vision import forward, init
from alohas2r.policies.online import insertion
from alohas2r.policies.spec import ResidualSpec, StudentSpec, spec_class
from alohas2r.policies.state import check_shapes


class StudentPolicy:
    """A deterministic policy on pictures and proprioception.

    Args:
      spec: its description.
      weights: "mean", "std" [F] of the features, "encoder/..." and "head/...".
      trained: how it was trained, for policy.json.

    Raises:
      ArtifactError: the weights do not fit the description.
    """

    file: ClassVar[str] = "policy.json"
    called: ClassVar[str] = "student"
    made_by: ClassVar[str] = "alohas2r distill"
    output: ClassVar[str] = "actions"

    def __init__(
        self, spec: StudentSpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, object]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained: JsonObject = dict(trained)
        self._memory: history.HistoryState | None = None
        check_shapes(self.weights, self.shapes(spec))
        self._forward = jax.jit(functools.partial(forward, spec))

    @classmethod
    def shapes(cls, spec: StudentSpec) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the weights that a description asks for, by name."""
        blank = jax.eval_shape(lambda: _blank(spec))
        return {name: value.shape for name, value in blank.items()}

    @property
    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [F] of the features that it acted on in training."""
        return self.weights["mean"], self.weights["std"]

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, inputs: Mapping[str, Array]) -> jax.Array:
        """Computes actions [B, n] from a batch of inputs; see `forward`."""
        return self._forward(self.weights, dict(inputs))

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: Mapping[str, Array]) -> np.ndarray:
        """Returns the action [n] for one observation, as `spec.inputs` lists it, and remembers it.

        Keys that are not needed are ignored, so that an observation of `deploy.observe` will do.

        Raises:
          ArtifactError: an input is missing, has another shape or type, or is not finite.
        """
        inputs: dict[str, np.ndarray] = {}
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

    def describe(self) -> JsonObject:
        """Returns what policy.json says of it."""
        inputs = [
            {"name": name, "shape": list(shape), "dtype": dtype, "unit": unit}
            for name, (shape, dtype, unit) in self.spec.inputs.items()
        ]
        return {**config.to_dict(self.spec), "inputs": inputs}

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> Self:
        """Makes a student of its description and weights."""
        described = spec_class(description["kind"])
        fields = {field.name: description[field.name] for field in dataclasses.fields(described)}
        spec = config.from_dict(described, fields)
        assert isinstance(spec, StudentSpec)
        return cls(spec, weights, description.get("trained", {}))

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns each of `spec.inputs` as it was recorded, [T, ...]."""
        return {name: np.asarray(recorded[name]) for name in self.spec.inputs}

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [T, n] for recorded observations, one after the other."""
        self.reset()
        steps = range(len(next(iter(rows.values()))))
        actions = [self.act({name: row[step] for name, row in rows.items()}) for step in steps]
        self.reset()
        return np.stack(actions)


class PixelPolicy(StudentPolicy):
    """A deterministic policy that reinforcement learning made of wrist depth and proprioception."""

    called: ClassVar[str] = "policy from pixels"
    made_by: ClassVar[str] = "alohas2r train-pixels"


class StereoPolicy(StudentPolicy):
    """A deterministic policy on colour of the left imagers, grey of the right ones, and proprioception."""

    called: ClassVar[str] = "stereo student"
    made_by: ClassVar[str] = "alohas2r distill --observation stereo"


class ResidualPolicy(StudentPolicy):
    """A student, and what is added to its actions while it inserts."""

    called: ClassVar[str] = "student with corrections"
    made_by: ClassVar[str] = "alohas2r learn insert"

    @classmethod
    def shapes(cls, spec: StudentSpec) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the weights of both, by name."""
        assert isinstance(spec, ResidualSpec)
        return super().shapes(spec) | insertion.shapes_of(spec)


def _blank(spec: StudentSpec) -> dict[str, jax.Array]:
    """Returns weights of the right shapes."""
    flat: PyTree = traverse_util.flatten_dict(init(spec, jax.random.PRNGKey(0)), sep="/")
    return flat | {"mean": jnp.zeros(spec.features), "std": jnp.ones(spec.features)}
