"""MuJoCo Warp's batch renderer through MJX: for NVIDIA GPUs, and on a CPU as the reference in tests."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array, Untyped
from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import stereo
from alohas2r.rendering.protocol import Frames, Looks, Source

_INSTALL = "pip install 'mujoco-mjx[warp]>=3.17'"


class WarpRenderer:
    """Draws batches with MuJoCo Warp: on the first NVIDIA GPU, or else on one CPU core.

    Warp fixes the number of environments when it prepares a picture, so a call with another number
    than the last one compiles anew; `capacity` avoids that: batches are cut and filled up to it. `draw` is for
    compiled code, which has as many environments as `capacity`.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      width, height: of the pictures, in pixels.
      cameras: names; None for the wrist cameras.
      shadows: whether lights that cast shadows do.
      outputs: ("rgb", "depth"), or ("depth",): the same depth, and no light, shading or shadow is computed.
      capacity: environments drawn at a time; 0 for as many as the first call has.

    Raises:
      ConfigError: a size out of range, or an unknown camera.
      BackendUnavailable: Warp is not installed, or cannot draw this scene.
    """

    name = "warp"

    def __init__(
        self,
        source: Source,
        width: int = 32,
        height: int = 32,
        cameras: tuple[str, ...] | None = None,
        shadows: bool = True,
        outputs: tuple[str, ...] = rendering_protocol.RGBD,
        capacity: int = 0,
    ):
        try:
            import warp as wp
            from mujoco import mjx
        except ImportError as error:
            raise BackendUnavailable(
                f"The renderer 'warp' needs Warp: {_INSTALL} ({error})."
            ) from error
        self.prepared = rendering_protocol.prepare(source, cameras)
        rendering_protocol.refuse_transfer(self.prepared, self.name)
        self.width, self.height = rendering_protocol.check_size(width, height)
        self.colour = rendering_protocol.check_outputs(outputs)
        self.shadows, self.capacity = shadows and self.colour, capacity
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
        self._context: Untyped = None
        if capacity:
            self._open(capacity)

    def _open(self, capacity: int) -> None:
        """Prepares pictures of so many environments, which cannot be done within compiled code."""
        self.capacity = capacity
        self._context = self._mjx.create_render_context(
            self.prepared.model,
            nworld=capacity,
            cam_res=(self.width, self.height),
            cam_active=list(self.prepared.cameras),
            render_rgb=self.colour,
            render_depth=True,
            use_textures=False,
            use_shadows=self.shadows,
            # Faces of our small meshes are flat, and the other renderers draw them so.
            enable_vertex_normals=False,
            use_precomputed_rays=True,
        )

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera; see `Renderer.render`.

        Raises:
          ConfigError: arrays of the wrong shape.
        """
        poses = rendering_protocol.check_poses(self.prepared, poses, self.width, self.height)
        n = len(poses)
        rendering_protocol.check_looks(self.prepared, looks, n)
        values = {
            name: np.asarray(value)
            for name, value in (looks or {}).items()
            if name in (*rendering_protocol.LOOK_FIELDS, stereo.PLACE, stereo.TURN)
        }
        shape = (n, len(self.prepared.cameras), self.height, self.width)
        if not n:
            rgb = np.empty((*shape, 3), np.uint8) if self.colour else None
            return Frames(rgb, np.empty(shape, np.float32))
        if self._context is None:
            self._open(n)
        parts = []
        for start in range(0, n, self.capacity):
            chosen = np.minimum(np.arange(start, start + self.capacity), n - 1)
            drawn = self._draw(poses[chosen], {name: some[chosen] for name, some in values.items()})
            parts.append(jax.tree.map(np.asarray, drawn))
        rgb = np.concatenate([part.rgb for part in parts])[:n] if self.colour else None
        return Frames(rgb, np.concatenate([part.depth for part in parts])[:n])

    @functools.cached_property
    def _draw(self) -> Array:
        return jax.jit(self.draw)

    def draw(self, poses: jax.Array, looks: Looks | None = None) -> Frames:
        """Draws as `render` does, but can be called inside `jax.jit`.

        Args:
          poses: [capacity, nq] or [capacity, nq + 7 nmocap].
          looks: model field -> [capacity, ...], as from `looks.sample_looks`; None for the model's own.

        Returns:
          The pictures as JAX arrays.

        Raises:
          ConfigError: another number of environments than the `capacity` that the renderer was made for.
        """
        n = poses.shape[0]
        if self._context is None or n != self.capacity:
            raise ConfigError(
                f"Compiled code draws as many environments as the renderer has capacity for: {self.capacity}, not {n}."
            )
        mjx, handle = self._mjx, self._context.pytree()
        fields = self._fields(looks or {}, n)
        model = self._model.tree_replace(fields)
        axes = jax.tree.map(lambda _: None, self._model).tree_replace(dict.fromkeys(fields, 0))

        def place(model: Untyped, moved: dict[str, Array]) -> Untyped:
            return mjx.forward(model, self._data.replace(**moved))

        data = jax.vmap(place, in_axes=(axes, 0))(model, self._moved(poses))
        data = jax.vmap(mjx.refit_bvh, in_axes=(axes, 0, None))(model, data, handle)
        packed, depth, _ = jax.vmap(mjx.render, in_axes=(axes, 0, None))(model, data, handle)
        shape = (n, len(self.prepared.cameras), self.height, self.width)
        if not self.colour:
            return Frames(None, depth.reshape(shape))
        packed = packed.reshape(shape)  # 0xAARRGGBB
        rgb = jnp.stack([packed >> 16 & 0xFF, packed >> 8 & 0xFF, packed & 0xFF], -1)
        return Frames(rgb.astype(jnp.uint8), depth.reshape(shape))

    def _fields(self, looks: Looks, n: int) -> dict[str, jax.Array]:
        """Returns the fields of the reduced model that looks determine, as Warp wants them."""
        fields = {
            name: jnp.broadcast_to(value, (n, *value.shape))
            for name, value in self.prepared.nominal.items()
        }
        if self.prepared.rig is not None:
            looks = stereo.rigged(self.prepared.rig, looks, jnp)
        for name in rendering_protocol.LOOK_FIELDS:
            if name in looks:
                value = jnp.asarray(looks[name])
                fields[name] = value[:, self.prepared.geoms] if name.startswith("geom_") else value
        return {
            name: value.astype(getattr(self._model, name).dtype) for name, value in fields.items()
        }

    def _moved(self, poses: jax.Array) -> dict[str, jax.Array]:
        """Returns the fields of the data that poses determine."""
        model = self.prepared.model
        poses = jnp.asarray(poses, jnp.float32)
        moved = {"qpos": poses[:, : model.nq]}
        if poses.shape[1] > model.nq:
            split = model.nq + 3 * model.nmocap
            moved["mocap_pos"] = poses[:, model.nq : split].reshape(-1, model.nmocap, 3)
            moved["mocap_quat"] = poses[:, split:].reshape(-1, model.nmocap, 4)
        return moved
