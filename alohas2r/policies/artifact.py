"""The one reader and writer of artifacts: a folder with a description, weights, and a check that every load repeats.

policy.json (or encoder.json, classifier.json) says what goes in and what comes out, with shapes and units, and how it
was trained; weights.npz holds plain arrays (no pickle); check.npz holds inputs and the outputs they must give. What is
particular to a kind is said by its class, see `policies.protocol.Stored`; classes are imported when a folder asks for
them.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TypeVar, overload

import numpy as np

from alohas2r.core.files import write_folder_atomic
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.policies.protocol import AnyPolicy, Stored
from alohas2r.policies.spec import CHECK_TOLERANCE, FORMAT_VERSION

# Kind, as descriptions have it -> module and class.
KINDS = {
    "state": ("alohas2r.policies.state", "StatePolicy"),
    "staged": ("alohas2r.policies.staged", "StagedPolicy"),
    "student": ("alohas2r.policies.vision", "StudentPolicy"),
    "pixels": ("alohas2r.policies.vision", "PixelPolicy"),
    "staged_pixels": ("alohas2r.policies.staged_pixels", "StagedPixelsPolicy"),
    "online": ("alohas2r.policies.online.policy", "OnlinePolicy"),
    "stereo": ("alohas2r.policies.vision", "StereoPolicy"),
    "residual": ("alohas2r.policies.vision", "ResidualPolicy"),
    "paced": ("alohas2r.policies.vision", "ResidualPolicy"),
    "encoder": ("alohas2r.policies.encoder", "EncoderArtifact"),
    "reward": ("alohas2r.policies.online.classifier", "SuccessClassifier"),
}
FILES = ("policy.json", "encoder.json", "classifier.json")

Kind = TypeVar("Kind", bound=Stored)


def save(
    stored: Stored, folder: str | os.PathLike[str], recorded: Mapping[str, np.ndarray]
) -> pathlib.Path:
    """Writes an artifact; an earlier one is replaced whole or left intact.

    Args:
      stored: what to save.
      folder: the directory.
      recorded: inputs for check.npz, each [T, ...]: "observations" (and "switched", the switch's state with each) of a
        policy on the state, those of `spec.inputs` of a student, pictures "rgb" of an encoder.

    Raises:
      ArtifactError: the folder cannot be written, or an input is missing.
    """
    try:
        rows = stored.check_inputs(recorded)
    except KeyError as error:
        raise ArtifactError(f"The recorded inputs lack '{error.args[0]}'.") from error
    description = {
        "format_version": FORMAT_VERSION,
        "hash": stored.hash,
        **stored.describe(),
        "trained": dict(stored.trained),
    }
    files = {
        stored.file: json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": _to_npz(stored.weights),
        "check.npz": _to_npz({**rows, stored.output: stored.answer(rows)}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return write_folder_atomic(folder, write)


def describe(folder: str | os.PathLike[str]) -> JsonObject:
    """Reads the description, without anything else.

    Raises:
      ArtifactError: missing, damaged, or written by a newer version of this package.
    """
    path = _described(folder)
    if path is None:
        raise ArtifactError(
            f"{folder} holds no policy: {pathlib.Path(folder) / FILES[0]} is missing."
        )
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


@overload
def load(folder: str | os.PathLike[str]) -> AnyPolicy: ...
@overload
def load(folder: str | os.PathLike[str], kind: type[Kind]) -> Kind: ...
def load(folder: str | os.PathLike[str], kind: type[Stored] | None = None) -> object:
    """Reads an artifact and verifies that it still computes what it did when it was saved.

    Students and encoders need JAX; teachers are read with NumPy alone.

    Args:
      folder: the directory.
      kind: what it must be; a policy of any kind if None.

    Raises:
      ArtifactError: missing, truncated, too new, inconsistent, of another kind, or its check fails.
    """
    if kind is not None and _described(folder) is None:
        wanted = pathlib.Path(folder) / kind.file
        raise ArtifactError(
            f"{folder} holds no {kind.called}: {wanted} is missing; `{kind.made_by}` makes one."
        )
    description = describe(folder)
    name = str(description.get("kind"))
    path = _described(folder)
    if name not in KINDS:
        raise ArtifactError(
            f"{path} is not a valid policy: kind '{name}'.{did_you_mean(name, KINDS)}"
        )
    cls: type[Stored] = _class(name)
    if kind is None and cls.file != FILES[0]:
        raise ArtifactError(f"{folder} is no policy, but '{name}'.")
    if kind is not None and cls is not kind:
        raise ArtifactError(
            f"{folder} is no {kind.called}, but '{name}'; `{kind.made_by}` makes one."
        )
    weights = read_npz(pathlib.Path(folder) / "weights.npz")
    try:
        stored = cls.build(description, weights)
    except (ConfigError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a valid policy: {error}") from error
    if stored.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    _verify(stored, pathlib.Path(folder))
    return stored


def rebuild(description: JsonObject, weights: Mapping[str, np.ndarray]) -> Untyped:
    """Makes a policy, or a part of one, of its description and weights, as in another process.

    Raises:
      ArtifactError: unknown kind, or they do not fit.
    """
    name = str(description.get("kind"))
    if name not in KINDS:
        raise ArtifactError(f"There is no kind '{name}' of policies.{did_you_mean(name, KINDS)}")
    return _class(name).build(description, weights)


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


def _class(name: str) -> type[Stored]:
    module, attribute = KINDS[name]
    return getattr(importlib.import_module(module), attribute)


def _described(folder: str | os.PathLike[str]) -> pathlib.Path | None:
    """Returns the description's file, or None if there is none."""
    paths = (pathlib.Path(folder) / name for name in FILES)
    return next((path for path in paths if path.is_file()), None)


def _verify(stored: Stored, folder: pathlib.Path) -> None:
    """Raises ArtifactError unless the recorded inputs give the recorded outputs."""
    recorded = read_npz(folder / "check.npz")
    try:
        rows = stored.check_inputs(recorded)
        expected = recorded[stored.output]
        outputs = stored.answer(rows)
        if outputs.shape != expected.shape:
            raise ValueError(f"{stored.output} {expected.shape}, not {outputs.shape}")
        difference = np.abs(outputs - expected).max()
    except KeyError as error:
        raise ArtifactError(f"{folder}/check.npz is damaged: it lacks {error.args[0]}.") from error
    except Exception as error:  # flax has its own errors for wrong shapes
        raise ArtifactError(f"{folder}/check.npz is damaged ({error}).") from error
    if not difference <= CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: {stored.output} differ by {difference:.2g} on this machine."
        )


def _to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
