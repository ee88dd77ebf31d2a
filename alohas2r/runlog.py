"""What a long run leaves behind and reports: metrics, progress, files written whole, clean stops.

Nothing here prints: progress goes to a callback, which the command line draws.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, SupportsFloat

from alohas2r.errors import ArtifactError

METRICS = "metrics.jsonl"
_WINDOW = 20  # updates over which the speed is taken


@dataclasses.dataclass(frozen=True)
class Report:
    """How far a piece of long work is.

    Attributes:
      label: what is being done, "train pick".
      done: units of work done, of `total`; what a unit is, `unit` says.
      per_s: recent speed in units per second; 0 until it is known.
      left_s: seconds left at that speed; None until it is known.
      figures: name -> value of what is worth showing.
    """

    label: str
    done: int
    total: int
    unit: str
    per_s: float
    left_s: float | None
    figures: Mapping[str, float]


Progress = Callable[[Report], None]


class Meter:
    """Turns counts of work done into reports with speed and time left."""

    def __init__(
        self,
        label: str,
        total: int,
        progress: Progress | None,
        *,
        unit: str = "steps",
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          label: what is being done.
          total: units of work in all.
          progress: receives the reports; None to drop them.
          unit: what is counted.
          done: units done earlier, when work is resumed.
          clock: seconds, monotonic.
        """
        self._label, self._total, self._unit = label, total, unit
        self._progress, self._clock = progress, clock
        self._marks = collections.deque([(clock(), done)], maxlen=_WINDOW)
        self._updates = 0

    def update(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Reports that `done` units are done by now."""
        if self._progress is None:
            return
        self._updates += 1
        if self._updates == 2:  # the first update holds the compilation: measure from there on
            self._marks.popleft()
        self._marks.append((self._clock(), done))
        (since, before), (now, _) = self._marks[0], self._marks[-1]
        per_s = (done - before) / (now - since) if now > since else 0.0
        left_s = max(self._total - done, 0) / per_s if per_s > 0 else None
        self._progress(
            Report(self._label, done, self._total, self._unit, per_s, left_s, dict(figures or {}))
        )


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
    ) -> None:
        """Prepares the folder; nothing is written before the first entry or `resume`.

        Args:
          folder: where the run is kept; created if missing.
          total_steps: the step at which the run ends.
          label: what the progress is called.
          progress: receives a Report at every entry.
          tensorboard: whether to write TensorBoard events.

        Raises:
          ArtifactError: the folder cannot be created or written.
        """
        self.folder = make_folder(folder)
        self.path = self.folder / METRICS
        self._total, self._label, self._progress = total_steps, label, progress
        self._meter: Meter | None = None
        self._step = 0
        self._resumed = False
        self._file: BinaryIO | None = None
        self._started = time.monotonic()
        self._wall_before = 0.0
        self._tensorboard = tensorboard
        self._events: Any = None

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

    def resume(self, step: int) -> list[dict[str, Any]]:
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
        """Starts the clock of the progress; the first `write` does so too, but counts from then."""
        self._meter = Meter(self._label, self._total, self._progress, done=self._step)

    def write(self, step: int, figures: Mapping[str, SupportsFloat]) -> None:
        """Appends an entry and reports progress.

        Args:
          step: environment steps so far.
          figures: name -> number (a scalar of numpy or jax will do). A name may have slashes:
            "eval/success".

        Raises:
          ArtifactError: the disk is full, or the like; the entries before are intact.
        """
        values = {name: _number(value) for name, value in figures.items()}
        row = {"step": int(step), "wall_s": round(self.wall_s, 3), **values}
        self._append(_line(row))
        self._write_events(int(step), values)
        if self._meter is None:
            self.start()
        assert self._meter is not None
        self._meter.update(int(step), {k: v for k, v in values.items() if v is not None})

    def close(self) -> None:
        """Closes the files; a later `write` opens them again."""
        if self._file is not None:
            self._file.close()
            self._file, self._resumed = None, True
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _append(self, line: bytes) -> None:
        size = None
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                descriptor = os.open(self.path, flags if self._resumed else flags | os.O_TRUNC)
                self._file = os.fdopen(descriptor, "wb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            written = self._file.write(line)
            if written != len(line):  # a full disk takes a part of it and refuses the next
                self._file.write(line[written:])
        except OSError as error:
            if self._file is not None and size is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), size)
            raise ArtifactError(
                f"{self.path} could not be written: {_reason(error)}; "
                "the entries before are intact."
            ) from error

    def _write_events(self, step: int, values: Mapping[str, float | None]) -> None:
        if not self._tensorboard:
            return
        if self._events is None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                self._tensorboard = False
                return
            # Events past the resumed step are hidden by TensorBoard from the purge step on.
            purge = self._step + 1 if self._resumed else None
            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads a metrics file; a last line that was cut off is left out; no file is no entries.

    Raises:
      ArtifactError: the file cannot be read, or a line before the last is damaged.
    """
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{path} could not be read: {_reason(error)}.") from error
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
            f"The folder {path} cannot be written: {_reason(error)}; choose another one."
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
    aside, earlier = _aside(path), path.with_name(f".{path.name}.earlier")
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


def recover_folder(path: str | os.PathLike[str]) -> None:
    """Puts the earlier folder back if `write_folder_atomic` was killed between its two renames."""
    path = pathlib.Path(path)
    earlier = path.with_name(f".{path.name}.earlier")
    if earlier.exists():
        if path.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            os.rename(earlier, path)


class StopSignal:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop, the second into KeyboardInterrupt.

    with StopSignal() as stop:
        while work and not stop:
            ...  # one iteration; then save

    Outside of the main thread, where signals cannot be caught, it never asks to stop.
    """

    def __init__(self, on_request: Callable[[], None] | None = None) -> None:
        """Keeps `on_request`, which is called at the first signal."""
        self._on_request = on_request
        self._before: dict[int, Any] = {}
        self.requested = False

    def __bool__(self) -> bool:
        """Whether a stop was asked for."""
        return self.requested

    def __enter__(self) -> StopSignal:
        """Takes over the two signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._on_request is not None:
            self._on_request()


def _number(value: SupportsFloat) -> float | int | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _aside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _unwritten(path: pathlib.Path, error: OSError) -> ArtifactError:
    kind = "folder" if path.is_dir() else "file"
    earlier = f"the earlier {kind} is intact" if path.exists() else "nothing was left behind"
    return ArtifactError(f"{path} could not be written: {_reason(error)}; {earlier}.")


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
