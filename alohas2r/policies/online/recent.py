"""What a policy that learns on the robot remembers: the actions that were executed last."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from alohas2r.policies.online.spec import RECENT, LearntSpec


def recent_actions(spec: LearntSpec, past: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the last executed actions [3, A], newest last, from the proprioception [32] at decisions up to now."""
    kept = past[-(RECENT + 1) :]
    recent = np.zeros((RECENT, spec.actions), np.float32)
    for index, (before, after) in enumerate(itertools.pairwise(kept)):
        recent[RECENT - (len(kept) - 1) + index] = spec.executed(before, after)
    return recent
