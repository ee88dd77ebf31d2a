"""Commands that train and measure teachers."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from alohas2r.cli.app import Json, Seed, Task, Threads, command, library, loggers_of, policy_folder
from alohas2r.cli.display import progress_display, show
from alohas2r.cli.options import Engine, Finish, Log, Minutes, Preset, Resume, Settings, WorldParams
from alohas2r.config import check
from alohas2r.core.types import JsonObject

if TYPE_CHECKING:
    from alohas2r.learning.fleet.base import FleetConfig


Fleet = Annotated[
    Literal["local", "ray", "data-parallel"] | None,
    typer.Option(
        help="Where environments live, in worlds of 256; local: threads; ray: actors of a Ray cluster, any of which"
        " may die; data-parallel: processes that all simulate and learn. With the learner, as one batch, if left"
        " out. docs/fleet.md."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Workers of the fleet, or processes (1 if left out); a fleet's bits do not depend on it."
    ),
]
Lag = Annotated[
    int | None,
    typer.Option(
        help="0: rollouts act with the newest parameters; 1: with those before, while the learner learns (0 if left"
        " out)."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Head of the Ray cluster (one of this machine alone if left out); --threads is then each worker's.",
    ),
]


def fleet_of(
    kind: str | None, workers: int | None, lag: int | None, address: str | None
) -> FleetConfig | None:
    """Returns the fleet that options ask for; None without one.

    Raises:
      ConfigError: they do not go together.
    """
    if kind is None:
        given = {"--workers": workers, "--lag": lag, "--address": address}
        named = [name for name, value in given.items() if value is not None]
        check(not named, f"{', '.join(named)} belong to a fleet: add --fleet local or --fleet ray.")
        return None
    return library("learning.fleet.base").FleetConfig(kind, workers or 1, lag or 0, address or "")


@command("train-teacher")
def train_teacher(
    phase: Annotated[
        Task, typer.Option(help="What to learn, such as: pick up a block, or insert the peg.")
    ],
    preset: Annotated[
        Literal["quick", "default", "transfer"],
        typer.Option(
            help="quick: about a minute, to see that all works; default: the real one; transfer (pick,"
            " insert): on robots that differ, evaluated by eval-v2."
        ),
    ] = "default",
    out: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder of the run: metrics, checkpoints, policy (runs/PHASE if left out)."
        ),
    ] = None,
    resume: Resume = False,
    finish: Finish = False,
    settings: Settings = None,
    seed: Seed = 0,
    threads: Threads = 0,
    minutes: Minutes = None,
    pick: Annotated[
        str | None,
        typer.Option(help="Pick policy that insertion follows (params/pick if left out)."),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="What to go on with, under other settings: a policy of the same task, a run of it, "
            "finished or not, or a checkpoint in one; a policy of one arm, such as params/pick, drives "
            "the first of two (a random policy if left out)."
        ),
    ] = None,
    engine: Engine = "auto",
    world_params: WorldParams = None,
    fleet: Fleet = None,
    workers: Workers = None,
    lag: Lag = None,
    address: Address = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train a teacher by reinforcement learning (PPO) on the exact state.

    Ctrl-C once saves a checkpoint and stops; --resume continues to the same result as an
    unbroken run, on the engine that the run began with. Metrics go to metrics.jsonl and to
    TensorBoard files in the run's folder.
    """
    teacher, loggers = library("learning.ppo.train"), loggers_of(log)
    folder = out or pathlib.Path("runs") / phase
    with progress_display() as progress:
        result = teacher.train(
            phase=phase,
            preset=preset,
            out=folder,
            resume=resume,
            finish=finish,
            overrides=[*measured_settings(world_params, "env.variation"), *(settings or [])],
            seed=seed,
            threads=threads,
            minutes=minutes,
            progress=progress,
            pick=None if pick is None else policy_folder(pick),
            engine=engine,
            start_from=None if start_from is None else policy_folder(start_from),
            loggers=loggers,
            fleet=fleet_of(fleet, workers, lag, address),
        )
    show_run(result, f"Trained {phase} in {folder}", as_json)
    tell_if_stopped(result, ways_on(folder))


@command("collect-switch-states")
def collect_switch_states(
    out: Annotated[pathlib.Path, typer.Option(help="The file to write (.npz).")],
    pick: Annotated[str, typer.Option(help="Folder of the pick policy.")] = "params/pick",
    preset: Annotated[Preset, typer.Option(help="How many, as in train-teacher.")] = "default",
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Collect the states in which the pick policy hands over to the insertion policy.

    train-teacher --phase insert does this by itself where the file is missing.
    """
    collecting = library("tasks.insert.switch_states")
    settings = library("learning.ppo.presets").find_preset("insert", preset).collect
    with progress_display() as progress:
        states = collecting.ensure(out, policy_folder(pick), settings, seed, threads, progress)
    variants, rounds = states.pool.qpos.shape[:2]
    result = {
        "out": str(out),
        "pick": states.pick,
        "variants": variants,
        "states": variants * rounds,
        "switched_rate": states.rate,
    }
    show(result, f"Switch states of {pick}", as_json)


def measured_settings(world_params: pathlib.Path | None, prefix: str) -> list[str]:
    """Returns settings of a run whose ranges of robots are those that a robot file names; none without a file."""
    if world_params is None:
        return []
    return library("calibration.ranges").settings(world_params, prefix)


def show_run(result: JsonObject, title: str, as_json: bool) -> None:
    """Prints the result of a training; for people its reward as a curve, and of its last figures the rates alone.

    Args:
      result: of the training, with its folder ("out") and last figures ("metrics").
      title: above the table.
      as_json: whether all of it is printed, as JSON.
    """
    if as_json:
        show(result, title, as_json)
        return
    rates = {
        name: value
        for name, value in result["metrics"].items()
        if name.split("/")[0] in ("train", "eval") and value
    }
    show({**result, "metrics": rates}, title, as_json)
    curve = library("learning.run.curves").text_curve(result["out"])
    if curve:
        text = "\n".join(["", "Reward per step, exploring policy", *curve])
        Console().print(text, highlight=False, markup=False, soft_wrap=True)


def ways_on(folder: pathlib.Path) -> str:
    """Returns what can be done with a training that was stopped early."""
    return f"--resume --out {folder} continues; with --finish it writes what has been learnt"


def tell_if_stopped(result: JsonObject, how: str) -> None:
    """Says how a run that was stopped early goes on."""
    if not result["finished"]:
        Console(stderr=True).print(
            f"Stopped early: {how}.", highlight=False, markup=False, soft_wrap=True
        )
