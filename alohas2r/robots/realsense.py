"""Wrist cameras: Intel RealSense D405 through librealsense, live or from a recording.

A picture is cropped to what the simulated camera sees, by the intrinsics that the device itself
reports, and averaged down to its size. Colour and depth are cropped each by their own intrinsics:
both come from the left imager, so no alignment is needed.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from alohas2r.config import check
from alohas2r.errors import ArtifactError, BackendUnavailable, RobotFault
from alohas2r.robots import Frame

# Vertical field of view and size of the simulated wrist cameras. Source: recipe, section 6.
FOVY_DEG = 58.0
SIZE = 32
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


class Intrinsics(NamedTuple):
    """A pinhole camera (pixels); pixel centres lie at whole numbers."""

    width: int
    height: int
    fx: float
    fy: float
    ppx: float
    ppy: float


def area_sums(image: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """Sums the rows of a picture into equal cells between two edges.

    A row that lies in two cells counts for each by its share; what lies outside the picture counts
    nowhere.

    Args:
      image: [H, ...].
      start: first edge; row i reaches from i - 0.5 to i + 0.5.
      stop: last edge.
      count: number of cells.

    Returns:
      [count, ...] float64.
    """
    edges = np.clip(np.linspace(start, stop, count + 1) + 0.5, 0, len(image))
    whole = np.minimum(edges.astype(int), len(image) - 1)
    share = (edges - whole).reshape(-1, *[1] * (image.ndim - 1))
    first = whole[0]
    image = image[first : whole[-1] + 1].astype(np.float64)  # what no cell needs is left out
    running = np.cumsum(image, axis=0) - image  # the sum of all rows before each
    return np.diff(running[whole - first] + share * image[whole - first], axis=0)


def _edges(camera: Intrinsics, fovy_deg: float) -> tuple[tuple[float, float], ...]:
    """Returns between which rows, and which columns, the simulated field of view lies."""
    reach = math.tan(math.radians(fovy_deg) / 2)
    high, wide = reach * camera.fy, reach * camera.fx
    return (camera.ppy - high, camera.ppy + high), (camera.ppx - wide, camera.ppx + wide)


def _crop_sums(image: np.ndarray, camera: Intrinsics, size: int, fovy_deg: float) -> np.ndarray:
    """Sums [H, W, ...] into the [size, size, ...] cells of the simulated field of view."""
    high, wide = _edges(camera, fovy_deg)
    rows = area_sums(image, *high, size)
    return area_sums(rows.swapaxes(0, 1), *wide, size).swapaxes(0, 1)


def _cell_areas(camera: Intrinsics, size: int, fovy_deg: float) -> np.ndarray:
    """Returns [size, size] how many pixels of the picture lie in each cell."""
    high, wide = _edges(camera, fovy_deg)
    rows = area_sums(np.ones(camera.height), *high, size)
    return np.outer(rows, area_sums(np.ones(camera.width), *wide, size))


def crop_color(
    image: np.ndarray, camera: Intrinsics, size: int = SIZE, fovy_deg: float = FOVY_DEG
) -> np.ndarray:
    """Crops a picture to the simulated field of view and averages it down.

    Args:
      image: [H, W, 3] uint8.
      camera: its intrinsics.
      size: side of the result.
      fovy_deg: field of view of the result; it is square.

    Returns:
      [size, size, 3] uint8; black where the picture does not reach.
    """
    covered = _cell_areas(camera, size, fovy_deg)[..., None]
    total = _crop_sums(image, camera, size, fovy_deg)
    mean = np.divide(total, covered, out=np.zeros_like(total), where=covered > 0)
    return np.rint(mean).astype(np.uint8)


def crop_depth(
    depth: np.ndarray, camera: Intrinsics, size: int = SIZE, fovy_deg: float = FOVY_DEG
) -> np.ndarray:
    """Crops a depth picture to the simulated field of view and averages what is known of it.

    Args:
      depth: [H, W] metres along the optical axis; 0 where unknown.
      camera: its intrinsics.
      size: side of the result.
      fovy_deg: field of view of the result; it is square.

    Returns:
      [size, size] float32, 0 where less than half of a cell is known.
    """
    total = _crop_sums(depth, camera, size, fovy_deg)
    known = _crop_sums(depth > 0, camera, size, fovy_deg)
    enough = (known >= 0.5 * _cell_areas(camera, size, fovy_deg)) & (known > 0)
    mean = np.divide(total, known, out=np.zeros_like(total), where=enough)
    return mean.astype(np.float32)


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
    rs = _rs()
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


class RealSenseCamera:
    """One wrist camera: the `Camera` protocol on a device or a recording.

    A thread takes every picture off the device and keeps the newest, so that `read` never waits and
    never returns a picture from a queue. If the device is lost, it is searched for again.

    Attributes:
      name: "left" or "right".
      depth_unit_m: as the device reports it, once it streams.
      received: how many pictures came.
      reconnects: how often the device had to be started anew.
    """

    RETRY_S = 0.5  # between attempts to find a lost device
    SILENCE_S = 1.0  # without pictures a device counts as lost

    def __init__(
        self,
        name: str,
        serial: str | None = None,
        recording: str | pathlib.Path | None = None,
        config: RealSenseConfig | None = None,
        realtime: bool = True,
        repeat: bool = False,
    ) -> None:
        """Prepares; entering the context starts the stream.

        Args:
          name: "left" or "right".
          serial: the device; None with a recording, or for the only device there is.
          recording: a recording (.db3) instead of a device.
          config: how the camera is run; of a recording only what comes after the stream counts.
          realtime: whether a recording plays at its own pace; otherwise each `read` returns the
            next picture, as a stepped simulation needs it.
          repeat: whether a recording starts over at its end.
        """
        self.name = name
        self.config = config or RealSenseConfig()
        self.depth_unit_m = DEPTH_UNIT_M
        self.received = 0
        self.reconnects = 0
        self._rs = _rs()
        self._serial = serial
        self._recording = None if recording is None else pathlib.Path(recording)
        self._stepped = recording is not None and not realtime
        self._repeat = repeat
        self._pipeline: Any = None
        self._device: Any = None  # kept beyond the stop: its own threads may not be the last to go
        self._latest: Frame | None = None
        self._problem = "no picture has come yet"
        self._ended = False
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Starts the stream and waits for the first pictures.

        Raises:
          RobotFault: there is no such camera or recording, or no picture comes.
        """
        self._start()
        if self._stepped:
            return self
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name=f"{self.name} camera", daemon=True)
        self._thread.start()
        wanted = 1 if self._recording else max(1, self.config.warm_up)
        with self._news:
            if not self._news.wait_for(lambda: self.received >= wanted, self.config.start_s):
                problem = self._problem
                self.__exit__(None, None, None)
                raise RobotFault(
                    f"The {self.name} camera sent {self.received} pictures in"
                    f" {self.config.start_s} s ({problem}). Check that it is on a USB 3 port."
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops the stream."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        self._stop()

    def read(self, max_age_s: float) -> Frame:
        """Returns the newest picture, or of a stepped recording the next.

        Raises:
          RobotFault: there is none younger than `max_age_s`, or the recording has ended.
        """
        if self._stepped:
            return self._next()
        with self._news:
            frame, problem = self._latest, self._problem
        if frame is None:
            raise RobotFault(f"The {self.name} camera has no picture: {problem}.")
        age_s = time.monotonic() - frame.time_s
        if age_s > max_age_s:
            raise RobotFault(
                f"The {self.name} camera's last picture is {age_s:.2f} s old: {problem}."
            )
        return frame

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._pipeline is None:
                    self._start()
                    self.reconnects += 1
                self._take(int(1000 * self.SILENCE_S))
            except (RuntimeError, RobotFault) as error:
                with self._news:
                    self._problem = str(error)
                self._stop()
                if self._recording is not None:
                    self._ended = True
                    return
                self._stopping.wait(self.RETRY_S)

    def _next(self) -> Frame:
        """Takes the next picture of a recording that waits for us."""
        if self._pipeline is None:
            raise RobotFault(f"The {self.name} camera is not running.")
        try:
            return self._take(int(1000 * self.SILENCE_S))
        except RuntimeError as error:
            raise RobotFault(f"The recording {self._recording} has ended.") from error

    def _take(self, patience_ms: int) -> Frame:
        frames = self._pipeline.wait_for_frames(patience_ms)
        time_s = time.monotonic()
        depth, color = frames.get_depth_frame(), frames.get_color_frame()
        if not depth or not color:
            raise RuntimeError("a picture without depth or without colour came")
        config = self.config
        crop = {"size": config.size, "fovy_deg": config.fovy_deg}
        metres = np.asanyarray(depth.get_data()) * np.float32(self.depth_unit_m)
        rgb = crop_color(np.asanyarray(color.get_data()), _intrinsics(color), **crop)
        near = crop_depth(metres, _intrinsics(depth), **crop)
        if config.upside_down:
            rgb, near = rgb[::-1, ::-1].copy(), near[::-1, ::-1].copy()
        frame = Frame(rgb, near, time_s, int(depth.get_frame_number()))
        with self._news:
            self._latest, self._problem = frame, "pictures stopped coming"
            self.received += 1
            self._news.notify_all()
        return frame

    def _start(self) -> None:
        rs, config = self._rs, self.config
        settings = rs.config()
        if self._recording is not None:
            if not self._recording.is_file():
                raise RobotFault(f"There is no recording {self._recording}.")
            settings.enable_device_from_file(str(self._recording), repeat_playback=self._repeat)
            problem = f"{self._recording} cannot be played; record it anew"
        else:
            _enable(rs, settings, self._serial, config)
            problem = f"The {self.name} camera does not start; does another program use it?"
        pipeline = rs.pipeline()
        try:
            if self._recording is not None:  # before it plays: the first pictures would be lost
                device = settings.resolve(rs.pipeline_wrapper(pipeline)).get_device()
                device.as_playback().set_real_time(not self._stepped)
            profile = pipeline.start(settings)
        except RuntimeError as error:
            raise RobotFault(f"{problem} ({error}).") from error
        self._device = profile.get_device()
        sensor = self._device.first_depth_sensor()
        self.depth_unit_m = float(sensor.get_depth_scale())
        if self._recording is None:
            _set_exposure(rs, sensor, config)
        self._pipeline = pipeline

    def _stop(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.stop()
            except RuntimeError:
                return  # the device is gone already


def _enable(rs: Any, settings: Any, serial: str | None, config: RealSenseConfig) -> None:
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


def _set_exposure(rs: Any, sensor: Any, config: RealSenseConfig) -> None:
    """Sets exposure and gain, which on the D405 belong to the stereo module."""
    automatic = config.exposure_us is None
    sensor.set_option(rs.option.enable_auto_exposure, float(automatic))
    if not automatic:
        sensor.set_option(rs.option.exposure, config.exposure_us)
        sensor.set_option(rs.option.gain, config.gain)


def record(
    path: str | pathlib.Path,
    seconds: float,
    serial: str | None = None,
    config: RealSenseConfig | None = None,
) -> int:
    """Records a camera as it is, both streams uncropped, into a file for `RealSenseCamera`.

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
    rs, config = _rs(), config or RealSenseConfig()
    path = _new_file(path)
    settings = rs.config()
    _enable(rs, settings, serial, config)
    settings.enable_record_to_file(str(path))
    pipeline = rs.pipeline()
    try:
        profile = pipeline.start(settings)
    except RuntimeError as error:
        raise RobotFault(f"The camera does not start; is it in use? ({error})") from error
    count = 0
    try:
        _set_exposure(rs, profile.get_device().first_depth_sensor(), config)
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            pipeline.wait_for_frames(1000)
            count += 1
    except RuntimeError as error:
        raise RobotFault(f"The camera stopped while recording: {error}") from error
    finally:
        pipeline.stop()
    return count


def write_recording(
    path: str | pathlib.Path,
    pictures: Iterable[tuple[np.ndarray, np.ndarray]],
    fovy_deg: float = FOVY_DEG,
    fps: int = 30,
    depth_unit_m: float = DEPTH_UNIT_M,
    serial: str = "000000000000",
) -> int:
    """Writes pictures as a recording of a D405, through librealsense's software device.

    Args:
      path: a new file; its name should end in .db3.
      pictures: rgb [H, W, 3] uint8 and depth [H, W] m, all of one size.
      fovy_deg: vertical field of view of the pictures.
      fps: pictures per second.
      depth_unit_m: step of the stored depth.
      serial: serial number to pretend.

    Returns:
      How many pictures were written.

    Raises:
      ArtifactError: the file exists already, or there are no pictures.
    """
    rs = _rs()
    path = _new_file(path)
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise ArtifactError(f"There are no pictures to write to {path}.")
    height, width = first[1].shape
    device = rs.software_device()
    for kind, value in (
        (rs.camera_info.name, "Intel RealSense D405"),
        (rs.camera_info.serial_number, serial),
        (rs.camera_info.firmware_version, "5.15.1.0"),
    ):
        device.register_info(kind, value)
    sensor = device.add_sensor("Stereo Module")
    sensor.add_read_only_option(rs.option.depth_units, depth_unit_m)
    formats = ((rs.stream.depth, rs.format.z16, 2), (rs.stream.color, rs.format.rgb8, 3))
    profiles = []
    for number, (stream_type, pixel_format, pixel_bytes) in enumerate(formats):
        stream = rs.video_stream()
        stream.type, stream.fmt, stream.bpp = stream_type, pixel_format, pixel_bytes
        stream.index, stream.uid, stream.fps = 0, number, fps
        stream.width, stream.height = width, height
        stream.intrinsics = _square_pixels(rs, width, height, fovy_deg)
        profiles.append(sensor.add_video_stream(stream))
    recorder = rs.recorder(str(path), device)
    recording = recorder.query_sensors()[0]
    recording.open(profiles)
    recording.start(rs.frame_queue(1))
    count = 0
    for rgb, depth in _chain(first, pictures):
        steps = np.clip(np.rint(depth / depth_unit_m), 0, 65535).astype(np.uint16)
        images = (np.ascontiguousarray(steps), np.ascontiguousarray(rgb, np.uint8))
        for profile, pixels, (_, _, pixel_bytes) in zip(profiles, images, formats, strict=True):
            frame = rs.software_video_frame()
            frame.pixels, frame.stride, frame.bpp = pixels, width * pixel_bytes, pixel_bytes
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


def _chain(first: Any, rest: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from rest


def _new_file(path: str | pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.exists():
        raise ArtifactError(f"{path} exists already; choose another name or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _square_pixels(rs: Any, width: int, height: int, fovy_deg: float) -> Any:
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = width, height
    intrinsics.fx = intrinsics.fy = height / 2 / math.tan(math.radians(fovy_deg) / 2)
    # Pixel centres lie at whole numbers.
    intrinsics.ppx, intrinsics.ppy = (width - 1) / 2, (height - 1) / 2
    intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
    return intrinsics


def _intrinsics(frame: Any) -> Intrinsics:
    device = frame.get_profile().as_video_stream_profile().get_intrinsics()
    return Intrinsics(device.width, device.height, device.fx, device.fy, device.ppx, device.ppy)


def _rs() -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise BackendUnavailable(
            f"RealSense cameras need pyrealsense2 and libusb ({error}): pip install"
            " 'alohas2r[robot]' and apt-get install libusb-1.0-0."
        ) from error
    return pyrealsense2
