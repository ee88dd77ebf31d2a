"""Environments to train a teacher in."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.envs.env import Env
from alohas2r.learning.ppo.presets import InsertTrainConfig, TrainConfig
from alohas2r.sim import scene
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.insert.switch_states import SwitchStates
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.registry import find_task


def make_env(
    settings: TrainConfig,
    seed: int,
    threads: int = 0,
    states: SwitchStates | None = None,
    stage: int = 0,
    engine: str = "cpu",
) -> Env:
    """Returns the training environments of a configuration; every environment keeps its own physics.

    Args:
      settings: the configuration.
      seed: of the physics.
      threads: of the physics; 0 for all cores.
      states: the switch states that insertion starts from; whole episodes if None.
      stage: number of the training stage; each has physics of its own.
      engine: "auto", "cpu" or "warp".
    """
    entry, task = find_task(settings.phase), None
    count = settings.ppo.num_envs
    if states is not None and isinstance(settings, InsertTrainConfig):
        draws, pool = states.draws, jax.tree.map(jnp.asarray, states.pool)
        settings = dataclasses.replace(
            settings, task=dataclasses.replace(settings.task, physics=states.physics)
        )
        name = settings.env.scene_of(entry.scene)
        task = InsertTask(scene.load_physics(name), settings.task, pool)
    else:
        shape = count, count_draws(entry, settings.env)
        draws = np.random.default_rng([seed, stage]).random(shape)
    built = build(entry, settings.task, settings.env, draws, threads, engine, settings.engine, task)
    return built.env
