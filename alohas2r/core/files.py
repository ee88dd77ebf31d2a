"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from alohas2r import config
from alohas2r.errors import ArtifactError


def make_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Creates a folder if it is missing, and makes sure that files can be written in it.

    Raises:
      ArtifactError: it cannot be created, is no folder, or is not writable.
    """
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = _aside(path / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(
            f"The folder {path} cannot be written: {reason(error)}; choose another one."
        ) from error
    return path


def write_atomic(
    path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]
) -> pathlib.Path:
    """Writes a file whole or not at all: aside, to disk, then renamed over the earlier one.

    Args:
      path: the file; its folder is created if missing.
      content: the bytes, or a function that writes them to an open binary file.

    Returns:
      The path.

    Raises:
      ArtifactError: the disk is full, the folder is not writable, or the like. The earlier file
        is as it was, and nothing is left aside.
    """
    path = pathlib.Path(path)
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritten(path, error) from error
        raise
    return path


def write_folder_atomic(
    path: str | os.PathLike[str], writer: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """Writes a folder of files whole or not at all; the earlier folder is replaced.

    Args:
      path: the folder.
      writer: fills the new, empty folder that it is given, which then takes the place of `path`.

    Returns:
      The path.

    Raises:
      ArtifactError: the disk is full, or the like; the earlier folder is as it was.
    """
    path = pathlib.Path(path)
    aside, earlier = _aside(path), earlier_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        writer(aside)
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        recover_folder(path)
        if path.exists():
            os.rename(path, earlier)
        try:
            os.rename(aside, path)
        except OSError:
            recover_folder(path)
            raise
        _sync_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritten(path, error) from error
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    return path


def earlier_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns where `write_folder_atomic` keeps the earlier folder between its two renames."""
    return path.with_name(f".{path.name}.earlier")


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Puts the earlier folder back if `write_folder_atomic` was killed between its two renames."""
    path = pathlib.Path(path)
    earlier = earlier_folder(path)
    if earlier.exists():
        if path.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.rename(earlier, path)


def _aside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")


def reason(error: OSError) -> str:
    """Returns why the system refused, in words."""
    return error.strerror or str(error)


def _unwritten(path: pathlib.Path, error: OSError) -> ArtifactError:
    kind = "folder" if path.is_dir() else "file"
    earlier = f"the earlier {kind} is intact" if path.exists() else "nothing was left behind"
    return ArtifactError(f"{path} could not be written: {reason(error)}; {earlier}.")


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename last through a power cut, where the file system can."""
    with contextlib.suppress(OSError), _opened(folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def digest(spec: object, weights: Mapping[str, np.ndarray]) -> str:
    """Returns a SHA-256 of a description and named arrays."""
    hasher = hashlib.sha256(config.digest(spec).encode())
    for name in sorted(weights):
        hasher.update(name.encode())
        hasher.update(np.ascontiguousarray(weights[name]).tobytes())
    return hasher.hexdigest()
