"""Where the runs of a sweep are computed: a fleet starts processes, here or by Ray."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from alohas2r.core import threads

LOST = -int(signal.SIGKILL)  # exit status of a run whose worker is gone


class Job(NamedTuple):
    """A training to start.

    Attributes:
      program: what Python is given.
      folder: of the run, which exists; standard output goes to RESULT in it, standard error to the end of LOG.
      cores: on which it may compute; all if empty.
      environment: variables of the process.
    """

    program: Sequence[str]
    folder: pathlib.Path
    cores: Sequence[int]
    environment: Mapping[str, str]


RESULT, LOG = "result.json", "log.txt"


class Handle(Protocol):
    """A training that was started."""

    def poll(self) -> int | None:
        """Returns its exit status, negative where a signal ended it; None while it goes on."""
        ...

    def stop(self) -> None:
        """Asks it to save and stop."""
        ...


class Fleet(Protocol):
    """What starts trainings."""

    def start(self, job: Job) -> Handle:
        """Starts one."""
        ...

    def close(self) -> None:
        """Gives back what the fleet holds; whatever still runs is ended."""
        ...


class Process:
    """A training in a process of its own, which is asked to stop when the one that started it ends.

    Args:
      job: what to start.
    """

    def __init__(self, job: Job) -> None:
        folder = job.folder
        watched = ("-m", "alohas2r.experiments.sweep.worker", str(os.getpid()))
        with open(folder / RESULT, "wb") as result, open(folder / LOG, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *watched, *job.program],
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                env=dict(job.environment),
                start_new_session=True,  # Ctrl-C in the terminal is the sweep's to pass on
            )
        if job.cores and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):  # it has ended already
                os.sched_setaffinity(self._process.pid, job.cores)

    def poll(self) -> int | None:
        """Returns its exit status; None while it goes on."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it to save and stop."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()


class LocalFleet:
    """Processes of this machine."""

    def __init__(self) -> None:
        self._processes: list[Process] = []

    def start(self, job: Job) -> Process:
        """Starts a training."""
        self._processes = [process for process in self._processes if process.poll() is None]
        self._processes.append(Process(job))
        return self._processes[-1]

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.end()


def share_of_cores(worker: int, workers: int) -> list[int]:
    """Returns the cores of one of several workers side by side; all, as [], for a worker alone."""
    available = threads.cores()
    if workers == 1 or workers > len(available):
        return []
    return available[worker * len(available) // workers : (worker + 1) * len(available) // workers]
