"""A student that inserts while a residual of its actions is learnt: what the control loop asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.deciders import Chooser
from alohas2r.deployment.online.explorer import Acting
from alohas2r.embodiment import history
from alohas2r.embodiment.joints import SIDES
from alohas2r.policies.online import insertion, networks
from alohas2r.policies.online.eyes import eyes_of
from alohas2r.policies.online.insertion import InsertSpec
from alohas2r.policies.online.tasks import Held
from alohas2r.policies.onnx.base import Base
from alohas2r.policies.protocol import select


class Inserter(Acting):
    """Acts as the student until it has switched to insertion, from then on with the residual.

    The log's source is "base" while the student acts alone, of which nothing is learnt. The reward is the truth.

    Args:
      spec: what learns. chooser: who decides. base: the student.
      truth: whether the peg is in, which a simulation knows.
    """

    def __init__(
        self,
        spec: InsertSpec,
        chooser: Chooser,
        base: Base,
        truth: Callable[[], bool],
    ) -> None:
        super().__init__(spec, chooser, Held(spec.task), truth)
        self._chooser, self._base = chooser, base
        self._eyes = [eyes_of(base.weights, side, base.spec.network) for side in SIDES]
        self._memory = history.init(base.spec.history, base.spec.vector_size, np)
        self._actions = np.zeros(base.policy.action_size)
        self._features = np.zeros(spec.features, np.float32)
        self._switched = False

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; see `Acting`."""
        super().begin(seed, explores, evaluation)
        self._base.policy.reset()
        self._memory = history.init(self._base.spec.history, self._base.spec.vector_size, np)

    def _judge(self, observation: Mapping[str, np.ndarray], truth: bool | None) -> bool:
        spec, felt = self._base.spec, np.asarray(observation["proprioception"], np.float32)
        self._switched = bool(observation["switched"])
        self._actions = self._base.policy.act(select(self._base.policy, observation))
        self._memory, remembered = history.update(spec.history, self._memory, felt, np)
        if self._switched:
            seen = [
                networks.look(
                    spec, eyes, *(observation[f"{side}_{kind}"][None] for kind in ("rgb", "depth"))
                )[0]
                for side, eyes in zip(SIDES, self._eyes, strict=True)
            ]
            features = insertion.features_of(seen, remembered, self._actions)
            self._features = features.astype(np.float32)
        return self._held.take(bool(truth))

    def _decide(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._switched:
            self._joints = self._actions
            return {}
        base, wanted = self._chooser.choose(self._features)
        self._joints = insertion.with_joints(self._actions, wanted)
        return {"base": base, "wanted": wanted, **self._last_seen(observation)}

    def _last_seen(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"features": self._features} if self._switched else {}

    def _said(self, source: str, truth: bool | None) -> JsonObject:
        return super()._said(source if self._switched else "base", truth)
