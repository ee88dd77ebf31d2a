"""What delays a policy was trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alohas2r.embodiment.control import DELAY_WEIGHTS
from alohas2r.embodiment.joints import CONTROL_PERIOD_S


class Delays(NamedTuple):
    """Delays beyond those of the simulated arms and cameras (s).

    Attributes:
      command_s: from an observation until the arms begin to do what follows from it.
      picture_s: how old what a picture shows is when the policy sees it.
    """

    command_s: float
    picture_s: float


def trained_delays(description: Mapping[str, object]) -> Delays:
    """Returns the longest delays that a policy met in training; those of the published report if it does not say.

    Args:
      description: of the exported policy.
    """
    config = _inner(_inner(description, "trained"), "config")
    control, senses = _inner(config, "control"), _inner(config, "senses")
    extra = control.get("extra_delay_steps", 0)
    command = _longest(control.get("delay_weights")) + (extra if isinstance(extra, int) else 0)
    # What one robot has over another comes on top of what single steps have.
    robots = _inner(config, "variation")
    return Delays(
        command * CONTROL_PERIOD_S + _last(robots.get("action_delay_s")),
        _longest(senses.get("delay_weights")) * CONTROL_PERIOD_S
        + _last(robots.get("view_delay_s")),
    )


def delays_from(said: object) -> Delays:
    """Returns what a policy server says about delays; those of the published report if it says nothing."""
    standard = trained_delays({})
    if not isinstance(said, Mapping):
        return standard
    one, other = said.get("command_s"), said.get("picture_s")
    return Delays(
        float(one) if isinstance(one, int | float) else standard.command_s,
        float(other) if isinstance(other, int | float) else standard.picture_s,
    )


def _inner(outer: Mapping[str, object], name: str) -> Mapping[str, object]:
    inner = outer.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _last(limits: object) -> float:
    """Returns the upper end of a range; 0 if there is none."""
    if isinstance(limits, Sequence) and limits and isinstance(limits[-1], int | float):
        return float(limits[-1])
    return 0.0


def _longest(weights: object) -> int:
    """Returns the largest number of steps that has any probability."""
    known = weights if isinstance(weights, Sequence) and weights else DELAY_WEIGHTS
    return max((steps for steps, weight in enumerate(known) if weight > 0), default=0)
