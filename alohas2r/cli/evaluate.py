"""Commands that measure policies and look at runs."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from alohas2r.cli.app import Json, Seed, Threads, command, library, policy_folder
from alohas2r.cli.display import progress_display, show, working
from alohas2r.cli.interrupted import shown_if_interrupted
from alohas2r.cli.options import WorldParams
from alohas2r.cli.report import EvaluationReport, ReportFolder, command_line, tell_written
from alohas2r.cli.served import (
    Asked,
    Execute,
    InferenceMs,
    PictureSize,
    Server,
    check_server,
    evaluate_served,
)
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import ConfigError


@command("evaluate", "Measure")
def evaluate_policy(
    policy: Annotated[
        str,
        typer.Argument(
            help="Folder of a policy, such as params/pick, or an exported file (.onnx).",
            show_default=False,
        ),
    ] = "",
    episodes: Annotated[int, typer.Option(min=1, help="Exactly so many episodes count.")] = 1000,
    seed: Seed = 0,
    threads: Threads = 0,
    video: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Write a video of the first episodes (.mp4; .webp, an animated picture)."
        ),
    ] = None,
    csv: Annotated[
        pathlib.Path | None, typer.Option(help="Write one line per episode (.csv).")
    ] = None,
    report: ReportFolder = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep episodes and rates in a folder, 100 episodes at a time, as --resume needs them.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the evaluation in that folder, to the result of an unbroken one.",
        ),
    ] = False,
    server: Server = None,
    execute: Execute = 0,
    inference_ms: InferenceMs = None,
    picture_size: PictureSize = 96,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Repeat under other conditions: clearance (thicker pegs), latency (more delay), "
            "recovery (15 s; eval-v1) or calibration (eval-v2, eval-v3)."
        ),
    ] = None,
    paired: Annotated[
        str | None,
        typer.Option(
            help="Another policy, such as params/teacher, for the same episodes: the difference, "
            "and McNemar's test."
        ),
    ] = None,
    hold_out: Annotated[
        bool,
        typer.Option(
            "--hold-out", help="Students only: one object is missing; who grasps at thin air?"
        ),
    ] = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Frozen conditions: eval-v1, or eval-v2 or eval-v3 for robots that differ (eval-v1 if left "
            "out)."
        ),
    ] = None,
    causes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.png|none",
            help="With eval-v2 or eval-v3: success by quantile of each cause, and its plot; none: the "
            "nominal robot alone.",
        ),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml",
            help="In another simulation: a table of names, or a shipped one such as gym-aloha; "
            "see docs/worlds.md.",
        ),
    ] = None,
    engine: Annotated[
        Literal["auto", "cpu", "warp"],
        typer.Option(help="What simulates, as in train-teacher; warp: teachers only."),
    ] = "cpu",
    world_params: WorldParams = None,
    as_json: Json = False,
) -> None:
    """Measure how often a policy succeeds, under the frozen protocol eval-v1, eval-v2 or eval-v3.

    Rates come with their 95% Wilson intervals. The protocol's name and hash go with every
    result; only results of the same protocol can be compared. A student is measured with
    pictures, unseen looks and all noise.

    Interrupted, it shows the rates of the episodes that have ended (exit code 130): of whole groups,
    which are 100 episodes with --out and 2,048 without.
    """
    asked = Asked(execute, inference_ms, picture_size)
    other = engine != "cpu" or hold_out
    other |= any(x is not None for x in (video, sweep, paired, causes, world))
    check_server(policy, server, asked, other)
    alone = hold_out or any(x is not None for x in (server, world, sweep, paired))
    _check_kept(out, resume, video, alone)
    if server is not None:
        evaluate_served(
            server,
            episodes,
            seed,
            threads,
            protocol,
            asked,
            csv,
            report,
            as_json,
        )
        return
    if (protocol is not None or causes is not None) and (
        world is not None or hold_out or paired is not None
    ):
        raise ConfigError(
            "--protocol and --causes go with --episodes, --seed, --sweep, --video, --csv and --json; leave"
            " out the others."
        )
    if report is not None and (hold_out or sweep is not None or paired is not None):
        raise ConfigError("--report is of one evaluation; leave out --sweep, --paired, --hold-out.")
    if world_params is not None and (
        hold_out or any(x is not None for x in (world, sweep, paired))
    ):
        raise ConfigError(
            "--world-params goes with --protocol, --causes, --episodes, --seed, --video, --csv and --json;"
            " leave out the others."
        )
    if world is not None:
        if engine != "cpu" or hold_out or sweep is not None or paired is not None:
            raise ConfigError(
                "--world has physics and pictures of its own; leave out --engine, --sweep, --paired"
                " and --hold-out."
            )
        _evaluate_world(policy, world, episodes, seed, Kept(video, csv, report), as_json)
        return
    if engine == "warp" and (hold_out or any(x is not None for x in (sweep, video, paired))):
        raise ConfigError(
            "--sweep, --video, --paired and --hold-out run on the engine cpu; leave out --engine."
        )
    if paired is not None or hold_out:
        if sweep is not None or video is not None or csv is not None or (paired and hold_out):
            raise ConfigError(
                "--paired and --hold-out give a table of their own; leave out the other options."
            )
        _evaluate_student(policy, paired, episodes, seed, threads, as_json)
    elif sweep is not None:
        if any(x is not None for x in (video, csv, causes)):
            raise ConfigError(
                "--sweep gives one table of rates; leave out --video, --csv and --causes."
            )
        _sweep(policy, sweep, episodes, seed, threads, protocol, as_json)
    else:
        kept = Kept(video, csv, report, protocol, causes, world_params, out, resume)
        _evaluate(policy, episodes, seed, threads, engine, kept, as_json)


class Kept(NamedTuple):
    """What an evaluation is made under, and what it leaves behind."""

    video: pathlib.Path | None
    csv: pathlib.Path | None
    report: pathlib.Path | None
    protocol: str | None = None
    causes: str | None = None
    world_params: pathlib.Path | None = None
    out: pathlib.Path | None = None
    resume: bool = False


def _check_kept(
    out: pathlib.Path | None, resume: bool, video: pathlib.Path | None, alone: bool
) -> None:
    """Raises ConfigError for options that do not go together; `alone`: whether any that --out excludes is given."""
    if resume and out is None:
        raise ConfigError("--resume goes on with what --out DIR holds; give --out as well.")
    if out is not None and alone:
        raise ConfigError(
            "--out keeps the evaluation of one policy in this package's own simulation; leave out --server, --world,"
            " --sweep, --paired and --hold-out."
        )
    if resume and video is not None:
        raise ConfigError(
            "--video films the first episodes, which were run before --resume; leave it out, and film them by"
            " themselves: --episodes 4 --video FILE."
        )


@contextlib.contextmanager
def _folder(kept: Kept) -> Iterator[Untyped]:
    """Gives the folder of --out; None without."""
    if kept.out is None:
        yield None
        return
    with library("evaluation.folder").EvaluationFolder(kept.out, kept.resume) as folder:
        yield folder


def _evaluate(
    policy: str,
    episodes: int,
    seed: int,
    threads: int,
    engine: str,
    kept: Kept,
    as_json: bool,
) -> None:
    """Evaluates a policy, and writes what was asked for."""
    evaluate, folder = library("evaluation.evaluate"), policy_folder(policy)
    plot = None if kept.causes in (None, "none") else pathlib.Path(kept.causes)
    for path, suffix in ((kept.csv, ".csv"), (plot, ".png")):
        if path is not None:
            library("rendering.video").check_path(path, suffix)
    if kept.video is not None:
        films = library("rendering.video")
        films.check_path(kept.video, *films.FILMS)
    loaded = evaluate.load_policy(folder)
    phase = loaded.spec.phase
    rules = None
    if kept.protocol is not None or kept.causes is not None:
        rules = evaluate.find_rules(phase, kept.protocol, kept.causes == "none")
    entry = library("tasks.registry").find_task(phase)
    page = None
    if kept.report is not None:  # the first episodes, which it films, were run before --resume
        page = EvaluationReport(kept.report, folder, None if kept.resume else entry)
    film = None if kept.video is None else library("evaluation.video").Film(entry, kept.video)
    keepers = [one for one in (film, None if page is None else page.gallery) if one is not None]
    if kept.world_params is not None:
        ranges = library("calibration.ranges")
        rules = rules or evaluate.find_rules(phase, ranges.PROTOCOL)
        rules = ranges.of_robot(rules, kept.world_params)
    hint = "with --out DIR they are kept as they come, and --resume goes on"
    if kept.out is not None:
        hint = "the same command with --resume goes on"
    with (
        shown_if_interrupted(policy, as_json, kept.csv, hint),
        _folder(kept) as where,
        progress_display() as progress,
        StopSignal.patient() as stop,
    ):
        result = evaluate.evaluate(
            loaded,
            episodes,
            seed,
            threads,
            progress=progress,
            engine=engine,
            protocol=rules,
            keeper=library("evaluation.filming").Keepers(keepers) if keepers else None,
            folder=where,
            stop=stop,
        )
    if plot is not None:
        causes = library("evaluation.causes")
        result["causes"] = causes.by_quantile(result["table"])
        title = f"{policy}, {result['protocol']}, {episodes} episodes: success by cause"
        causes.plot(result["causes"], plot, title, result["success"]["rate"])
    if kept.csv is not None:
        library("evaluation.report").write_csv(result, kept.csv)
    show(result, f"{policy}, {episodes} episodes", as_json)
    if film is not None:
        with working("Writing the video"):
            written = film.write()
        tell_written([written])
    if page is not None:
        options = (
            {"protocol": kept.protocol, "causes": "none" if kept.causes == "none" else None}
            if rules
            else {}
        )
        named = command_line(
            "evaluate", policy, episodes=episodes, seed=seed, engine=result["engine"], **options
        )
        page.write(result, policy, named)


def _sweep(
    policy: str,
    name: str,
    episodes: int,
    seed: int,
    threads: int,
    protocol: str | None,
    as_json: bool,
) -> None:
    """Evaluates a policy under several conditions."""
    with (
        shown_if_interrupted(policy, as_json, show=_show_sweep),
        progress_display() as progress,
        StopSignal.patient() as stop,
    ):
        swept = library("evaluation.sweep").sweep(
            policy_folder(policy), name, episodes, seed, threads, progress, protocol, stop
        )
    _show_sweep(swept, policy, as_json)


@command("contamination", "Measure")
def contamination(
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the curves and the plot.")],
    steps: Annotated[int, typer.Option(min=1, help="Environment steps each way.")] = 4_000_000,
    envs: Annotated[int, typer.Option(min=1, help="Simulations side by side.")] = 1024,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Train one arm alone and both arms at once, to show why the pick policy is a single-arm one."""
    experiment = library("experiments.contamination")
    with progress_display() as progress:
        experiment.run(out, steps, seed, envs, threads, progress)
    Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@command("plot", "Measure")
