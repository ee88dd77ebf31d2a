"""A folder in which an evaluation keeps its episodes as they end, so that it can be interrupted and gone on with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.core import files
from alohas2r.core.lock import FolderLock
from alohas2r.core.plain import plain
from alohas2r.core.types import Array, JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.tasks.scoring import Table

# Episodes that are simulated at once where they are kept: what an interruption loses is less than so many.
AT_ONCE = 100
PLAN, RESULT = "evaluation.json", "result.json"
_WALL = "wall_s"  # in a group's file, beside the columns of its table, none of which has that name


class Kept(NamedTuple):
    """A group of episodes."""

    table: Table
    wall_s: float  # that it took


class EvaluationFolder:
    """Keeps the groups of one evaluation, and the figures of those that have ended.

    `evaluation.json` says what is evaluated, `episodes-NNNNNNN.npz` holds the table of the group that begins with the
    episode of that number, and `result.json` the figures so far.

    with EvaluationFolder(path, resume) as folder:
        result = evaluate(..., folder=folder)

    Args:
      path: created if missing; nobody else can evaluate into it meanwhile.
      resume: whether to go on with the evaluation that it holds.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False):
        self.path, self._resume = pathlib.Path(path), resume
        self._lock = FolderLock(self.path)

    def __enter__(self) -> EvaluationFolder:
        """Takes the folder.

        Raises:
          ArtifactError: it cannot be written, is in use, or holds nothing to resume.
          ConfigError: it holds an evaluation that is not to be resumed.
        """
        if self._resume and not (self.path / PLAN).is_file():
            raise ArtifactError(
                f"{self.path} holds no evaluation to resume; leave out --resume to start one."
            )
        files.make_folder(self.path)
        self._lock.__enter__()
        if not self._resume and any(self.path.glob("episodes-*.npz")):
            self._lock.__exit__()
            raise ConfigError(
                f"{self.path} holds an evaluation already; add --resume to go on with it, or choose another --out."
            )
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the folder back."""
        self._lock.__exit__()

    def begin(self, plan: Mapping[str, object]) -> None:
        """Writes what is evaluated, or makes sure that it is what was begun.

        Args:
          plan: plain values on which the table of episodes depends. The versions of what computes it are added:
            another one may round otherwise.

        Raises:
          ConfigError: something else was begun. ArtifactError: the folder cannot be read or written.
        """
        versions = {name: importlib.metadata.version(name) for name in ("jax", "mujoco")}
        plan = {**plan, "alohas2r": __version__, **versions}
        path = self.path / PLAN
        if not self._resume:
            files.write_atomic(path, json.dumps(plan, indent=2).encode() + b"\n")
            return
        try:
            earlier: JsonObject = json.loads(path.read_text())
            changes = [
                f"{name}: {earlier.get(name)} -> {value}"
                for name, value in plan.items()
                if earlier.get(name) != value
            ]
        except (OSError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is damaged ({type(error).__name__}: {error}); evaluate anew into another --out."
            ) from error
        if changes:
            raise ConfigError(
                f"The evaluation in {self.path} was begun with other settings: {'; '.join(changes)}. Leave them as they"
                " were, or choose another --out."
            )

    def load(self, first: int, count: int) -> Kept | None:
        """Returns the group of `count` episodes that begins with number `first`; None if it was not kept.

        Raises:
          ArtifactError: its file is damaged.
        """
        path = self._file(first)
        if not path.is_file():
            return None
        try:
            arrays = artifact.read_npz(path)
            wall_s = float(arrays.pop(_WALL))
        except (ArtifactError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path) from error
        if "success" not in arrays or any(len(column) != count for column in arrays.values()):
            raise _damaged(path)
        return Kept(arrays, wall_s)

    def add(self, first: int, table: Table, wall_s: float) -> None:
        """Keeps a group.

        Args:
          first: number of its first episode. table: of its episodes. wall_s: that it took.

        Raises:
          ArtifactError: it cannot be written.
        """
        arrays: Mapping[str, Array] = {**table, _WALL: np.asarray(wall_s)}
        files.write_atomic(self._file(first), lambda file: np.savez(file, **arrays))

    def tell(self, result: JsonObject | None) -> None:
        """Writes the figures so far, as --json prints them.

        Raises:
          ArtifactError: they cannot be written.
        """
        figures = {name: value for name, value in (result or {}).items() if name != "table"}
        text = json.dumps(plain(figures), indent=2, allow_nan=False)
        files.write_atomic(self.path / RESULT, text.encode() + b"\n")

    def _file(self, first: int) -> pathlib.Path:
        return self.path / f"episodes-{first:07d}.npz"


def _damaged(path: pathlib.Path) -> ArtifactError:
    return ArtifactError(f"{path} is damaged; remove it, and --resume runs its episodes anew.")
