"""Pictures of one simulation by OpenGL, for videos and for people; no display is needed."""

from __future__ import annotations

import importlib
import os

import mujoco
import numpy as np

from alohas2r.core import opengl
from alohas2r.core.types import Untyped
from alohas2r.errors import BackendUnavailable, ConfigError, did_you_mean

_INSTALL = "install EGL (Debian: apt-get install libegl1 libgl1-mesa-dri)"


class Offscreen:
    """Draws a model's named cameras and free views into arrays.

    The platform is the one that MUJOCO_GL names (egl, osmesa, glfw), else EGL, else, where there
    is a display, GLFW. Use it in one thread, as a context manager or with `close`.
    """

    def __init__(
        self, model: mujoco.MjModel, height: int, width: int, *, shadows: bool = True
    ) -> None:
        """Creates the OpenGL context.

        Args:
          model: the compiled model.
          height: of the pictures, in pixels.
          width: likewise.
          shadows: whether to draw shadows and reflections, which takes most of the time where
            there is no GPU.

        Raises:
          ConfigError: the picture is larger than the model's off-screen buffer.
          BackendUnavailable: OpenGL is not to be had on this machine.
        """
        limits = model.vis.global_.offheight, model.vis.global_.offwidth
        if not (0 < height <= limits[0] and 0 < width <= limits[1]):
            raise ConfigError(
                f"A picture of {width} x {height} is out of range: 1..{limits[1]} x 1..{limits[0]}."
            )
        self.model = model
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._gl: Untyped = _context(width, height)
        self._gl.make_current()
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = shadows
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()

    def __enter__(self) -> Offscreen:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the context."""
        self.close()

    def picture(self, data: mujoco.MjData, camera: str | mujoco.MjvCamera) -> np.ndarray:
        """Draws the current state, which must have been forwarded (mj_forward).

        Args:
          data: the state.
          camera: a camera's name, or a free camera.

        Returns:
          [H, W, 3] uint8, the first row on top.

        Raises:
          ConfigError: the model has no camera of that name.
        """
        view = fixed_camera(self.model, camera) if isinstance(camera, str) else camera
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self.model,
            data,
            self._option,
            self._perturb,
            view,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        mujoco.mjr_render(self._rect, self._scene, self._mjr)
        pixels = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._rect, self._mjr)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Frees the context; the renderer cannot be used afterwards."""
        if self._gl is not None:
            self._gl.make_current()
            self._mjr.free()
            self._gl.free()
            self._gl = None


def fixed_camera(model: mujoco.MjModel, name: str) -> mujoco.MjvCamera:
    """Returns the view of a camera of the model.

    Raises:
      ConfigError: there is no camera of that name.
    """
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if number < 0:
        names = [model.camera(index).name for index in range(model.ncam)]
        raise ConfigError(f"There is no camera '{name}'.{did_you_mean(name, names)}")
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED.value
    camera.fixedcamid = number
    return camera


def free_camera(
    lookat: np.ndarray | tuple[float, float, float],
    distance: float,
    azimuth_deg: float,
    elevation_deg: float,
) -> mujoco.MjvCamera:
    """Returns a view of a point (world, metres) from a distance (m) and direction (degrees)."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
    camera.lookat[:] = lookat
    camera.distance, camera.azimuth, camera.elevation = distance, azimuth_deg, elevation_deg
    return camera


def _context(width: int, height: int) -> Untyped:
    """Returns the first OpenGL context that can be had."""
    chosen = os.environ.get(opengl.VARIABLE, "").strip().lower()
    if chosen in opengl.PLATFORMS:
        platforms = [chosen]
    elif chosen not in ("", "enable", "enabled", "on", "true", "1"):
        choices = ", ".join(opengl.PLATFORMS)
        raise BackendUnavailable(
            f"Pictures need OpenGL, and {opengl.VARIABLE}={chosen} names no platform of it; set {choices}, or unset it."
        )
    else:
        displays = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        platforms = ["egl", "glfw"] if displays else ["egl"]
    reasons = []
    for platform in platforms:
        try:
            # PyOpenGL and GLFW report a missing library or driver by errors of many types.
            return importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
        except Exception as error:
            text = str(error).strip() or repr(error)
            reasons.append(f"{platform}: {text.splitlines()[0]}")
    raise BackendUnavailable(
        f"Pictures need OpenGL, which is not to be had here ({'; '.join(reasons)}); {_INSTALL}."
    )
