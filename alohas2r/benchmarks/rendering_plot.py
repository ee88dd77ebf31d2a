"""Draws and keeps the renderers' speeds, beside published ones."""

from __future__ import annotations

import csv
import importlib.resources
import io
import os
import pathlib

import numpy as np

from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError


def published() -> list[JsonObject]:
    """Returns other people's figures: renderer, hardware, scene, physics, size, environments, source."""
    file = importlib.resources.files("alohas2r.benchmarks") / "data" / "published_rendering.csv"
    rows: list[JsonObject] = []
    for row in csv.DictReader(io.StringIO(file.read_text("utf-8"))):
        sizes = {name: int(row[name]) for name in ("width", "height", "environments")}
        speed = float(row["frames_per_second"])
        rows.append(
            {**row, **sizes, "physics": row["physics"] == "yes", "frames_per_second": speed}
        )
    return rows


def write_csv(result: JsonObject, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes measured and published rows into one table.

    Raises:
      ArtifactError: the file cannot be written.
    """
    path = pathlib.Path(path)
    hardware = result["machine"]["name"]
    rows = [{**row, "hardware": hardware, "source": "measured"} for row in result["rows"]]
    rows += result["published"]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), "utf-8")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def plot(result: JsonObject, path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws frames per second over picture size: our measurements beside the published curves.

    Raises:
      ConfigError: the name does not end in .png.
      BackendUnavailable: matplotlib is not installed.
      ArtifactError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"'{path}' must end in .png.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable(
            "The plot needs matplotlib: pip install 'alohas2r[train]'."
        ) from error
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Untyped = figure.subplots(1, 2, sharey=True)
    hardware = result["machine"]["name"]
    for axes, physics in zip(parts, (False, True), strict=True):
        curves: dict[tuple[str, str], dict[float, float]] = {}
        for row in result["rows"]:
            if row["physics"] == physics:
                curve = curves.setdefault((row["renderer"], row["scene"]), {})
                side = float(np.sqrt(row["width"] * row["height"]))
                curve[side] = max(curve.get(side, 0), row["frames_per_second"])
        for (renderer, name), curve in sorted(curves.items()):
            sides = sorted(curve)
            axes.plot(
                sides, [curve[side] for side in sides], "o-", label=f"{renderer}, {name}: here"
            )
        others: dict[str, list[tuple[float, float]]] = {}
        for row in result["published"]:
            if row["physics"] == physics:
                label = f"{row['renderer']}, {row['scene']}: {row['hardware']}"
                side = float(np.sqrt(row["width"] * row["height"]))
                others.setdefault(label, []).append((side, row["frames_per_second"]))
        for label, points in others.items():
            axes.plot(
                *zip(*sorted(points), strict=True), "s--", label=f"{label} (published)", alpha=0.7
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("picture side (pixels)")
        axes.set_title("with physics" if physics else "pictures only")
        axes.grid(True, which="major", alpha=0.3)
        if curves or others:
            axes.legend(fontsize=7)
    parts[0].set_ylabel("pictures per second")
    figure.suptitle(f"here: {hardware}", fontsize=9)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}.") from error
    return path
