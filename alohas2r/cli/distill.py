"""Commands that pretrain the encoder, distil students, and run the whole pipeline."""

from __future__ import annotations

import pathlib
from typing import Annotated, Literal

import typer

from alohas2r.cli.app import Json, Seed, Threads, command, library, loggers_of, policy_folder
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.options import (
    Finish,
    LearningEngine,
    Log,
    Minutes,
    Preset,
    Renderer,
    Resume,
    Settings,
    WorldParams,
)
from alohas2r.cli.train import (
    Address,
    Lag,
    Workers,
    fleet_of,
    measured_settings,
    tell_if_stopped,
    ways_on,
)


@command("pretrain-encoder")
def pretrain_encoder(
    data: Annotated[
        Literal["sim", "cifar10"],
        typer.Option(help="Rendered wrist pictures, which need nothing, or CIFAR-10 from disk."),
    ] = "sim",
    data_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder with cifar-10-python.tar.gz or cifar-10-binary.tar.gz."),
    ] = None,
    method: Annotated[
        Literal["supervised", "contrastive"],
        typer.Option(help="Name and place the objects, or recognize a picture after a crop."),
    ] = "supervised",
    preset: Annotated[
        Preset, typer.Option(help="quick: to see that all works; default: the real one.")
    ] = "default",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of the run: metrics, checkpoints, encoder (runs/encoder)."),
    ] = None,
    resume: Resume = False,
    finish: Finish = False,
    settings: Settings = None,
    seed: Seed = 0,
    threads: Threads = 0,
    minutes: Minutes = None,
    renderer: Renderer = "auto",
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train the colour encoder that distillation keeps frozen.

    Ctrl-C once saves a checkpoint and stops; --resume continues to the same result as an
    unbroken run.
    """
    pretrain, loggers = library("learning.encoder.train"), loggers_of(log)
    folder = out or pathlib.Path("runs") / "encoder"
    with progress_display() as progress:
        result = pretrain.pretrain_encoder(
            preset=preset,
            overrides=settings or [],
            out=folder,
            data=data,
            data_dir=data_dir,
            method=method,
            seed=seed,
            threads=threads,
            resume=resume,
            finish=finish,
            minutes=minutes,
            progress=progress,
            renderer=renderer,
            loggers=loggers,
        )
    show(result, f"Trained the encoder in {folder}", as_json)
    tell_if_stopped(result, ways_on(folder))


@command("distill")
def distill(
    observation: Annotated[
        Literal["rgbd", "depth", "rgb", "stereo", "state"],
        typer.Option(
            help="What the student sees; depth: 64 x 64 pictures; stereo: colour of each camera's left imager and grey "
            "of its right one, 48 x 48 (64 x 64 on a GPU); state: what the teacher knows."
        ),
    ] = "rgbd",
    teacher: Annotated[
        str,
        typer.Option(
            help="Folder of the staged teacher; state: the shipped one; depth: a shipped policy from depth, where "
            "there is one."
        ),
    ] = "params/teacher",
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Folder of a pretrained colour encoder, which stays as it is (params/encoder if left out); none: "
            "learn it from scratch; finetune: go on learning the shipped one, or that of --start-from."
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="Student to go on with, under other settings: for a robot that was measured, say"
            " (--world-params); its encoder comes with it (a random student if left out)."
        ),
    ] = None,
    preset: Annotated[
        Literal["quick", "default", "transfer"],
        typer.Option(
            help="quick: to see that all works; default: full scale; transfer: on robots that differ,"
            " evaluated by eval-v2."
        ),
    ] = "default",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of the run: metrics, checkpoints, student (runs/student)."),
    ] = None,
    resume: Resume = False,
    finish: Finish = False,
    settings: Settings = None,
    seed: Seed = 0,
    threads: Threads = 0,
    minutes: Minutes = None,
    renderer: Renderer = "auto",
    engine: LearningEngine = "auto",
    world_params: WorldParams = None,
    fleet: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(
            help="Where environments live, in worlds of 256; local: threads; ray: actors of a Ray cluster, any of"
            " which may die. With the learner if left out. docs/fleet.md."
        ),
    ] = None,
    workers: Workers = None,
    lag: Lag = None,
    address: Address = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Distil the teacher into a student that sees, by online DAgger.

    Ctrl-C once saves a checkpoint and stops; --resume continues to the same result as an
    unbroken run, on the engine that the run began with. Metrics go to metrics.jsonl and to
    TensorBoard files in the run's folder.
    """
    dagger, loggers = library("learning.dagger.train"), loggers_of(log)
    folder = out or pathlib.Path("runs") / "student"
    chosen = encoder
    if encoder is not None and encoder not in ("none", "finetune"):
        chosen = policy_folder(encoder)
    with progress_display() as progress:
        result = dagger.distill(
            preset=preset,
            overrides=[*measured_settings(world_params, "variation"), *(settings or [])],
            teacher=teacher if teacher in dagger.TEACHERS else policy_folder(teacher),
            encoder=chosen,
            observation=observation,
            out=folder,
            seed=seed,
            threads=threads,
            resume=resume,
            finish=finish,
            minutes=minutes,
            progress=progress,
            renderer=renderer,
            engine=engine,
            loggers=loggers,
            fleet=fleet_of(fleet, workers, lag, address),
            start_from=None if start_from is None else policy_folder(start_from),
        )
    show(result, f"Distilled a student in {folder}", as_json)
    tell_if_stopped(result, ways_on(folder))


@command("pipeline")
def pipeline(
    preset: Annotated[
        Preset, typer.Option(help="quick: every phase at tiny scale; default: the real one.")
    ] = "default",
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder that holds a folder for each phase.")
    ] = pathlib.Path("runs/pipeline"),
    seed: Seed = 0,
    threads: Threads = 0,
    engine: LearningEngine = "auto",
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Run everything: encoder, pick, switch states, insert, distill, evaluate, export.

    The same command continues where an earlier run in --out was stopped or killed. At the end it
    says how long each phase took, beside the published times on one RTX 4090.
    """
    phases, loggers = library("learning.pipeline"), loggers_of(log)
    with progress_display() as progress:
        result = phases.run(preset, out, seed, threads, progress, engine=engine, loggers=loggers)
    show(result, f"Pipeline in {out}", as_json)
    tell_if_stopped(result, f"the same command with --out {out} continues")
