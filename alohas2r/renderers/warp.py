"""MuJoCo Warp's batch renderer through MJX: for NVIDIA GPUs, and on a CPU as the reference in tests."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.errors import BackendUnavailable
from alohas2r.renderers import base
from alohas2r.renderers.base import Frames, Looks

_INSTALL = "pip install 'mujoco-mjx[warp]>=3.17'"


class WarpRenderer:
    """Draws batches with MuJoCo Warp: on the first NVIDIA GPU, or else on one CPU core.

    Warp fixes the number of environments when it prepares a picture, so a call with another number
    than the last one compiles anew; `capacity` avoids that: batches are cut and filled up to it.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      width, height: of the pictures, in pixels.
      cameras: names; None for the wrist cameras.
      shadows: whether lights that cast shadows do.
      capacity: environments drawn at a time; 0 for as many as the first call has.

    Raises:
      ConfigError: a size out of range, or an unknown camera.
      BackendUnavailable: Warp is not installed.
    """

    name = "warp"

    def __init__(
        self,
        source: Any,
        width: int = 32,
        height: int = 32,
        cameras: tuple[str, ...] | None = None,
        shadows: bool = True,
        capacity: int = 0,
    ):
        try:
            import warp as wp
            from mujoco import mjx
        except ImportError as error:
            raise BackendUnavailable(
                f"The renderer 'warp' needs Warp: {_INSTALL} ({error})."
            ) from error
        self.prepared = base.prepare(source, cameras)
        self.width, self.height = base.check_size(width, height)
        self.shadows, self.capacity = shadows, capacity
        wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
        self.device = str(wp.get_device())
        self._mjx = mjx
        try:
            self._model = mjx.put_model(self.prepared.model, impl="warp")
            self._data = mjx.make_data(self.prepared.model, impl="warp")
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise BackendUnavailable(
                f"Warp cannot draw this scene: {error}; {_INSTALL}."
            ) from error
        self._context: Any = None

    def render(self, poses: Any, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera; see `Renderer.render`.

        Raises:
          ConfigError: arrays of the wrong shape.
        """
        poses = base.check_poses(self.prepared, poses, self.width, self.height)
        n = len(poses)
        values = base.check_looks(self.prepared, looks, n)
        shape = (n, len(self.prepared.cameras), self.height, self.width)
        if not n:
            return Frames(np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32))
        self.capacity = self.capacity or n
        parts = []
        for start in range(0, n, self.capacity):
            chosen = np.minimum(np.arange(start, start + self.capacity), n - 1)
            parts.append(
                self._pictures(
                    poses[chosen], {name: value[chosen] for name, value in values.items()}
                )
            )
        packed, depth = (
            np.concatenate(part)[:n].reshape(shape) for part in zip(*parts, strict=True)
        )
        # Packed as 0xAARRGGBB.
        rgb = np.stack([packed >> 16 & 0xFF, packed >> 8 & 0xFF, packed & 0xFF], -1)
        return Frames(rgb.astype(np.uint8), depth)

    def _pictures(
        self, poses: np.ndarray, looks: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._context is None:
            self._context = self._mjx.create_render_context(
                self.prepared.model,
                nworld=self.capacity,
                cam_res=(self.width, self.height),
                cam_active=list(self.prepared.cameras),
                render_rgb=True,
                render_depth=True,
                use_textures=False,
                use_shadows=self.shadows,
                # Faces of our small meshes are flat, and the other renderers draw them so.
                enable_vertex_normals=False,
                use_precomputed_rays=True,
            )
        model = self.prepared.model
        data = {"qpos": jnp.asarray(poses[:, : model.nq], jnp.float32)}
        if poses.shape[1] > model.nq:
            split = model.nq + 3 * model.nmocap
            data["mocap_pos"] = jnp.asarray(poses[:, model.nq : split], jnp.float32).reshape(
                -1, model.nmocap, 3
            )
            data["mocap_quat"] = jnp.asarray(poses[:, split:], jnp.float32).reshape(
                -1, model.nmocap, 4
            )
        fields = {name: jnp.asarray(value) for name, value in looks.items()}
        for name in ("light_castshadow", "light_active"):
            if name in fields:
                fields[name] = fields[name].astype(getattr(self._model, name).dtype)
        packed, depth = self._draw(fields, data)
        return np.asarray(packed), np.asarray(depth)

    @functools.cached_property
    def _draw(self) -> Any:
        """The compiled function from looks and poses to packed colours and depths [N, pixels]."""
        mjx, handle = self._mjx, self._context.pytree()

        def draw(fields: dict[str, Any], moved: dict[str, Any]) -> tuple[Any, Any]:
            model = self._model.tree_replace(fields)
            axes = jax.tree.map(lambda _: None, self._model).tree_replace(dict.fromkeys(fields, 0))

            def place(model: Any, moved: dict[str, Any]) -> Any:
                return mjx.forward(model, self._data.replace(**moved))

            data = jax.vmap(place, in_axes=(axes, 0))(model, moved)
            data = jax.vmap(mjx.refit_bvh, in_axes=(axes, 0, None))(model, data, handle)
            packed, depth, _ = jax.vmap(mjx.render, in_axes=(axes, 0, None))(model, data, handle)
            return packed, depth

        return jax.jit(draw)
