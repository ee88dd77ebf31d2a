"""Times calls in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from alohas2r.core import progress as core_progress

_TURNS = 3  # that are timed at least
CALLS = 3  # of a measurement at least: one that compiles, two that count


def take_turns(
    sides: dict[str, Callable[[], object]], rounds: int, spread: tuple[str, ...] = ()
) -> dict[str, list[float]]:
    """Returns the times (s) of each side's calls in rounds in which all take turns.

    Each has one core, since compiled code may take more threads than it was told to; those in `spread` have all.
    A first call in each turn is not timed: it finds threads and caches as the side before left them.
    """
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            with contextlib.nullcontext() if name in spread else _one_core():
                call()
                start = time.perf_counter()
                call()
                took[name].append(time.perf_counter() - start)
    return took


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps all threads of this process on one core, where the system can (Linux)."""
    tasks = pathlib.Path("/proc/self/task")
    if not (hasattr(os, "sched_setaffinity") and tasks.is_dir()):
        yield
        return
    cores = os.sched_getaffinity(0)

    def move(where: set[int]) -> None:
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(task.name), where)

    move({min(cores)})
    try:
        yield
    finally:
        move(cores)


class Turns:
    """Times (s) of parts that take turns, of which the first, in which things are compiled, does not count.

    Args:
      label: of the progress that is shown.
      names: of the parts.
      seconds: how long to go on after the first turn; at least three turns are timed.
      progress: receives reports.
    """

    def __init__(
        self,
        label: str,
        names: tuple[str, ...],
        seconds: float,
        progress: core_progress.Progress | None,
    ):
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self._seconds = seconds
        self._meter = core_progress.Meter(label, 100, progress, unit="%")
        self._deadline: float | None = None
        self.wanted = True  # whether there is to be another turn

    @property
    def count(self) -> int:
        """Number of turns that were timed."""
        return min(map(len, self.times.values()))

    def add(self, **took: float) -> None:
        """Keeps the times of a turn, by part."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
            return
        for name, values in self.times.items():
            values.append(took[name])
        left = max(0.0, self._deadline - time.monotonic())
        self._meter.update(int(100 * (1 - left / self._seconds)))
        self.wanted = left > 0 or self.count < _TURNS

    def speeds(self, steps: int) -> dict[str, float]:
        """Returns steps per second of each part by the median of its times of `steps` steps."""
        return {name: steps / float(np.median(values)) for name, values in self.times.items()}


def repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """Returns the times (s) of calls after a first one, two of them at least."""
    call()
    took: list[float] = []
    while len(took) < CALLS - 1 or sum(took) < seconds:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return took
