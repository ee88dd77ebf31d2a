"""Ray casting on a CPU: primary rays, shading and shadows for a whole batch, on all cores.

Two casters find what rays hit; both are shaded alike (see `shading`). "vector" intersects the geoms by
closed forms in JAX, thousands of rays at a time (see `drawing`); it knows all primitives and
convex meshes. "mujoco" asks `mujoco.batch.Batch.ray` for distance, geom and normal (see `exact`);
it knows everything that MuJoCo knows, is several times slower, and is what the first is tested
against.
"""

from __future__ import annotations

import concurrent.futures
import functools

import jax
import mujoco
import mujoco.batch
import numpy as np

from alohas2r.core import threads as core_threads
from alohas2r.core.types import Array
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering.protocol import Frames, Looks, Prepared, Source
from alohas2r.rendering.raycast import kernel
from alohas2r.rendering.raycast import tiles as raycast_tiles
from alohas2r.rendering.raycast.exact import ExactDrawing
from alohas2r.rendering.raycast.tiles import TILE

CASTERS = ("auto", "vector", "mujoco")


@functools.lru_cache(maxsize=8)
def _geometry(prepared: Prepared) -> raycast_tiles.Geometry | str:
    return raycast_tiles.geometry(prepared.model)


@functools.lru_cache(maxsize=8)
def _drawing(
    prepared: Prepared, chunk: int, tiles: int, shadows: bool, colour: bool
) -> kernel.Drawing:
    """Returns what renderers of the same model and size share: compiling it takes seconds."""
    geometry = _geometry(prepared)
    assert not isinstance(geometry, str)
    return kernel.Drawing(prepared, geometry, chunk, tiles, shadows, colour)


