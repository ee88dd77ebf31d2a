"""A small project of one's own, to start from: objects, a world, a robot file, a script."""

from __future__ import annotations

import os
import pathlib

from alohas2r.core.files import write_folder_atomic
from alohas2r.errors import ConfigError

FILES = pathlib.Path(__file__).parent / "project_files"
NAMES = ("README.md", "project.toml", "measure.py", "world.toml", "robot.toml")


def create(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Writes a project into a new or empty folder, whole or not at all.

    Returns:
      The files.

    Raises:
      ConfigError: the folder is not empty, or no folder.
      ArtifactError: it cannot be written.
    """
    path = pathlib.Path(folder).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{folder} is a file; name a new folder.")
    if path.is_dir() and (held := sorted(path.iterdir())):
        raise ConfigError(f"{folder} is not empty (it holds {held[0].name}); name a new folder.")

    def write(aside: pathlib.Path) -> None:
        for name in NAMES:
            (aside / name).write_text((FILES / name).read_text().replace("PROJECT", path.name))

    write_folder_atomic(path, write)
    return [path / name for name in NAMES]
