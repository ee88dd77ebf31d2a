"""Statistics of evaluations: rates with intervals, times with some unseen, paired comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

Z_95 = 1.959963984540054  # the normal quantile of 0.975


class Rate(TypedDict):
    """A rate and its 95% interval; without any trial the rate is None."""

    rate: float | None
    low: float
    high: float


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95% Wilson score interval (low, high) of a rate; (0, 1) without any trial.

    Raises:
      ValueError: not 0 <= successes <= trials.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
      J. Am. Stat. Assoc. 22 (1927), without continuity correction.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, Z_95 * Z_95
    centre = rate + square / (2 * trials)
    spread = Z_95 * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def rate(successes: int, trials: int) -> Rate:
    """Returns a rate with its 95% Wilson interval, as results report it.

    Raises:
      ValueError: not 0 <= successes <= trials.
    """
    low, high = wilson(successes, trials)
    return {"rate": successes / trials if trials else None, "low": low, "high": high}


def kaplan_meier_median(times: Any, observed: Any) -> float | None:
    """Returns the median time to an event that some trials ended without.

    Args:
      times: [N] time of the event, or the time until which none was seen.
      observed: [N] whether the event was seen.

    Returns:
      The earliest time by which half of the trials are estimated to have had the event; None if
      the estimate never gets that far.

    Raises:
      ValueError: the lengths differ.

    Source: E. L. Kaplan and P. Meier, "Nonparametric estimation from incomplete observations",
      J. Am. Stat. Assoc. 53 (1958).
    """
    times, observed = np.asarray(times, float), np.asarray(observed, bool)
    if times.shape != observed.shape or times.ndim != 1:
        raise ValueError(f"times {times.shape} and observed {observed.shape} must both be [N]")
    moments = np.unique(times[observed])
    at_risk = (times[None, :] >= moments[:, None]).sum(axis=1)
    events = ((times[None, :] == moments[:, None]) & observed[None, :]).sum(axis=1)
    without = np.cumprod(1 - events / at_risk)  # share of trials still without the event
    reached = np.flatnonzero(without <= 0.5 + 1e-12)
    return float(moments[reached[0]]) if reached.size else None


class Paired(TypedDict):
    """Two results on the same episodes.

    only_a, only_b: episodes that only one of the two solved; p: probability of a difference at
    least as large if neither were better (exact, two-sided).
    """

    only_a: int
    only_b: int
    p: float


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> Paired:
    """Compares two policies on the same episodes: McNemar's exact test.

    Args:
      a: [N] whether the first succeeded.
      b: [N] whether the second succeeded, in the same episodes.

    Raises:
      ValueError: the lengths differ.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
      proportions or percentages", Psychometrika 12 (1947); exact: binomial with p = 1/2.
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"a {first.shape} and b {second.shape} must both be [N]")
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    total = only_a + only_b
    # Whole numbers throughout, so that no tail is too small for a float.
    tail = sum(math.comb(total, count) for count in range(min(only_a, only_b) + 1))
    return {"only_a": only_a, "only_b": only_b, "p": min(1.0, 2 * tail / 2**total)}


def quantiles(values: np.ndarray) -> dict[str, float | None]:
    """Returns median, 90% and 99% quantile of what is finite in `values` [N]; None of nothing."""
    values = values[np.isfinite(values)]
    if not values.size:
        return {"median": None, "p90": None, "p99": None}
    return {
        name: round(float(np.quantile(values, share)), 3)
        for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
    }


def rate_of(flags: np.ndarray) -> Rate:
    """Returns the rate of `flags` [N] bool with its interval."""
    return rate(int(flags.sum()), len(flags))


class Interquartile(TypedDict):
    """An interquartile mean and its 95% interval, which is None where a group has a single score."""

    iqm: float
    low: float | None
    high: float | None


def interquartile_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Returns the mean of the middle half of `scores` [n]; of fewer than four, the mean.

    Raises:
      ValueError: there is no score, or one is not finite.
    """
    from scipy.stats import trim_mean

    values = np.asarray(scores, float)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("an interquartile mean needs scores, all of them finite")
    return float(trim_mean(values, 0.25))


def interquartile(
    groups: Sequence[Sequence[float] | np.ndarray], seed: int = 0, resamples: int = 5000
) -> Interquartile:
    """Returns the interquartile mean of all scores, with a stratified bootstrap interval (percentiles).

    Args:
      groups: scores of each group [n]; seeds of one configuration, say. Resampling keeps each group's size.
      seed: of the resampling. resamples: how many, 2 at least.

    Raises:
      ValueError: there is no score, or one is not finite.

    Source: R. Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (2021).
    """
    from scipy.stats import bootstrap, trim_mean

    scores = [np.asarray(group, float) for group in groups if len(group)]
    iqm = interquartile_mean(np.concatenate(scores) if scores else [])
    if min(map(len, scores)) < 2:
        return {"iqm": iqm, "low": None, "high": None}

    def middle(*samples: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    interval = bootstrap(
        scores,
        middle,
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"iqm": iqm, "low": float(interval.low), "high": float(interval.high)}
