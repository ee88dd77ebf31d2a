"""Two policies, and the switch between them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

import numpy as np

from alohas2r import config
from alohas2r.core.types import Array, JsonObject
from alohas2r.embodiment import history
from alohas2r.errors import ArtifactError
from alohas2r.policies.state import StatePolicy, recorded_rows, remember
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

    file: ClassVar[str] = "policy.json"
    called: ClassVar[str] = "staged teacher"
    made_by: ClassVar[str] = "alohas2r train-teacher --phase insert"
    output: ClassVar[str] = "actions"

    def __init__(
        self, pick: StatePolicy, insert: StatePolicy, switch: Switch, trained: Mapping[str, object]
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
        self.trained: JsonObject = dict(trained)
        self._memory: history.HistoryState | None = None

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return self.insert.action_size

    def apply_pick(self, features: Array, xp: ModuleType) -> Array:
        """Maps two-arm features [..., F] to the pick policy's actions for both arms [..., 14]."""
        size = self.pick.spec.observation_size
        bank = features.reshape(*features.shape[:-1], 1 + len(self.spec.history.rates), -1)
        arms = xp.stack(
            [bank[..., :size], bank[..., size : 2 * size]], -3
        )  # [..., 2, 1 + rates, size]
        actions = self.pick.apply(arms.reshape(*arms.shape[:-2], -1), xp)
        return actions.reshape(*features.shape[:-1], -1)

    def apply(self, features: Array, switched: Array, xp: ModuleType) -> Array:
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

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Those of both parts, "pick/..." and "insert/..."."""
        return {
            f"{name}/{key}": value
            for name, part in self._parts.items()
            for key, value in part.weights.items()
        }

    @property
    def _parts(self) -> dict[str, StatePolicy]:
        return {"pick": self.pick, "insert": self.insert}

    def describe(self) -> JsonObject:
        """Returns what policy.json says of it."""
        parts = {
            name: {"hash": part.hash, **part.describe(), "trained": part.trained}
            for name, part in self._parts.items()
        }
        return {"kind": "staged", "switch": config.to_dict(self.switch), "parts": parts}

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> StagedPolicy:
        """Makes a policy of its description and weights."""

        def part(name: str) -> StatePolicy:
            own = {key: value for key, value in weights.items() if key.startswith(f"{name}/")}
            plain = {key.removeprefix(f"{name}/"): value for key, value in own.items()}
            return StatePolicy.build(description["parts"][name], plain)

        switch = config.from_dict(Switch, description["switch"])
        return cls(part("pick"), part("insert"), switch, description.get("trained", {}))

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the recorded observations [T, n], and the switch's state with each."""
        return recorded_rows(recorded)

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [T, n] for recorded observations, one after the other."""
        self.reset()
        both = zip(rows["observations"], rows["switched"], strict=True)
        actions = np.stack([self.act(observation, bool(flag)) for observation, flag in both])
        self.reset()
        return actions
