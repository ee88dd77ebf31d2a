"""Writes what was measured, episode by episode."""

from __future__ import annotations

import csv
import os
import pathlib
from typing import Any

import numpy as np

from alohas2r.core import files


def write_csv(result: dict[str, Any], path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the per-episode table of a result of `evaluate`.

    Raises:
      ArtifactError: the file cannot be written.
    """
    table = result["table"]

    def write(file: Any) -> None:
        import io

        text = io.TextIOWrapper(file, newline="", encoding="utf-8")
        writer = csv.writer(text)
        writer.writerow(["episode", *table])
        for index, row in enumerate(zip(*table.values(), strict=True)):
            writer.writerow(
                [index, *(int(v) if isinstance(v, np.bool_) else f"{float(v):.6g}" for v in row)]
            )
        text.flush()
        text.detach()

    return files.write_atomic(path, write)


def half_sizes(name: str, result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns geom name -> [N, 3] half sizes (m) of the objects that differ between episodes."""
    geom, side = ("box", "block_half_side_mm") if name == "pick" else ("red_peg", "peg_mm")
    half = result[side] / (1000 if name == "pick" else 2000)
    return {geom: np.stack([np.full_like(half, 0.048), half, half], 1)}
