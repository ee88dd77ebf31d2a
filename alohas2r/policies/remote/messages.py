"""Messages between policy server and client: msgpack with arrays, nothing executable."""

from __future__ import annotations

import msgpack
import numpy as np

from alohas2r.core.types import Untyped
from alohas2r.errors import ArtifactError

RESET = "reset"  # an optional key of a request
TIMING = "server_timing"
_KINDS = "buif"  # of arrays in a message: bool, unsigned, integer, floating point
_MOST_ITEMS = 64  # keys of a map, numbers in a list
_MOST_CONTAINERS = 256  # maps and lists in a message
_MOST_DIMENSIONS = 8
_MOST_TEXT = 1024


def encode(message: object) -> bytes:
    """Returns a message as msgpack; it may hold NumPy arrays and numbers at any depth."""
    packed = msgpack.packb(message, default=_encode_array)
    assert packed is not None
    return packed


def _encode_array(value: object) -> dict[bytes | str, object]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        described: dict[bytes | str, object] = {b"dtype": value.dtype.str}
        if isinstance(value, np.ndarray):
            data = {b"data": value.tobytes(), b"shape": list(value.shape)}
            return {b"__ndarray__": True, **described, **data}
        return {b"__npgeneric__": True, **described, b"data": value.item()}
    raise TypeError(f"a message cannot hold {type(value).__name__}")


def decode(message: bytes) -> Untyped:
    """Returns what `encode` or an OpenPI client was given; arrays are read-only.

    A message cannot make this allocate much more than its own length.

    Raises:
      ArtifactError: it is no msgpack, is cut off, or describes an impossible array.
    """
    left = _MOST_CONTAINERS

    def spend(container: object) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise ArtifactError(f"The message holds more than {_MOST_CONTAINERS} maps and lists.")
        return _decode_array(container) if isinstance(container, dict) else container

    try:
        return msgpack.unpackb(
            message,
            object_hook=spend,
            list_hook=spend,
            max_str_len=_MOST_TEXT,
            max_bin_len=len(message),
            max_array_len=_MOST_ITEMS,
            max_map_len=_MOST_ITEMS,
            max_ext_len=0,
        )
    except ArtifactError:
        raise
    except Exception as error:  # msgpack's have no common base; some hold the whole message
        reason = f"{type(error).__name__} {str(error)[:200]}".strip()
        raise ArtifactError(f"The message is no valid msgpack: {reason}") from None


def decode_request(message: str | bytes) -> dict[str, Untyped]:
    """Returns what a client asks for, a map.

    Raises:
      ArtifactError: as `decode`, or it is no map.
    """
    request = decode(message) if isinstance(message, bytes) else message
    if not isinstance(request, dict):
        raise ArtifactError(
            f"A request must be a binary frame with a map, not {type(request).__name__}."
        )
    return request


def _decode_array(described: dict[object, object]) -> object:
    if b"__ndarray__" in described:
        dtype, shape, data = (
            described.get(b"dtype"),
            described.get(b"shape"),
            described.get(b"data"),
        )
        if not (
            isinstance(shape, list)
            and len(shape) <= _MOST_DIMENSIONS
            and all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
            and isinstance(data, bytes)
        ):
            raise ArtifactError("An array in the message lacks its shape or data.")
        kind, count = _dtype(dtype), 1
        for size in shape:
            count *= size
        if len(data) != count * kind.itemsize:
            raise ArtifactError(
                f"An array in the message says {kind} {shape} and has {len(data)} bytes."
            )
        return np.frombuffer(data, kind).reshape(shape)
    if b"__npgeneric__" in described:
        value = described.get(b"data")
        if not isinstance(value, bool | int | float):
            raise ArtifactError("A number in the message has no value.")
        return _dtype(described.get(b"dtype")).type(value)
    return described


def _dtype(text: object) -> np.dtype:
    try:
        dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 4 else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in _KINDS:
        raise ArtifactError(f"An array in the message has the unknown type {str(text)[:40]!r}.")
    return dtype
