"""Commands about worlds that nobody here wrote."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer
from rich.console import Console

from alohas2r.cli.app import Json, app, library
from alohas2r.cli.display import show, working

worlds = typer.Typer(
    name="world",
    no_args_is_help=True,
    help="Use another simulation in the robot's place; docs/worlds.md says how.",
)
app.add_typer(worlds, rich_help_panel="Look")


@worlds.command("check")
def check(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.toml",
            help="Table of a world, or the name of one that is shipped, such as gym-aloha.",
            show_default=False,
        ),
    ],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Draw our wrist views and the world's side by side (.png)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a world's table maps, and how the world differs from our own scene.

    Compares kinematics, camera poses, gap between the fingers by travel, and step responses.
    """
    video = library("rendering.video")
    if out is not None:
        video.check_path(out, ".png")
    with working("Comparing"):
        result, picture = library("robots.worlds.compare").compare(file)
    if out is not None:
        video.write_png(out, picture)
    show(result, f"world {result['world']}", as_json)
    if out is not None:
        Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@worlds.command("list")
def list_worlds() -> None:
    """List the worlds whose tables are shipped."""
    for name in library("robots.worlds.table").shipped():
        typer.echo(name)
