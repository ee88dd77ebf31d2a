"""The policy that the control loop asks while a robot learns: it decides, judges itself, and goes back to a start."""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.deciders import Decider, Seen, Source, Verdict
from alohas2r.deployment.online.scripts import Way
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, JOINTS, PER_ARM, SIDES
from alohas2r.policies.online.recent import recent_actions
from alohas2r.policies.online.spec import HOLD, LearntSpec, OnlineSpec
from alohas2r.policies.online.tasks import Held, Reward, find_online_task
from alohas2r.policies.protocol import Notes

# How far ahead of a real arm's joints its targets may be led (rad): what holds an arm is not pushed harder.
LEASH_RAD = 0.1


def leashed(
    actions: np.ndarray,
    targets: np.ndarray,
    measured: np.ndarray,
    leash_rad: float,
    scale: float = ACTION_SCALE,
) -> np.ndarray:
    """Returns an arm's actions [7] that lead its targets not too far from its joints; the fingers press as they like.

    Args:
      actions: [7] in [-1, 1]. targets, measured: [7] of the arm. leash_rad: how far. scale: of actions.
    """
    low, high = ((measured + away - targets) / scale for away in (-leash_rad, leash_rad))
    low[-1], high[-1] = -1.0, 1.0
    return np.clip(np.clip(actions, low, high), -1, 1)


class Phase(enum.Enum):
    """What the arm does."""

    IDLE = "idle"
    ACT = "act"
    SETTLE = "settle"
    RESET = "reset"


