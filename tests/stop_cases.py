"""A wish to stop that comes when a test wants it."""

from __future__ import annotations

from alohas2r.core.stop import StopSignal


class StopAfter(StopSignal):
    """Asks to stop from when it has been asked so many times whether to."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0
