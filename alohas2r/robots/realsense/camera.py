"""Wrist cameras: Intel RealSense D405 through librealsense, live or from a recording.

A picture is cropped to what the simulated camera sees, by the intrinsics that the device itself
reports, and averaged down to its size. Each stream is cropped by its own intrinsics: colour and depth
come from the left imager, so no alignment is needed; grey, where it is asked for, from the right one.
"""

from __future__ import annotations

import contextlib
import pathlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from alohas2r.core.types import Untyped
from alohas2r.embodiment.camera import crop_color, crop_depth
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Frame
from alohas2r.robots.realsense.config import (
    DEPTH_UNIT_M,
    RIGHT,
    RealSenseConfig,
    baseline,
    calling,
    enable_streams,
    librealsense,
    read_intrinsics,
    set_exposure,
)


class _Picture(NamedTuple):
    """The newest picture of one stream."""

    pixels: np.ndarray
    time_s: float  # when it came
    number: int


class RealSenseCamera:
    """One wrist camera: the `Camera` protocol on a device or a recording.

    A thread takes every picture off the device and keeps the newest, so that `read` never waits and
    never returns a picture from a queue. If the device is lost, it is searched for again.
    The streams are kept apart: each has its own number and age, and one that is left out once
    stops nothing.

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
        self._rs = librealsense()
        self._serial = serial
        self._recording = None if recording is None else pathlib.Path(recording)
        self._stepped = recording is not None and not realtime
        self._repeat = repeat
        self._pipeline: Untyped = None
        self._device: Untyped = (
            None  # kept beyond the stop: its own threads may not be the last to go
        )
        self._latest: Frame | None = None
        self._color: _Picture | None = None
        self._depth: _Picture | None = None
        self._grey: _Picture | None = None
        self._failures = 0  # starts in a row after which no picture came
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
            except RobotFault as error:
                with self._news:
                    self._problem = str(error)
                self._stop()
                if self._recording is not None:
                    self._ended = True
                    return
                self._failures += 1
                self._stopping.wait(self.RETRY_S)

    def _next(self) -> Frame:
        """Takes the next picture of a recording that waits for us."""
        if self._pipeline is None:
            raise RobotFault(f"The {self.name} camera is not running.")
        try:
            return self._take(int(1000 * self.SILENCE_S))
        except RobotFault as fault:
            raise RobotFault(f"The recording {self._recording} has ended.") from fault

    def _take(self, patience_ms: int) -> Frame:
        """Takes the next set of pictures; returns the newest of both streams.

        Raises:
          RobotFault: none came, or one of the streams has stopped.
        """
        begun_s = time.monotonic()
        while True:
            with calling(f"the {self.name} camera sends no pictures"):
                frames = self._pipeline.wait_for_frames(patience_ms)
                time_s = time.monotonic()
                depth, color = frames.get_depth_frame(), frames.get_color_frame()
                if depth:
                    self._depth = self._taken(depth, self._depth, time_s, self._crop_depth)
                if color:
                    self._color = self._taken(color, self._color, time_s, self._crop_color)
                grey = frames.get_infrared_frame(RIGHT) if self.config.stereo else None
                if grey:
                    self._grey = self._taken(grey, self._grey, time_s, self._crop_grey)
            missing = [name for name, picture in self._newest().items() if picture is None]
            if self._color is not None and self._depth is not None and not missing:
                self._check_streams(time_s)
                return self._publish(self._color, self._depth, self._grey)
            if time_s - begun_s > self.SILENCE_S:
                raise RobotFault(
                    f"the {self.name} camera sends no {missing[0]}. Check its USB 3 cable and port"
                )

    def _taken(
        self,
        frame: Untyped,
        before: _Picture | None,
        time_s: float,
        crop: Callable[[Untyped], np.ndarray],
    ) -> _Picture:
        """Returns a stream's newest picture; one that came before keeps its age."""
        number = int(frame.get_frame_number())
        if before is not None and before.number == number:
            return before
        pixels = crop(frame)
        return _Picture(
            pixels[::-1, ::-1].copy() if self.config.upside_down else pixels, time_s, number
        )

    def _crop_color(self, frame: Untyped) -> np.ndarray:
        pixels, camera = np.asanyarray(frame.get_data()), read_intrinsics(frame)
        return crop_color(pixels, camera, self.config.size, self.config.fovy_deg)

    def _crop_depth(self, frame: Untyped) -> np.ndarray:
        metres = np.asanyarray(frame.get_data()) * np.float32(self.depth_unit_m)
        return crop_depth(
            metres,
            read_intrinsics(frame),
            self.config.size,
            self.config.fovy_deg,
            self.config.depth_cutoff,
        )

    def _crop_grey(self, frame: Untyped) -> np.ndarray:
        pixels, camera = np.asanyarray(frame.get_data()), read_intrinsics(frame)
        return crop_color(pixels[..., None], camera, self.config.size, self.config.fovy_deg)[..., 0]

    def _newest(self) -> dict[str, _Picture | None]:
        """Returns the newest picture of each stream that is asked for; None: none has come yet."""
        newest = {"colour": self._color, "depth": self._depth}
        return newest | ({"grey": self._grey} if self.config.stereo else {})

    def _check_streams(self, now_s: float) -> None:
        """Lets the device be started anew if one of its streams has stopped for long."""
        for name, picture in self._newest().items():
            if picture is not None and now_s - picture.time_s > self.SILENCE_S:
                raise RobotFault(f"the {self.name} camera's {name} has stopped")

    def _publish(self, color: _Picture, depth: _Picture, grey: _Picture | None) -> Frame:
        frame = Frame(
            color.pixels,
            depth.pixels,
            color.time_s,
            color.number,
            depth_time_s=depth.time_s,
            depth_number=depth.number,
            grey=None if grey is None else grey.pixels,
            grey_time_s=None if grey is None else grey.time_s,
            grey_number=None if grey is None else grey.number,
        )
        with self._news:
            self._latest, self._problem = frame, "pictures stopped coming"
            self.received += 1
            self._failures = 0
            self._news.notify_all()
        return frame

    def _start(self) -> None:
        rs, config = self._rs, self.config
        self._color = self._depth = self._grey = None
        problem = f"the {self.name} camera does not start"
        if self._recording is not None:
            problem = f"{self._recording} cannot be played; record it anew"
            if not self._recording.is_file():
                raise RobotFault(f"There is no recording {self._recording}.")
        with calling(problem):
            if self._failures > 1 and self._device is not None and self._recording is None:
                self._device.hardware_reset()  # as pulling its plug does
                self._device = None
            settings = rs.config()
            pipeline = rs.pipeline()
            if self._recording is not None:  # before it plays: the first pictures would be lost
                settings.enable_device_from_file(str(self._recording), repeat_playback=self._repeat)
                resolved = settings.resolve(rs.pipeline_wrapper(pipeline))
                if config.stereo and baseline(rs, resolved.get_streams()) is None:
                    raise RobotFault(
                        f"{self._recording} has no pictures of the right imager; record it with record-camera --stereo."
                    )
                device = resolved.get_device()
                device.as_playback().set_real_time(not self._stepped)
            else:
                enable_streams(rs, settings, self._serial, config)
            profile = pipeline.start(settings)
        self._pipeline = pipeline
        try:
            with calling(problem):
                self._device = profile.get_device()
                sensor = self._device.first_depth_sensor()
                self.depth_unit_m = float(sensor.get_depth_scale())
                if self._recording is None:
                    set_exposure(rs, sensor, config)
        except RobotFault:
            self._stop()
            raise

    def _stop(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            with contextlib.suppress(Exception):  # the device may be gone already
                pipeline.stop()
                if self._recording is not None:
                    # Returns once the player's thread has nothing left to do. Without it that thread
                    # may outlive the player and crash the process.
                    self._device.as_playback().pause()
