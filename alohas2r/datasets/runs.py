"""Runs on arms as demonstrations: the stretches of a log in which the policy acted."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.datasets.episode import About, Episode, to_depth_units
from alohas2r.datasets.record import Recording, to_rates
from alohas2r.deployment import log as drive_log
from alohas2r.embodiment.aloha import CAMERAS, INSERT_TASK, to_units
from alohas2r.embodiment.joints import SIDES
from alohas2r.errors import ArtifactError


def from_run(path: str | os.PathLike[str]) -> Recording:
    """Returns the episodes of a run's log; nobody says of them whether they succeeded.

    Raises:
      ArtifactError: no run, or the policy saw no colour pictures in it.
    """
    run = drive_log.read_run(path)
    acted = [step for step in run.steps if "action" in step.arrays and "command" in step.arrays]
    if not acted:
        raise ArtifactError(f"The policy did not act in {path}; there is nothing to export.")
    if "observation/left_rgb" not in acted[0].arrays:
        raise ArtifactError(
            f"The policy saw no colour pictures in {path}; there are none to export."
        )
    named = ("robot", "policy", "policy_hash", "started", "seed", "stepped")
    source: JsonObject = {name: run.header.get(name) for name in named}
    source |= {"run": str(path), "alohas2r": __version__}
    groups = itertools.groupby(acted, lambda step: int(step.values["episode"]))

    def episodes() -> Iterator[Episode]:
        for number, steps in groups:
            yield _episode(list(steps), number)

    return Recording(About(INSERT_TASK, source), episodes())


def _episode(steps: list[drive_log.Step], number: int) -> Episode:
    def stack(name: str) -> np.ndarray:
        return np.stack([step.arrays[name] for step in steps])

    images = {
        camera: stack(f"observation/{side}_rgb")
        for camera, side in zip(CAMERAS, SIDES, strict=True)
    }
    depth = {
        camera: to_depth_units(stack(f"observation/{side}_depth"))
        for camera, side in zip(CAMERAS, SIDES, strict=True)
        if f"observation/{side}_depth" in steps[0].arrays
    }
    return Episode(
        state=to_units(stack("position")),
        velocity=to_rates(stack("velocity")),
        action=to_units(stack("command")),
        images=images,
        depth=depth,
        success=None,
        number=number,
    )
