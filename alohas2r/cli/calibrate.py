"""Commands that find out which robot it is."""

from __future__ import annotations

import pathlib
import time
from typing import Annotated, Literal

import typer

from alohas2r.cli.app import Json, Seed, Threads, command, library
from alohas2r.cli.display import show, working
from alohas2r.cli.options import Cameras, MotionSpeed, Ports, RobotFile, Stepped
from alohas2r.cli.robot import moved_arms


@command("excite", "Deploy")
def excite(
    robot: Annotated[
        Literal["aloha", "emulated", "sim"],
        typer.Option(help="aloha: two real arms; emulated, sim: a rehearsal."),
    ] = "aloha",
    world: Annotated[
        str,
        typer.Option(metavar="FILE.toml", help="With --robot sim: another simulation's arms."),
    ] = "",
    hidden: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            min=0,
            help="With --robot emulated: arms that differ from the simulated ones, as eval-v2's do.",
        ),
    ] = None,
    mode: MotionSpeed = "slow",
    stepped: Stepped = False,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="A new file for the log (runs/excite/....run).")
    ] = None,
    ports: Ports = None,
    cameras: Cameras = None,
    robot_file: RobotFile = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make the moves that calibrate needs, inside the guard; torque goes on.

    The arms approach the start pose; every joint goes to and fro, then both arms pass through eight poses and rest in
    each. The table must be empty. 143 s slowly, 71 s at --mode full.
    """
    settings = moved_arms(robot, robot_file, ports, cameras, robot == "aloha")
    moves = library("calibration.excite")
    rig = library("deployment.rig").RigConfig(
        robot, stepped=stepped, size=moves.SIZE, seed=seed, world=world, **settings
    )
    log = out or pathlib.Path("runs/excite") / f"{time.strftime('%Y%m%d-%H%M%S')}.run"
    drawn = None if hidden is None else moves.hidden_robot(hidden)
    with working("Moving"):
        run = moves.excite(rig, log, mode == "full", hidden=drawn)
    result = {"log": str(log), "steps": len(run.steps), **({"end": run.end} if as_json else {})}
    show(result, "Moves", as_json)


@command("calibrate", "Deploy")
def calibrate(
    runs: Annotated[
        list[pathlib.Path],
        typer.Argument(help="Logs of excite, or of other runs.", show_default=False),
    ],
    out: Annotated[
        pathlib.Path, typer.Option(help="The robot file to write, or to add to.")
    ] = pathlib.Path("robot.toml"),
    plots: Annotated[
        pathlib.Path, typer.Option(help="Folder for calibration.png: measured against fitted.")
    ] = pathlib.Path("runs/calibration"),
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Find out from logged moves which robot it is, and write it to robot.toml.

    Pictures of standing arms tell the zeros of the joints and the travel of the grippers; moves tell gains, damping,
    dry friction, backlash and the delay of commands. Each comes with its 95% interval. deploy puts zeros and travel
    right from then on; train-teacher, distill and evaluate take the rest by --world-params. See docs/calibration.md.
    """
    robots, finding = library("deployment.robot_file"), library("calibration.calibrate")
    known = (robots.load(out) if out.is_file() else None) or robots.RobotFile()
    with working("Fitting"):
        found = finding.calibrate(runs, threads)
        plot = finding.draw(found, plots)
    robots.save(finding.updated(known, found), out)
    show({**finding.result(found), "file": str(out), "plot": str(plot)}, "Calibration", as_json)
