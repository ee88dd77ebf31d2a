"""Settings of RealSense cameras, and which there are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from alohas2r.config import check
from alohas2r.core.types import Untyped
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG, SIZE, Intrinsics
from alohas2r.errors import Alohas2rError, BackendUnavailable, RobotFault

DEPTH_UNIT_M = 0.0001  # of the D405; recordings state their own. Source: its datasheet.
# What the D405 streams in both colour and depth, and its options' ranges. Source: its datasheet.
STREAM_SIZES = ((424, 240), (480, 270), (640, 360), (640, 480), (848, 480), (1280, 720))
STREAM = 480, 270  # where the D405 measures from 45 mm on
RIGHT = 2  # index of the infrared stream of the right imager; the left one's is 1
STREAM_RATES = (5, 15, 30, 60, 90)
EXPOSURE_US = 1, 165_000
GAIN = 16, 248
UDEV = (
    "Install librealsense's udev rule (docs/deploy.md, Cameras), unplug the camera and plug it in"
    " again"
)
# What librealsense says, in part, and what to do about it.
CAUSES = {
    "power state": UDEV,
    "permission": UDEV,
    "access": UDEV,
    "udev": UDEV,
    "resolve requests": "Use a USB 3 port and cable: USB 2 cannot carry both streams",
    "busy": "Close the other program that uses it: realsense-viewer, a ROS node, or another run",
    "out of range": "An option is beyond what this camera takes: see --exposure-us",
    "didn't arrive": "Check its USB 3 cable and port, and that no hub is between",
    "disconnected": "Check its USB 3 cable and port, and that no hub is between",
    "no device": "Check its USB 3 cable and port, and that no hub is between",
}


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Turns every error of librealsense in its body into RobotFault, with what to do.

    Args:
      what: what does not work then, such as "the left camera does not start".

    Raises:
      RobotFault: librealsense raised something.
    """
    try:
        yield
    except Alohas2rError:
        raise
    except Exception as error:  # librealsense raises RuntimeError, and others from its bindings
        text = " ".join(str(error).split()) or type(error).__name__
        remedies = [remedy for part, remedy in CAUSES.items() if part in text.lower()]
        remedy = (remedies or ["Unplug the camera, plug it in again, and try once more"])[0]
        raise RobotFault(f"{what[:1].upper()}{what[1:]} ({text}). {remedy}.") from error


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
      depth_cutoff: depth beyond it is not seen (m).
      upside_down: whether the camera is mounted turned by 180 degrees.
      stereo: whether the right imager's grey pictures (infrared 2) are taken as well.
      warm_up: pictures to let pass at the start, for the automatic exposure to settle.
      start_s: how long to wait for them.
    """

    width: int = STREAM[0]
    height: int = STREAM[1]
    fps: int = 30
    exposure_us: float | None = None
    gain: float = 16.0
    size: int = SIZE
    fovy_deg: float = FOVY_DEG
    depth_cutoff: float = DEPTH_CUTOFF
    upside_down: bool = False
    stereo: bool = False
    warm_up: int = 15
    start_s: float = 5.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_stream((self.width, self.height))
        check(self.fps in STREAM_RATES, f"fps = {self.fps} must be one of {STREAM_RATES} Hz")
        low, high = EXPOSURE_US
        check(
            self.exposure_us is None or low <= self.exposure_us <= high,
            f"exposure_us = {self.exposure_us} must lie in {low}..{high} µs, or none: automatic",
        )
        low, high = GAIN
        check(low <= self.gain <= high, f"gain = {self.gain:g} must lie in {low}..{high}")
        check(
            1 <= self.size <= min(self.width, self.height),
            f"size = {self.size} must lie in 1..{min(self.width, self.height)} pixels",
        )
        check(
            0.05 <= self.depth_cutoff <= 10,
            f"depth_cutoff = {self.depth_cutoff:g} must lie in 0.05..10 m",
        )
        check(1 <= self.fovy_deg < 120, f"fovy_deg = {self.fovy_deg:g} must lie in 1..120 degrees")
        check(
            not (self.stereo and self.upside_down),
            "a camera that is mounted upside down has its right imager on the left of its colour: mount it upright",
        )
        check(0 <= self.warm_up <= 300, f"warm_up = {self.warm_up} must be in 0..300 pictures")
        check(0 < self.start_s <= 60, f"start_s = {self.start_s:g} must lie in 0..60 s")


def check_stream(size: tuple[int, int]) -> None:
    """Checks the size of the streams (pixels).

    Raises:
      ConfigError: the camera has no such streams.
    """
    check(
        size in STREAM_SIZES,
        f"width x height = {size[0]} x {size[1]} must be one of"
        f" {', '.join(f'{wide} x {high}' for wide, high in STREAM_SIZES)} pixels",
    )


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
      RobotFault: librealsense cannot look.
    """
    rs = librealsense()

    def text(device: Untyped, kind: Untyped) -> str:
        return str(device.get_info(kind)) if device.supports(kind) else ""

    with calling("librealsense cannot list the cameras"):
        info = rs.camera_info
        return [
            FoundCamera(
                text(device, info.serial_number),
                text(device, info.name),
                text(device, info.firmware_version),
                text(device, info.usb_type_descriptor),
            )
            for device in rs.context().query_devices()
        ]


