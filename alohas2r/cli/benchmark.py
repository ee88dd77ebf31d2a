"""Commands that measure speed: simulation, rendering, policies, GPUs."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from alohas2r.cli.app import Benchmark, Json, Seed, Threads, command, library, policy_folder
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.export import check_file
from alohas2r.cli.options import Engine
from alohas2r.cli.report import ReportFolder, check_report, command_line, tell_written
from alohas2r.core.plain import plain
from alohas2r.core.progress import Report
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError


@command("bench-sim", "Measure")
def bench_sim(
    phase: Annotated[
        Benchmark, typer.Option(help="The task to simulate; distill: insert with pictures.")
    ] = "pick",
    envs: Annotated[
        int | None,
        typer.Option(min=1, help="Simulations side by side; as in training if left out."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 20.0,
    threads: Threads = 0,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Policy to start from, for states of a trained one; distill: the staged teacher."
        ),
    ] = None,
    engine: Engine = "cpu",
    report: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Measure the speed of physics, environment and training on this machine.

    In control steps per second, all with the same model, substeps and randomized variants, so
    that the shares say what the environment and the learning cost on top of bare physics. With
    --phase distill: collection with pictures beside physics alone, rendering alone, and the
    harmonic limit of the two.
    """
    check_report(report)
    benchmark = library("benchmarks.simulation")
    folder = None if policy is None else str(policy_folder(policy))
    with progress_display() as progress:
        result = benchmark.bench_sim(
            phase=phase,
            envs=envs,
            seconds=seconds,
            threads=threads,
            progress=progress,
            policy_path=folder,
            engine=engine,
        )
    title = f"Speed of {phase} (control steps per second)"
    show(result, title, as_json)
    options = {"envs": envs, "seconds": seconds, "threads": threads, "policy": policy}
    named = command_line("bench-sim", phase=phase, engine=engine, **options)
    _write_report(result, report, title, named)


