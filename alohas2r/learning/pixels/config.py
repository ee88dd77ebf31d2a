"""Settings of a training from pixels, and its presets."""

from __future__ import annotations

import dataclasses

from alohas2r import config
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs import noise
from alohas2r.envs.task import EnvConfig
from alohas2r.envs.vision import PIXEL_SENSES, SensesConfig
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.presets import FollowingTrainConfig, TrainConfig
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig

SCRATCH, ENCODER, STUDENT = "scratch", "encoder", "student"
STARTS = (SCRATCH, ENCODER, STUDENT)  # what a training begins with


@dataclasses.dataclass(frozen=True)
class StudentStartConfig:
    """How a training begins with a student of a teacher on the state.

    Attributes:
      updates: that the teacher is imitated for.
      learning_rate: of the imitation, from the first to the last of these updates.
      sigma: standard deviation of the actions before tanh, in the imitation and when reinforcement begins.
      critic_updates: in which only the critic learns, before the policy does.
      tether: weight of the KL divergence from the student, when reinforcement begins.
      tether_share: share of the first stage after which that weight is 0; linear in between.
    """

    updates: int = 100
    learning_rate: tuple[float, float] = (1e-3, 1e-4)
    sigma: float = 0.15
    critic_updates: int = 20
    tether: float = 0.5
    tether_share: float = 0.3

    def __post_init__(self) -> None:
        config.check(
            1 <= self.updates <= 100_000, f"updates must be in 1..100000, not {self.updates}"
        )
        config.check(
            0 < min(self.learning_rate) <= max(self.learning_rate) <= 1,
            "learning_rate must be two numbers in (0, 1]",
        )
        config.check(0.01 <= self.sigma <= 1, f"sigma must be in 0.01..1, not {self.sigma}")
        config.check(
            0 <= self.critic_updates <= 10_000,
            f"critic_updates must be in 0..10000, not {self.critic_updates}",
        )
        config.check(0 <= self.tether <= 100, f"tether must be in 0..100, not {self.tether}")
        config.check(
            0 < self.tether_share <= 1, f"tether_share must be in (0, 1], not {self.tether_share}"
        )


@dataclasses.dataclass(frozen=True)
class PixelsConfig(TrainConfig):
    """A training from pixels; each task has a subclass with configurations of its own kind, see `find_preset`.

    Attributes:
      env: control and the like. What a teacher would observe is not used, so it is left exact and without memory.
      ppo: the learner; of its network the critic's part.
      cameras: pictures. network: the policy's shapes. history: what is remembered of the proprioception.
      senses: what the policy's observation suffers.
      auxiliary: weight of predicting from the pictures where the objects are and whether they are in sight; 0 for none.
      pictures: updates that only pictures at random poses are learnt from, where a training begins with its encoder.
      student: how a training begins with a student.
    """

    env: EnvConfig = EnvConfig(noise=noise.NONE, history=HistoryConfig((1.0,)))
    ppo: PpoConfig = PpoConfig(entropy=(0.01, 0.003), target_kl=(0.015, 0.006))
    cameras: CameraSpec = CameraSpec()
    network: StudentNetworkConfig = StudentNetworkConfig(
        hidden=(256, 256), embedding=64, patches=(16, 24)
    )
    history: HistoryConfig = HistoryConfig((0.35, 0.1))
    senses: SensesConfig = PIXEL_SENSES
    auxiliary: float = 0.1
    pictures: int = 20
    student: StudentStartConfig = StudentStartConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        config.check(
            0 <= self.auxiliary <= 100, f"auxiliary must be in 0..100, not {self.auxiliary}"
        )
        config.check(
            1 <= self.pictures <= 10_000, f"pictures must be in 1..10000, not {self.pictures}"
        )
        config.check(
            not self.env.variation.varies and self.senses.transfer is None,
            "robots that vary and the looks 'transfer' are for students: leave env.variation and senses.looks",
        )
        config.check(not self.ppo.guided, "a guide is for teachers: leave ppo.guide")


@dataclasses.dataclass(frozen=True)
class FollowingPixelsConfig(PixelsConfig, FollowingTrainConfig):
    """A training from pixels that begins where another task's policy hands over."""


_QUICK = (
    *("total_steps=40e3", "refine.steps=0"),
    *("ppo.num_envs=64", "ppo.unroll=16", "ppo.minibatches=2", "ppo.network.value=64,64"),
    *("network.hidden=64,64", "network.embedding=16", "senses.corrupt.line_bank=256"),
    *("pictures=5", "student.updates=10", "student.critic_updates=2"),
    *("evaluations=1", "evaluation_episodes=32", "checkpoints=5"),
)
# By task; what is not said here is as for a teacher.
PRESETS = {
    "pick": {
        "default": (
            *("total_steps=10e6", "task.block.skew=0.7", "refine.steps=14e6"),
            *("refine.entropy=0.004,0.0005", "evaluations=12", "evaluation_episodes=256"),
        ),
        "quick": _QUICK,
    },
    "insert": {
        "default": (
            *("total_steps=3e6", "refine.steps=4e6", "ppo.reward_scale=0.04"),
            *("ppo.target_kl=0.015,0.008", "evaluations=8", "evaluation_episodes=256"),
        ),
        "quick": (*_QUICK, "collect.variants=64", "collect.rounds=1"),
    },
}


def find_preset(phase: str, name: str) -> PixelsConfig:
    """Returns a preset of a task's training.

    Raises:
      ConfigError: unknown task or preset.
    """
    if phase not in PRESETS:
        raise ConfigError(f"'{phase}' cannot be learnt from pixels.{did_you_mean(phase, PRESETS)}")
    if name not in PRESETS[phase]:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS[phase])}")
    start = presets.unset(phase, PixelsConfig, FollowingPixelsConfig)
    assert isinstance(start, PixelsConfig)
    return config.override(dataclasses.replace(start, env=PixelsConfig.env), PRESETS[phase][name])