def enable_streams(
    rs: Untyped, settings: Untyped, serial: str | None, config: RealSenseConfig
) -> None:
    """Asks for a device and both streams; librealsense itself would wait 15 s for a missing one.

    Raises:
      RobotFault: there is no such camera, or several, or it is on USB 2.
    """
    cameras = {camera.serial: camera for camera in find_cameras()}
    plugged = ", ".join(cameras) or "none"
    if not cameras or (serial and serial not in cameras):
        raise RobotFault(
            f"There is no RealSense camera {serial or ''}. Plugged in: {plugged}. Check the serial"
            " number and the USB 3 cable."
        )
    if not serial and len(cameras) > 1:
        raise RobotFault(f"There are several RealSense cameras; choose one of {plugged}.")
    camera = cameras[serial or next(iter(cameras))]
    if camera.usb.startswith(("1", "2")):
        raise RobotFault(
            f"The camera {camera.serial} is on USB {camera.usb}, which cannot carry both streams. Use"
            " a USB 3 port and the cable that came with it."
        )
    size = (config.width, config.height)
    with calling(f"the camera {camera.serial} cannot be asked for its streams"):
        settings.enable_device(camera.serial)
        settings.enable_stream(rs.stream.depth, *size, rs.format.z16, config.fps)
        settings.enable_stream(rs.stream.color, *size, rs.format.rgb8, config.fps)
        if config.stereo:
            settings.enable_stream(rs.stream.infrared, RIGHT, *size, rs.format.y8, config.fps)


def baselines() -> dict[str, float | None]:
    """Returns how far apart the imagers of the cameras that are plugged in are (m), by serial number.

    It is what a device's own calibration says; None where it does not say.

    Raises:
      BackendUnavailable: pyrealsense2 or a library under it is missing.
      RobotFault: librealsense cannot look.
    """
    rs = librealsense()
    with calling("librealsense cannot read the cameras' calibrations"):
        return {
            str(device.get_info(rs.camera_info.serial_number)): baseline(
                rs, [one for sensor in device.query_sensors() for one in sensor.profiles]
            )
            for device in rs.context().query_devices()
        }


def baseline(rs: Untyped, profiles: Iterable[Untyped]) -> float | None:
    """Returns how far apart a device's imagers are (m), from the profiles of its streams; None: they do not say."""
    right, left = None, None
    for profile in profiles:
        kind, index = profile.stream_type(), profile.stream_index()
        if kind == rs.stream.infrared and index == RIGHT:
            right = profile
        elif kind == rs.stream.color:
            left = profile
    if right is None or left is None:
        return None
    try:
        across = right.get_extrinsics_to(left).translation
    except RuntimeError:  # none are known
        return None
    return float(sum(one * one for one in across) ** 0.5)


def set_exposure(rs: Untyped, sensor: Untyped, config: RealSenseConfig) -> None:
    """Sets exposure and gain, which on the D405 belong to the stereo module.

    Raises:
      RobotFault: the camera does not take them.
    """
    automatic = config.exposure_us is None
    with calling("the camera does not take its exposure"):
        sensor.set_option(rs.option.enable_auto_exposure, float(automatic))
        if not automatic:
            sensor.set_option(rs.option.exposure, config.exposure_us)
            sensor.set_option(rs.option.gain, config.gain)


def read_intrinsics(frame: Untyped) -> Intrinsics:
    """Returns the intrinsics of the stream that a frame belongs to."""
    device = frame.get_profile().as_video_stream_profile().get_intrinsics()
    return Intrinsics(device.width, device.height, device.fx, device.fy, device.ppx, device.ppy)


def librealsense() -> Untyped:
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
