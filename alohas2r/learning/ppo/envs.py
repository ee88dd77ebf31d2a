"""Environments to train a teacher in."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.envs.env import Env
from alohas2r.learning.ppo.presets import InsertTrainConfig, TrainConfig
from alohas2r.sim import scene
from alohas2r.sim.engines import registry as engines
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
    entry = find_task(settings.phase)
    loaded = scene.load_physics(entry.scene)
    count = settings.ppo.num_envs
    if states is not None and isinstance(settings, InsertTrainConfig):
        draws, pool = states.draws, jax.tree.map(jnp.asarray, states.pool)
        settings = dataclasses.replace(
            settings, task=dataclasses.replace(settings.task, physics=states.physics)
        )
        task = InsertTask(loaded, settings.task, pool)
    else:
        draws = np.random.default_rng([seed, stage]).random((count, entry.draws))
        task = entry.task(loaded, settings.task)
    fields, context = entry.randomize(loaded, settings.task, draws)
    made = engines.make(engine, loaded, count, threads, fields, settings.engine)
    return Env(task, made, settings.env, context)
