"""LeRobot data sets, version 3: parquet for vectors, MP4 for pictures, JSON for what it is.

Source of the layout: `lerobot` 0.4, `lerobot_dataset.py` and `datasets/utils.py`: files of many episodes, each episode
with its rows and its stretch of the films in meta/episodes.
"""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from alohas2r.core.types import JsonObject, Untyped
from alohas2r.datasets import statistics
from alohas2r.datasets.episode import FPS, About, Episode
from alohas2r.embodiment.aloha import CAMERAS, MOTORS
from alohas2r.errors import ArtifactError, BackendUnavailable

VERSION = "v3.0"
ROBOT = "aloha"
CHUNK = 1000  # files in a folder
DATA_MB, VIDEO_MB = 100, 200  # size at which a further file is begun
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
OWN = "meta/alohas2r.json"  # not LeRobot's: where the episodes come from
STATE, ACTION = "observation.state", "action"
# A key picture every second frame, as LeRobot has it: any frame is found fast.
_CODEC = {"crf": "20", "preset": "veryfast", "g": "2", "bf": "0"}
_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def video_key(camera: str) -> str:
    """Returns LeRobot's name of a camera's pictures."""
    return f"observation.images.{camera}"


class LeRobotWriter:
    """Writes a LeRobot data set of version 3; depth, which it has no place for, is left out.

    Args:
      folder: an empty folder.
      about: what it is of.
      data_mb, video_mb: size at which a further file is begun.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        about: About,
        data_mb: float = DATA_MB,
        video_mb: float = VIDEO_MB,
    ) -> None:
        self._arrow, self._parquet, self._av = _packages()
        self._folder, self._about = folder, about
        self._limits = data_mb * 1e6, video_mb * 1e6
        self._rows: list[JsonObject] = []
        self._vectors: dict[str, list[np.ndarray]] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._counted = 0
        self._frames = 0
        self._data: Untyped = None
        self._data_file = -1
        self._films: dict[str, _Film] = {}
        self._shape: tuple[int, ...] = ()

    def add(self, episode: Episode) -> None:
        """Appends an episode."""
        steps, number = len(episode), len(self._rows)
        self._shape = next(iter(episode.images.values())).shape[1:]
        index = np.arange(steps)
        last = index == steps - 1
        vectors = {
            STATE: episode.state,
            ACTION: episode.action,
            "next.done": last,
            "next.success": last & bool(episode.success),
            "timestamp": (index / FPS).astype(np.float32),
            "frame_index": index,
            "episode_index": np.full(steps, number),
            "index": self._frames + index,
            "task_index": np.zeros(steps, int),
        }
        row: JsonObject = {
            "episode_index": number,
            "tasks": [self._about.task],
            "length": steps,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + steps,
            "data/chunk_index": 0,
            "data/file_index": 0,
        }
        self._write_rows(vectors, row)
        figures: dict[str, Mapping[str, np.ndarray]] = {
            name: statistics.of_vectors(values) for name, values in vectors.items()
        }
        for name, values in vectors.items():
            self._vectors.setdefault(name, []).append(np.asarray(values, np.float32))
        counted = -(-steps // statistics.PICTURES_EVERY)
        for camera in CAMERAS:
            key = video_key(camera)
            self._film(camera, episode.images[camera], row)
            counts = statistics.histogram(episode.images[camera])
            self._counts[key] = self._counts.get(key, np.zeros_like(counts)) + counts
            figures[key] = statistics.of_pictures(counts, counted)
        self._counted += counted
        self._frames += steps
        row |= {
            f"stats/{name}/{figure}": value
            for name, values in figures.items()
            for figure, value in statistics.plain(values).items()
        }
        self._rows.append(row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})

    def finish(self) -> None:
        """Closes the files and writes what is known only at the end."""
        if self._data is not None:
            self._data.close()
        for film in self._films.values():
            film.close()
        self._write_table(EPISODES, self._arrow.Table.from_pylist(self._rows))
        self._write_tasks()
        figures = {
            name: statistics.of_vectors(np.concatenate(values))
            for name, values in self._vectors.items()
        }
        figures |= {
            key: statistics.of_pictures(counts, self._counted)
            for key, counts in self._counts.items()
        }
        text = {name: statistics.plain(values) for name, values in figures.items()}
        (self._folder / "meta/stats.json").write_text(json.dumps(text, indent=4))
        (self._folder / "meta/info.json").write_text(json.dumps(self._info(), indent=4))
        count = len(self._rows)
        (self._folder / OWN).write_text(self._about.describe(count, self._frames))

    def _write_rows(self, vectors: Mapping[str, np.ndarray], row: JsonObject) -> None:
        """Appends the vectors of an episode; notes in its row where they are."""
        path = self._data_path()
        if self._data is None or path.stat().st_size >= self._limits[0]:
            if self._data is not None:
                self._data.close()
            self._data_file += 1
            path = self._data_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = self._parquet.ParquetWriter(path, self._schema())
        columns = []
        for name, values in vectors.items():
            kind = self._schema().field(name).type
            columns.append(self._arrow.array(list(values) if values.ndim > 1 else values, kind))
        self._data.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema()))
        row["data/chunk_index"], row["data/file_index"] = divmod(self._data_file, CHUNK)

    def _data_path(self) -> pathlib.Path:
        chunk, file = divmod(max(self._data_file, 0), CHUNK)
        return self._folder / DATA.format(chunk_index=chunk, file_index=file)

    def _schema(self) -> Untyped:
        arrow = self._arrow
        vector = arrow.list_(arrow.float32(), len(MOTORS))
        names: dict[str, Untyped] = {STATE: vector, ACTION: vector}
        names |= {"next.done": arrow.bool_(), "next.success": arrow.bool_()}
        names["timestamp"] = arrow.float32()
        names |= {name: arrow.int64() for name in _COLUMNS[1:]}
        return arrow.schema(names)

    def _film(self, camera: str, pictures: np.ndarray, row: JsonObject) -> None:
        """Appends the pictures of an episode; notes in its row where they are."""
        film = self._films.get(camera)
        if film is None or film.size >= self._limits[1]:
            number = 0 if film is None else film.number + 1
            if film is not None:
                film.close()
            chunk, file = divmod(number, CHUNK)
            name = VIDEO.format(video_key=video_key(camera), chunk_index=chunk, file_index=file)
            film = _Film(self._av, self._folder / name, number, pictures.shape[1:3])
            self._films[camera] = film
        start = film.frames
        film.add(pictures)
        prefix = f"videos/{video_key(camera)}"
        row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"] = divmod(film.number, CHUNK)
        row[f"{prefix}/from_timestamp"] = start / FPS
        row[f"{prefix}/to_timestamp"] = film.frames / FPS

    def _write_tasks(self) -> None:
        """Writes the table of tasks as pandas would, with the task as its index."""
        arrow = self._arrow
        place = "__index_level_0__"
        columns = [("task_index", "task_index", "int64"), (None, place, "object")]
        described = {
            "index_columns": [place],
            "column_indexes": [
                {
                    "name": None,
                    "field_name": None,
                    "pandas_type": "unicode",
                    "numpy_type": "object",
                    "metadata": {"encoding": "UTF-8"},
                }
            ],
            "columns": [
                {
                    "name": name,
                    "field_name": field,
                    "pandas_type": "unicode" if kind == "object" else kind,
                    "numpy_type": kind,
                    "metadata": None,
                }
                for name, field, kind in columns
            ],
            "creator": {"library": "pyarrow", "version": arrow.__version__},
            "pandas_version": "2.2.0",
        }
        table = arrow.table({"task_index": arrow.array([0]), place: [self._about.task]})
        self._write_table(
            "meta/tasks.parquet", table.replace_schema_metadata({"pandas": json.dumps(described)})
        )

    def _write_table(self, name: str, table: Untyped) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._parquet.write_table(table, path)

    def _info(self) -> JsonObject:
        vector = {"dtype": "float32", "shape": [len(MOTORS)], "names": list(MOTORS)}
        height, width, channels = self._shape
        film = {
            "dtype": "video",
            "shape": list(self._shape),
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": FPS,
                "video.channels": channels,
                "has_audio": False,
            },
        }
        single = {
            name: {"dtype": kind, "shape": [1], "names": None}
            for name, kind in (
                *(("next.done", "bool"), ("next.success", "bool")),
                *((name, "float32" if name == "timestamp" else "int64") for name in _COLUMNS),
            )
        }
        return {
            "codebase_version": VERSION,
            "robot_type": ROBOT,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": 1,
            "chunks_size": CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": FPS,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": {
                STATE: vector,
                ACTION: vector,
                **{video_key(camera): film for camera in CAMERAS},
                **single,
            },
        }


class _Film:
    """One MP4 file that grows by episodes."""

    def __init__(self, av: Untyped, path: pathlib.Path, number: int, size: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.number, self.frames, self.size = number, 0, 0
        self._av = av
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=FPS)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = _CODEC

    def add(self, pictures: np.ndarray) -> None:
        """Appends pictures [T, H, W, 3]."""
        for picture in pictures:
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            self._mux(self._stream.encode(frame))
        self.frames += len(pictures)

    def close(self) -> None:
        """Ends the file."""
        self._mux(self._stream.encode())
        self._container.close()

    def _mux(self, packets: list[Untyped]) -> None:
        for packet in packets:
            self.size += packet.size
            self._container.mux(packet)


def read(folder: pathlib.Path) -> Iterator[Episode]:
    """Reads a LeRobot data set of two ALOHA arms with wrist cameras, one that this package wrote or another.

    Raises:
      ArtifactError: it is none, or of other joints.
    """
    _, parquet, av = _packages()
    try:
        info = json.loads((folder / "meta/info.json").read_text())
        names = info["features"][STATE]["names"]
        names = next(iter(names.values())) if isinstance(names, dict) else names
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder} is no LeRobot data set: {error}.") from error
    if info["codebase_version"] != VERSION:
        raise ArtifactError(
            f"{folder} is a LeRobot data set of version {info['codebase_version']}, not {VERSION};"
            " lerobot converts it."
        )
    if list(names) != list(MOTORS):
        raise ArtifactError(f"{folder} has other joints than {', '.join(MOTORS)}: {names}.")
    rows = [
        row
        for path in sorted((folder / "meta/episodes").glob("*/*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]
    films = {camera: _Reader(av, folder, video_key(camera)) for camera in CAMERAS}
    opened: tuple[pathlib.Path, Untyped] | None = None
    for row in rows:
        name = info["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        if opened is None or opened[0] != folder / name:
            opened = folder / name, parquet.read_table(folder / name)
        table = opened[1]
        mine = table.column("episode_index").to_numpy() == row["episode_index"]
        chosen = table.filter(mine)
        columns = chosen.column_names
        success = None
        if "next.success" in columns:
            success = bool(np.any(chosen.column("next.success").to_numpy(zero_copy_only=False)))
        yield Episode(
            state=np.array(chosen.column(STATE).to_pylist(), np.float32),
            velocity=None,
            action=np.array(chosen.column(ACTION).to_pylist(), np.float32),
            images={camera: film.episode(row) for camera, film in films.items()},
            depth={},
            success=success,
            number=row["episode_index"],
        )


class _Reader:
    """Reads a camera's films from their start to their end."""

    def __init__(self, av: Untyped, folder: pathlib.Path, key: str) -> None:
        self._av, self._folder, self._key = av, folder, key
        self._path: pathlib.Path | None = None
        self._frames: Iterator[np.ndarray] = iter(())
        self._next = 0

    def episode(self, row: JsonObject) -> np.ndarray:
        """Returns the pictures [T, H, W, 3] of an episode; episodes are asked for in order."""
        prefix = f"videos/{self._key}"
        name = VIDEO.format(
            video_key=self._key,
            chunk_index=row[f"{prefix}/chunk_index"],
            file_index=row[f"{prefix}/file_index"],
        )
        if self._path != self._folder / name:
            self._path, self._next = self._folder / name, 0
            self._frames = self._decode(self._path)
        start = round(row[f"{prefix}/from_timestamp"] * FPS)
        while self._next < start:
            next(self._frames)
            self._next += 1
        pictures = [next(self._frames) for _ in range(row["length"])]
        self._next += len(pictures)
        return np.stack(pictures)

    def _decode(self, path: pathlib.Path) -> Iterator[np.ndarray]:
        data = io.BytesIO(path.read_bytes())
        with self._av.open(data) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")


def check_packages() -> None:
    """Raises BackendUnavailable unless LeRobot data sets can be written and read here."""
    _packages()


def _packages() -> tuple[Untyped, Untyped, Untyped]:
    try:
        import av
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BackendUnavailable(
            f"LeRobot data sets need the package {error.name}: pip install 'alohas2r[datasets]'."
        ) from error
    return pyarrow, pyarrow.parquet, av
