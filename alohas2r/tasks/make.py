"""Makes environments of a task: for this package's own learners, and behind Gymnasium's interfaces."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from alohas2r.config import check
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.task import Task, TaskConfig
from alohas2r.errors import ConfigError
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig, make_spec
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.registry import AnyTask, find_task

if TYPE_CHECKING:
    from alohas2r.envs.vision import Senses
    from alohas2r.envs.wrappers.gymnasium import TaskEnv, VectorTaskEnv

Observing = Literal["state", "rgbd", "depth", "rgb"]
OBSERVATIONS: tuple[Observing, ...] = ("state", "rgbd", "depth", "rgb")
MOST_ENVS = 1_000_000


def make_env(
    task: str,
    num_envs: int = 1,
    observation: Observing = "state",
    *,
    physics_seed: int = 0,
    threads: int = 0,
    engine: str = "cpu",
    size: int = 32,
    renderer: str = "auto",
    render_mode: str | None = None,
    switch_states: str | os.PathLike[str] | None = None,
) -> VectorTaskEnv:
    """Makes environments of a task as a Gymnasium vector environment, under the conditions of the task's protocol.

    Args:
      task: name of the task, one of `tasks.registry.task_names()`.
      num_envs: how many, side by side.
      observation: "state" for the noisy measurement that teachers get [n]; for tasks on the insertion scene also
        "rgbd", "depth" or "rgb": a dictionary of the wrist cameras' pictures ("rgb" [2, H, W, 3] uint8, "depth"
        [2, H, W] m, left first) and "proprioception" [n], with random looks, corruption and delays.
      physics_seed: of sizes, masses and friction, which stay with an environment.
      threads: of physics and ray caster; 0 for all cores.
      engine: "cpu", "warp" or "auto".
      size: side of the pictures (pixels).
      renderer: of the pictures; see `rendering.registry`.
      render_mode: "rgb_array" lets `render` give a picture of each scene.
      switch_states: for "insert": file of `alohas2r collect-switch-states`; episodes then start with both objects
        raised. Whole episodes from the home pose if None; the reward begins when both are raised.

    Raises:
      ConfigError: an unknown task or observation, or a number out of range.
      ArtifactError: the switch states cannot be read.
      BackendUnavailable: engine or renderer cannot run here.
    """
    from alohas2r.envs.wrappers.gymnasium import VectorTaskEnv

    check(1 <= num_envs <= MOST_ENVS, f"num_envs must be in 1..{MOST_ENVS}, not {num_envs}")
    if observation not in OBSERVATIONS:
        raise ConfigError(
            f"observation must be one of {', '.join(OBSERVATIONS)}, not '{observation}'."
        )
    entry = find_task(task)
    conditions = entry.conditions(entry.protocol)
    settings, control = conditions.task, conditions.control
    config = conditions.env(HistoryConfig(()))
    shape = num_envs, count_draws(entry, config)
    draws = np.random.default_rng(physics_seed).random(shape)
    made = None
    if switch_states is not None:
        settings, draws, made = _from_switch_states(entry, settings, switch_states, num_envs)
    env, context, _ = build(entry, settings, config, draws, threads, engine, task=made)
    senses = None
    if observation != "state":
        senses = _senses(entry, context, observation, control.scale, size, renderer, threads)
    return VectorTaskEnv(env, entry.view, senses, render_mode)


def make_single(
    task: str,
    observation: Observing = "state",
    *,
    physics_seed: int = 0,
    engine: str = "cpu",
    size: int = 32,
    renderer: str = "auto",
    render_mode: str | None = None,
    switch_states: str | os.PathLike[str] | None = None,
) -> TaskEnv:
    """Makes one environment of a task for `gymnasium.make`; arguments as for `make_env`."""
    from alohas2r.envs.wrappers.gymnasium import TaskEnv

    return TaskEnv(
        make_env(
            task,
            1,
            observation,
            physics_seed=physics_seed,
            threads=1,
            engine=engine,
            size=size,
            renderer=renderer,
            render_mode=render_mode,
            switch_states=switch_states,
        )
    )


def _from_switch_states(
    entry: AnyTask, settings: TaskConfig, path: str | os.PathLike[str], num_envs: int
) -> tuple[TaskConfig, np.ndarray, Task]:
    """Returns settings, draws and task whose episodes begin where the policy of the task before hands over."""
    if entry.follows is None:
        raise ConfigError(
            f"switch_states belong to tasks that follow another, such as insert; {entry.name} starts by itself."
        )
    states = entry.follows.load(path)
    if num_envs > len(states.draws):
        raise ConfigError(
            f"{path} has {len(states.draws)} physics variants; num_envs must be at most that,"
            f" not {num_envs}."
        )
    states = states.first(num_envs)
    settings, task = entry.follows.begin(scene.load_physics(entry.scene), settings, states)
    return settings, states.draws, task


def _senses(
    entry: AnyTask,
    context: np.ndarray,
    observation: Observing,
    scale: float,
    size: int,
    renderer: str,
    threads: int,
) -> Senses:
    from alohas2r.envs.vision import Senses, SensesConfig
    from alohas2r.rendering import registry as renderers

    if entry.scene != "insert":
        raise ConfigError(
            f"observation '{observation}' is for tasks on the scene insert; {entry.name} has 'state' only."
        )
    check(8 <= size <= 512, f"size must be in 8..512 pixels, not {size}")
    spec = make_spec(
        scene.load(entry.scene),
        observation,
        StudentNetworkConfig(),
        CameraSpec(size=size),
        HistoryConfig(()),
        Switch(),
        scale,
    )
    return Senses(
        spec, SensesConfig(), context[:, 0], renderers.make_renderer(renderer, size, threads)
    )
