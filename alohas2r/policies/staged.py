"""Two policies, and the switch between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from alohas2r import config
from alohas2r.embodiment import history
from alohas2r.errors import ArtifactError
from alohas2r.policies.state import StatePolicy, remember
from alohas2r.policies.switch import Switch


class StagedPolicy:
    """The teacher: a pick policy drives each arm until the switch, then an insertion policy drives both.

    Both see the same moving averages of the two-arm observation, which run on through the switch.

    Args:
      pick: the single-arm policy.
      insert: the two-arm policy.
      switch: when insertion takes over.
      trained: how it was made, for policy.json.
    """

    def __init__(
        self, pick: StatePolicy, insert: StatePolicy, switch: Switch, trained: Mapping[str, Any]
    ):
        if pick.spec.phase != "pick" or insert.spec.phase != "insert":
            raise ArtifactError("A staged policy needs a pick policy and an insertion policy.")
        if pick.spec.history != insert.spec.history:
            raise ArtifactError(
                "The pick and the insertion policy must remember the same averages."
            )
        if 2 * pick.spec.observation_size >= insert.spec.observation_size:
            raise ArtifactError(
                "The insertion policy's observation must hold two pick observations."
            )
        self.pick, self.insert, self.switch = pick, insert, switch
        self.spec = insert.spec
        self.trained = dict(trained)
        self._memory: history.HistoryState | None = None

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return self.insert.action_size

    def apply_pick(self, features: Any, xp: Any) -> Any:
        """Maps two-arm features [..., F] to the pick policy's actions for both arms [..., 14]."""
        size = self.pick.spec.observation_size
        bank = features.reshape(*features.shape[:-1], 1 + len(self.spec.history.rates), -1)
        arms = xp.stack(
            [bank[..., :size], bank[..., size : 2 * size]], -3
        )  # [..., 2, 1 + rates, size]
        actions = self.pick.apply(arms.reshape(*arms.shape[:-2], -1), xp)
        return actions.reshape(*features.shape[:-1], -1)

    def apply(self, features: Any, switched: Any, xp: Any) -> Any:
        """Maps features [..., F] and the switch's state [...] to actions [..., 14]."""
        return xp.where(
            switched[..., None], self.insert.apply(features, xp), self.apply_pick(features, xp)
        )

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: np.ndarray, switched: bool) -> np.ndarray:
        """Returns the action [14] for one observation [109] and remembers it.

        Raises:
          ArtifactError: the observation has the wrong shape or is not finite.
        """
        self._memory, features = remember(self.spec, self._memory, observation)
        return self.apply(features, np.asarray(switched), np)

    @property
    def hash(self) -> str:
        """Identifies what the policy computes."""
        parts = (self.pick.hash, self.insert.hash, config.digest(self.switch))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


AnyPolicy = StatePolicy | StagedPolicy
