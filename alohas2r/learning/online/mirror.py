"""The run of a robot elsewhere: its files as they come, in a folder here, and the learner that learns from them."""

from __future__ import annotations

import json
import os
import pathlib

from alohas2r import config as configs
from alohas2r.core.files import make_folder, reason
from alohas2r.core.records import RecordReader
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.online import published, remote
from alohas2r.policies.online.config import (
    LOGS,
    POLICY,
    PUBLISHED,
    SETTINGS,
    parse_online_run,
    read_online_run,
)
from alohas2r.policies.online.learner import LearnerProcess


class Mirror:
    """What a learner's machine keeps of a run, and its learner.

    A robot's side that begins anew begins a new segment of its log, which may say that the end of the one before does
    not count: the learner is then started anew as well, from its checkpoint, as that beside the robot would be.

    Args:
      folder: of the run here.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._learner = LearnerProcess(folder)
        self._sizes: dict[str, int] = {}
        self._met = False
        self._failed = ""

    def meet(self, described: bytes, sizes: bytes) -> dict[str, tuple[int, str]]:
        """Takes what the run is, and how large what it learns from beside its log.

        Args:
          described: the content of its online.json. sizes: JSON, bytes by name.

        Returns:
          Of each file that is here its bytes and their digest.

        Raises:
          ArtifactError: it is no run, or the folder cannot be written. ConfigError: the run here has other settings.
        """
        run = parse_online_run(described, SETTINGS)
        try:
            told = {str(name): int(size) for name, size in json.loads(sizes).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"The message's sizes are none ({error}).") from error
        if not all(map(remote.is_name, told)):
            raise ArtifactError("The message's sizes are of files that no run has.")
        if (self._folder / SETTINGS).exists():
            changes = configs.difference(read_online_run(self._folder), run)
            if changes:
                raise ConfigError(
                    f"The run in {self._folder} was started with another configuration: {'; '.join(changes)}."
                )
        else:
            make_folder(self._folder / remote.INPUTS)
            run.write(self._folder)
        if self._failed:  # whoever comes anew may have put it right
            self.end()
        self._sizes, self._met = told, True
        return self._kept()

    def _kept(self) -> dict[str, tuple[int, str]]:
        kept = {}
        for path in (*self._folder.glob(f"{LOGS}/*"), *self._folder.glob(f"{remote.INPUTS}/**/*")):
            name = path.relative_to(self._folder).as_posix()
            if remote.is_name(name):
                size = self._size(name)
                kept[name] = (size, remote.digest_of(path, size))
        return kept

    def append(self, name: str, offset: int, data: bytes) -> int:
        """Takes what follows in a file; returns how many bytes of it are here.

        Raises:
          ArtifactError: no run has such a file, it does not follow, or the disk is full.
        """
        if not remote.is_name(name):
            raise ArtifactError("A run has no such file.")
        size, path = self._size(name), self._folder / name
        if offset != size:
            raise ArtifactError(f"{name} has {size} bytes here: byte {offset} does not follow.")
        if not size and name.startswith(f"{LOGS}/") and self._segments():
            self._learner.end(0.0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab", buffering=0) as file:
                while data:
                    data = data[file.write(data) :]
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {reason(error)}.") from error
        return self._size(name)

    def _size(self, name: str) -> int:
        try:
            return os.stat(self._folder / name).st_size
        except FileNotFoundError:
            return 0

    def _segments(self) -> list[pathlib.Path]:
        return sorted((self._folder / LOGS).glob("*.run"))

    def tend(self) -> tuple[str, str]:
        """Starts the learner when all it needs is here; returns how it is, and its last words if it failed."""
        if not self._failed and not self._learner.started:
            if not (self._met and self._learner.free and self._whole()):
                return remote.WAITS, ""
            self._learner.start(True)
        try:
            if not self._failed:
                return (remote.LEARNS if self._learner.alive() else remote.DONE), ""
        except ArtifactError as error:
            self._failed = str(error)
        return remote.FAILED, self._failed

    def _whole(self) -> bool:
        """Whether all inputs are here, and the newest segment says up to where the one before counts."""
        last = self._segments()[-1:]
        begun = not last or bool(RecordReader(last[0]).poll(1))
        return begun and all(self._size(name) == size for name, size in self._sizes.items())

    def news(self, version: int) -> tuple[int, bytes]:
        """Returns the oldest version that is newer, and its file's content; -1 and nothing if there is none."""
        newer = published.after(self._folder / PUBLISHED, version)
        if newer is None:
            return -1, b""
        try:
            return newer, published.path_of(self._folder / PUBLISHED, newer).read_bytes()
        except FileNotFoundError:  # it was tidied away meanwhile
            return -1, b""

    def policy(self) -> dict[str, bytes]:
        """Returns the files of what was learnt.

        Raises:
          ArtifactError: they are not there yet.
        """
        folder = self._folder / POLICY
        try:
            return {name: (folder / name).read_bytes() for name in remote.POLICY_FILES}
        except OSError as error:
            raise ArtifactError(f"{folder} could not be read: {reason(error)}.") from error

    def end(self) -> None:
        """Ends the learner."""
        self._learner.end(3.0)
        self._failed = ""
