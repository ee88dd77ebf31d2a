"""Ray casting by MuJoCo itself, `mujoco.batch.Batch.ray`, shaded like the vectorized one.

Slower, but it knows all kinds of geoms, and it is the yardstick of the vectorized caster.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mujoco.batch
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks import paint
from alohas2r.rendering.looks.paint import Painted
from alohas2r.rendering.protocol import Prepared
from alohas2r.rendering.raycast import shading
from alohas2r.rendering.raycast.shading import SHADOW_GAP, SHADOW_LIFT, Light, Surface

_MOST_LAYERS = 16  # back faces that a ray passes before it is given up
_STEP = 1e-6  # m; how far behind a back face a ray goes on


class ExactDrawing:
    """Draws a fixed number of environments; see `kernel.Drawing`, whose arguments these are."""

    def __init__(
        self, prepared: Prepared, chunk: int, tiles: int, shadows: bool, colour: bool = True
    ):
        self.prepared, self.model = prepared, prepared.model
        self.chunk, self.cameras, self.per_view = chunk, len(prepared.cameras), tiles
        self.colour = colour
        self.shadows = shadows and self.model.nlight > 0
        self._light = jax.jit(self._lit)
        self._compose = jax.jit(self._colours)

    def run(
        self, batch: mujoco.batch.Batch, scene: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Draws one strip.

        Args:
          batch: E simulations in the scene's poses.
          scene: poses and looks as from `Worker.place`, [E, ...].
          x, y: [C, B, P] of the strip's rays.

        Returns:
          Colours as 0xBBGGRR (None without colour) and depths (m) [E * C * B, P].
        """
        rotation = scene["cam_xmat"].astype(np.float64)
        x, y = self._rays(scene, x, y)
        ray = np.stack([x, y, -np.ones_like(x)], -1)
        ray = ray.reshape(-1, self.cameras, ray[0, 0, ..., 0].size, 3).astype(np.float64)
        length = np.linalg.norm(ray, axis=-1)  # [1 or E, C, R]
        direction = np.einsum("ecij,ecrj->ecri", rotation, ray / length[..., None])
        start = np.broadcast_to(scene["cam_xpos"].astype(np.float64)[:, :, None], direction.shape)
        shape = (self.chunk, -1, 3)
        asked = np.ones((self.chunk, direction.shape[1] * direction.shape[2]), bool)
        distance, number, normal = _front(
            batch, start.reshape(shape), direction.reshape(shape), asked
        )
        depth = distance.reshape(direction.shape[:3]) / length
        far = self.model.vis.map.zfar * self.model.stat.extent
        hit = (number.reshape(depth.shape) >= 0) & (depth < far)
        turned = np.einsum("ecij,ecri->ecrj", rotation, normal.reshape(direction.shape))

        def tiles(values: np.ndarray, dtype: type) -> np.ndarray:
            return values.reshape(-1, x.shape[-1]).astype(dtype)

        hits = (
            tiles(np.where(hit, depth, 0), np.float32),
            tiles(hit, bool),
            tiles(np.maximum(number, 0), np.int32),
            [tiles(turned[..., k], np.float32) for k in range(3)],
        )
        if not self.colour:
            return None, hits[0]
        light, to_light, reach = self._light(scene, x, y, hits)
        hidden = np.zeros(light.asked.shape, bool)
        if self.shadows:
            point = start + direction * distance.reshape(depth.shape)[..., None]
            point = point + normal.reshape(point.shape) * SHADOW_LIFT
            for index in range(self.model.nlight):
                asked = np.asarray(light.asked[index]).reshape(self.chunk, -1)
                aim = np.stack([np.asarray(part[index]) for part in to_light], -1).astype(
                    np.float64
                )
                aim = np.einsum("ecij,ecrj->ecri", rotation, aim.reshape(direction.shape))
                limit = np.asarray(reach[index]).reshape(self.chunk, -1)
                met, which, _ = _front(batch, point.reshape(shape), aim.reshape(shape), asked)
                hidden[index] = (asked & (which >= 0) & (met < limit)).reshape(hidden[index].shape)
        return np.asarray(self._compose(scene, x, y, hits, light, hidden)), hits[0]

    def _rays(
        self, scene: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the strip's rays [1 or E, C, B, P]: each environment's own where cameras differ."""
        if not self.prepared.transfer:
            return x[None], y[None]
        zoom, shift = scene["zoom"][..., None, None], scene["shift"][..., None, None, :]
        return x * zoom + shift[..., 0], y * zoom + shift[..., 1]

    def _surface(self, x: Array, y: Array, hits: Array) -> Surface:
        depth, hit, number, normal = hits
        tile = jnp.arange(self.chunk * self.cameras * self.per_view)
        rays_x, rays_y = (part.reshape(-1, part.shape[-1]) for part in (x, y))
        row = tile % len(rays_x)
        ray = (rays_x[row], rays_y[row], np.float32(-1))
        view = tile // self.per_view
        return Surface(view, view // self.cameras, ray, depth, hit, number, normal)

    def _painted(self, scene: dict[str, Array], surface: Surface) -> Painted | None:
        if not self.prepared.transfer:
            return None
        return shading.paint_of(self.prepared, scene, paint.frames(self.model, scene), surface)

    def _lit(
        self, scene: dict[str, Array], x: Array, y: Array, hits: Array
    ) -> tuple[Light, Array, Array]:
        """Returns light, directions to it and reach of shadow rays, each with a leading axis L."""
        surface = self._surface(x, y, hits)
        painted = self._painted(scene, surface)
        places = shading.lights_in_view(scene)
        point = [surface.depth * part for part in surface.ray]

        def one(light: Array) -> tuple[Light, Array, Array]:
            to_light, distance = shading.rays_to_light(
                self.model, places, surface.view, light, point
            )
            way = to_light, distance, painted
            lit = shading.illuminate(self.model, scene, places, surface, light, *way)
            return lit, to_light, distance - np.float32(SHADOW_GAP)

        if not self.model.nlight:
            empty = jnp.zeros((0, *surface.depth.shape))
            return Light(empty, empty, empty), [empty] * 3, empty
        return jax.lax.map(one, jnp.arange(self.model.nlight))

    def _colours(
        self, scene: dict[str, Array], x: Array, y: Array, hits: Array, light: Light, hidden: Array
    ) -> Array:
        surface = self._surface(x, y, hits)
        some = shading.pixels(self.model, surface, self._painted(scene, surface))
        if not self.model.nlight:
            return shading.compose(self.model, scene, some, None, None)
        return shading.compose(self.model, scene, some, light, hidden)


def _front(
    batch: mujoco.batch.Batch, start: np.ndarray, direction: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Casts the rays that are asked for up to the first front face.

    MuJoCo stops a ray that starts inside a geom where it leaves it; renderers show no back faces, so the
    ray goes on from there.

    Args:
      batch: E simulations.
      start, direction: [E, R, 3], directions of unit length.
      asked: [E, R] bool.

    Returns:
      Distance [E, R] (0 for a miss), geom id (-1 for a miss), normal [E, R, 3].
    """
    distance = np.zeros(asked.shape)
    number = np.full(asked.shape, -1)
    normal = np.zeros((*asked.shape, 3))
    passed = np.zeros(asked.shape)
    pending = asked & np.isfinite(start).all(-1) & np.isfinite(direction).all(-1)
    for _ in range(_MOST_LAYERS):
        if not pending.any():
            break
        sims = np.flatnonzero(pending.any(1))
        most = int(pending[sims].sum(1).max())
        # The pending rays of each simulation come first; simulations with fewer cast some others too.
        rays = np.argsort(~pending[sims], axis=1, kind="stable")[:, :most]
        rows = sims[:, None]
        begin = start[rows, rays] + direction[rows, rays] * passed[rows, rays][..., None]
        met, which, facing = batch.ray(begin, direction[rows, rays], ids=sims, normal=True)
        active = pending[rows, rays]
        behind = active & (which >= 0) & ((facing * direction[rows, rays]).sum(-1) > 0)
        done = active & ~behind
        where = rows.repeat(most, 1)[done], rays[done]
        distance[where] = np.where(which[done] >= 0, passed[where] + met[done], 0)
        number[where], normal[where] = which[done], facing[done]
        pending[where] = False
        where = rows.repeat(most, 1)[behind], rays[behind]
        passed[where] += met[behind] + _STEP
    return distance, number, normal
