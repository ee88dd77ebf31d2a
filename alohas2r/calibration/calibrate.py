"""Which robot it is, from the logs of what it did: zeros and travel by sight, then the servos by simulation."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from alohas2r.calibration import servos, sight
from alohas2r.calibration.arms import Moves
from alohas2r.calibration.servos import Estimate, Moved
from alohas2r.calibration.sight import Seen, View
from alohas2r.config import to_dict
from alohas2r.core.types import JsonObject
from alohas2r.deployment import robot_file
from alohas2r.deployment.log import Run, Step, read_run
from alohas2r.deployment.robot_file import ArmCalibration, ArmFile, RobotFile
from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.errors import ConfigError
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.dynamixel.registers import RAD_PER_TICK, XM430_W350
from alohas2r.robots.emulator.world import TORQUE_PER_AMPERE

LEAST_STEPS = 200  # of a run that tells something of the servos
STILL_STEPS = 8  # with the same command, after which arms are looked at
SAME = 1e-5  # commands that differ by less (rad; m)
OTHER = 0.05  # by which some joint differs in another pose (rad)
STILL = 2 * RAD_PER_TICK  # by which their readings differ at most, then
# Robots that log ampere and whole ticks; others log newton and exact angles.
SERVOS = ("aloha", "aloha-ros", "emulated")
CORRECTED = "aloha"  # the robot whose readings the robot file puts right


class Calibration(NamedTuple):
    """What was found out about a robot.

    Attributes:
      seen: zeros and travel; None where the runs have no pictures of standing arms.
      servos: the rest.
      moved: what they were found from.
      runs: how many runs.
      real: whether arms made them whose servos' offsets can be put right, by `--robot aloha`.
    """

    seen: Seen | None
    servos: Estimate
    moved: list[Moved]
    runs: int
    real: bool


def calibrate(paths: Sequence[str | os.PathLike[str]], threads: int = 1) -> Calibration:
    """Finds out which robot made some runs.

    Args:
      paths: logs, such as `excite` writes. threads: for the simulation.

    Raises:
      ArtifactError: one is none of a run.
      ConfigError: too little happens in them.
      RobotFault: their pictures have too little in common with the simulated ones.
    """
    return of_runs([read_run(path) for path in paths], threads)


def of_runs(runs: Sequence[Run], threads: int = 1) -> Calibration:
    """Finds out which robot made some runs; see `calibrate`."""
    views = [view for run in runs for view in views_of(run)]
    seen = sight.fit(views) if views else None
    offset = np.zeros(len(JOINTS)) if seen is None else seen.offset
    scale = np.ones(len(JOINTS)) if seen is None else seen.scale
    moved = [one for run in runs for one in _stretches(run, offset, scale)]
    if not moved:
        raise ConfigError(
            f"No run has {LEAST_STEPS} control steps with commands in one go; alohas2r excite makes one that tells all."
        )
    real = all(run.header.get("robot") == CORRECTED for run in runs)
    return Calibration(seen, servos.fit(moved, threads), moved, len(runs), real)


def views_of(run: Run) -> list[View]:
    """Returns what both cameras showed whenever the arms had stood still for a while, at the end of that."""
    views, still, before = [], 0, np.full(len(JOINTS), np.inf)
    last: Step | None = None
    for step in [*run.steps, None]:
        stands = (
            step is not None
            and last is not None
            and "command" in step.arrays
            and "command" in last.arrays
            and np.abs(step.arrays["command"] - last.arrays["command"]).max() < SAME
        )
        if not stands and still >= STILL_STEPS and last is not None:
            view = _view(last)
            rests = view is not None and np.abs(view.reading - before).max() <= STILL
            if view is not None and rests and not _known(view, views):
                views.append(view)
        if stands and step is not None and last is not None:
            still, before = still + 1, last.arrays["position"]
        else:
            still, before = 0, np.full(len(JOINTS), np.inf)
        last = step
    return views


def _known(view: View, views: Sequence[View]) -> bool:
    """Returns whether the arms have been seen in a pose before."""
    return any(np.abs(view.reading - one.reading).max() < OTHER for one in views)


def _view(step: Step) -> View | None:
    names = [f"observation/{side}_depth" for side in SIDES]
    if any(name not in step.arrays for name in names):
        return None
    return View(step.arrays["position"], np.stack([step.arrays[name] for name in names]))


def _stretches(run: Run, offset: np.ndarray, scale: np.ndarray) -> Iterator[Moved]:
    """Yields what each stretch of a run with commands shows, in terms of where the arms were."""
    for steps in _contiguous(run):
        if len(steps) < LEAST_STEPS:
            continue
        reading = np.array([one.arrays["position"] for one in steps])
        command = np.array([one.arrays["command"] for one in steps])
        servo = run.header.get("robot") in SERVOS
        if servo:  # which takes whole ticks
            command = _whole_ticks(command)
        period_s = float(run.header["period_s"])
        times_s = (
            period_s * np.arange(len(steps))
            if run.header.get("stepped")
            else np.array([float(one.values["time_s"]) for one in steps])
        )
        force = np.array([one.arrays["current"] for one in steps])[:, IS_GRIPPER]
        if servo:
            linkage = GripperLinkage()
            per_rad = linkage.ratio(linkage.angle(reading[:, IS_GRIPPER])) / scale[IS_GRIPPER]
            force = force * TORQUE_PER_AMPERE[XM430_W350] / np.maximum(per_rad, 1e-3)
        yield Moved(Moves(times_s, (command - offset) / scale, (reading - offset) / scale), force)


def _contiguous(run: Run) -> Iterator[list[Step]]:
    steps: list[Step] = []
    for one in run.steps:
        fresh = bool(steps) and one.values["episode"] != steps[-1].values["episode"]
        if "command" not in one.arrays or fresh:
            yield steps
            steps = []
        if "command" in one.arrays:
            steps.append(one)
    yield steps


def _whole_ticks(command: np.ndarray) -> np.ndarray:
    linkage = GripperLinkage()
    angle = np.where(IS_GRIPPER, linkage.angle(command), command)
    angle = np.round(angle / RAD_PER_TICK) * RAD_PER_TICK
    return np.where(IS_GRIPPER, linkage.travel(angle), angle)


def arm_calibrations(found: Calibration) -> tuple[ArmCalibration, ArmCalibration]:
    """Returns what the robot file says of both arms."""
    left, right = (_arm(found, side) for side in range(len(SIDES)))
    return left, right


def _arm(found: Calibration, side: int) -> ArmCalibration:
    own = slice(side * PER_ARM, (side + 1) * PER_ARM)
    joints = slice(own.start, own.stop - 1)
    grip = own.stop - 1
    servo = found.servos
    friction = np.where(np.isnan(servo.friction), 1.0, servo.friction)
    arm = ArmCalibration(
        command_delay_s=_row(servo.delay[side]),
        gain=_rows(servo.gain[own]),
        damping=_rows(servo.damping[own]),
        joint_friction=_rows(friction[own]),
        backlash_deg=_rows(np.rad2deg(servo.play[joints])),
    )
    seen = found.seen
    if seen is None:
        return arm
    zeros = _interval(np.rad2deg(seen.offset[joints]), np.rad2deg(seen.offset_half[joints]))
    return dataclasses.replace(
        arm,
        zero_deg=_rows(zeros),
        travel_m=_row(_interval(seen.offset[grip], seen.offset_half[grip]), 6),
        travel_scale=_row(_interval(seen.scale[grip], seen.scale_half[grip])),
    )


def _interval(value: np.ndarray, half: np.ndarray) -> np.ndarray:
    return np.stack([value, value - half, value + half], -1)


def _row(values: np.ndarray, digits: int = 4) -> robot_file.Measured:
    value, low, high = (round(float(one), digits) for one in values)
    return value, low, high


def _rows(table: np.ndarray) -> tuple[robot_file.Measured, ...]:
    return tuple(_row(row) for row in table)


def updated(robot: RobotFile, found: Calibration) -> RobotFile:
    """Returns a robot file with what was found.

    What real arms read too much goes into the offsets of the joints and the grippers' closing angles, on top of those
    that the file has, with which the runs were made; what is left of it are the intervals. Arms of a simulation have
    no offsets: what they read too much stays.

    Raises:
      ConfigError: an offset is larger than any that software should put right.
    """
    arms, measured = [robot.left, robot.right], list(arm_calibrations(found))
    for side in range(len(SIDES)):
        delay_s = round(float(found.servos.delay[side, 0]), 4)
        arms[side] = dataclasses.replace(arms[side], command_delay_s=delay_s)
        if found.real and found.seen is not None:
            arms[side] = _put_right(arms[side], found.seen, side)
            measured[side] = dataclasses.replace(
                measured[side],
                zero_deg=tuple(_left(row) for row in measured[side].zero_deg),
                travel_m=_left(measured[side].travel_m, 6),
            )
    return dataclasses.replace(
        robot,
        left=arms[0],
        right=arms[1],
        left_calibration=measured[0],
        right_calibration=measured[1],
    )


def _left(row: Sequence[float], digits: int = 4) -> robot_file.Measured:
    """Returns what is left of a value and its interval when the value is put right."""
    return _row(np.array(row) - row[0], digits)


def _put_right(arm: ArmFile, seen: Seen, side: int) -> ArmFile:
    joints = slice(side * PER_ARM, (side + 1) * PER_ARM - 1)
    offsets = np.array(arm.joint_offsets_rad) + seen.offset[joints]
    return dataclasses.replace(
        arm,
        joint_offsets_rad=tuple(round(float(one), 5) for one in offsets),
        gripper_closed_rad=_closed(arm, float(seen.offset[joints.stop])),
    )


def _closed(arm: ArmFile, travel_m: float) -> float:
    """Returns the servo angle at which a gripper closes whose travel reads so much too large."""
    known = arm.gripper_closed_rad
    linkage = GripperLinkage() if known is None else GripperLinkage.measured(known)
    right = dataclasses.replace(linkage, offset=linkage.offset + travel_m)
    touching = float(GripperLinkage(offset=0.0).travel(0.0)) - GripperLinkage.closed_at(0.0).offset
    return round(float(right.angle(touching)), 4)


def result(found: Calibration) -> JsonObject:
    """Returns what was found, as JSON has it: of each arm, quantities as [value, low, high]."""
    arms = {side: to_dict(one) for side, one in zip(SIDES, arm_calibrations(found), strict=True)}
    seen = found.seen
    pictures = None
    if seen is not None:
        pictures = {
            "views": seen.views,
            "difference_mm": round(seen.before_mm, 3),
            "explained_to_mm": round(seen.after_mm, 3),
        }
    explained = zip(JOINTS, found.servos.explained, strict=True)
    return {
        "runs": found.runs,
        **arms,
        "pictures": pictures,
        "explained": {joint: round(float(share), 5) for joint, share in explained},
    }


def draw(found: Calibration, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Draws every joint's measured and fitted motion, and their difference, into FOLDER/calibration.png.

    Raises:
      ModuleNotFoundError: matplotlib is missing.
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from alohas2r.core import figures

    moves, fitted = found.moved[0].moves, found.servos.fitted[0]
    seconds = moves.times_s - moves.times_s[0]
    figure, axes = plt.subplots(
        PER_ARM, len(SIDES), figsize=(16, 18), layout="constrained", sharex=True
    )
    for index, joint in enumerate(JOINTS):
        axis = axes[index % PER_ARM, index // PER_ARM]
        unit = ("mm", 1000.0) if IS_GRIPPER[index] else ("°", 180 / np.pi)
        for values, label, style in (
            (moves.command, "command", "k:"),
            (fitted, "fitted", "C0-"),
            (moves.position, "measured", "C1--"),
        ):
            axis.plot(seconds, unit[1] * values[:, index], style, label=label, linewidth=1)
        gain = found.servos.gain[index, 0]
        axis.set_title(
            f"{joint}: gain {gain:.2f}, {found.servos.explained[index]:.2%} explained", fontsize=9
        )
        axis.set_ylabel(unit[0])
        error = axis.twinx()
        error.plot(seconds, unit[1] * (fitted - moves.position)[:, index], "C3-", linewidth=0.6)
        error.set_ylabel("fitted - measured", color="C3", fontsize=7)
    axes[0, 0].legend(loc="upper right", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("s")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, folder / "calibration.png")
