"""What keeps the control loop's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from alohas2r.embodiment import joints


class Pacer(Protocol):
    """What makes a control step take its time.

    Attributes:
      realtime: whether time passes by itself, so that a step can be late.
    """

    realtime: bool

    def wait(self) -> None:
        """Returns when the next control step is due."""
        ...

    def now_s(self) -> float:
        """Returns the time by which holds are measured: the clock's, or the stepped world's."""
        ...


class ClockPacer:
    """Waits for the clock; a step that is late is not made up for."""

    realtime = True

    def __init__(self, period_s: float = joints.CONTROL_PERIOD_S) -> None:
        """Starts with the first `wait`."""
        self._period_s = period_s
        self._due_s: float | None = None

    def wait(self) -> None:
        """Sleeps until the next control step is due."""
        now_s = time.monotonic()
        due_s = now_s if self._due_s is None else self._due_s
        if now_s < due_s:
            time.sleep(due_s - now_s)
        self._due_s = max(due_s, now_s - self._period_s) + self._period_s

    def now_s(self) -> float:
        """Returns the clock's time."""
        return time.monotonic()


class SteppedPacer:
    """Lets a stepped world pass on by one control period."""

    realtime = False

    def __init__(
        self, advance: Callable[[], object], period_s: float = joints.CONTROL_PERIOD_S
    ) -> None:
        """Keeps the world's own way of advancing by a period, such as `Emulator.step`."""
        self._advance = advance
        self._period_s = period_s
        self._steps = 0

    def wait(self) -> None:
        """Advances the world, but not before the first step."""
        if self._steps:
            self._advance()
        self._steps += 1

    def now_s(self) -> float:
        """Returns the world's time."""
        return self._steps * self._period_s
