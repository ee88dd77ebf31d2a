"""Short films of some episodes of an evaluation, kept while it runs: failures of each kind, and successes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.evaluation.evaluate import Episodes
from alohas2r.evaluation.filming import Drawing, FirstGroup
from alohas2r.rendering import video
from alohas2r.reporting.page import Clip
from alohas2r.tasks.registry import AnyTask
from alohas2r.tasks.scoring import FAULTS, Table


@dataclasses.dataclass(frozen=True)
class GalleryConfig:
    """What is filmed.

    Attributes:
      failures, successes: how many episodes of each at most.
      views: what a student sees is kept of so many episodes, the first ones; other films show the scene alone.
      every: control steps per picture.
      after_s: how long a success is shown after it.
      height, width: of the scene's view (pixels).
    """

    failures: int = 8
    successes: int = 4
    views: int = 200
    every: int = 2
    after_s: float = 1.5
    height: int = 240
    width: int = 320


class Gallery(FirstGroup):
    """Keeps what films of the first group of episodes are made of, and makes them.

    Args:
      entry: the task.
      config: what is filmed.
    """

    def __init__(self, entry: AnyTask, config: GalleryConfig | None = None):
        self.config = GalleryConfig() if config is None else config
        super().__init__(self.config.views, self.config.every)
        self._entry = entry

    def clips(self) -> list[Clip]:
        """Returns the films, failures first.

        Raises:
          BackendUnavailable: no way to draw or to encode.
        """
        if self.episodes is None:
            return []
        chosen = choose(self.episodes.table, self.config)
        return [self._clip(episode) for episode in chosen]

    def _clip(self, episode: int) -> Clip:
        kept, config = self.episodes, self.config
        assert kept is not None
        row = {name: values[episode] for name, values in kept.table.items()}
        good, time_s = bool(row["success"]), float(row["time_to_success_s"])
        steps = int(kept.steps[episode])
        if good:
            steps = min(steps, round((time_s + config.after_s) / CONTROL_PERIOD_S))
        data = video.clip(
            self._frames(kept, episode, steps), round(1 / (config.every * CONTROL_PERIOD_S))
        )
        return Clip(f"Episode {episode}", caption(row), good, data, anchor(episode))

    def _frames(self, kept: Episodes, episode: int, steps: int) -> Iterator[np.ndarray]:
        config = self.config
        drawing = Drawing(self._entry, kept, self.views, config.height, config.width)
        with contextlib.closing(drawing):
            for step in range(0, steps, config.every):
                yield drawing.picture(step, episode)


def stages(table: Table, summary: Mapping[str, object]) -> list[str]:
    """Returns the stages of a result on the way to success, in order."""
    return [name for name in summary if name in table and name not in FAULTS]


def furthest(table: Table, names: list[str]) -> np.ndarray:
    """Returns [N] how many of the stages, in order, each episode came to: 0 for none."""
    reached = np.zeros(len(table["success"]), int)
    for number, name in enumerate(names, 1):
        reached[table[name].astype(bool)] = number
    return reached


def choose(table: Table, config: GalleryConfig) -> list[int]:
    """Returns the episodes to film: failures, each kind in turn, then the first successes."""
    success = table["success"].astype(bool)
    flags = [name for name, values in table.items() if values.dtype == bool and name != "success"]
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for episode in np.flatnonzero(~success):
        kinds.setdefault(tuple(bool(table[name][episode]) for name in flags), []).append(
            int(episode)
        )
    failed: list[int] = []
    while len(failed) < config.failures and any(kinds.values()):
        for waiting in kinds.values():
            if waiting and len(failed) < config.failures:
                failed.append(waiting.pop(0))
    return [*sorted(failed), *np.flatnonzero(success)[: config.successes].tolist()]


def caption(row: Mapping[str, object]) -> str:
    """Returns what became of an episode, in words."""
    flags = [name for name, value in row.items() if isinstance(value, bool | np.bool_) and value]
    names = [name.replace("_", " ") for name in flags if name not in ("success", "inserted")]
    if row["success"]:
        return f"success after {float(str(row['time_to_success_s'])):.2f} s; {', '.join(names)}"
    return f"failure; {', '.join(names) or 'reached nothing'}"


def anchor(episode: int) -> str:
    """Returns where the film of an episode stands on the page."""
    return f"episode-{episode}"
