"""What a pixel's surface is like under the looks "transfer": albedo, gloss, and the room where nothing is hit (JAX).

It takes what any renderer gives, the geom and the depth of each pixel, so that every renderer paints alike.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks import texture
from alohas2r.rendering.looks.config import SLOTS

_BARE = -1  # slot of a geom without a texture
_TABLE, _SOCKET, _PEG, _CLUTTER, _ROOM = range(len(SLOTS))
FRAMES = ("table", "socket-W", "red_peg")  # geoms in whose frames textures lie
ROOM_LIGHT = 0.75  # of full light, on walls and floor


class Painted(NamedTuple):
    """What T tiles of P pixels are like."""

    albedo: list[Array]  # three arrays [T, P]; where nothing is hit, the room's colour, lit
    specular: Array  # [T, P] of the gloss; negative for the geom's own
    shininess: Array  # [T, P] its exponent


@functools.lru_cache(maxsize=8)
def slots(model: mujoco.MjModel) -> np.ndarray:
    """Returns the number in SLOTS of each geom that is drawn, [G]; -1 for one without a texture."""
    found = np.full(model.ngeom, _BARE, np.int32)
    for geom in range(model.ngeom):
        name = model.geom(geom).name
        if name == "table":
            found[geom] = _TABLE
        elif name.startswith("socket"):
            found[geom] = _SOCKET
        elif name == "red_peg":
            found[geom] = _PEG
        elif name.startswith("clutter"):
            found[geom] = _CLUTTER
    return found


def frames(model: mujoco.MjModel, scene: dict[str, Array]) -> Array:
    """Returns the frames of FRAMES as the cameras see them, [E * C, F, 12].

    A point p of a view is turn @ p + origin in a frame: turn (9), origin (3).
    """
    ids = np.array([model.geom(name).id for name in FRAMES])
    geom = scene["geom_xmat"][:, None, ids]  # [E, 1, F, 3, 3]
    camera = scene["cam_xmat"][:, :, None]  # [E, C, 1, 3, 3]
    apart = scene["cam_xpos"][:, :, None] - scene["geom_xpos"][:, None, ids]
    parts = [
        sum(geom[..., k, a] * camera[..., k, b] for k in range(3))
        for a in range(3)
        for b in range(3)
    ]
    parts += [sum(geom[..., k, a] * apart[..., k] for k in range(3)) for a in range(3)]
    whole = jnp.stack(parts, -1)
    return whole.reshape(-1, *whole.shape[2:])


def paint(
    model: mujoco.MjModel,
    family: str,
    scene: dict[str, Array],
    places: Array,
    view: Array,
    env: Array,
    ray: list[Array],
    depth: Array,
    hit: Array,
    number: Array,
    slant: Array,
) -> Painted:
    """Returns what pixels are like.

    Args:
      model: what is drawn.
      family: of textures.
      scene: rgb [E, G, 3], paint [E, S, COLUMNS], room_rgb [E, 2, 3], room_size [E, 3].
      places: from `frames`.
      view, env: [T]. ray: x, y, -1, [T, P]. depth, hit, number: [T, P].
      slant: [T, P] cosine between the ray and the surface's normal.
    """
    frame = places[view]  # [T, F, 12]

    def inside(index: int) -> list[Array]:
        turn = [[frame[:, index, 3 * a + b, None] for b in range(3)] for a in range(3)]
        return [
            depth * (turn[a][0] * ray[0] + turn[a][1] * ray[1] - turn[a][2])
            + frame[:, index, 9 + a, None]
            for a in range(3)
        ]

    on_table, on_socket, on_peg = (inside(index) for index in range(len(FRAMES)))
    beyond, down, far = _room(scene, frame, env, ray)
    slot = jnp.where(hit, jnp.asarray(slots(model))[number], _ROOM).astype(jnp.float32)
    slot = texture.once(slot + 2) - 2
    point = [
        jnp.where(hit, jnp.where(slot == _SOCKET, b, jnp.where(slot == _PEG, c, a)), beyond[k])
        for k, (a, b, c) in enumerate(zip(on_table, on_socket, on_peg, strict=True))
    ]
    table = texture.columns(scene["paint"])

    def column(name: str) -> Array:
        values = table[name][env]  # [T, S]
        result = values[:, 0, None]
        for index in range(1, len(SLOTS)):
            result = jnp.where(slot == index, values[:, index, None], result)
        return result

    row = {name: column(name) for name in texture.COLUMNS}
    bare = slot == _BARE
    row["strength"] = jnp.where(bare, 0, row["strength"])
    row["grain"] = jnp.where(bare, 0, row["grain"])
    row["seam"] = jnp.where(bare, 0, row["seam"])
    pixel = jnp.abs(ray[0][:, 1:2] - ray[0][:, :1])  # at distance 1
    width = pixel * jnp.where(hit, depth / jnp.maximum(slant, np.float32(0.3)), far)
    index = env[:, None] * model.ngeom + number
    room = scene["room_rgb"][env]  # [T, 2, 3]
    base = [
        jnp.where(
            hit,
            scene["rgb"][:, :, k].reshape(-1)[index],
            jnp.where(down, room[:, 1, k, None], room[:, 0, k, None]),
        )
        for k in range(3)
    ]
    albedo = texture.textured(family, row, base, point, width)
    specular = jnp.where(bare, np.float32(-1), row["specular"])
    return Painted(albedo, specular, row["shininess"])


def _room(
    scene: dict[str, Array], frame: Array, env: Array, ray: list[Array]
) -> tuple[list[Array], Array, Array]:
    """Returns where rays leave a box around the table: the point, whether on the floor, how far along the ray.

    The box reaches to +-room_size[:2] sideways, and from -room_size[2] up to twice as high.
    """
    size = scene["room_size"][env]  # [T, 3]
    turn = [[frame[:, 0, 3 * a + b, None] for b in range(3)] for a in range(3)]
    aim = [turn[a][0] * ray[0] + turn[a][1] * ray[1] - turn[a][2] for a in range(3)]
    origin = [frame[:, 0, 9 + a, None] for a in range(3)]
    away = []
    for a in range(3):
        reach = size[:, a, None]
        high = reach if a < 2 else 2 * reach
        safe = jnp.where(jnp.abs(aim[a]) < 1e-6, np.float32(1e-6), aim[a])
        away.append((jnp.where(safe > 0, high, -reach) - origin[a]) / safe)
    far = jnp.maximum(jnp.minimum(jnp.minimum(away[0], away[1]), away[2]), 0)
    down = (away[2] <= far) & (aim[2] < 0)
    point = [origin[a] + far * aim[a] for a in range(3)]
    upright = away[0] <= far  # a wall across x: its pattern lies along y and z
    wall = [jnp.where(upright, point[1], point[0]), point[2], jnp.zeros_like(far)]
    flat = [point[0], point[1], jnp.zeros_like(far)]
    return [jnp.where(down, a, b) for a, b in zip(flat, wall, strict=True)], down, far
