"""Reads and writes policies: one folder with a description, weights and a check."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from alohas2r import config
from alohas2r.core import files as core_files
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.spec import CHECK_TOLERANCE, FORMAT_VERSION, PolicySpec
from alohas2r.policies.staged import AnyPolicy, StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch

if TYPE_CHECKING:
    from alohas2r.policies.vision import StudentPolicy


def _check_actions(policy: AnyPolicy, observations: np.ndarray, switched: np.ndarray) -> np.ndarray:
    policy.reset()
    actions = []
    for observation, flag in zip(observations, switched, strict=True):
        staged = isinstance(policy, StagedPolicy)
        actions.append(policy.act(observation, bool(flag)) if staged else policy.act(observation))
    policy.reset()
    return np.stack(actions)


def to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def save(
    policy: AnyPolicy,
    folder: str | os.PathLike[str],
    observations: np.ndarray,
    switched: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      policy: what to save.
      folder: the directory.
      observations: [T, n] a recorded sequence, for check.npz.
      switched: [T] the switch's state with each observation, for a staged policy.

    Raises:
      ArtifactError: the folder cannot be written.
    """
    observations = np.asarray(observations, np.float32)
    switched = np.zeros(len(observations), bool) if switched is None else np.asarray(switched, bool)
    if isinstance(policy, StagedPolicy):
        parts = {"pick": policy.pick, "insert": policy.insert}
        body: dict[str, Any] = {
            "kind": "staged",
            "switch": config.to_dict(policy.switch),
            "parts": {
                name: {"hash": part.hash, **config.to_dict(part.spec), "trained": part.trained}
                for name, part in parts.items()
            },
        }
        weights = {
            f"{name}/{key}": value
            for name, part in parts.items()
            for key, value in part.weights.items()
        }
    else:
        body, weights = config.to_dict(policy.spec), policy.weights
    description = {
        "format_version": FORMAT_VERSION,
        "hash": policy.hash,
        **body,
        "trained": policy.trained,
    }
    actions = _check_actions(policy, observations, switched)
    files = {
        "policy.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": to_npz(weights),
        "check.npz": to_npz(
            {"observations": observations, "switched": switched, "actions": actions}
        ),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return core_files.write_folder_atomic(folder, write)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, never pickles.

    Raises:
      ArtifactError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise ArtifactError(f"{path} is missing or damaged ({error}).") from error


def describe(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads policy.json.

    Raises:
      ArtifactError: missing, damaged, or written by a newer version of this package.
    """
    path = pathlib.Path(folder) / "policy.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no policy: {path} is missing.")
    try:
        description = json.loads(path.read_text())
        version = int(description["format_version"])
        if version < 1:
            raise ValueError(f"format {version}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: upgrade alohas2r."
        )
    return description


def load(folder: str | os.PathLike[str]) -> AnyPolicy | StudentPolicy:
    """Reads an artifact and verifies that it still computes what it did when it was saved.

    A student needs JAX; teachers are read with NumPy alone.

    Raises:
      ArtifactError: missing, truncated, too new, inconsistent, or its check fails.
    """
    description = describe(folder)
    if description.get("kind") == "student":
        from alohas2r.policies import vision

        return vision.load(folder)
    weights = read_npz(pathlib.Path(folder) / "weights.npz")
    try:
        if description.get("kind") == "staged":
            policy: AnyPolicy = _staged(description, weights)
        else:
            policy = _state(description, weights)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder}/policy.json is not a valid policy: {error}") from error
    if policy.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    check = read_npz(pathlib.Path(folder) / "check.npz")
    if not {"observations", "switched", "actions"} <= check.keys():
        raise ArtifactError(
            f"{folder}/check.npz is damaged: it lacks observations, switched or actions."
        )
    try:
        actions = _check_actions(policy, check["observations"], check["switched"])
        if actions.shape != check["actions"].shape:
            raise ValueError(f"actions {check['actions'].shape}, not {actions.shape}")
        difference = np.abs(actions - check["actions"]).max()
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder}/check.npz is damaged ({error}).") from error
    if not difference <= CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: actions differ by {difference:.2g} on this machine."
        )
    return policy


def _state(description: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> StatePolicy:
    fields = {field.name: description[field.name] for field in dataclasses.fields(PolicySpec)}
    return StatePolicy(
        config.from_dict(PolicySpec, fields), weights, description.get("trained", {})
    )


def _staged(description: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> StagedPolicy:
    parts = {
        name: _state(
            description["parts"][name],
            {
                key.removeprefix(f"{name}/"): value
                for key, value in weights.items()
                if key.startswith(f"{name}/")
            },
        )
        for name in ("pick", "insert")
    }
    switch = config.from_dict(Switch, description["switch"])
    return StagedPolicy(parts["pick"], parts["insert"], switch, description.get("trained", {}))
