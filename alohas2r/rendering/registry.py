"""Renderers: poses and looks in, colour and depth pictures out; all draw the same picture.

`raycast` (any CPU; the default without an NVIDIA GPU), `warp` (MuJoCo Warp: CUDA, or slowly a CPU),
`opengl` (mujoco.Renderer's OpenGL: videos and large pictures) and `madrona` (for those who have it).
"""

from __future__ import annotations

import importlib

from alohas2r.errors import BackendUnavailable, ConfigError, did_you_mean
from alohas2r.rendering import stereo
from alohas2r.rendering.looks.config import TransferConfig, find_looks
from alohas2r.rendering.protocol import CAMERAS, RGBD, Renderer, Source, prepare
from alohas2r.sim import scene

# Name -> module and class.
BACKENDS = {
    "raycast": ("alohas2r.rendering.raycast.renderer", "RaycastRenderer"),
    "warp": ("alohas2r.rendering.warp", "WarpRenderer"),
    "opengl": ("alohas2r.rendering.opengl", "OpenGLBatchRenderer"),
    "madrona": ("alohas2r.rendering.madrona", "MadronaRenderer"),
}
# Names under which a renderer can be chosen, beside the renderers' own: "auto" for the one that suits the machine,
# "exact" for the ray caster that asks MuJoCo (slow, but it starts at once).
RENDERERS = ("auto", "exact", *BACKENDS)


def make_renderer(
    name: str,
    size: int,
    threads: int = 0,
    capacity: int = 0,
    looks: bool | str | TransferConfig = True,
    outputs: tuple[str, ...] = RGBD,
    drawn: str = "insert",
    paired: bool = False,
) -> Renderer:
    """Creates a renderer of the wrist cameras' pictures of a scene.

    Args:
      name: one of RENDERERS.
      size: side of the pictures (pixels).
      threads: of a ray caster; 0 for all cores.
      capacity: environments that the renderer "warp" draws at a time; compiled code needs it.
      looks: that it will be given; see `looks.config.find_looks`.
      outputs: ("rgb", "depth") or ("depth",), which is several times as fast.
      drawn: name of the scene.
      paired: whether the right imagers' pictures follow those of all left ones.

    Raises:
      ConfigError: unknown name, or looks that are not drawn for right imagers. BackendUnavailable: it cannot run here.
    """
    loaded = scene.load(drawn)
    model: Source = loaded
    transfer = find_looks(looks)
    cameras = None
    if paired:
        own = [loaded.model.camera(index).name for index in range(loaded.model.ncam)]
        cameras = stereo.cameras([name for name in CAMERAS if name in own])
    if transfer is not None:
        model = prepare(model, cameras, transfer=transfer.family)
    if name == "auto":
        name = default_backend() if transfer is None else "raycast"
    options: dict[str, object] = {"width": size, "height": size, "outputs": outputs}
    if cameras is not None:
        options["cameras"] = cameras
    if name in ("raycast", "exact"):
        options["threads"] = threads
    if name == "warp":
        options["capacity"] = capacity
    if name == "exact":
        name, options["caster"] = "raycast", "mujoco"
    return make(name, model, **options)


def make(backend: str, source: Source, **options: object) -> Renderer:
    """Creates a renderer.

    Args:
      backend: "raycast", "warp", "opengl" or "madrona".
      source: a Scene, an MjSpec, or what `prepare` returned.
      options: width, height, cameras, shadows, outputs and what else the backend's class takes.

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


def for_pictures(source: Source, **options: object) -> Renderer:
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
