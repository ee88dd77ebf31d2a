"""Many runs on emulated arms with faults: `alohas2r deploy --robot emulated --soak-hours`."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console

from alohas2r.cli.app import library
from alohas2r.cli.display import show
from alohas2r.core.plain import plain
from alohas2r.errors import ConfigError

if TYPE_CHECKING:
    from alohas2r.deployment.soak.runs import Row


def run_soak(
    robot: str,
    policy: pathlib.Path | None,
    hours: float | None,
    runs: int | None,
    faults: Literal["random", "none"],
    seed: int,
    stepped: bool,
    stub_cameras: bool,
    as_json: bool,
) -> None:
    """Makes the runs, says what became of each, and sums up; exit code 1 if one did not end as it should.

    Raises:
      ConfigError: options that do not fit together.
    """
    if robot != "emulated" or policy is None:
        raise ConfigError("--soak-hours and --fuzz-runs need --robot emulated and --policy FILE.")
    soaks = library("deployment.soak.runs")
    if runs is not None:
        if hours is not None:
            raise ConfigError("Give one of --soak-hours and --fuzz-runs.")
        config = soaks.fuzz_config(runs, seed)
    else:
        config = soaks.SoakConfig(
            hours=hours, faults=faults, seed=seed, stepped=stepped, pictures=not stub_cameras
        )
    console = Console(stderr=True)

    def note(row: Row) -> None:
        struck = ", ".join(row.kinds) or "nothing"
        text = f"run {row.number}: {struck}; {row.episodes} episodes, {row.ended}"
        for line in (text, *row.problems):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    result = soaks.soak(config, policy, note)
    if as_json:
        typer.echo(json.dumps(plain(result), allow_nan=False))
    else:
        problems = "\n".join(result["problems"]) or "none"
        show({**result, "problems": problems}, "Runs on emulated arms", as_json)
    if result["problems"]:
        raise typer.Exit(1)
