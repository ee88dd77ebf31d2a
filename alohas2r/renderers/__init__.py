"""Renderers: poses and looks in, colour and depth pictures out; all draw the same picture.

`raycast` (any CPU; the default without an NVIDIA GPU), `warp` (MuJoCo Warp: CUDA, or slowly a CPU),
`opengl` (mujoco.Renderer's OpenGL: videos and large pictures) and `madrona` (for those who have it).
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from alohas2r.errors import BackendUnavailable, ConfigError, did_you_mean
from alohas2r.renderers.base import CAMERAS, Frames, Looks, Prepared, prepare

__all__ = [
    "BACKENDS",
    "CAMERAS",
    "Frames",
    "Looks",
    "Prepared",
    "Renderer",
    "default_backend",
    "for_pictures",
    "make",
    "prepare",
]

# Name -> module and class.
BACKENDS = {
    "raycast": ("alohas2r.renderers.raycast", "RaycastRenderer"),
    "warp": ("alohas2r.renderers.warp", "WarpRenderer"),
    "opengl": ("alohas2r.renderers.opengl", "OpenGLBatchRenderer"),
    "madrona": ("alohas2r.renderers.madrona", "MadronaRenderer"),
}


class Renderer(Protocol):
    """Draws N environments at once."""

    name: str
    prepared: Prepared

    def render(self, poses: Any, looks: Looks | None = None) -> Frames:
        """Draws every environment from every camera.

        Args:
          poses: [N, nq] or [N, nq + 7 nmocap] joint positions (and positions and orientations of the
            mocap bodies).
          looks: model field -> [N, ...], as from `looks.sample_looks`; None for the model's own.

        Returns:
          The pictures; depth is 0 where nothing is seen.
        """
        ...


def make(backend: str, source: Any, **options: Any) -> Renderer:
    """Creates a renderer.

    Args:
      backend: "raycast", "warp", "opengl" or "madrona".
      source: a Scene, an MjSpec, or what `prepare` returned.
      options: width, height, cameras, shadows and what else the backend's class takes.

    Raises:
      ConfigError: unknown backend, or an option out of range.
      BackendUnavailable: the backend cannot run here; the message says what it needs.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"Unknown renderer '{backend}'.{did_you_mean(backend, BACKENDS)}")
    module, name = BACKENDS[backend]
    return getattr(importlib.import_module(module), name)(source, **options)


def default_backend() -> str:
    """Returns "warp" where there is an NVIDIA GPU that Warp can use, else "raycast"."""
    try:
        import warp

        return "warp" if warp.get_cuda_device_count() else "raycast"
    except (ImportError, RuntimeError):
        return "raycast"


def for_pictures(source: Any, **options: Any) -> Renderer:
    """Creates a renderer for videos and large pictures: OpenGL, or the ray caster where there is none.

    Args:
      source: a Scene, an MjSpec, or what `prepare` returned.
      options: width, height, cameras, shadows.

    Raises:
      ConfigError: an option out of range.
    """
    try:
        return make("opengl", source, **options)
    except BackendUnavailable:
        return make("raycast", source, **options)
