"""Data parallelism: processes that each learn from environments of their own, and share their gradients' mean."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alohas2r.core.types import PyTree

AXIS = "ranks"
WHOLE = PartitionSpec()  # the same in every process
BY_STEP = PartitionSpec(None, AXIS)  # [T, N, ...], each process its own N
BY_ROW = PartitionSpec(AXIS)  # [N, ...]
Tree = TypeVar("Tree")


class Spread(NamedTuple):
    """All processes that learn together, one device each."""

    mesh: Mesh

    def put(self, tree: Tree, how: PartitionSpec) -> Tree:
        """Returns a tree of all processes' arrays from this one's."""
        sharding = NamedSharding(self.mesh, how)

        def one(leaf: PyTree) -> jax.Array:
            return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

        return jax.tree.map(one, tree)

    @staticmethod
    def own(tree: Tree) -> Tree:
        """Returns this process's part of a tree of all processes' arrays."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def all_processes() -> Spread:
    """Returns the processes that `jax.distributed` has brought together."""
    return Spread(Mesh(np.array(jax.devices()), (AXIS,)))


def mean(tree: Tree, spread: Spread | None) -> Tree:
    """Returns the mean over all processes; the tree itself where there is but one (traceable)."""
    return tree if spread is None else jax.lax.pmean(tree, AXIS)
