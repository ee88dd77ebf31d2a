"""Records a camera to a file."""

from __future__ import annotations

import contextlib
import itertools
import math
import pathlib
import time
from collections.abc import Iterable

import numpy as np

from alohas2r.core.types import Untyped
from alohas2r.embodiment.camera import BASELINE_M, FOVY_DEG
from alohas2r.errors import ArtifactError
from alohas2r.robots.realsense.config import (
    DEPTH_UNIT_M,
    RIGHT,
    RealSenseConfig,
    calling,
    enable_streams,
    librealsense,
    set_exposure,
)


def record(
    path: str | pathlib.Path,
    seconds: float,
    serial: str | None = None,
    config: RealSenseConfig | None = None,
) -> int:
    """Records a camera as it is, its streams uncropped, into a file for `RealSenseCamera`.

    Args:
      path: a new file; its name should end in .db3.
      seconds: for how long.
      serial: the device; None: the only one.
      config: stream format and exposure.

    Returns:
      How many pictures were recorded.

    Raises:
      RobotFault: there is no such camera, or it stops.
      ArtifactError: the file exists already.
    """
    rs, config = librealsense(), config or RealSenseConfig()
    path = _new_file(path)
    with calling("the camera does not start"):
        settings = rs.config()
        enable_streams(rs, settings, serial, config)
        settings.enable_record_to_file(str(path))
        pipeline = rs.pipeline()
        profile = pipeline.start(settings)
    count = 0
    try:
        with calling("the camera stopped while recording"):
            set_exposure(rs, profile.get_device().first_depth_sensor(), config)
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                pipeline.wait_for_frames(1000)
                count += 1
    finally:
        with contextlib.suppress(Exception):  # the device may be gone already
            pipeline.stop()
    return count


def write_recording(
    path: str | pathlib.Path,
    pictures: Iterable[tuple[np.ndarray, ...]],
    fovy_deg: float = FOVY_DEG,
    fps: int = 30,
    depth_unit_m: float = DEPTH_UNIT_M,
    serial: str = "000000000000",
    baseline_m: float = BASELINE_M,
    right_fovy_deg: float | None = None,
) -> int:
    """Writes pictures as a recording of a D405, through librealsense's software device.

    Args:
      path: a new file; its name should end in .db3.
      pictures: rgb [H, W, 3] uint8, depth [H, W] m and, of all or none, grey [H, W] uint8 of the right imager; all of
        one size.
      fovy_deg: vertical field of view of the pictures.
      fps: pictures per second.
      depth_unit_m: step of the stored depth.
      serial: serial number to pretend.
      baseline_m: distance of the imagers to pretend; right_fovy_deg: field of view of the right one, None: likewise.

    Returns:
      How many pictures were written.

    Raises:
      ArtifactError: the file exists already, or there are no pictures.
    """
    rs = librealsense()
    path = _new_file(path)
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise ArtifactError(f"There are no pictures to write to {path}.")
    with calling(f"{path} cannot be written"):
        device, sensor = _pretended(rs, serial, depth_unit_m)
        height, width = first[1].shape
        profiles = []
        for number, kind in enumerate(_formats(rs)[: len(first)]):
            stream = rs.video_stream()
            stream.type, stream.index, stream.fmt, stream.bpp = kind
            stream.uid, stream.fps, stream.width, stream.height = number, fps, width, height
            seen_deg = right_fovy_deg or fovy_deg if kind[1] == RIGHT else fovy_deg
            stream.intrinsics = _square_pixels(rs, width, height, seen_deg)
            profiles.append(sensor.add_video_stream(stream))
        if len(profiles) > 2:
            profiles[2].register_extrinsics_to(profiles[1], _beside(rs, baseline_m))
            profiles[1].register_extrinsics_to(profiles[2], _beside(rs, -baseline_m))
        return _write(
            rs,
            path,
            device,
            sensor,
            profiles,
            itertools.chain([first], pictures),
            fps,
            depth_unit_m,
        )


def _pretended(rs: Untyped, serial: str, depth_unit_m: float) -> tuple[Untyped, Untyped]:
    """Returns a software device that looks like a D405, and its sensor."""
    device = rs.software_device()
    for kind, value in (
        (rs.camera_info.name, "Intel RealSense D405"),
        (rs.camera_info.serial_number, serial),
        (rs.camera_info.firmware_version, "5.15.1.0"),
    ):
        device.register_info(kind, value)
    sensor = device.add_sensor("Stereo Module")
    sensor.add_read_only_option(rs.option.depth_units, depth_unit_m)
    return device, sensor


def _formats(rs: Untyped) -> tuple[tuple[Untyped, int, Untyped, int], ...]:
    """Returns type, index, pixel format and bytes a pixel of depth, colour and the right imager's grey."""
    return (
        (rs.stream.depth, 0, rs.format.z16, 2),
        (rs.stream.color, 0, rs.format.rgb8, 3),
        (rs.stream.infrared, RIGHT, rs.format.y8, 1),
    )


def _write(
    rs: Untyped,
    path: pathlib.Path,
    device: Untyped,
    sensor: Untyped,
    profiles: list[Untyped],
    pictures: Iterable[tuple[np.ndarray, ...]],
    fps: int,
    depth_unit_m: float,
) -> int:
    recorder = rs.recorder(str(path), device)
    recording = recorder.query_sensors()[0]
    recording.open(profiles)
    recording.start(rs.frame_queue(1))
    count = 0
    for rgb, depth, *grey in pictures:
        steps = np.clip(np.rint(depth / depth_unit_m), 0, 65535).astype(np.uint16)
        images = [np.ascontiguousarray(one) for one in (steps, np.uint8(rgb), *map(np.uint8, grey))]
        for profile, pixels, kind in zip(profiles, images, _formats(rs), strict=False):
            frame = rs.software_video_frame()
            frame.pixels, frame.stride, frame.bpp = pixels, depth.shape[1] * kind[-1], kind[-1]
            frame.timestamp, frame.frame_number = 1000.0 * count / fps, count
            frame.domain = rs.timestamp_domain.hardware_clock
            frame.profile = profile.as_video_stream_profile()
            frame.depth_units = depth_unit_m
            sensor.on_video_frame(frame)
        count += 1
        time.sleep(0.002)  # the recorder writes in a thread of its own, and drops what piles up
    recording.stop()
    recording.close()
    return count


def _new_file(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.exists():
        raise ArtifactError(f"{path} exists already; choose another name or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _beside(rs: Untyped, metres: float) -> Untyped:
    """Returns the extrinsics of an imager that sits so far to the right."""
    extrinsics = rs.extrinsics()
    extrinsics.rotation = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    extrinsics.translation = [metres, 0.0, 0.0]
    return extrinsics


def _square_pixels(rs: Untyped, width: int, height: int, fovy_deg: float) -> Untyped:
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = width, height
    intrinsics.fx = intrinsics.fy = height / 2 / math.tan(math.radians(fovy_deg) / 2)
    # Pixel centres lie at whole numbers.
    intrinsics.ppx, intrinsics.ppy = (width - 1) / 2, (height - 1) / 2
    intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
    return intrinsics
