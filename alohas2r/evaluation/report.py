"""Writes what was measured, episode by episode."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from typing import BinaryIO

import numpy as np

from alohas2r.core import files
from alohas2r.core.types import JsonObject


def write_csv(result: JsonObject, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the per-episode table of a result of `evaluate`.

    Raises:
      ArtifactError: the file cannot be written.
    """
    table = result["table"]

    def write(file: BinaryIO) -> None:
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
