"""What the pictures of an insertion show otherwise than its scene: sizes of objects, places of bases and table."""

from __future__ import annotations

import numpy as np

from alohas2r.sim import physics_randomization, scene, variation
from alohas2r.sim.objects import HALF_LENGTH, HOLE_HALF
from alohas2r.sim.variation import Robots


def pictured_geometry(
    context: np.ndarray, robots: Robots | None, name: str = "insert"
) -> dict[str, np.ndarray]:
    """Returns model fields [N, ...] of the scene with its looks; none that is nominal in all environments.

    Args:
      context: [N, C] half side of the peg (m), and from the third number on half length and half width of the hole.
      robots: where they vary.
      name: of the scene.
    """
    drawn = scene.load(name)
    count = len(context)
    fields: dict[str, np.ndarray] = {}
    if context.shape[1] >= 4 and not np.allclose(context[:, 2:4], (HALF_LENGTH, HOLE_HALF)):
        size = np.repeat(drawn.model.geom_size[None], count, 0)
        size[:, drawn.id("geom", "red_peg"), 1:] = context[:, :1]
        resized = physics_randomization.resize_objects(
            drawn, {"geom_size": size}, context[:, 2], context[:, 3]
        )
        fields = {name: resized[name] for name in ("geom_size", "geom_pos")}
    if robots is not None:
        fields |= variation.moved(drawn, robots.drawn, fields.get("geom_pos"))
    return fields
