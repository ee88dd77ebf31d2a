"""`alohas2r evaluate --server`: a policy that a server runs."""

from __future__ import annotations

import os
import pathlib
from typing import Annotated, NamedTuple

import typer

from alohas2r.cli.app import library
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.interrupted import shown_if_interrupted
from alohas2r.cli.options import API_KEY
from alohas2r.cli.report import check_report, command_line, tell_written
from alohas2r.core.stop import StopSignal
from alohas2r.errors import ConfigError

Server = Annotated[
    str | None,
    typer.Option(
        metavar="ws://HOST:PORT",
        help=f"In place of POLICY: a server of this package or of OpenPI; its key from {API_KEY}.",
    ),
]
Execute = Annotated[
    int,
    typer.Option(
        min=0, help="--server: actions of each answer that are carried out; 0 takes all of them."
    ),
]
InferenceMs = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="--server: simulated time of an answer, in which the arms hold still; as measured if left out.",
    ),
]
PictureSize = Annotated[
    int,
    typer.Option(
        min=8, max=512, help="--server: side of the pictures (pixels), where it does not say."
    ),
]


class Asked(NamedTuple):
    """How a server is asked."""

    execute: int
    inference_ms: float | None
    size: int


def check_server(policy: str, server: str | None, asked: Asked, others: bool) -> None:
    """Raises ConfigError for options that do not go together; `others`: whether any that --server excludes is given."""
    if (not policy) == (server is None):
        raise ConfigError("Give one of POLICY and --server URL.")
    if server is None:
        if asked.execute or asked.inference_ms is not None:
            raise ConfigError("--execute and --inference-ms belong to --server.")
    elif others:
        raise ConfigError(
            "--server goes with --episodes, --seed, --protocol, --csv, --report and --json; leave out the others."
        )


def evaluate_served(
    server: str,
    episodes: int,
    seed: int,
    threads: int,
    protocol: str | None,
    asked: Asked,
    csv: pathlib.Path | None,
    report: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Shows how a policy on a server does."""
    check_report(report)
    if csv is not None:
        library("rendering.video").check_path(csv, ".csv")
    served = library("evaluation.served")
    rules = None
    if protocol is not None:
        rules = library("tasks.registry").find_task("insert").find_protocol(protocol)
    config = served.ServedConfig(asked.execute, asked.inference_ms, asked.size)
    with (
        shown_if_interrupted(server, as_json, csv),
        progress_display() as progress,
        StopSignal.patient() as stop,
    ):
        result = served.evaluate_server(
            server,
            episodes,
            seed,
            threads,
            progress=progress,
            protocol=rules,
            config=config,
            api_key=os.environ.get(API_KEY, ""),
            stop=stop,
        )
    if csv is not None:
        library("evaluation.report").write_csv(result, csv)
    show(result, f"{server}, {episodes} episodes", as_json)
    if report is not None:
        pages = library("evaluation.report_page")
        options = {"execute": asked.execute or None, "inference_ms": asked.inference_ms}
        named = command_line(
            "evaluate", server=server, episodes=episodes, seed=seed, protocol=protocol, **options
        )
        about = pages.About(server, server, (named,), (), "those of a server are not filmed.")
        tell_written(pages.write(result, report, about))
