"""A fleet by Ray: an actor for each run, on a cluster of this machine that nobody else can reach."""

from __future__ import annotations

import logging
import os

from alohas2r.core.types import Untyped
from alohas2r.experiments.sweep.fleet import LOST, Job, Process

# Before Ray is imported: no statistics to anybody; every address is of the loopback interface, as Ray has it where
# clusters of several machines are switched off.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class RayHandle:
    """A training under an actor.

    Args:
      ray: the package.
      actor: that holds its process.
    """

    def __init__(self, ray: Untyped, actor: Untyped) -> None:
        self._ray, self._actor = ray, actor
        self._asked: Untyped = actor.poll.remote()
        self._code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit status; that of a killed process where the actor is gone."""
        if self._code is not None or not self._ray.wait([self._asked], timeout=0)[0]:
            return self._code
        try:
            self._code = self._ray.get(self._asked)
        except self._ray.exceptions.RayError:
            self._code = LOST
        if self._code is None:
            self._asked = self._actor.poll.remote()
        else:
            self._ray.kill(self._actor)  # its share of the cluster is the next one's
        return self._code

    def stop(self) -> None:
        """Asks the training to save and stop."""
        self._actor.stop.remote()


class RayFleet:
    """Actors of a Ray cluster that begins and ends with this object.

    A killed actor is neither restarted nor asked again by Ray: the sweep itself resumes the run, in a new actor.

    Args:
      workers: how many at once.

    Raises:
      ModuleNotFoundError: Ray is not installed.
    """

    def __init__(self, workers: int) -> None:
        os.environ.update(_QUIET)
        import ray

        self._ray: Untyped = ray
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        self._kind: Untyped = ray.remote(Process)

    def start(self, job: Job) -> RayHandle:
        """Starts a training."""
        actor = self._kind.options(num_cpus=1, max_restarts=0, max_task_retries=0).remote(job)
        return RayHandle(self._ray, actor)

    def close(self) -> None:
        """Ends the cluster and all that it runs."""
        self._ray.shutdown()
