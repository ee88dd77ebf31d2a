"""Reports of work done, with speed and time left."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Mapping

_WINDOW = 20  # advances over which the speed is taken


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
    """Turns counts of work done into reports with speed and time left.

    Neither is known before the second advance: the time to the first one is mostly that of compiling.

    What shows them may fail, as on a terminal that is gone or a full disk: the work goes on, and nothing more is
    shown.
    """

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
        self._done = done
        self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)

    def update(self, done: int, figures: Mapping[str, float] | None = None) -> None:
        """Reports that `done` units are done by now."""
        if self._progress is None:
            return
        # Counts may stand still for many updates, where each is a small part of one.
        if done > self._done:
            self._done = done
            self._marks.append((self._clock(), done))
        per_s = 0.0
        if len(self._marks) > 1:
            (since, before), (now, latest) = self._marks[0], self._marks[-1]
            per_s = (latest - before) / (now - since) if now > since else 0.0
        left_s = max(self._total - done, 0) / per_s if per_s > 0 else None
        shown = dict(figures or {})
        report = Report(self._label, done, self._total, self._unit, per_s, left_s, shown)
        try:
            self._progress(report)
        except (Exception, SystemExit):  # rich leaves the program where its terminal is gone
            self._progress = None
