"""Settings of a teacher's training, and its presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from alohas2r import config
from alohas2r.envs.task import EnvConfig
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.policies.networks.mlp import NetworkConfig
from alohas2r.sim.engines.base import BufferConfig
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.insert import config as insert_config
from alohas2r.tasks.insert.config import InsertConfig, InsertReward
from alohas2r.tasks.insert.switch_states import CollectConfig
from alohas2r.tasks.pick.config import PickConfig, PickReward

PHASES = ("pick", "insert")


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """A second stage of a training, from where the first one ends, that asks for sureness.

    The first stage learns fastest when each step near the goal is paid; but then a second's waiting for a better
    view costs more than a sure grasp is worth. In the second stage most is paid in an episode's last step, and the
    discount looks as far as that.

    Attributes:
      steps: environment steps; 0 for none.
      entropy, target_kl, discount, reward_scale: as in PpoConfig, for this stage.
    """

    steps: int = 0
    entropy: tuple[float, float] = (0.004, 0.0005)
    target_kl: tuple[float, float] = (0.012, 0.003)
    discount: float = 0.995
    reward_scale: float = 0.03

    def __post_init__(self) -> None:
        config.check(0 <= self.steps <= 10**11, "steps must be in 0..1e11")

    def task(self, task: Any) -> Any:
        """Returns the first stage's task with what this stage changes in it."""
        return task


@dataclasses.dataclass(frozen=True)
class RefineConfig(SecondStage):
    """The second stage of picking, on harder blocks.

    Attributes:
      weights: relative frequency of equal parts of the blocks' range of sizes, from thin to wide.
      reward: weights of the reward.
    """

    weights: tuple[float, ...] = (4.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 6.0)
    reward: PickReward = PickReward(hold=0.02, stay=0.01, grip=0.03, finish=40.0)

    def task(self, task: PickConfig) -> PickConfig:
        """Returns the task on this stage's blocks, with its reward."""
        block = dataclasses.replace(task.block, skew=1.0, weights=self.weights)
        return dataclasses.replace(task, block=block, reward=self.reward)


@dataclasses.dataclass(frozen=True)
class InsertRefineConfig(SecondStage):
    """The second stage of insertion.

    Attributes:
      reward: weights of the reward.
    """

    reward: InsertReward = InsertReward(
        align=0.05,
        depth=0.1,
        inserted=2.0,
        grip=0.05,
        level=0.02,
        slow=0.05,
        finish=40.0,
        near=-1.0,
    )

    def task(self, task: InsertConfig) -> InsertConfig:
        """Returns the task with this stage's reward."""
        return dataclasses.replace(task, reward=self.reward)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A teacher training.

    Attributes:
      phase: "pick" or "insert".
      total_steps: environment steps.
      task: the task.
      env: control, noise, history.
      ppo: the learner.
      evaluations: how many evaluations on the way, evenly spread; the last is at the end.
      evaluation_episodes: episodes of each.
      checkpoints: how many checkpoints on the way, evenly spread.
      refine: a second stage; none by default.
      engine: sizes of the buffers of the engine "warp".
    """

    phase: str = "pick"
    total_steps: int = 24_000_000
    task: PickConfig = PickConfig()
    env: EnvConfig = EnvConfig()
    ppo: PpoConfig = PpoConfig()
    evaluations: int = 10
    evaluation_episodes: int = 512
    checkpoints: int = 60
    refine: RefineConfig = RefineConfig()
    engine: BufferConfig = BufferConfig()

    def __post_init__(self) -> None:
        config.check(
            self.phase in PHASES, f"phase must be one of {', '.join(PHASES)}, not '{self.phase}'"
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
            ),
        )
        return [self, second]


@dataclasses.dataclass(frozen=True)
class InsertTrainConfig(TrainConfig):
    """An insertion training.

    Attributes:
      task: the insertion task.
      collect: the switch states to start from; one physics variant per environment.
    """

    phase: str = "insert"
    total_steps: int = 16_000_000
    evaluations: int = 8
    evaluation_episodes: int = 256
    task: InsertConfig = InsertConfig(steps=140)  # pyright: ignore[reportIncompatibleVariableOverride]
    env: EnvConfig = EnvConfig(noise=insert_config.INSERT_NOISE)
    ppo: PpoConfig = PpoConfig(reward_scale=0.04)
    collect: CollectConfig = CollectConfig()
    refine: InsertRefineConfig = InsertRefineConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        super().__post_init__()
        config.check(
            self.collect.variants == self.ppo.num_envs,
            f"collect.variants = {self.collect.variants} must equal ppo.num_envs = {self.ppo.num_envs}",
        )


PRESETS: dict[str, dict[str, TrainConfig]] = {
    "pick": {
        "default": TrainConfig(
            total_steps=12_000_000,
            task=PickConfig(block=BlockConfig(skew=0.7)),
            ppo=PpoConfig(entropy=(0.01, 0.003), target_kl=(0.015, 0.008)),
            refine=RefineConfig(steps=27_000_000),
        ),
        "quick": TrainConfig(
            total_steps=300_000,
            ppo=PpoConfig(
                num_envs=256, unroll=32, minibatches=4, network=NetworkConfig((64, 64), (64, 64))
            ),
            evaluations=1,
            evaluation_episodes=64,
            checkpoints=5,
        ),
    },
    "insert": {
        "default": InsertTrainConfig(
            total_steps=4_000_000,
            ppo=PpoConfig(entropy=(0.01, 0.003), target_kl=(0.015, 0.008), reward_scale=0.04),
            refine=InsertRefineConfig(steps=5_000_000),
        ),
        "quick": InsertTrainConfig(
            total_steps=100_000,
            ppo=PpoConfig(
                num_envs=128, unroll=32, minibatches=4, network=NetworkConfig((64, 64), (64, 64))
            ),
            collect=CollectConfig(variants=128, rounds=1),
            evaluations=1,
            evaluation_episodes=32,
            checkpoints=5,
        ),
    },
}


def find_preset(phase: str, name: str) -> TrainConfig:
    """Returns a preset.

    Raises:
      ConfigError: unknown phase or preset.
    """
    if phase not in PRESETS:
        raise ConfigError(f"Unknown phase '{phase}'.{did_you_mean(phase, PRESETS)}")
    if name not in PRESETS[phase]:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS[phase])}")
    return PRESETS[phase][name]
