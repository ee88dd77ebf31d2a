"""Weights on their way from the learner to the robot: one file per version, whole or not at all, with its digest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.core.files import write_atomic
from alohas2r.errors import ArtifactError
from alohas2r.policies.online.networks import shapes
from alohas2r.policies.online.spec import LearntSpec

_ABOUT = "about"
_NAME = re.compile(r"(\d+)\.npz")
# That are kept: a stepped run that is resumed needs that of the episode during which it was killed.
KEPT = 30


class Published(NamedTuple):
    """A version of the weights, by name; all but a student's eyes, which never change."""

    version: int
    weights: dict[str, np.ndarray]


def publish(
    folder: str | os.PathLike[str],
    spec: LearntSpec,
    version: int,
    weights: Mapping[str, np.ndarray],
) -> pathlib.Path:
    """Writes a version, VERSION.npz.

    Raises:
      ArtifactError: the disk is full, or the like.
    """
    return write_atomic(path_of(folder, version), to_bytes(spec, version, weights))


def path_of(folder: str | os.PathLike[str], version: int) -> pathlib.Path:
    """Returns where a version lies."""
    return pathlib.Path(folder) / f"{version:06d}.npz"


def to_bytes(spec: LearntSpec, version: int, weights: Mapping[str, np.ndarray]) -> bytes:
    """Returns what a version's file holds: plain arrays, no pickle."""
    about = {"version": version, "spec": spec.digest, "digest": _digest(version, spec, weights)}
    arrays = dict(weights) | {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def newest(folder: str | os.PathLike[str]) -> int | None:
    """Returns the newest version in a folder; None if there is none."""
    return max(_versions(folder), default=None)


def after(folder: str | os.PathLike[str], version: int) -> int | None:
    """Returns the oldest version in a folder that is newer than one; None if there is none."""
    return min((one for one in _versions(folder) if one > version), default=None)


def _versions(folder: str | os.PathLike[str]) -> list[int]:
    try:
        names = [_NAME.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return []
    return [int(name[1]) for name in names if name]


def tidy(folder: str | os.PathLike[str]) -> None:
    """Removes all versions but KEPT of the newest."""
    last = newest(folder)
    for path in pathlib.Path(folder).glob("*.npz"):
        if last is not None and _NAME.fullmatch(path.name) and int(path.stem) <= last - KEPT:
            path.unlink(missing_ok=True)


def read_version(folder: str | os.PathLike[str], spec: LearntSpec, version: int) -> Published:
    """Reads a version.

    Raises:
      ArtifactError: missing, damaged, of another policy, or not finite.
    """
    path = path_of(folder, version)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} could not be read: {error.strerror}.") from error
    return from_bytes(spec, version, content, str(path))


def from_bytes(spec: LearntSpec, version: int, content: bytes, name: str) -> Published:
    """Reads what `to_bytes` returned; see `read_version`."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            weights = {key: file[key] for key in file.files}
        about = json.loads(weights.pop(_ABOUT).tobytes())
        digest, of, said = str(about["digest"]), str(about["spec"]), int(about["version"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{name} is damaged ({type(error).__name__}): the last version that was read goes on acting."
        ) from error
    if of != spec.digest:
        raise ArtifactError(f"{name} is of another policy; learner and actor were set differently.")
    if said != version or digest != _digest(version, spec, weights):
        raise ArtifactError(f"{name} differs from its digest; it was cut off or changed.")
    wanted = shapes(spec)
    if {key: value.shape for key, value in weights.items()} != wanted:
        raise ArtifactError(f"{name} holds other weights than this policy has.")
    broken = [key for key, value in weights.items() if not np.isfinite(value).all()]
    if broken:
        raise ArtifactError(
            f"{name}: {broken[0]} is not finite; the learner diverged. Start anew with a smaller learning_rate."
        )
    return Published(version, weights)


def _digest(version: int, spec: LearntSpec, weights: Mapping[str, np.ndarray]) -> str:
    hasher = hashlib.sha256(f"{version} {spec.digest}".encode())
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name])
        hasher.update(f"{name} {value.dtype} {value.shape}".encode())
        hasher.update(value.tobytes())
    return hasher.hexdigest()
