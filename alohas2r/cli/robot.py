"""Commands that look at two real arms and set them up."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from alohas2r.cli.app import Json, command, library
from alohas2r.cli.display import show, working
from alohas2r.cli.options import Cameras, MotionSpeed, Ports, RobotFile, Stepped
from alohas2r.core.types import Untyped
from alohas2r.errors import ConfigError

if TYPE_CHECKING:
    from alohas2r.deployment.arm_setup import Change
    from alohas2r.deployment.monitoring import Row

Side = Annotated[
    Literal["left", "right"] | None, typer.Option(help="One arm only; both if left out.")
]


@command("setup-robot", "Deploy")
def setup_robot(
    ports: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LEFT RIGHT", help="Serial ports of both arms."),
    ] = None,
    cameras: Cameras = None,
    upside_down: Annotated[
        Literal["none", "left", "right", "both"] | None,
        typer.Option("--upside-down", help="Which cameras are mounted turned by 180 degrees."),
    ] = None,
    gripper_closed: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LEFT RIGHT", help="Servo angles (rad) at which the fingers just touch."
        ),
    ] = None,
    measure_grippers: Annotated[
        bool,
        typer.Option(
            "--measure-grippers", help="Read those angles now: both grippers closed by hand."
        ),
    ] = False,
    base_distance: Annotated[
        float | None, typer.Option(help="From one arm's waist axis to the other's (m).")
    ] = None,
    table_height: Annotated[
        float | None, typer.Option(help="Of the table's top above the arms' bottom (m).")
    ] = None,
    exposure_us: Annotated[
        float | None, typer.Option(help="Fixed exposure of both cameras (µs).")
    ] = None,
    stream: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="WIDTH HEIGHT", help="Pixels in which both cameras stream (480 270)."),
    ] = None,
    joint_offset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIDE/JOINT=RAD",
            help="By how much a joint's servo reads too much, such as left/waist=0.02.",
        ),
    ] = None,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Write what is known about the arms to robot.toml, step by step.

    Each call adds what it is given and keeps the rest, and says which step comes next. All
    commands around real arms read the file; their options come before it.
    """
    robots = library("deployment.robot_file")
    if measure_grippers and gripper_closed is not None:
        raise ConfigError("Give one of --measure-grippers and --gripper-closed.")
    path = robots.where(robot_file)
    known = robots.load(path) if path.is_file() else robots.RobotFile()
    if measure_grippers:
        with working("Reading the grippers"):
            gripper_closed = library("deployment.monitoring").gripper_angles(ports or known.ports)
    robot = robots.update(
        known,
        ports=ports,
        serials=cameras,
        upside_down=upside_down,
        gripper_closed_rad=gripper_closed,
        base_distance_m=base_distance,
        table_height_m=table_height,
        exposure_us=exposure_us,
        stream_size=stream,
        joint_offsets=joint_offset or (),
    )
    robots.save(robot, path)
    steps = robots.next_steps(robot)
    if as_json:
        typer.echo(json.dumps({"file": str(path), "next": steps}))
        return
    Console().print(path.read_text(), markup=False, highlight=False)
    Console(stderr=True).print(
        f"Wrote {path}. Next: {steps[0]}" if steps else f"Wrote {path}; nothing is missing.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@command("monitor", "Deploy")
def monitor(
    ports: Ports = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="For how long; until Ctrl-C if left out.")
    ] = None,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Show all joints of both arms as they are, live: angles, goals, currents, heat, supply, errors.

    Only reads: no torque, no settings. Move an arm by hand to check signs, zeros and pairs. With
    --json, one reading.
    """
    robots, watching = library("deployment.robot_file"), library("deployment.monitoring")
    settings = robots.rig_settings(robots.load(robot_file), ports)
    with watching.watch(settings["ports"], settings["gripper_closed_rad"]) as look:
        if as_json:
            rows, notes = look()
            typer.echo(json.dumps({"joints": [one._asdict() for one in rows], "notes": notes}))
            return
        begun_s = time.monotonic()
        with Live(console=Console(), refresh_per_second=10) as live:
            try:
                while seconds is None or time.monotonic() - begun_s < seconds:
                    live.update(joints_table(*look()))
                    time.sleep(0.05)
            except KeyboardInterrupt:
                return


def joints_table(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """Returns the joints of both arms, one a line, and what is wrong below."""
    table = Table(
        "joint", "is", "goal", "current", "heat", "supply", "torque", "pair", "says", box=None
    )
    for one in rows:
        unit = "mm" if one.unit == "mm" else "°"
        torque = {True: "on", False: "off", None: "?"}[one.torque]
        table.add_row(
            escape(one.joint),
            _number(one.position, 1, unit),
            _number(one.goal, 1, unit),
            _number(one.current_a, 2, " A"),
            _number(one.temperature_c, 0, " C"),
            _number(one.voltage_v, 1, " V"),
            torque,
            _number(one.pair_gap_deg, 1, "°"),
            f"[red]{escape(one.words)}[/red]" if one.words else "",
        )
    table.caption = escape("; ".join(notes))
    return table


def _number(value: float | None, digits: int, unit: str) -> str:
    return "?" if value is None else f"{value:.{digits}f}{unit}"


def moved_arms(
    robot: str,
    robot_file: pathlib.Path | None,
    ports: tuple[str, str] | None,
    cameras: tuple[str, str] | None,
    cameras_needed: bool,
) -> dict[str, Untyped]:
    """Returns what is known of the arms that a motion moves, as settings of a rig.

    Raises:
      ConfigError: ports or cameras of arms that are not real.
    """
    robots, real = library("deployment.robot_file"), robot == "aloha"
    if not real and (ports is not None or cameras is not None):
        raise ConfigError("--ports and --cameras belong to --robot aloha.")
    known = robots.load(robot_file) if real else None
    return robots.rig_settings(known, ports, cameras, cameras=cameras_needed)


@command("measure-delay", "Deploy")
def measure_delay(
    robot: Annotated[
        Literal["aloha", "emulated", "sim"],
        typer.Option(help="aloha: two real arms; emulated, sim: a rehearsal, nothing is stored."),
    ] = "aloha",
    joint: Annotated[
        str, typer.Option(help="Which joint of each arm moves, by 0.08 rad.")
    ] = "wrist_angle",
    mode: MotionSpeed = "slow",
    stepped: Stepped = False,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="A new folder for log and plot (runs/delay/...).")
    ] = None,
    ports: Ports = None,
    cameras: Cameras = None,
    recordings: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LEFT RIGHT", help="Recordings (.db3) in place of the cameras."),
    ] = None,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Measure how late arms and cameras are, and write it to robot.toml; torque goes on.

    The arms approach the start pose, then one joint of each makes a step and a chirp, guarded as in any run, and the
    arms come to rest. Something with an edge must be in view of both cameras. deploy refuses a policy that was not
    trained for such delays.
    """
    robots, rigs = library("deployment.robot_file"), library("deployment.rig")
    real = robot == "aloha"
    path = robots.where(robot_file)
    settings = moved_arms(robot, robot_file, ports, cameras, recordings is None)
    rig = rigs.RigConfig(robot, stepped=stepped, recordings=recordings, **settings)
    folder = out or pathlib.Path("runs/delay") / time.strftime("%Y%m%d-%H%M%S")
    delays = library("deployment.delays")
    with working("Measuring"):
        run = library("deployment.probe").probe(rig, folder / "delay.run", joint, mode == "full")
        measured = delays.measure(run)
        plot = delays.draw(measured, folder)
    result: dict[str, object] = {
        one.side: {
            "command_delay_s": one.command.seconds,
            "picture_delay_s": one.picture.seconds,
            "command_explained": one.command.explained,
            "picture_explained": one.picture.explained,
        }
        for one in measured
    }
    if real:
        pairs = [(one.command.seconds, one.picture.seconds) for one in measured]
        base = robots.load(robot_file) or robots.RobotFile()
        robots.save(robots.update(base, ports=ports, serials=cameras, delays=pairs), path)
        result["file"] = str(path)
    show({**result, "plot": str(plot), "log": str(folder / "delay.run")}, "Delays", as_json)


