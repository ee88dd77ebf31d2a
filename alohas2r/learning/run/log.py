"""What a long run leaves behind and reports: metrics, progress, curves for TensorBoard.

Nothing here prints: progress goes to a callback, which the command line draws. Metrics are part of the run, and a
failure to write them ends it; what is only shown may fail without harm.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import BinaryIO, SupportsFloat

from alohas2r.core.files import make_folder, reason, write_atomic
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError
from alohas2r.learning.run.events import TensorBoard
from alohas2r.learning.run.loggers.base import Loggers

METRICS = "metrics.jsonl"


class RunLog:
    """The metrics of one run: a JSON line per entry, TensorBoard events, progress.

    `metrics.jsonl` has one object a line: "step", "wall_s" (seconds of work, pauses between
    resumed parts left out) and the figures; a figure that is not finite is null. Each line is
    on disk when `write` returns. TensorBoard events go to the folder "tensorboard" if
    tensorboardX is installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        total_steps: int,
        *,
        label: str = "train",
        progress: Progress | None = None,
        tensorboard: bool = True,
        loggers: Loggers | None = None,
    ) -> None:
        """Prepares the folder; nothing is written before the first entry or `resume`.

        Args:
          folder: where the run is kept; created if missing.
          total_steps: the step at which the run ends.
          label: what the progress is called.
          progress: receives a Report of every entry that is shown.
          tensorboard: whether to write TensorBoard events.
          loggers: who else is told every entry that is shown.

        Raises:
          ArtifactError: the folder cannot be created or written.
        """
        self.folder = make_folder(folder)
        self.path = self.folder / METRICS
        self._total, self._label, self._progress = total_steps, label, progress
        self._meter: Meter | None = None
        self._step = 0
        self._last: tuple[int, dict[str, float | None]] | None = None
        self._resumed = False
        self._file: BinaryIO | None = None
        self._started = time.monotonic()
        self._wall_before = 0.0
        self._wanted, self._loggers = tensorboard, loggers
        self._events: TensorBoard | None = None

    def __enter__(self) -> RunLog:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the files."""
        self.close()

    @property
    def wall_s(self) -> float:
        """Seconds of work so far, those of the resumed run included."""
        return self._wall_before + time.monotonic() - self._started

    def resume(self, step: int) -> list[JsonObject]:
        """Continues an earlier log from a checkpoint: drops the entries past `step`.

        A last line cut off by a crash is dropped as well.

        Returns:
          The entries that were kept.

        Raises:
          ArtifactError: the file is damaged before its last line, or cannot be written.
        """
        rows = [row for row in read_metrics(self.path) if row["step"] <= step]
        self.close()
        write_atomic(self.path, b"".join(_line(row) for row in rows))
        self._step, self._resumed, self._meter = step, True, None
        self._wall_before = float(rows[-1].get("wall_s") or 0.0) if rows else 0.0
        self._started = time.monotonic()
        return rows

    def start(self) -> None:
        """Starts the clock of the progress; the first `show` does so too, but counts from then."""
        self._meter = Meter(self._label, self._total, self._progress, done=self._step)

    def write(self, step: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Appends an entry, which the next `show` reports.

        Args:
          step: environment steps so far.
          figures: name -> number (a scalar of numpy or jax will do). A name may have slashes:
            "eval/success".

        Raises:
          ArtifactError: the disk is full, or the like; the entries before are intact.
        """
        values = {name: _number(value) for name, value in figures.items()}
        self._append(_line({"step": int(step), "wall_s": round(self.wall_s, 3), **values}))
        self._last = int(step), values

    def show(self) -> None:
        """Reports the newest entry as progress, to TensorBoard and other loggers; none of it can fail."""
        if self._last is None:
            return
        step, values = self._last
        if self._wanted:
            if self._events is None:
                # Events past the resumed step are hidden by TensorBoard from the purge step on.
                purge = self._step + 1 if self._resumed else None
                self._events = TensorBoard(self.folder / "tensorboard", purge)
            self._events.write(step, values)
        if self._loggers is not None:
            self._loggers.write(step, values)
        if self._meter is None:
            self.start()
        assert self._meter is not None
        self._meter.update(step, {k: v for k, v in values.items() if v is not None})

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        if self._file is not None:
            self._file.close()
            self._file, self._resumed = None, True
        if self._events is not None:
            self._events.close()
            self._events = None

    def _append(self, line: bytes) -> None:
        size = None
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                flags = flags if self._resumed else flags | os.O_TRUNC
                self._file = os.fdopen(os.open(self.path, flags, 0o666), "wb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            written = self._file.write(line)
            if written != len(line):  # a full disk takes a part of it and refuses the next
                self._file.write(line[written:])
        except OSError as error:
            if self._file is not None and size is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), size)
            raise ArtifactError(
                f"{self.path} could not be written: {reason(error)}; the entries before are intact."
            ) from error


def read_metrics(path: str | os.PathLike[str]) -> list[JsonObject]:
    """Reads a metrics file; a last line that was cut off is left out; no file is no entries.

    Raises:
      ArtifactError: the file cannot be read, or a line before the last is damaged.
    """
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{path} could not be read: {reason(error)}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines):
            break  # after the last newline: empty, or cut off
        try:
            row = json.loads(line)
            if not isinstance(row.get("step"), int):
                raise ValueError("no step")
        except (ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is damaged in line {number}; move it away and start a new run."
            ) from error
        rows.append(row)
    return rows


def _number(value: SupportsFloat) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _line(row: JsonObject) -> bytes:
    return json.dumps(row).encode() + b"\n"
