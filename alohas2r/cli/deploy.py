"""Commands around real, emulated and simulated arms."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alohas2r.cli.app import Json, Seed, command, library
from alohas2r.cli.display import show, working
from alohas2r.cli.options import API_KEY, Cameras, Ports, RobotFile, or_shipped
from alohas2r.cli.report import ReportFolder, check_report, command_line, tell_written
from alohas2r.cli.run_display import live
from alohas2r.cli.soak import run_soak
from alohas2r.core.plain import plain
from alohas2r.core.types import Untyped
from alohas2r.embodiment.robots import REAL, RobotName
from alohas2r.errors import ConfigError, RobotFault


@command("deploy", "Deploy")
def deploy(
    robot: Annotated[
        RobotName,
        typer.Option(
            help="aloha: two arms on their serial ports; aloha-ros: through Interbotix' ROS nodes; "
            "emulated: the same driver on emulated servos; sim: simulated arms."
        ),
    ],
    policy: Annotated[
        pathlib.Path | None, typer.Option(help="The exported policy (.onnx).", callback=or_shipped)
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help=f"Address of a policy server, such as ws://host:8000; its key from {API_KEY}."
        ),
    ] = None,
    mode: Annotated[
        Literal["dry-run", "shadow", "slow", "full"] | None,
        typer.Option(
            help="dry-run: no torque; shadow: read and log only; slow or full: move. "
            "slow on real arms, full on others, if left out."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many times.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.05, help="How long each takes at most.")] = 10.0,
    stepped: Annotated[
        bool,
        typer.Option(
            "--stepped",
            help="Let simulated time stand still while the loop works: no pace to keep.",
        ),
    ] = False,
    world: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml",
            help="--robot sim in another simulation: a table of names, or a shipped one such as "
            "gym-aloha; see docs/worlds.md.",
        ),
    ] = "",
    seed: Seed = 0,
    reset_seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="How long a person takes to put the parts back between episodes; a key if left out.",
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Show both wrist views in the terminal.")
    ] = False,
    log: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write everything to a new file; real arms always do (runs/deploy/)."),
    ] = None,
    ports: Ports = None,
    cameras: Cameras = None,
    recordings: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LEFT RIGHT", help="Recordings (.db3) in place of the cameras."),
    ] = None,
    stub_cameras: Annotated[
        bool,
        typer.Option("--stub-cameras", help="Noise in place of drawn pictures, to time the loop."),
    ] = False,
    exposure_us: Annotated[
        float | None,
        typer.Option(min=1, max=165_000, help="Fixed exposure (µs); automatic if left out."),
    ] = None,
    gripper_closed: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LEFT RIGHT",
            help="Servo angles (rad) at which the fingers touch, if not the scene's.",
        ),
    ] = None,
    any_delay: Annotated[
        bool,
        typer.Option(
            "--any-delay",
            help="Run although arms or cameras are later than any the policy was trained for.",
        ),
    ] = False,
    soak_hours: Annotated[
        float | None,
        typer.Option(min=0.01, help="Make runs on emulated arms for so long."),
    ] = None,
    fuzz_runs: Annotated[
        int | None,
        typer.Option(min=1, help="So many short runs on emulated arms, with faults in each."),
    ] = None,
    faults: Annotated[
        Literal["random", "none"],
        typer.Option(help="What goes wrong in a soak: all kinds of docs/safety.md, or nothing."),
    ] = "random",
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Run an exported policy on two arms at 20 Hz, guarded.

    Read docs/safety.md before torque goes on. Ctrl-C once: the arms stop following the policy and
    retreat to the sleep pose, where torque goes off. Twice: they hold at once.

    After an episode the arms set down what they hold and fold up. Torque is off while a person puts the parts back.

    On emulated and simulated arms, episode i of a seed begins as in evaluate, and is judged alike.
    """
    if soak_hours is not None or fuzz_runs is not None:
        run_soak(robot, policy, soak_hours, fuzz_runs, faults, seed, stepped, stub_cameras, as_json)
        return
    real = robot in REAL
    _check_options(robot, ports, seed, reset_seconds, policy, server)
    rigs, configs = library("deployment.rig"), library("deployment.config")
    robots = library("deployment.robot_file")
    known = robots.load(robot_file) if real else None
    bare = recordings is None and not stub_cameras
    settings = robots.rig_settings(known, ports, cameras, exposure_us, gripper_closed, bare)
    rig = rigs.RigConfig(
        robot,
        stepped=stepped,
        recordings=recordings,
        stub_cameras=stub_cameras,
        seed=seed,
        world=world,
        **settings,
    )
    config = configs.DeployConfig(
        mode=mode or ("slow" if real else "full"), episodes=episodes, episode_s=seconds
    )
    if real and log is None:
        log = pathlib.Path("runs/deploy") / time.strftime("%Y%m%d-%H%M%S.run")
    pause = _pause(reset_seconds) if real and config.powered and episodes > 1 else None
    with live(config.episodes, view) as on_step:
        result = library("deployment.deploy").deploy(
            rig,
            config,
            policy,
            server,
            os.environ.get(API_KEY, ""),
            log,
            on_step,
            pause,
            any_delay,
        )
    _show(result, f"Ran {result['policy']} on {robot}", as_json)


