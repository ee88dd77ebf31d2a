"""Wishes of a person or the system to end a run, taken at one place of a control step."""

from __future__ import annotations

import signal
import threading
import types
from typing import Self

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class Requests:
    """Latches signals: they change nothing by themselves, wherever they arrive.

    The control loop takes them once, at the top of a step. SIGHUP comes when a terminal or an ssh session ends. Only
    if the loop takes none for three Ctrl-C, because it hangs, the third raises KeyboardInterrupt.

    Outside of the main thread, where signals cannot be caught, nothing ever comes.
    """

    IMPATIENT = 3

    def __init__(self) -> None:
        """Catches nothing yet."""
        self._pending: list[int] = []
        self._before: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> Self:
        """Takes over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _NAMES:
                self._before[number] = signal.signal(number, self._latch)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._before = {}

    def take(self) -> list[str]:
        """Returns what came since the last call, in order: "Ctrl-C", "SIGTERM", "SIGHUP"."""
        taken, self._pending = self._pending, []
        return [_NAMES[signal.Signals(number)] for number in taken]

    def _latch(self, number: int, frame: types.FrameType | None) -> None:
        self._pending.append(number)
        if self._pending.count(signal.SIGINT) >= self.IMPATIENT:
            raise KeyboardInterrupt