class RaycastRenderer:
    """Draws batches on a CPU.

    Pictures depend on pose and looks alone, not on the batch's size or the number of threads.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      width, height: of the pictures, in pixels.
      cameras: names; None for the wrist cameras.
      shadows: whether lights that cast shadows do.
      outputs: ("rgb", "depth"), or ("depth",): the same depth, and no light, shading or shadow is computed.
      threads: to use; 0 for all cores.
      batch: environments that a thread draws at a time; 0 for as many as are fast. Batches are filled up, so
        a smaller number is quicker for a few environments.
      caster: "vector", "mujoco", or "auto": the first where it knows all geoms.

    Raises:
      ConfigError: a size out of range, an unknown camera or caster, or a scene that the vector caster
        does not know.
    """

    name = "raycast"

    def __init__(
        self,
        source: Source,
        width: int = 32,
        height: int = 32,
        cameras: tuple[str, ...] | None = None,
        shadows: bool = True,
        outputs: tuple[str, ...] = rendering_protocol.RGBD,
        threads: int = 0,
        caster: str = "auto",
        batch: int = 0,
    ):
        if caster not in CASTERS:
            raise ConfigError(f"Unknown caster '{caster}'.{did_you_mean(caster, CASTERS)}")
        self.prepared = rendering_protocol.prepare(source, cameras)
        self.width, self.height = rendering_protocol.check_size(width, height)
        self.shadows = shadows
        self.colour = rendering_protocol.check_outputs(outputs)
        self.threads = threads or len(core_threads.cores())
        geometry = _geometry(self.prepared)
        if isinstance(geometry, str) and caster == "vector":
            raise ConfigError(f"{geometry}: only the caster 'mujoco' knows it.")
        self.caster = "mujoco" if isinstance(geometry, str) or caster == "mujoco" else "vector"
        self._rays = raycast_tiles.rays(self.prepared, self.width, self.height)
        tiles = self._rays.x.shape[2]
        self._chunk = max(1, raycast_tiles.MOST_TILES // (len(self.prepared.cameras) * tiles))
        self._chunk = min(self._chunk, batch) if batch > 0 else self._chunk
        if self.caster == "mujoco" or isinstance(geometry, str):
            self._exact: ExactDrawing | None = ExactDrawing(
                self.prepared, self._chunk, tiles, shadows, self.colour
            )
        else:
            self._exact = None
            self._drawing = _drawing(
                self.prepared, self._chunk, tiles, shadows and self.colour, self.colour
            )
        self._cpu = jax.devices("cpu")[0]
        exact = self.caster == "mujoco"
        self._workers = [Worker(self.prepared, self._chunk, exact) for _ in range(self.threads)]

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera.

        Args:
          poses: [N, nq], or [N, nq + 7 nmocap] with the mocap bodies' positions and orientations.
          looks: model field -> [N, ...]; None for the model's own.

        Returns:
          rgb [N, C, H, W, 3] uint8 (None without colour), depth [N, C, H, W] float32 in metres, 0 where nothing
          is seen.

        Raises:
          ConfigError: arrays of the wrong shape.
        """
        poses = rendering_protocol.check_poses(self.prepared, poses, self.width, self.height)
        n = len(poses)
        values = rendering_protocol.check_looks(self.prepared, looks, n)
        shape = (n, len(self.prepared.cameras), self.height, self.width)
        rgb = np.empty((*shape, 3), np.uint8) if self.colour else None
        depth = np.empty(shape, np.float32)
        starts = range(0, n, self._chunk)
        if not starts:
            return Frames(rgb, depth)
        workers = self._workers[: len(starts)]

        def work(index: int) -> None:
            for start in starts[index :: len(workers)]:
                chosen = np.minimum(np.arange(start, start + self._chunk), n - 1)
                stop = min(start + self._chunk, n)
                colours, depths = self._chunk_pictures(
                    workers[index],
                    poses[chosen],
                    {name: value[chosen] for name, value in values.items()},
                )
                depth[start:stop] = depths[: stop - start]
                if rgb is not None and colours is not None:
                    rgb[start:stop] = colours[: stop - start]

        if len(workers) == 1:
            work(0)
        else:
            with core_threads.spread(), concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
                list(pool.map(work, range(len(workers))))
        return Frames(rgb, depth)

    def _chunk_pictures(
        self, worker: Worker, poses: np.ndarray, looks: dict[str, np.ndarray]
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Draws one chunk of environments: rgb [E, C, H, W, 3] (None without colour) and depth [E, C, H, W]."""
        scene = worker.place(poses, looks, self.colour)
        depths, colours = [], []
        with jax.default_device(self._cpu):
            for x, y in zip(self._rays.x, self._rays.y, strict=True):
                if self._exact is not None:
                    colour, depth = self._exact.run(worker.batch, scene, x, y)
                    colours.append(colour)
                    depths.append(depth)
                    continue
                *colour, depth, tiles = (
                    np.asarray(part) for part in self._drawing.run(scene, x, y)
                )
                place = np.empty(self._chunk * x.shape[0] * x.shape[1], np.intp)
                place[tiles] = np.arange(len(tiles))
                colours += [part[place] for part in colour]
                depths.append(depth[place])
        depth = self._assemble(depths)
        if not self.colour:
            return None, depth
        packed = np.ascontiguousarray(self._assemble(colours))
        return packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3], depth

    def _assemble(self, strips: list[np.ndarray]) -> np.ndarray:
        """Puts the tiles of strips, [E * C * B, P] each, together into pictures [E, C, H, W]."""
        cameras, rows, columns = len(self.prepared.cameras), self._rays.rows, self._rays.columns
        tiles = np.concatenate(
            [part.reshape(self._chunk, cameras, -1, TILE, TILE) for part in strips], 2
        )
        tiles = tiles[:, :, : rows * columns].reshape(
            self._chunk, cameras, rows, columns, TILE, TILE
        )
        whole = tiles.transpose(0, 1, 2, 4, 3, 5)
        whole = whole.reshape(self._chunk, cameras, rows * TILE, columns * TILE)
        return whole[:, :, : self.height, : self.width]