class Acting(abc.ABC):
    """A policy for the control loop; `Policy` and `Noting`. What it learns is said by its subclasses.

    Args:
      spec: what learns. source: who acts.
      truth: whether the task is truly done; None where nobody knows.
      seconds: how long an episode lasts at most; None: as long as the task says.

    Attributes:
      phase: what the arm does. steps: control steps of acting so far; reset_steps: of the way back; decisions: made.
      success, true_success: whether the task was done, by the reward and by the truth.
    """

    def __init__(
        self,
        spec: LearntSpec,
        source: Source,
        reward: Held,
        truth: Callable[[], bool] | None = None,
        seconds: float | None = None,
    ) -> None:
        self._task, self._source, self._held, self._truth = spec.task, source, reward, truth
        self._limit = find_online_task(spec.task).steps
        if seconds is not None:
            self._limit = round(seconds / CONTROL_PERIOD_S)
        self._evaluation, self._waited = False, 0
        self.phase = Phase.IDLE
        self.steps = self.decisions = self.reset_steps = 0
        self.success = self.true_success = False
        self._joints = np.zeros(len(JOINTS))
        self._notes = Notes({}, {})

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; its steps say so in the log if it is an evaluation, of which nothing is learnt."""
        self._source.begin(seed, explores)
        self._held.reset()
        self._evaluation, self.phase = evaluation, Phase.ACT
        self._waited = 0
        self.steps = self.decisions = self.reset_steps = 0
        self.success = self.true_success = False

    def reset(self) -> None:
        """Says nothing of its last answer any more; `begin` starts an episode."""
        self._notes = Notes({}, {})

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1]."""
        self._notes = Notes({}, {})
        if self.phase is Phase.ACT:
            return self._act(observation)
        return self._between(observation)

    def notes(self) -> Notes:
        """Returns what the log keeps of the last answer."""
        return self._notes

    def _act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        truth = None if self._truth is None else self._truth()
        done = self._judge(observation, truth)
        late = self.steps - self._waited >= self._limit or self._source.gave_up or self._overdue()
        verdict = self._source.judge()
        marked: JsonObject = {}
        if verdict is not Verdict.NONE:
            done, late = verdict is Verdict.SUCCESS, verdict is not Verdict.WAIT
            marked = {"marked": verdict.value}
        said: JsonObject = {
            **self._said(self._source.source, truth),
            "reward": float(done),
            "terminated": done,
            "truncated": late and not done,
            **marked,
        }
        if done or late:
            self.success, self.true_success = done, bool(truth)
            self.phase = self._leave(observation)
            self._notes = Notes(said, self._last_seen(observation))
            return np.zeros(len(JOINTS))
        arrays: dict[str, np.ndarray] = {}
        if verdict is Verdict.WAIT:
            self._waited += 1
            self._joints = np.zeros(len(JOINTS))
            arrays = self._last_seen(observation)
        else:
            arrays = self._decide(observation)
        if "wanted" in arrays:
            said["decision"] = True
            self.decisions += 1
        self.steps += 1
        self._notes = Notes(said, arrays)
        return self._joints

    @abc.abstractmethod
    def _judge(self, observation: Mapping[str, np.ndarray], truth: bool | None) -> bool:
        """Takes a control step; returns whether the task is done, by the reward."""

    @abc.abstractmethod
    def _decide(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sets the joints' actions [14]; returns what the log keeps, "base" and "wanted" [A] where it decided anew."""

    def _overdue(self) -> bool:
        """Returns whether the episode has lasted for long enough before its limit."""
        return False

    def _last_seen(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what the log keeps of an observation of which nothing is decided."""
        return {}

    def _leave(self, observation: Mapping[str, np.ndarray]) -> Phase:
        """Returns what comes after an episode's last observation."""
        return Phase.IDLE

    def _between(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] between episodes: none."""
        return np.zeros(len(JOINTS))

    def _said(self, source: str, truth: bool | None) -> JsonObject:
        return {
            "task": self._task,
            "source": source,
            "version": self._source.version,
            "evaluation": self._evaluation,
            "decision": False,
            "reward": 0.0,
            "terminated": False,
            "truncated": False,
            "proxy": self._held.holds,
            "truth": truth,
        }


class Explorer(Acting):
    """One arm that is led in places of its gripper.

    Args:
      spec: what learns. decider: who decides.
      back: returns the way to a new start from what is felt [32], or None where the scene is put right otherwise.
      truth, seconds: as of `Acting`.
      leash_rad: how far from where its joints are the arm's targets may be led; the fingers press as they like.
    """

    def __init__(
        self,
        spec: OnlineSpec,
        decider: Decider,
        back: Callable[[np.ndarray], Way | None],
        truth: Callable[[], bool] | None = None,
        seconds: float | None = None,
        leash_rad: float = math.inf,
    ) -> None:
        self._reward, self._leash_rad = Reward(spec), leash_rad
        super().__init__(spec, decider, self._reward, truth, seconds)
        self._spec, self._decider, self._back = spec, decider, back
        self._way: Way | None = None
        self._past: list[np.ndarray] = []

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; see `Acting`."""
        super().begin(seed, explores, evaluation)
        self._past, self._way = [], None

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1], on the leash."""
        wanted = super().act(observation)
        if math.isinf(self._leash_rad):
            return wanted
        felt = np.asarray(observation["proprioception"])
        targets, measured = self._spec.targets(felt), self._spec.own(felt)[:PER_ARM]
        first = SIDES.index(self._spec.side) * PER_ARM
        own, held = slice(first, first + PER_ARM), wanted.copy()
        held[own] = leashed(held[own], targets, measured, self._leash_rad)
        return held

    def _judge(self, observation: Mapping[str, np.ndarray], truth: bool | None) -> bool:
        depth = observation[f"{self._spec.side}_depth"]
        return self._reward.update(np.asarray(observation["proprioception"]), depth)

    def _decide(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.steps % HOLD:
            return {}
        spec, felt = self._spec, np.asarray(observation["proprioception"])
        rgb, depth = (observation[f"{spec.side}_{kind}"] for kind in ("rgb", "depth"))
        recent = recent_actions(spec, [*self._past, felt])
        self._past.append(felt)
        base, wanted = self._decider.decide(Seen(rgb, depth, felt, recent))
        self._joints = spec.move(felt, wanted)
        return {"base": base, "wanted": wanted}

    def _leave(self, observation: Mapping[str, np.ndarray]) -> Phase:
        self._way = self._back(np.asarray(observation["proprioception"]))
        return Phase.IDLE if self._way is None else Phase.RESET

    def _between(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.phase is not Phase.RESET:
            return super()._between(observation)
        assert self._way is not None
        if self.reset_steps % HOLD == 0:
            felt = np.asarray(observation["proprioception"])
            action = self._way.act(felt)
            if action is None:
                self.phase = Phase.IDLE
                return np.zeros(len(JOINTS))
            self._joints = self._spec.move(felt, action)
        self.reset_steps += 1
        self._notes = Notes(self._said("reset", None), {})
        return self._joints
