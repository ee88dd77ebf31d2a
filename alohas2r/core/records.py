"""A file that grows by whole records: plain values and arrays, each record with its length and checksum.

Who writes may be killed at any moment and loses at most the record it was writing. Who reads, even while the file
grows, never takes a record that is not complete. Arrays are kept to the last bit.
"""

from __future__ import annotations

import json
import mmap
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError

MAGIC = b"alohas2r run 1\n"
_FRAME = struct.Struct("<II")  # length and CRC-32 of what follows
_MOST = 1 << 26  # a longer record is damage


class Record(NamedTuple):
    """One record.

    Attributes:
      kind: what it is: "header", "step", "event", "end", or another.
      values: plain values. arrays: by name.
      end: where in the file the next one begins (bytes).
    """

    kind: str
    values: JsonObject
    arrays: dict[str, np.ndarray]
    end: int


def pack(
    kind: str, values: Mapping[str, object], arrays: Mapping[str, np.ndarray] | None = None
) -> bytes:
    """Returns a record as it lies in the file."""
    kept = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    layout = {name: [array.dtype.str, *array.shape] for name, array in kept.items()}
    head = json.dumps({"kind": kind, "values": dict(values), "arrays": layout}).encode()
    body = b"".join([head, b"\n", *(array.tobytes() for array in kept.values())])
    packed = zlib.compress(body, 1)
    return _FRAME.pack(len(packed), zlib.crc32(packed)) + packed


class RecordReader:
    """Reads a file of records, also while another process appends to it.

    Args:
      path: the file; it need not exist yet.
      strict: whether damage raises, rather than being taken as the place where the writer was killed.

    Attributes:
      offset: up to where it was read: the end of the last complete record (bytes).
    """

    def __init__(self, path: str | os.PathLike[str], strict: bool = False) -> None:
        self.path = pathlib.Path(path)
        self.offset = 0
        self._strict = strict

    def poll(self, most: int | None = None) -> list[Record]:
        """Returns the complete records that were not read yet; what is half written is left for the next time.

        Args:
          most: how many; None: all.

        Raises:
          ArtifactError: it cannot be read, is no file of records, or, if strict, is damaged.
        """
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= self.offset:
                    return []
                with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
                    return self._read(data, size, most)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(f"{self.path} could not be read: {error.strerror}.") from error

    def _read(self, data: mmap.mmap, size: int, most: int | None) -> list[Record]:
        if not self.offset:
            beginning = data[: len(MAGIC)]
            if beginning != MAGIC[: len(beginning)]:
                raise ArtifactError(f"{self.path} is no log of a run.")
            if len(beginning) < len(MAGIC):
                return []
            self.offset = len(MAGIC)
        records: list[Record] = []
        while self.offset + _FRAME.size <= size and (most is None or len(records) < most):
            length, checksum = _FRAME.unpack_from(data, self.offset)
            first = self.offset + _FRAME.size
            last = first + length
            if length > _MOST:
                self._damaged()
                break
            if last > size:
                break  # the rest is being written
            packed = data[first:last]
            if zlib.crc32(packed) != checksum:
                self._damaged()
                break
            records.append(_unpack(packed, last))
            self.offset = last
        return records

    def _damaged(self) -> None:
        if self._strict:
            raise ArtifactError(
                f"{self.path} is damaged at byte {self.offset}: a record's content differs from its checksum. What lies"
                " before it is sound; leave this file out, or cut it off there."
            )


def _unpack(packed: bytes, end: int) -> Record:
    body = zlib.decompress(packed)
    head, _, rest = body.partition(b"\n")
    record = json.loads(head)
    arrays, at = {}, 0
    for name, (dtype, *shape) in record["arrays"].items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(rest, dtype, count, at).reshape(shape)
        at += arrays[name].nbytes
    return Record(record["kind"], record["values"], arrays, end)
