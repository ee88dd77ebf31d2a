"""Insertion from pixels follows picking from pixels: whose policy that is, and where it hands over."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from alohas2r import config
from alohas2r.core import assets
from alohas2r.core.progress import Progress
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.env import Env
from alohas2r.errors import ArtifactError
from alohas2r.evaluation.actors import Eyes, VisionActor
from alohas2r.evaluation.episodes import Setting
from alohas2r.learning.pixels.config import FollowingPixelsConfig, PixelsConfig
from alohas2r.policies import artifact
from alohas2r.policies.spec import make_pixel_spec
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import PixelPolicy
from alohas2r.sim import scene
from alohas2r.tasks.insert import switch_states
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.switch_states import Picker, SwitchStates
from alohas2r.tasks.registry import find_task

SHIPPED = "pixels-pick"  # folder of the pick policy that comes with the package


class Before(NamedTuple):
    """The pick policy that an insertion policy follows.

    Attributes:
      pick: the policy. path: its folder.
      switch: when the other takes over. targets: [2, 3] where each arm brings its object, in its base frame (m).
    """

    pick: PixelPolicy
    path: pathlib.Path
    switch: Switch
    targets: np.ndarray

    def join(self, insert: PixelPolicy, trained: JsonObject) -> StagedPixelsPolicy:
        """Returns both as one."""
        return StagedPixelsPolicy.join(self.pick, insert, self.switch, self.targets, trained)


def before(
    phase: str, pick: str | os.PathLike[str] | None, settings: PixelsConfig
) -> Before | None:
    """Returns the policy that one of a task follows; None if the task starts by itself.

    Args:
      phase: name of the task. pick: folder of the policy; the shipped one if None. settings: of the training.

    Raises:
      ArtifactError: it cannot be read, or is no pick policy from pixels.
      ConfigError: there is none to follow, or it does not go together with the settings.
    """
    if find_task(phase).follows is None:
        config.check(pick is None, f"'{phase}' follows no other policy: leave out --pick")
        return None
    path = assets.data_path("params") / SHIPPED if pick is None else pathlib.Path(pick)
    if pick is None and not path.is_dir():
        raise ArtifactError(
            "No pick policy from pixels comes with this version: make one with `alohas2r train-pixels --phase pick`"
            " and name it with --pick."
        )
    policy = artifact.load(path, PixelPolicy)
    if policy.spec.phase != "pick":
        raise ArtifactError(f"{path} is a policy for '{policy.spec.phase}', not for 'pick'.")
    assert isinstance(settings.task, InsertConfig)
    targets = settings.task.start.targets_in_bases()
    found = Before(policy, path, settings.task.switch, targets)
    for name, own, other in (
        ("cameras", settings.cameras, policy.spec.cameras),
        ("history", settings.history, policy.spec.history),
        ("env.control.scale", settings.env.control.scale, policy.spec.action.scale),
    ):
        config.check(own == other, f"{name} must be that of the pick policy, {other}, not {own}")
    return found


def hand_overs(
    given: Before,
    folder: pathlib.Path,
    settings: FollowingPixelsConfig,
    seed: int,
    threads: int,
    renderer: str,
    progress: Progress | None,
) -> SwitchStates:
    """Returns where the pick policy hands over, collected into the run's folder if need be; nothing is remembered.

    Args:
      given: the pick policy. folder: of the run. settings: of the training.
      seed: of physics, starts, looks and noise. threads: of physics and ray caster; 0 for all cores.
      renderer: of the pictures. progress: receives reports.

    Raises:
      ConfigError: no episode reached the switch.
      ArtifactError: the file cannot be written.
    """

    def acting(env: Env, context: np.ndarray) -> VisionActor:
        entry = find_task(settings.phase)
        setting = Setting(env, context, lambda: entry.scorer(entry.protocol, context))
        spec = make_pixel_spec(
            scene.load(entry.scene),
            settings.network,
            settings.cameras,
            settings.history,
            settings.env.control.scale,
        )
        # Until the switch only the pick policy acts; what stands for the other is never kept.
        blank = {name: np.zeros(shape) for name, shape in PixelPolicy.shapes(spec).items()}
        blank["std"] = np.ones_like(blank["std"])
        both = given.join(PixelPolicy(spec, blank, {}), {})
        eyes = Eyes(both.spec, setting, threads, renderer, settings.senses)
        actor = VisionActor(eyes, both.spec)
        actor.use(both.weights)
        return actor

    scale = given.pick.spec.action.scale
    picker = Picker(given.pick.hash, scale, HistoryConfig(()), acting)
    follows = find_task(settings.phase).follows
    assert follows is not None
    assert isinstance(settings.task, InsertConfig)
    path = folder / follows.file
    collect, conditions = switch_states.under(settings.collect, settings.task, settings.env)
    states = switch_states.ensure_by(path, picker, collect, seed, threads, progress, conditions)
    return states.without_memory()
