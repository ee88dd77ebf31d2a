"""Cores and threads: what several threads of Python that compute with JAX at once need."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator

import jax


def cores() -> list[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@functools.cache
def _xla_threads() -> tuple[int, ...]:
    """Returns the threads on which XLA computes, where the system tells (Linux)."""
    jax.devices("cpu")  # they exist from now on
    found = []
    for task in pathlib.Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended
            if "XLAEigen" in (task / "comm").read_text():
                found.append(int(task.name))
    return tuple(sorted(found))


@contextlib.contextmanager
def spread() -> Iterator[None]:
    """Gives each of XLA's threads a core of its own meanwhile, where the system can (Linux).

    Left to itself, the system wakes several of them on one core and takes some 20 ms to part them.
    """
    available, before = cores(), dict[int, set[int]]()
    try:
        for index, thread in enumerate(_xla_threads()):
            with contextlib.suppress(OSError):  # it has ended
                before[thread] = os.sched_getaffinity(thread)
                _stay(thread, {available[index % len(available)]})
        yield
    finally:
        for thread, where in before.items():
            _stay(thread, where)


def _stay(thread: int, cores: set[int]) -> None:
    """Keeps a thread on some cores."""
    with contextlib.suppress(OSError):  # a core has just been taken from this process
        os.sched_setaffinity(thread, cores)
