"""Where the environments of a training are: with the learner, with a fleet, or with processes that all learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from alohas2r.config import check
from alohas2r.core.progress import Progress
from alohas2r.core.types import JsonObject
from alohas2r.learning.fleet.base import PARALLEL, FleetConfig
from alohas2r.learning.fleet.launch import launched
from alohas2r.learning.fleet.worker import World
from alohas2r.learning.ppo.algorithm import PpoAlgorithm
from alohas2r.learning.ppo.apart import PpoApart, setup_of
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.parallel import DataParallel, together_in
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Run, Schedule

Plan = TypeVar("Plan")


class Further(NamedTuple):
    """What `Run.train` takes beside the algorithm."""

    command: str
    parents: Mapping[str, str | None]
    schedule: Schedule
    progress: Progress | None
    loggers: Sequence[Logger]


def fitted(fleet: FleetConfig, config: PpoConfig) -> FleetConfig:
    """Returns the settings of a fleet for a training.

    Raises:
      ConfigError: they do not go together.
    """
    if fleet.kind != PARALLEL:
        fleet.check_worlds(config.num_envs)
        return fleet
    own, ranks = config.num_envs // fleet.workers, fleet.workers
    check(
        config.num_envs % ranks == 0 and own * config.unroll % config.minibatches == 0,
        f"ppo.num_envs = {config.num_envs} and ppo.minibatches = {config.minibatches} cannot be shared equally by"
        f" {ranks} processes: choose another number of --workers",
    )
    return dataclasses.replace(fleet, world=own)


def train_apart(
    run: Run,
    training: PpoAlgorithm,
    fleet: FleetConfig,
    build: Callable[[Plan, int, World | None], World],
    plan: Plan,
    threads: int,
    gpus: float,
    further: Further,
) -> JsonObject:
    """Trains with environments elsewhere; returns what `Run.train` does.

    Args:
      run: its folder. training: the learner's side, with the environments of the first world.
      fleet: as `fitted` returned it. build, plan: see `Worker`.
      threads, gpus: of each worker. further: for `Run.train`.
    """
    if fleet.kind == PARALLEL:
        with together_in(build, plan, fleet.workers) as ranks:
            return run.train(DataParallel(training, ranks), *further)
    setup = setup_of(training, fleet, build, plan)
    with launched(fleet, setup, threads, gpus) as workers:
        return run.train(PpoApart(training, workers, fleet.lag), *further)
