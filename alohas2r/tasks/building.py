"""Environments of a task: its scene, the physics of each, an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig, Task, TaskConfig
from alohas2r.sim import scene, variation
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.sim.scene import Scene
from alohas2r.sim.variation import Robots
from alohas2r.tasks.registry import AnyTask


class Built(NamedTuple):
    """Environments of a task."""

    env: Env
    context: np.ndarray  # [N, C] in full precision
    robots: Robots | None  # where they vary


def build(
    entry: AnyTask,
    settings: TaskConfig,
    config: EnvConfig,
    draws: np.ndarray,
    threads: int = 0,
    engine: str = "cpu",
    buffers: BufferConfig | None = None,
    task: Task | None = None,
) -> Built:
    """Returns environments of a task, each with physics of its own.

    Args:
      entry: the task. settings: of the task.
      config: control, noise, memory of the observation, variation.
      draws: [N, `count_draws`] uniform numbers that the physics comes from.
      threads: of the physics; 0 for all cores.
      engine: "auto", "cpu" or "warp". buffers: of the engine "warp".
      task: the task itself, where it needs more than its settings.

    Raises:
      ConfigError: unknown engine. BackendUnavailable: it cannot run here.
    """
    loaded = scene.load_physics(config.scene_of(entry.scene))
    fields, context, robots = draw_physics(entry, loaded, settings, config, draws)
    made = engines.make(engine, loaded, len(draws), threads, fields, buffers or BufferConfig())
    held = None if robots is None else robots.held
    env = Env(task or entry.task(loaded, settings), made, config, context, held)
    return Built(env, context, robots)


def count_draws(entry: AnyTask, config: EnvConfig) -> int:
    """Returns how many uniform numbers the physics of one environment takes."""
    return entry.draws + config.variation.draws


class Physics(NamedTuple):
    """What the physics of N environments differs in."""

    fields: Mapping[str, np.ndarray]  # model field -> [N, ...]
    context: np.ndarray  # [N, C]
    robots: Robots | None  # where they vary


def draw_physics(
    entry: AnyTask, loaded: Scene, settings: TaskConfig, config: EnvConfig, draws: np.ndarray
) -> Physics:
    """Turns uniform draws into the physics of environments.

    Args:
      entry: the task. loaded: its scene. settings: of the task. config: for the variation.
      draws: [N, `count_draws`].
    """
    fields, context = entry.randomize(loaded, settings, draws[:, : entry.draws])
    if not config.variation.varies:
        return Physics(fields, context, None)
    robots = variation.sample(loaded, config.variation, draws[:, entry.draws :])
    return Physics(variation.apply(loaded, fields, robots.drawn), context, robots)
