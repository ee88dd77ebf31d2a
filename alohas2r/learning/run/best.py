"""The state of a run that was evaluated best: what its artifacts are made of."""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import TypeVar

from alohas2r.core.types import PyTree
from alohas2r.learning.run.checkpoint import Checkpoint

FOLDER = "checkpoint-best"
Tree = TypeVar("Tree")


class Best:
    """Keeps the state that was evaluated best so far, in the run's folder; of equally good ones the latest.

    A run that was killed and goes on evaluates again what came after its checkpoint: it keeps what an unbroken one
    would have kept.

    Args:
      folder: of the run.
      name: of the figure that decides, the larger the better; empty where none does.

    Attributes:
      iterations: after how many the state was kept; None where none was.
      value: of the figure.
    """

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self.name = name
        self.iterations: int | None = None
        self.value = -math.inf
        self._checkpoint = Checkpoint(folder / FOLDER)

    def begin(self, resumed: bool) -> None:
        """Takes up what an earlier part of the run kept, or removes what another run left."""
        self._checkpoint.tidy()
        if not resumed:
            shutil.rmtree(self._checkpoint.folder, ignore_errors=True)
        elif self.name and self._checkpoint.exists():
            kept = self._checkpoint.values()
            self.iterations, self.value = int(kept["iterations"]), float(kept[self.name])

    def offer(self, kept: PyTree, iterations: int, figures: Mapping[str, float]) -> None:
        """Keeps a state if nothing better was evaluated before.

        Args:
          kept: what a checkpoint keeps of it. iterations: after how many. figures: of its evaluation.

        Raises:
          ArtifactError: the disk is full, or the like.
        """
        value = figures.get(self.name, math.nan)
        if value >= self.value:
            self._checkpoint.save(kept, {"iterations": iterations, self.name: value})
            self.iterations, self.value = iterations, value

    def load(self, template: Tree) -> Tree:
        """Returns what was kept, in a tree of the same structure.

        Raises:
          ArtifactError: it is damaged.
        """
        return self._checkpoint.load(template)[0]
