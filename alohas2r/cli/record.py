"""The command that records demonstrations for other people's learners."""

from __future__ import annotations

import pathlib
import time
from typing import Annotated, Literal

import typer

from alohas2r.cli.app import Json, Seed, Threads, command, library, policy_folder
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.options import Renderer

Format = Literal["lerobot", "npz", "hdf5"]


@command("record", "Teach")
def record(
    policy: Annotated[
        str,
        typer.Argument(
            help="Folder of a policy for two arms, such as params/teacher, or an exported file.",
            show_default=False,
        ),
    ],
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the data set, a new one.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many are run.")] = 100,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="lerobot: version 3, parquet and video; hdf5: the files of ALOHA's software; npz: NumPy.",
        ),
    ] = "lerobot",
    size: Annotated[
        int, typer.Option(min=8, max=512, help="Side of the pictures (pixels), even.")
    ] = 96,
    depth: Annotated[
        bool, typer.Option("--depth", help="Depth beside colour; npz and hdf5 only.")
    ] = False,
    only_successes: Annotated[
        bool, typer.Option("--only-successes", help="Leave out episodes that fail.")
    ] = False,
    ideal: Annotated[
        bool,
        typer.Option(
            "--ideal",
            help="Record pictures and joints without noise, delay and randomized looks; what the policy observes "
            "stays as it is.",
        ),
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(help="Frozen conditions: eval-v1, eval-v2 or eval-v3 (eval-v1 if left out)."),
    ] = None,
    renderer: Renderer = "auto",
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Record demonstrations of a policy as a data set: joints, commands, both wrist cameras, 20 times a second.

    Names and units are ALOHA's. Episode i of a seed is that of evaluate. See docs/datasets.md.
    """
    started = time.monotonic()
    formats = library("datasets.formats")
    formats.check_writable(out, form, depth)
    folder = policy_folder(policy)
    rules = None
    if protocol is not None:
        evaluate = library("evaluation.evaluate")
        rules = evaluate.find_rules(evaluate.load_policy(folder).spec.phase, protocol)
    with progress_display() as progress:
        recording = library("datasets.record").record(
            folder,
            episodes,
            seed,
            size=size,
            depth=depth,
            protocol=rules,
            ideal=ideal,
            only_successes=only_successes,
            threads=threads,
            renderer=renderer,
            progress=progress,
        )
        made = formats.write(out, form, recording.about, recording.episodes)
    result = {
        "out": str(out),
        "format": form,
        **made._asdict(),
        "megabytes": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6, 1),
        "wall_s": round(time.monotonic() - started, 1),
    }
    show(result, f"Data set {out}", as_json)
