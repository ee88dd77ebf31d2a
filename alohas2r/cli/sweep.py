"""The command that sweeps a training over settings and seeds."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer
import typer.core
import typer.main
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alohas2r.cli.app import Json, Seed, app, command, library
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.report import tell_written
from alohas2r.cli.train import tell_if_stopped
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError

# Options of a training that a sweep gives each run itself, and what to give the sweep instead.
_OWN = {
    "--seed": "--seeds, such as 0..4",
    "--resume": "nothing: the same sweep in the same --out goes on where it was",
    "--finish": "nothing: a run that was stopped goes on when the sweep does",
    "--minutes": "nothing: Ctrl-C stops a sweep, and the same command goes on",
}


@command("sweep", passes_on=True)
def sweep(
    context: typer.Context,
    training: Annotated[
        str,
        typer.Argument(
            metavar="COMMAND",
            help="train-teacher, train-pixels, pretrain-encoder or distill; its own options follow.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE,VALUE",
            help="Values of a setting, or a range for a sampler: ppo.learning_rate=1e-4:1e-3:log.",
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="0..4", help="Seeds of each configuration: 0..4 or 0,3,7.")
    ] = "0..2",
    sampler: Annotated[
        Literal["grid", "each", "random", "tpe"],
        typer.Option(
            help="What to try. grid: all combinations; each: the first values, and every other value alone;"
            " random, tpe: what Optuna draws."
        ),
    ] = "grid",
    trials: Annotated[
        int, typer.Option(min=0, max=10_000, help="Configurations that random or tpe draw.")
    ] = 0,
    sampler_seed: Seed = 0,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Figure of metrics.jsonl to compare by (eval/success; pretrain-encoder: held/accuracy).",
        ),
    ] = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Less of it is better.")] = False,
    stop_worst: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.95,
            help="Stop the configurations that are in this worst share at an evaluation on the way; 0.5 is the"
            " median rule.",
        ),
    ] = 0.0,
    fleet: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes of this machine, or a Ray cluster on it."),
    ] = "local",
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Runs at once; each has its share of the cores.")
    ] = 1,
    out: Annotated[
        pathlib.Path,
        typer.Option(help="Folder of the sweep: sweep.json, index.html, a folder for each run."),
    ] = pathlib.Path("runs/sweep"),
    as_json: Json = False,
) -> None:
    """Run a training command over settings and seeds, and compare what comes out.

    alohas2r sweep train-teacher --phase pick --preset quick --set ppo.learning_rate=1e-3,3e-4 --seeds 0..2

    Every option that is not listed below is the training's. Ctrl-C saves all runs and stops; the same
    command goes on, also after the sweep was killed: what has finished is not run again.
    Interquartile means come with stratified bootstrap intervals over seeds.
    """
    trainings, states = library("experiments.sweep.trainings"), library("experiments.sweep.state")
    sweeping, spaces = library("experiments.sweep.sweep"), library("experiments.sweep.space")
    chosen = trainings.find_training(training)
    plan = states.Plan(
        command=training,
        arguments=tuple(context.args),
        space=spaces.parse_space(settings or []),
        seeds=spaces.parse_seeds(seeds),
        sampler=sampler,
        trials=trials,
        sampler_seed=sampler_seed,
        metric=metric or chosen.metric,
        maximize=not minimize,
        stop_worst=stop_worst,
    )
    options = read_options(training, context.args)
    with progress_display() as progress:
        result = sweeping.sweep(plan, chosen, options, out, fleet, workers, progress)
    if as_json:
        show(result, "", True)
    else:
        _show(result, spaces.varied(plan.space))
    tell_written([pathlib.Path(result["report"])])
    if result["failures"]:
        first = result["failures"][0]
        raise ArtifactError(
            f"{len(result['failures'])} runs failed; the same command tries them again. The first is"
            f" {first['run']}: {first['reason']}"
        )
    tell_if_stopped(result, "the same command continues")


def read_options(training: str, arguments: list[str]) -> dict[str, object]:
    """Returns a training's options, read by its own parser.

    Raises:
      TyperException: one does not exist or has no such value. ConfigError: one that the sweep itself gives.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _OWN:
            raise ConfigError(f"{name} cannot be given to a sweep; use {_OWN[name]}.")
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parser = group.commands[training]
    return dict(parser.make_context(f"alohas2r {training}", list(arguments)).params)


def _show(result: JsonObject, keys: list[str]) -> None:
    """Shows the configurations, and what each value came to."""
    console = Console()
    metric = result["metric"]
    title = f"{escape(metric)} of {len(result['configurations'])} configurations"
    table = Table(title=title, title_justify="left")
    for name in ("", *keys, "interquartile mean", "95%", "seeds", ""):
        table.add_column(escape(name), no_wrap=name == "95%", overflow="fold")
    best = result["best"] or {"configuration": None}
    for row in result["configurations"]:
        ends = "best" if row["configuration"] == best["configuration"] else row["state"]
        values = [row["settings"][key] for key in keys]
        table.add_row(str(row["configuration"]), *values, *_mean(row), str(row["seeds"]), ends)
    console.print(table)
    for key, rows in result["values"].items():
        if len(keys) > 1:
            table = Table(title=escape(f"{metric} by {key}"), title_justify="left")
            for name in (key, "interquartile mean", "95%", "configurations", "seeds"):
                table.add_column(escape(name))
            for row in rows:
                counts = str(row["configurations"]), str(row["seeds"])
                table.add_row(row["value"], *_mean(row), *counts)
            console.print(table)
    if result["best"] is not None:
        console.print(f"The best again: {result['best']['command']}", markup=False, soft_wrap=True)


def _mean(row: JsonObject) -> tuple[str, str]:
    """Returns an interquartile mean and its interval in words."""
    if row["iqm"] is None:
        return "-", "-"
    interval = "-" if row["low"] is None else f"{row['low']:.4g} .. {row['high']:.4g}"
    return f"{row['iqm']:.4g}", interval
