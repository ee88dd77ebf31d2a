"""Figures for TensorBoard, which may fail without harm to what they are about."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping

from alohas2r.core.types import Untyped


class TensorBoard:
    """Writes event files to a folder; from the first failure on, nothing more.

    Without the package tensorboardX nothing is written at all. Each call is on disk when it returns: there is no
    thread that could be left waiting for a disk.

    Args:
      folder: of the event files, created with the first of them.
      purge_step: events from this step on, of an earlier part of the run, are hidden; None to hide none.
    """

    def __init__(self, folder: str | os.PathLike[str], purge_step: int | None = None) -> None:
        self._folder, self._purge_step = pathlib.Path(folder), purge_step
        self._writer: Untyped = None
        self._failed = False

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes the figures of a step; those that are None are left out."""
        if self._failed:
            return
        try:
            from tensorboardX import summary
            from tensorboardX.proto import event_pb2

            messages: Untyped = event_pb2
            self._open(messages)
            for name, value in values.items():
                if value is not None:
                    event = messages.Event(summary=summary.scalar(name, value), step=step)
                    event.wall_time = time.time()
                    self._writer.write_event(event)
            self._writer.flush()
        except (
            ImportError,
            OSError,
        ):  # not installed; a full disk, or a file where the folder should be
            self._failed = True
            self.close()

    def close(self) -> None:
        """Closes the file; a later `write` begins another."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError, ValueError):
                writer.close()

    def _open(self, messages: Untyped) -> None:
        if self._writer is not None:
            return
        from tensorboardX import event_file_writer

        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(self._folder / "events"))
        if self._purge_step is not None:
            for mark in (
                {"file_version": "brain.Event:2"},
                {"session_log": messages.SessionLog(status=messages.SessionLog.START)},
            ):
                self._writer.write_event(messages.Event(step=self._purge_step, **mark))
