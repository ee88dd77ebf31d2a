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
# m^2; below it the arm is stretched out, and its joints are moved as if it were less so.
_LEAST_AREA = 0.02


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
        """Returns joint values [..., 7] near others that bring the gripper to a goal; see `change`."""
        return targets + self.change(targets, goal - self.polar(targets, xp), rounds, xp)

    def change(self, targets: Array, moved: Array, rounds: int = 3, xp: Array = np) -> Array:
        """Returns by how much joint values [..., 7] change to move the gripper by [..., 5] as NAMES.

        Where that is out of reach they go towards it. Differences of small numbers alone are taken, so that single
        precision suffices.

        Args:
          targets: [..., 7] joint values to start from.
          moved: [..., 5] as NAMES.
          rounds: of Newton's method.
          xp: the array namespace, numpy or jax.numpy.
        """
        first, second = targets[..., 1], targets[..., 1] + targets[..., 2]
        forearm = (self.forearm, 0.0)
        pitched = _turned_on(self.tip, second + targets[..., 4], moved[..., 3], xp)
        wanted_reach, wanted_height = moved[..., 1] - pitched[0], moved[..., 2] - pitched[1]
        d_first, d_second = xp.zeros_like(first), xp.zeros_like(second)
        for _ in range(rounds):
            upper_moved = _turned_on(self.upper, first, d_first, xp)
            forearm_moved = _turned_on(forearm, second, d_second, xp)
            d_reach = wanted_reach - upper_moved[0] - forearm_moved[0]
            d_height = wanted_height - upper_moved[1] - forearm_moved[1]
            by_first = _slope(self.upper, first + d_first, xp)
            by_second = _slope(forearm, second + d_second, xp)
            area = by_first[0] * by_second[1] - by_first[1] * by_second[0]
            sign = xp.where(area < 0, -1.0, 1.0)
            area = sign * xp.maximum(sign * area, _LEAST_AREA)
            d_first = d_first + (d_reach * by_second[1] - d_height * by_second[0]) / area
            d_second = d_second + (d_height * by_first[0] - d_reach * by_first[1]) / area
        still = xp.zeros_like(first)
        parts = [
            *(moved[..., 0], d_first, d_second - d_first, still, moved[..., 3] - d_second),
            *(still, moved[..., 4]),
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
    place = arm.polar(targets, xp)
    moved = steps * scale * xp.clip(action, -1.0, 1.0)
    moved = xp.minimum(xp.maximum(moved, low - place), high - place)
    return arm.change(targets, moved, xp=xp) / steps


def executed(arm: PlanarArm, before: Array, after: Array, steps: int, xp: Array = np) -> Array:
    """Returns the action [..., 5] in [-1, 1] that led targets [..., 7] to others in so many control steps."""
    moved = arm.polar(after, xp) - arm.polar(before, xp)
    scale = xp.asarray(np.array(SCALE, np.float32))
    return xp.clip(moved / (steps * scale), -1.0, 1.0).astype(np.float32)


def _turned(part: tuple[float, float], angle: Array, xp: Array) -> tuple[Array, Array]:
    """Returns (x, z) of a part that is pitched by an angle."""
    x, z = part
    cosine, sine = xp.cos(angle), xp.sin(angle)
    return x * cosine + z * sine, z * cosine - x * sine


def _turned_on(
    part: tuple[float, float], angle: Array, change: Array, xp: Array
) -> tuple[Array, Array]:
    """Returns by how much (x, z) of a pitched part changes when its angle does."""
    x, z = part
    half = 2 * xp.sin(change / 2)
    cosine, sine = xp.cos(angle + change / 2) * half, xp.sin(angle + change / 2) * half
    return z * cosine - x * sine, -(z * sine + x * cosine)


def _slope(part: tuple[float, float], angle: Array, xp: Array) -> tuple[Array, Array]:
    """Returns the derivative of `_turned` by the angle."""
    x, z = part
    cosine, sine = xp.cos(angle), xp.sin(angle)
    return z * cosine - x * sine, -(z * sine + x * cosine)
