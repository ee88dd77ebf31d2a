"""Randomized physics of any shipped scene."""

from __future__ import annotations

import numpy as np

from alohas2r.sim import physics_randomization
from alohas2r.sim.scene import Scene


def has_peg(loaded: Scene) -> bool:
    """Whether a scene is one of insertion; the others have one block."""
    return any(arm.object_name == "peg" for arm in loaded.arms)


def random_fields(loaded: Scene, count: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the model fields [count, ...] that training would draw for a scene's objects."""
    if has_peg(loaded):
        uniform = draw.random((count, physics_randomization.INSERT_DRAWS))
        return physics_randomization.sample_insert(
            loaded, physics_randomization.InsertRandomization(), uniform
        )[0]
    return physics_randomization.sample_block(
        loaded, physics_randomization.BlockConfig(), draw.random((count, 2))
    )[0]
