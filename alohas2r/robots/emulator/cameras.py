"""Wrist cameras that draw the emulated world."""

from __future__ import annotations

import time

import numpy as np

from alohas2r.robots.base import Frame
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.wrist_camera import Renderer, WristCamera, wrist_cameras


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

    def cameras(self) -> tuple[WristCamera, WristCamera]:
        """Returns the left and the right camera."""
        return wrist_cameras(self)

    def frame(self, index: int) -> Frame:
        """Returns the picture of camera 0 (left) or 1 (right) as the world is now."""
        state = self._emulator.state()
        if state.time_s != self._drawn_s:
            rgb, depth = self._renderer.render(state.qpos[None])
            self._rgb, self._depth = np.asarray(rgb)[0], np.asarray(depth)[0]
            self._drawn_s = state.time_s
            self._number += 1
        return Frame(self._rgb[index], self._depth[index], time.monotonic(), self._number)
