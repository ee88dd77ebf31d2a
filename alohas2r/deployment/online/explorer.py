"""The policy that the control loop asks while a robot learns: it decides, judges itself, and goes back to a start."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.online.scripts import Way
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, JOINTS
from alohas2r.policies.online import networks
from alohas2r.policies.online.published import Published
from alohas2r.policies.online.recent import recent_actions
from alohas2r.policies.online.spec import HOLD, OnlineSpec
from alohas2r.policies.online.tasks import Reward, find_online_task
from alohas2r.policies.protocol import Notes


class Seen(NamedTuple):
    """What a decision is made of: the arm's pictures, what both arms feel [32], the last executed actions [3, A]."""

    rgb: np.ndarray
    depth: np.ndarray
    proprioception: np.ndarray
    recent: np.ndarray


class Verdict(enum.Enum):
    """What a person says of an episode; while one makes up their mind, the arm stands."""

    NONE = "nothing"
    WAIT = "wait"
    SUCCESS = "success"
    FAILURE = "failure"


class Decider(Protocol):
    """Who decides."""

    @property
    def source(self) -> str:
        """Who it is, as logs name it: "policy", "demo", "human", "coach"."""
        ...

    @property
    def version(self) -> int:
        """Of its weights; -1 where it has none."""
        ...

    @property
    def gave_up(self) -> bool:
        """Whether it gives the episode up."""
        ...

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Starts an episode."""
        ...

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Returns the base's action [A], zero where there is none, and the wanted one [A]."""
        ...

    def judge(self) -> Verdict:
        """Returns, once in each control step of acting, what a person says of the episode."""
        ...


class Learned:
    """Decides by published weights, and explores where it is told to.

    Args:
      spec: the policy. eyes: its frozen weights, "eyes/...".
    """

    source = "policy"
    gave_up = False

    def __init__(self, spec: OnlineSpec, eyes: Mapping[str, np.ndarray]) -> None:
        self._spec, self._eyes = spec, eyes
        self._weights: dict[str, np.ndarray] = {}
        self._draw: np.random.Generator | None = None
        self.version = -1

    def use(self, published: Published) -> None:
        """Takes another version of the weights."""
        self._weights, self.version = published.weights, published.version

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Starts an episode."""
        self._draw = np.random.default_rng(seed) if explores else None

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Looks and decides."""
        spec = self._spec
        pictures = networks.look(spec, self._eyes, seen.rgb[None], seen.depth[None])[0]
        felt = (spec.own(seen.proprioception), seen.recent.ravel())
        features = np.concatenate([pictures, *felt]).astype(np.float32)
        noise = None
        if self._draw is not None:
            noise = self._draw.normal(size=spec.actions).astype(np.float32)
        base, wanted = networks.decide(spec, self._weights, features, noise)
        return np.asarray(base, np.float32), np.asarray(wanted, np.float32)

    def judge(self) -> Verdict:
        """Nobody is there."""
        return Verdict.NONE


class Phase(enum.Enum):
    """What the arm does."""

    IDLE = "idle"
    ACT = "act"
    RESET = "reset"


