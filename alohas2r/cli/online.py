"""Commands that teach where the robot stands: demonstrations, and learning from them by doing."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from alohas2r.cli.app import Json, Seed, command, library
from alohas2r.cli.display import show
from alohas2r.cli.options import Resume, Settings, Stepped
from alohas2r.cli.run_display import live

if TYPE_CHECKING:
    from alohas2r.deployment.online.director import Progress
    from alohas2r.deployment.online.stage import Ended

Task = Annotated[Literal["reach", "pick"], typer.Argument(help="What is learnt.")]
Robot = Annotated[
    Literal["sim", "emulated"],
    typer.Option(
        help="sim: simulated arms; emulated: the arms' own driver on emulated servos, with drawn cameras."
    ),
]
Changed = Annotated[
    str,
    typer.Option(
        "--world-params",
        metavar="peg=MM,delay=STEPS,camera=MM:DEG",
        help="In a world that differs from the nominal one, for acting and evaluations: a peg of another width (20),"
        " commands that come later by steps of 50 ms, wrist cameras moved to their right and turned to their left.",
    ),
]


@command("demonstrate")
def demonstrate(
    task: Task,
    out: Annotated[pathlib.Path, typer.Option(help="A new folder for the log.")],
    by: Annotated[
        Literal["script", "keyboard"],
        typer.Option(
            help="Who shows it. script: a rule that knows where the object is; keyboard: you, in this terminal."
        ),
    ] = "script",
    episodes: Annotated[int, typer.Option(min=1, help="How many that succeed.")] = 10,
    robot: Robot = "sim",
    stepped: Stepped = False,
    world_params: Changed = "",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record demonstrations of a task on simulated or emulated arms, in the log that `learn` reads.

    Whether one succeeded is judged by the reward that the robot computes itself. See docs/online.md.
    """
    demos, rigs = library("deployment.online.demonstrate"), library("deployment.rig")
    config = demos.DemoConfig(task, by, episodes, seed)
    params = library("sim.changed").parse(world_params)
    rig = rigs.RigConfig(robot, stepped=stepped, params=params)
    with contextlib.ExitStack() as stack:
        rule = on_step = None
        if by == "keyboard":
            say = Console(stderr=True).print
            rule = stack.enter_context(library("deployment.online.keyboard").Keyboard(say))
        else:
            on_step = stack.enter_context(live(episodes, False))
        result = demos.demonstrate(config, rig, out, None, on_step, rule)
    show(result, f"Demonstrated {task} in {out}", as_json)


@command("learn")
def learn(
    task: Task,
    demos: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Folder of demonstrations; may be given several times."),
    ] = None,
    arm: Annotated[
        Literal["residual", "warm", "rlpd", "bc"],
        typer.Option(
            help="How. residual: what cloning gives, corrected by reinforcement; warm: reinforcement that begins with"
            " cloning; rlpd: reinforcement from nothing, with the demonstrations in each batch; bc: cloning alone."
        ),
    ] = "residual",
    robot: Robot = "sim",
    minutes: Annotated[float, typer.Option(min=0.01, help="Of acting, resets left out.")] = 30.0,
    stepped: Stepped = False,
    world_params: Changed = "",
    resets: Annotated[
        Literal["robot", "placed"] | None,
        typer.Option(
            help="How episodes begin anew. robot: it goes back itself (pick); placed: the simulation puts everything"
            " to a new start (reach)."
        ),
    ] = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of the run (runs/online-TASK-ARM if left out)."),
    ] = None,
    resume: Resume = False,
    offline: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Folder of an earlier run, whose decisions are learnt from as well."),
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn a task where the robot stands: ten demonstrations, a reward that it computes itself, half an hour.

    One process acts, behind the guard, and writes the run's log; another learns from it and publishes weights, which
    are taken between episodes. Either may be killed: --resume goes on, with --stepped to the same bits. It is evaluated
    unaided every five minutes of acting, and at the end by 200 episodes. See docs/online.md.
    """
    online = library("deployment.online.learn")
    folder = out or pathlib.Path("runs") / f"online-{task}-{arm}"
    config = online.LearnConfig(
        task,
        arm,
        tuple(str(demo) for demo in demos or ()),
        (f"minutes={minutes}", *(settings or ())),
        robot,
        stepped,
        resets or "",
        seed,
        offline=tuple(str(earlier) for earlier in offline or ()),
        world=library("sim.changed").parse(world_params),
    )
    with _episodes() as tell:
        result = online.learn(config, folder, resume, None, tell)
    rows = (
        {} if as_json else {"evaluations": "; ".join(map(_said, result["evaluations"])) or "none"}
    )
    show({**result, **rows}, f"Learnt {task} in {folder}", as_json)


def _said(row: dict[str, float]) -> str:
    return f"{row['minutes']:.1f} min: {row['success']:.2f} of {row['episodes']}"


@contextlib.contextmanager
def _episodes() -> Iterator[Callable[[Progress, Ended], None]]:
    """Gives what shows a line for each episode, on stderr; keeps stdout for the result."""
    console = Console(stderr=True)

    def tell(progress: Progress, episode: Ended) -> None:
        kind = "evaluation" if episode.plan.evaluation else f"{progress.minutes:.1f} min"
        came = (
            "the guard ended it" if episode.aborted else "done" if episode.success else "not done"
        )
        share = f", {progress.successes} of {progress.episodes} so far"
        console.print(
            f"episode {episode.plan.number + 1} ({kind}): {came} after {episode.steps} steps{share}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    with contextlib.redirect_stdout(sys.stderr):
        yield tell
