"""Reads CIFAR-10 from disk."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import pickle
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.errors import ArtifactError
from alohas2r.learning.encoder.pictures import OBJECTS, Pictures

CLASSES = 10  # of CIFAR-10

# Archive -> MD5, folder inside. Source: https://www.cs.toronto.edu/~kriz/cifar.html
CIFAR10 = {
    "cifar-10-python.tar.gz": ("c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    "cifar-10-binary.tar.gz": ("c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
}
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/"


class _PlainUnpickler(pickle.Unpickler):
    """Reads NumPy arrays, bytes, lists and dicts, and nothing that could run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        return super().find_class(module, name)


def read_cifar10(
    folder: str | os.PathLike[str] | None,
    archives: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[Pictures, Pictures]:
    """Reads CIFAR-10 from one of its two standard archives and returns its training and test pictures.

    Args:
      folder: holds cifar-10-python.tar.gz or cifar-10-binary.tar.gz.
      archives: name -> MD5 and folder inside; those of CIFAR-10 if None.

    Raises:
      ArtifactError: there is no archive, or it is not the original one.
    """
    archives = CIFAR10 if archives is None else archives
    if folder is None:
        raise ArtifactError(f"--data cifar10 needs --data-dir. {_where(archives)}")
    present = [name for name in archives if (pathlib.Path(folder) / name).is_file()]
    if not present:
        raise ArtifactError(f"{folder} holds no CIFAR-10 archive. {_where(archives)}")
    path = pathlib.Path(folder) / present[0]
    checksum, inside = archives[present[0]]
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != checksum:
            raise ArtifactError(
                f"{path} is not the original archive: its MD5 is {digest.hexdigest()}, not {checksum}."
                f" Remove it and download it again. {_where(archives)}"
            )
        with tarfile.open(path, "r:gz") as archive:
            binary = inside.endswith("bin")
            names = [f"data_batch_{number}" for number in range(1, 6)]
            read = _read_binary if binary else _read_python
            suffix = ".bin" if binary else ""

            def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
                member = archive.extractfile(f"{inside}/{name}{suffix}")
                if member is None:
                    raise KeyError(name)
                return read(member.read())

            train = [batch(name) for name in names]
            test = [batch("test_batch")]
    except (OSError, tarfile.TarError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    return _classes(train), _classes(test)


def _where(archives: Mapping[str, object]) -> str:
    """Says where to get CIFAR-10."""
    names = list(archives)
    return (
        f"Download {CIFAR10_ADDRESS}{names[0]} (or {' or '.join(names[1:])}) into a folder"
        " and give it with --data-dir."
    )


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch: per picture one byte of class, then red, green and blue planes of 32 x 32."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:], rows[:, 0]


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch: a dict with "data" [M, 3072] of the same order, and "labels"."""
    batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    data = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3 * 32 * 32)
    return data, np.asarray(batch[b"labels"])


def _classes(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Pictures:
    planes = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    label = np.concatenate([part[1] for part in parts]).astype(np.int32)
    if not len(label) or label.min() < 0 or label.max() >= CLASSES:
        raise ValueError("classes out of range")
    count = len(label)
    return Pictures(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        label,
        np.zeros((count, len(OBJECTS)), bool),
        np.zeros((count, len(OBJECTS), 3), np.float32),
        np.zeros((count, len(OBJECTS), 6), np.float32),
    )
