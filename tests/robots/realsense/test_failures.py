"""Whatever librealsense raises, wherever it raises it, comes out as one sentence with a remedy."""

from __future__ import annotations

import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest

from alohas2r.errors import Alohas2rError, ConfigError, RobotFault
from alohas2r.robots.realsense.camera import RealSenseCamera
from alohas2r.robots.realsense.config import RealSenseConfig, find_cameras
from alohas2r.robots.realsense.record import record

CONFIG = RealSenseConfig(warm_up=2, start_s=1.0)


class Stream:
    """A D405 that does what `faults` says, with librealsense's own names."""

    def __init__(self) -> None:
        self.serials, self.usb = ["111"], "3.2"
        self.without_color: set[int] = set()
        self.color_stops_at = 10**9
        self.starts = self.number = self.resets = 0
        self.stuck = False

    # What is called on the way, each a `call` that may be told to fail.
    def module(self, guard: Any) -> types.ModuleType:
        module = types.ModuleType("pyrealsense2")
        names = types.SimpleNamespace
        vars(module).update(
            stream=names(depth=0, color=1),
            format=names(z16=0, rgb8=1),
            option=names(enable_auto_exposure=0, exposure=1, gain=2),
            camera_info=names(
                serial_number="serial",
                name="name",
                firmware_version="fw",
                usb_type_descriptor="usb",
            ),
            context=guard(
                "context", lambda: names(query_devices=guard("query_devices", self.devices(guard)))
            ),
            config=guard(
                "config",
                lambda: names(
                    enable_device=guard("enable_device", lambda _: None),
                    enable_stream=guard("enable_stream", lambda *_: None),
                    enable_record_to_file=guard(
                        "enable_record", lambda path: open(path, "w").close()
                    ),
                ),
            ),
            pipeline=guard(
                "pipeline",
                lambda: names(
                    start=guard("start", lambda _: self.started(guard)),
                    wait_for_frames=guard(
                        "wait_for_frames", lambda patience: self.frames(guard, patience)
                    ),
                    stop=guard("stop", lambda: None),
                ),
            ),
        )
        return module

    def device(self, guard: Any, serial: str) -> Any:
        info = {"serial": serial, "name": "Intel RealSense D405", "fw": "5.15", "usb": self.usb}
        sensor = types.SimpleNamespace(
            get_depth_scale=guard("get_depth_scale", lambda: 0.0001),
            set_option=guard("set_option", lambda *_: None),
        )
        return types.SimpleNamespace(
            supports=guard("supports", lambda _: True),
            get_info=guard("get_info", info.__getitem__),
            first_depth_sensor=guard("first_depth_sensor", lambda: sensor),
            hardware_reset=guard("hardware_reset", self.reset),
        )

    def devices(self, guard: Any) -> Any:
        return lambda: [self.device(guard, serial) for serial in self.serials]

    def started(self, guard: Any) -> Any:
        self.starts += 1
        return types.SimpleNamespace(
            get_device=guard("get_device", lambda: self.device(guard, "111"))
        )

    def reset(self) -> None:
        self.resets += 1
        self.stuck = False

    def frames(self, guard: Any, patience_ms: int) -> Any:
        if self.stuck:
            time.sleep(0.01)
            raise RuntimeError(f"Frame didn't arrive within {patience_ms}")
        time.sleep(0.005)
        self.number += 1
        color = self.picture(guard, min(self.number, self.color_stops_at), np.uint8, (270, 480, 3))
        depth = self.picture(guard, self.number, np.uint16, (270, 480))
        if self.number in self.without_color:
            color = None
        return types.SimpleNamespace(
            get_depth_frame=guard("get_depth_frame", lambda: depth),
            get_color_frame=guard("get_color_frame", lambda: color),
        )

    def picture(self, guard: Any, number: int, kind: Any, shape: tuple[int, ...]) -> Any:
        view = types.SimpleNamespace(
            width=480, height=270, fx=242.0, fy=242.0, ppx=240.0, ppy=135.0
        )
        profile = types.SimpleNamespace(
            as_video_stream_profile=guard(
                "as_video_stream_profile",
                lambda: types.SimpleNamespace(get_intrinsics=guard("get_intrinsics", lambda: view)),
            )
        )
        return types.SimpleNamespace(
            get_frame_number=guard("get_frame_number", lambda: number),
            get_data=guard("get_data", lambda: np.full(shape, number % 200, kind)),
            get_profile=guard("get_profile", lambda: profile),
        )


