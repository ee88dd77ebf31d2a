"""Environments to train a teacher in."""

from __future__ import annotations

import numpy as np

from alohas2r.envs.env import Env
from alohas2r.learning.fleet.worker import Part
from alohas2r.learning.ppo.presets import TrainConfig
from alohas2r.sim import scene
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.follows import Starts
from alohas2r.tasks.registry import find_task


def make_env(
    settings: TrainConfig,
    seed: int,
    threads: int = 0,
    states: Starts | None = None,
    stage: int = 0,
    engine: str = "cpu",
    part: Part | None = None,
) -> Env:
    """Returns the training environments of a configuration; every environment keeps its own physics.

    Args:
      settings: the configuration.
      seed: of the physics.
      threads: of the physics; 0 for all cores.
      states: where a task that follows another starts; whole episodes if None.
      stage: number of the training stage; each has physics of its own.
      engine: "auto", "cpu" or "warp".
      part: which of the environments; all if None.
    """
    entry, task = find_task(settings.phase), None
    count = settings.ppo.num_envs
    rules = settings.task
    if states is not None and entry.follows is not None:
        states = states if part is None else states.part(part.first, part.last)
        draws = states.draws
        loaded = scene.load_physics(settings.env.scene_of(entry.scene))
        rules, task = entry.follows.begin(loaded, rules, states)
    else:
        shape = count, count_draws(entry, settings.env)
        draws = np.random.default_rng([seed, stage]).random(shape)
        draws = draws if part is None else draws[part.first : part.last]
    return build(entry, rules, settings.env, draws, threads, engine, settings.engine, task).env
