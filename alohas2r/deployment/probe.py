"""Moves one joint of each arm in a known way, through the whole control loop, to see how late everything is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping

import numpy as np

from alohas2r.config import check
from alohas2r.deployment.log import Run
from alohas2r.deployment.motion import EnteredArms, motion_config, motion_header, run_motion
from alohas2r.deployment.report import Report
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import ARM_JOINTS, CONTROL_PERIOD_S, JOINTS, PER_ARM, SIDES
from alohas2r.safety.config import FULL, SLOW

REST_STEPS = 12  # before, between and after the motions
STEP_RAD = 0.08  # height of the step
CHIRP_S = 8.0
CHIRP_HZ = 0.3, 1.5  # from the lowest to the highest frequency
SPEED_SHARE = 0.9  # of the limit, so that the guard changes nothing


class Probe:
    """A policy that sees nothing: a step and a chirp of one joint, the left arm first, then the right.

    Attributes:
      steps: how many control steps it takes.
    """

    def __init__(self, joint: str, max_speed: float) -> None:
        """Plans the motion.

        Args:
          joint: one of the arm's joints.
          max_speed: of its target (rad/s).

        Raises:
          ConfigError: there is no such joint.
        """
        check(joint in ARM_JOINTS, f"joint must be one of {', '.join(ARM_JOINTS)}, not {joint}")
        one = trajectory(SPEED_SHARE * min(max_speed, ACTION_SCALE / CONTROL_PERIOD_S))
        moves = np.zeros((2 * len(one), len(JOINTS)))
        for place in range(len(SIDES)):
            index = place * PER_ARM + ARM_JOINTS.index(joint)
            moves[place * len(one) : (place + 1) * len(one), index] = np.diff(one, prepend=one[0])
        self._actions = moves / ACTION_SCALE
        self._step = 0

    @property
    def steps(self) -> int:
        """How many control steps it takes."""
        return len(self._actions)

    def reset(self) -> None:
        """Starts anew."""
        self._step = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the next action [14], whatever there is to see."""
        action = self._actions[min(self._step, len(self._actions) - 1)]
        self._step += 1
        return action


def trajectory(max_speed: float) -> np.ndarray:
    """Returns where a joint is to be (rad), from its start, by control steps: a step there and back, then a chirp.

    Args:
      max_speed: that is never exceeded (rad/s).
    """
    ramp = np.arange(0.0, STEP_RAD, max_speed * CONTROL_PERIOD_S)
    rest, high = np.zeros(REST_STEPS), np.full(REST_STEPS, STEP_RAD)
    time_s = np.arange(0.0, CHIRP_S, CONTROL_PERIOD_S)
    low_hz, high_hz = CHIRP_HZ
    hertz = low_hz * (high_hz / low_hz) ** (time_s / CHIRP_S)
    phase = 2 * math.pi * np.cumsum(hertz) * CONTROL_PERIOD_S
    # Slower where it is wider: the amplitude falls as the frequency rises.
    chirp = np.minimum(STEP_RAD, 0.8 * max_speed / (2 * math.pi * hertz)) * np.sin(phase)
    whole = np.concatenate([rest, ramp, high, ramp[::-1], rest, chirp, rest])
    # What is left of a jump, as at the chirp's end, takes the time that it needs.
    most, limited = max_speed * CONTROL_PERIOD_S, [0.0]
    for wanted in whole:
        limited.append(limited[-1] + float(np.clip(wanted - limited[-1], -most, most)))
    return np.array(limited)


def probe(
    rig: RigConfig,
    log: str | os.PathLike[str],
    joint: str = "wrist_angle",
    fast: bool = False,
    on_step: Callable[[Report], None] | None = None,
) -> Run:
    """Moves one joint of both arms by a step and a chirp, guarded as any policy, and logs everything.

    Args:
      rig: which arms and cameras.
      log: a new file.
      joint: which.
      fast: whether to move at the limits of --mode full.
      on_step: called after each control step.

    Returns:
      The run as it was logged.

    Raises:
      RobotFault: arms or cameras are missing, the pre-flight check fails, or the motion was ended.
    """
    policy = Probe(joint, (FULL if fast else SLOW).max_speed)
    config = motion_config(rig, fast, policy.steps)
    with open_rig(rig, False, 1, config.episode_s) as opened:
        arms = EnteredArms(opened.robot, opened.cameras, opened.trials)
        header = motion_header(rig, config, f"probe of {joint}") | {"joint": joint}
        return run_motion(arms, policy, config, log, header, on_step)
