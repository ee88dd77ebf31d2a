"""The wrist cameras as the control loop sees them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Camera, Frame
from alohas2r.safety.monitor import Finding, Level, Monitor


class Look(NamedTuple):
    """The newest pictures by side, and what is wrong with them; a picture may be missing then."""

    frames: dict[str, Frame]
    findings: list[Finding]


class Eyes:
    """Both wrist cameras."""

    def __init__(self, cameras: Sequence[Camera]) -> None:
        """Takes the two entered cameras."""
        self._cameras = {camera.name: camera for camera in cameras}

    def look(self, monitor: Monitor, position: np.ndarray, approaching: bool = False) -> Look:
        """Takes the newest pictures and has them judged.

        Args:
          monitor: judges them.
          position: [14] measured positions.
          approaching: whether the arms move one at a time with empty hands.
        """
        frames: dict[str, Frame] = {}
        findings: list[Finding] = []
        for side in SIDES:
            try:
                frames[side] = self._cameras[side].read(monitor.config.frame_age_s)
            except RobotFault as fault:
                monitor.counts["stale camera"] += 1
                findings.append(Finding("stale camera", Level.HOLD, str(fault)))
        if not findings:
            findings = monitor.frames(frames, position, time.monotonic(), approaching)
        return Look(frames, findings)
