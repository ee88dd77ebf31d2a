"""Data sets hold the episodes that were put in, and have the layout of those who read them."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from alohas2r.datasets import episode as episodes
from alohas2r.datasets import formats, lerobot, statistics
from alohas2r.datasets.episode import About, Episode
from alohas2r.embodiment import aloha
from alohas2r.embodiment.aloha import CAMERAS, MOTORS
from alohas2r.embodiment.joints import GRIPPERS
from alohas2r.errors import ArtifactError, ConfigError

parquet = pytest.importorskip("pyarrow.parquet")
h5py = pytest.importorskip("h5py")
av = pytest.importorskip("av")

LENGTHS = (7, 4, 9)
SIDE = 32
ABOUT = About("Insert the peg.", {"policy": "params/teacher", "seed": 7})


def pictures(steps: int, start: int) -> np.ndarray:
    """A dark ground with a bright bar that tells which step of which episode it is."""
    shown = np.full((steps, SIDE, SIDE, 3), 30, np.uint8)
    for step in range(steps):
        at = (start + 2 * step) % (SIDE - 8)
        shown[step, :, at : at + 8] = 220
    return shown


def make(number: int, steps: int, depth: bool = False) -> Episode:
    draw = np.random.default_rng(number)
    shown = {camera: pictures(steps, 5 * number + index) for index, camera in enumerate(CAMERAS)}
    far = {name: draw.integers(0, 4000, (steps, SIDE, SIDE)).astype(np.uint16) for name in CAMERAS}
    return Episode(
        state=draw.normal(size=(steps, 14)).astype(np.float32),
        velocity=draw.normal(size=(steps, 14)).astype(np.float32),
        action=draw.normal(size=(steps, 14)).astype(np.float32),
        images=shown,
        depth=far if depth else {},
        success=number != 1,
        number=10 + number,
    )


def some(depth: bool = False) -> list[Episode]:
    return [make(number, steps, depth) for number, steps in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_what_was_written_is_read_again(tmp_path: pathlib.Path, name: str) -> None:
    depth = name != "lerobot"
    written = some(depth)
    made = formats.write(tmp_path / "set", name, ABOUT, iter(written))
    assert made == episodes.Made(3, sum(LENGTHS), 2)
    again = list(formats.read(tmp_path / "set"))
    assert len(again) == len(written)
    for new, old in zip(again, written, strict=True):
        np.testing.assert_array_equal(new.state, old.state)
        np.testing.assert_array_equal(new.action, old.action)
        assert new.success == old.success
        if depth:
            assert new.velocity is not None
            assert old.velocity is not None
            np.testing.assert_array_equal(new.velocity, old.velocity)
            assert new.number == old.number
        for camera in CAMERAS:
            if depth:
                np.testing.assert_array_equal(new.images[camera], old.images[camera])
                np.testing.assert_array_equal(new.depth[camera], old.depth[camera])
            else:  # video: nearly the same, and each picture in its own place
                error = np.abs(new.images[camera].astype(int) - old.images[camera])
                assert error.mean() < 6
                assert (new.images[camera][:, 0, :, 0] > 125).sum(1).tolist() == [8] * len(old)


def test_the_lerobot_layout(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "set"
    formats.write(root, "lerobot", ABOUT, iter(some()))
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 20, "aloha")
    assert (info["total_episodes"], info["total_frames"]) == (3, sum(LENGTHS))
    assert info["features"]["observation.state"]["names"] == list(MOTORS)
    rows = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in rows] == list(LENGTHS)
    assert [row["dataset_from_index"] for row in rows] == [0, 7, 11]
    assert [row["dataset_to_index"] for row in rows] == [7, 11, 20]
    assert all(row["tasks"] == [ABOUT.task] for row in rows)
    data = parquet.read_table(root / "data/chunk-000/file-000.parquet").to_pydict()
    assert set(data) | {f"observation.images.{name}" for name in CAMERAS} == set(info["features"])
    assert data["index"] == list(range(20))
    assert data["frame_index"] == [*range(7), *range(4), *range(9)]
    np.testing.assert_allclose(data["timestamp"], np.array(data["frame_index"]) / 20, atol=1e-6)
    assert [i for i, done in enumerate(data["next.done"]) if done] == [6, 10, 19]
    assert [i for i, good in enumerate(data["next.success"]) if good] == [6, 19]
    for camera in CAMERAS:
        key = f"videos/observation.images.{camera}"
        assert [row[f"{key}/from_timestamp"] for row in rows] == pytest.approx([0, 0.35, 0.55])
        path = root / f"{key}/chunk-000/file-000.mp4"
        with av.open(str(path)) as film:
            times = [float(frame.pts * frame.time_base) for frame in film.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(20) / 20, atol=1e-6)
    tasks = parquet.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    assert tasks.column("__index_level_0__").to_pylist() == [ABOUT.task]
    kept = json.loads((root / "meta/alohas2r.json").read_text())
    assert kept["source"] == ABOUT.source


def test_statistics_are_those_of_all_frames(tmp_path: pathlib.Path) -> None:
    root, written = tmp_path / "set", some()
    formats.write(root, "lerobot", ABOUT, iter(written))
    figures = json.loads((root / "meta/stats.json").read_text())
    states = np.concatenate([one.state for one in written])
    for name, value in (("mean", states.mean(0)), ("std", states.std(0)), ("min", states.min(0))):
        np.testing.assert_allclose(figures["observation.state"][name], value, atol=1e-5)
    assert figures["action"]["count"] == [len(states)]
    key = f"observation.images.{CAMERAS[0]}"
    shown = np.concatenate(
        [one.images[CAMERAS[0]][:: statistics.PICTURES_EVERY] for one in written]
    )
    share = shown.reshape(-1, 3) / 255
    assert np.shape(figures[key]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(figures[key]["mean"]), share.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.ravel(figures[key]["std"]), share.std(0), atol=1e-9)
    np.testing.assert_allclose(np.ravel(figures[key]["q50"]), np.median(share, 0), atol=1e-9)
    assert figures[key]["count"] == [len(shown)]


def test_files_are_split_and_read_as_one(tmp_path: pathlib.Path) -> None:
    written = some()
    (tmp_path / "set").mkdir()
    writer = lerobot.LeRobotWriter(tmp_path / "set", ABOUT, data_mb=0, video_mb=0)
    episodes.fill(writer, iter(written))
    names = sorted(path.name for path in (tmp_path / "set/data").rglob("*.parquet"))
    assert names == [f"file-{number:03d}.parquet" for number in range(3)]
    assert len(list((tmp_path / "set/videos").rglob("*.mp4"))) == 6
    for new, old in zip(lerobot.read(tmp_path / "set"), written, strict=True):
        np.testing.assert_array_equal(new.state, old.state)
        error = np.abs(new.images[CAMERAS[1]].astype(int) - old.images[CAMERAS[1]])
        assert error.mean() < 6


def test_the_hdf5_layout_is_alohas(tmp_path: pathlib.Path) -> None:
    formats.write(tmp_path / "set", "hdf5", ABOUT, iter(some()))
    with h5py.File(tmp_path / "set/episode_1.hdf5") as file:
        assert file.attrs["sim"]
        assert file["action"].shape == (4, 14)
        assert file["observations/qpos"].shape == file["observations/qvel"].shape == (4, 14)
        for camera in CAMERAS:
            assert file[f"observations/images/{camera}"].shape == (4, SIDE, SIDE, 3)
            assert file[f"observations/images/{camera}"].dtype == np.uint8


def test_units_are_alohas_and_go_both_ways() -> None:
    joints = np.random.default_rng(0).uniform(-1, 1, (5, 14))
    joints[:, list(GRIPPERS)] = np.linspace(aloha.CLOSED_M, aloha.OPEN_M, 5)[:, None]
    values = aloha.to_units(joints)
    np.testing.assert_allclose(
        values[:, list(GRIPPERS)], np.linspace(0, 1, 5)[:, None].repeat(2, 1)
    )
    others = [index for index in range(14) if index not in GRIPPERS]
    np.testing.assert_allclose(values[:, others], joints[:, others], rtol=1e-6)
    np.testing.assert_allclose(aloha.from_units(values), joints, atol=1e-7)
    assert (MOTORS[0], MOTORS[6], MOTORS[13]) == ("left_waist", "left_gripper", "right_gripper")


def test_nothing_is_written_over_and_nothing_is_left_behind(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "mine").write_text("kept")
    with pytest.raises(ArtifactError, match="exists already"):
        formats.check_writable(root, "npz")
    with pytest.raises(ArtifactError, match="exists already"):
        formats.write(root, "npz", ABOUT, iter(some()))
    assert (root / "mine").read_text() == "kept"

    def broken() -> object:
        yield make(0, 3)
        raise ArtifactError("the disk is gone")

    with pytest.raises(ArtifactError, match="the disk is gone"):
        formats.write(tmp_path / "new", "npz", ABOUT, broken())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArtifactError, match="No episode"):
        formats.write(tmp_path / "new", "lerobot", ABOUT, iter(()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_errors_say_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="'lerobot'"):
        formats.find_format("lerobo")
    with pytest.raises(ConfigError, match="npz or hdf5"):
        formats.check_writable(tmp_path / "set", "lerobot", depth=True)
    with pytest.raises(ArtifactError, match="no data set"):
        formats.read(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(
        '{"codebase_version": "v2.1", "features": {"observation.state": {"names": []}}}'
    )
    with pytest.raises(ArtifactError, match=r"v2\.1"):
        next(formats.read(tmp_path))
