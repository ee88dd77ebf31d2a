"""What costs success: rates by quantile of each cause that a protocol draws independently of the others."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from alohas2r.core import figures
from alohas2r.core.stats import rate_of
from alohas2r.core.types import JsonObject
from alohas2r.errors import ConfigError
from alohas2r.tasks.scoring import Table

PREFIX = "cause_"  # of the columns of a table that say what was drawn
QUANTILES = 5
_DISCRETE = 6  # values of a cause up to which each is a group of its own
SIZES = ("peg_mm", "peg_length_mm", "hole_mm", "block_half_side_mm", "block_mass_g")


def columns(table: Table) -> dict[str, np.ndarray]:
    """Returns what was drawn, cause -> [N]; causes that are the same in all episodes are left out."""
    drawn = {
        name.removeprefix(PREFIX): np.asarray(value, float)
        for name, value in table.items()
        if name.startswith(PREFIX) or name in SIZES
    }
    return {name: value for name, value in drawn.items() if np.ptp(value) > 0}


def by_quantile(table: Table, count: int = QUANTILES) -> JsonObject:
    """Returns the success of a table's episodes by quantile of each cause.

    Args:
      table: of an evaluation under a protocol of robots that differ.
      count: quantiles; a cause of few values is grouped by value.

    Returns:
      cause -> rows of "from", "to", "episodes" and the rate with its 95% Wilson interval.

    Raises:
      ConfigError: nothing differs between the episodes.
    """
    drawn = columns(table)
    if not drawn:
        raise ConfigError(
            "Nothing differs between these episodes: causes belong to a protocol such as eval-v2."
        )
    result: JsonObject = {}
    for name, values in drawn.items():
        distinct = np.unique(values)
        if len(distinct) <= _DISCRETE:
            groups = [values == value for value in distinct]
        else:
            edges = np.quantile(values, np.linspace(0, 1, count + 1))
            place = np.clip(np.searchsorted(edges, values, "right") - 1, 0, count - 1)
            groups = [place == index for index in range(count)]
        result[name] = [
            {
                "from": float(values[group].min()),
                "to": float(values[group].max()),
                "episodes": int(group.sum()),
                **rate_of(table["success"][group]),
            }
            for group in groups
            if group.any()
        ]
    return result


def plot(
    causes: JsonObject, path: str | os.PathLike[str], title: str, overall: float
) -> pathlib.Path:
    """Draws the rates of all causes as one picture.

    Args:
      causes: from `by_quantile`. path: of the picture (.png). title: above it. overall: rate of all episodes.

    Raises:
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    across = 5
    rows = -(-len(causes) // across)
    figure, axes = plt.subplots(
        rows, across, figsize=(2.6 * across, 1.9 * rows), sharey=True, layout="constrained"
    )
    figure.suptitle(title, fontsize=9)
    flat = np.atleast_1d(axes).ravel()
    for axis in flat[len(causes) :]:
        axis.set_visible(False)
    for axis, (name, groups) in zip(flat, causes.items(), strict=False):
        rates = np.array([group["rate"] for group in groups])
        low = rates - [group["low"] for group in groups]
        high = np.array([group["high"] for group in groups]) - rates
        places = np.arange(len(groups))
        colours = ["tab:red" if rate < 0.6 else "tab:blue" for rate in rates]
        axis.bar(places, rates, yerr=[low, high], color=colours, alpha=0.75, capsize=2)
        axis.axhline(overall, color="black", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, 1)
        axis.set_xticks(places, [_range(group) for group in groups], fontsize=5)
        axis.tick_params(axis="y", labelsize=6)
        axis.set_title(name.replace("_", " "), fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    return figures.save(figure, path)


def _range(group: JsonObject) -> str:
    low, high = group["from"], group["to"]
    return f"{low:.3g}" if low == high else f"{low:.3g}\n{high:.3g}"