def plot(
    run: Annotated[pathlib.Path, typer.Argument(help="Folder of a training run.")],
    out: Annotated[pathlib.Path, typer.Option(help="The picture (.png).")],
    title: Annotated[str, typer.Option(help="Above the picture.")] = "",
) -> None:
    """Draw the learning curves of a training run."""
    curves = library("learning.run.curves")
    library("rendering.video").check_path(out, ".png")
    curves.training_curve(run, out, title)
    Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _evaluate_world(
    policy: str,
    world: str,
    episodes: int,
    seed: int,
    kept: Kept,
    as_json: bool,
) -> None:
    """Shows how a policy does in another simulation."""
    films = library("rendering.video")
    for path, endings in ((kept.video, films.FILMS), (kept.csv, (".csv",))):
        if path is not None:
            films.check_path(path, *endings)
    folder = policy_folder(policy)
    page = None if kept.report is None else EvaluationReport(kept.report, folder)
    with (
        shown_if_interrupted(policy, as_json, kept.csv),
        progress_display() as progress,
        StopSignal.patient() as stop,
    ):
        result = library("deployment.worlds").evaluate_world(
            folder, world, episodes, seed, progress, kept.video, stop
        )
    if kept.csv is not None:
        library("evaluation.report").write_csv(result, kept.csv)
    show(result, f"{policy} in {result['world']}, {episodes} episodes", as_json)
    if page is not None:
        named = command_line("evaluate", policy, episodes=episodes, seed=seed, world=world)
        page.write(result, policy, named)