class Worker:
    """One thread's simulations: from poses and looks to where everything is.

    Args:
      prepared: the model.
      chunk: number of environments.
      exact: whether MuJoCo casts the rays, which then has to know what looks change of geoms.
    """

    def __init__(self, prepared: Prepared, chunk: int, exact: bool = False):
        model = prepared.model
        self.prepared = prepared
        self.batch = mujoco.batch.Batch(model, chunk, nthread=1)
        self._qpos = self.batch.bind("qpos")
        self._mocap = (
            (self.batch.bind("mocap_pos"), self.batch.bind("mocap_quat")) if model.nmocap else ()
        )
        names = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
        self._found = {name: self.batch.bind(name) for name in names}
        moved = ("cam_pos", "cam_quat", "light_pos", "light_dir")
        if exact and prepared.transfer:
            moved = (*moved, "geom_pos", "geom_quat", "geom_size")
        self._moved = {name: self.batch.expand(name) for name in moved if getattr(model, name).size}
        self._bounds = ()
        if exact and prepared.transfer:
            self._bounds = self.batch.expand("geom_rbound"), self.batch.expand("geom_aabb")
        self._extra = np.flatnonzero(prepared.geoms >= prepared.scene_geoms)

    def place(
        self, poses: np.ndarray, looks: dict[str, np.ndarray], colour: bool = True
    ) -> dict[str, np.ndarray]:
        """Returns poses of geoms, cameras and lights in the world, and their looks; float32.

        Without colour, colours and lights are left out.
        """
        model = self.prepared.model
        self._qpos[:] = poses[:, : model.nq]
        if self._mocap and poses.shape[1] > model.nq:
            split = model.nq + 3 * model.nmocap
            self._mocap[0][:] = poses[:, model.nq : split].reshape(self._mocap[0].shape)
            self._mocap[1][:] = poses[:, split:].reshape(self._mocap[1].shape)
        for name in ("geom_pos", "body_pos", "body_quat"):
            if name in looks and name not in self._moved:
                self._moved[name] = self.batch.expand(name)
        for name, target in self._moved.items():
            target[:] = looks[name] if name in looks else getattr(model, name)
        if self._bounds:
            radius, box = _bounding(model, looks["geom_size"])
            self._bounds[0][:], self._bounds[1][:] = radius, box
        self.batch.forward(stage=int(mujoco.mjtStage.mjSTAGE_POS))
        n, cameras = len(poses), self.prepared.camera_ids
        scene: dict[str, Array] = {
            name: np.asarray(value, np.float32).reshape(n, -1, 3)
            for name, value in self._found.items()
        }
        scene["geom_xmat"] = scene["geom_xmat"].reshape(n, model.ngeom, 3, 3)
        if self.prepared.transfer:
            extra = self._extra  # they stand in the world's frame
            scene["geom_xpos"][:, extra] = looks["geom_pos"][:, extra]
            scene["geom_xmat"][:, extra] = _matrices(looks["geom_quat"][:, extra])
            scene["zoom"], scene["shift"] = _intrinsics(self.prepared, looks["cam_intrinsic"])
        scene["cam_xpos"] = scene["cam_xpos"][:, cameras]
        scene["cam_xmat"] = scene["cam_xmat"].reshape(n, model.ncam, 3, 3)[:, cameras]
        size = looks.get("geom_size")
        if size is None:
            size = np.broadcast_to(model.geom_size, (n, model.ngeom, 3))
        scene["size"] = np.asarray(size, np.float32)
        if not colour:
            return scene
        scene["rgb"] = np.asarray(looks["geom_rgba"][..., :3], np.float32)
        if self.prepared.transfer:
            for name in ("paint", "room_rgb", "room_size", "radiance"):
                scene[name] = np.asarray(looks[name], np.float32)
        for name in _LIGHT_FIELDS:
            value = looks.get(name)
            if value is None:
                value = np.broadcast_to(getattr(model, name), (n, *getattr(model, name).shape))
            scene[name] = np.asarray(value, np.float32)
        return scene


def _bounding(model: mujoco.MjModel, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns radius [N, G] and box [N, G, 6] around geoms of sizes [N, G, 3]; meshes' and planes' are the model's."""
    radius = np.repeat(model.geom_rbound[None], len(size), 0)
    box = np.repeat(model.geom_aabb.reshape(1, -1, 6), len(size), 0)
    kinds = mujoco.mjtGeom
    for geom, kind in enumerate(model.geom_type):
        one, two, three = (size[:, geom, k] for k in range(3))
        half = {
            int(kinds.mjGEOM_BOX): (one, two, three),
            int(kinds.mjGEOM_CYLINDER): (one, one, two),
            int(kinds.mjGEOM_CAPSULE): (one, one, one + two),
        }.get(int(kind))
        if half is not None:
            box[:, geom, 3:] = np.stack(half, -1)
            radius[:, geom] = np.linalg.norm(np.stack(half, -1), axis=-1)
    return radius, box


def _matrices(quat: np.ndarray) -> np.ndarray:
    """Turns unit quaternions [..., 4] into matrices [..., 3, 3]."""
    w, x, y, z = np.moveaxis(np.asarray(quat, np.float32), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _intrinsics(prepared: Prepared, intrinsic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns by how much rays differ from the nominal ones: zoom [N, C] and shift [N, C, 2] of (x, y, -1).

    Args:
      prepared: the model. intrinsic: [N, ncam, 4] focal lengths and principal points, of a sensor of size 1 x 1.
    """
    given = np.asarray(intrinsic, np.float32)[:, prepared.camera_ids]
    own = prepared.nominal["cam_intrinsic"][prepared.camera_ids]
    shift = np.stack([given[..., 2] / given[..., 0], -given[..., 3] / given[..., 1]], -1)
    return own[:, 0] / given[..., 0], shift


_LIGHT_FIELDS = (
    "light_castshadow",
    "light_active",
    "light_ambient",
    "light_diffuse",
    "light_specular",
)
