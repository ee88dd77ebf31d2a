"""What tests of leader arms share."""

from __future__ import annotations

import numpy as np

from alohas2r.embodiment.joints import PER_ARM
from alohas2r.robots.emulator.client import Emulator
from alohas2r.sim import scene


def put(emulator: Emulator, pose: np.ndarray, side: int = 0) -> None:
    """Moves a leader by hand, the left one or the right: [7] rad; m of the emulated fingers."""
    qpos = emulator.state().qpos
    qpos[scene.load("insert").arms[side].qpos[:PER_ARM]] = pose
    emulator.place(qpos)
