"""Which configurations are stopped early: those behind the others at the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEAST_OTHERS = 3  # fewer say nothing about where the worst begin
# Evaluations of a run on its way: step and value, in this order.
Curve = Sequence[tuple[int, float]]


class Verdict(NamedTuple):
    """Why a configuration is stopped: its value at a step, and the share of the others that are better there."""

    step: int
    value: float
    better: float


def behind(
    curves: Mapping[int, Sequence[Curve]], share: float, maximize: bool
) -> dict[int, Verdict]:
    """Returns the configurations whose newest evaluation is among the worst at that step.

    A configuration's value at a step is the mean over its runs that have got there of the best evaluation so far. It
    is stopped if more than 1 - `share` of all other configurations are better at this step, of which LEAST_OTHERS
    must have got there. With a share of one half this is the median rule; of equals none is stopped.

    Args:
      curves: configuration -> its runs.
      share: of configurations that are the worst.
      maximize: whether more is better.

    Source: D. Golovin et al., "Google Vizier: a service for black-box optimization" (2017), section 3.2.
    """
    verdicts = {}
    for number, runs in curves.items():
        step = max((run[-1][0] for run in runs if run), default=None)
        value = None if step is None else value_at(runs, step, maximize)
        if step is None or value is None:
            continue
        others = [value_at(other, step, maximize) for key, other in curves.items() if key != number]
        known = np.array([other for other in others if other is not None])
        if len(known) < LEAST_OTHERS:
            continue
        better = float(np.mean(known > value if maximize else known < value))
        if better > 1 - share:
            verdicts[number] = Verdict(step, value, better)
    return verdicts


def value_at(runs: Sequence[Curve], step: int, maximize: bool) -> float | None:
    """Returns a configuration's value at a step; None if none of its runs has got there."""
    best = [
        (max if maximize else min)(values)
        for run in runs
        if run and run[-1][0] >= step and (values := [value for at, value in run if at <= step])
    ]
    return float(np.mean(best)) if best else None
