"""Commands that measure all that runs on a GPU, and report what was measured."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated

import typer
from rich.console import Console

from alohas2r.cli.common import Json, command, library, plain, progress_display
from alohas2r.errors import ArtifactError


@command("bench-gpu", "Measure")
def bench_gpu(
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder of gpu.json, gpu.md and the pictures.")
    ] = pathlib.Path("runs/gpu"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="All phases at a tiny size, on the CPU: does it work?")
    ] = False,
    only: Annotated[
        str, typer.Option(help="Only these phases, such as smoke,physics_pick; commas between.")
    ] = "",
    budget: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds for all phases together (520; with --tiny an hour)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure physics, rendering, training and export on an NVIDIA GPU, in less than nine minutes.

    Each phase runs in a process of its own and in its share of the time; gpu.json is written anew
    after each. A phase that fails costs none of the others; the exit code is then 1.
    """
    names = [part.strip() for part in only.split(",") if part.strip()]
    with progress_display() as progress:
        result = library("bench_gpu").bench_gpu(out, tiny, budget, names, progress)
    report = library("bench_report").bench_report(out / "gpu.json", out)
    typer.echo(json.dumps(plain(result)) if as_json else report["markdown"])
    _tell_written([str(out / "gpu.json"), *report["files"]])
    failed = [f"{error['phase']} ({error['error']})" for error in result["errors"]]
    if failed:
        raise ArtifactError(f"Failed: {'; '.join(failed)}")
    if not result["finished"]:
        raise ArtifactError("Stopped before all phases were measured.")


@command("bench-report", "Measure")
def bench_report(
    file: Annotated[
        pathlib.Path, typer.Argument(help="What bench-gpu wrote: gpu.json.", show_default=False)
    ],
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for gpu.md and the pictures; none are written if left out."),
    ] = None,
) -> None:
    """Turn the figures of bench-gpu into Markdown tables and pictures.

    What is missing is called "not measured"; figures from a CPU are called no GPU figures.
    """
    report = library("bench_report").bench_report(file, out)
    typer.echo(report["markdown"])
    _tell_written(report["files"])


def _tell_written(files: list[str]) -> None:
    if files:
        Console(stderr=True).print(
            f"Wrote {', '.join(files)}", highlight=False, markup=False, soft_wrap=True
        )
