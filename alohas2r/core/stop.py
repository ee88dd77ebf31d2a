"""Turns signals into a wish to stop."""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Callable
from typing import Any


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
