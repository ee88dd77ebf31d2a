"""The phases of the GPU benchmark; each runs in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable

from alohas2r.benchmarks.gpu import checks, machine, throughput, training
from alohas2r.benchmarks.gpu.job import Job, said


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
      name: as in the JSON file.
      weight: share of the budget, relative to the phases that are left.
      least_s: the phase is left out if its share is smaller.
      command: the process, which gets the path of its job as last argument; this module if empty.
    """

    name: str
    weight: float
    least_s: float
    command: tuple[str, ...] = ()


PHASES = (
    Phase("device", 60, 3),
    Phase("smoke", 120, 20),
    Phase("physics_pick", 55, 15),
    Phase("physics_insert", 55, 15),
    Phase("rendering", 50, 15),
    Phase("train_pick", 55, 20),
    Phase("train_insert", 65, 25),
    Phase("pretrain", 35, 15),
    Phase("distill", 55, 20),
    Phase("export", 20, 10),
)
_RUN: dict[str, Callable[[Job], None]] = {
    "device": machine.device,
    "smoke": checks.smoke,
    "physics_pick": lambda job: throughput.physics(job, "pick"),
    "physics_insert": lambda job: throughput.physics(job, "insert"),
    "rendering": throughput.rendering,
    "train_pick": lambda job: training.ppo(job, "pick"),
    "train_insert": lambda job: training.ppo(job, "insert"),
    "pretrain": training.pretraining,
    "distill": training.distillation,
    "export": checks.exporting,
}


def run_phase(job_file: str | os.PathLike[str]) -> int:
    """Runs one phase, in a process of its own.

    Args:
      job_file: what `bench_gpu` wrote; see `Job`.

    Returns:
      The exit code.
    """
    description = json.loads(pathlib.Path(job_file).read_text())
    # Whoever waits for this process may be killed; nothing is to hold the GPU for ever.
    signal.setitimer(signal.ITIMER_REAL, description["limit_s"] + 5)
    job = Job(description)
    try:
        before = _built_kernels()
        try:
            _RUN[job.phase](job)
        finally:
            job.note(warp_kernels_built=_built_kernels() - before)
    except Exception as error:
        traceback.print_exc()
        job.note(error=said(error))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _built_kernels() -> int:
    """Returns how many compiled modules lie in Warp's cache; the first run on a machine builds them."""
    import warp as wp

    wp.init()
    with contextlib.suppress(OSError, TypeError):
        return len(list(pathlib.Path(wp.config.kernel_cache_dir).iterdir()))  # pyright: ignore[reportArgumentType]
    return 0


if __name__ == "__main__":
    sys.exit(run_phase(sys.argv[1]))
