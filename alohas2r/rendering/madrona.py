"""Adapter for Madrona-MJX, a batch renderer for NVIDIA GPUs, for those who have built it.

Written against its published Python interface (github.com/shacklettbp/madrona_mjx,
src/madrona_mjx/renderer.py): `BatchRenderer(m, gpu_id, num_worlds, batch_render_view_width,
batch_render_view_height, enabled_geom_groups, enabled_cameras, use_rasterizer)`, `init(data, model)`
-> (token, rgb, depth), which takes the looks, and `render(token, data)`, which does not. It was not
measured by us. Its shading is its own; its depth is passed on as it comes.
"""

from __future__ import annotations

import functools
import inspect

import numpy as np

from alohas2r.core.types import Array, Untyped
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering.protocol import Frames, Looks, Source

INSTALL = (
    "git clone --recursive https://github.com/shacklettbp/madrona_mjx; build it with CMake on a machine"
    " with an NVIDIA GPU and CUDA, and pip install -e madrona_mjx"
)
_WANTED = ("m", "gpu_id", "num_worlds", "batch_render_view_width", "batch_render_view_height")
_OWN_COLOUR = -2  # geom_matid of geoms that show geom_rgba instead of a material


class MadronaRenderer:
    """Draws batches with Madrona-MJX on an NVIDIA GPU.

    Madrona allows one renderer in a process, and it always draws the same number of environments: that of
    the first call.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      width, height: of the pictures, in pixels.
      cameras: names; None for the wrist cameras.
      shadows: whether lights that cast shadows do.
      outputs: ("rgb", "depth"), or ("depth",): the same depth, and no light, shading or shadow is computed.
      rasterizer: whether to rasterize instead of tracing rays.
      gpu: number of the GPU.

    Raises:
      ConfigError: a size out of range, or an unknown camera.
      BackendUnavailable: Madrona-MJX is not installed, or its interface is another one.
    """

    name = "madrona"

    def __init__(
        self,
        source: Source,
        width: int = 32,
        height: int = 32,
        cameras: tuple[str, ...] | None = None,
        shadows: bool = True,
        outputs: tuple[str, ...] = rendering_protocol.RGBD,
        rasterizer: bool = False,
        gpu: int = 0,
    ):
        try:
            from madrona_mjx.renderer import (  # pyright: ignore[reportMissingImports]
                BatchRenderer,
            )
        except ImportError as error:
            raise BackendUnavailable(
                f"The renderer 'madrona' needs Madrona-MJX: {INSTALL} ({error})."
            ) from error
        import mujoco.mjx as mjx

        known = inspect.signature(BatchRenderer).parameters
        missing = [name for name in _WANTED if name not in known]
        if missing:
            raise BackendUnavailable(
                f"This version of Madrona-MJX is not known: BatchRenderer has no {', '.join(missing)}."
            )
        self.prepared = rendering_protocol.prepare(source, cameras)
        rendering_protocol.refuse_transfer(self.prepared, self.name)
        self.width, self.height = rendering_protocol.check_size(width, height)
        self.colour = rendering_protocol.check_outputs(outputs)
        self.shadows = shadows and self.colour
        self._mjx, self._model = mjx, mjx.put_model(self.prepared.model, impl="jax")
        self._data = mjx.make_data(self.prepared.model, impl="jax")
        options = {
            "enabled_geom_groups": np.array(rendering_protocol.GROUPS),
            "enabled_cameras": self.prepared.camera_ids,
            "use_rasterizer": rasterizer,
            "add_cam_debug_geo": False,
            "viz_gpu_hdls": None,
        }
        self._new = functools.partial(
            BatchRenderer,
            m=self._model,
            gpu_id=gpu,
            batch_render_view_width=self.width,
            batch_render_view_height=self.height,
            **{name: value for name, value in options.items() if name in known},
        )
        self._all_cameras = "enabled_cameras" not in known
        self._renderer: Untyped = None
        self._worlds = 0
        self._token: Untyped = None
        self._looks: dict[str, np.ndarray] = {}

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera; see `Renderer.render`.

        Raises:
          ConfigError: arrays of the wrong shape, or another number of environments than before.
        """
        import jax
        import jax.numpy as jnp

        poses = rendering_protocol.check_poses(self.prepared, poses, self.width, self.height)
        n = len(poses)
        values = rendering_protocol.check_looks(self.prepared, looks, n)
        if not n:
            shape = (0, len(self.prepared.cameras), self.height, self.width)
            rgb = np.empty((*shape, 3), np.uint8) if self.colour else None
            return Frames(rgb, np.empty(shape, np.float32))
        if self._renderer is None:
            self._renderer, self._worlds = self._new(num_worlds=n), n
        if n != self._worlds:
            raise ConfigError(
                f"Madrona draws {self._worlds} environments at a time, as at first; not {n}."
            )
        values["geom_matid"] = np.full((n, self.prepared.model.ngeom), _OWN_COLOUR)
        values.setdefault("geom_size", np.repeat(self.prepared.model.geom_size[None], n, 0))
        if not self.shadows:
            values["light_castshadow"] = np.zeros_like(values["light_castshadow"])
        if not self.colour:
            values["light_active"] = np.zeros((n, self.prepared.model.nlight), bool)
        fields: dict[str, Array] = {
            name: jnp.asarray(value, getattr(self._model, name).dtype)
            for name, value in values.items()
        }
        model = self._model.tree_replace(fields)
        axes = jax.tree.map(lambda _: None, self._model).tree_replace(dict.fromkeys(fields, 0))
        qpos = jnp.asarray(poses[:, : self.prepared.model.nq], jnp.float32)
        data = jax.jit(jax.vmap(self._placed, in_axes=(axes, 0)))(model, qpos)
        same = self._token is not None and all(
            np.array_equal(value, self._looks[name]) for name, value in values.items()
        )
        if same:
            _, rgb, depth = jax.vmap(self._renderer.render, in_axes=(None, 0))(self._token, data)
        else:
            start = jax.vmap(self._renderer.init, in_axes=(0, axes), out_axes=(None, 0, 0))
            self._token, rgb, depth = start(data, model)
            self._looks = values
        rgb, depth = np.asarray(rgb), np.asarray(depth)
        if self._all_cameras:
            rgb, depth = rgb[:, self.prepared.camera_ids], depth[:, self.prepared.camera_ids]
        colour = rgb[..., :3].astype(np.uint8) if self.colour else None
        return Frames(colour, depth[..., 0].astype(np.float32))

    def _placed(self, model: Untyped, qpos: Array) -> Untyped:
        data = self._mjx.kinematics(model, self._data.replace(qpos=qpos))
        return self._mjx.camlight(model, self._mjx.com_pos(model, data))
