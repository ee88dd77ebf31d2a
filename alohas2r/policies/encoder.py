"""The artifact of a colour encoder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from alohas2r.core import files as core_files
from alohas2r.errors import ArtifactError
from alohas2r.policies import artifact
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.networks.vision import Encoder

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4

Tree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderArtifact:
    """A trained colour encoder.

    Attributes:
      filters: of the three convolutions. size: side of the pictures that it was trained on (pixels).
      params: of student.Encoder.
      trained: how.
    """

    filters: tuple[int, int, int]
    size: int
    params: Tree
    trained: Mapping[str, Any]

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Parameters by name."""
        flat = traverse_util.flatten_dict(dict(self.params), sep="/")
        return {str(name): np.asarray(value) for name, value in flat.items()}

    @property
    def hash(self) -> str:
        """Identifies what the encoder computes."""
        found = hashlib.sha256(json.dumps([self.filters, self.size]).encode())
        for name, value in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def encode(self, rgb: Any) -> np.ndarray:
        """Encodes pictures [N, H, W, 3] uint8 -> [N, filters[-1]]."""
        outputs = Encoder(self.filters).apply(
            {"params": self.params}, vision_network.scale_rgb(rgb)
        )
        return np.asarray(outputs)


def save_encoder(
    found: EncoderArtifact, folder: str | os.PathLike[str], pictures: np.ndarray
) -> pathlib.Path:
    """Writes the artifact; an earlier one is replaced whole or left intact.

    Args:
      found: the encoder. folder: the directory.
      pictures: [N, H, W, 3] uint8, for its check.

    Raises:
      ArtifactError: the folder cannot be written.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "kind": "encoder",
        "hash": found.hash,
        "filters": list(found.filters),
        "size": found.size,
        "trained": dict(found.trained),
    }
    files = {
        "encoder.json": json.dumps(description, indent=2).encode() + b"\n",
        "weights.npz": artifact.to_npz(found.weights),
        "check.npz": artifact.to_npz({"rgb": pictures, "outputs": found.encode(pictures)}),
    }

    def write(path: pathlib.Path) -> None:
        for name, content in files.items():
            (path / name).write_bytes(content)

    return core_files.write_folder_atomic(folder, write)


def load_encoder(folder: str | os.PathLike[str]) -> EncoderArtifact:
    """Reads an encoder and verifies that it still computes what it did when it was saved.

    Raises:
      ArtifactError: missing, damaged, too new, or its check fails.
    """
    path = pathlib.Path(folder) / "encoder.json"
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no encoder: {path} is missing; `alohas2r pretrain-encoder` makes one."
        )
    try:
        description = json.loads(path.read_text())
        version = int(description["format_version"])
        filters = description["filters"]
        found = EncoderArtifact(
            filters=(int(filters[0]), int(filters[1]), int(filters[2])),
            size=int(description["size"]),
            params=traverse_util.unflatten_dict(
                dict(artifact.read_npz(pathlib.Path(folder) / "weights.npz")), sep="/"
            ),
            trained=dict(description["trained"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: upgrade alohas2r."
        )
    if found.hash != description.get("hash"):
        raise ArtifactError(
            f"{folder} is damaged: its weights or description differ from its hash."
        )
    recorded = artifact.read_npz(pathlib.Path(folder) / "check.npz")
    try:
        difference = np.abs(found.encode(recorded["rgb"]) - recorded["outputs"]).max()
    except Exception as error:  # flax has its own errors for wrong shapes
        raise ArtifactError(f"{folder}/check.npz is damaged ({type(error).__name__}).") from error
    if not difference <= CHECK_TOLERANCE:
        raise ArtifactError(
            f"{folder} fails its check: outputs differ by {difference:.2g} on this machine."
        )
    return found
