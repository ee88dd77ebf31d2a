"""Settings of a teacher's training, and its presets."""

from __future__ import annotations

import dataclasses
import functools

from alohas2r import config
from alohas2r.core.types import Untyped
from alohas2r.envs.task import EnvConfig, TaskConfig
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.tasks.registry import find_task, task_names
from alohas2r.tasks.stages import SecondStage


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A teacher training; each task has a subclass with configurations of its own kind, see `find_preset`.

    Attributes:
      phase: name of the task.
      total_steps: environment steps.
      task: the task.
      env: control, noise, history.
      ppo: the learner.
      evaluations: how many evaluations on the way, evenly spread; the last is at the end.
      evaluation_episodes: episodes of each.
      checkpoints: how many checkpoints on the way, evenly spread.
      refine: a second stage; none by default.
      engine: sizes of the buffers of the engine "warp".
      protocol: that of the evaluations on the way; the task's own if empty.
    """

    phase: str
    total_steps: int
    task: TaskConfig
    env: EnvConfig = EnvConfig()
    ppo: PpoConfig = PpoConfig()
    evaluations: int = 10
    evaluation_episodes: int = 512
    checkpoints: int = 60
    refine: SecondStage = SecondStage()
    engine: BufferConfig = BufferConfig()
    protocol: str = ""

    def __post_init__(self) -> None:
        config.check(
            self.phase in task_names(),
            f"phase must be one of {', '.join(task_names())}, not '{self.phase}'",
        )
        config.check(1 <= self.total_steps <= 10**11, "total_steps must be in 1..1e11")
        config.check(0 <= self.evaluations <= 10_000, "evaluations must be in 0..10000")
        config.check(
            1 <= self.evaluation_episodes <= 100_000, "evaluation_episodes must be in 1..100000"
        )
        config.check(0 <= self.checkpoints <= 100_000, "checkpoints must be in 0..100000")

    @property
    def updates(self) -> int:
        """Number of updates of the first stage."""
        return -(-self.total_steps // self.ppo.steps_per_update)

    def stages(self) -> list[TrainConfig]:
        """Returns one configuration per stage; they differ in data and schedule, never in shapes."""
        if not self.refine.steps:
            return [self]
        second = dataclasses.replace(
            self,
            total_steps=self.refine.steps,
            task=self.refine.task(self.task),
            ppo=dataclasses.replace(
                self.ppo,
                entropy=self.refine.entropy,
                target_kl=self.refine.target_kl,
                discount=self.refine.discount,
                reward_scale=self.refine.reward_scale,
                guide=(self.ppo.guide[1],) * 2,
            ),
        )
        return [self, second]

    def with_envs(self, count: int) -> TrainConfig:
        """Returns the configuration with another number of environments."""
        return dataclasses.replace(self, ppo=dataclasses.replace(self.ppo, num_envs=count))


@dataclasses.dataclass(frozen=True)
class FollowingTrainConfig(TrainConfig):
    """A training that begins where another task's policy hands over.

    Attributes:
      collect: the states to start from; one physics variant per environment.
    """

    collect: Untyped = None  # a dataclass of the task's: `Follows.collect`

    def __post_init__(self) -> None:
        super().__post_init__()
        config.check(
            self.collect.variants == self.ppo.num_envs,
            f"collect.variants = {self.collect.variants} must equal ppo.num_envs = {self.ppo.num_envs}",
        )

    def with_envs(self, count: int) -> FollowingTrainConfig:
        """Returns the configuration with another number of environments."""
        return dataclasses.replace(
            self,
            ppo=dataclasses.replace(self.ppo, num_envs=count),
            collect=dataclasses.replace(self.collect, variants=count),
        )


@functools.cache
def unset(
    phase: str,
    plain: type[TrainConfig] = TrainConfig,
    following: type[FollowingTrainConfig] = FollowingTrainConfig,
) -> TrainConfig:
    """Returns a task's training before a preset changes it.

    Args:
      phase: the task.
      plain, following: configurations of a task that starts by itself, and of one that follows another.
    """
    entry = find_task(phase)
    own = [("task", type(entry.config)), ("refine", type(entry.second), entry.second)]
    if entry.follows is not None:
        own += [("collect", type(entry.follows.collect), entry.follows.collect)]
    kind = dataclasses.make_dataclass(
        f"{phase.capitalize()}TrainConfig",
        own,
        bases=(plain if entry.follows is None else following,),
        frozen=True,
    )
    return kind(
        phase=phase, total_steps=24_000_000, task=entry.config, env=EnvConfig(noise=entry.noise)
    )


def find_preset(phase: str, name: str) -> TrainConfig:
    """Returns a preset of a task's training.

    Raises:
      ConfigError: unknown task or preset.
    """
    presets = find_task(phase).presets
    if name not in presets:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, presets)}")
    return config.override(unset(phase), presets[name])
