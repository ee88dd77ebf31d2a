"""Settings of RealSense cameras, and which there are."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from alohas2r.config import check
from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.realsense.crop import FOVY_DEG, SIZE, Intrinsics

DEPTH_UNIT_M = 0.0001  # of the D405; recordings state their own. Source: recipe, section 8.


@dataclasses.dataclass(frozen=True)
class RealSenseConfig:
    """How a camera is run.

    Attributes:
      width, height, fps: stream format. At 480 x 270 the D405 measures from 45 mm on, at 848 x 480
        from 70 mm.
      exposure_us: fixed exposure; None: automatic.
      gain: fixed gain, used with a fixed exposure.
      size: side of the pictures that are returned (pixels).
      fovy_deg: field of view of the pictures that are returned.
      upside_down: whether the camera is mounted turned by 180 degrees.
      warm_up: pictures to let pass at the start, for the automatic exposure to settle.
      start_s: how long to wait for them.
    """

    width: int = 480
    height: int = 270
    fps: int = 30
    exposure_us: float | None = None
    gain: float = 16.0
    size: int = SIZE
    fovy_deg: float = FOVY_DEG
    upside_down: bool = False
    warm_up: int = 15
    start_s: float = 5.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.width > 0 and self.height > 0 and self.fps > 0, "the stream format is wrong")
        check(self.exposure_us is None or self.exposure_us > 0, "exposure_us must be positive")
        check(1 <= self.size <= min(self.width, self.height), "size must fit into the stream")
        check(0 < self.fovy_deg < 120, "fovy_deg must lie in (0, 120)")
        check(self.warm_up >= 0 and self.start_s > 0, "warm_up >= 0 and start_s > 0 must hold")


class FoundCamera(NamedTuple):
    """A camera that is plugged in."""

    serial: str
    name: str
    firmware: str
    usb: str  # "3.2" is fast enough for two streams, "2.1" is not


def find_cameras() -> list[FoundCamera]:
    """Lists the RealSense cameras that are plugged in.

    Raises:
      BackendUnavailable: pyrealsense2 or a library under it is missing.
    """
    rs = librealsense()
    info = rs.camera_info

    def text(device: Any, kind: Any) -> str:
        return device.get_info(kind) if device.supports(kind) else ""

    return [
        FoundCamera(
            text(device, info.serial_number),
            text(device, info.name),
            text(device, info.firmware_version),
            text(device, info.usb_type_descriptor),
        )
        for device in rs.context().query_devices()
    ]


def enable_streams(rs: Any, settings: Any, serial: str | None, config: RealSenseConfig) -> None:
    """Asks for a device and both streams; librealsense itself would wait 15 s for a missing one."""
    plugged = [camera.serial for camera in find_cameras()]
    if not plugged or (serial is not None and serial not in plugged):
        raise RobotFault(
            f"There is no RealSense camera {serial or ''}. Plugged in:"
            f" {', '.join(plugged) or 'none'}. Check the serial number and the USB 3 cable."
        )
    settings.enable_device(serial or plugged[0])
    size = (config.width, config.height)
    settings.enable_stream(rs.stream.depth, *size, rs.format.z16, config.fps)
    settings.enable_stream(rs.stream.color, *size, rs.format.rgb8, config.fps)


def set_exposure(rs: Any, sensor: Any, config: RealSenseConfig) -> None:
    """Sets exposure and gain, which on the D405 belong to the stereo module."""
    automatic = config.exposure_us is None
    sensor.set_option(rs.option.enable_auto_exposure, float(automatic))
    if not automatic:
        sensor.set_option(rs.option.exposure, config.exposure_us)
        sensor.set_option(rs.option.gain, config.gain)


def read_intrinsics(frame: Any) -> Intrinsics:
    """Returns the intrinsics of the stream that a frame belongs to."""
    device = frame.get_profile().as_video_stream_profile().get_intrinsics()
    return Intrinsics(device.width, device.height, device.fx, device.fy, device.ppx, device.ppy)


def librealsense() -> Any:
    """Imports pyrealsense2.

    Raises:
      BackendUnavailable: it is not installed, or a library that it needs.
    """
    try:
        import pyrealsense2
    except ImportError as error:
        raise BackendUnavailable(
            f"RealSense cameras need pyrealsense2 and libusb ({error}): pip install"
            " 'alohas2r[robot]' and apt-get install libusb-1.0-0."
        ) from error
    return pyrealsense2
