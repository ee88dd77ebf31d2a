"""How long the parts of a step take."""

from __future__ import annotations

import time

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.report import Report
from alohas2r.embodiment import joints
from alohas2r.safety.reactions import Mode


class Tally:
    """Collects how long the control steps under the policy took."""

    PARTS = ("read", "look", "infer", "guard", "write", "log")

    def __init__(self, period_s: float = joints.CONTROL_PERIOD_S) -> None:
        """Starts empty; a step that takes longer than `period_s` is late."""
        self._period_s = period_s
        self._laps: list[list[float]] = []
        self._durations: list[float] = []
        self._gaps: list[float] = []
        self._last_s: float | None = None

    def __call__(self, report: Report) -> None:
        """Takes a control step."""
        now_s = time.monotonic()
        if report.acting and report.mode is Mode.RUN:
            self._laps.append([report.laps.get(part, 0.0) for part in self.PARTS])
            self._durations.append(report.duration_s)
            if self._last_s is not None and report.step > 0:
                self._gaps.append(now_s - self._last_s)
        self._last_s = now_s

    @property
    def rate_hz(self) -> float | None:
        """Control steps per second, over the last 40."""
        recent = self._gaps[-40:]
        return len(recent) / sum(recent) if recent and sum(recent) else None

    def figures(self, paced: bool = True) -> JsonObject:
        """Returns the rate, late steps, and times in ms; "loop" is all but "look".

        Args:
          paced: whether steps had to be in time; otherwise there is neither rate nor lateness.
        """
        if not self._durations:
            return {"steps": 0}
        laps = 1000 * np.array(self._laps)
        columns: dict[str, np.ndarray] = dict(zip(self.PARTS, laps.T, strict=True))
        columns["loop"] = laps.sum(axis=1) - columns["look"]
        columns["total"] = 1000 * np.array(self._durations)
        late = int((columns["total"] > 1000 * self._period_s).sum())
        pace = {
            "rate_hz": len(self._gaps) / sum(self._gaps) if self._gaps else None,
            "late_steps": late,
            "late_share": late / len(laps),
        }
        return {
            "steps": len(laps),
            **(pace if paced else {}),
            "milliseconds": {
                part: {"median": float(np.median(one)), "p99": float(np.quantile(one, 0.99))}
                for part, one in columns.items()
            },
        }


class Stopwatch:
    """Times the parts of a control step."""

    def __init__(self) -> None:
        self._begun_s = self._lap_s = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Ends a part of the step."""
        now_s = time.perf_counter()
        self.laps[part] = now_s - self._lap_s
        self._lap_s = now_s

    def total(self) -> float:
        """Returns the time from the start to the last lap (s)."""
        return self._lap_s - self._begun_s
