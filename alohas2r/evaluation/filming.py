"""What films of an evaluation are made of: its states, what students saw, and the scene as each episode had it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np

from alohas2r.embodiment.camera import DEPTH_CUTOFF
from alohas2r.envs.vision import Seen
from alohas2r.errors import BackendUnavailable
from alohas2r.evaluation.actors import Recorder
from alohas2r.evaluation.evaluate import Episodes, Keeper
from alohas2r.rendering import video
from alohas2r.rendering.offscreen import Offscreen, free_camera
from alohas2r.sim import scene
from alohas2r.tasks.insert.appearance import pictured_geometry
from alohas2r.tasks.registry import AnyTask


class Views:
    """What students saw in the first episodes, as pictures.

    Args:
      episodes: so many are kept.
      every: control steps from one kept picture to the next.
    """

    def __init__(self, episodes: int, every: int):
        self._episodes, self._every, self._seen = episodes, every, 0
        self._rgb: list[np.ndarray] = []  # [K, 2, H, W, 3] uint8 each
        self._depth: list[np.ndarray] = []  # [K, 2, H, W] uint8 each

    def append(self, seen: Seen, /) -> None:
        """Takes what is seen in a step."""
        if self._seen % self._every == 0:
            if seen.rgb is not None:
                self._rgb.append(np.asarray(seen.rgb)[: self._episodes, ..., :3].copy())
            if seen.depth is not None:
                self._depth.append(greys(np.asarray(seen.depth)[: self._episodes]))
        self._seen += 1

    def columns(self, step: int, episode: int, height: int) -> list[np.ndarray]:
        """Returns the pictures of a step, see `wrist_views`; none where nothing was kept."""
        place = step // self._every

        def of(kept: list[np.ndarray]) -> np.ndarray | None:
            there = place < len(kept) and episode < len(kept[place])
            return kept[place][episode] if there else None

        return wrist_views(of(self._rgb), of(self._depth), height)

    @property
    def names(self) -> tuple[str, ...]:
        """What the columns show."""
        kept = (("colour", self._rgb), ("depth", self._depth))
        return tuple(name for name, pictures in kept if pictures)


class Drawing:
    """Draws steps of episodes: the scene with the objects that an episode had, beside it what the student saw.

    Use it in one thread, and close it.

    Args:
      entry: the task.
      episodes: that were run.
      views: what students saw in them; None to show the scene alone.
      height, width: of the scene's view (pixels).

    Raises:
      BackendUnavailable: no OpenGL on this machine.
    """

    def __init__(
        self, entry: AnyTask, episodes: Episodes, views: Views | None, height: int, width: int
    ):
        loaded = scene.load(entry.scene)
        self._model = copy.copy(loaded.model)
        self._model.vis.quality.offsamples = 0  # four times as fast without a GPU
        self._data = mujoco.MjData(self._model)
        self._fields = _geometry(entry, loaded, episodes)
        self._episodes, self._views, self._height = episodes, views, height
        self._camera = free_camera(*entry.view)
        self._view = Offscreen(self._model, height, width, shadows=False)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._view.close()

    def picture(self, step: int, episode: int) -> np.ndarray:
        """Returns how an episode looked before a control step [height, width + columns, 3]."""
        for name, values in self._fields.items():
            getattr(self._model, name)[:] = values[episode]
        self._data.qpos[:] = self._episodes.qpos[step, episode]
        video.update_kinematics(self._model, self._data)
        parts = [self._view.picture(self._data, self._camera)]
        if self._views is not None:
            parts += self._views.columns(step, episode, self._height)
        return np.concatenate(parts, 1)


class FirstGroup:
    """Keeps the first group of episodes of an evaluation: the `Keeper` that films need.

    Args:
      views: of so many episodes, the first ones, it keeps what a student sees.
      every: control steps from one kept picture to the next.

    Attributes:
      views: what was seen; None before the evaluation, and of policies that see nothing.
      episodes: what was run; None before.
    """

    def __init__(self, views: int, every: int):
        self._count, self._every = views, every
        self.views: Views | None = None
        self.episodes: Episodes | None = None

    def recorder(self, first: int) -> Views | None:
        """Returns what receives what students see in a group of episodes; None but for the first group."""
        if first:
            return None
        self.views = Views(self._count, self._every)
        return self.views

    def keep(self, first: int, episodes: Episodes) -> None:
        """Takes a group that was run."""
        if not first:
            self.episodes = episodes


class Keepers:
    """Several that keep of one evaluation what they need.

    Args:
      keepers: each is shown all.
    """

    def __init__(self, keepers: Sequence[Keeper]):
        self._keepers = tuple(keepers)

    def recorder(self, first: int) -> Recorder | None:
        """Returns what receives what students see in a group of episodes; None if nobody wants it."""
        wanted = [one.recorder(first) for one in self._keepers]
        recorders = [one for one in wanted if one is not None]
        return _Recorders(recorders) if recorders else None

    def keep(self, first: int, episodes: Episodes) -> None:
        """Takes a group that was run."""
        for one in self._keepers:
            one.keep(first, episodes)


class _Recorders:
    def __init__(self, recorders: Sequence[Recorder]):
        self._recorders = recorders

    def append(self, seen: Seen, /) -> None:
        for one in self._recorders:
            one.append(seen)


def check_drawable(entry: AnyTask) -> None:
    """Makes sure that films can be made here.

    Raises:
      BackendUnavailable: no way to draw, or to encode.
    """
    Offscreen(scene.load(entry.scene).model, 8, 8).close()
    video.check_encoder()


def drawable(entry: AnyTask) -> str:
    """Returns why no films can be made here; empty where they can."""
    try:
        check_drawable(entry)
    except BackendUnavailable as error:
        return str(error)
    return ""


def greys(depth: np.ndarray) -> np.ndarray:
    """Returns depth [...] (m) as uint8: near is bright, unknown or too far is black."""
    shown = (depth > 0) & (depth < DEPTH_CUTOFF)
    return (255 * np.where(shown, 1 - 0.9 * depth / DEPTH_CUTOFF, 0)).astype(np.uint8)


def wrist_views(rgb: np.ndarray | None, depth: np.ndarray | None, height: int) -> list[np.ndarray]:
    """Returns what the wrist cameras see as columns [height, height / 2, 3], left camera above.

    Args:
      rgb: [C, H, W, 3] uint8; None for a student without.
      depth: [C, H, W] uint8, see `greys`; likewise.
    """
    side = height // 2
    columns = []
    for views in (rgb, None if depth is None else np.repeat(depth[..., None], 3, -1)):
        if views is None:
            continue
        index = (np.arange(side) * views.shape[1]) // side
        column = np.zeros((2 * side, side, 3), np.uint8)
        for place, view in enumerate(views):
            column[place * side : (place + 1) * side] = view[index][:, index]
        columns.append(column)
    return columns


def _geometry(entry: AnyTask, loaded: scene.Scene, episodes: Episodes) -> Mapping[str, np.ndarray]:
    """Returns model fields [N, ...] in which the episodes' scenes differ from the nominal one."""
    fields: dict[str, np.ndarray] = {}
    if entry.sizes is not None:
        sizes = np.repeat(loaded.model.geom_size[None], len(episodes.steps), 0)
        for geom, values in entry.sizes(episodes.table).items():
            sizes[:, loaded.id("geom", geom)] = values
        fields["geom_size"] = sizes
    if entry.scene == "insert":
        fields |= pictured_geometry(episodes.setting.context, episodes.setting.robots)
    return fields