class Explorer:
    """A policy for the control loop; `Policy` and `Noting`.

    Args:
      spec: what learns. decider: who decides.
      back: returns the way to a new start from what is felt [32], or None where the scene is put right otherwise.
      truth: whether the task is truly done; None where nobody knows.
      seconds: how long an episode lasts at most; None: as long as the task says.

    Attributes:
      phase: what the arm does. steps: control steps of acting so far; reset_steps: of the way back; decisions: made.
      success, true_success: whether the task was done, by the reward and by the truth.
    """

    def __init__(
        self,
        spec: OnlineSpec,
        decider: Decider,
        back: Callable[[np.ndarray], Way | None],
        truth: Callable[[], bool] | None = None,
        seconds: float | None = None,
    ) -> None:
        self.spec, self.decider = spec, decider
        self._back, self._truth = back, truth
        self._reward = Reward(spec)
        self._limit = find_online_task(spec.task).steps
        if seconds is not None:
            self._limit = round(seconds / CONTROL_PERIOD_S)
        self._evaluation = False
        self.phase = Phase.IDLE
        self.steps = self.decisions = self.reset_steps = 0
        self.success = self.true_success = False
        self._way: Way | None = None
        self._past: list[np.ndarray] = []
        self._joints = np.zeros(len(JOINTS))
        self._notes = Notes({}, {})

    def begin(self, seed: Sequence[int], explores: bool, evaluation: bool) -> None:
        """Starts an episode; its steps say so in the log if it is an evaluation, of which nothing is learnt."""
        self.decider.begin(seed, explores)
        self._reward.reset()
        self._evaluation, self.phase = evaluation, Phase.ACT
        self.steps = self.decisions = self.reset_steps = 0
        self.success = self.true_success = False
        self._past, self._way = [], None

    def reset(self) -> None:
        """Needs nothing: `begin` starts an episode."""

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1]."""
        self._notes = Notes({}, {})
        felt = np.asarray(observation["proprioception"])
        if self.phase is Phase.ACT:
            return self._act(observation, felt)
        if self.phase is Phase.RESET:
            return self._go_back(felt)
        return np.zeros(len(JOINTS))

    def notes(self) -> Notes:
        """Returns what the log keeps of the last answer."""
        return self._notes

    def _act(self, observation: Mapping[str, np.ndarray], felt: np.ndarray) -> np.ndarray:
        spec = self.spec
        rgb, depth = (observation[f"{spec.side}_{kind}"] for kind in ("rgb", "depth"))
        done = self._reward.update(felt, depth)
        late = self.steps >= self._limit or self.decider.gave_up
        verdict = self.decider.judge()
        if verdict is not Verdict.NONE:
            done, late = verdict is Verdict.SUCCESS, verdict is not Verdict.WAIT
        truth = None if self._truth is None else self._truth()
        said: JsonObject = {
            **self._said(self.decider.source, truth),
            "reward": float(done),
            "terminated": done,
            "truncated": late and not done,
        }
        if done or late:
            self.success, self.true_success = done, bool(truth)
            self._way = self._back(felt)
            self.phase = Phase.IDLE if self._way is None else Phase.RESET
            self._notes = Notes(said, {})
            return np.zeros(len(JOINTS))
        arrays: dict[str, np.ndarray] = {}
        if verdict is Verdict.WAIT:
            self._joints = np.zeros(len(JOINTS))
        elif self.steps % HOLD == 0:
            recent = recent_actions(spec, [*self._past, felt])
            self._past.append(felt)
            base, wanted = self.decider.decide(Seen(rgb, depth, felt, recent))
            self._joints = spec.move(felt, wanted)
            arrays = {"base": base, "wanted": wanted}
            said["decision"] = True
            self.decisions += 1
        self.steps += 1
        self._notes = Notes(said, arrays)
        return self._joints

    def _go_back(self, felt: np.ndarray) -> np.ndarray:
        assert self._way is not None
        if self.reset_steps % HOLD == 0:
            action = self._way.act(felt)
            if action is None:
                self.phase = Phase.IDLE
                return np.zeros(len(JOINTS))
            self._joints = self.spec.move(felt, action)
        self.reset_steps += 1
        self._notes = Notes(self._said("reset", None), {})
        return self._joints

    def _said(self, source: str, truth: bool | None) -> JsonObject:
        return {
            "task": self.spec.task,
            "source": source,
            "version": self.decider.version,
            "evaluation": self._evaluation,
            "decision": False,
            "reward": 0.0,
            "terminated": False,
            "truncated": False,
            "proxy": self._reward.holds,
            "truth": truth,
        }


class Rule(Protocol):
    """A rule that acts by what is felt.

    Attributes:
      gave_up: whether it gives the episode up.
    """

    gave_up: bool

    def begin(self, seed: Sequence[int]) -> None:
        """Starts an episode."""
        ...

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [A] for what is felt [32]."""
        ...


class Scripted:
    """Decides by a rule: `Decider`.

    Args:
      expert: the rule. source: as logs name it.
    """

    version = -1

    def __init__(self, expert: Rule, source: str = "demo") -> None:
        self._expert, self.source = expert, source

    @property
    def gave_up(self) -> bool:
        """Whether the rule gives the episode up."""
        return self._expert.gave_up

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Starts an episode."""
        self._expert.begin(seed)

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Returns no base, and what the rule wants."""
        action = self._expert.act(seen.proprioception)
        return np.zeros_like(action), action

    def judge(self) -> Verdict:
        """Leaves it to the reward."""
        return Verdict.NONE
