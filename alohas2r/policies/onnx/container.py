"""How descriptions and checks are kept inside an ONNX file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import zipfile
from collections.abc import Mapping

import numpy as np

from alohas2r.errors import ArtifactError

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4  # of actions in [-1, 1]; machines round differently
# Keys of the file's metadata_props.
DESCRIPTION_KEY = "policy.json"
EXPORT_KEY = "alohas2r"
CHECK_KEY = "check"
# The last metadata entry (field 14 of ModelProto) ends the file: key "sha256", 64 digits.
_SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"


def seal(content: bytes) -> bytes:
    """Returns a serialized model with a metadata entry at its end that holds its own digest."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def unseal(content: bytes, name: str) -> bytes:
    """Returns the model without its digest.

    Args:
      content: what `seal` returned.
      name: what to call it in the error.

    Raises:
      ArtifactError: the digest is missing or differs.
    """
    body, mark, digest = content[:-76], content[-76:-64], content[-64:]
    if mark != _SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise ArtifactError(
            f"{name} is cut off, damaged, was changed after its export, or is no exported policy; "
            "export it again."
        )
    return body


def pack(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns arrays as text for the file's metadata."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # pyright: ignore[reportArgumentType]
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> dict[str, np.ndarray]:
    """Returns the arrays that `pack` was given.

    Raises:
      ValueError: the text is damaged.
    """
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (binascii.Error, zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise ValueError(f"damaged arrays: {error}") from error
