"""The camera on recordings that librealsense itself writes and plays."""

import subprocess
import sys
import time

import numpy as np
import pytest

from alohas2r.errors import ArtifactError, ConfigError, RobotFault
from alohas2r.robots.base import Camera
from alohas2r.robots.realsense.camera import RealSenseCamera
from alohas2r.robots.realsense.config import RealSenseConfig, find_cameras
from alohas2r.robots.realsense.record import record, write_recording

rs = pytest.importorskip("pyrealsense2")

pytestmark = pytest.mark.alone

COUNT = 12


def pictures(count: int = COUNT, height: int = 135, width: int = 240):
    """Pictures whose brightness and depth tell their number, brighter and nearer to the right."""
    ramp = np.linspace(0, 60, width)[None].repeat(height, 0)
    for number in range(count):
        rgb = np.repeat((ramp + 10 * number)[..., None], 3, axis=2).astype(np.uint8)
        depth = 0.3 - ramp / 1000 + 0.001 * number
        yield rgb, depth


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("camera") / "left.db3"
    assert write_recording(path, pictures()) == COUNT
    return path


# --- recordings -------------------------------------------------------------------------------


def test_a_stepped_recording_returns_every_picture_in_order(recording):
    with RealSenseCamera("left", recording=recording, realtime=False) as camera:
        assert isinstance(camera, Camera)
        frames = [camera.read(0.1) for _ in range(COUNT)]
        with pytest.raises(RobotFault, match="has ended"):
            camera.read(0.1)
    assert [frame.number for frame in frames] == list(range(COUNT))
    assert frames[0].rgb.shape == (32, 32, 3)
    assert frames[0].depth.dtype == np.float32
    assert camera.depth_unit_m == pytest.approx(0.0001)
    for number, (frame, (rgb, depth)) in enumerate(zip(frames, pictures(), strict=True)):
        middle = slice(120 - 67, 120 + 67)
        assert frame.rgb.mean() == pytest.approx(rgb[:, middle].mean(), abs=0.6)
        assert frame.depth.mean() == pytest.approx(depth[:, middle].mean(), abs=1e-4)
        assert frame.depth.mean() == pytest.approx(0.27 + 0.001 * number, abs=1e-3)
    first = frames[0]
    assert (np.diff(first.rgb.astype(int).mean(axis=(0, 2))) >= 0).all()  # brighter to the right
    assert (np.diff(first.depth.mean(axis=0)) < 0).all()  # and nearer


def test_no_picture_is_lost_between_the_start_and_the_first_read(recording, monkeypatch):
    class SlowToStart(rs.pipeline):
        def start(self, *args):
            profile = super().start(*args)
            time.sleep(0.3)  # nine pictures long, had the recording played at its own pace
            return profile

    monkeypatch.setattr(rs, "pipeline", SlowToStart)
    with RealSenseCamera("left", recording=recording, realtime=False) as camera:
        assert [camera.read(0.1).number for _ in range(COUNT)] == list(range(COUNT))


def test_another_depth_unit_is_read_from_the_recording(tmp_path):
    path = tmp_path / "coarse.db3"
    write_recording(path, pictures(3), depth_unit_m=0.001)
    with RealSenseCamera("left", recording=path, realtime=False) as camera:
        assert camera.read(1.0).depth.mean() == pytest.approx(0.27, abs=2e-3)
        assert camera.depth_unit_m == pytest.approx(0.001)


def test_a_camera_mounted_upside_down_is_turned(recording):
    turned = RealSenseConfig(upside_down=True)
    with (
        RealSenseCamera("left", recording=recording, realtime=False) as plain,
        RealSenseCamera("left", recording=recording, realtime=False, config=turned) as other,
    ):
        first, second = plain.read(1.0), other.read(1.0)
    np.testing.assert_array_equal(first.rgb, second.rgb[::-1, ::-1])
    np.testing.assert_array_equal(first.depth, second.depth[::-1, ::-1])


def test_a_recording_in_real_time_gives_the_newest_picture_and_then_goes_stale(recording):
    with RealSenseCamera("left", recording=recording) as camera:
        numbers, faults, until_s = [], [], time.monotonic() + 3.0
        while time.monotonic() < until_s and not faults:
            try:
                frame = camera.read(0.3)
            except RobotFault as fault:
                faults.append(str(fault))
                break
            assert time.monotonic() - frame.time_s <= 0.35
            numbers.append(frame.number)
            time.sleep(0.01)
        assert (np.diff(numbers) >= 0).all()
        assert len(set(numbers)) < len(numbers)  # the same picture until a newer one comes
        assert numbers[-1] == COUNT - 1
        assert "s old" in faults[0]


def test_a_repeating_recording_goes_on(recording):
    with RealSenseCamera("left", recording=recording, realtime=False, repeat=True) as camera:
        numbers = [camera.read(1.0).number for _ in range(2 * COUNT)]
    assert numbers.count(3) >= 2


CLOSES_OFTEN = """
import sys
from alohas2r.robots.realsense.camera import RealSenseCamera

for _ in range(60):
    with RealSenseCamera("left", recording=sys.argv[1], realtime=False, repeat=True) as camera:
        for _ in range(6):
            camera.read(1.0)
"""


def test_a_repeating_recording_that_is_closed_while_it_plays_does_not_crash(recording):
    """In a process of its own: a crash of librealsense would end the whole run of tests."""
    command = [sys.executable, "-c", CLOSES_OFTEN, str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_and_broken_sources_are_named(tmp_path, recording):
    with pytest.raises(RobotFault, match="no recording"):
        RealSenseCamera("left", recording=tmp_path / "none.db3").__enter__()
    broken = tmp_path / "broken.db3"
    broken.write_bytes(b"not a recording")
    with pytest.raises(RobotFault, match="cannot be played"):
        RealSenseCamera("left", recording=broken).__enter__()
    with pytest.raises(ArtifactError, match="exists already"):
        write_recording(recording, pictures(1))
    with pytest.raises(ArtifactError, match="no pictures"):
        write_recording(tmp_path / "empty.db3", [])


def test_without_a_device_the_fault_says_what_is_plugged_in(tmp_path):
    if find_cameras():
        pytest.skip("a RealSense camera is plugged in")
    with pytest.raises(RobotFault, match="Plugged in: none"):
        RealSenseCamera("right", serial="123").__enter__()
    with pytest.raises(RobotFault, match="Plugged in: none"):
        record(tmp_path / "new.db3", 0.1)


@pytest.mark.parametrize("wrong", [{"size": 500}, {"fovy_deg": 0.0}, {"exposure_us": -1.0}])
def test_configuration_refuses_nonsense(wrong):
    with pytest.raises(ConfigError):
        RealSenseConfig(**wrong)
