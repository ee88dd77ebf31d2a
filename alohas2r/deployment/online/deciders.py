"""Who acts while a robot learns: published weights, a rule, or nobody but a base."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from alohas2r.policies.online import networks
from alohas2r.policies.online.encoder import look
from alohas2r.policies.online.published import Published
from alohas2r.policies.online.spec import LearntSpec, OnlineSpec


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


class Source(Protocol):
    """Who acts."""

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

    def judge(self) -> Verdict:
        """Returns, once in each control step of acting, what a person says of the episode."""
        ...


class Decider(Source, Protocol):
    """Who decides by what is seen."""

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Returns the base's action [A], zero where there is none, and the wanted one [A]."""
        ...


class Learned:
    """Decides by published weights, and explores where it is told to.

    Args:
      spec: the policy.
      steady: how much of a decision's exploration is that of the one before it; see `OnlineConfig`.
    """

    source = "policy"
    gave_up = False

    def __init__(self, spec: LearntSpec, steady: float = 0.0) -> None:
        self._spec, self._steady = spec, steady
        self._weights: dict[str, np.ndarray] = {}
        self._draw: np.random.Generator | None = None
        self._noise: np.ndarray | None = None  # of the last decision of an episode that explores
        self.version = -1

    def use(self, published: Published) -> None:
        """Takes another version of the weights."""
        self._weights, self.version = published.weights, published.version

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Starts an episode."""
        self._draw = np.random.default_rng(seed) if explores else None
        self._noise = None

    def judge(self) -> Verdict:
        """Nobody is there."""
        return Verdict.NONE

    def choose(self, features: np.ndarray, felt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the base's action [A], zero where there is none, and the wanted one [A]; see `Chooser`."""
        if self._draw is not None:
            fresh = self._draw.normal(size=self._spec.outputs)
            earlier, steady = self._noise, self._steady
            # A first-order autoregression, whose spread stays that of the normal distribution.
            self._noise = (
                fresh if earlier is None else steady * earlier + math.sqrt(1 - steady**2) * fresh
            )
        noise = None if self._noise is None else self._noise.astype(np.float32)
        base, wanted = networks.decide(self._spec, self._weights, features, noise)
        return np.asarray(base, np.float32), np.asarray(wanted, np.float32)


class Looking(Learned):
    """Looks by itself: `Decider`.

    Args:
      spec: the policy. eyes: the student's, "eyes/..."; eyes of its own are published with the other weights.
      steady: see `Learned`.
    """

    def __init__(
        self, spec: OnlineSpec, eyes: Mapping[str, np.ndarray], steady: float = 0.0
    ) -> None:
        super().__init__(spec, steady)
        self._own, self._eyes = spec, eyes

    def use(self, published: Published) -> None:
        """Takes another version of the weights."""
        super().use(published._replace(weights={**self._eyes, **published.weights}))

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Looks and decides."""
        pictures = look(self._own, self._weights, seen.rgb[None], seen.depth[None])[0]
        felt = (self._own.own(seen.proprioception), seen.recent.ravel())
        features = np.concatenate([pictures, *felt]).astype(np.float32)
        return self.choose(features, seen.proprioception)


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


class Chooser(Source, Protocol):
    """Who decides by features."""

    def choose(self, features: np.ndarray, felt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the base's action [A] and the wanted one [A] for features [F], and what both arms feel [32]."""
        ...


class Alone:
    """Lets a base that is given act alone, as a demonstration: `Chooser`.

    Args:
      spec: what would learn.
    """

    source = "demo"
    version = -1
    gave_up = False

    def __init__(self, spec: LearntSpec) -> None:
        self._actions = spec.actions

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Needs nothing."""

    def judge(self) -> Verdict:
        """Leaves it to the reward."""
        return Verdict.NONE

    def choose(self, features: np.ndarray, felt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the base's action twice."""
        base = features[-self._actions :]
        return base, base
