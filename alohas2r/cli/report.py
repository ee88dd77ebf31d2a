"""What commands do for --report: try first whether a page can be written, and write it last."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console

from alohas2r.cli.app import library
from alohas2r.cli.display import working
from alohas2r.core.types import JsonObject, Untyped

ReportFolder = Annotated[
    pathlib.Path | None,
    typer.Option(
        metavar="DIR",
        help="Write a page (index.html) that needs no other file and no network, for a browser.",
    ),
]


def command_line(*parts: object, **options: object) -> str:
    """Returns a command as one types it; options that are None or false are left out, true ones have no value."""
    words = ["alohas2r", *map(str, parts)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return shlex.join(words)


def check_report(folder: pathlib.Path | None) -> None:
    """Makes sure that a page can be written, before the work that leads to it; nothing is asked of None.

    Raises:
      ArtifactError: the folder cannot be written. ModuleNotFoundError: a package is missing.
    """
    if folder is not None:
        library("core.files").make_folder(folder)
        library("reporting.page")


def tell_written(files: Sequence[pathlib.Path]) -> None:
    """Says on stderr what was written."""
    text = f"Wrote {', '.join(map(str, files))}"
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


class EvaluationReport:
    """The page of an evaluation.

    Attributes:
      gallery: is shown the episodes, for films; None where none can be made.
    """

    def __init__(
        self, folder: pathlib.Path, policy: pathlib.Path, entry: Untyped | None = None
    ) -> None:
        """Tries what the page needs.

        Args:
          folder: of the page. policy: its path.
          entry: the task whose episodes the page shows; None to show none.
        """
        check_report(folder)
        self._folder, self._policy = folder, policy
        self.gallery: Untyped = None
        self._why = "the episodes were not filmed."
        if entry is not None:
            galleries = library("evaluation.report_gallery")
            self._why = library("evaluation.filming").drawable(entry)
            self.gallery = None if self._why else galleries.Gallery(entry)

    def write(self, result: JsonObject, policy: str, command: str) -> None:
        """Makes the films and writes the page.

        Args:
          result: of the evaluation. policy: as it was named. command: that gave it.
        """
        pages = library("evaluation.report_page")
        with working("Writing the report"):
            clips = () if self.gallery is None else tuple(self.gallery.clips())
            about = pages.About(policy, self._policy, (command,), clips, self._why)
            written = pages.write(result, self._folder, about)
        tell_written(written)
