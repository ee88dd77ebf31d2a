"""What an episode of a data set is, in ALOHA's names and units: the one form that all formats are written from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.aloha import CAMERAS, CLOSED_M, MOTORS, OPEN_M
from alohas2r.errors import ArtifactError

FPS = 20
DEPTH_UNIT_M = 1e-4  # as the D405 tells depth


def to_depth_units(depth: np.ndarray) -> np.ndarray:
    """Turns depth (m) into uint16, in units of DEPTH_UNIT_M."""
    return np.clip(np.round(depth / DEPTH_UNIT_M), 0, 65535).astype(np.uint16)


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """T control steps.

    Attributes:
      state: [T, 14] float32, joints as the policy measured them.
      velocity: [T, 14] float32, exact, per second; None where it is not known.
      action: [T, 14] float32, the targets that were commanded then.
      images: camera -> [T, H, W, 3] uint8, as noisy and late as a policy gets them.
      depth: camera -> [T, H, W] uint16 (DEPTH_UNIT_M), 0 where nothing is known; none where it was not recorded.
      success: whether the task was done; None where nobody says.
      number: of the episode, under the seed of the data set.
    """

    state: np.ndarray
    velocity: np.ndarray | None
    action: np.ndarray
    images: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray]
    success: bool | None
    number: int

    def __len__(self) -> int:
        """Number of control steps."""
        return len(self.state)


@dataclasses.dataclass(frozen=True)
class About:
    """What a data set is of.

    Attributes:
      task: in words, as language-conditioned policies read it.
      source: where the demonstrations come from: policy, protocol, seed, ...
    """

    task: str
    source: JsonObject

    def describe(self, episodes: int, frames: int) -> str:
        """Returns all of it as JSON, with the units."""
        units = {
            "joints": "rad",
            "grippers": f"0 at {CLOSED_M} m of finger travel, 1 at {OPEN_M} m",
            "depth": f"{DEPTH_UNIT_M} m",
        }
        return json.dumps(
            {
                "task": self.task,
                "fps": FPS,
                "motors": MOTORS,
                "cameras": CAMERAS,
                "units": units,
                "episodes": episodes,
                "frames": frames,
                "source": self.source,
            },
            indent=2,
        )


class Writer(Protocol):
    """Writes a data set of one format into an empty folder."""

    def add(self, episode: Episode) -> None:
        """Appends an episode."""
        ...

    def finish(self) -> None:
        """Writes what is known only at the end."""
        ...


class Made(NamedTuple):
    """What was written."""

    episodes: int
    frames: int
    successes: int


def check_sizes(episodes: int, size: int) -> None:
    """Raises ConfigError unless so many episodes with pictures of such a side can be recorded."""
    check(1 <= episodes <= 100_000, f"episodes must be in 1..100000, not {episodes}")
    check(8 <= size <= 512 and size % 2 == 0, f"size must be even and in 8..512, not {size}")


def fill(writer: Writer, episodes: Iterator[Episode]) -> Made:
    """Writes all episodes.

    Raises:
      ArtifactError: there is none.
    """
    count, frames, successes = 0, 0, 0
    for episode in episodes:
        writer.add(episode)
        count, frames = count + 1, frames + len(episode)
        successes += bool(episode.success)
    if not count:
        raise ArtifactError("No episode is left to write.")
    writer.finish()
    return Made(count, frames, successes)


def check_new(folder: pathlib.Path) -> None:
    """Raises ArtifactError if a folder holds something already: a data set is never written over."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already; choose another folder, or remove it.")
