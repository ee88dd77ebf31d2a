"""The wrist cameras of everything that is simulated: pictures are drawn when they are asked for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.embodiment.joints import SIDES
from alohas2r.rendering import stereo
from alohas2r.rendering.corruption import corrupt, line_bank
from alohas2r.robots.base import Frame


class Renderer(Protocol):
    """What draws both cameras' pictures, for instance `renderers.make("raycast", ...)`."""

    def render(self, poses: Array, looks: PyTree = None) -> tuple[Array, Array]:
        """Returns rgb [1, C, H, W, 3] and depth [1, C, H, W] of poses [1, nq]."""
        ...


class LooksRenderer:
    """Draws a world with looks of its own.

    Args:
      renderer: what draws. looks: model field -> [1, ...] of the world.
    """

    def __init__(self, renderer: Renderer, looks: Mapping[str, np.ndarray]) -> None:
        self._renderer, self._looks = renderer, dict(looks)

    def render(self, poses: Array, looks: PyTree = None) -> tuple[Array, Array]:
        """Returns rgb [1, C, H, W, 3] and depth [1, C, H, W] of poses [1, nq]; looks: other ones."""
        return self._renderer.render(poses, self._looks if looks is None else looks)


class SensorRenderer:
    """Draws what a sensor makes of pictures: see `rendering.corruption`.

    Its noise follows from the poses alone: who comes to the same place sees the same, and as soon as anything has moved
    it is another one.

    Args:
      renderer: what draws. size: side of its pictures (pixels).
    """

    def __init__(self, renderer: Renderer, size: int) -> None:
        import jax

        self._renderer, self._corrupt = renderer, jax.jit(corrupt)
        # Once: it is 34 MB, too much to hand over with each picture.
        self._bank = jax.device_put(line_bank(size, size))

    def render(self, poses: Array, looks: PyTree = None) -> tuple[Array, Array]:
        """Returns rgb [1, C, H, W, 3] and depth [1, C, H, W] of poses [1, nq]."""
        rgb, depth = self._renderer.render(poses, looks)
        digest = hashlib.blake2b(np.ascontiguousarray(poses).tobytes(), digest_size=8).digest()
        key = np.frombuffer(digest, np.uint32)
        seen = self._corrupt(key, rgb, depth, np.ones(1, np.float32), self._bank)
        return np.asarray(seen[0]), np.asarray(seen[1])


def drawn_frame(rgb: np.ndarray, depth: np.ndarray, index: int, number: int) -> Frame:
    """Returns what a camera shows just now.

    Args:
      rgb, depth: [C, H, W, 3] uint8 and [C, H, W] m, left camera first; the right imagers' after all left ones, if they
        are drawn.
      index: of the camera, 0 or 1. number: of the pictures.
    """
    right = index + len(SIDES)
    grey = stereo.luma(rgb[right]) if right < len(rgb) else None
    return Frame(rgb[index], depth[index], time.monotonic(), number, grey=grey)


class View(Protocol):
    """What both wrist cameras show."""

    def frame(self, index: int) -> Frame:
        """Returns the present picture of camera 0 (left) or 1 (right)."""
        ...


class WristCamera:
    """One wrist camera of a view: the `Camera` protocol.

    Args:
      name: "left" or "right".
      view: what it shows.
    """

    def __init__(self, name: str, view: View) -> None:
        self.name = name
        self._view = view

    def __enter__(self) -> Self:
        """Needs nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing."""

    def read(self, max_age_s: float) -> Frame:
        """Returns the present picture; it is always new enough."""
        return self._view.frame(SIDES.index(self.name))


def wrist_cameras(view: View) -> tuple[WristCamera, WristCamera]:
    """Returns the left and the right camera of a view."""
    left, right = (WristCamera(side, view) for side in SIDES)
    return left, right
