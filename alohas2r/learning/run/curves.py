"""Pictures of runs and results, by matplotlib."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from alohas2r.core.figures import save
from alohas2r.errors import ArtifactError
from alohas2r.learning.run import log as run_log

# Which evaluation figures a training curve shows, in this order, if the run has them.
_RATES = (
    ("eval/success", "success"),
    ("eval/precise", "precise"),
    ("eval/held_at_end", "held at the end"),
    ("eval/lifted", "lifted"),
    ("eval/lifted_both", "lifted both"),
    ("eval/dropped", "dropped"),
)


def training_curve(
    run: str | os.PathLike[str], path: str | os.PathLike[str], title: str = ""
) -> pathlib.Path:
    """Draws the evaluations and the training figures of a run against environment steps and minutes.

    Args:
      run: the run's folder.
      path: the PNG to write.
      title: above the picture.

    Raises:
      ArtifactError: the folder holds no metrics, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = run_log.read_metrics(pathlib.Path(run) / run_log.METRICS)
    if not rows:
        raise ArtifactError(f"{run} holds no metrics yet.")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
    figure.subplots_adjust(wspace=0.3)
    steps = [row["step"] / 1e6 for row in rows]
    tested = [row for row in rows if "eval/success" in row]
    for name, label in _RATES:
        if tested and name in tested[0]:
            left.plot(
                [r["step"] / 1e6 for r in tested],
                [r[name] for r in tested],
                marker="o",
                ms=3,
                label=label,
            )
    left.set(
        xlabel="environment steps (millions)",
        ylabel="rate, deterministic policy",
        ylim=(-0.02, 1.02),
    )
    minutes = left.secondary_xaxis(
        "top", functions=_minutes(steps, [row["wall_s"] / 60 for row in rows])
    )
    minutes.set_xlabel("wall time (min)")
    left.grid(alpha=0.3)
    left.legend(loc="lower right", fontsize=8)
    right.plot(steps, [row.get("train/reward") for row in rows], lw=0.8, label="reward per step")
    right.set(xlabel="environment steps (millions)", ylabel="reward per step, exploring policy")
    right.grid(alpha=0.3)
    if "train/stage" in rows[-1] and max(row.get("train/stage") or 0 for row in rows) > 0:
        stage = right.twinx()
        stage.plot(steps, [row.get("train/stage") for row in rows], color="tab:orange", lw=0.8)
        stage.set_ylabel("curriculum stage (mean)", color="tab:orange")
    if title:
        figure.suptitle(title, y=1.04)
    return save(figure, path)


def _minutes(steps: list[float], minutes: list[float]) -> tuple[Any, Any]:
    """Returns the maps between steps and wall time as monotone interpolations."""
    import numpy as np

    xs, ys = np.array([0.0, *steps]), np.array([0.0, *minutes])
    slope = ys[-1] / max(xs[-1], 1e-9) or 1.0

    def forward(x: Any) -> Any:
        return np.where(np.asarray(x) > xs[-1], ys[-1] + slope * (x - xs[-1]), np.interp(x, xs, ys))

    def backward(y: Any) -> Any:
        return np.where(np.asarray(y) > ys[-1], xs[-1] + (y - ys[-1]) / slope, np.interp(y, ys, xs))

    return forward, backward
