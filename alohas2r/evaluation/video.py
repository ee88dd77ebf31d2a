"""Films of episodes: the scene, what a student's cameras saw, the stages that were reached, and the time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ConfigError
from alohas2r.evaluation import filming
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Episodes, Runner, check_episodes, load_policy
from alohas2r.evaluation.filming import Drawing, FirstGroup
from alohas2r.rendering import captions, video
from alohas2r.rendering.captions import Word
from alohas2r.tasks.protocol import TaskProtocol
from alohas2r.tasks.registry import AnyTask, find_task
from alohas2r.tasks.scoring import stages_reached

_STRIP = 1 / 12  # height of the lines of text, of that of the scene
_REACHED = (90, 210, 120)


@dataclasses.dataclass(frozen=True)
class FilmConfig:
    """How episodes are filmed.

    Attributes:
      episodes: how many, the first ones, side by side.
      every: control steps per picture.
      after_s: how long the film goes on after the last success.
      height, width: of the scene's view (pixels).
    """

    episodes: int = 4
    every: int = 1
    after_s: float = 1.5
    height: int = 240
    width: int = 320


def film_config(path: str | os.PathLike[str], episodes: int = 4) -> FilmConfig:
    """Returns how a file is filmed: one episode larger than several, an animated picture (.webp) at half the rate."""
    height, width = (360, 480) if episodes == 1 else (240, 320)
    every = 2 if pathlib.Path(path).suffix.lower() == ".webp" else 1
    return FilmConfig(episodes, every, height=height, width=width)


class Film(FirstGroup):
    """Keeps the first episodes of an evaluation while it runs, and writes them as one video.

    Each shows the scene and, of a student, what both wrist cameras saw, as noisy and late as it arrived: the left one
    above, the right one below. A border turns green with success and is red around an episode that fails.

    Args:
      entry: the task.
      path: the file, .mp4 or .webp.
      config: how it is filmed; as `film_config` says if None.

    Raises:
      ConfigError: the name ends otherwise. ArtifactError: its folder cannot be written.
      BackendUnavailable: no way to draw or to encode.
    """

    def __init__(
        self, entry: AnyTask, path: str | os.PathLike[str], config: FilmConfig | None = None
    ):
        self._path = video.check_path(path, *video.FILMS)
        filming.check_drawable(entry)
        self.config = film_config(path) if config is None else config
        super().__init__(self.config.episodes, self.config.every)
        self._entry = entry

    def write(self) -> pathlib.Path:
        """Draws what was kept, and writes the file.

        Raises:
          ArtifactError: it cannot be written. BackendUnavailable: no way to draw or to encode.
        """
        if self.episodes is None:
            raise ConfigError("There is nothing to film: no episode was run.")
        rate_hz = round(1 / (self.config.every * CONTROL_PERIOD_S))
        return video.write_video(self._path, self._frames(self.episodes), rate_hz)

    def _frames(self, kept: Episodes) -> Iterator[np.ndarray]:
        config = self.config
        shown = range(min(config.episodes, len(kept.steps)))
        last = _last_steps(kept, config.after_s)[: len(shown)]
        reached = stages_reached(kept.scorer.reached, kept.table)
        drawing = Drawing(self._entry, kept, self.views, config.height, config.width)
        with contextlib.closing(drawing):
            for step in range(0, int(last.max()), config.every):
                pictures = []
                for episode in shown:
                    now = min(step, int(kept.steps[episode]) - 1)
                    pictures.append(
                        self._captioned(
                            drawing.picture(now, episode),
                            episode,
                            now,
                            {name: int(steps[episode]) for name, steps in reached.items()},
                        )
                    )
                yield video.tile(np.stack(pictures))

    def _captioned(
        self, picture: np.ndarray, episode: int, step: int, reached: dict[str, int]
    ) -> np.ndarray:
        """Returns a picture between two lines of text, in a border.

        Args:
          picture: of an episode before a step.
          reached: stage -> the control step that reached it, counted from 1; 0 if none did. Success comes last.
        """
        assert self.episodes is not None
        height, width = round(_STRIP * self.config.height), picture.shape[1]
        above = [Word(f"episode {episode}"), Word(f"{step * CONTROL_PERIOD_S:.2f} s")]
        if self.views is not None:
            column = self.config.height // 2
            above += [
                Word(name, left=self.config.width + number * column + height // 3)
                for number, name in enumerate(self.views.names)
            ]
        below = [
            Word(name.replace("_", " "), _REACHED if 0 < since <= step else captions.FAINT)
            for name, since in reached.items()
        ]
        whole = np.concatenate(
            [captions.line(width, height, above), picture, captions.line(width, height, below)]
        )
        good = bool(self.episodes.table["success"][episode])
        done = good and step >= list(reached.values())[-1]
        edge = max(1, width // 100)
        framed = np.pad(whole, ((edge, edge), (edge, edge), (0, 0)))
        colour = video.GREEN if done else video.GREY if good else video.RED
        return video.border(framed, colour, edge / framed.shape[1])


def write_video(
    policy_path: str | os.PathLike[str],
    path: str | os.PathLike[str],
    episodes: int = 9,
    seed: int = 0,
    *,
    threads: int = 0,
    renderer: str = "auto",
    protocol: TaskProtocol | None = None,
    config: FilmConfig | None = None,
) -> pathlib.Path:
    """Runs the first episodes of a seed, and films them; see `Film`.

    Args:
      policy_path: the policy. path: the file, .mp4 or .webp. episodes: how many. seed: of them.
      threads, renderer, protocol: as in `evaluate`.
      config: how they are filmed; as `film_config` says if None.

    Raises:
      ConfigError: the name ends otherwise.
      ArtifactError: the policy cannot be read, or the file cannot be written.
      BackendUnavailable: no way to render or to encode.
    """
    check_episodes(episodes)
    policy = load_policy(policy_path)
    entry = find_task(policy.spec.phase)
    film = Film(entry, path, film_config(path, episodes) if config is None else config)
    keys = episode_keys(seed, 0, episodes)
    recorded = film.recorder(0)
    film.keep(0, Runner(policy, protocol, keys, threads, renderer, recorded=recorded).run())
    return film.write()


def _last_steps(kept: Episodes, after_s: float) -> np.ndarray:
    """Returns [N] the step at which each episode's film may end: some time after success, or the episode's end."""
    success = kept.table["success"].astype(bool)
    times = np.where(success, kept.table["time_to_success_s"], 0.0)
    after = np.round((times + after_s) / CONTROL_PERIOD_S).astype(int)
    return np.where(success, np.minimum(after, kept.steps), kept.steps)
