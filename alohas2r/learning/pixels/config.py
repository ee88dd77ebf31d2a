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
from alohas2r.learning.ppo.presets import TrainConfig
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig

SCRATCH, ENCODER = "scratch", "encoder"
STARTS = (SCRATCH, ENCODER)  # what a training begins with


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


# By task; what is not said here is as for a teacher.
PRESETS = {
    "pick": {
        "default": (
            *("total_steps=10e6", "task.block.skew=0.7", "refine.steps=14e6"),
            *("refine.entropy=0.004,0.0005", "evaluations=12", "evaluation_episodes=256"),
        ),
        "quick": (
            *("total_steps=40e3", "refine.steps=0"),
            *("ppo.num_envs=64", "ppo.unroll=16", "ppo.minibatches=2", "ppo.network.value=64,64"),
            *("network.hidden=64,64", "network.embedding=16", "senses.corrupt.line_bank=256"),
            "pictures=5",
            *("evaluations=1", "evaluation_episodes=32", "checkpoints=5"),
        ),
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
    start = presets.unset(phase, PixelsConfig)
    assert isinstance(start, PixelsConfig)
    return config.override(dataclasses.replace(start, env=PixelsConfig.env), PRESETS[phase][name])
