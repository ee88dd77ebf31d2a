"""Training and evaluation on robots like one that was measured: `--world-params robot.toml`."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from alohas2r.calibration.arms import dry
from alohas2r.config import digest, overrides
from alohas2r.deployment import robot_file
from alohas2r.deployment.robot_file import RobotFile
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM
from alohas2r.errors import ConfigError
from alohas2r.sim.variation import NEUTRAL, VariationConfig
from alohas2r.tasks.protocol import EVAL_V2, TaskProtocol, TransferProtocol

FACTORS = 0.0, 10.0  # that a variation takes
SCALES = 0.5, 2.0
PROTOCOL = EVAL_V2.name  # that --world-params narrows if none is named


def measured(path: str | os.PathLike[str]) -> RobotFile:
    """Reads a robot file that says what was measured.

    Raises:
      ConfigError: there is none, or it says nothing of that.
    """
    robot = robot_file.load(path)
    if robot is None or not changes(robot):
        raise ConfigError(
            f"The robot file {path} says nothing that was measured: alohas2r calibrate RUN --out {path} writes it."
        )
    return robot


def changes(robot: RobotFile) -> dict[str, object]:
    """Returns what a robot file says of a variation: field -> its new value; only what was measured of both arms.

    A range reaches over all joints of a kind and over their intervals. Zeros and the travel's offset of real arms are
    put right by `deploy`, which reads the same file: their intervals are left. Delays are whole control steps.
    """
    told: dict[str, object] = {}
    grips = PER_ARM - 1

    def rows(name: str, of: slice = slice(None)) -> np.ndarray | None:
        """Returns [n, 3] of both arms; None if one of them was not measured."""
        tables = [np.array(getattr(arm, name), float).reshape(-1, 3) for arm in robot.calibrations]
        return None if not all(map(len, tables)) else np.concatenate([one[of] for one in tables])

    for field, name, of in (
        ("gain", "gain", slice(grips)),
        ("gripper_gain", "gain", slice(grips, None)),
        ("damping", "damping", slice(None)),
    ):
        table = rows(name, of)
        if table is not None:
            told[field] = _range(table, *FACTORS)
    rubbing, table = dry(), rows("joint_friction")
    if table is not None:
        told["joint_friction"] = _range(table[rubbing], *FACTORS)
    if (table := rows("backlash_deg")) is not None:
        told["backlash_deg"] = _range(table, 0.0, 5.0)
    if (table := rows("zero_deg")) is not None:
        told["zero_deg"] = min(math.ceil(1000 * _furthest(table)) / 1000, 10.0)
    if (table := rows("travel_m")) is not None:
        told["travel_m"] = min(math.ceil(_furthest(table) * 1e5) / 1e5, 0.01)
    if (table := rows("travel_scale")) is not None:
        told["travel_scale"] = _range(table, *SCALES)
    if (table := rows("command_delay_s")) is not None:
        low = math.floor(max(0.0, float(table[:, 1].min())) / CONTROL_PERIOD_S + 1e-6)
        high = math.ceil(max(0.0, float(table[:, 2].max())) / CONTROL_PERIOD_S - 1e-6)
        told["action_delay_s"] = tuple(
            round(CONTROL_PERIOD_S * n, 3) for n in (low, max(low, high))
        )
    return told


def _furthest(table: np.ndarray) -> float:
    """Returns how far from zero some intervals [n, 3] reach."""
    return float(np.abs(table).max())


def _range(table: np.ndarray, least: float, most: float) -> tuple[float, float]:
    """Returns what all intervals [n, 3] lie within."""
    ends = np.clip([table[:, 1].min(), table[:, 2].max()], least, most)
    return math.floor(1000 * float(ends[0])) / 1000, math.ceil(1000 * float(ends[1])) / 1000


def narrowed(robot: RobotFile, variation: VariationConfig) -> VariationConfig:
    """Returns a variation with what was measured in place of its ranges.

    Raises:
      ConfigError: a measured value lies beyond what a variation takes.
    """
    return dataclasses.replace(variation, **changes(robot))  # pyright: ignore[reportArgumentType]


def settings(path: str | os.PathLike[str], prefix: str) -> list[str]:
    """Returns "PREFIX.key=value" for each range that a robot file narrows, as `--set` takes them.

    Raises:
      ConfigError: the file is missing, or says nothing that was measured.
    """
    robot = measured(path)
    names = changes(robot)
    texts = overrides(prefix, narrowed(robot, NEUTRAL))
    return [text for text in texts if text.partition("=")[0].rpartition(".")[2] in names]


def of_robot(protocol: TaskProtocol, path: str | os.PathLike[str]) -> TransferProtocol:
    """Returns a protocol of robots like the one that was measured, under another name and hash.

    Raises:
      ConfigError: the protocol knows one robot only; the file is missing, or says nothing that was measured.
    """
    if not isinstance(protocol, TransferProtocol):
        raise ConfigError(
            f"The protocol '{protocol.name}' knows the nominal robot only; --world-params needs {PROTOCOL}."
        )
    variation = narrowed(measured(path), protocol.variation)
    name = f"{protocol.name}+robot={digest(variation)[:8]}"
    return dataclasses.replace(protocol, name=name, variation=variation)
