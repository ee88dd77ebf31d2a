"""Who owns a run's folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

from alohas2r.errors import ArtifactError

NAME = ".lock"


def in_use(folder: str | os.PathLike[str]) -> bool:
    """Whether a run of any process owns a folder at this moment; changes nothing."""
    try:
        descriptor = os.open(pathlib.Path(folder) / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


class FolderLock:
    """Keeps other processes, and other runs of this one, out of a folder meanwhile.

    The system gives the lock back when the process ends, however it ends; the file stays and says nothing by
    itself. Where a file system has no locks, there is none.

    Args:
      folder: an existing folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> FolderLock:
        """Takes the lock.

        Raises:
          ArtifactError: another run holds it, or the lock's file cannot be written.
        """
        path = self.folder / NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise ArtifactError(
                f"{self.folder} is in use by the running process {holder or 'of somebody else'}; wait until it"
                " ends, or choose another --out."
            ) from error
        except OSError:  # a file system without locks
            os.close(descriptor)
            return self
        self._descriptor = descriptor
        with contextlib.suppress(OSError):  # a full disk; the lock itself holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
