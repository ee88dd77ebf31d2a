"""How episodes of insertion are counted, in simulation and on arms alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alohas2r.core import stats
from alohas2r.core.stats import quantiles, rate_of
from alohas2r.core.types import JsonObject, PyTree
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.sim.objects import HALF_LENGTH
from alohas2r.tasks.protocol import InsertProtocol
from alohas2r.tasks.scoring import Counts, Step, Table

FLAGS = ("grasped_both", "lifted_both", "switched", "entered", "dropped", "out", "unstable")
STAGES = (*FLAGS[:4], "inserted", *FLAGS[4:])
WITHIN_S = (4, 6, 8, 10, 15)  # times that success is also reported by


class InsertScorer(Counts):
    """Success is to have inserted at some time.

    Args:
      rules: length of the episodes, and how long an insertion must last.
      half: [N] half sides of the pegs (m).
    """

    def __init__(self, rules: InsertProtocol, half: np.ndarray):
        count = len(half)
        super().__init__(rules.steps, count, FLAGS)
        self.rules, self.half = rules, half
        self.columns["arm_distance_mm"] = np.full(count, np.inf)
        self._first_inserted = np.full(count, -1)
        self._attempts, self._attempts_at_success = np.zeros(count, int), np.zeros(count, int)
        self._was_switched, self._going = np.zeros(count, bool), np.ones(count, bool)
        self._in_place = np.zeros((rules.steps, count), bool)

    def raised(self, name: str, measures: PyTree) -> np.ndarray:
        """Returns [N] bool: whether a step's measures raise a flag."""
        if name in ("grasped_both", "lifted_both"):
            return getattr(measures, name.removesuffix("_both")).all(1)
        return measures.dropped.any(1) if name == "dropped" else getattr(measures, name)

    def update(self, step: Step) -> None:
        """Takes a step."""
        super().update(step)
        measures = step.measures
        seen = step.going & step.finite
        self._attempts += seen & measures.switched & ~self._was_switched
        self._was_switched = measures.switched
        new = seen & measures.inserted & (self._first_inserted < 0)
        self._first_inserted[new] = step.number + 1
        self._attempts_at_success[new] = self._attempts[new]
        self._in_place[step.number] = seen & measures.in_place
        self._going = step.going
        least = self.columns["arm_distance_mm"]
        nearer = np.minimum(least, measures.arm_distance * 1000)
        self.columns["arm_distance_mm"] = np.where(seen, nearer, least)

    def table(self) -> Table:
        """Returns a row per episode."""
        success = self._first_inserted > 0
        held = self._going & self._in_place[-self.rules.hold_steps :].all(0)
        times = np.where(success, self._first_inserted * CONTROL_PERIOD_S, np.nan)
        return self.columns | {
            "success": success,
            "held_at_end": held,
            "inserted": success,
            "retried": self._attempts > 1,
            "retry_succeeded": success & (self._attempts_at_success > 1),
            "attempts": self._attempts,
            "time_to_success_s": times,
            "peg_mm": self.half * 2000,
        }

    def summary(self, table: Table) -> JsonObject:
        """Returns the rates and quantiles of a table of episodes."""
        seconds = self.steps * CONTROL_PERIOD_S
        success, times = table["success"], table["time_to_success_s"]
        median = stats.kaplan_meier_median(np.where(success, times, seconds), success)
        return {
            "success": rate_of(success),
            "held_at_end": rate_of(table["held_at_end"]),
            "dropped": rate_of(table["dropped"]),
            "stages": {name: rate_of(table[name]) for name in STAGES},
            "success_within_s": {
                str(limit): rate_of(times <= limit) for limit in WITHIN_S if limit <= seconds
            },
            "retries": {
                "tried": int(table["retried"].sum()),
                "succeeded": int(table["retry_succeeded"].sum()),
            },
            "time_to_success_s": {**quantiles(times), "kaplan_meier_median": median},
            "arm_distance_mm": {
                **quantiles(table["arm_distance_mm"]),
                "least": round(float(table["arm_distance_mm"].min()), 1),
                "touching": rate_of(table["arm_distance_mm"] < 0),
            },
        }


class DepthScorer(InsertScorer):
    """The same for pegs and holes of any size.

    Also how deep the peg came, how far off the axis it met the mouth, how hard a hand pressed on the other's object.

    Args:
      rules: as InsertScorer.
      context: [N, 4] half side (m), variant, half length, half width of the hole (m).
    """

    def __init__(self, rules: InsertProtocol, context: np.ndarray):
        super().__init__(rules, context[:, 0])
        self._length = context[:, 2]
        self.columns["peg_length_mm"] = context[:, 2] * 2000
        self.columns["hole_mm"] = context[:, 3] * 2000
        self.columns["inside_share"] = np.zeros(len(context))
        self.columns["mouth_offset_mm"] = np.full(len(context), np.nan)
        self.columns["hand_on_other_n"] = np.zeros(len(context))

    def update(self, step: Step) -> None:
        """Takes a step."""
        super().update(step)
        measures, columns = step.measures, self.columns
        seen = step.going & step.finite
        depth = np.where(measures.entered, HALF_LENGTH - measures.peg_end[:, 0], 0.0)
        share = np.clip(depth / (2 * self._length), 0, 1)
        columns["inside_share"] = np.maximum(columns["inside_share"], np.where(seen, share, 0))
        force = np.where(seen, measures.hand_on_other, 0)
        columns["hand_on_other_n"] = np.maximum(columns["hand_on_other_n"], force)
        met = seen & measures.entered & np.isnan(columns["mouth_offset_mm"])
        offset = 1000 * np.linalg.norm(measures.peg_end[:, 1:], axis=1)
        columns["mouth_offset_mm"] = np.where(met, offset, columns["mouth_offset_mm"])

    def summary(self, table: Table) -> JsonObject:
        """Returns the rates and quantiles of a table of episodes."""
        return super().summary(table) | {
            "inside_share": quantiles(table["inside_share"]),
            "mouth_offset_mm": quantiles(table["mouth_offset_mm"]),
            "hand_on_other_n": quantiles(table["hand_on_other_n"]),
        }


def peg_sizes(table: Table) -> Mapping[str, np.ndarray]:
    """Returns the half sizes [N, 3] (m) of the pegs in a table."""
    half = table["peg_mm"] / 2000
    return {"red_peg": np.stack([np.full_like(half, HALF_LENGTH), half, half], 1)}
