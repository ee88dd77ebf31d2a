"""Commands that teach where the robot stands: demonstrations, and learning from them by doing."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.console import Console

from alohas2r.cli.app import Json, Seed, command, library
from alohas2r.cli.display import announcing, show
from alohas2r.cli.options import (
    API_KEY,
    Cameras,
    Host,
    Ports,
    Resume,
    RobotFile,
    Settings,
    Stepped,
)
from alohas2r.cli.run_display import live
from alohas2r.config import check
from alohas2r.core.types import Untyped
from alohas2r.embodiment.robots import REAL, RobotName

if TYPE_CHECKING:
    from alohas2r.deployment.online.director import Progress
    from alohas2r.deployment.online.stage import Ended
    from alohas2r.deployment.online.tempo import TempoEpisode

Task = Annotated[Literal["reach", "pick", "insert"], typer.Argument(help="What is learnt.")]
Base = Annotated[
    pathlib.Path | None,
    typer.Option(help="Of insert: the exported policy (.onnx); the shipped student's if left out."),
]
Robot = Annotated[
    RobotName,
    typer.Option(
        help="sim: simulated arms; emulated: the arms' own driver on emulated servos, with drawn cameras; aloha,"
        " aloha-ros: real arms; of reach and pick the left one acts."
    ),
]
Mode = Annotated[
    Literal["slow", "full"] | None,
    typer.Option(help="At whose speed limits real arms move (slow)."),
]
Changed = Annotated[
    str,
    typer.Option(
        "--world-params",
        metavar="peg=MM,delay=STEPS,camera=MM:DEG,sensor=0|1",
        help="In a world that differs from the nominal one, for acting and evaluations: a peg of another width (20),"
        " commands that come later by steps of 50 ms, wrist cameras moved to their right and turned to their left,"
        " pictures with the noise of a sensor.",
    ),
]


@command("demonstrate")
def demonstrate(
    task: Task,
    out: Annotated[pathlib.Path, typer.Option(help="A new folder for the log.")],
    by: Annotated[
        Literal["script", "keyboard", "leader", "spacemouse", "student"] | None,
        typer.Option(
            help="Who shows it. script: a rule that knows where the object is; keyboard: you, in this terminal;"
            " leader: you, with a leader arm; spacemouse: you, with a SpaceMouse; student: of insert, the exported"
            " student itself (script; student)."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many that succeed.")] = 10,
    tries: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of insert, instead of --episodes: so many, whatever comes of them, each of which goes on for a second"
            " after success: what train-reward learns from.",
        ),
    ] = 0,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge",
            help="Of insert, you say what succeeded, by keys in this terminal: on real arms nobody else knows.",
        ),
    ] = False,
    robot: Robot = "sim",
    stepped: Stepped = False,
    world_params: Changed = "",
    base: Base = None,
    mode: Mode = None,
    ports: Ports = None,
    cameras: Cameras = None,
    robot_file: RobotFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record demonstrations of a task in the log that `learn` reads.

    Whether one succeeded is judged by the reward that the robot computes itself; of insert by what only a simulation
    knows, or by you (--judge). Real arms set down what they hold and fold up after each, and let go until you press a
    key: read docs/safety.md first. See docs/online.md.
    """
    demos, rigs = library("deployment.online.demonstrate"), library("deployment.rig")
    check(base is None or task == "insert", "--base goes with insert, which that policy shows")
    check(
        not judge or task == "insert", "--judge goes with insert: a robot judges the others itself"
    )
    by = by or ("student" if task == "insert" else "script")
    config = demos.DemoConfig(task, by, episodes, seed, tries)
    params = library("sim.changed").parse(world_params)
    real = robot in REAL
    settings = _real_settings(robot, mode, ports, cameras, robot_file)
    rig = rigs.RigConfig(robot, stepped=stepped, params=params, **settings)
    with contextlib.ExitStack() as stack:
        person = on_step = pause = None
        if real and (judge or by in demos.PERSONS):
            pause = library("deployment.pause").KeyPause(_say(), again=False)
        if by in demos.PERSONS:
            hand = library("deployment.online.hands").find_hand(by, robot_file)
            keys = library("deployment.online.keyboard").Keyboard(_say(), None, hand)
            person = stack.enter_context(keys)
        elif judge:
            judging = library("deployment.online.coach").Judge(_say())
            person = stack.enter_context(judging)
        else:
            on_step = stack.enter_context(live(tries or episodes, False))
        result = demos.demonstrate(config, rig, out, base, on_step, person, mode or "slow", pause)
    show(result, f"Demonstrated {task} in {out}", as_json)


def _real_settings(
    robot: str,
    mode: str | None,
    ports: tuple[str, str] | None,
    cameras: tuple[str, str] | None,
    robot_file: pathlib.Path | None,
) -> dict[str, Untyped]:
    """Returns what a rig of real arms needs, from options and robot file; nothing of others, which take no options."""
    if robot not in REAL:
        check(
            not (mode or ports or cameras),
            "--mode, --ports and --cameras go with real arms: --robot aloha or aloha-ros",
        )
        return {}
    robots = library("deployment.robot_file")
    return dict(robots.rig_settings(robots.load(robot_file), ports, cameras))


