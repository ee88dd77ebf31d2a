"""Tests that need OpenGL."""

from __future__ import annotations

import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable
from alohas2r.rendering.offscreen import Offscreen
from alohas2r.sim import scene


def skip_without_opengl() -> None:
    """Skips a test where this machine has no OpenGL at all; what a test itself does may not fail for want of it."""
    try:
        Offscreen(scene.load("pick").model, 8, 8).close()
    except BackendUnavailable as missing:
        pytest.skip(str(missing))


def red(picture: np.ndarray) -> int:
    """Counts the pixels of the block, which is red."""
    channels = picture.astype(int)
    return int((channels[..., 0] > 100 + channels[..., 1:].max(axis=-1)).sum())