def _check_options(
    robot: str,
    ports: tuple[str, str] | None,
    seed: int,
    reset_seconds: float | None,
    policy: pathlib.Path | None,
    server: str | None,
) -> None:
    """Raises ConfigError for options that do not go together."""
    real = robot in REAL
    if ports is not None and robot != "aloha":
        raise ConfigError(f"--ports belongs to --robot aloha, not to {robot}.")
    if real and seed:
        raise ConfigError("--seed belongs to simulated episodes, not to real arms.")
    if not real and reset_seconds is not None:
        raise ConfigError("--reset-seconds belongs to real arms; simulated parts are put back.")
    if (policy is None) == (server is None):
        raise ConfigError("Give one of --policy FILE and --server URL.")


def _pause(reset_seconds: float | None) -> Untyped:
    """Returns what waits for a person between episodes: for a key, or for some seconds."""
    pauses = library("deployment.pause")
    return pauses.KeyPause(_say) if reset_seconds is None else pauses.TimedPause(reset_seconds)


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


@command("emulate-robot", "Deploy")
def emulate_robot(
    directory: Annotated[
        pathlib.Path, typer.Option("--dir", help="Where the ports left and right appear.")
    ],
    seed: Seed = 0,
    factory_new: Annotated[
        bool,
        typer.Option(
            "--factory-new", help="Servos that nobody has set up, to practise setup-arms."
        ),
    ] = False,
) -> None:
    """Keep two emulated arms running, each a serial port with nine Dynamixel servos.

    Any software for real arms can use them; behind them is the simulated scene, in real time.
    Ctrl-C ends it.
    """
    server = library("robots.emulator.server")
    console = Console(stderr=True)

    def ready() -> None:
        console.print(
            f"Serial ports: {directory / 'left'} {directory / 'right'} (Ctrl-C ends)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    config = server.EmulatorConfig(seed=seed, set_up=not factory_new)
    server.serve(config, directory, ready)


@command("record-camera", "Deploy")
def record_camera(
    out: Annotated[pathlib.Path, typer.Argument(help="The recording, a new file (.db3).")],
    seconds: Annotated[float, typer.Option(min=0.1, help="For how long.")] = 10.0,
    serial: Annotated[
        str | None, typer.Option(help="Serial number of the camera, if there are several.")
    ] = None,
    exposure_us: Annotated[
        float | None,
        typer.Option(min=1, max=165_000, help="Fixed exposure (µs); automatic if left out."),
    ] = None,
    simulated: Annotated[
        Literal["left", "right"] | None,
        typer.Option(help="Record the simulated wrist camera of an arm that moves instead."),
    ] = None,
    size: Annotated[
        int, typer.Option(min=32, max=480, help="Side of simulated pictures (pixels).")
    ] = 96,
    stereo: Annotated[
        bool,
        typer.Option(
            "--stereo", help="The right imager's grey as well, for policies that see pairs."
        ),
    ] = False,
) -> None:
    """Record a RealSense wrist camera, colour and depth, for deploy --recordings."""
    if out.suffix != ".db3":
        raise ConfigError(f"{out} must end in .db3, as librealsense names its recordings.")
    if simulated is not None and (serial is not None or exposure_us is not None):
        raise ConfigError("--simulated needs no camera: leave out --serial and --exposure-us.")
    recorder = library("robots.realsense.record")
    with working("Recording"):
        if simulated is not None:
            film = library("robots.simulated").film(simulated, seconds, size=size, paired=stereo)
            count = recorder.write_recording(out, film)
        else:
            config = library("robots.realsense.config").RealSenseConfig(
                exposure_us=exposure_us, stereo=stereo
            )
            count = recorder.record(out, seconds, serial, config)
    Console(stderr=True).print(
        f"Wrote {count} pictures to {out}", highlight=False, markup=False, soft_wrap=True
    )


@command("replay", "Deploy")
def replay(
    run: Annotated[pathlib.Path, typer.Argument(help="The log of a run.", show_default=False)],
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for plots and video (beside the log).")
    ] = None,
    policy: Annotated[
        pathlib.Path | None,
        typer.Option(help="The exported policy, if not where the log says.", callback=or_shipped),
    ] = None,
    report: ReportFolder = None,
    export: Annotated[
        pathlib.Path | None,
        typer.Option(help="Also write the run as a data set, a new folder; see docs/datasets.md."),
    ] = None,
    form: Annotated[
        Literal["lerobot", "npz", "hdf5"],
        typer.Option("--format", help="Of --export, as in record."),
    ] = "lerobot",
    as_json: Json = False,
) -> None:
    """Look at a run afterwards: plots, video, timing, and whether the policy acts the same again.

    Exit code 1 if the policy that acted does not give the logged actions.
    """
    replays = library("deployment.replay")
    check_report(report)
    if export is not None:
        library("datasets.formats").check_writable(export, form)
    with working("Replaying"):
        result = replays.replay(run, out, policy)
    _show(result, f"Run {run}", as_json)
    if report is not None:
        again = command_line("replay", run, policy=policy)
        logged = library("deployment.log").read_run(run)
        page = library("deployment.replay_page").write(logged, result, report, again)
        tell_written([page])
    if export is not None:
        recording = library("datasets.runs").from_run(run)
        library("datasets.formats").write(export, form, recording.about, recording.episodes)
        tell_written([export])
    again = result["policy"]
    if again is not None and again["same_policy"] and not again["reproduced"]:
        Console(stderr=True).print(
            f"[red]Error:[/red] The policy's actions differ from the logged ones by "
            f"{again['difference']:.2g}.",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(1)


@command("doctor", "Deploy")
def doctor(
    policy: Annotated[
        pathlib.Path | None,
        typer.Option(help="An exported policy that must be sound.", callback=or_shipped),
    ] = None,
    ports: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LEFT RIGHT", help="Serial ports that must work."),
    ] = None,
    cameras: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LEFT RIGHT", help="Serial numbers that must be plugged in."),
    ] = None,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Check this computer, its packages, and whatever arms, cameras and policy there are.

    Each line says pass, warn or fail, and what to do. Exit code 1 if anything fails. Nothing is
    changed and nothing moves.
    """
    examiner = library("deployment.doctor")
    with working("Looking"):
        lines = examiner.examine(ports, policy, cameras, robot_file)
    failed = [line for line in lines if line.status == "fail"]
    if as_json:
        rows = [
            {"name": line.name, "status": line.status, "text": line.text, "remedy": line.remedy}
            for line in lines
        ]
        typer.echo(json.dumps({"healthy": not failed, "lines": rows}))
    else:
        table = Table(show_header=False, box=None)
        colours = {"pass": "green", "warn": "yellow", "fail": "red"}
        for line in lines:
            remedy = f"\n[bold]{escape(line.remedy)}[/bold]" if line.remedy else ""
            status = f"[{colours[line.status]}]{line.status}[/]"
            table.add_row(status, escape(line.name), escape(line.text) + remedy)
        Console().print(table)
    if failed:
        raise typer.Exit(1)


@command("torque-off", "Deploy")
def torque_off(
    ports: Ports = None,
    anywhere: Annotated[
        bool,
        typer.Option(
            "--anywhere", help="Even where the arms do not rest. They fall: support them."
        ),
    ] = False,
    side: Annotated[
        Literal["left", "right"] | None, typer.Option(help="One arm only; both if left out.")
    ] = None,
    reboot: Annotated[
        list[str] | None,
        typer.Option(metavar="SIDE:ID", help="Restart a servo with an error, such as left:4."),
    ] = None,
    robot_file: RobotFile = None,
) -> None:
    """Switch torque off on both arms, for instance after a run ended in a hold.

    Lets go of every servo that answers, and says which did not. Refuses unless the arm rests in
    the sleep pose, because elsewhere it falls. A servo that shut
    down by a hardware error is restarted with --reboot, after its cause is known.
    """
    arm = library("robots.dynamixel.arm")
    wanted: dict[str, list[int]] = {}
    for text in reboot or []:
        where, _, number = text.partition(":")
        if where not in ("left", "right") or not number.isdigit() or int(number) not in arm.IDS:
            raise ConfigError(f"--reboot {text} must be left:ID or right:ID with an id of 1..9.")
        if side not in (None, where):
            raise ConfigError(f"--reboot {text} belongs to the other arm than --side {side}.")
        wanted.setdefault(where, []).append(int(number))
    robots = library("deployment.robot_file")
    where = robots.rig_settings(robots.load(robot_file), ports)["ports"]
    config = arm.DynamixelConfig(ports=where)
    sides = ("left", "right") if side is None else (side,)
    with working("Switching off"):
        results = library("deployment.recovery").let_go(config, sides, anywhere, wanted)
    stuck = [str(one) for one in results if not one.complete]
    if not stuck:
        which = "both arms" if side is None else f"the {side} arm"
        Console(stderr=True).print(f"Torque is off on {which}.", highlight=False)
        return
    done = [str(one) for one in results if one.complete]
    raise RobotFault(" ".join(done + stuck))


def _show(result: Mapping[str, Untyped], title: str, as_json: bool) -> None:
    """Prints a result; as JSON with the columns by episode, which pair it with `evaluate --csv`."""
    if as_json:
        typer.echo(json.dumps(plain(result), allow_nan=False))
        return
    lists = {name: "; ".join(value) for name, value in result.items() if isinstance(value, list)}
    show({**result, **{name: text or "none" for name, text in lists.items()}}, title, as_json)
