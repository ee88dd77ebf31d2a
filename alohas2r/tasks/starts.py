"""Where episodes start, in training and in the frozen protocol."""

from __future__ import annotations

import dataclasses

import numpy as np

from alohas2r.config import check
from alohas2r.sim import kinematics, scene


@dataclasses.dataclass(frozen=True)
class PickStart:
    """Distribution of starts and targets.

    Attributes:
      waist: range of the waist angle (rad); the other joints start as in keyframe home.
      radius: range of the distance from the arm's base to the block's centre (m).
      angle_deg: range of the block's direction, seen from the base, from the base's x axis.
      yaw_deg: the block's yaw is its direction plus or minus this.
      target: centre of the target's box in the world (m); target_range: its half size per axis.
    """

    waist: tuple[float, float] = (-0.2, 0.45)
    radius: tuple[float, float] = (0.20, 0.45)
    angle_deg: tuple[float, float] = (-25.0, 35.0)
    yaw_deg: float = 5.0
    target: tuple[float, float, float] = (-0.10, 0.0, 0.25)
    target_range: float = 0.1

    def __post_init__(self) -> None:
        check(0.15 <= self.radius[0] <= self.radius[1] <= 0.6, "radius must lie in 0.15..0.6 m")
        check(self.angle_deg[0] <= self.angle_deg[1], "angle_deg must be (low, high)")
        check(self.waist[0] <= self.waist[1], "waist must be (low, high)")
        check(0 <= self.target_range <= 0.3, "target_range must lie in 0..0.3 m")


@dataclasses.dataclass(frozen=True)
class InsertStart:
    """Distribution of starts.

    Attributes:
      waist: half range of both waist angles about keyframe home (rad).
      radius: range of the distance from an arm's base to its object (m).
      angle_deg: half range of its direction about the home waist angle.
      yaw_deg: the object's yaw is its direction plus or minus this.
      targets: where the pick policy brings socket and peg (m, world).
    """

    waist: float = 0.1
    radius: tuple[float, float] = (0.27, 0.42)
    angle_deg: float = 14.5
    yaw_deg: float = 5.0
    targets: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (-0.10, 0.0, 0.25),
        (0.10, 0.0, 0.25),
    )

    def __post_init__(self) -> None:
        check(0.15 <= self.radius[0] <= self.radius[1] <= 0.6, "radius must lie in 0.15..0.6 m")
        check(0 <= self.angle_deg <= 90, "angle_deg must lie in 0..90")
        check(0 <= self.waist <= 1, "waist must lie in 0..1 rad")

    def targets_in_bases(self) -> np.ndarray:
        """Returns `targets`, each in the base frame of its arm [2, 3] float32 (m)."""
        places = [
            kinematics.quaternion_matrix(arm.base_quat).T @ (np.asarray(target) - arm.base_pos)
            for arm, target in zip(scene.load("insert").arms, self.targets, strict=True)
        ]
        return np.array(places, np.float32)