@command("bench-render", "Measure")
def bench_render(
    renderers: Annotated[
        str, typer.Option(help="Of raycast, warp, opengl, madrona; commas between.")
    ] = "raycast,warp,opengl,madrona",
    scenes: Annotated[
        str, typer.Option(help="Of twoarm (two wrist cameras) and cartpole (one camera).")
    ] = "twoarm,cartpole",
    sizes: Annotated[str, typer.Option(help="Sides of the pictures, in pixels.")] = "32,64,128,256",
    envs: Annotated[str, typer.Option(help="Environments drawn at once.")] = "1,64,1024",
    physics: Annotated[
        bool | None,
        typer.Option(help="Only with, or only without, a control step before each picture."),
    ] = None,
    shadows: Annotated[
        bool, typer.Option(help="Whether lights cast shadows in the sweep.")
    ] = False,
    ratios: Annotated[
        bool, typer.Option(help="Whether to take the ratios, which need no quiet machine.")
    ] = True,
    seconds: Annotated[float, typer.Option(help="Least time of a measurement.")] = 0.3,
    budget: Annotated[
        float, typer.Option(help="Seconds after which nothing further is begun.")
    ] = 215.0,
    csv: Annotated[
        pathlib.Path | None, typer.Option(help="Also write all rows, ours and published, here.")
    ] = None,
    plot: Annotated[pathlib.Path | None, typer.Option(help="Also draw them here (.png).")] = None,
    threads: Threads = 0,
    seed: Seed = 0,
    report: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Measure the renderers: pictures per second by renderer, scene, size and batch.

    Ratios come from rounds in which both sides take turns, so they hold on a busy machine as well.
    Renderers that cannot run here are listed with the reason.
    """
    bench, video = library("benchmarks.rendering"), library("rendering.video")
    config = bench.BenchConfig(
        backends=_names(renderers),
        scenes=_names(scenes),
        sizes=_numbers(sizes),
        environments=_numbers(envs),
        physics=(False, True) if physics is None else (physics,),
        shadows=shadows,
        threads=threads,
        seconds=seconds,
        budget=budget,
        ratios=ratios,
        seed=seed,
    )
    if plot is not None:
        video.check_path(plot, ".png")
    check_report(report)
    with progress_display() as display:

        def tell(share: float, what: str) -> None:
            display(Report("bench-render", round(100 * share), 100, f"%: {what}", 0.0, None, {}))

        result = bench.bench_render(config, tell)
    if csv is not None:
        library("benchmarks.rendering_plot").write_csv(result, csv)
    if plot is not None:
        library("benchmarks.rendering_plot").plot(result, plot)
    if as_json:
        show(result, "bench-render", True)
    else:
        _show_pictures(result)
    options = {"shadows": shadows, "threads": threads, "seed": seed}
    which = {"renderers": renderers, "scenes": scenes, "sizes": sizes, "envs": envs}
    _write_report(
        result, report, "Pictures per second", command_line("bench-render", **which, **options)
    )


def _show_pictures(result: JsonObject) -> None:
    """Shows ratios, speeds, and what was skipped."""
    if result["ratios"]:
        show(result["ratios"], f"Ratios ({result['machine']['name']})", False)
    table = Table(title="Pictures per second", title_justify="left")
    for name in ("renderer", "device", "scene", "physics", "size", "envs", "per s", "peak MB"):
        table.add_column(name, justify="right" if name in ("size", "envs", "per s") else "left")
    for row in result["rows"]:
        size = f"{row['width']} x {row['height']}"
        table.add_row(
            row["renderer"],
            row["device"],
            row["scene"],
            "yes" if row["physics"] else "no",
            size,
            str(row["environments"]),
            f"{row['frames_per_second']:,.0f}",
            f"{row['memory_mb']:,.0f}",
        )
    console = Console()
    console.print(table)
    for skip in result["skipped"]:
        cell = [str(skip[name]) for name in ("scene", "width", "environments") if name in skip]
        where = " ".join([skip["renderer"], *cell])
        console.print(f"skipped {where}: {skip['reason']}", highlight=False, markup=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    numbers = []
    for part in _names(text):
        try:
            numbers.append(int(part))
        except ValueError:
            raise ConfigError(f"'{part}' is no whole number; give some such as 32,64.") from None
    return tuple(numbers)


@command("bench-policy", "Measure")
def bench_policy(
    policy: Annotated[
        str,
        typer.Argument(help="Folder of a policy, or an exported file.", show_default=False),
    ],
    acts: Annotated[int, typer.Option(min=1, help="Actions of each, one after the other.")] = 2000,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long to act at the robot's pace, each.")
    ] = 20.0,
    rate: Annotated[float, typer.Option(help="That pace (Hz).")] = 20.0,
    no_jax: Annotated[
        bool, typer.Option("--no-jax", help="Leave out JAX; a file is measured without it anyway.")
    ] = False,
    report: ReportFolder = None,
    as_json: Json = False,
) -> None:
    """Measure how long one action takes: onnxruntime, jitted JAX, and through the server.

    On one thread, in turns, flat out and at the robot's pace, where caches have gone cold.
    """
    check_report(report)
    bench = library("benchmarks.latency")
    source = policy_folder(policy)
    if not source.is_dir():
        check_file(source)
    with progress_display() as progress:
        result = bench.bench_policy(
            source, acts, seconds, rate_hz=rate, jax=not no_jax, progress=progress
        )
    show(result, f"Latency of {policy}", as_json)
    options = {"acts": acts, "seconds": seconds, "rate": rate, "no_jax": no_jax}
    named = command_line("bench-policy", policy, **options)
    _write_report(result, report, f"Latency of {policy}", named)


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
        result = library("benchmarks.gpu.run").bench_gpu(out, tiny, budget, names, progress)
    report = library("benchmarks.gpu.report").bench_report(out / "gpu.json", out)
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
    report = library("benchmarks.gpu.report").bench_report(file, out)
    typer.echo(report["markdown"])
    _tell_written(report["files"])


def _write_report(result: JsonObject, folder: pathlib.Path | None, title: str, named: str) -> None:
    """Writes the page of a benchmark where it is asked for; `named` is the command that gave the result."""
    if folder is not None:
        figures = library("reporting.figures")
        lead = "Measured by alohas2r on the machine named below."
        tell_written([figures.write(plain(result), folder, title, lead, named)])


def _tell_written(files: list[str]) -> None:
    if files:
        Console(stderr=True).print(
            f"Wrote {', '.join(files)}", highlight=False, markup=False, soft_wrap=True
        )


@command("bench-fleet", "Measure")
def bench_fleet(
    training: Annotated[
        Literal["teacher", "pixels"], typer.Option(help="Of train-teacher, or train-pixels.")
    ] = "teacher",
    envs: Annotated[int, typer.Option(min=8, help="Environments of the training.")] = 1024,
    workers: Annotated[str, typer.Option(help="Numbers of workers, commas between.")] = "1,2,3",
    fleet: Annotated[
        Literal["local", "ray"], typer.Option(help="Threads, or actors of a Ray cluster.")
    ] = "local",
    speed: Annotated[bool, typer.Option(help="Measure speed, which takes a quiet machine.")] = True,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peaks of memory as well, at four sizes.")
    ] = False,
    sizes: Annotated[
        str, typer.Option(help="Environments at which memory is measured.")
    ] = "256,512,1024,2048",
    budget: Annotated[float, typer.Option(help="Memory of a device in the table (GB).")] = 4.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for each measurement.")] = 20.0,
    kills: Annotated[
        int,
        typer.Option(
            min=0,
            help="Only this: train with the most workers of a Ray cluster, kill one so often at random moments, and"
            " compare with a training that nobody disturbs.",
        ),
    ] = 0,
    lag: Annotated[int, typer.Option(min=0, max=1, help="--kills: see train-pixels.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="--kills: of whom is killed and when.")] = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure simulators apart from the learner: speed by workers and lag, data parallel, memory, kills.

    Of the pick phase. Beside what is measured stands what two laws say of so many devices; on fewer cores than that,
    they share. See docs/fleet.md.
    """
    if kills:
        with progress_display() as progress:
            cost = library("benchmarks.fleet_kills").bench_kills(
                kills=kills,
                training=training,
                environments=envs,
                workers=max(_numbers(workers)),
                lag=lag,
                seed=seed,
                threads=threads,
                progress=progress,
            )
        show(cost, "Workers that are killed", as_json)
        return
    bench = library("benchmarks.fleet")
    with progress_display() as progress:
        result = bench.bench_fleet(
            training=training,
            environments=envs,
            workers=_numbers(workers),
            kind=fleet,
            seconds=seconds,
            threads=threads,
            speed=speed,
            memory=_numbers(sizes) if memory else (),
            budget=budget,
            progress=progress,
        )
    if as_json:
        show(result, "bench-fleet", True)
        return
    held: JsonObject = result.get("memory", {})
    plain = {name: value for name, value in result.items() if name not in ("rows", "memory")}
    show(plain, "Simulators apart from the learner", False)
    if speed:
        title = "Steps per second, times as fast as one process, and what the law says"
        _show_rows(title, result["rows"])
    if held:
        show({name: held[name] for name in held if name != "fit"}, "Memory", False)
        _show_rows(f"Environments that fit into {budget:g} GB each", held["fit"])


def _show_rows(title: str, rows: list[JsonObject]) -> None:
    """Shows rows of figures by name."""
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names))
    Console().print(table)
