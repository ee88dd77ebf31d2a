"""Memory that several threads fill side by side."""

from __future__ import annotations

import collections
import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alohas2r.core import threads

_ALIGNMENT = 64  # bytes


class Together:
    """A tree of all environments, into which each thread writes its own; nothing is copied twice.

    Args:
      count: environments, N.
      memory: where it is kept.
      steps: leaves are [steps * N, ...], time first.
    """

    def __init__(self, count: int, memory: Memory, steps: int = 1):
        self._shape, self._memory = (steps, count), memory
        self._lock = threading.Lock()
        self._leaves: list[np.ndarray] = []
        self._on_device: list[bool] = []
        self._tree: Any = None

    def put(self, where: slice, tree: Any, step: int | None = None) -> None:
        """Adds the leaves [steps * n, ...] of some environments, or [n, ...] of one step."""
        leaves, structure = jax.tree.flatten(tree)
        rows = [np.asarray(leaf) for leaf in leaves]
        with self._lock:
            if self._tree is None:
                self._tree = structure
                self._on_device = [isinstance(leaf, jax.Array) for leaf in leaves]
                take = self._memory.take
                self._leaves = [take((*self._shape, *row.shape[1:]), row.dtype) for row in rows]
        for target, row in zip(self._leaves, rows, strict=True):
            if step is not None:
                target[step, where] = row
            else:
                some = where.stop - where.start
                target[:, where] = row.reshape(len(target), some, *row.shape[1:])

    def whole(self) -> Any:
        """Returns the whole tree; nobody may write any more."""
        count = self._shape[0] * self._shape[1]
        rows = [leaf.reshape(count, *leaf.shape[2:]) for leaf in self._leaves]
        found = [
            jax.device_put(row, may_alias=True) if on_device else row
            for row, on_device in zip(rows, self._on_device, strict=True)
        ]
        return jax.tree.unflatten(self._tree, found)


def advance_all(runs: list[Iterator[None]], workers: int) -> None:
    """Runs all generators to their ends; a thread takes the one that has waited longest one step further.

    So no thread is done much before the others, and each generator is in one thread at a time.
    """
    waiting = collections.deque(runs)

    def work() -> None:
        while True:
            try:
                run = waiting.popleft()
            except IndexError:  # each of the others is in a thread, which will go on with it
                return
            try:
                next(run)
            except StopIteration:
                continue
            waiting.append(run)

    with threads.spread(), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()


class Memory:
    """Arrays whose memory is used again as soon as nothing refers to it any more.

    Fresh memory takes longer to get than what is written there takes to write.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, list[np.ndarray]] = {}
        self._unused = _references([np.empty(1, np.uint8)], 0)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array with any content, which JAX can take over on a CPU without a copy."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            kept = self._kept.setdefault(size, [])
            free = (at for at in range(len(kept)) if _references(kept, at) == self._unused)
            found = next(free, len(kept))
            if found == len(kept):
                kept.append(np.empty(size + _ALIGNMENT, np.uint8))
            first = -kept[found].ctypes.data % _ALIGNMENT
            return kept[found][first : first + size].view(dtype).reshape(shape)


def _references(arrays: list[np.ndarray], index: int) -> int:
    """Returns how many references there are to an array, its views' and JAX's among them."""
    return sys.getrefcount(arrays[index])
