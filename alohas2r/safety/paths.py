"""Ways to and from rest."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.embodiment.poses import SLEEP_POSE, STAGED_POSE
from alohas2r.safety.config import SLOW, SafetyConfig
from alohas2r.safety.release import Release, holding


class Way(Protocol):
    """A way along which the arms are led; `stuck` says that they have not come closer for a while."""

    stuck: bool

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14] from the last command and the measured pose, or None at its end."""
        ...


class Sequence:
    """Some ways, one after the other.

    Attributes:
      stuck: whether the present one is.
    """

    def __init__(self, *ways: Way) -> None:
        """Starts with the first."""
        self._ways = list(ways)
        self.stuck = False

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14], or None at the end of the last way."""
        while self._ways:
            target = self._ways[0].target(last, measured)
            self.stuck = self._ways[0].stuck
            if target is not None:
                return target
            self._ways.pop(0)
        return None


class Path:
    """A way through some poses, each joint arriving at each pose together with the others.

    Attributes:
      stuck: whether it has not come closer for two seconds.
    """

    PATIENCE_STEPS = 40
    TOLERANCE = 0.15  # how close to a pose counts as there (rad)

    def __init__(self, poses: list[np.ndarray], config: SafetyConfig = SLOW) -> None:
        """Starts at its first pose.

        Args:
          poses: [14] each; a joint that is not a number stays where it is.
          config: how fast to move.
        """
        self._most = config.max_speed * config.period_s
        self._poses = list(poses)
        self._best = np.inf
        self._waited = 0
        self.stuck = False

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14], or None once the last pose is reached.

        Args:
          last: [14] the last command.
          measured: [14] measured positions.
        """
        while self._poses:
            pose = np.where(np.isnan(self._poses[0]), last, self._poses[0])
            ahead = pose - last
            furthest = float(np.abs(ahead).max())
            # Grippers may be kept from arriving by what they hold.
            lag = float(np.abs(np.where(IS_GRIPPER, 0.0, pose - measured)).max())
            if furthest > 1e-6 or lag > self.TOLERANCE:
                self._watch(furthest + lag)
                return last + ahead * min(1.0, self._most / max(furthest, 1e-12))
            self._poses.pop(0)
            self._best, self._waited = np.inf, 0
        return None

    def _watch(self, distance: float) -> None:
        if distance < self._best - 1e-3:
            self._best, self._waited = distance, 0
        else:
            self._waited += 1
        self.stuck = self._waited >= self.PATIENCE_STEPS


def retreat_path(config: SafetyConfig = SLOW) -> Path:
    """Returns the way to the sleep pose: let go, rise to the staged pose, fold up."""
    return Path([np.where(IS_GRIPPER, SLEEP_POSE, np.nan), STAGED_POSE, SLEEP_POSE], config)


def way_to_rest(command: np.ndarray, measured: np.ndarray, config: SafetyConfig = SLOW) -> Sequence:
    """Returns the way to the sleep pose from anywhere, which sets down first what the grippers hold.

    Args:
      command: [14] the last command.
      measured: [14] measured positions.
      config: how fast to move.
    """
    ways: list[Way] = [Release(config)] if holding(command, measured).any() else []
    return Sequence(*ways, retreat_path(config))


def way_aside(config: SafetyConfig = SLOW) -> Sequence:
    """Returns the way that sets down what the grippers hold, opens both, and ends in the staged pose."""
    return Sequence(Release(config), Path([np.where(IS_GRIPPER, np.nan, STAGED_POSE)], config))


def approach_path(pose: np.ndarray, config: SafetyConfig = SLOW) -> Path:
    """Returns the way from rest to a start pose [14], one arm after the other.

    That only one arm moves at a time lets the monitor tell whether the cameras are swapped.
    """
    arms = np.arange(len(JOINTS)) // PER_ARM
    steps = [
        np.where(arms == arm, goal, np.nan)
        for arm in range(len(SIDES))
        for goal in (STAGED_POSE, pose)
    ]
    return Path(steps, config)


def at_rest(measured: np.ndarray, rounding: float = 0.0) -> bool:
    """Returns whether both arms are folded in the sleep pose, where torque may go off.

    Args:
      measured: [14] positions.
      rounding: how far they may be from what the servos read (rad).
    """
    away = np.where(IS_GRIPPER, 0.0, np.abs(measured - SLEEP_POSE))
    return bool(away.max() < Path.TOLERANCE + rounding)
