"""Pictures and videos of scenes and episodes: grids of views, PNG and MP4 files."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import mujoco
import numpy as np

from alohas2r.core.files import make_folder, write_atomic
from alohas2r.core.types import Untyped
from alohas2r.embodiment import joints
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError
from alohas2r.rendering.offscreen import Offscreen, fixed_camera, free_camera
from alohas2r.sim import scene as sim_scene

CONTROL_RATE_HZ = round(1 / joints.CONTROL_PERIOD_S)  # one frame a control step
CAMERA = "teleoperator_pov"
FILMS = (".mp4", ".webp")  # endings of videos
GREEN, RED, GREY = (0, 170, 60), (200, 30, 30), (70, 70, 70)


def check_path(path: str | os.PathLike[str], *suffixes: str) -> pathlib.Path:
    """Makes sure that a picture or video can be written, before the work that leads to it.

    Args:
      path: the file to be written; its folder is created if missing.
      suffixes: the endings that the name may have, such as ".png"; ".mp4" if none is given.

    Raises:
      ConfigError: the name ends otherwise.
      ArtifactError: the folder cannot be written.
      BackendUnavailable: videos cannot be encoded here.
    """
    path, wanted = pathlib.Path(path), suffixes or (".mp4",)
    if path.suffix.lower() not in wanted:
        raise ConfigError(f"'{path}' must end in {' or '.join(wanted)}.")
    make_folder(path.parent)
    if path.suffix.lower() in FILMS:
        _encoder()
    return path


def tile(views: np.ndarray) -> np.ndarray:
    """Lays views out in a grid that is as square as it can be; empty places are black.

    Args:
      views: [N, ..., H, W, 3], as pictures or, with time in between, videos.

    Returns:
      [..., rows * H, columns * W, 3].

    Raises:
      ValueError: there is no view, or it is no picture.
    """
    views = np.asarray(views)
    if views.ndim < 4 or views.shape[-1] != 3 or not len(views):
        raise ValueError(f"views {views.shape} must be [N, ..., H, W, 3] with N > 0")
    columns = int(np.ceil(np.sqrt(len(views))))
    rows = -(-len(views) // columns)
    *between, height, width, _ = views.shape[1:]
    grid = np.zeros((*between, rows * height, columns * width, 3), views.dtype)
    for index, view in enumerate(views):
        top, left = index // columns * height, index % columns * width
        grid[..., top : top + height, left : left + width, :] = view
    return grid


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> pathlib.Path:
    """Writes a picture, whole or not at all.

    Args:
      path: a name that ends in ".png".
      picture: [H, W, 3] uint8.

    Raises:
      ConfigError: the name ends otherwise.
      ArtifactError: the file cannot be written.
      ValueError: no picture of that shape and type.

    Source: Portable Network Graphics (PNG) specification, third edition, W3C.
    """
    path = check_path(path, ".png")
    picture = _checked(picture)
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with filter type 0
    rows[:, 1:] = picture.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bit RGB
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b"")
    return write_atomic(path, content)


def write_video(
    path: str | os.PathLike[str], frames: Iterable[np.ndarray], rate_hz: int = CONTROL_RATE_HZ
) -> pathlib.Path:
    """Writes a video, whole or not at all: MP4 (H.264, as browsers play it) or an animated picture (WebP).

    Args:
      path: a name that ends in ".mp4" or ".webp".
      frames: [H, W, 3] uint8 each, all of one size; [T, H, W, 3] or a generator, so that a long
        video need not be held in memory. An odd height or width gets one black line more.
      rate_hz: frames per second.

    Raises:
      ConfigError: the name ends otherwise.
      ArtifactError: the file cannot be written; the earlier one is as it was.
      BackendUnavailable: the package av is not installed.
      ValueError: no frames, or frames of another shape or type.
    """
    path = check_path(path, *FILMS)
    frames = iter(frames)
    try:
        first = _even(_checked(next(frames)))
    except StopIteration:
        raise ValueError("a video needs at least one frame") from None

    def rest() -> Iterator[np.ndarray]:
        yield first
        for frame in frames:
            frame = _even(_checked(frame))
            if frame.shape != first.shape:
                raise ValueError(f"frame {frame.shape} in a video of {first.shape}")
            yield frame

    coding = _ANIMATION if path.suffix.lower() == ".webp" else _Coding()
    return write_atomic(path, lambda file: _encode(file, rest(), first.shape, rate_hz, coding))


def clip(frames: Iterable[np.ndarray], rate_hz: int, quality: int = 27) -> bytes:
    """Returns a short film as the bytes of an MP4 file, for pages that hold their films.

    Args:
      frames: as for `write_video`.
      rate_hz: frames per second.
      quality: constant rate factor of H.264; 18 cannot be told from the frames, each 6 more halve the size.

    Raises:
      BackendUnavailable: the package av is not installed. ValueError: no frames.
    """
    pictures = [_even(_checked(frame)) for frame in frames]
    if not pictures:
        raise ValueError("a clip needs at least one frame")
    buffer = io.BytesIO()
    coding = _Coding(options={"crf": str(quality), "preset": "medium"})
    _encode(buffer, iter(pictures), pictures[0].shape, rate_hz, coding)
    return buffer.getvalue()


def write_scene(
    path: str | os.PathLike[str],
    name: str,
    *,
    camera: str = CAMERA,
    height: int = 720,
    width: int = 960,
    seconds: float = 6.0,
) -> pathlib.Path:
    """Draws a scene in its home position: a picture from a camera, or a video that walks around it.

    Args:
      path: a name that ends in ".png", ".mp4" or ".webp".
      name: of the scene.
      camera: of the picture, by name.
      height: in pixels.
      width: likewise.
      seconds: that the walk takes.

    Raises:
      ConfigError: the name ends otherwise, an unknown camera, a size out of range.
      ModelError: unknown scene.
      ArtifactError: the file cannot be written.
      BackendUnavailable: no OpenGL, or the package av is not installed.
    """
    loaded = sim_scene.load(name)
    fixed_camera(loaded.model, camera)
    suffix = pathlib.Path(path).suffix.lower()
    path = check_path(path, ".png", *FILMS)
    data = mujoco.MjData(loaded.model)
    mujoco.mj_resetDataKeyframe(loaded.model, data, loaded.id("key", "home"))
    update_kinematics(loaded.model, data)
    with Offscreen(loaded.model, height, width) as view:
        if suffix == ".png":
            return write_png(path, view.picture(data, camera))
        count = max(2, round(seconds * CONTROL_RATE_HZ))
        views = (
            view.picture(data, free_camera((0.0, 0.0, 0.15), 1.5, 90 + 360 * step / count, -25))
            for step in range(count)
        )
        return write_video(path, views)


def border(picture: np.ndarray, colour: tuple[int, int, int], share: float = 0.01) -> np.ndarray:
    """Returns a copy of a picture [H, W, 3] with a coloured border, `share` of its width wide."""
    framed = picture.copy()
    edge = max(1, round(share * picture.shape[1]))
    framed[:edge], framed[-edge:] = colour, colour
    framed[:, :edge], framed[:, -edge:] = colour, colour
    return framed


def update_kinematics(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Computes where everything is that a picture shows, from qpos alone."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)  # lights and cameras may track centres of mass
    mujoco.mj_camlight(model, data)


@dataclasses.dataclass(frozen=True)
class _Coding:
    """How a film is encoded, in FFmpeg's words."""

    form: str = "mp4"
    codec: str = "libx264"
    options: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"crf": "23", "preset": "veryfast"}
    )
    file_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# For ever from the start again.
