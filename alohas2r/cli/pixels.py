"""The command that learns from wrist pictures by reinforcement."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer

from alohas2r.cli.app import Json, Seed, Threads, command, library, loggers_of, policy_folder
from alohas2r.cli.display import progress_display
from alohas2r.cli.options import Finish, Log, Minutes, Preset, Resume, Settings
from alohas2r.cli.train import (
    Address,
    Fleet,
    Lag,
    Workers,
    fleet_of,
    show_run,
    tell_if_stopped,
    ways_on,
)


@command("train-pixels")
def train_pixels(
    phase: Annotated[
        Literal["pick", "insert"],
        typer.Option(help="What to learn: pick up a block; or insert, once both objects are up."),
    ] = "pick",
    start: Annotated[
        Literal["scratch", "encoder", "student"],
        typer.Option(
            help="What to begin with; scratch: a random policy; encoder: one whose network can tell from a"
            " picture where the block is, learnt before; student: one that has imitated a teacher on the state."
        ),
    ] = "scratch",
    preset: Annotated[
        Preset, typer.Option(help="quick: minutes, to see that all works; default: the real one.")
    ] = "default",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder of the run: metrics, checkpoints, policy (runs/pixels-PHASE if left out)."
        ),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="insert: the pick policy from pixels that hands over (the shipped one if left out)."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="--start student: the teacher, or a run of train-teacher (the shipped one if left out)."
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with what another run had learnt, or one of its checkpoints, under other settings.",
        ),
    ] = None,
    resume: Resume = False,
    finish: Finish = False,
    settings: Settings = None,
    seed: Seed = 0,
    threads: Threads = 0,
    minutes: Minutes = None,
    renderer: Annotated[
        Literal["raycast", "exact"],
        typer.Option(help="What draws the depth; exact asks MuJoCo, which is slow."),
    ] = "raycast",
    fleet: Fleet = None,
    workers: Workers = None,
    lag: Lag = None,
    address: Address = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train a policy by reinforcement learning (PPO) from the wrist camera's depth.

    It sees what a robot gives, late and noisy: depth of 32 x 32 pixels, its joints, and where the block is to go. No
    teacher is needed; the exact state is known to the critic alone, which is left behind. Insertion begins where a pick
    policy from pixels hands over; both as one policy are OUT/staged.

    Ctrl-C once saves a checkpoint and stops; --resume continues to the same result as an unbroken run. See
    docs/pixels.md.
    """
    pixels, loggers = library("learning.pixels.train"), loggers_of(log)
    folder = out or pathlib.Path("runs") / f"pixels-{phase}"
    with progress_display() as progress:
        result = pixels.train(
            phase=phase,
            preset=preset,
            start=start,
            out=folder,
            resume=resume,
            finish=finish,
            overrides=settings or [],
            seed=seed,
            threads=threads,
            minutes=minutes,
            progress=progress,
            renderer=renderer,
            loggers=loggers,
            fleet=fleet_of(fleet, workers, lag, address),
            pick=None if pick is None else policy_folder(pick),
            teacher=None if teacher is None else policy_folder(teacher),
            start_from=start_from,
        )
    show_run(result, f"Trained {phase} from pixels in {folder}", as_json)
    tell_if_stopped(result, ways_on(folder))
