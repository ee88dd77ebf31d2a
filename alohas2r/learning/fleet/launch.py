"""Starts the fleet that a training asks for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

from alohas2r.core import threads as core_threads
from alohas2r.learning.fleet.base import LOCAL, Fleet, FleetConfig, Setup
from alohas2r.learning.fleet.local import LocalFleet
from alohas2r.learning.fleet.ray import RayFleet, Resources

Plan = TypeVar("Plan")


def threads_of(config: FleetConfig, threads: int) -> int:
    """Returns the threads of each worker's physics.

    Args:
      config: of the fleet.
      threads: asked for; on a cluster of several machines each worker's, else of all workers together. 0 for one on
        such a cluster, else for all cores.
    """
    if config.address:
        return threads or 1
    return max((threads or len(core_threads.cores())) // config.workers, 1)


@contextlib.contextmanager
def launched(
    config: FleetConfig, setup: Setup[Plan], threads: int, gpus: float = 0
) -> Iterator[Fleet]:
    """Starts a fleet, and ends it.

    Args:
      config: of the fleet. setup: what it simulates.
      threads: of each worker, see `threads_of`. gpus: of each worker.

    Raises:
      BackendUnavailable: Ray is missing, or its cluster cannot be reached or has no room.
      ConfigError: workers that compute with something else than this process.
    """
    if config.kind == LOCAL:
        fleet = LocalFleet(setup, config.workers)
    else:
        # As many threads of XLA as here: sums of products depend on their number.
        xla = int(os.environ.get("NPROC") or len(core_threads.cores()))
        cpus = threads if config.address else 1
        fleet = RayFleet(setup, config.workers, config.address, Resources(cpus, gpus, xla))
    try:
        yield fleet
    finally:
        fleet.close()
