"""A student that inserts while a residual of its actions is learnt: what the control loop asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.deciders import Chooser
from alohas2r.deployment.online.explorer import Acting, Phase
from alohas2r.embodiment import history
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, SIDES
from alohas2r.policies.online import insertion, networks
from alohas2r.policies.online.classifier import InsertReward, Look
from alohas2r.policies.online.eyes import eyes_of
from alohas2r.policies.online.insertion import InsertSpec
from alohas2r.policies.online.tasks import Held
from alohas2r.policies.onnx.base import Base
from alohas2r.policies.protocol import Notes, select


class Inserter(Acting):
    """Acts as the student until it has switched to insertion, from then on with the residual.

    The log's source is "base" while the student acts alone, of which nothing is learnt. Evaluations end by the truth,
    whatever is the reward; what this said until then is their `success`.

    Args:
      spec: what learns. chooser: who decides. base: the student.
      truth: whether the peg is in, which a simulation knows.
      past_s: how long an episode goes on after success, as the student does, of which nothing is learnt.
      reward: what tells success; None: the truth.
    """

    def __init__(
        self,
        spec: InsertSpec,
        chooser: Chooser,
        base: Base,
        truth: Callable[[], bool],
        past_s: float = 0.0,
        reward: InsertReward | None = None,
    ) -> None:
        super().__init__(spec, chooser, reward or Held(spec.task), truth)
        self._spec, self._reward = spec, reward
        self._chooser, self._base = chooser, base
        self._eyes = [eyes_of(base.weights, side, base.spec.network) for side in SIDES]
        self._memory = history.init(base.spec.history, base.spec.vector_size, np)
        self._actions = np.zeros(base.policy.action_size)
        self._features = np.zeros(spec.features, np.float32)
        self._switched = False
        self._past = round(past_s / CONTROL_PERIOD_S)
        self._rewarded = False

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; see `Acting`."""
        super().begin(seed, explores, evaluation)
        self._base.policy.reset()
        self._memory = history.init(self._base.spec.history, self._base.spec.vector_size, np)
        self._rewarded = False

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
        if self._reward is None:
            return self._held.take(bool(truth))
        pictures = self._features[: self._spec.pictures]
        done = self._reward.update(Look(pictures, felt) if self._switched else None)
        self._rewarded |= done
        return bool(truth) if self._evaluation else done

    def _decide(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._switched:
            self._joints = self._actions
            return {}
        base, wanted = self._chooser.choose(self._features)
        self._joints = insertion.with_joints(self._actions, wanted)
        return {"base": base, "wanted": wanted, **self._last_seen(observation)}

    def _last_seen(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"features": self._features} if self._switched else {}

    def _leave(self, observation: Mapping[str, np.ndarray]) -> Phase:
        if self._evaluation:
            self.success = self._rewarded if self._reward is not None else self.success
            return Phase.IDLE
        return Phase.RESET if self.success and self._past else Phase.IDLE

    def _between(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.phase is not Phase.RESET:
            return super()._between(observation)
        assert self._truth is not None
        truth = self._truth()
        self._judge(observation, truth)
        self.true_success |= truth
        self.reset_steps += 1
        if self.reset_steps >= self._past or self.steps + self.reset_steps >= self._limit:
            self.phase = Phase.IDLE
        self._notes = Notes(self._said("base", truth), self._last_seen(observation))
        return self._actions

    def _said(self, source: str, truth: bool | None) -> JsonObject:
        return super()._said(source if self._switched else "base", truth)
