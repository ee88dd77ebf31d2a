"""How episodes of picking are counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alohas2r.core.stats import quantiles, rate_of
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.sim.objects import HALF_LENGTH
from alohas2r.tasks.pick.sight import LEAST_PIXELS, block_pixels
from alohas2r.tasks.protocol import PickProtocol
from alohas2r.tasks.scoring import Counts, Step, Table

FLAGS = ("reached", "grasped", "lifted", "crossed", "out", "unstable")


class PickScorer(Counts):
    """Success is to be within the thresholds at the end of the episode.

    What does not depend on the policy is whether its wrist camera sees the block at the start, see `block_pixels`.

    Args:
      rules: thresholds.
      blocks: [N, 2] half sides (m) and masses (kg).
    """

    def __init__(self, rules: PickProtocol, blocks: np.ndarray):
        count = len(blocks)
        super().__init__(rules.steps, count, FLAGS)
        self.rules, self.blocks = rules, blocks
        self._within = np.zeros((rules.steps, count), bool)
        self._position_m, self._rotation_deg = np.full(count, np.nan), np.full(count, np.nan)
        self._kept = np.ones(count, bool)
        self._seen_at_start = np.zeros(count, bool)

    def update(self, step: Step) -> None:
        """Takes a step."""
        measures = step.measures
        if step.number == 0:
            pixels = block_pixels(np.asarray(step.readout.qpos), self.blocks[:, 0])
            self._seen_at_start = pixels >= LEAST_PIXELS
        super().update(step._replace(done=step.done & ~measures.crossed))
        seen = step.going & step.finite
        self._position_m = np.where(seen, measures.position_error, self._position_m)
        self._rotation_deg = np.where(seen, np.rad2deg(measures.rotation_error), self._rotation_deg)
        self._within[step.number] = seen & self._close(self.rules.success)
        self._kept = seen & ~measures.crossed

    def table(self) -> Table:
        """Returns a row per episode."""
        success = self._kept & self._within[-1]
        # Time of success: since when the episode stayed within the thresholds until its end.
        outside_last = np.where(
            ~self._within.all(0), self.steps - np.argmax(~self._within[::-1], axis=0), 0
        )
        return self.columns | {
            "success": success,
            "precise": self._kept & self._close(self.rules.precise),
            "position_error_mm": self._position_m * 1000,
            "rotation_error_deg": self._rotation_deg,
            "time_to_success_s": np.where(success, (outside_last + 1) * CONTROL_PERIOD_S, np.nan),
            "block_half_side_mm": self.blocks[:, 0] * 1000,
            "block_mass_g": self.blocks[:, 1] * 1000,
            "seen_at_start": self._seen_at_start,
        }

    def summary(self, table: Table) -> JsonObject:
        """Returns the rates and quantiles of a table of episodes."""
        return {
            "success": rate_of(table["success"]),
            "precise": rate_of(table["precise"]),
            "stages": {name: rate_of(table[name]) for name in FLAGS},
            "seen_at_start": rate_of(table["seen_at_start"]),
            "success_by_sight": {
                name: rate_of(table["success"][table["seen_at_start"] == seen])
                for name, seen in (("seen", True), ("unseen", False))
                if (table["seen_at_start"] == seen).any()
            },
            "position_error_mm": quantiles(table["position_error_mm"]),
            "rotation_error_deg": quantiles(table["rotation_error_deg"]),
            "time_to_success_s": quantiles(table["time_to_success_s"]),
        }

    def _close(self, limits: tuple[float, float]) -> np.ndarray:
        return (self._position_m < limits[0]) & (self._rotation_deg < limits[1])


def block_sizes(table: Table) -> Mapping[str, np.ndarray]:
    """Returns the half sizes [N, 3] (m) of the blocks in a table."""
    half = table["block_half_side_mm"] / 1000
    return {"box": np.stack([np.full_like(half, HALF_LENGTH), half, half], 1)}