@command("check-cameras", "Deploy")
def check_cameras(
    run: Annotated[
        pathlib.Path | None,
        typer.Option(help="Take the pictures of a run's log, in several poses; else those of now."),
    ] = None,
    out: Annotated[
        pathlib.Path, typer.Option(help="Folder for the overlays left.png and right.png.")
    ] = pathlib.Path("runs/cameras"),
    ports: Ports = None,
    cameras: Cameras = None,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Compare what the wrist cameras show with what they show in simulation at the same joint angles.

    Only reads. Says where each camera really sits, and whether the policy was trained with such mounts. In the
    overlays, outlines of the simulation are red; with the mount that was found they are green.
    """
    robots, checks = library("deployment.robot_file"), library("deployment.camera_check")
    if run is not None:
        if ports is not None or cameras is not None:
            raise ConfigError("--ports and --cameras are for the pictures of now; leave out --run.")
        log = library("deployment.log").read_run(run)
        views = {side: checks.views_of(log, side) for side in ("left", "right")}
    else:
        settings = robots.rig_settings(robots.load(robot_file), ports, cameras)
        rig = library("deployment.rig").RigConfig("aloha", size=checks.SIZE, **settings)
        with working("Looking"):
            views = checks.views_now(rig)
    with working("Comparing"):
        found = [checks.check_camera(side, one) for side, one in views.items()]
        paths = checks.save_overlay(found, out)
    result = {
        one.side: {
            "offset_mm": [round(1000 * float(value), 1) for value in one.mount.offset_m],
            "turned_deg": round(one.mount.angle_deg, 2),
            "inside_training": one.inside,
            "upside_down": one.upside_down,
            "difference_mm": round(one.before_mm, 2),
            "explained_to_mm": round(one.after_mm, 2),
            "overlay": str(paths[one.side]),
        }
        for one in found
    }
    show(result, "Wrist cameras", as_json)
    console = Console(stderr=True)
    for one in found:
        if one.upside_down:
            side = one.side
            text = f"The {side} camera is mounted upside down: alohas2r setup-robot --upside-down {side} (or both)."
            console.print(text, highlight=False, markup=False, soft_wrap=True)


@command("setup-arms", "Deploy")
def setup_arms(
    ports: Ports = None,
    side: Side = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    full_grip: Annotated[
        bool,
        typer.Option("--full-grip", help="Raise the grippers' Current_Limit to the servo's own."),
    ] = False,
    robot_file: RobotFile = None,
    as_json: Json = False,
) -> None:
    """Compare every setting of the servos with what a run relies on, and put it right.

    Shows each change before it writes, and asks. Torque must be off; nothing moves.
    """
    if as_json and not yes:
        raise ConfigError("--json cannot ask: add --yes to write, or leave --json out.")
    arms, setup = library("robots.dynamixel.arm"), library("deployment.arm_setup")
    robots = library("deployment.robot_file")
    config = arms.DynamixelConfig(
        ports=robots.rig_settings(robots.load(robot_file), ports)["ports"]
    )
    sides = ("left", "right") if side is None else (side,)
    console = Console(stderr=True)
    with working("Comparing"):
        changes = setup.plan(config, sides, full_grip)
    if not as_json:
        Console().print(changes_table(changes) if changes else "Everything is as it must be.")
    if changes and not (yes or typer.confirm("Write these changes?", err=True)):
        console.print("Nothing was written.", highlight=False)
        raise typer.Exit(1)
    if changes:
        with working("Writing"):
            setup.write(config, changes)
    if as_json:
        typer.echo(json.dumps({"changes": [one._asdict() for one in changes]}))
    elif changes:
        console.print(f"Wrote and verified {len(changes)} settings.", highlight=False)


def changes_table(changes: Sequence[Change]) -> Table:
    """Returns the changes that are to be written, one a line."""
    table = Table("arm", "servo", "setting", "is", "becomes", "otherwise", box=None)
    for one in changes:
        row = (one.side, one.servo, one.setting, one.value, one.becomes, one.why)
        table.add_row(*(escape(str(cell)) for cell in row))
    return table
