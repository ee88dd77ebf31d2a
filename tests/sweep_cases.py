"""A training that takes a second, for sweeps. As a program: the training itself, or a sweep of it.

sweep_cases.py count --seed N --out DIR --threads N --json [--resume] [--set KEY=VALUE]...
sweep_cases.py sweep OUT FLEET WORKERS [KEY=VALUES]...
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from run_cases import Counting, State

from alohas2r import config
from alohas2r.core.types import JsonObject
from alohas2r.errors import Alohas2rError
from alohas2r.experiments.sweep import sweep
from alohas2r.experiments.sweep.space import parse_space
from alohas2r.experiments.sweep.state import Plan
from alohas2r.experiments.sweep.trainings import Training
from alohas2r.learning.run.loop import Figures, Run, Schedule

PLACE = pathlib.Path(__file__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Its configuration.

    Attributes:
      rate: the score at the end is 1 - |rate - 0.5|, and a hundredth of the seed.
      number: has no effect.
      iterations: how many. pause: seconds of each.
      evaluations: on the way, evenly spread.
      die: iteration in which the process kills itself, once; 0 for none.
      fails: whether it raises an error.
    """

    rate: float = 0.5
    number: int = 1
    iterations: int = 6
    pause: float = 0.0
    evaluations: int = 3
    die: int = 0
    fails: bool = False


class Scoring(Counting):
    """Adds up numbers, and says how good its rate is."""

    def __init__(self, folder: pathlib.Path, settings: Settings, seed: int) -> None:
        super().__init__(folder, settings.iterations, self._pass)
        self.folder, self.settings, self.seed = folder, settings, seed

    def _pass(self, number: int) -> None:
        time.sleep(self.settings.pause)
        died = self.folder / "died"
        if number == self.settings.die and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.settings.fails:
            raise config.ConfigError("it was told to fail.")

    def evaluate(self, state: State) -> Figures:
        """Returns the score, which grows with time."""
        score = 1 - abs(self.settings.rate - 0.5) + self.seed / 100
        return {"eval/score": score * int(state.done) / self.iterations}


def count(arguments: Sequence[str]) -> None:
    """Trains, as a command does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    for name in ("--seed", "--threads"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--json", "--resume"):
        parser.add_argument(name, action="store_true")
    given = parser.parse_args(arguments)
    try:
        settings = config.override(Settings(), given.set)
        with Run(given.out, settings, {"seed": given.seed}, given.resume) as run:
            schedule = Schedule(settings.evaluations, settings.iterations)
            result = run.train(Scoring(given.out, settings, given.seed), "count", {}, schedule)
    except Alohas2rError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps(result))


COUNT = Training("count", lambda _: Settings(), "eval/score", (str(PLACE),))


def plan(
    *settings: str,
    seeds: Sequence[int] = (0, 1),
    sampler: str = "grid",
    trials: int = 0,
    sampler_seed: int = 0,
    metric: str = "eval/score",
    stop_worst: float = 0.0,
) -> Plan:
    """Returns a sweep of it."""
    return Plan(
        "count",
        (),
        parse_space(settings),
        tuple(seeds),
        sampler,
        trials,
        sampler_seed,
        metric,
        True,
        stop_worst,
    )


def run(
    out: pathlib.Path,
    asked: Plan,
    fleet: str = "local",
    workers: int = 2,
    training: Training = COUNT,
) -> JsonObject:
    """Runs a sweep of it."""
    return sweep.sweep(asked, training, {}, out, fleet, workers)


if __name__ == "__main__":
    if sys.argv[1] == "count":
        count(sys.argv[2:])
    else:
        folder, fleet, workers, *settings = sys.argv[2:]
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says that an actor died
            result = run(pathlib.Path(folder), plan(*settings), fleet, int(workers))
        sys.stdout.write(json.dumps(result))
