"""Commands that train and measure teachers."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from alohas2r.cli.common import (
    Json,
    Phase,
    Seed,
    Threads,
    command,
    library,
    policy_folder,
    progress_display,
    show,
    working,
)
from alohas2r.errors import ConfigError

Engine = Annotated[
    Literal["auto", "cpu", "warp"],
    typer.Option(
        help="What simulates: cpu, all cores; warp, an NVIDIA GPU; auto: warp where there is CUDA."
    ),
]


@command("train-teacher")
def train_teacher(
    phase: Annotated[
        Phase, typer.Option(help="What to learn: pick up a block, or insert the peg.")
    ],
    preset: Annotated[
        Literal["quick", "default"],
        typer.Option(help="quick: about a minute, to see that all works; default: the real one."),
    ] = "default",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder of the run: metrics, checkpoints, policy (runs/PHASE if left out)."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its last checkpoint.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the preset."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 0,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after so much time; can be resumed.")
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(help="Pick policy that insertion follows (params/pick if left out)."),
    ] = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Train a teacher by reinforcement learning (PPO) on the exact state.

    Ctrl-C once saves a checkpoint and stops; --resume continues to the same result as an
    unbroken run, on the engine that the run began with. Metrics go to metrics.jsonl and to
    TensorBoard files in the run's folder.
    """
    teacher = library("teacher")
    folder = out or pathlib.Path("runs") / phase
    with progress_display() as progress:
        result = teacher.train(
            phase=phase,
            preset=preset,
            out=folder,
            resume=resume,
            overrides=settings or [],
            seed=seed,
            threads=threads,
            minutes=minutes,
            progress=progress,
            pick=None if pick is None else policy_folder(pick),
            engine=engine,
        )
    show(result, f"Trained {phase} in {folder}", as_json)
    if not result["finished"]:
        Console(stderr=True).print(
            f"Stopped early at a checkpoint: --resume --out {folder} continues.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


@command("evaluate", "Measure")
def evaluate_policy(
    policy: Annotated[
        str,
        typer.Argument(
            help="Folder of a policy, such as params/pick, or an exported file (.onnx).",
            show_default=False,
        ),
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Exactly so many episodes count.")] = 1000,
    seed: Seed = 0,
    threads: Threads = 0,
    video: Annotated[
        pathlib.Path | None, typer.Option(help="Write a video of some episodes (.mp4).")
    ] = None,
    csv: Annotated[
        pathlib.Path | None, typer.Option(help="Write one line per episode (.csv).")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="Repeat under other conditions: clearance (thicker pegs), latency (more delay) "
            "or recovery (15 s)."
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
    engine: Annotated[
        Literal["auto", "cpu", "warp"],
        typer.Option(help="What simulates, as in train-teacher; warp: teachers only."),
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Measure how often a policy succeeds, under the frozen protocol eval-v1.

    Rates come with their 95% Wilson intervals. The protocol's name and hash go with every
    result; only results of the same protocol can be compared. A student is measured with
    pictures, unseen looks and all noise.
    """
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
        return
    evaluate = library("evaluate")
    check_path = library("video").check_path
    folder = policy_folder(policy)
    if video is not None:
        check_path(video, ".mp4")
    if csv is not None:
        check_path(csv, ".csv")
    if sweep is not None:
        if video is not None or csv is not None:
            raise ConfigError("--sweep gives one table of rates; leave out --video and --csv.")
        with progress_display() as progress:
            swept = evaluate.sweep(folder, sweep, episodes, seed, threads, progress=progress)
        _show_sweep(swept, policy, as_json)
        return
    with progress_display() as progress:
        result = evaluate.evaluate(
            folder, episodes, seed, threads, progress=progress, engine=engine
        )
    if csv is not None:
        evaluate.write_csv(result, csv)
    if video is not None:
        with working("Writing the video"):
            evaluate.write_video(folder, video, seed=seed)
    show(result, f"{policy}, {episodes} episodes", as_json)


@command("collect-switch-states")
def collect_switch_states(
    out: Annotated[pathlib.Path, typer.Option(help="The file to write (.npz).")],
    pick: Annotated[str, typer.Option(help="Folder of the pick policy.")] = "params/pick",
    preset: Annotated[
        Literal["quick", "default"], typer.Option(help="How many, as in train-teacher.")
    ] = "default",
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Collect the states in which the pick policy hands over to the insertion policy.

    train-teacher --phase insert does this by itself where the file is missing.
    """
    states = library("switch_states")
    settings = library("teacher").find_preset("insert", preset).collect
    with progress_display() as progress:
        found = states.ensure(out, policy_folder(pick), settings, seed, threads, progress)
    variants, rounds = found.pool.qpos.shape[:2]
    result = {
        "out": str(out),
        "pick": found.pick,
        "variants": variants,
        "states": variants * rounds,
        "switched_rate": found.rate,
    }
    show(result, f"Switch states of {pick}", as_json)


@command("contamination", "Measure")
def contamination(
    out: Annotated[pathlib.Path, typer.Option(help="Folder for the curves and the plot.")],
    steps: Annotated[int, typer.Option(min=1, help="Environment steps each way.")] = 4_000_000,
    envs: Annotated[int, typer.Option(min=1, help="Simulations side by side.")] = 1024,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Train one arm alone and both arms at once, to show why the pick policy is a single-arm one."""
    experiment = library("contamination")
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
    plots = library("plots")
    library("video").check_path(out, ".png")
    plots.training_curve(run, out, title)
    Console(stderr=True).print(f"Wrote {out}", highlight=False, markup=False, soft_wrap=True)


@command("bench-sim", "Measure")
def bench_sim(
    phase: Annotated[
        Literal["pick", "insert", "distill"],
        typer.Option(help="The scene to simulate; distill: insert with pictures."),
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
    as_json: Json = False,
) -> None:
    """Measure the speed of physics, environment and training on this machine.

    In control steps per second, all with the same model, substeps and randomized variants, so
    that the shares say what the environment and the learning cost on top of bare physics. With
    --phase distill: collection with pictures beside physics alone, rendering alone, and the
    harmonic limit of the two.
    """
    benchmark = library("benchmark")
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
    show(result, f"Speed of {phase} (control steps per second)", as_json)


def _evaluate_student(
    policy: str, other: str | None, episodes: int, seed: int, threads: int, as_json: bool
) -> None:
    """Shows a paired evaluation, or one with missing objects if there is no other policy."""
    student_eval = library("student_eval")
    folder = policy_folder(policy)
    with progress_display() as progress:
        if other is None:
            result = student_eval.hold_out_table(folder, episodes, seed, threads, progress)
            title = f"{policy} with one object missing, {episodes} episodes"
        else:
            second = policy_folder(other)
            result = student_eval.paired(folder, second, episodes, seed, threads, progress)
            title = f"{policy} against {other}, {episodes} episodes"
    show(result, title, as_json)


def _show_sweep(swept: Mapping[str, Any], policy: str, as_json: bool) -> None:
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
