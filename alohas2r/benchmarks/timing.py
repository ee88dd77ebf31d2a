"""Times calls in turn, so that a drift of the machine hits all alike."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator

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


def repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """Returns the times (s) of calls after a first one, two of them at least."""
    call()
    took: list[float] = []
    while len(took) < CALLS - 1 or sum(took) < seconds:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return took
