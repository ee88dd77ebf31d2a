"""What a control step leaves behind: a record in the log, and a report to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.report import Report
from alohas2r.errors import ArtifactError
from alohas2r.robots.base import Proprio


class Recorder:
    """Writes the log and tells the display; neither may end a run.

    Attributes:
      problem: why the log ended before the run; "" while it goes on.
    """

    def __init__(self, log: LogWriter | None, on_step: Callable[[Report], None] | None) -> None:
        """Keeps both; either may be None."""
        self._log, self._on_step = log, on_step
        self.problem = ""

    def step(
        self,
        report: Report,
        reading: Proprio,
        command: np.ndarray | None,
        arrays: Mapping[str, np.ndarray],
        fresh: bool,
        learning: Mapping[str, object] | None = None,
    ) -> None:
        """Writes a control step.

        Args:
          report: what it did.
          reading: the joints.
          command: [14] what was sent, or would have been without torque; None: nothing.
          arrays: what the policy saw and answered.
          fresh: whether the policy began anew in it.
          learning: what a policy that learns says of it; see docs/online.md.
        """
        values = {
            "episode": report.episode,
            "step": report.step,
            "time_s": reading.time_s,
            "mode": report.mode.value,
            "switched": report.switched,
            "interventions": list(report.interventions),
            "findings": [one.kind for one in report.findings],
            "episode_start": fresh,
            **{f"{part}_s": seconds for part, seconds in report.laps.items()},
            "total_s": report.duration_s,
        }
        if learning:
            values["learning"] = dict(learning)
        kept = {
            **arrays,
            "position": reading.position,
            "velocity": reading.velocity,
            "current": reading.current,
            "age_s": reading.age_s,
            "temperature_c": reading.temperature_c,
        }
        if command is not None:
            kept["command"] = command
        self._write("step", values, kept)

    def tell(self, report: Report) -> None:
        """Reports a control step to whoever watches."""
        if self._on_step is None:
            return
        try:
            self._on_step(report)
        except OSError as error:  # the terminal is gone; the arms go on
            self._on_step = None
            self.event(f"nobody watches any more: {error}")

    def event(self, text: str) -> None:
        """Writes what else happened."""
        self._write("event", {"time_s": time.monotonic(), "text": text})

    def end(self, values: Mapping[str, object]) -> None:
        """Writes how the run ended."""
        self._write("end", values)

    def _write(
        self,
        kind: str,
        values: Mapping[str, object],
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if self._log is None:
            return
        try:
            self._log.write(kind, values, arrays)
        except ArtifactError as error:
            self._log, self.problem = None, str(error)
