"""Vectorized ray casting in JAX: from where everything is to pictures, in one compiled function.

Pictures are cut into tiles of 8 x 8 pixels. A tile is only tested against geoms whose bounding boxes
reach into its frustum, and its shadow rays only against geoms that reach into the space between
what it shows and the light. Tiles with equally many such geoms are worked on together, so that
thousands of rays meet a geom each at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.rendering.looks import paint
from alohas2r.rendering.protocol import Prepared
from alohas2r.rendering.raycast import intersect, shading
from alohas2r.rendering.raycast.bounds import Bounds
from alohas2r.rendering.raycast.shading import SHADOW_GAP, SHADOW_LIFT, Light, Surface, dot
from alohas2r.rendering.raycast.tiles import GROUP, TILE, Geometry, lowest, ordered, size_of

_ROUND = ("sphere", "capsule", "ellipsoid", "cylinder")


class Drawing:
    """Draws a fixed number of environments.

    Everything is in the frames of the V = E * C views; the T tiles of a call are numbered by view, then
    by place.

    Args:
      prepared: the model.
      geometry: its geoms.
      chunk: number of environments, E.
      tiles: per view.
      shadows: whether lights that cast shadows do.
      colour: whether to shade; otherwise `run` gives depths alone.
    """

    def __init__(
        self,
        prepared: Prepared,
        geometry: Geometry,
        chunk: int,
        tiles: int,
        shadows: bool,
        colour: bool = True,
    ):
        self.prepared, self.model, self.geometry = prepared, prepared.model, geometry
        self.cameras, self.per_view = len(prepared.cameras), tiles
        self.shadows = shadows and self.model.nlight > 0
        self.group = min(GROUP, chunk * self.cameras * tiles)
        self.bounds = Bounds(prepared, geometry, chunk, tiles)
        self.kinds, self.batches = self.bounds.kinds, self.bounds.batches
        # Flat faces are numbered through; a round surface takes the first number of its geom.
        self.bits = max(2, (geometry.faces.shape[1] - 1).bit_length())
        faces = {"box": 3, "cylinder": 2, "mesh": geometry.faces.shape[1]}
        self.first_face = np.zeros(self.model.ngeom, np.int32)
        count = 0
        for kind in self.kinds:
            for geom in geometry.ids[kind]:
                self.first_face[geom] = count
                count += faces.get(kind, 1)
        # XLA's own threads would compete with the renderer's.
        draw = self._draw if colour else self._draw_depth
        self.run = jax.jit(draw, compiler_options={"xla_cpu_multi_thread_eigen": False})

    def _draw(self, scene: dict[str, Array], x: Array, y: Array) -> tuple[Array, Array, Array]:
        """Draws one strip.

        Args:
          scene: poses and looks as from `Worker.place`, [E, ...].
          x, y: [C, B, P] of the strip's rays.

        Returns:
          Colours [T', P] as 0xBBGGRR, depths [T', P] (m), and the tile [T'] that each belongs to; some
          tiles may come twice.
        """
        seen_from = self.bounds.place(scene)
        places = shading.lights_in_view(scene)
        x, y = self._rays(scene, x, y)
        sets = self.bounds.sets(self.bounds.seen(seen_from, x, y))
        tiles = ordered(self.bounds.work(sets), self.group)
        rays_x, rays_y = x.reshape(-1, TILE**2), y.reshape(-1, TILE**2)
        lights = self.model.nlight
        frames = paint.frames(self.model, scene) if self.prepared.transfer else None

        def cast(tile: Array) -> tuple[Array, ...]:
            row = tile % len(rays_x)
            ray = (rays_x[row], rays_y[row], np.float32(-1))
            surface = self._surface(seen_from, [part[tile] for part in sets], tile, ray)
            point = [surface.depth * part for part in ray]
            painted = None
            if frames is not None:
                painted = shading.paint_of(self.prepared, scene, frames, surface)

            def one(light: Array) -> Light:
                way = shading.rays_to_light(self.model, places, surface.view, light, point)
                return shading.illuminate(self.model, scene, places, surface, light, *way, painted)

            lit = jax.lax.map(one, jnp.arange(lights)) if lights else None
            some = shading.pixels(self.model, surface, painted)
            if not self.shadows:
                return surface.depth, some, lit, None
            lift = np.float32(SHADOW_LIFT)
            start = [a + b * lift for a, b in zip(point, surface.normal, strict=True)]
            return surface.depth, some, lit, (start, _span(surface, ray))

        # All arrays have the axes [groups, (lights,) tiles of the group, ...] from here on.
        depth, some, lit, starts = jax.lax.map(cast, tiles.reshape(-1, self.group))
        hidden = None
        if starts is not None:
            view = tiles // self.per_view
            hidden = self._hidden(seen_from, places, view, starts[0], starts[1], lit.asked)
        colours = jax.lax.map(
            lambda parts: shading.compose(self.model, scene, *parts), (some, lit, hidden)
        )
        return colours.reshape(-1, TILE**2), depth.reshape(-1, TILE**2), tiles

    def _draw_depth(self, scene: dict[str, Array], x: Array, y: Array) -> tuple[Array, Array]:
        """Draws one strip's depths; as `_draw`, without the colours."""
        seen_from = self.bounds.place(scene)
        x, y = self._rays(scene, x, y)
        sets = self.bounds.sets(self.bounds.seen(seen_from, x, y))
        tiles = ordered(self.bounds.work(sets), self.group)
        rays_x, rays_y = x.reshape(-1, TILE**2), y.reshape(-1, TILE**2)

        def cast(tile: Array) -> Array:
            row = tile % len(rays_x)
            ray = (rays_x[row], rays_y[row], np.float32(-1))
            return self._surface(seen_from, [part[tile] for part in sets], tile, ray).depth

        depth = jax.lax.map(cast, tiles.reshape(-1, self.group))
        return depth.reshape(-1, TILE**2), tiles

    def _rays(self, scene: dict[str, Array], x: Array, y: Array) -> tuple[Array, Array]:
        """Returns the strip's rays as they are, or each view's own, [E * C, B, P], where cameras differ."""
        if not self.prepared.transfer:
            return x, y
        zoom, shift = scene["zoom"][..., None, None], scene["shift"][..., None, None, :]
        moved = (part * zoom + shift[..., k] for k, part in enumerate((x, y)))
        x, y = (part.reshape(-1, *part.shape[2:]) for part in moved)
        return x, y

    def _entry(self, kind: str, rows: Array, local: Array, start: Array, direction: Array) -> Array:
        """Returns marked ray parameters [T, P] of the entry into one geom per tile.

        Args:
          kind: of the geoms; rows: [T, 15] their turn, origin and size; local: [T] their places among the
            kind.
          start: of the rays, three arrays, or None for the camera; direction: three arrays.
        """
        turn = [[rows[:, 3 * a + b, None] for b in range(3)] for a in range(3)]
        if kind == "mesh":
            face = jnp.asarray(self.geometry.faces)[local]  # [T, F, 4]
            turned = [
                [face[:, :, a] * rows[:, None, 3 * a + b] for a in range(3)] for b in range(3)
            ]
            normal = [part[0] + part[1] + part[2] for part in turned]
            gap = face[:, :, 3] - sum(face[:, :, a] * rows[:, None, 9 + a] for a in range(3))
            slopes, gaps = [], []
            for index in range(face.shape[1]):
                facing = [normal[b][:, index, None] for b in range(3)]
                slopes.append(dot(facing, direction))
                gaps.append(gap[:, index, None] - (dot(facing, start) if start is not None else 0))
            return intersect.convex(slopes, gaps, self.bits)
        origin = [rows[:, 9 + a, None] for a in range(3)]
        if start is not None:
            origin = [origin[a] + dot(turn[a], start) for a in range(3)]
        size = [rows[:, 12 + a, None] for a in range(3)]
        t, face = intersect.PRIMITIVES[kind](
            origin, [dot(turn[a], direction) for a in range(3)], size
        )
        return intersect.mark(t, face, self.bits)

    def _surface(
        self, seen_from: dict[str, Array], sets: Array, tile: Array, ray: Array
    ) -> Surface:
        """Returns what is nearest in each pixel of a group of tiles."""
        view = tile // self.per_view
        marked, number = self._nearest(seen_from, sets, view, ray)
        depth, face = intersect.unmark(marked, self.bits)
        hit = number >= 0
        number = jnp.maximum(number, 0)
        depth = jnp.where(hit, depth, 0.0)
        normal = self._normal(seen_from, view, number, face, depth, ray)
        return Surface(view, view // self.cameras, ray, depth, hit, number, normal)

    def _nearest(
        self, seen_from: dict[str, Array], sets: Array, view: Array, ray: Array
    ) -> tuple[Array, Array]:
        """Returns marked depths and geom ids [T, P] of what is nearest; -1 for nothing."""
        shape = ray[0].shape
        far = float(self.model.vis.map.zfar * self.model.stat.extent)
        tie = np.float32(2.0 ** (self.bits - 22))

        def nearer(best: Array, t: Array, geom: Array) -> Array:
            # Of geoms that are equally near the one with the highest number is seen, as in Warp.
            margin = tie * best[0]
            won = (t < best[0] - margin) | ((t <= best[0] + margin) & (geom[:, None] > best[1]))
            return jnp.where(won, t, best[0]), jnp.where(won, geom[:, None], best[1])

        best = (jnp.full(shape, far, jnp.float32), jnp.full(shape, -1))
        for left, batch in zip(sets, self.batches, strict=True):

            def test(state: PyTree, batch: Array = batch) -> Array:
                # The last geom's parameters are compared only now, when they lie in memory: compared
                # where they arise, they would be computed anew for each array that follows from them.
                left, best, t, geom = state
                new, number = self._next(seen_from, batch, left, view, None, ray)
                return left & (left - 1), nearer(best, t, geom), new, number

            start = left, best, jnp.full(shape, intersect.FAR), jnp.zeros_like(view)
            _, best, t, geom = jax.lax.while_loop(lambda state: (state[0] > 0).any(), test, start)
            best = nearer(best, t, geom)
        return best

    def _next(
        self,
        seen_from: dict[str, Array],
        batch: Array,
        left: Array,
        view: Array,
        start: Array,
        direction: Array,
    ) -> tuple[Array, Array]:
        """Tests the first geom of each tile's set of a batch.

        Returns:
          Marked ray parameters [T, P], `FAR` for a miss or an empty set; geom ids [T].
        """
        kind, first, ids = batch
        local = jnp.minimum(lowest(left), len(ids) - 1)
        number = jnp.asarray(ids, view.dtype)[local]
        t = self._entry(kind, seen_from["geom"][view, number], local + first, start, direction)
        return jnp.where((left > 0)[:, None], t, intersect.FAR), number

    def _normal(
        self,
        seen_from: dict[str, Array],
        view: Array,
        number: Array,
        face: Array,
        depth: Array,
        ray: Array,
    ) -> list[Array]:
        """Returns the unit normals of the surfaces hit, towards the camera; three arrays [T, P]."""
        normals, geoms = seen_from["normals"], seen_from["geom"].reshape(-1, 15)
        where = view[:, None] * normals.shape[1] + jnp.asarray(self.first_face)[number] + face
        normal = [normals.reshape(-1, 3)[:, k][where] for k in range(3)]
        row = view[:, None] * self.model.ngeom + number

        def rounded(normal: list[Array]) -> list[Array]:
            for kind in self.kinds:
                if kind not in _ROUND:
                    continue
                here = jnp.asarray(self.bounds.mask(kind))[number]
                if kind == "cylinder":
                    here &= face == 0
                turn = [[geoms[:, 3 * a + b][row] for b in range(3)] for a in range(3)]
                point = [depth * dot(turn[a], ray) + geoms[:, 9 + a][row] for a in range(3)]
                size = [geoms[:, 12 + a][row] for a in range(3)]
                local = intersect.round_normal(kind, point, size)
                turned = [sum(turn[a][b] * local[a] for a in range(3)) for b in range(3)]
                normal = [
                    jnp.where(here, new, old) for new, old in zip(turned, normal, strict=True)
                ]
            return normal

        if self.prepared.transfer:  # of which few tiles show a round thing
            any_round = np.any([self.bounds.mask(k) for k in self.kinds if k in _ROUND], 0)
            some = jnp.asarray(any_round)[number].any()
            normal = jax.lax.cond(some, rounded, lambda normal: normal, normal)
        else:
            normal = rounded(normal)
        flip = jnp.where(dot(normal, ray) > 0, np.float32(-1), np.float32(1))
        return [part * flip for part in normal]

    def _hidden(
        self,
        seen_from: dict[str, Array],
        places: Array,
        view: Array,
        start: Array,
        span: Array,
        asked: Array,
    ) -> Array:
        """Returns where something stands between points and lights, like `asked`.

        Args:
          seen_from: from `Bounds.place`; places: of the lights.
          view: [n * T] of the tiles.
          start: where the rays start, three arrays [n, T, P]; span: [n, T, 8, 3] corners around them.
          asked: [n, L, T, P] which rays matter.
        """
        groups, lights, tiles, pixels = asked.shape
        some = jnp.swapaxes(asked.any(-1), 0, 1).reshape(lights, groups * tiles)
        between = self.bounds.between(seen_from, places, view, span.reshape(-1, 8, 3), some)
        start = [part.reshape(groups * tiles, pixels) for part in start]
        asked = asked.reshape(-1, pixels)

        def blocked(batch: Array, left: Array) -> Array:
            """Returns where a geom of each pair's set is in the way, [L * n * T, P]."""
            work = size_of(left)
            order = ordered(work, self.group)

            def test_group(index: Array, hidden: Array) -> Array:
                pair = jax.lax.dynamic_slice_in_dim(order, index * self.group, self.group)
                light, row = pair // (groups * tiles), pair % (groups * tiles)
                begin = [part[row] for part in start]
                way = shading.rays_to_light(self.model, places, view[row], light, begin)
                to_light, reach = way[0], way[1] - np.float32(SHADOW_GAP)
                blocked_rays = ~asked[(row // tiles * lights + light) * tiles + row % tiles]

                def test(state: PyTree) -> Array:
                    left, blocked_rays = state
                    t, _ = self._next(seen_from, batch, left, view[row], begin, to_light)
                    return left & (left - 1), blocked_rays | (t < reach)

                _, blocked_rays = jax.lax.while_loop(
                    lambda s: (s[0] > 0).any(), test, (left[pair], blocked_rays)
                )
                return jax.lax.dynamic_update_slice_in_dim(
                    hidden, blocked_rays, index * self.group, 0
                )

            first = (work == 0).sum() // self.group  # what comes before has nothing in its way
            hidden = jnp.zeros((len(order), pixels), bool)
            hidden = jax.lax.fori_loop(first, len(order) // self.group, test_group, hidden)
            return hidden[jnp.zeros(len(work), order.dtype).at[order].set(jnp.arange(len(order)))]

        # One pair of a light and a tile after the other. Each batch of geoms has groups of its own:
        # what has many boxes in its way seldom has as many meshes.
        hidden: Array = False
        for batch, part in zip(self.batches, between, strict=True):
            hidden |= blocked(batch, part.reshape(-1))
        hidden = jnp.swapaxes(hidden.reshape(lights, groups, tiles, pixels), 0, 1)
        return hidden & asked.reshape(groups, lights, tiles, pixels)


def _span(surface: Surface, ray: Array) -> Array:
    """Returns the corners [T, 8, 3] of the slab of each tile's frustum that holds what it shows."""
    far = jnp.where(surface.hit, surface.depth, 0).max(1) + np.float32(SHADOW_LIFT)
    near = jnp.where(surface.hit, surface.depth, far[:, None]).min(1) - np.float32(SHADOW_LIFT)
    corners = []
    for depth in (near, far):
        for x in (ray[0].min(1), ray[0].max(1)):
            for y in (ray[1].min(1), ray[1].max(1)):
                corners.append(jnp.stack([depth * x, depth * y, -depth], -1))
    return jnp.stack(corners, 1)
