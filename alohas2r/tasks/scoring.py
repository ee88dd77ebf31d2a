"""How episodes are counted: what every task's scorer has in common."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from alohas2r.core.stats import quantiles, rate_of
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.envs.task import EnvState
from alohas2r.sim.signals import Readout

Table: TypeAlias = dict[str, np.ndarray]  # column -> [N], one row per episode
# Flags that are no stage on the way to success.
FAULTS = ("dropped", "out", "unstable", "crossed")


class Step(NamedTuple):
    """A control step of N episodes, side by side."""

    number: int  # 0 for the first
    going: np.ndarray  # [N] bool, episodes that had not ended before it
    before: EnvState  # the state that was acted on
    readout: Readout  # likewise, of the physics
    done: np.ndarray  # [N] bool, episodes that it ended
    finite: np.ndarray  # [N] bool
    measures: PyTree  # of the task, of the new state; NumPy arrays [N, ...]


class Scorer(Protocol):
    """Counts episodes: sees each of their steps once, then gives a row for each."""

    @property
    def steps(self) -> int:
        """Control steps per episode."""
        ...

    @property
    def reached(self) -> Table:
        """Flag -> [N] the control step that first raised it, counted from 1; 0 if none did."""
        ...

    def update(self, step: Step) -> None:
        """Takes a step."""
        ...

    def table(self) -> Table:
        """Returns a row per episode, once all steps have been seen."""
        ...

    def summary(self, table: Table) -> JsonObject:
        """Returns rates and quantiles of a table, which may be of more episodes."""
        ...


class Counts:
    """What all scorers count: flags that were up at some time, the fastest joint, the largest force.

    A flag is a column and the measure that raises it; [N, A] measures raise it when they hold for all arms.

    Args:
      steps: control steps per episode.
      count: episodes.
      flags: the columns, in order. "out" (ended before its time) and "unstable" (not finite) are no measures.
      measures: the measure behind a column where it has another name.

    Attributes:
      reached: see `Scorer`; of flags that measures raise.
    """

    def __init__(self, steps: int, count: int, flags: tuple[str, ...]):
        self.steps = steps
        self.columns: Table = {name: np.zeros(count, bool) for name in flags}
        self.columns |= {"peak_joint_speed": np.zeros(count), "peak_contact_force": np.zeros(count)}
        self._raised = tuple(name for name in flags if name not in ("out", "unstable"))
        self.reached: Table = {name: np.zeros(count, int) for name in self._raised}

    def raised(self, name: str, measures: PyTree) -> np.ndarray:
        """Returns [N] bool: whether a step's measures raise a flag."""
        return getattr(measures, name)

    def update(self, step: Step) -> None:
        """Takes a step."""
        seen = step.going & step.finite
        columns = self.columns
        columns["unstable"] |= step.going & ~step.finite
        for name in self._raised:
            columns[name] |= seen & self.raised(name, step.measures)
            self.reached[name][columns[name] & (self.reached[name] == 0)] = step.number + 1
        if step.number < self.steps - 1:
            columns["out"] |= seen & step.done
        for name in ("joint_speed", "contact_force"):
            peak, value = columns[f"peak_{name}"], getattr(step.measures, name)
            columns[f"peak_{name}"] = np.where(seen, np.maximum(peak, value), peak)


class SuccessScorer(Counts):
    """Success is that the measure `success` is up at some time.

    Args:
      steps: control steps per episode.
      count: episodes.
      flags: as for `Counts`.
      kept: the measure that says whether what was achieved still holds.
    """

    def __init__(self, steps: int, count: int, flags: tuple[str, ...], kept: str):
        super().__init__(steps, count, flags)
        self._flags, self._kept = flags, kept
        self._first_step = np.zeros(count, int)  # 0 before the first success
        self._kept_now = np.zeros(count, bool)

    def update(self, step: Step) -> None:
        """Takes a step."""
        super().update(step)
        seen = step.going & step.finite
        new = seen & step.measures.success & (self._first_step == 0)
        self._first_step[new] = step.number + 1
        self._kept_now = seen & getattr(step.measures, self._kept)

    def table(self) -> Table:
        """Returns a row per episode."""
        success = self._first_step > 0
        return self.columns | {
            "success": success,
            "held_at_end": self._kept_now,
            "time_to_success_s": np.where(success, self._first_step * CONTROL_PERIOD_S, np.nan),
        }

    def summary(self, table: Table) -> JsonObject:
        """Returns the rates and quantiles of a table of episodes."""
        return {
            "success": rate_of(table["success"]),
            "held_at_end": rate_of(table["held_at_end"]),
            "stages": {name: rate_of(table[name]) for name in self._flags},
            "time_to_success_s": quantiles(table["time_to_success_s"]),
        }


def stages_reached(reached: Table, table: Table) -> Table:
    """Returns stage -> [N] the control step that reached it, counted from 1, 0 if none did: in order, success last.

    Args:
      reached: of the scorer. table: of the episodes.
    """
    success, times = table["success"].astype(bool), table["time_to_success_s"]
    steps = np.round(np.where(success, times, 0) / CONTROL_PERIOD_S).astype(int)
    stages = {name: first for name, first in reached.items() if name not in FAULTS}
    return stages | {"inserted" if "inserted" in table else "success": steps}
