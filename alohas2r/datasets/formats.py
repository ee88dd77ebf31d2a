"""The formats of data sets, and how one is written whole or not at all."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from alohas2r.core.files import make_folder, write_folder_atomic
from alohas2r.datasets import arrays, lerobot
from alohas2r.datasets.episode import About, Episode, Made, Writer, check_new, fill
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean


class Format(NamedTuple):
    """How episodes are written and read."""

    writer: Callable[[pathlib.Path, About], Writer]
    read: Callable[[pathlib.Path], Iterator[Episode]]
    mark: str  # of a folder of this format: a file, or a pattern of files


FORMATS = {
    "lerobot": Format(lerobot.LeRobotWriter, lerobot.read, "meta/info.json"),
    "npz": Format(arrays.NpzWriter, arrays.read_npz, arrays.NPZ.format(0)),
    "hdf5": Format(arrays.Hdf5Writer, arrays.read_hdf5, arrays.HDF5.format(0)),
}


def find_format(name: str) -> Format:
    """Returns a format by its name.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(f"Unknown format '{name}'.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def check_writable(out: str | os.PathLike[str], name: str, depth: bool = False) -> None:
    """Makes sure that a data set can be written, before the work that leads to it.

    Args:
      out: a new folder. name: of the format. depth: whether depth is to be kept.

    Raises:
      ConfigError: unknown format, or one without depth.
      ArtifactError: the folder is not writable, or holds something already.
      BackendUnavailable: a package is missing.
    """
    path = pathlib.Path(out)
    check_new(path)
    make_folder(path.parent)
    find_format(name)
    if name == "lerobot":
        if depth:
            raise ConfigError("LeRobot's layout has no place for depth; take --format npz or hdf5.")
        lerobot.check_packages()
    elif name == "hdf5":
        arrays.check_packages()


def write(
    out: str | os.PathLike[str], name: str, about: About, episodes: Iterator[Episode]
) -> Made:
    """Writes a data set whole or not at all.

    Args:
      out: a new folder. name: of the format. about: what it is of. episodes: of it.

    Raises:
      ConfigError: unknown format. ArtifactError: no episode, or the folder cannot be written.
      BackendUnavailable: a package is missing.
    """
    path, chosen = pathlib.Path(out), find_format(name)
    check_new(path)
    made: list[Made] = []
    write_folder_atomic(
        path, lambda folder: made.append(fill(chosen.writer(folder, about), episodes))
    )
    return made[0]


def read(folder: str | os.PathLike[str]) -> Iterator[Episode]:
    """Reads a data set of any of the formats.

    Raises:
      ArtifactError: it is none.
    """
    path = pathlib.Path(folder)
    for one in FORMATS.values():
        if (path / one.mark).is_file():
            return one.read(path)
    marks = ", ".join(f"{one.mark} ({name})" for name, one in FORMATS.items())
    raise ArtifactError(f"{folder} is no data set: it has none of {marks}.")
