"""Settings of PPO."""

from __future__ import annotations

import dataclasses

from alohas2r.config import check, later
from alohas2r.policies.networks.mlp import NetworkConfig


@dataclasses.dataclass(frozen=True)
class PpoConfig:
    """Hyperparameters.

    Attributes:
      num_envs: environments stepped together.
      unroll: control steps per environment and update.
      epochs: passes over the data of an update.
      minibatches: gradient steps per epoch.
      learning_rate: first step size; the KL rule moves it within learning_rate_range.
      target_kl: KL divergence per update that the step size aims at, at the start and at the end of training
        (linear between).
      discount: per control step. gae: lambda of the generalized advantage estimate.
      clipping: of the probability ratio.
      entropy: weight of the entropy bonus, at the start and at the end of training (linear between).
      value_weight: of the critic's loss.
      max_gradient: norm to which gradients are clipped.
      reward_scale: factor on rewards before learning.
      network: shapes.
      guide: share of the policy's loss that asks for what the task's guide would do, at the start and at the end of
        training (linear between); the rest is reinforcement. For tasks that have a guide, as `insert`.
    """

    num_envs: int = 1024
    unroll: int = 32
    epochs: int = 4
    minibatches: int = 8
    learning_rate: float = 1e-3
    learning_rate_range: tuple[float, float] = (2e-5, 3e-3)
    target_kl: tuple[float, float] = (0.015, 0.004)
    discount: float = 0.97
    gae: float = 0.95
    clipping: float = 0.2
    entropy: tuple[float, float] = (0.01, 0.001)
    value_weight: float = 1.0
    max_gradient: float = 1.0
    reward_scale: float = 0.1
    network: NetworkConfig = NetworkConfig()
    guide: tuple[float, float] = later((0.0, 0.0))

    def __post_init__(self) -> None:
        check(
            1 <= self.num_envs <= 1_000_000, f"num_envs must be in 1..1000000, not {self.num_envs}"
        )
        check(1 <= self.unroll <= 1000, f"unroll must be in 1..1000, not {self.unroll}")
        check(1 <= self.epochs <= 100, f"epochs must be in 1..100, not {self.epochs}")
        check(
            self.minibatches >= 1 and (self.num_envs * self.unroll) % self.minibatches == 0,
            f"minibatches = {self.minibatches} must divide num_envs * unroll = {self.num_envs * self.unroll}",
        )
        check(
            0 < self.learning_rate <= 1,
            f"learning_rate must be in (0, 1], not {self.learning_rate}",
        )
        low, high = self.learning_rate_range
        check(0 < low <= high <= 1, "learning_rate_range must be two numbers 0 < low <= high <= 1")
        check(0 <= self.discount <= 1, f"discount must be in [0, 1], not {self.discount}")
        check(0 <= self.gae <= 1, f"gae must be in [0, 1], not {self.gae}")
        check(0 < self.clipping < 1, f"clipping must be in (0, 1), not {self.clipping}")
        check(min(self.entropy) >= 0, "entropy must be two numbers >= 0")
        check(min(self.target_kl) > 0, "target_kl must be two numbers > 0")
        check(min(self.guide) >= 0 and max(self.guide) <= 1, "guide must be two numbers in [0, 1]")
        check(self.max_gradient > 0, "max_gradient must be > 0")
        check(self.reward_scale > 0, "reward_scale must be > 0")

    @property
    def guided(self) -> bool:
        """Whether a guide is imitated."""
        return max(self.guide) > 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps per update."""
        return self.num_envs * self.unroll
