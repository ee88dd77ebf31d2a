"""OpenGL's pictures of batches, one environment after the other: for videos and large pictures.

OpenGL smooths nothing here (no multisampling) and shades a little otherwise than the batch
renderers: its shadows are soft-edged maps, and it clips what is nearer than the near plane.
"""

from __future__ import annotations

import copy

import mujoco
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering.offscreen import Offscreen, fixed_camera
from alohas2r.rendering.protocol import Frames, Looks, Prepared, Source


class OpenGLBatchRenderer:
    """Draws batches with OpenGL; use it in one thread, as a context manager or with `close`.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      width, height: of the pictures, in pixels.
      cameras: names; None for the wrist cameras.
      shadows: whether lights that cast shadows do.
      outputs: ("rgb", "depth"), or ("depth",): the same depth, and no light, shading or shadow is computed.

    Raises:
      ConfigError: a size out of range, or an unknown camera.
      BackendUnavailable: OpenGL is not to be had here; `renderers.for_pictures` falls back.
    """

    name = "opengl"

    def __init__(
        self,
        source: Source,
        width: int = 32,
        height: int = 32,
        cameras: tuple[str, ...] | None = None,
        shadows: bool = True,
        outputs: tuple[str, ...] = rendering_protocol.RGBD,
    ):
        self.prepared: Prepared = rendering_protocol.prepare(source, cameras)
        rendering_protocol.refuse_transfer(self.prepared, self.name)
        self.width, self.height = rendering_protocol.check_size(width, height)
        self.colour = rendering_protocol.check_outputs(outputs)
        self._model = copy.copy(self.prepared.model)
        buffer = self._model.vis.global_
        buffer.offwidth, buffer.offheight = (
            max(buffer.offwidth, width),
            max(buffer.offheight, height),
        )
        self._model.vis.quality.offsamples = 0
        self._data = mujoco.MjData(self._model)
        self._view = DepthView(
            self._model, self.height, self.width, shadows=shadows and self.colour
        )

    def __enter__(self) -> OpenGLBatchRenderer:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the context."""
        self.close()

    def close(self) -> None:
        """Frees the context; the renderer cannot be used afterwards."""
        self._view.close()

    def render(self, poses: Array, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera; see `Renderer.render`.

        Raises:
          ConfigError: arrays of the wrong shape.
        """
        poses = rendering_protocol.check_poses(self.prepared, poses, self.width, self.height)
        values = rendering_protocol.check_looks(self.prepared, looks, len(poses))
        model, data = self._model, self._data
        shape = (len(poses), len(self.prepared.cameras), self.height, self.width)
        rgb = np.zeros((*shape, 3), np.uint8) if self.colour else None
        depth = np.zeros(shape, np.float32)
        for index, pose in enumerate(poses):
            if not np.isfinite(pose).all():
                continue  # nothing is seen
            for name, value in values.items():
                getattr(model, name)[:] = value[index]
            data.qpos[:] = pose[: model.nq]
            if len(pose) > model.nq:
                split = model.nq + 3 * model.nmocap
                data.mocap_pos[:] = pose[model.nq : split].reshape(-1, 3)
                data.mocap_quat[:] = pose[split:].reshape(-1, 4)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            for camera, name in enumerate(self.prepared.cameras):
                colours = None if rgb is None else rgb[index, camera]
                depth[index, camera] = self._view.depth(data, name, colours)
        return Frames(rgb, depth)


class DepthView(Offscreen):
    """An off-screen view that gives depth as well."""

    def both(
        self, data: mujoco.MjData, camera: str, sky: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns colour [H, W, 3] uint8 and planar depth [H, W] float32 (m), the first row on top.

        Args:
          data: the state. camera: a camera's name.
          sky: whether the model's sky is drawn where nothing else is; else that is black.
        """
        colours = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        return colours, self.depth(data, camera, colours, sky)

    def depth(
        self,
        data: mujoco.MjData,
        camera: str,
        colours: np.ndarray | None = None,
        sky: bool = False,
    ) -> np.ndarray:
        """Returns planar depth [H, W] float32 (m), the first row on top.

        Args:
          data: the state. camera: a camera's name.
          colours: [H, W, 3] uint8, where colour goes; None to do without light and colour.
          sky: see `both`.
        """
        self._gl.make_current()
        self._option.sitegroup[:] = 0
        self._mjr.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR.value
        mujoco.mjv_updateScene(
            self.model,
            data,
            self._option,
            self._perturb,
            fixed_camera(self.model, camera),
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = sky
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        if colours is None:
            self._scene.nlight = 0
        mujoco.mjr_render(self._rect, self._scene, self._mjr)
        shape = (self._rect.height, self._rect.width)
        pixels = None if colours is None else np.empty((*shape, 3), np.uint8)
        buffer = np.empty(shape, np.float32)
        mujoco.mjr_readPixels(pixels, buffer, self._rect, self._mjr)
        near, far = (
            self.model.stat.extent * getattr(self.model.vis.map, name) for name in ("znear", "zfar")
        )
        # The depth buffer is 1 on the near plane and 0 on the far one, linear in 1 / depth.
        buffer = buffer.astype(np.float64)
        depth = np.where(buffer > 0, 1 / (1 / far + buffer * (1 / near - 1 / far)), 0)
        if colours is not None and pixels is not None:
            colours[:] = pixels[::-1]
        return depth[::-1].astype(np.float32)
