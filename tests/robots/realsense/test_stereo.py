"""Pairs of pictures on recordings that librealsense itself writes and plays."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.errors import ConfigError, RobotFault
from alohas2r.robots.realsense.camera import RealSenseCamera
from alohas2r.robots.realsense.config import (
    RealSenseConfig,
    baseline,
    baselines,
    find_cameras,
    librealsense,
)
from alohas2r.robots.realsense.record import write_recording
from alohas2r.robots.simulated import StubCamera

rs = pytest.importorskip("pyrealsense2")

pytestmark = pytest.mark.alone
STEREO = RealSenseConfig(stereo=True)


def pictures(count: int = 4, stereo: bool = True) -> Iterator[tuple[np.ndarray, ...]]:
    """Pictures that tell their number; grey is a bright disc of a third of the height."""
    height, width = 135, 240
    down, across = np.mgrid[:height, :width]
    disc = np.hypot(down - height / 2 + 0.5, across - width / 2 + 0.5) < height / 6
    for number in range(count):
        rgb = np.full((height, width, 3), 20 * (number + 1), np.uint8)
        grey = np.where(disc, 200 + number, 0).astype(np.uint8)
        yield rgb, np.full((height, width), 0.2), *([grey] if stereo else [])


def read(path: pathlib.Path, config: RealSenseConfig = STEREO, count: int = 4):
    with RealSenseCamera("left", recording=path, realtime=False, config=config) as camera:
        return [camera.read(1.0) for _ in range(count)]


def test_grey_comes_with_colour_and_is_cropped_by_its_own_intrinsics(
    tmp_path: pathlib.Path,
) -> None:
    same, wider = tmp_path / "same.db3", tmp_path / "wider.db3"
    assert write_recording(same, pictures()) == 4
    write_recording(wider, pictures(), right_fovy_deg=80)
    frames = read(same)
    for number, frame in enumerate(frames):
        assert [stream.name for stream in frame.streams()] == ["colour", "depth", "grey"]
        assert {stream.number for stream in frame.streams()} == {number}
        assert frame.grey is not None
        assert (frame.grey.shape, frame.grey.dtype) == ((32, 32), np.uint8)
        assert frame.grey[16, 16] == 200 + number
        assert (frame.rgb == 20 * (number + 1)).all()
    covered = [(np.asarray(read(path, count=1)[0].grey) > 100).mean() for path in (same, wider)]
    assert covered[0] == pytest.approx(np.pi / 36, abs=0.01)
    # Of a wider view the same field of view takes a smaller part, in which the disc is larger.
    larger = (np.tan(np.radians(40)) / np.tan(np.radians(29))) ** 2
    assert covered[1] == pytest.approx(covered[0] * larger, rel=0.1)
    plain = read(same, RealSenseConfig(), 1)[0]
    assert plain.grey is None
    assert len(plain.streams()) == 2


def test_a_recording_without_the_right_imager_says_so(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plain.db3"
    write_recording(path, pictures(stereo=False))
    with pytest.raises(RobotFault, match=r"no pictures of the right imager.*--stereo"):
        read(path)


def test_a_device_says_how_far_apart_its_imagers_are(tmp_path: pathlib.Path) -> None:
    found = []
    for metres in (0.018, 0.05):
        path = tmp_path / f"{metres}.db3"
        write_recording(path, pictures(2), baseline_m=metres)
        settings, pipeline = rs.config(), rs.pipeline()
        settings.enable_device_from_file(str(path))
        profile = settings.resolve(rs.pipeline_wrapper(pipeline))
        found.append(baseline(librealsense(), profile.get_streams()))
        assert baseline(librealsense(), profile.get_streams()[:1]) is None
    assert found == pytest.approx([0.018, 0.05], abs=1e-6)
    assert baselines().keys() == {camera.serial for camera in find_cameras()}


def test_upside_down_there_is_no_right_imager_on_the_right() -> None:
    with pytest.raises(ConfigError, match="upside down"):
        RealSenseConfig(stereo=True, upside_down=True)


def test_a_stub_has_a_right_imager_if_asked() -> None:
    assert StubCamera("left").read(1.0).grey is None
    grey = StubCamera("left", paired=True).read(1.0).grey
    assert grey is not None
    assert (grey.shape, grey.dtype) == ((32, 32), np.uint8)
