"""Writes matplotlib figures."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

from alohas2r.core import files


def save(figure: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a figure as PNG, whole or not at all, and closes it.

    Raises:
      ArtifactError: the file cannot be written.
    """
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return files.write_atomic(path, buffer.getvalue())
