"""Environments to train a teacher in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.envs.env import Env
from alohas2r.learning.ppo.presets import InsertTrainConfig, TrainConfig
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.insert.switch_states import SwitchStates
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.pick.task import PickTask


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
      seed: of the blocks.
      threads: of the physics; 0 for all cores.
      states: the switch states that insertion starts from; whole episodes if None.
      stage: number of the training stage; each has blocks of its own.
      engine: "auto", "cpu" or "warp".
    """
    loaded = scene.load_physics(settings.phase)
    count = settings.ppo.num_envs
    if isinstance(settings, InsertTrainConfig):
        if states is None:
            draws, physics, pool = np.random.default_rng([seed, 0]), settings.task.physics, None
            draws = draws.random((count, physics_randomization.INSERT_DRAWS))
        else:
            draws, physics = states.draws, states.physics
            pool = jax.tree.map(jnp.asarray, states.pool)
        fields, half = physics_randomization.sample_insert(loaded, physics, draws)
        context = np.stack([half, np.arange(count)], 1)
        task = InsertTask(loaded, settings.task, pool)
    else:
        draws = np.random.default_rng([seed, stage]).random((count, 2))
        fields, context = physics_randomization.sample_block(loaded, settings.task.block, draws)
        task = PickTask(loaded, settings.task)
    made = engines.make(engine, loaded, count, threads, fields, settings.engine)
    return Env(task, made, settings.env, context)
