"""Bounding boxes: which geoms can matter to what a tile shows, and to the light that falls on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.protocol import Prepared
from alohas2r.rendering.raycast import intersect
from alohas2r.rendering.raycast.shading import SHADOW_LIFT, dot
from alohas2r.rendering.raycast.tiles import Geometry, Sets, cross, size_of, unit

_AHEAD = 0.3  # m; how far ahead of a camera a light's frame is centred
_SLACK = np.float32(3e-4)  # m; covers rounding, and that shadow rays start a little above a surface


class Bounds:
    """The geoms and their bounding boxes as the views of a fixed number of environments have them.

    Everything is in the frames of the V = E * C views; the T tiles of a call are numbered by view, then
    by place.

    Args:
      prepared: the model.
      geometry: its geoms.
      chunk: number of environments, E.
      tiles: per view.

    Attributes:
      kinds: of geoms that the model has, in the order in which they are tested.
      batches: (kind, place among the kind of the first, ids) of geoms that are tested in one loop: of
        one kind, and as many as a set has bits.
    """

    def __init__(self, prepared: Prepared, geometry: Geometry, chunk: int, tiles: int):
        self.model, self.geometry = prepared.model, geometry
        self.chunk, self.cameras = chunk, len(prepared.cameras)
        self.views, self.tiles = chunk * self.cameras, chunk * self.cameras * tiles
        self.kinds = [kind for kind in (*intersect.PRIMITIVES, "mesh") if kind in geometry.ids]
        self.batches = [
            (kind, start, geometry.ids[kind][start : start + 32])
            for kind in self.kinds
            for start in range(0, len(geometry.ids[kind]), 32)
        ]

    def place(self, scene: dict[str, Array]) -> dict[str, Array]:
        """Turns the geoms into the views' frames.

        Returns:
          geom [V, G, 15]: turn (9), origin (3), size (3): a point p of the view is turn @ p + origin in
          the geom's frame; middle [V, G, 3] and axes [V, G, 3 axes, 3] of the bounding boxes; normals
          [V, faces, 3] of the flat faces, numbered as in `first_face`.
        """
        rotation, geom = scene["cam_xmat"][:, :, None], scene["geom_xmat"][:, None]
        apart = scene["cam_xpos"][:, :, None] - scene["geom_xpos"][:, None]  # [E, C, G, 3]
        turn = [
            [sum(geom[..., k, a] * rotation[..., k, b] for k in range(3)) for b in range(3)]
            for a in range(3)
        ]
        origin = [sum(geom[..., k, a] * apart[..., k] for k in range(3)) for a in range(3)]
        offset = [self.geometry.center[:, a] - origin[a] for a in range(3)]
        middle = [sum(turn[a][b] * offset[a] for a in range(3)) for b in range(3)]

        def flat(parts: list[Array]) -> Array:
            return jnp.stack(parts, -1).reshape(self.views, -1, len(parts))

        def repeated(values: Array) -> Array:
            return jnp.broadcast_to(values[:, None], apart.shape).reshape(self.views, -1, 3)

        matrix = flat([turn[a][b] for a in range(3) for b in range(3)])
        half = repeated(self._half_sizes(scene["size"]))
        return {
            "geom": jnp.concatenate([matrix, flat(origin), repeated(scene["size"])], -1),
            "middle": flat(middle),
            "axes": matrix.reshape(self.views, -1, 3, 3) * half[..., None],
            "normals": self._normals(matrix),
        }

    def _half_sizes(self, size: Array) -> Array:
        """Returns half sizes [E, G, 3] of the geoms' bounding boxes from their sizes [E, G, 3]."""
        radius, length = size[..., 0], size[..., 1]
        by_kind = {
            "sphere": jnp.stack([radius, radius, radius], -1),
            "capsule": jnp.stack([radius, radius, radius + length], -1),
            "cylinder": jnp.stack([radius, radius, length], -1),
            "mesh": jnp.broadcast_to(self.geometry.half, size.shape),
        }
        half = size
        for kind in by_kind:
            if kind in self.kinds:
                half = jnp.where(self.mask(kind)[:, None], by_kind[kind], half)
        return half

    def _normals(self, matrix: Array) -> Array:
        """Returns the normals [V, faces, 3] of all flat faces from the geoms' turns [V, G, 9]."""
        parts = []
        for kind in self.kinds:
            turn = matrix[:, self.geometry.ids[kind]].reshape(self.views, -1, 3, 3)
            if kind == "box":
                normals = turn
            elif kind == "mesh":
                face = self.geometry.faces[None, ..., :3]
                normals = sum(face[..., a, None] * turn[:, :, None, a] for a in range(3))
            else:
                normals = jnp.repeat(turn[:, :, 2:], 2 if kind == "cylinder" else 1, axis=2)
            parts.append(jnp.reshape(normals, (self.views, -1, 3)))
        return jnp.concatenate(parts, 1)

    def mask(self, kind: str) -> np.ndarray:
        """Returns which geoms are of a kind, [G] bool."""
        mask = np.zeros(self.model.ngeom, bool)
        mask[self.geometry.ids[kind]] = True
        return mask

    def seen(self, seen_from: dict[str, Array], x: Array, y: Array) -> Array:
        """Returns which geoms' bounding boxes reach into which tile's frustum, [T, G] bool."""
        low_x, high_x, low_y, high_y = x.min(-1), x.max(-1), y.min(-1), y.max(-1)  # [C or E * C, B]
        inward = [
            (1, 0, low_x),
            (-1, 0, -high_x),
            (0, 1, low_y),
            (0, -1, -high_y),
            (0, 0, jnp.full_like(low_x, -1)),
        ]
        shape = (self.chunk, self.cameras, 1, self.model.ngeom)
        middle = seen_from["middle"].reshape(*shape, 3)
        axes = seen_from["axes"].reshape(*shape, 3, 3)
        seen = self.mask("plane") if "plane" in self.kinds else np.zeros((), bool)
        inside = True
        for along, up, edge in inward:
            edge = edge.reshape(-1, *shape[1:2], edge.shape[-1], 1)

            def project(v: Array, along: int = along, up: int = up, edge: Array = edge) -> Array:
                flat = v[..., 0] * along if along else v[..., 1] * up if up else 0
                return flat + edge * v[..., 2]

            reach = sum(jnp.abs(project(axes[..., a, :])) for a in range(3))
            inside = inside & (project(middle) + reach >= -np.float32(1e-5))
        return (inside | seen).reshape(self.tiles, -1)

    def sets(self, chosen: Array) -> Sets:
        """Returns chosen geoms [T, G] bool as sets."""
        sets = []
        for _, _, ids in self.batches:
            bits = jnp.uint32(1) << jnp.arange(len(ids), dtype=jnp.uint32)
            sets.append(jnp.where(chosen[:, ids], bits, 0).sum(-1, dtype=jnp.uint32))
        return tuple(sets)

    def work(self, sets: Sets) -> Array:
        """Returns how much work the geoms of sets are."""
        per_geom = {"mesh": max(1, self.geometry.faces.shape[1] // 6)}
        return sum(
            size_of(part) * per_geom.get(kind, 1)
            for part, (kind, _, _) in zip(sets, self.batches, strict=True)
        )

    def between(
        self, seen_from: dict[str, Array], places: Array, view: Array, span: Array, some: Array
    ) -> Sets:
        """Returns the geoms that reach into the space between what tiles show and the lights, [L, T].

        What a tile shows lies within a slab of its frustum. Seen from the light, the slab lies in a
        rectangle: the space is the pyramid over it, or, for a light endlessly far, the prism.

        Args:
          seen_from: from `place`; places: of the lights.
          view: [T]; span: [T, 8, 3] corners of the slabs.
          some: [L, T] whether any pixel is asked for.
        """
        sun = self.model.light_type == int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
        ahead = np.array([0, 0, -_AHEAD], np.float32)

        def one(args: Array) -> Sets:
            endless, place, aim, some = args  # place and aim: [V, 3]
            place = jnp.where(endless, 0, place)
            down = unit([jnp.where(endless, aim[:, k], ahead[k] - place[:, k]) for k in range(3)])
            steep = jnp.abs(down[0]) > 0.9
            side = [jnp.where(steep, 0.0, 1.0), jnp.where(steep, 1.0, 0.0), 0.0]
            lean = dot(side, down)
            side = unit([a - lean * b for a, b in zip(side, down, strict=True)])
            frame = (side, cross(down, side), down)

            # Boxes in the light's frame: middle and three axes, [V, G] for each of its directions.
            boxes = [seen_from["middle"][..., k] - place[:, k, None] for k in range(3)]
            axes = [[seen_from["axes"][:, :, a, k] for k in range(3)] for a in range(3)]

            def along(vector: Array, pick: Array) -> list[Array]:
                return [dot([part[pick] for part in to], vector) for to in frame]

            each = (slice(None), None)
            boxes, axes = along(boxes, each), [along(axis, each) for axis in axes]
            corners = along([span[..., k] - place[view, k, None] for k in range(3)], (view, None))
            depth = corners[2]
            lowest, highest = depth.min(1, keepdims=True), depth.max(1, keepdims=True)
            scale = jnp.where(endless, 1, 1 / jnp.maximum(depth, np.float32(1e-6)))
            boxes = [part[view] for part in boxes]  # [T, G]
            axes = [[part[view] for part in axis] for axis in axes]

            def within(across: int | None, tilt: Array, rest: Array) -> Array:
                """Which boxes reach into (across - tilt * down) . x + rest >= 0 (down if None)."""

                def project(parts: Array) -> Array:
                    return parts[2] * -tilt + (0 if across is None else parts[across])

                return sum(jnp.abs(project(axis)) for axis in axes), project(boxes) + rest

            near: Array = True
            extent, middle = within(None, 1, highest)
            near = near & (middle + extent >= -_SLACK)
            for across in (0, 1):
                spot = corners[across] * scale
                low, high = spot.min(1, keepdims=True), spot.max(1, keepdims=True)
                for sign, edge in ((1, low), (-1, high)):
                    tilt, rest = jnp.where(endless, 0, edge), jnp.where(endless, edge, 0)
                    extent, middle = within(across, tilt, -rest)
                    near &= sign * middle + extent >= -_SLACK
            # A light right at the points has them on all sides, not within a pyramid.
            near |= ~endless & (lowest < 0.1 * jnp.maximum(highest, np.float32(0.02)))
            if "plane" in self.kinds:
                near = self._planes(seen_from, near, view, endless, place, aim)
            return self.sets(near & some[:, None])

        aims = jnp.swapaxes(places[1], 0, 1)
        return jax.lax.map(one, (jnp.asarray(sun), jnp.swapaxes(places[0], 0, 1), aims, some))

    def _planes(
        self,
        seen_from: dict[str, Array],
        near: Array,
        view: Array,
        endless: Array,
        place: Array,
        aim: Array,
    ) -> Array:
        """Returns `near` [T, G] with the planes in it whose upper sides rays to a light can meet.

        Only rays that come down on a plane can: those to a sun below it, or from a geom that reaches
        higher than the light.
        """
        mask = self.mask("plane")
        middle, axes = seen_from["middle"][:, ~mask], seen_from["axes"][:, ~mask]
        for plane in self.geometry.ids["plane"]:
            rows = seen_from["geom"][:, plane]
            up = [rows[:, None, 6 + k] for k in range(3)]

            def height(points: Array, up: Array = up) -> Array:
                return dot([points[..., k] for k in range(3)], up)

            reach = sum(jnp.abs(height(axes[:, :, a])) for a in range(3))
            highest = (height(middle) + reach).max(-1, initial=-1e9) + np.float32(2 * SHADOW_LIFT)
            below = height(place[:, None])[:, 0] < highest
            sinks = jnp.where(endless, height(aim[:, None])[:, 0] > 0, below)
            near = near.at[:, plane].set(sinks[view])
        return near
