"""The student: a policy on wrist pictures and proprioception, its networks and its artifact.

An artifact is one directory like a teacher's: policy.json, weights.npz (no pickle) and check.npz. What it takes is
raw, as a robot gives it: pictures as `Frame` has them, joints as `deploy.observe` has them; scaling is part of the
policy. Source of the networks: recipe, section 6.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alohas2r import config
from alohas2r.core import files as core_files
from alohas2r.core.files import digest
from alohas2r.embodiment import history
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks.vision import forward, init
from alohas2r.policies.spec import StudentSpec


class StudentPolicy:
    """A deterministic policy on pictures and proprioception.

    Args:
      spec: its description.
      weights: "mean", "std" [F] of the features, "encoder/..." and "head/...".
      trained: how it was trained, for policy.json.

    Raises:
      ArtifactError: the weights do not fit the description.
    """

    def __init__(
        self, spec: StudentSpec, weights: Mapping[str, np.ndarray], trained: Mapping[str, Any]
    ):
        self.spec = spec
        self.weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None
        expected = {
            name: value.shape for name, value in jax.eval_shape(lambda: _blank(spec)).items()
        }
        found = {name: value.shape for name, value in self.weights.items()}
        wrong = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        if wrong:
            name = wrong[0]
            raise ArtifactError(
                f"The weights do not fit policy.json: '{name}' is {found.get(name)},"
                f" not {expected.get(name)}."
            )
        self._forward = jax.jit(functools.partial(forward, spec))

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return len(self.spec.action.joints)

    def apply(self, inputs: Mapping[str, Any]) -> jax.Array:
        """Computes actions [B, n] from a batch of inputs; see `forward`."""
        return self._forward(self.weights, dict(inputs))

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the action [n] for one observation, as `spec.inputs` lists it, and remembers it.

        Keys that are not needed are ignored, so that an observation of `deploy.observe` will do.

        Raises:
          ArtifactError: an input is missing, has another shape or type, or is not finite.
        """
        inputs: dict[str, Any] = {}
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


def _blank(spec: StudentSpec) -> dict[str, jax.Array]:
    """Returns weights of the right shapes."""
    flat: dict[str, Any] = traverse_util.flatten_dict(init(spec, jax.random.PRNGKey(0)), sep="/")
    return flat | {"mean": jnp.zeros(spec.features), "std": jnp.ones(spec.features)}


def _check_actions(found: StudentPolicy, observations: Mapping[str, np.ndarray]) -> np.ndarray:
    found.reset()
    names = list(found.spec.inputs)
    count = len(observations[names[0]])
    actions = [
        found.act({name: observations[name][step] for name in names}) for step in range(count)
    ]
    found.reset()
    return np.stack(actions)


def save(
    found: StudentPolicy,
    folder: str | os.PathLike[str],
    observations: Mapping[str, np.ndarray],
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      found: what to save.
      folder: the directory.
      observations: a recorded sequence for check.npz: each of `spec.inputs` as [T, ...].

    Raises:
      ArtifactError: the folder cannot be written, or the observations are not the policy's.
    """
    missing = sorted(found.spec.inputs.keys() - observations.keys())
    if missing:
        raise ArtifactError(f"The recorded observations lack '{missing[0]}'.")
    rows = {name: np.asarray(observations[name]) for name in found.spec.inputs}
    actions = _check_actions(found, rows)
    description = {
        "format_version": policies_spec.FORMAT_VERSION,
        "hash": found.hash,
        **config.to_dict(found.spec),
        "inputs": [
            {"name": name, "shape": list(shape), "dtype": dtype, "unit": unit}
            for name, (shape, dtype, unit) in found.spec.inputs.items()
        ],
        "trained": found.trained,
    }
    files = {
        "policy.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": artifact.to_npz(found.weights),
        "check.npz": artifact.to_npz({**rows, "actions": actions}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return core_files.write_folder_atomic(folder, write)


def load(folder: str | os.PathLike[str]) -> StudentPolicy:
    """Reads an artifact and verifies that it still computes what it did when it was saved.

    Raises:
      ArtifactError: missing, truncated, too new, no student, inconsistent, or its check fails.
    """
    description = artifact.describe(folder)
    if description.get("kind") != "student":
        raise ArtifactError(f"{folder} is no student, but '{description.get('kind')}'.")
    weights = artifact.read_npz(pathlib.Path(folder) / "weights.npz")
    try:
        fields = {field.name: description[field.name] for field in dataclasses.fields(StudentSpec)}
        spec = config.from_dict(StudentSpec, fields)
        found = StudentPolicy(spec, weights, description.get("trained", {}))
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{folder}/policy.json is not a valid policy: {error}") from error
    if found.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    recorded = artifact.read_npz(pathlib.Path(folder) / "check.npz")
    missing = sorted({*spec.inputs, "actions"} - recorded.keys())
    if missing:
        raise ArtifactError(f"{folder}/check.npz is damaged: it lacks {missing[0]}.")
    difference = np.abs(_check_actions(found, recorded) - recorded["actions"]).max()
    if not difference <= policies_spec.CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: actions differ by {difference:.2g} on this machine."
        )
    return found
