"""The moves by which arms show what they are: joints that go to and fro, and poses in which something is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from alohas2r.deployment.loop import start_pose
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import (
    ACTUATORS,
    CONTROL_PERIOD_S,
    IS_GRIPPER,
    JOINTS,
    PER_ARM,
    SIDES,
)
from alohas2r.safety.config import SafetyConfig

SPEED_SHARE = 0.9  # of the limits, so that the guard changes nothing
REST_S, HOLD_S = 0.6, 1.2  # between motions, and in each pose
STEP_RAD = 0.12  # of a joint that goes there and back
WAVE_S, WAVE_HZ = 4.0, (0.25, 1.6)  # of one that sways faster and faster
WAVE_SHARE = 0.8  # of the speed at which it sways at most
ROUNDING = 1e-6  # of observations in single precision (rad; m)
OPEN_M, CLOSED_M = 0.034, 0.012  # between which grippers move: their fingers do not touch
# Which joints of each arm move at the same time: such as hardly push each other.
TOGETHER = (
    ("waist", "wrist_rotate", "gripper"),
    ("shoulder", "forearm_roll"),
    ("elbow", "wrist_angle"),
)
# Where joints go to and fro: each arm stretched away from the other, so that the waists have something to swing; an
# arm folded as at home has a tenth of that inertia, by which a waist's gain is told.
STRETCHED = (0.9, 0.5, -0.1, 0.0, 0.0, 0.0, 0.034)
# Poses (rad; m), one after the other along straight lines that keep clear of everything. In the first, gravity hardly
# pulls at the elbows; the others were chosen out of 500 at random, one by one, each for what the pictures of both wrist
# cameras tell on top of the others (the determinant of the information about zeros, travel and mounts), less the way.
POSES = (
    ((0.0, -1.0, -0.8, 0.0, 0.0, 0.0, 0.025), (0.0, -1.0, -0.8, 0.0, 0.0, 0.0, 0.025)),
    ((-0.2, -0.8, 1.4, 0.3, -0.1, 0.3, 0.022), (0.4, 0.5, 0.1, 1.4, -0.5, 0.4, 0.033)),
    ((-0.2, 0.4, 0.3, 1.3, 1.2, -0.6, 0.024), (-0.6, -0.4, 1.0, 1.2, 1.0, -0.2, 0.013)),
    ((0.2, 0.2, -0.1, 1.2, -0.3, -0.9, 0.018), (0.6, -0.2, 0.8, 0.0, 1.3, 0.7, 0.030)),
    ((0.3, 0.1, 0.9, 0.9, -0.8, -1.5, 0.021), (-0.1, -0.6, 1.1, -1.3, 0.0, 0.1, 0.012)),
    ((0.3, -0.9, 0.7, 1.1, -1.2, -1.0, 0.021), (-0.2, 0.7, -0.2, -1.0, 0.3, -1.2, 0.026)),
    ((0.0, -0.3, 0.9, 1.0, 0.4, -1.3, 0.030), (0.5, -0.2, 1.1, -1.0, -0.2, 0.0, 0.020)),
    ((0.4, -0.1, 0.1, 1.1, -0.5, -0.4, 0.016), (-0.3, -1.0, 0.9, -1.5, -0.2, 0.2, 0.020)),
)


def trajectory(limits: SafetyConfig) -> np.ndarray:
    """Returns the targets [T, 14] by control steps, from the start pose and back to it.

    Args:
      limits: of speed and acceleration, which it keeps.
    """
    home = start_pose()
    speed = SPEED_SHARE * min(limits.max_speed, ACTION_SCALE / CONTROL_PERIOD_S)
    change = SPEED_SHARE * limits.max_acceleration * CONTROL_PERIOD_S**2
    stretched = np.array(STRETCHED * len(SIDES))
    rest = np.tile(home, (_steps(REST_S), 1))
    pieces = [rest, _line(home, stretched, speed, change)]
    for joints in TOGETHER:
        pieces.append(_to_and_fro(stretched, joints, speed, change))
    last = stretched
    for pose in [*np.array(POSES).reshape(len(POSES), -1), home]:
        pieces += [_line(last, pose, speed, change), np.tile(pose, (_steps(HOLD_S), 1))]
        last = pose
    return np.concatenate(pieces)


def _steps(seconds: float) -> int:
    return round(seconds / CONTROL_PERIOD_S)


def _line(start: np.ndarray, end: np.ndarray, speed: float, change: float) -> np.ndarray:
    """Returns the way [T, 14] from one pose to another: all joints arrive together.

    Args:
      start, end: [14]. speed: at most (rad/s). change: of a step, at most (rad).
    """
    length = float(np.abs(end - start).max())
    if length < 1e-9:
        return np.zeros((0, len(start)))
    most, gone, step, shares = speed * CONTROL_PERIOD_S, 0.0, 0.0, []
    while gone < length - 1e-9:
        # Slow enough to stop at the end.
        left = length - gone
        stopping = change * (math.sqrt(0.25 + 2 * left / change) - 0.5)
        step = max(min(step + change, most, stopping, left), min(1e-4, left))
        gone += step
        shares.append(gone / length)
    return start + np.array(shares)[:, None] * (end - start)


def _to_and_fro(
    pose: np.ndarray, joints: tuple[str, ...], speed: float, change: float
) -> np.ndarray:
    """Returns a motion [T, 14] of some joints about a pose: a step, a wave, and back; grippers open and close."""
    moving = np.array([name.partition("/")[2] in joints for name in JOINTS])
    turning = moving & ~IS_GRIPPER
    ahead = pose - np.where(turning, STEP_RAD, 0.0)
    there, stand = _line(pose, ahead, speed, change), np.tile(ahead, (_steps(REST_S), 1))
    time_s = np.arange(0.0, WAVE_S, CONTROL_PERIOD_S)
    low_hz, high_hz = WAVE_HZ
    hertz = low_hz * (high_hz / low_hz) ** (time_s / WAVE_S)
    phase = 2 * math.pi * np.cumsum(hertz) * CONTROL_PERIOD_S
    reach = np.minimum(STEP_RAD, WAVE_SHARE * speed / (2 * math.pi * hertz))
    wave = ahead + np.where(turning, 1.0, 0.0) * (reach * np.sin(phase))[:, None]
    whole = np.concatenate([there, stand, wave])
    back = _line(whole[-1], pose, speed, change)
    whole = np.concatenate([whole, back, np.tile(pose, (_steps(REST_S), 1))])
    grippers = moving & IS_GRIPPER
    if grippers.any():
        whole[:, grippers] = _grip(len(whole), float(pose[grippers][0]), speed, change)[:, None]
    return whole


def _grip(count: int, start: float, speed: float, change: float) -> np.ndarray:
    """Returns a gripper's targets [count] (m): closed and open by turns, and in the end where it began."""
    most, turn = speed * CONTROL_PERIOD_S, _steps(2 * REST_S)
    values, last, step = [], start, 0.0
    for index in range(count):
        goal = (CLOSED_M, OPEN_M)[index // turn % 2] if index < count - turn else start
        wanted = float(np.clip(goal - last, -most, most))
        step = float(np.clip(wanted, step - change, step + change))
        last += step
        values.append(last)
    return np.array(values)


class Excitation:
    """A policy that sees nothing but where the arms were told to go: it follows the trajectory.

    Args:
      limits: of the run.
    """

    def __init__(self, limits: SafetyConfig) -> None:
        self._goals = trajectory(limits)
        self._step = 0

    @property
    def steps(self) -> int:
        """How many control steps it takes."""
        return len(self._goals)

    def reset(self) -> None:
        """Starts anew."""
        self._step = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the next action [14]: from the last command towards the next goal."""
        values = observation["proprioception"].astype(float)
        both = len(SIDES) * (PER_ARM + 1)
        command = (values[:both] - values[both:]).reshape(len(SIDES), -1)[:, : len(ACTUATORS)]
        goal = self._goals[min(self._step, len(self._goals) - 1)]
        self._step += 1
        ahead = goal - command.reshape(-1)
        ahead[np.abs(ahead) < ROUNDING] = 0.0
        return np.clip(ahead / ACTION_SCALE, -1.0, 1.0)
