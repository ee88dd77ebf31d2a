"""What a run reports, step by step and at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from alohas2r.robots.base import Frame
from alohas2r.safety.monitor import Finding
from alohas2r.safety.reactions import Mode


class Check(NamedTuple):
    """One line of the pre-flight check."""

    name: str
    passed: bool
    text: str


class Report(NamedTuple):
    """What a control step did, for a live display.

    `laps` has the seconds that "read", "look", "infer", "guard" and "write" took; `acting` says
    whether the policy was in charge, rather than the approach or the retreat.
    """

    episode: int
    step: int
    mode: Mode
    switched: bool
    duration_s: float
    laps: Mapping[str, float]
    acting: bool
    interventions: tuple[str, ...]
    findings: tuple[Finding, ...]
    frames: Mapping[str, Frame]


class Hooks(Protocol):
    """What surrounds the episodes of a simulated or emulated run."""

    def begin(self, episode: int) -> np.ndarray:
        """Places the world for an episode and returns the targets [14] that hold it there."""
        ...

    def over(self) -> bool:
        """Returns, after each control step, whether the episode is over."""
        ...


@runtime_checkable
class Ending(Protocol):
    """Hooks that know how many episodes there are."""

    def ended(self) -> bool:
        """Returns, once before each episode, whether there is no other."""
        ...


class Attendant(Protocol):
    """Who begins and ends the episodes of arms that stay where they are: on real ones nothing is placed."""

    def start(self) -> None:
        """Begins an episode: the arms stand in the start pose, or where they went back to by themselves."""
        ...

    def over(self) -> bool:
        """Returns, after each control step, whether the episode is over."""
        ...

    def ended(self) -> bool:
        """Returns, once after each episode, whether it was the last."""
        ...

    def alone(self) -> bool:
        """Returns, after `ended`, whether the next episode begins where the arms are, and nobody puts things back."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      mode: what the arms were doing at the end.
      episodes: how many were run to their end.
      aborted: simulated episodes that a fault ended; the next one began afresh.
      steps: control steps under the policy.
      interventions, findings: how often each came up.
      reasons: why the mode changed, in order.
    """

    mode: Mode
    episodes: int
    aborted: int
    steps: int
    interventions: dict[str, int]
    findings: dict[str, int]
    reasons: list[tuple[str, str]]