@command("learn")
def learn(
    task: Task,
    demos: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Folder of demonstrations; may be given several times."),
    ] = None,
    arm: Annotated[
        Literal["residual", "warm", "rlpd", "ferm", "bc", "tempo"],
        typer.Option(
            help="How. residual: what cloning gives, of insert an exported student, corrected by reinforcement; warm:"
            " reinforcement that begins with cloning; rlpd: reinforcement from nothing, with the demonstrations in"
            " each batch; ferm: from nothing, with an encoder of the pictures that is learnt as well; bc: cloning"
            " alone; tempo: of insert, the same policy at several speeds, measured."
        ),
    ] = "residual",
    encoder: Annotated[
        Literal["student", "supervised", "contrastive", "scratch"] | None,
        typer.Option(
            help="What looks at pictures of reach and pick. student: the shipped student's first layers (all arms but"
            " ferm); supervised, contrastive: learnt of the demonstrations' pictures beforehand; scratch: random (ferm"
            " alone). With ferm (contrastive if left out) it goes on learning; with the others (student) it stays."
        ),
    ] = None,
    base: Base = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|person|truth",
            help="Of insert --arm residual, which needs it: a classifier of alohas2r train-reward; person: you say what"
            " succeeded, by the keys of --coach; truth: whether the peg is in, as only a simulation knows.",
        ),
    ] = None,
    tempo: Annotated[
        list[float] | None,
        typer.Option(
            help="Of insert --arm tempo: factor of the policy's action scale, 0.4 to 1.2; may be given several times"
            " (0.4, 0.6, 0.8, 1)."
        ),
    ] = None,
    robot: Robot = "sim",
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Of acting, resets left out (30); of insert from the switch to insertion on.",
        ),
    ] = None,
    stepped: Stepped = False,
    world_params: Changed = "",
    resets: Annotated[
        Literal["robot", "placed"] | None,
        typer.Option(
            help="How episodes begin anew. robot: it goes back by itself (pick, insert); placed: the simulation, of"
            " real arms a person, puts everything to a new start (reach)."
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
    learner: Annotated[
        str | None,
        typer.Option(
            metavar="ws://HOST:PORT",
            help=f"Where alohas2r learner learns, on another machine; its key from {API_KEY}.",
        ),
    ] = None,
    coach: Annotated[
        Literal["keyboard", "leader", "spacemouse"] | None,
        typer.Option(
            help="Help while it learns, in this terminal: a key takes over and gives back, others say what succeeded;"
            " in between you lead with keys, a leader arm or a SpaceMouse."
        ),
    ] = None,
    mode: Mode = None,
    ports: Ports = None,
    cameras: Cameras = None,
    robot_file: RobotFile = None,
    settings: Settings = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn a task where the robot stands: ten demonstrations, a reward that it computes itself, half an hour.

    One process acts, behind the guard, and writes the run's log; another learns from it and publishes weights, which
    are taken between episodes. Either may be killed: --resume goes on, with --stepped to the same bits. It is evaluated
    unaided every five minutes of acting, and at the end by 200 episodes; on real arms, which rest while you put things
    back and press a key, at the end by 20. Read docs/safety.md before. Of insert, an exported student is corrected
    (--arm residual), or measured at several tempos of a simulation and exported with the best (--arm tempo). See
    docs/online.md.
    """
    folder = out or pathlib.Path("runs") / f"online-{task}-{arm}"
    if arm == "tempo":
        others = demos or offline or resets or reward or learner or coach or encoder
        others = others or minutes is not None
        check(
            task == "insert" and not others,
            "--arm tempo goes with insert: without --demos, --offline, --resets, --reward, --minutes, --learner,"
            " --coach, --encoder",
        )
        chosen = None if base is None else str(base)
        check(robot in ("sim", "emulated"), "--arm tempo needs --robot sim or emulated")
        how = _Tempo(
            chosen, tuple(tempo or ()), robot, stepped, world_params, tuple(settings or ())
        )
        _learn_tempo(how, folder, resume, seed, as_json)
        return
    check(not tempo, "--tempo goes with insert --arm tempo")
    check(base is None or task == "insert", "--base goes with insert")
    online = library("deployment.online.learn")
    config = library("deployment.online.runs").LearnConfig(
        task,
        arm,
        tuple(str(demo) for demo in demos or ()),
        (f"minutes={30.0 if minutes is None else minutes}", *(settings or ())),
        robot,
        stepped,
        resets or "",
        seed,
        "" if base is None else str(base),
        offline=tuple(str(earlier) for earlier in offline or ()),
        world=library("sim.changed").parse(world_params),
        reward=reward or "",
        encoder=encoder or "",
    )
    given = _real_settings(robot, mode, ports, cameras, robot_file)
    rigs = library("deployment.rig")
    rig = rigs.RigConfig(robot, params=config.world, **given) if given else None
    with contextlib.ExitStack() as stack:
        person = pause = None
        if rig is not None:
            pause = library("deployment.pause").KeyPause(_say(), again=False)
        if coach is not None:
            keys = _coach(coach, task, robot_file)
            person = stack.enter_context(keys)
        tell = stack.enter_context(_episodes())
        key = os.environ.get(API_KEY, "")
        result = online.learn(
            config,
            folder,
            resume,
            None,
            tell,
            learner or "",
            key,
            person,
            rig,
            mode or "slow",
            pause,
        )
    rows = (
        {} if as_json else {"evaluations": "; ".join(map(_said, result["evaluations"])) or "none"}
    )
    show({**result, **rows}, f"Learnt {task} in {folder}", as_json)


def _coach(by: str, task: str, robot_file: pathlib.Path | None) -> Untyped:
    """Returns the person who helps, with what their hand moves: of an insertion one for each arm."""
    hands = library("deployment.online.hands")
    if task != "insert":
        hand = hands.find_hand(by, robot_file)
        return library("deployment.online.coach").Coach(_say(), None, hand)
    both = [hands.find_hand(by, robot_file, side) for side in ("left", "right")]
    return library("deployment.online.insert_coach").InsertCoach(_say(), None, both)


@command("train-reward")
def train_reward(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(help="Folders of demonstrate insert --tries, and of learn insert."),
    ],
    out: Annotated[pathlib.Path, typer.Option(help="Folder of the classifier.")],
    base: Base = None,
    settings: Settings = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn to tell an insertion from logs with successes and failures: the reward of `learn insert --reward`.

    By the wrists' pictures as the student sees them, and what the arms feel. Episodes that began otherwise are left out
    of learning, and tell how often the reward is given without an insertion, and missing with one. See docs/online.md.
    """
    reward = library("learning.online.reward")
    config = library("config").override(reward.RewardConfig(), settings or ())
    student = base or library("deployment.online.opened").shipped_base()
    with contextlib.redirect_stdout(sys.stderr):
        result = reward.train_reward(runs, student, out, config, seed)
    parts = ("learnt_from", "held_out")
    rows = {} if as_json else {part: _told(result[part]) for part in parts}
    if not as_json:
        rows["worlds"] = "; ".join(f"{one}: {_told(row)}" for one, row in result["worlds"].items())
    show({**result, **rows}, f"Learnt the reward in {out}", as_json)


@command("learner")
def learner(
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder of the run here; one that began in it goes on.")
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8001,
    as_json: Json = False,
) -> None:
    """Learn for a robot elsewhere, whose `learn` says --learner ws://HOST:PORT, until Ctrl-C.

    What the robot logs comes here, weights go back. Either side may be killed, and goes on where it was. The key that
    the robot's side must send is taken from ALOHAS2R_API_KEY; where other machines reach it there must be one.
    """
    key = os.environ.get(API_KEY, "")
    server = library("learning.online.server")
    ready = announcing(f"Learning in {out}", key)
    show(server.serve_learner(out, host, port, key, ready), f"Learnt in {out}", as_json)


def _say() -> Callable[[str], None]:
    """Returns what shows a person a line; a report from a port may have brackets, which are no markup."""
    console = Console(stderr=True)
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Tempo(NamedTuple):
    """What `learn insert --arm tempo` was told."""

    base: str | None
    tempos: tuple[float, ...]
    robot: str
    stepped: bool
    world_params: str
    settings: tuple[str, ...]


def _learn_tempo(how: _Tempo, folder: pathlib.Path, resume: bool, seed: int, as_json: bool) -> None:
    """Measures an insertion policy at several tempos and shows the best."""
    online = library("deployment.online.tempo")
    world = library("sim.changed").parse(how.world_params)
    config = online.TempoConfig(
        base=how.base or online.shipped_base(),
        tempos=how.tempos or online.GRID,
        robot=how.robot,
        stepped=how.stepped,
        seed=seed,
        world=world,
    )
    config = library("config").override(config, how.settings)
    console = Console(stderr=True)

    def tell(episode: TempoEpisode) -> None:
        came = "inserted" if episode.success else "not inserted"
        console.print(
            f"tempo {episode.tempo:g}, episode {episode.number + 1} of {episode.episodes}: {came}",
            highlight=False,
            markup=False,
        )

    with contextlib.redirect_stdout(sys.stderr):
        result = online.learn_tempo(config, folder, resume, tell)
    rows = {} if as_json else {"tempos": "; ".join(map(_measured, result["tempos"]))}
    show({**result, **rows}, f"Measured {folder}", as_json)


def _measured(row: Mapping[str, float]) -> str:
    where = " (other starts)" if row["final"] else ""
    return f"{row['tempo']:g}{where}: {row['successes']} of {row['episodes']}"


def _told(row: Mapping[str, int]) -> str:
    return (
        f"{row['false']} of {row['failed']} failures rewarded, {row['true']} of {row['succeeded']} successes,"
        f" {row['early']} before; {row['undecided']} undecided"
    )


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