_ANIMATION = _Coding("webp", "libwebp_anim", {"quality": "60"}, {"loop": "0"})


def _encode(
    file: BinaryIO,
    frames: Iterator[np.ndarray],
    shape: tuple[int, ...],
    rate_hz: int,
    coding: _Coding,
) -> None:
    av = _encoder()
    sink = _Sink(file)
    try:
        with av.open(sink, "w", format=coding.form, options=dict(coding.file_options)) as container:
            stream = container.add_stream(coding.codec, rate=rate_hz)
            stream.height, stream.width = shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.options = dict(coding.options)
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise sink.error or ArtifactError(f"The video was not encoded: {error}.") from error
    if sink.error is not None:
        raise sink.error


class _Sink:
    """A file that remembers why it could not be written, which the encoder does not say."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise


def check_encoder() -> None:
    """Raises BackendUnavailable unless videos can be encoded here."""
    _encoder()


def _encoder() -> Untyped:
    try:
        import av
    except ImportError as error:
        raise BackendUnavailable(
            "Videos need the package av: pip install 'alohas2r[train]'."
        ) from error
    return av


def _checked(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(f"picture {picture.shape} must be [H, W, 3]")
    if picture.dtype != np.uint8:
        raise ValueError(f"picture of {picture.dtype} must be of uint8")
    return picture


def _even(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
