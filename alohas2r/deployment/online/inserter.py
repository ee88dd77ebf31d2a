"""A student that inserts while a residual of its actions is learnt: what the control loop asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.deciders import Chooser
from alohas2r.deployment.online.explorer import Acting, Phase, leashed
from alohas2r.deployment.online.insert_way import InsertBack, arms_of
from alohas2r.embodiment import history
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM, SIDES
from alohas2r.policies.online import insertion, networks
from alohas2r.policies.online.classifier import InsertReward, Look
from alohas2r.policies.online.eyes import eyes_of
from alohas2r.policies.online.insertion import InsertSpec
from alohas2r.policies.online.tasks import Held, find_online_task
from alohas2r.policies.onnx.base import Base
from alohas2r.policies.protocol import Notes, select

# Control steps since the switch after which the robot goes back without an insertion: a student needs 20 to 40; what it
# pushes in vain for longer slips in the fingers.
_INSERTING = 80
LOOK_S = 5.0  # that an episode goes on for, where a person has to look whether the peg is in


class Unsaid(Held):
    """The reward where a person alone gives it, by keys: nothing else does."""

    def update(self, look: Look | None) -> bool:
        """Takes a control step; returns that it is not done."""
        return self.take(False)


class Inserter(Acting):
    """Acts as the student until it has switched to insertion, from then on with the residual.

    The log's source is "base" while the student acts alone, of which nothing is learnt. Evaluations end by the truth,
    whatever is the reward; what this said until then is their `success`. Where nobody knows the truth they end by the
    reward.

    Args:
      spec: what learns. chooser: who decides. base: the student.
      truth: whether the peg is in, which a simulation knows; None where nobody does.
      past_s: how long an episode goes on after success, as the student does, of which nothing is learnt.
      reward: what tells success; None: the truth.
      back: goes back to a start after an episode of acting; None: the scene is put right otherwise.
      leash_rad: how far from where their joints are the arms' targets may be led.
      slower: how many times as long as else everything may take, where arms are not as fast as the student wants.
      seconds: how long an episode lasts at most, a person's leading included; None: as long as the task says, and
        `LOOK_S` more where a person judges.
    """

    def __init__(
        self,
        spec: InsertSpec,
        chooser: Chooser,
        base: Base,
        truth: Callable[[], bool] | None,
        past_s: float = 0.0,
        reward: InsertReward | Unsaid | None = None,
        back: InsertBack | None = None,
        leash_rad: float = math.inf,
        slower: float = 1.0,
        seconds: float | None = None,
    ) -> None:
        looks_s = LOOK_S if isinstance(reward, Unsaid) else 0.0
        most = (
            slower * find_online_task(spec.task).seconds + looks_s if seconds is None else seconds
        )
        super().__init__(spec, chooser, reward or Held(spec.task), truth, most)
        self._patience = round(slower * _INSERTING + looks_s / CONTROL_PERIOD_S)
        self._spec, self._reward, self._back = spec, reward, back
        self._leash_rad, self._arms = leash_rad, arms_of(spec)
        self._chooser, self._base = chooser, base
        self._eyes = [eyes_of(base.weights, side, base.spec.network) for side in SIDES]
        self._memory = history.init(base.spec.history, base.spec.vector_size, np)
        self._actions = np.zeros(base.policy.action_size)
        self._features = np.zeros(spec.features, np.float32)
        self._switched = False
        self._past, self._settled = round(past_s / CONTROL_PERIOD_S), 0
        self._since = 0  # control steps since the switch that no person led
        self._rewarded = False

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; see `Acting`."""
        super().begin(seed, explores, evaluation)
        self._base.policy.reset()
        self._memory = history.init(self._base.spec.history, self._base.spec.vector_size, np)
        self._rewarded, self._settled, self._since = False, 0, 0
        if self._back is not None:
            self._back.begin()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1], on the leash."""
        wanted = super().act(observation)
        if math.isinf(self._leash_rad):
            return wanted
        felt, scale = np.asarray(observation["proprioception"]), self._spec.student.action.scale
        held = [
            leashed(own, arm.targets(felt), arm.own(felt)[:PER_ARM], self._leash_rad, scale)
            for own, arm in zip(np.split(wanted, len(SIDES)), self._arms, strict=True)
        ]
        return np.concatenate(held)

    def _judge(self, observation: Mapping[str, np.ndarray], truth: bool | None) -> bool:
        spec, felt = self._base.spec, np.asarray(observation["proprioception"], np.float32)
        self._switched = bool(observation["switched"])
        self._since += self._switched and self._chooser.source != "human"
        if self._back is not None:
            self._back.note(felt, self._switched)
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
        return bool(truth) if self._evaluation and truth is not None else done

    def _decide(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not self._switched:
            self._joints = self._actions
            return {}
        felt = np.asarray(observation["proprioception"])
        base, wanted = self._chooser.choose(self._features, felt)
        self._joints = insertion.with_joints(self._actions, wanted)
        return {"base": base, "wanted": wanted, **self._last_seen(observation)}

    def _last_seen(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"features": self._features} if self._switched else {}

    def _overdue(self) -> bool:
        return self._back is not None and not self._evaluation and self._since > self._patience

    def _leave(self, observation: Mapping[str, np.ndarray]) -> Phase:
        if self._evaluation:
            if self._reward is not None and self._truth is not None:
                self.success = self._rewarded
            return Phase.IDLE
        waits = self.success and self._past and self._truth is not None
        return Phase.SETTLE if waits else self._going_back()

    def _going_back(self) -> Phase:
        if self._back is None:
            return Phase.IDLE
        self._back.start(self.success)
        return Phase.RESET

    def _between(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.phase is Phase.SETTLE:
            return self._settle(observation)
        if self.phase is not Phase.RESET:
            return super()._between(observation)
        assert self._back is not None
        actions = self._back.act(np.asarray(observation["proprioception"]))
        if actions is None:
            self.phase = Phase.IDLE
            return super()._between(observation)
        self.reset_steps += 1
        self._notes = Notes(super()._said("reset", None), {})
        return actions

    def _settle(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        assert self._truth is not None
        truth = self._truth()
        self._judge(observation, truth)
        self.true_success |= truth
        self._settled += 1
        self.reset_steps += 1
        if self._settled >= self._past or self.steps + self._settled >= self._limit:
            self.phase = self._going_back()
        self._notes = Notes(self._said("base", truth), self._last_seen(observation))
        return self._actions

    def _said(self, source: str, truth: bool | None) -> JsonObject:
        return super()._said(source if self._switched else "base", truth)
