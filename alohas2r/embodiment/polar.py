"""An arm's gripper in cylindrical coordinates about its base: five numbers in which to move it.

Waist, reach, height and pitch of the gripper, and its opening; the two joints that turn the gripper about other axes
stay as they are. The arm is planar beside its waist, so that positions follow from three angles. The same code runs
on NumPy and JAX arrays.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array

NAMES = ("waist", "reach", "height", "pitch", "gripper")
SIZE = len(NAMES)
# By how much a full action moves the target in one control step: rad, m, m, rad, m of finger travel.
SCALE = (0.02, 0.008, 0.008, 0.012, 0.005)
_LEAST_AREA = (
    0.02  # m^2: below it the arm is stretched out, and its joints are moved as if it were less so
)


@dataclasses.dataclass(frozen=True)
class PlanarArm:
    """Lengths of an arm in its plane (m): (x, z) with all joints at zero.

    Attributes:
      shoulder: height of the shoulder's axis above the base.
      upper: from the shoulder's axis to the elbow's.
      forearm: from the elbow's axis to the wrist's, along x.
      tip: from the wrist's axis to the midpoint between the fingertips.
    """

    shoulder: float
    upper: tuple[float, float]
    forearm: float
    tip: tuple[float, float]

    def polar(self, targets: Array, xp: Array = np) -> Array:
        """Returns where joint values [..., 7] bring the gripper, [..., 5] as NAMES."""
        first = targets[..., 1]
        second = first + targets[..., 2]
        pitch = second + targets[..., 4]
        reach, height = self._wrist(first, second, xp)
        tip_reach, tip_height = _turned(self.tip, pitch, xp)
        parts = [targets[..., 0], reach + tip_reach, height + tip_height, pitch, targets[..., 6]]
        return xp.stack(parts, -1)

    def joints(self, targets: Array, goal: Array, rounds: int = 3, xp: Array = np) -> Array:
        """Returns joint values [..., 7] near others that bring the gripper to a goal.

        Where the goal is out of reach they go towards it.

        Args:
          targets: [..., 7] joint values to start from.
          goal: [..., 5] as NAMES.
          rounds: of Newton's method.
          xp: the array namespace, numpy or jax.numpy.
        """
        first, second = targets[..., 1], targets[..., 1] + targets[..., 2]
        tip_reach, tip_height = _turned(self.tip, goal[..., 3], xp)
        wanted_reach, wanted_height = goal[..., 1] - tip_reach, goal[..., 2] - tip_height
        for _ in range(rounds):
            reach, height = self._wrist(first, second, xp)
            d_reach, d_height = wanted_reach - reach, wanted_height - height
            by_first = _slope(self.upper, first, xp)
            by_second = _slope((self.forearm, 0.0), second, xp)
            area = by_first[0] * by_second[1] - by_first[1] * by_second[0]
            sign = xp.where(area < 0, -1.0, 1.0)
            area = sign * xp.maximum(sign * area, _LEAST_AREA)
            first = first + (d_reach * by_second[1] - d_height * by_second[0]) / area
            second = second + (d_height * by_first[0] - d_reach * by_first[1]) / area
        parts = [
            *(goal[..., 0], first, second - first, targets[..., 3], goal[..., 3] - second),
            *(targets[..., 5], goal[..., 4]),
        ]
        return xp.stack(parts, -1)

    def _wrist(self, first: Array, second: Array, xp: Array) -> tuple[Array, Array]:
        """Returns reach and height of the wrist's axis."""
        upper, forearm = _turned(self.upper, first, xp), _turned((self.forearm, 0.0), second, xp)
        return upper[0] + forearm[0], self.shoulder + upper[1] + forearm[1]


@dataclasses.dataclass(frozen=True)
class Box:
    """Where the gripper may be led, before any guard: low and high ends of NAMES (rad, m, m, rad, m)."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks the sizes."""
        sizes = len(self.low) == len(self.high) == SIZE
        check(
            sizes and all(a < b for a, b in zip(self.low, self.high, strict=True)),
            f"a box needs {SIZE} low ends and as many higher ones",
        )


def toward(
    arm: PlanarArm, box: Box, targets: Array, action: Array, steps: int, xp: Array = np
) -> Array:
    """Returns by how much each joint's target moves per control step for an action, [..., 7].

    Args:
      arm: its lengths.
      box: where the gripper may be led.
      targets: [..., 7] last targets of the arm.
      action: [..., 5] in [-1, 1].
      steps: control steps that the action is kept up for.
      xp: the array namespace, numpy or jax.numpy.
    """
    scale = xp.asarray(np.array(SCALE, np.float32))
    low, high = (xp.asarray(np.array(end, np.float32)) for end in (box.low, box.high))
    goal = arm.polar(targets, xp) + steps * scale * xp.clip(action, -1.0, 1.0)
    goal = xp.minimum(xp.maximum(goal, low), high)
    return (arm.joints(targets, goal, xp=xp) - targets) / steps


def executed(arm: PlanarArm, before: Array, after: Array, steps: int) -> np.ndarray:
    """Returns the action [..., 5] in [-1, 1] that led targets [..., 7] to others in so many control steps."""
    moved = arm.polar(np.asarray(after)) - arm.polar(np.asarray(before))
    return np.clip(moved / (steps * np.array(SCALE)), -1.0, 1.0).astype(np.float32)


def _turned(part: tuple[float, float], angle: Array, xp: Array) -> tuple[Array, Array]:
    """Returns (x, z) of a part that is pitched by an angle."""
    x, z = part
    cosine, sine = xp.cos(angle), xp.sin(angle)
    return x * cosine + z * sine, z * cosine - x * sine


def _slope(part: tuple[float, float], angle: Array, xp: Array) -> tuple[Array, Array]:
    """Returns the derivative of `_turned` by the angle."""
    x, z = part
    cosine, sine = xp.cos(angle), xp.sin(angle)
    return z * cosine - x * sine, -(z * sine + x * cosine)
