"""What a student knows of its joints: the one definition for training, evaluation and robot."""

from __future__ import annotations

import numpy as np

from alohas2r.core.types import Array


def proprioception(position: Array, target: Array, xp: Array = np) -> Array:
    """Returns joint positions, and positions minus targets.

    Args:
      position: [..., 2, 8] measured positions, left arm first: six joints (rad), two fingers (m).
      target: [..., 2, 7] what was commanded; one target serves both fingers.
      xp: the array namespace, numpy or jax.numpy.

    Returns:
      [..., 32]: positions 8 + 8, then positions minus targets 8 + 8.
    """
    both_fingers = xp.concatenate([target, target[..., -1:]], -1)
    lead = position.shape[:-2]
    parts = [position.reshape(*lead, -1), (position - both_fingers).reshape(*lead, -1)]
    return xp.concatenate(parts, -1)
