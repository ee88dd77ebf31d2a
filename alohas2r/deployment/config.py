"""Settings of a run on a robot."""

from __future__ import annotations

import dataclasses
from typing import Literal

from alohas2r.config import check
from alohas2r.policies.switch import Switch
from alohas2r.safety.config import FULL, SLOW

# dry-run: no torque, everything else as in a run. shadow: reads and logs only, for arms that
# something else drives. slow and full: torque on, at the limits SLOW and FULL.
DriveMode = Literal["dry-run", "shadow", "slow", "full"]
LIMITS = {"dry-run": FULL, "shadow": FULL, "slow": SLOW, "full": FULL}


@dataclasses.dataclass(frozen=True)
class DeployConfig:
    """How a policy is run.

    Attributes:
      mode: see DriveMode.
      episodes: how many times.
      episode_s: for how long each time.
      action_scale: how far a full action moves a target (rad; m for the grippers).
      switch: when the insertion policy takes over.
      approach: whether to lead the arms to the start pose first; a simulation places them there.
      retreat: whether to bring the arms to rest at the end.
      frozen_s: how long to keep holding after a fault before leaving the loop; None: until Ctrl-C.
    """

    mode: DriveMode = "slow"
    episodes: int = 1
    episode_s: float = 10.0
    action_scale: float = 0.02
    switch: Switch = dataclasses.field(default_factory=Switch)
    approach: bool = True
    retreat: bool = True
    frozen_s: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self.mode in LIMITS, f"mode must be one of {', '.join(LIMITS)}, not {self.mode}")
        check(self.episodes >= 1, "episodes must be at least 1")
        check(self.episode_s > 0, "episode_s must be positive")
        check(0 < self.action_scale <= 0.1, "action_scale must lie in (0, 0.1]")
        check(self.frozen_s is None or self.frozen_s >= 0, "frozen_s must not be negative")

    @property
    def powered(self) -> bool:
        """Whether the arms are moved at all."""
        return self.mode in ("slow", "full")
