"""Wrist cameras that draw the emulated world."""

from __future__ import annotations

import math

import numpy as np

from alohas2r.robots.base import Frame
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.wrist_camera import Renderer, WristCamera, drawn_frame, wrist_cameras


class EmulatedCameras:
    """Draws both wrist cameras of an emulator from its present state.

    Pictures are drawn when they are asked for. Both cameras share one call of the renderer: what the second one shows
    is at most SAME_S older than the world, as real ones, which take 30 pictures a second, show the same moment.
    """

    SAME_S = 1 / 60

    def __init__(self, emulator: Emulator, renderer: Renderer) -> None:
        """Joins an emulator and a renderer of the two wrist cameras, left first; their right imagers may follow."""
        self._emulator = emulator
        self._renderer = renderer
        self._drawn_s = -math.inf
        self._number = 0
        self._rgb = self._depth = np.zeros(0)

    def cameras(self) -> tuple[WristCamera, WristCamera]:
        """Returns the left and the right camera."""
        return wrist_cameras(self)

    def frame(self, index: int) -> Frame:
        """Returns the newest picture of camera 0 (left) or 1 (right)."""
        state = self._emulator.state()
        if not 0 <= state.time_s - self._drawn_s < self.SAME_S:
            rgb, depth = self._renderer.render(state.qpos[None])
            self._rgb, self._depth = np.asarray(rgb)[0], np.asarray(depth)[0]
            self._drawn_s = state.time_s
            self._number += 1
        return drawn_frame(self._rgb, self._depth, index, self._number)
