"""Cores and threads: what several threads of Python that compute with JAX at once need."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
from collections.abc import Iterator

_ARENAS, _MAPPINGS, _TOP_PAD, _TRIM_THRESHOLD = -8, -4, -2, -1  # of malloc.h


def cores() -> list[int]:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@functools.cache
def keep_memory() -> bool:
    """Makes this process keep the memory that it frees, for its own next use, where the C library can (glibc).

    A training allocates and frees the same large arrays over and over. Given back to the system in between, each page
    has to be got anew, which took a twelfth of a distillation's time on a virtual machine.

    Returns:
      Whether it does. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    wanted = ((_ARENAS, 2), (_TRIM_THRESHOLD, 2**31 - 1), (_MAPPINGS, 0), (_TOP_PAD, 2**26))
    return mallopt is not None and all([mallopt(*one) == 1 for one in wanted])


def give_memory_back() -> bool:
    """Gives freed memory back to the system, where the C library can (glibc): now and then, after `keep_memory`.

    What compiling leaves behind lies in pieces between what is in use: some 0.8 GB of a distillation.

    Returns:
      Whether there was any. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return trim is not None and trim(0) == 1


@functools.cache
def _xla_threads() -> tuple[int, ...]:
    """Returns the threads on which XLA computes, where the system tells (Linux)."""
    import jax

    jax.devices("cpu")  # they exist from now on
    numbers = []
    for task in pathlib.Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has just ended
            if "XLAEigen" in (task / "comm").read_text():
                numbers.append(int(task.name))
    return tuple(sorted(numbers))


@contextlib.contextmanager
def spread() -> Iterator[None]:
    """Gives each of XLA's threads a core of its own meanwhile, where the system can (Linux).

    Left to itself, the system wakes several of them on one core and takes some 20 ms to part them.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
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
