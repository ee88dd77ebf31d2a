"""What it costs a training when its workers are killed, and whether it comes to the same parameters."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from alohas2r.benchmarks.fleet import TEACHER, Subject
from alohas2r.config import check
from alohas2r.core.machine import describe_machine
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.types import JsonObject
from alohas2r.learning.fleet.base import RAY, FleetConfig
from alohas2r.learning.fleet.launch import launched, threads_of
from alohas2r.learning.fleet.ray import RayFleet
from alohas2r.learning.fleet.worker import digest, parts
from alohas2r.learning.ppo.apart import PpoApart, setup_of
from alohas2r.learning.ppo.places import fitted

_WARM = 2  # updates in which things are compiled
_TIMED = 8  # updates at least after the last kill
ALLOWED_ROLLOUTS, ALLOWED_S = 8, 10.0  # what a killed worker may cost


class _Trained(NamedTuple):
    """What became of a training."""

    parameters: str  # SHA-256
    updates: int
    seconds: float  # of the updates after the first ones


class _Killer(threading.Thread):
    """Kills a worker now and then, at random moments, at most one in an update.

    Args:
      fleet: whose workers. workers: how many. kills: how often.
      between_s: at most, from a worker's answer to its end. seed: of whom and when.

    Attributes:
      done: how many it has killed. updates: of the training, which says so.
    """

    def __init__(
        self, fleet: RayFleet[object], workers: int, kills: int, between_s: float, seed: int
    ):
        super().__init__(daemon=True)
        self.done = self.updates = 0
        self._fleet, self._workers, self._kills = fleet, workers, kills
        self._between_s, self._random = between_s, random.Random(seed)

    def run(self) -> None:
        """Kills until it has done it often enough."""
        while self.done < self._kills:
            process = self._fleet.process(self._random.randrange(self._workers))
            time.sleep(self._random.uniform(0, self._between_s))
            if process is None:
                continue
            os.kill(process, signal.SIGKILL)
            self.done, before = self.done + 1, self.updates
            while self.updates == before:
                time.sleep(0.01)


def bench_kills(
    kills: int = 20,
    training: str = TEACHER,
    phase: str = "pick",
    environments: int = 512,
    workers: int = 2,
    lag: int = 0,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> JsonObject:
    """Trains with workers that are killed at random moments, then as far with workers that nobody disturbs.

    Args:
      kills: how often a worker is killed (SIGKILL).
      training: "teacher" or "pixels". phase: pick, or another task that starts by itself.
      environments: of the training. workers: actors of a Ray cluster of this machine. lag: 0 or 1.
      seed: of whom is killed and when. threads: of the physics; 0 for all cores.
      progress: receives reports.

    Returns:
      "same_parameters"; "updates"; "update_s" undisturbed; "cost_s" of a kill, in "cost_rollouts" of these as well;
      "allowed_s", and whether the cost is "within" it.

    Raises:
      ConfigError: a number out of range.
      BackendUnavailable: Ray is missing.
    """
    check(kills >= 1, f"kills must be at least 1, not {kills}")
    with tempfile.TemporaryDirectory() as made:
        subject = Subject(training, phase, environments, pathlib.Path(made))
        fleet = fitted(FleetConfig(RAY, workers, lag), subject.settings.ppo)
        meter = Meter("training with kills", kills, progress, unit="kills")
        disturbed = _train(subject, fleet, threads, kills, 0, seed, meter.update)
        meter = Meter("undisturbed", disturbed.updates, progress, unit="updates")
        calm = _train(subject, fleet, threads, 0, disturbed.updates, seed, meter.update)
    update_s = calm.seconds / (calm.updates - _WARM)
    cost_s = (disturbed.seconds - calm.seconds) / kills
    allowed_s = ALLOWED_ROLLOUTS * update_s + ALLOWED_S
    return {
        "training": training,
        "phase": phase,
        "environments": environments,
        "workers": workers,
        "lag": lag,
        "kills": kills,
        "updates": calm.updates,
        "same_parameters": disturbed.parameters == calm.parameters,
        "update_s": round(update_s, 3),
        "cost_s": round(cost_s, 2),
        "cost_rollouts": round(cost_s / update_s, 2),
        "allowed_s": round(allowed_s, 2),
        "within": cost_s <= allowed_s,
        "machine": describe_machine(),
    }


def _train(
    subject: Subject,
    asked: FleetConfig,
    threads: int,
    kills: int,
    updates: int,
    seed: int,
    report: Callable[[int], None],
) -> _Trained:
    """Trains for so many updates, or until the last kill is some updates ago."""
    each = threads_of(asked, threads)
    training = subject.training(parts(subject.settings.ppo.num_envs, asked.world)[0], each)
    setup = setup_of(training, asked, subject.build, subject.plan(asked.world, each))
    with launched(asked, setup, each) as fleet:
        assert isinstance(fleet, RayFleet)
        algorithm = PpoApart(training, fleet, asked.lag)
        state, update_s = algorithm.init(), 0.0
        for _ in range(_WARM):
            started = time.monotonic()
            state, _ = algorithm.update(*algorithm.collect(state))
            update_s = time.monotonic() - started
        killer = _Killer(fleet, asked.workers, kills, 2 * update_s, seed)
        killer.start()
        started, done, calm = time.monotonic(), _WARM, 0
        while calm < _TIMED or done < updates:
            state, _ = algorithm.update(*algorithm.collect(state))
            done = killer.updates = done + 1
            calm = calm + 1 if killer.done == kills else 0
            report(killer.done if kills else done)
        seconds = time.monotonic() - started
    return _Trained(digest(state.learner.params), done, seconds)
