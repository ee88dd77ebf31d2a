"""MuJoCo without OpenGL: for programs in which drawing is one thing among many."""

from __future__ import annotations

import importlib
import os

VARIABLE = "MUJOCO_GL"  # names the platform of OpenGL
PLATFORMS = ("egl", "osmesa", "glfw")


def import_mujoco() -> None:
    """Imports MuJoCo whatever MUJOCO_GL says; what draws reads the variable later, and says what is wrong with it.

    Left to itself MuJoCo loads OpenGL when it is imported, and ends with whatever error the library raises.
    """
    chosen = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "disable"
    try:
        importlib.import_module("mujoco")
    finally:
        if chosen is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = chosen
