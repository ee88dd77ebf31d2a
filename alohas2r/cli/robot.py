"""Commands that look at two real arms and set them up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alohas2r.cli.app import Json, command, library
from alohas2r.cli.display import working
from alohas2r.errors import ConfigError

if TYPE_CHECKING:
    from alohas2r.deployment.arm_setup import Change

Ports = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="LEFT RIGHT", help="Serial ports of both arms (/dev/ttyDXL_follower_* if left out)."
    ),
]
Side = Annotated[
    Literal["left", "right"] | None, typer.Option(help="One arm only; both if left out.")
]


@command("setup-arms", "Deploy")
def setup_arms(
    ports: Ports = None,
    side: Side = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    full_grip: Annotated[
        bool,
        typer.Option("--full-grip", help="Raise the grippers' Current_Limit to the servo's own."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare every setting of the servos with what a run relies on, and put it right.

    Shows each change before it writes, and asks. Torque must be off; nothing moves.
    """
    if as_json and not yes:
        raise ConfigError("--json cannot ask: add --yes to write, or leave --json out.")
    arms, setup = library("robots.dynamixel.arm"), library("deployment.arm_setup")
    config = arms.DynamixelConfig() if ports is None else arms.DynamixelConfig(ports=ports)
    sides = ("left", "right") if side is None else (side,)
    console = Console(stderr=True)
    with working("Comparing"):
        changes = setup.plan(config, sides, full_grip)
    if not as_json:
        Console().print(changes_table(changes) if changes else "Everything is as it must be.")
    if changes and not (yes or typer.confirm("Write these changes?", err=True)):
        console.print("Nothing was written.", highlight=False)
        raise typer.Exit(1)
    if changes:
        with working("Writing"):
            setup.write(config, changes)
    if as_json:
        typer.echo(json.dumps({"changes": [one._asdict() for one in changes]}))
    elif changes:
        console.print(f"Wrote and verified {len(changes)} settings.", highlight=False)


def changes_table(changes: Sequence[Change]) -> Table:
    """Returns the changes that are to be written, one a line."""
    table = Table("arm", "servo", "setting", "is", "becomes", "otherwise", box=None)
    for one in changes:
        row = (one.side, one.servo, one.setting, one.value, one.becomes, one.why)
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
