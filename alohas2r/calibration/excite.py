"""Makes the moves by which arms show what they are, through the whole control loop and its guard, and logs them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from alohas2r.calibration.motion import Excitation
from alohas2r.config import check
from alohas2r.deployment.log import Run
from alohas2r.deployment.loop import start_pose
from alohas2r.deployment.motion import EnteredArms, motion_config, motion_header, run_motion
from alohas2r.deployment.pacer import ClockPacer
from alohas2r.deployment.report import Report
from alohas2r.deployment.rig import (
    EMULATED_REPLY_S,
    STEPPED_REPLY_S,
    RigConfig,
    open_rig,
)
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.robots.dynamixel.arm import DynamixelConfig
from alohas2r.robots.dynamixel.driver import DynamixelRobot
from alohas2r.robots.emulator.cameras import EmulatedCameras
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.hidden import STILL, HiddenConfig
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.safety.config import FULL, SLOW
from alohas2r.sim import scene
from alohas2r.sim.variation import NEUTRAL, ROBOTS

if TYPE_CHECKING:
    from alohas2r.deployment.trials import Trials

SIZE = 64  # pixels a side of the pictures
POLICY = "excite"  # in the log's header
ASIDE = (0.35, 0.32), (-0.35, 0.32)  # where a simulation's objects lie (m)


def excite(
    rig: RigConfig,
    log: str | os.PathLike[str],
    fast: bool = False,
    on_step: Callable[[Report], None] | None = None,
    hidden: HiddenConfig | None = None,
) -> Run:
    """Moves every joint of both arms to and fro, then both arms through poses, and logs everything.

    Args:
      rig: which arms and cameras.
      log: a new file.
      fast: whether to move at the limits of --mode full.
      on_step: called after each control step.
      hidden: from which robots an emulated one is drawn; None: the simulated one.

    Returns:
      The run as it was logged.

    Raises:
      ConfigError: only an emulated robot can hide what it is.
      RobotFault: arms or cameras are missing, the pre-flight check fails, or the motion was ended.
    """
    check(hidden is None or rig.robot == "emulated", "a hidden robot needs --robot emulated")
    policy = Excitation(FULL if fast else SLOW)
    config = motion_config(rig, fast, policy.steps)
    with open_arms(rig, config.episode_s, hidden) as arms:
        header = motion_header(rig, config, POLICY) | {"seed": rig.seed}
        return run_motion(arms, policy, config, log, header, on_step)


@contextlib.contextmanager
def open_arms(
    config: RigConfig, seconds: float, hidden: HiddenConfig | None = None
) -> Iterator[EnteredArms]:
    """Connects arms and cameras for a motion of so many seconds.

    Raises:
      RobotFault: a port, servo or camera is missing or not as expected.
    """
    with contextlib.ExitStack() as stack:
        if config.robot != "emulated":
            rig = stack.enter_context(open_rig(config, False, 1, seconds))
            yield EnteredArms(rig.robot, rig.cameras, rig.trials and _Endless(rig.trials))
            return
        from alohas2r.rendering import registry as renderers

        settings = EmulatorConfig(
            not config.stepped, config.seed, set_up=True, hidden=hidden or HiddenConfig()
        )
        emulator = stack.enter_context(Emulator(settings))
        reply_s = STEPPED_REPLY_S if config.stepped else EMULATED_REPLY_S
        robot = DynamixelRobot(DynamixelConfig(ports=emulator.ports, reply_timeout_s=reply_s))
        drawn = renderers.make(
            "raycast", scene.load("insert"), width=config.size, height=config.size, batch=1
        )
        cameras = EmulatedCameras(emulator, drawn).cameras()
        clock = _EmulatedTime(emulator, not config.stepped)
        yield EnteredArms(stack.enter_context(robot), cameras, clock)


class _Endless:
    """The time of a simulation whose objects end nothing."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self.realtime = trials.realtime

    def wait(self) -> None:
        self._trials.wait()

    def now_s(self) -> float:
        return self._trials.now_s()

    def begin(self, episode: int) -> np.ndarray:
        return self._trials.begin(episode)

    def over(self) -> bool:
        self._trials.over()
        return False


class _EmulatedTime(ClockPacer):
    """The time of emulated arms, which begin at home with the objects out of their way."""

    def __init__(self, emulator: Emulator, realtime: bool) -> None:
        super().__init__()
        self.realtime = realtime
        self._emulator, self._waits = emulator, 0

    def wait(self) -> None:
        self._waits += 1
        if self.realtime:
            super().wait()
        else:
            self._emulator.step()

    def now_s(self) -> float:
        return time.monotonic() if self.realtime else self._waits * CONTROL_PERIOD_S

    def begin(self, episode: int) -> np.ndarray:
        self._emulator.place(home())
        return start_pose()

    def over(self) -> bool:
        return False


def hidden_robot(seed: int) -> HiddenConfig:
    """Returns a robot to rehearse with: drawn as those of eval-v2, and up to 150 ms late; bases and table nominal."""
    neutral = {name: getattr(NEUTRAL, name) for name in (*STILL, "action_delay_s")}
    delay_s = float(np.random.default_rng(seed).uniform(*ROBOTS.action_delay_s))
    return HiddenConfig(dataclasses.replace(ROBOTS, **neutral), seed, round(delay_s, 3))


def home() -> np.ndarray:
    """Returns [nq] both arms at home, and the objects at the back of the table, out of their way."""
    insert = scene.load("insert")
    qpos = insert.home_qpos.copy()
    for arm, place in zip(insert.arms, ASIDE, strict=True):
        qpos[arm.object_qpos[:2]] = place
    return qpos