def _evaluate_student(
    policy: str, other: str | None, episodes: int, seed: int, threads: int, as_json: bool
) -> None:
    """Shows a paired evaluation, or one with missing objects if there is no other policy."""
    folder = policy_folder(policy)
    with (
        shown_if_interrupted(policy, as_json),
        progress_display() as progress,
        StopSignal.patient() as stop,
    ):
        if other is None:
            result = library("evaluation.hold_out").evaluate_hold_out(
                folder, episodes, seed, threads, progress, stop=stop
            )
            title = f"{policy} with one object missing, {episodes} episodes"
        else:
            second = policy_folder(other)
            result = library("evaluation.paired").paired(
                folder, second, episodes, seed, threads, progress, stop=stop
            )
            title = f"{policy} against {other}, {episodes} episodes"
    show(result, title, as_json)


def _show_sweep(swept: JsonObject, policy: str, as_json: bool) -> None:
    """Prints the rows of a sweep."""
    if as_json:
        typer.echo(json.dumps(swept))
        return
    table = Table(title=f"{policy}: {swept['sweep']}")
    columns = ("success", "held_at_end", "dropped", "entered")
    for heading in ("condition", *columns, "success within"):
        table.add_column(heading.replace("_", " "))
    for row in swept["rows"]:
        rates = [row.get(name) or row["stages"][name] for name in columns]
        within = row["success_within_s"].items()
        table.add_row(
            ", ".join(f"{key} = {value:g}" for key, value in row["condition"].items()),
            *(f"{r['rate']:.3f} ({r['low']:.3f} .. {r['high']:.3f})" for r in rates),
            ", ".join(f"{limit} s: {rate['rate']:.3f}" for limit, rate in within),
        )
    Console().print(table)
