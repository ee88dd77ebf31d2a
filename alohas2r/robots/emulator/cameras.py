"""Wrist cameras that draw the emulated world."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.embodiment.joints import SIDES
from alohas2r.robots.base import Frame
from alohas2r.robots.emulator.client import Emulator


class Renderer(Protocol):
    """What draws the emulated cameras' pictures, for instance `renderers.make("raycast", ...)`."""

    def render(self, poses: Array, looks: PyTree = None) -> tuple[Array, Array]:
        """Returns rgb [1, C, H, W, 3] and depth [1, C, H, W] of poses [1, nq]."""
        ...


class EmulatedCameras:
    """Draws both wrist cameras of an emulator from its present state.

    Pictures are drawn when they are asked for and one state is drawn but once, so that both cameras
    share one call of the renderer.
    """

    def __init__(self, emulator: Emulator, renderer: Renderer) -> None:
        """Joins an emulator and a renderer whose cameras are the two wrist cameras, left first."""
        self._emulator = emulator
        self._renderer = renderer
        self._drawn_s = -1.0
        self._number = 0
        self._rgb = self._depth = np.zeros(0)

    def cameras(self) -> tuple[EmulatedCamera, EmulatedCamera]:
        """Returns the left and the right camera."""
        return EmulatedCamera(SIDES[0], self), EmulatedCamera(SIDES[1], self)

    def frame(self, index: int) -> Frame:
        """Returns the picture of camera 0 (left) or 1 (right) as the world is now."""
        state = self._emulator.state()
        if state.time_s != self._drawn_s:
            rgb, depth = self._renderer.render(state.qpos[None])
            self._rgb, self._depth = np.asarray(rgb)[0], np.asarray(depth)[0]
            self._drawn_s = state.time_s
            self._number += 1
        return Frame(self._rgb[index], self._depth[index], time.monotonic(), self._number)


class EmulatedCamera:
    """One wrist camera of an emulator: the `Camera` protocol.

    Attributes:
      name: "left" or "right".
    """

    def __init__(self, name: str, cameras: EmulatedCameras) -> None:
        """Picks one of two cameras."""
        self.name = name
        self._cameras = cameras

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
        return self._cameras.frame(SIDES.index(self.name))
