"""When the insertion policy takes over from the pick policy, from proprioception alone."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array

# Finger travel (m) below which a closed gripper holds nothing. Closed on the thinnest object, the
# 20 mm peg or block, the fingers stop at 18 mm; on nothing they run to 2 mm.
# Source: keyframe "preinsert" of the insertion scene, and its actuator range.
EMPTY_TRAVEL_M = 0.014


@dataclasses.dataclass(frozen=True)
class Switch:
    """The pick/insert state machine.

    Attributes:
      on_height: both fingertip midpoints above this (m, world) switch to insertion.
      off_height: either fingertip midpoint below this (m, world) switches back.
      empty_travel: a gripper whose target and travel are both below this (m) holds nothing,
        which switches back as well and keeps it off.
    """

    on_height: float = 0.17
    off_height: float = 0.12
    empty_travel: float = EMPTY_TRAVEL_M

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(
            0 < self.off_height < self.on_height,
            f"0 < off_height < on_height must hold, not {self.off_height} and {self.on_height}",
        )
        check(
            0 < self.empty_travel < 0.04,
            f"empty_travel must lie in (0, 0.04) m, not {self.empty_travel}",
        )

    def update(
        self,
        switched: Array,
        tip_heights: Array,
        finger_travel: Array,
        gripper_target: Array,
        xp: ModuleType = np,
    ) -> Array:
        """Returns the next state of the switch, for any number of robots at once.

        Args:
          switched: [...] bool, the present state.
          tip_heights: [..., 2] height of the fingertip midpoints in the world (m), left first.
          finger_travel: [..., 2] measured finger travel (m).
          gripper_target: [..., 2] commanded finger travel (m).
          xp: the array namespace, numpy or jax.numpy.

        Returns:
          [...] bool.
        """
        raised = xp.all(tip_heights > self.on_height, axis=-1)
        lowered = xp.any(tip_heights < self.off_height, axis=-1)
        closed = gripper_target < self.empty_travel
        empty = xp.any(closed & (finger_travel < self.empty_travel), axis=-1)
        return xp.logical_and(xp.logical_or(switched, raised), ~xp.logical_or(lowered, empty))
