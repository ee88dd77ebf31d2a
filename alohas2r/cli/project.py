"""The command that begins a project of one's own."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from alohas2r.cli.app import command, library


@command("init", "Begin")
def init(
    folder: Annotated[
        pathlib.Path,
        typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False),
    ],
) -> None:
    """Begin a project of your own: object sizes, a world, a robot file, a script that measures.

    Every file works as it is; README.md in the folder says what to do with them.
    """
    for path in library("core.project").create(folder):
        Console(stderr=True).print(f"Wrote {path}", highlight=False, markup=False, soft_wrap=True)
