"""Shows a policy at work in a window, episode after episode, in real time."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Protocol

import mujoco
import numpy as np

from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.evaluation.episodes import SEEDS, Acted, episode_keys
from alohas2r.evaluation.evaluate import Runner, find_rules, load_policy
from alohas2r.rendering import video
from alohas2r.sim import scene
from alohas2r.tasks.registry import find_task


class Window(Protocol):
    """Shows a model's state."""

    def update(self) -> bool:
        """Shows the present state; returns whether the window is still open."""
        ...


class _Closed(Exception):
    """The window was closed."""


def play(
    policy_path: str | os.PathLike[str],
    show: Callable[[mujoco.MjModel, mujoco.MjData], Window],
    seed: int = 0,
    protocol: str | None = None,
    episodes: int | None = None,
    realtime: bool = True,
) -> list[bool]:
    """Runs episodes under a protocol until the window is closed.

    Starts, noise and looks are those of the seed's episodes, one after the other; sizes and masses stay those of the
    first.

    Args:
      policy_path: a policy artifact, or an exported file (.onnx).
      show: opens the window on a model and its data, which then change.
      seed: of the episodes. protocol: its name; that of the policy's task if None.
      episodes: how many; None for as many as there are.
      realtime: whether each control step takes as long as on a robot, where the computer is fast enough.

    Returns:
      Whether each episode that ended was a success.

    Raises:
      ArtifactError: the policy cannot be read. ConfigError: its task has no such protocol.
    """
    policy = load_policy(policy_path)
    entry = find_task(policy.spec.phase)
    rules = find_rules(policy.spec.phase, protocol)
    runner = Runner(policy, rules, episode_keys(seed, 0, 1))
    loaded = scene.load(entry.scene)
    model = copy.copy(loaded.model)  # its objects take the episode's sizes
    if entry.sizes is not None:
        for geom, values in entry.sizes(runner.setting.scorer().table()).items():
            model.geom_size[loaded.id("geom", geom)] = values[0]
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, loaded.id("key", "home"))
    mujoco.mj_forward(model, data)
    window, successes = show(model, data), list[bool]()
    pace = _Pace(CONTROL_PERIOD_S if realtime else 0.0)

    def watch(acted: Acted) -> None:
        if not acted.going[0]:
            return  # what follows belongs to another episode
        data.qpos[:] = np.asarray(acted.readout.qpos[0])
        video.update_kinematics(model, data)
        pace.wait()
        if not window.update():
            raise _Closed

    try:
        while episodes is None or len(successes) < episodes:
            runner.keys = episode_keys(seed, len(successes) % SEEDS, 1)
            ran = runner.run(watch=watch)
            successes.append(bool(ran.table["success"][0]))
    except _Closed:
        pass
    return successes


class _Pace:
    """Waits until the next step is due; what is late is not caught up."""

    def __init__(self, period_s: float) -> None:
        self._period_s, self._due = period_s, time.monotonic()

    def wait(self) -> None:
        """Waits."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due, time.monotonic() - self._period_s) + self._period_s
