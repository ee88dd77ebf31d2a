"""A planned motion of both arms through the whole control loop and its guard, with a log of all that happened."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import LIMITS, DeployConfig
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter, Run, read_run
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.pacer import Pacer
from alohas2r.deployment.report import Hooks, Report
from alohas2r.deployment.rig import RigConfig
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import RobotFault
from alohas2r.policies.protocol import Policy
from alohas2r.robots.base import Camera, Robot


def motion_config(rig: RigConfig, fast: bool, steps: int) -> DeployConfig:
    """Returns how a motion of so many control steps is run; `fast` moves at the limits of --mode full."""
    return DeployConfig(
        mode="full" if fast else "slow",
        episode_s=steps * CONTROL_PERIOD_S,
        approach=rig.real,
        retreat=not rig.stepped,
        frozen_s=None if rig.real else 0.0,
    )


class SimulatedTime(Hooks, Pacer, Protocol):
    """The time of a simulation, and what surrounds its episodes."""


class EnteredArms(NamedTuple):
    """Entered arms and cameras.

    Attributes:
      robot, cameras: entered. time: what surrounds the motion of simulated arms; None for real ones.
    """

    robot: Robot
    cameras: Sequence[Camera]
    time: SimulatedTime | None


def run_motion(
    arms: EnteredArms,
    policy: Policy,
    config: DeployConfig,
    log: str | os.PathLike[str],
    header: Mapping[str, object],
    on_step: Callable[[Report], None] | None = None,
) -> Run:
    """Makes a motion and returns its log.

    Args:
      arms: what moves. policy: acts. config: from `motion_config`.
      log: a new file. header: its first record; see `motion_header`.
      on_step: called after each control step.

    Raises:
      RobotFault: the pre-flight check fails, or the motion was ended.
    """
    path = pathlib.Path(log)
    with LogWriter(path, header) as writer:
        outcome = Deployment(
            arms.robot, arms.cameras, policy, config, arms.time, writer, on_step=on_step
        ).run(arms.time)
    if outcome.episodes < 1:
        why = "; ".join(text for _, text in outcome.reasons if text) or "it was ended"
        raise RobotFault(f"The motion was not finished: {why}.")
    return read_run(path)


def motion_header(rig: RigConfig, config: DeployConfig, what: str) -> JsonObject:
    """Returns the first record of a motion's log; `what` stands for the policy."""
    return log_header(config, LIMITS[config.mode], rig.robot, what) | {"stepped": rig.stepped}