class Guard:
    """Counts the calls of each function, and lets one of them fail."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.fails: tuple[str, int, BaseException] | None = None

    def __call__(self, name: str, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.fails and self.fails[:2] == (name, self.calls[name]):
                raise self.fails[2]
            return function(*arguments)

        return called


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, guard: Guard) -> Stream:
    stream = Stream()
    monkeypatch.setitem(sys.modules, "pyrealsense2", stream.module(guard))
    monkeypatch.setattr(RealSenseCamera, "RETRY_S", 0.01)
    return stream


def use(tmp_path: Any) -> None:
    """Everything that is done with a camera."""
    find_cameras()
    with RealSenseCamera("left", "111", config=CONFIG) as camera:
        camera.read(1.0)
    record(tmp_path / f"{time.monotonic_ns()}.db3", 0.02, "111", RealSenseConfig(exposure_us=900))


# What is called, by how often it is called at least, up to three times.
ONCE = ("get_depth_scale", "enable_record")
TWICE = (
    *("config", "pipeline", "enable_device", "start"),
    *("get_device", "first_depth_sensor", "stop"),
)
THRICE = (
    *("context", "query_devices", "supports", "get_info", "enable_stream", "set_option"),
    *("wait_for_frames", "get_depth_frame", "get_color_frame", "get_frame_number", "get_data"),
    *("get_profile", "as_video_stream_profile", "get_intrinsics"),
)
TIMES = dict.fromkeys(ONCE, 1) | dict.fromkeys(TWICE, 2) | dict.fromkeys(THRICE, 3)


def test_the_walk_misses_no_call(device, guard, tmp_path):
    use(tmp_path)
    assert set(guard.calls) == set(TIMES)
    assert all(min(guard.calls[name], 3) == times for name, times in TIMES.items())


@pytest.mark.parametrize(
    ("name", "call"), [(name, call + 1) for name, times in TIMES.items() for call in range(times)]
)
@pytest.mark.parametrize("error", [RuntimeError("failed to set power state"), TypeError("no")])
def test_an_error_of_librealsense_is_one_of_ours(device, guard, tmp_path, name, error, call):
    guard.fails = (name, call, error)
    threads = threading.active_count()
    said = ""
    try:
        use(tmp_path)
    except Alohas2rError as fault:
        said = str(fault)
    assert "\n" not in said
    assert not said or isinstance(error, TypeError) or "udev rule" in said
    assert threading.active_count() == threads  # no thread is left, none has died of it


@pytest.mark.parametrize(
    ("set_up", "words"),
    [
        ({"usb": "2.1"}, "USB 2.1.*USB 3 port"),
        ({"serials": []}, "Plugged in: none"),
        ({"serials": ["333"]}, "no RealSense camera 111.*333"),
    ],
)
def test_what_can_be_known_before_the_start_is_said(device, set_up, words):
    for name, value in set_up.items():
        setattr(device, name, value)
    with pytest.raises(RobotFault, match=words), RealSenseCamera("left", "111", config=CONFIG):
        pass
    assert device.starts == 0


def test_of_several_cameras_one_must_be_chosen(device, tmp_path):
    device.serials = ["111", "222"]
    with pytest.raises(RobotFault, match=r"several.*111, 222"):
        record(tmp_path / "x.db3", 0.1)


@pytest.mark.alone
def test_an_incomplete_set_of_pictures_stops_nothing(device):
    device.without_color = set(range(6, 300, 3))
    with RealSenseCamera("left", "111", config=CONFIG) as camera:
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            frame = camera.read(0.5)
            color, depth = frame.streams()
            assert depth.number - color.number in (0, 1)
            assert depth.time_s >= color.time_s
    assert (device.starts, camera.reconnects) == (1, 0)


@pytest.mark.alone
def test_a_stream_that_stands_grows_old_while_the_other_is_new(device):
    device.color_stops_at = 20
    with RealSenseCamera("left", "111", config=CONFIG) as camera:
        color, depth = camera.read(5.0).streams()
        until_s = time.monotonic() + 5
        while depth.number < 24 and time.monotonic() < until_s:
            color, depth = camera.read(5.0).streams()
        assert color.number == 20
        assert depth.time_s - color.time_s > 0.01
        time.sleep(RealSenseCamera.SILENCE_S)
        assert camera.reconnects >= 1  # one that stands for long is started anew


@pytest.mark.alone
def test_a_camera_that_hangs_is_reset(device, monkeypatch):
    with RealSenseCamera("left", "111", config=CONFIG) as camera:
        device.stuck = True
        until_s = time.monotonic() + 5
        while device.resets == 0 and time.monotonic() < until_s:
            time.sleep(0.01)
        before = camera.received
        time.sleep(0.3)
        assert camera.received > before


@pytest.mark.parametrize(
    "wrong",
    [
        {"exposure_us": 0.0},
        {"exposure_us": 1e6},
        {"gain": 1000.0},
        {"width": 481},
        {"fps": 24},
        {"fovy_deg": 0.97},
        {"size": 0},
    ],
)
def test_options_beyond_their_range_are_refused_with_their_unit(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        RealSenseConfig(**wrong)
