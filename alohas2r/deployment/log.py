"""The log of a run on the robot: one file that holds everything the policy saw and did.

The file grows by whole records, each written straight to the operating system with its length and
checksum, so that a process that is killed loses at most the record it was writing. Arrays are kept
to the last bit: replaying the policy on them must give the very actions that were logged.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from alohas2r.core.records import MAGIC, Record, RecordReader, pack
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError
from alohas2r.policies.protocol import Policy


class LogWriter:
    """Writes a run.

    Attributes:
      path: the file.
    """

    def __init__(self, path: str | os.PathLike[str], header: Mapping[str, object]) -> None:
        """Creates the file with its first record.

        Args:
          path: a new file.
          header: what the run is: robot, mode, policy, limits; plain values.

        Raises:
          ArtifactError: the file exists already or cannot be written.
        """
        self.path = pathlib.Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error.strerror}.") from error
        self._write(MAGIC)
        self.write("header", dict(header))

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()

    def write(
        self,
        kind: str,
        values: Mapping[str, object],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Appends a record.

        Args:
          kind: "header", "step", "event", "episode" or "end".
          values: plain values.
          arrays: arrays of numbers, kept exactly.

        Raises:
          ArtifactError: the disk is full, or the like.
        """
        self._write(pack(kind, values, arrays))

    def close(self) -> None:
        """Closes the file; what was written is on disk afterwards."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error.strerror}.") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One control step of a run."""

    values: JsonObject
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run as it was logged.

    Attributes:
      header: what the run was.
      steps: its control steps.
      events: what else happened, in order.
      end: how it ended; None if the log was cut off.
    """

    header: JsonObject
    steps: list[Step]
    events: list[JsonObject]
    end: JsonObject | None

    def stack(self, name: str) -> np.ndarray:
        """Returns an array or value of every step that has it [n, ...]."""
        values = [
            step.arrays[name] if name in step.arrays else step.values[name]
            for step in self.steps
            if name in step.arrays or name in step.values
        ]
        return np.array(values)


def read_run(path: str | os.PathLike[str]) -> Run:
    """Reads a log, up to where it was cut off.

    Raises:
      ArtifactError: there is no such file, or it is none of a run.
    """
    header, end = None, None
    steps: list[Step] = []
    events: list[JsonObject] = []
    for kind, values, arrays, _ in _records(pathlib.Path(path)):
        if kind == "header":
            header = values
        elif kind == "step":
            steps.append(Step(values, arrays))
        elif kind == "event":
            events.append(values)
        elif kind == "end":
            end = values
    if header is None:
        raise ArtifactError(f"{path} was cut off before its first record.")
    return Run(header, steps, events, end)


def _records(path: pathlib.Path) -> list[Record]:
    if not path.exists():
        raise ArtifactError(f"{path} could not be read: No such file or directory.")
    if path.is_dir():
        raise ArtifactError(f"{path} could not be read: Is a directory.")
    reader = RecordReader(path)
    records = reader.poll()
    if not reader.offset:
        raise ArtifactError(f"{path} is no log of a run.")
    return records


def replay(run: Run, policy: Policy) -> float:
    """Runs a policy on the logged observations and returns how far its actions are from the logged.

    Steps in which the policy was not asked, or did not answer, are left out, as they were in the run.

    Raises:
      ArtifactError: the run has no step in which the policy acted.
    """
    worst, count = 0.0, 0
    for step in run.steps:
        if step.values.get("episode_start"):
            policy.reset()
        if "action" not in step.arrays:
            continue
        prefix = "observation/"
        observation = {
            name.removeprefix(prefix): array
            for name, array in step.arrays.items()
            if name.startswith(prefix)
        }
        logged = step.arrays["action"]
        actions = np.asarray(policy.act(observation))
        same = np.isnan(actions) & np.isnan(logged)
        worst = max(worst, float(np.abs(np.where(same, 0, actions - logged)).max()))
        count += 1
    if not count:
        raise ArtifactError("The policy did not act in this run; there is nothing to compare.")
    return worst


def summarize(run: Run) -> JsonObject:
    """Returns the figures of a run: timing, interventions, findings, modes."""
    durations = {
        part: run.stack(f"{part}_s") * 1000
        for part in ("read", "look", "infer", "guard", "write", "total")
    }
    period_s = float(run.header["period_s"])
    total = durations["total"]
    modes = [step.values["mode"] for step in run.steps]
    interventions: dict[str, int] = {}
    findings: dict[str, int] = {}
    for step in run.steps:
        for one in step.values["interventions"]:
            interventions[one] = interventions.get(one, 0) + 1
        for one in step.values["findings"]:
            findings[one] = findings.get(one, 0) + 1
    times = run.stack("time_s")
    span_s = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return {
        "steps": len(run.steps),
        "complete": run.end is not None,
        "rate_hz": (len(times) - 1) / span_s if span_s else None,
        "late_steps": int((total > 1000 * period_s).sum()),
        "milliseconds": {
            part: {"median": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}
            for part, values in durations.items()
            if len(values)
        },
        "modes": {mode: modes.count(mode) for mode in dict.fromkeys(modes)},
        "switched_steps": int(run.stack("switched").sum()) if len(run.steps) else 0,
        "interventions": interventions,
        "findings": findings,
        "end": run.end,
    }


def views(run: Run, scale: int = 8, far_m: float = 0.4) -> Iterator[np.ndarray]:
    """Yields what the policy saw in each step, as pictures for a video.

    Args:
      run: a run.
      scale: how many times larger than the policy's pictures.
      far_m: depth that is drawn black (m); nearer is brighter.

    Yields:
      [H, W, 3] uint8: colour above depth (and grey of the right imager below, where there is one), the left camera on
      the left.
    """
    for step in run.steps:
        columns = []
        for side in ("left", "right"):
            rgb = step.arrays.get(f"observation/{side}_rgb")
            depth = step.arrays.get(f"observation/{side}_depth")
            if rgb is None or depth is None:
                continue
            near = np.where(depth > 0, 1 - np.clip(depth / far_m, 0, 1), 0)
            rows = [rgb, (255 * near).astype(np.uint8)]
            grey = step.arrays.get(f"observation/{side}_grey")
            rows += [] if grey is None else [grey]
            rows[1:] = [np.repeat(one[..., None], 3, axis=2) for one in rows[1:]]
            columns.append(np.concatenate(rows))
        if columns:
            picture = np.concatenate(columns, axis=1)
            yield picture.repeat(scale, axis=0).repeat(scale, axis=1)
