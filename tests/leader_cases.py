"""What tests of leader arms share."""

from __future__ import annotations

import numpy as np

from alohas2r.embodiment.joints import PER_ARM
from alohas2r.robots.emulator.client import Emulator
from alohas2r.sim import scene


def put(emulator: Emulator, pose: np.ndarray) -> None:
    """Moves the left leader by hand: [7] rad; m of the emulated fingers."""
    qpos = emulator.state().qpos
    qpos[scene.load("insert").arms[0].qpos[:PER_ARM]] = pose
    emulator.place(qpos)
