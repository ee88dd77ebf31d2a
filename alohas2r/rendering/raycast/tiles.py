"""Rays, tiles and geometry of the ray caster."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.protocol import Prepared
from alohas2r.rendering.raycast import intersect
from alohas2r.rendering.raycast.shading import dot

TILE = 8  # pixels a side
GROUP = 128  # tiles that are worked on together: 8192 rays, which stay in the cache
MOST_TILES = 1024  # of one call

_KINDS = {
    int(mujoco.mjtGeom.mjGEOM_PLANE): "plane",
    int(mujoco.mjtGeom.mjGEOM_SPHERE): "sphere",
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): "capsule",
    int(mujoco.mjtGeom.mjGEOM_ELLIPSOID): "ellipsoid",
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): "cylinder",
    int(mujoco.mjtGeom.mjGEOM_BOX): "box",
    int(mujoco.mjtGeom.mjGEOM_MESH): "mesh",
}
_MOST_FACES = 256  # of a convex mesh

Sets = tuple[Array, ...]  # per batch of geoms, [T] uint32: bit k stands for the batch's geom k


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """A model's geoms by kind.

    Attributes:
      ids: kind -> [K] geom ids.
      faces: [K, F, 4] half spaces of the meshes, filled up with planes that cut nothing off.
      center: [G, 3] of each geom's bounding box in the geom's frame; half: [G, 3] its half sizes.
    """

    ids: dict[str, np.ndarray]
    faces: np.ndarray
    center: np.ndarray
    half: np.ndarray


def geometry(model: mujoco.MjModel) -> Geometry | str:
    """Sorts geoms by kind; or says which geom only MuJoCo's own ray caster knows."""
    ids: dict[str, list[int]] = {}
    bodies = []
    for geom in range(model.ngeom):
        kind = _KINDS.get(int(model.geom_type[geom]))
        name = f"geom '{model.geom(geom).name}'" if model.geom(geom).name else f"geom number {geom}"
        if kind is None:
            return f"{name} is no primitive and no mesh"
        if kind == "mesh":
            mesh = int(model.geom_dataid[geom])
            first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
            face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
            planes = intersect.half_spaces(
                model.mesh_vert[first : first + count], model.mesh_face[face : face + faces]
            )
            if planes is None or len(planes) > _MOST_FACES:
                return f"{name} is a mesh that is not convex, or has more than {_MOST_FACES} faces"
            bodies.append(planes)
        ids.setdefault(kind, []).append(geom)
    faces = np.zeros((len(bodies), max(map(len, bodies), default=0), 4), np.float32)
    faces[..., 3] = 1
    for index, planes in enumerate(bodies):
        faces[index, : len(planes)] = planes
    boxes = model.geom_aabb.reshape(-1, 6).astype(np.float32)
    sorted_ids = {kind: np.array(numbers) for kind, numbers in ids.items()}
    return Geometry(sorted_ids, faces, boxes[:, :3], boxes[:, 3:])


@dataclasses.dataclass(frozen=True, eq=False)
class Rays:
    """The pixels of all cameras, tile by tile, in strips that one call can draw.

    A ray's direction in the camera's frame is (x, y, -1), so that its parameter is the planar depth.

    Attributes:
      x, y: [S, C, B, P] for S strips of B tiles of each of C cameras; tiles go row by row, and the last
        strip is filled up with its last tile.
      rows, columns: of tiles in a picture.
    """

    x: np.ndarray
    y: np.ndarray
    rows: int
    columns: int


def rays(prepared: Prepared, width: int, height: int) -> Rays:
    """Returns the rays through the pixels' centres."""
    rows, columns = -(-height // TILE), -(-width // TILE)
    cameras = len(prepared.cameras)
    per_strip = min(rows * columns, max(1, MOST_TILES // cameras))
    strips = -(-rows * columns // per_strip)
    chosen = np.minimum(np.arange(strips * per_strip), rows * columns - 1)
    grids = []
    for camera in prepared.camera_ids:
        x, y = pinhole(prepared.model, int(camera), width, height)
        x = np.pad(x, (0, columns * TILE - width), mode="edge")
        y = np.pad(y, (0, rows * TILE - height), mode="edge")
        grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None]))
        grid = grid.reshape(2, rows, TILE, columns, TILE).transpose(0, 1, 3, 2, 4)
        grid = grid.reshape(2, rows * columns, TILE**2)[:, chosen]
        grids.append(grid.reshape(2, strips, per_strip, TILE**2))
    both = np.stack(grids, 2).astype(np.float32)
    return Rays(both[0], both[1], rows, columns)


def pinhole(
    model: mujoco.MjModel, camera: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x [W] and y [H] of the rays (x, y, -1) through the pixels' centres.

    Source: MuJoCo's documentation of cameras' fovy and intrinsics; mujoco_warp, compute_ray.
    """
    u, v = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    aspect = width / height
    sensor_width, sensor_height = model.cam_sensorsize[camera]
    if sensor_height > 0:
        fx, fy, cx, cy = model.cam_intrinsic[camera]
        if aspect > sensor_width / sensor_height:
            sensor_height = sensor_width / aspect
        elif aspect < sensor_width / sensor_height:
            sensor_width = sensor_height * aspect
        left, right = -(sensor_width / 2 - cx) / fx, (sensor_width / 2 + cx) / fx
        top, bottom = (sensor_height / 2 - cy) / fy, -(sensor_height / 2 + cy) / fy
    else:
        top = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        bottom, left, right = -top, -top * aspect, top * aspect
    return left + (right - left) * u, top + (bottom - top) * v


def ordered(work: Array, group: int) -> Array:
    """Returns the numbers of [T] amounts of work from the least to the most, filled up to whole groups.

    A group is done when its last tile is; so tiles with equal work go together.
    """
    count = len(work)
    order = jax.lax.sort(work * count + jnp.arange(count)) % count
    return jnp.concatenate([order, jnp.repeat(order[-1:], -count % group)])


def size_of(bits: Array) -> Array:
    """Returns how many elements sets have."""
    return jax.lax.population_count(bits).astype(jnp.int32)


def lowest(bits: Array) -> Array:
    """Returns the lowest element of sets; 32 for an empty one."""
    return size_of((bits & -bits) - 1)


def cross(a: Array, b: Array) -> list[Array]:
    """Returns the cross product of two vectors given by their parts."""
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def unit(a: Array) -> list[Array]:
    """Returns a vector, given by its parts, at length one."""
    scale = jax.lax.rsqrt(jnp.maximum(dot(a, a), np.float32(1e-20)))
    return [part * scale for part in a]
