"""Memory that several threads fill side by side."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Iterator

import jax
import numpy as np

from alohas2r.core import threads
from alohas2r.core.types import PyTree
from alohas2r.errors import ModelError

_ALIGNMENT = 64  # bytes; so aligned, JAX takes an array over on a CPU without a copy


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array with any content, which JAX can take over on a CPU."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


class HostBuffers:
    """A tree of all environments in memory that is allocated once, into which each thread writes its own part.

    What `whole` returns lies in that memory: the next round of `put` overwrites it.

    Args:
      count: environments, N.
      steps: leaves are [steps * N, ...], time first.
    """

    def __init__(self, count: int, steps: int = 1) -> None:
        self._shape = (steps, count)
        self._lock = threading.Lock()
        self._leaves: list[np.ndarray] = []
        self._on_device: list[bool] = []
        self._structure: PyTree = None

    def put(self, where: slice, tree: PyTree, step: int | None = None) -> None:
        """Writes the leaves [steps * n, ...] of some environments, or [n, ...] of one step.

        Raises:
          ModelError: the tree is another one than in the round before.
        """
        leaves, structure = jax.tree.flatten(tree)
        rows = [np.asarray(leaf) for leaf in leaves]
        with self._lock:
            if self._structure is None:
                self._leaves = [aligned((*self._shape, *row.shape[1:]), row.dtype) for row in rows]
                self._structure = structure
            self._on_device = [isinstance(leaf, jax.Array) for leaf in leaves]
        if structure != self._structure:
            raise ModelError("The environments' state has changed its structure.")
        for target, row in zip(self._leaves, rows, strict=True):
            if step is not None:
                target[step, where] = row
            else:
                some = where.stop - where.start
                target[:, where] = row.reshape(len(target), some, *row.shape[1:])

    def whole(self) -> PyTree:
        """Returns the whole tree; nobody may write any more until it has been used."""
        count = self._shape[0] * self._shape[1]
        rows = [leaf.reshape(count, *leaf.shape[2:]) for leaf in self._leaves]
        leaves = [
            jax.device_put(row, may_alias=True) if on_device else row
            for row, on_device in zip(rows, self._on_device, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def holds(self, array: np.ndarray) -> bool:
        """Whether an array lies in this memory."""
        return any(np.may_share_memory(array, leaf) for leaf in self._leaves)


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
