"""Pictures of runs: by matplotlib, and as text."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from alohas2r.core.figures import save
from alohas2r.core.types import Array, JsonObject, Untyped
from alohas2r.errors import ArtifactError
from alohas2r.learning.run import log as run_log

# What the left side shows, in this order, as far as the run has it: the first group of which it has anything.
_RATES = (
    (
        "rate, deterministic policy",
        {
            "eval/success": "success",
            "eval/precise": "precise",
            "eval/held_at_end": "held at the end",
            "eval/lifted": "lifted",
            "eval/lifted_both": "lifted both",
            "eval/dropped": "dropped",
        },
    ),
    (
        "share of pictures",
        {"held/accuracy": "right, held back", "train/accuracy": "right, learnt from"},
    ),
    (
        "share of environments, exploring policy",
        {"train/success": "success", "train/switched": "switched", "train/lifted": "lifted"},
    ),
)
# And the right side.
_TRAINING = (
    ("reward per step, exploring policy", {"train/reward": "reward per step"}),
    ("loss", {"loss/imitation": "imitation", "loss/objects": "objects"}),
    ("loss", {"held/loss": "held back", "train/loss": "learnt from"}),
)
_BLOCKS = " ▁▂▃▄▅▆▇█"  # nothing to eight eighths of a character
Groups = Sequence[tuple[str, dict[str, str]]]


def training_curve(
    run: str | os.PathLike[str], path: str | os.PathLike[str], title: str = ""
) -> pathlib.Path:
    """Draws rates and training figures of a run against its steps and minutes.

    Args:
      run: the run's folder.
      path: the PNG to write.
      title: above the picture.

    Raises:
      ArtifactError: the folder holds no metrics or none that are drawn, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = run_log.read_metrics(pathlib.Path(run) / run_log.METRICS)
    if not rows:
        raise ArtifactError(f"{run} holds no metrics yet.")
    rates, training = _group(_RATES, rows), _group(_TRAINING, rows)
    if rates is None and training is None:
        raise ArtifactError(
            f"{run} holds no metrics that are drawn, but {', '.join(sorted(rows[-1]))}."
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
    figure.subplots_adjust(wspace=0.3)
    for axis, group in ((left, rates), (right, training)):
        _draw(axis, group, rows)
    if rates is not None:
        left.set_ylim(-0.02, 1.02)
    steps = [row["step"] / 1e6 for row in rows]
    there_and_back = _minutes(steps, [row["wall_s"] / 60 for row in rows])
    left.secondary_xaxis("top", functions=there_and_back).set_xlabel("wall time (min)")
    if max(row.get("train/stage") or 0 for row in rows) > 0:
        stage = right.twinx()
        stage.plot(steps, [row.get("train/stage") for row in rows], color="tab:orange", lw=0.8)
        stage.set_ylabel("curriculum stage (mean)", color="tab:orange")
    if title:
        figure.suptitle(title, y=1.04)
    return save(figure, path)


def text_curve(
    run: str | os.PathLike[str], name: str = "train/reward", width: int = 60, height: int = 6
) -> list[str]:
    """Draws a figure of a run against its steps as text.

    Args:
      run: the run's folder.
      name: of the figure.
      width: characters of the curve; each is the mean of its part of the run.
      height: lines of the curve.

    Returns:
      Lines, the steps last; none where the run has fewer than two values of that name.

    Raises:
      ArtifactError: the metrics cannot be read.
    """
    rows = run_log.read_metrics(pathlib.Path(run) / run_log.METRICS)
    having = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if len(having) < 2:
        return []
    steps, values = np.array(having, float).T
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    low, high = float(means.min()), float(means.max())
    # Of the lowest one there is something to see as well.
    levels = 1 + np.round((means - low) / max(high - low, 1e-12) * (8 * height - 1)).astype(int)
    lines = []
    for row in reversed(range(height)):
        label = {height - 1: f"{high:.3g}", 0: f"{low:.3g}"}.get(row, "")
        filled = np.clip(levels - 8 * row, 0, 8)
        lines.append(f"{label:>9} | " + "".join(_BLOCKS[eighths] for eighths in filled))
    ends = f"{steps[0]:,.0f}", f"{steps[-1]:,.0f} steps"
    gap = max(1, len(parts) - len(ends[0]) - len(ends[1]))
    return [*lines, " " * 12 + ends[0] + " " * gap + ends[1]]


def _group(groups: Groups, rows: Sequence[JsonObject]) -> tuple[str, dict[str, str]] | None:
    """Returns the first group of which there is anything."""
    names = {name for row in rows for name in row}
    return next((group for group in groups if names & group[1].keys()), None)


def _draw(axis: Untyped, group: tuple[str, dict[str, str]] | None, rows: list[JsonObject]) -> None:
    """Draws the figures of a group, or says that there are none."""
    axis.set_xlabel("steps (millions)")
    axis.grid(alpha=0.3)
    if group is None:
        axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        return
    label, names = group
    for name, words in names.items():
        having = [row for row in rows if name in row]
        if having:
            few = len(having) <= 40
            axis.plot(
                [row["step"] / 1e6 for row in having],
                [row[name] for row in having],
                marker="o" if few else "",
                ms=3,
                lw=1.5 if few else 0.8,
                label=words,
            )
    axis.set_ylabel(label)
    axis.legend(fontsize=8)


def _minutes(
    steps: list[float], minutes: list[float]
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns the maps between steps and wall time as monotone interpolations."""
    xs, ys = np.array([0.0, *steps]), np.array([0.0, *minutes])
    slope = ys[-1] / max(xs[-1], 1e-9) or 1.0

    def forward(x: Array) -> Array:
        return np.where(np.asarray(x) > xs[-1], ys[-1] + slope * (x - xs[-1]), np.interp(x, xs, ys))

    def backward(y: Array) -> Array:
        return np.where(np.asarray(y) > ys[-1], xs[-1] + (y - ys[-1]) / slope, np.interp(y, ys, xs))

    return forward, backward
