"""The smallest algorithm: it adds up random numbers. Run as a program it trains in a folder."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from alohas2r.core.progress import Progress
from alohas2r.core.types import JsonObject
from alohas2r.learning.run.loggers import registry
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Figures, Run, Schedule


@dataclasses.dataclass(frozen=True)
class Settings:
    """Its configuration."""

    iterations: int = 30


SCHEDULE = Schedule(evaluations=3, checkpoints=5)


class State(NamedTuple):
    """What changes."""

    done: np.ndarray  # []
    total: np.ndarray  # [100]


class Counting:
    """Adds up random numbers.

    Args:
      folder: of the run. iterations: how many.
      during: called in each update with the number of the iteration.
    """

    label = "count"
    losses = ("loss/total",)
    remedy = "number"
    artifacts = ("sum",)
    steps_per_iteration = 10

    def __init__(
        self,
        folder: pathlib.Path,
        iterations: int = 30,
        during: Callable[[int], float | None] = lambda number: None,
    ) -> None:
        self.iterations = iterations
        self._folder, self._during = folder, during

    def init(self) -> State:
        """Returns zeros."""
        return State(np.zeros((), np.int64), np.zeros(100))

    def collect(self, state: State) -> tuple[State, np.ndarray]:
        """Draws the iteration's numbers."""
        return state, np.random.default_rng(int(state.done)).normal(size=100)

    def update(self, state: State, data: np.ndarray) -> tuple[State, Figures]:
        """Adds them."""
        loss = self._during(int(state.done) + 1)
        state = State(state.done + 1, state.total + data)
        return state, {"loss/total": float(state.total.sum()) if loss is None else loss}

    def evaluate(self, state: State) -> Figures:
        """Returns the largest, and the mean."""
        return {
            "eval/largest": float(state.total.max()),
            "eval/mean": float(state.total.mean()),
        }

    def checkpointed(self, state: State) -> State:
        """Returns the state."""
        return state

    def restored(self, kept: State) -> State:
        """Returns the state."""
        return kept

    def finish(self, state: State, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the numbers."""
        path = self._folder / "sum.npy"
        np.save(path, state.total)
        return {"sum": str(path)}


def count(
    folder: pathlib.Path,
    resume: bool = False,
    schedule: Schedule = SCHEDULE,
    during: Callable[[int], float | None] = lambda number: None,
    progress: Progress | None = None,
    loggers: Sequence[Logger] = (),
    finish: bool = False,
) -> JsonObject:
    """Runs it."""
    settings = Settings()
    with Run(folder, settings, {"seed": 0}, resume, finish) as run:
        counting = Counting(folder, settings.iterations, during)
        return run.train(counting, "count", {}, schedule, progress, loggers)


def main() -> None:
    """Trains slowly enough to be stopped: FOLDER [--resume] [--log NAME...]."""
    arguments = sys.argv[2:]
    names = arguments[arguments.index("--log") + 1 :] if "--log" in arguments else []
    loggers = [registry.make(name) for name in names if not name.startswith("--")]
    folder, resume = pathlib.Path(sys.argv[1]), "--resume" in arguments
    count(folder, resume, during=lambda _: time.sleep(0.03), loggers=loggers)


if __name__ == "__main__":
    main()
