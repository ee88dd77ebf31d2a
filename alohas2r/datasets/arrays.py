"""Data sets of one file per episode: NumPy archives, and HDF5 in the layout of ALOHA's own software."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from alohas2r.core.types import Untyped
from alohas2r.datasets.episode import About, Episode
from alohas2r.embodiment.aloha import CAMERAS
from alohas2r.errors import ArtifactError, BackendUnavailable

ABOUT = "dataset.json"
NPZ = "episode_{:06d}.npz"
HDF5 = "episode_{}.hdf5"  # as ALOHA's software numbers them


class NpzWriter:
    """Writes one compressed NumPy archive per episode.

    Args:
      folder: an empty folder. about: what it is of.
    """

    def __init__(self, folder: pathlib.Path, about: About) -> None:
        self._folder, self._about = folder, about
        self._count, self._frames = 0, 0

    def add(self, episode: Episode) -> None:
        """Appends an episode."""
        arrays = {"state": episode.state, "action": episode.action}
        if episode.velocity is not None:
            arrays["velocity"] = episode.velocity
        arrays |= {f"images.{name}": value for name, value in episode.images.items()}
        arrays |= {f"depth.{name}": value for name, value in episode.depth.items()}
        arrays["number"] = np.array(episode.number)
        if episode.success is not None:
            arrays["success"] = np.array(episode.success)
        with open(self._folder / NPZ.format(self._count), "wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        self._count, self._frames = self._count + 1, self._frames + len(episode)

    def finish(self) -> None:
        """Writes what the data set is of."""
        text = self._about.describe(self._count, self._frames)
        (self._folder / ABOUT).write_text(text)


class Hdf5Writer:
    """Writes one HDF5 file per episode: /action, /observations/qpos, qvel, images/CAMERA; the attribute "sim".

    Source of the layout: ALOHA's software (record_sim_episodes.py of the published code).

    Args:
      folder: an empty folder. about: what it is of.
    """

    def __init__(self, folder: pathlib.Path, about: About) -> None:
        self._h5py = _h5py()
        self._folder, self._about = folder, about
        self._count, self._frames = 0, 0

    def add(self, episode: Episode) -> None:
        """Appends an episode."""
        with self._h5py.File(self._folder / HDF5.format(self._count), "w") as file:
            file.attrs["sim"] = "policy" in self._about.source
            file.attrs["compress"] = False
            file.attrs["number"] = episode.number
            if episode.success is not None:
                file.attrs["success"] = episode.success
            file["action"] = episode.action
            observations = file.create_group("observations")
            observations["qpos"] = episode.state
            if episode.velocity is not None:
                observations["qvel"] = episode.velocity
            for group, kinds in (("images", episode.images), ("depth", episode.depth)):
                for name, pictures in kinds.items():
                    observations.create_dataset(
                        f"{group}/{name}", data=pictures, chunks=(1, *pictures.shape[1:])
                    )
        self._count, self._frames = self._count + 1, self._frames + len(episode)

    def finish(self) -> None:
        """Writes what the data set is of."""
        text = self._about.describe(self._count, self._frames)
        (self._folder / ABOUT).write_text(text)


def read_npz(folder: pathlib.Path) -> Iterator[Episode]:
    """Reads what `NpzWriter` wrote.

    Raises:
      ArtifactError: a file is damaged.
    """
    for number in range(_count(folder)):
        path = folder / NPZ.format(number)
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}).") from error

        def named(prefix: str, arrays: dict[str, np.ndarray] = arrays) -> dict[str, np.ndarray]:
            there = {name: arrays.get(f"{prefix}.{name}") for name in CAMERAS}
            return {name: value for name, value in there.items() if value is not None}

        success = arrays.get("success")
        yield Episode(
            state=arrays["state"],
            velocity=arrays.get("velocity"),
            action=arrays["action"],
            images=named("images"),
            depth=named("depth"),
            success=None if success is None else bool(success),
            number=int(arrays["number"]),
        )


def read_hdf5(folder: pathlib.Path) -> Iterator[Episode]:
    """Reads what `Hdf5Writer` wrote.

    Raises:
      ArtifactError: a file is damaged.
    """
    h5py = _h5py()
    for number in range(_count(folder)):
        path = folder / HDF5.format(number)
        try:
            with h5py.File(path, "r") as file:
                observations = file["observations"]
                success = file.attrs.get("success")
                yield Episode(
                    state=observations["qpos"][:],
                    velocity=observations["qvel"][:] if "qvel" in observations else None,
                    action=file["action"][:],
                    images={name: value[:] for name, value in observations["images"].items()},
                    depth={name: value[:] for name, value in observations.get("depth", {}).items()},
                    success=None if success is None else bool(success),
                    number=int(file.attrs["number"]),
                )
        except (OSError, KeyError) as error:
            raise ArtifactError(f"{path} is damaged ({error}).") from error


def _count(folder: pathlib.Path) -> int:
    """Returns how many episodes a folder says it holds."""
    try:
        return int(json.loads((folder / ABOUT).read_text())["episodes"])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{folder} is no data set: {ABOUT} cannot be read ({error})."
        ) from error


def check_packages() -> None:
    """Raises BackendUnavailable unless HDF5 files can be written and read here."""
    _h5py()


def _h5py() -> Untyped:
    try:
        import h5py
    except ImportError as error:
        raise BackendUnavailable(
            "HDF5 needs the package h5py: pip install 'alohas2r[datasets]'."
        ) from error
    return h5py
