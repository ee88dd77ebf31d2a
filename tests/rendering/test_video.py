from __future__ import annotations

import pathlib
import sys

import matplotlib.image
import mujoco
import numpy as np
import pytest
from disk_cases import full_disk
from opengl_cases import red, skip_without_opengl
from PIL import Image

from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError
from alohas2r.rendering import captions, video
from alohas2r.rendering.captions import Word
from alohas2r.rendering.offscreen import Offscreen, free_camera
from alohas2r.sim import scene

av = pytest.importorskip("av")


def read(path: pathlib.Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 20.0
    return np.stack(frames)


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """A bright square that moves down a dark slope, one row a frame."""
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    pictures += np.linspace(0, 90, width).astype(np.uint8)[:, None]
    for index, picture in enumerate(pictures):
        picture[index : index + 16, 8:24] = 220
    return pictures


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 97)])
def test_video_shows_the_frames(tmp_path: pathlib.Path, height: int, width: int) -> None:
    frames = moving(25, height, width)
    path = video.write_video(tmp_path / "new" / "moving.mp4", iter(frames))
    shown = read(path)
    assert shown.shape == (25, height + height % 2, width + width % 2, 3)
    error = np.abs(shown[:, :height, :width].astype(int) - frames)
    assert error.mean() < 4
    assert list(path.parent.iterdir()) == [path]


def test_an_animated_picture_shows_the_frames_again_and_again(tmp_path: pathlib.Path) -> None:
    frames = moving(6, 64, 96)
    path = video.write_video(tmp_path / "moving.webp", iter(frames), 10)
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0
        shown = []
        for index in range(animation.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            animation.seek(index)
            shown.append(np.asarray(animation.convert("RGB")))
            assert animation.info["duration"] == 100
    assert len(shown) == 6
    assert np.abs(np.stack(shown).astype(int) - frames).mean() < 4


def test_captions_say_more_with_more_words_and_stay_in_their_place() -> None:
    line = captions.line(120, 20, [Word("1.25 s"), Word("lifted", (0, 255, 0), left=80)])
    assert line.shape == (20, 120, 3)
    ink = (line != captions.BACKGROUND).any((0, 2))
    assert ink[:70].any()
    assert ink[80:].any()
    assert not ink[60:80].any()
    green = (line[..., 1] > 150) & (line[..., 0] < 60)
    assert green[:, 80:].any()
    assert not green[:, :80].any()


def test_unequal_frames_and_a_full_disk_leave_the_earlier_video(tmp_path: pathlib.Path) -> None:
    path = video.write_video(tmp_path / "moving.mp4", moving(5, 64, 64))
    content = path.read_bytes()
    mixed = [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 66, 3), np.uint8)]
    with pytest.raises(ValueError, match="in a video of"):
        video.write_video(path, mixed)
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8)
    with full_disk(10_000), pytest.raises(ArtifactError, match="earlier file is intact"):
        video.write_video(path, noise)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_png_is_read_back_pixel_by_pixel(tmp_path: pathlib.Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    path = video.write_png(tmp_path / "picture.png", picture)
    assert np.array_equal(np.round(matplotlib.image.imread(path) * 255), picture)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_tile_keeps_every_view_and_time(count: int) -> None:
    views = np.random.default_rng(0).integers(1, 256, (count, 4, 6, 8, 3), dtype=np.uint8)
    grid = video.tile(views)
    assert grid.shape[0] == 4
    assert np.array_equal(grid[2], video.tile(views[:, 2]))
    rows, columns = grid.shape[1] // 6, grid.shape[2] // 8
    assert rows * columns >= count > (rows - 1) * columns
    blocks = grid.reshape(4, rows, 6, columns, 8, 3).transpose(1, 3, 0, 2, 4, 5)
    blocks = blocks.reshape(rows * columns, 4, 6, 8, 3)
    assert np.array_equal(blocks[:count], views)
    assert not blocks[count:].any()


def test_bad_pictures_and_names_are_refused(tmp_path: pathlib.Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ConfigError, match=r"must end in \.mp4 or \.webp"):
        video.write_video(tmp_path / "a.gif", [picture])
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        video.write_png(tmp_path / "a.jpg", picture)
    with pytest.raises(ValueError, match="at least one frame"):
        video.write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match="uint8"):
        video.write_png(tmp_path / "a.png", picture.astype(float))
    with pytest.raises(ValueError, match="H, W, 3"):
        video.write_video(tmp_path / "a.mp4", [picture[0]])
    with pytest.raises(ValueError, match="N > 0"):
        video.tile(np.zeros((0, 4, 4, 3), np.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        video.check_path(tmp_path / "file" / "a.mp4")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_missing_encoder_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'alohas2r\[train\]'"):
        video.check_path(tmp_path / "a.mp4")


@pytest.fixture(scope="module")
def opengl() -> None:
    skip_without_opengl()


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("name", scene.names())
def test_scenes_are_drawn_as_pictures_and_as_a_walk_around(
    tmp_path: pathlib.Path, name: str
) -> None:
    path = video.write_scene(tmp_path / "a.png", name, height=60, width=80)
    picture = np.round(matplotlib.image.imread(path) * 255).astype(np.uint8)
    assert picture.shape == (60, 80, 3)
    assert red(picture) > 0
    path = video.write_scene(tmp_path / "a.mp4", name, height=60, width=80, seconds=0.2)
    walk = read(path).astype(int)
    assert len(walk) == 4
    assert np.abs(walk[0] - walk[2]).mean() > 5


@pytest.mark.usefixtures("opengl")
def test_first_row_is_on_top_and_shadows_darken() -> None:
    loaded = scene.load("pick")
    data = mujoco.MjData(loaded.model)
    mujoco.mj_resetDataKeyframe(loaded.model, data, 0)
    mujoco.mj_forward(loaded.model, data)
    high, low, means = np.zeros(2), np.zeros(2), []
    for index, shadows in enumerate((True, False)):
        with Offscreen(loaded.model, 96, 128, shadows=shadows) as view:
            # Looking at a point above the block puts it into the lower half of the picture.
            above = data.body("box").xpos + np.array([0, 0, 0.1])
            picture = view.picture(data, free_camera(tuple(above), 0.5, 90, -20))
        high[index], low[index] = red(picture[:48]), red(picture[48:])
        means.append(picture.mean())
    assert means[0] < means[1]
    assert (low > 0).all()
    assert (high == 0).all()


def test_sizes_cameras_and_platforms_out_of_range_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scene.load("pick").model
    for height, width in ((0, 10), (10, 10_000)):
        with pytest.raises(ConfigError, match=r"out of range: 1\.\.1280 x 1\.\.960"):
            Offscreen(model, height, width)
    with pytest.raises(ConfigError, match="Did you mean 'overhead_cam'"):
        video.write_scene(tmp_path / "a.png", "pick", camera="overhed_cam")
    with pytest.raises(ConfigError, match=r"end in \.png or \.mp4"):
        video.write_scene(tmp_path / "a.jpg", "pick")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", None)
    with pytest.raises(BackendUnavailable, match=r"osmesa: .*apt-get install libegl1"):
        Offscreen(model, 8, 8)
