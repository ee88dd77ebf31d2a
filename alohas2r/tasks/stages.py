"""The second stage of a teacher's training, of which each task has its own."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from alohas2r import config

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class SecondStage(Generic[Config]):
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

    def task(self, task: Config) -> Config:
        """Returns the first stage's task with what this stage changes in it."""
        return task
