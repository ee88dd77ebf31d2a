"""Turns signals into a wish to stop."""

from __future__ import annotations

import signal
import threading
import time
import types
from collections.abc import Callable

ASKING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what ends services
# Beside these: a terminal that is gone, and what schedulers send before they take the machine back.
ALL = (*ASKING, signal.SIGHUP, signal.SIGUSR1)
SAME_S = 1.0  # two that come so soon are one wish: a shell and its terminal both pass it on, or a finger trembles


class StopSignal:
    """Turns the first signal to stop into a wish, which the work fulfils at its next good moment.

    with StopSignal() as stop:
        while work and not stop:
            ...  # one iteration; then save

    Any further one raises KeyboardInterrupt; see `patient` for work that must not be hurried. SIGHUP stays ignored
    where it was, as under nohup. Outside of the main thread, where signals cannot be caught, it never asks to stop.

    Args:
      on_request: called at the first signal.
      signals: that ask to stop. insisting: of which a further one interrupts.
      same_s: for so long after the first signal further ones mean the same.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        on_request: Callable[[], None] | None = None,
        *,
        signals: tuple[signal.Signals, ...] = ASKING,
        insisting: tuple[signal.Signals, ...] = ASKING,
        same_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_request, self._clock, self._same_s = on_request, clock, same_s
        self._signals, self._insisting = signals, insisting
        self._before: dict[int, Callable[..., object] | int | None] = {}
        self._since = 0.0
        self.requested = False

    @classmethod
    def patient(cls, clock: Callable[[], float] = time.monotonic) -> StopSignal:
        """Returns one for work that saves before it stops: only another Ctrl-C, a second later or more, interrupts."""
        return cls(signals=ALL, insisting=(signal.SIGINT,), same_s=SAME_S, clock=clock)

    def __bool__(self) -> bool:
        """Whether a stop was asked for."""
        return self.requested

    def __enter__(self) -> StopSignal:
        """Takes over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, self._clock()
            if self._on_request is not None:
                self._on_request()
        elif number in self._insisting and self._clock() - self._since >= self._same_s:
            raise KeyboardInterrupt
