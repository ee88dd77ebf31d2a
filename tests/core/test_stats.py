from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as reference

from alohas2r.core import stats

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_agrees_with_scipy(count: tuple[int, int]) -> None:
    successes, trials = count
    interval = reference.binomtest(successes, trials).proportion_ci(method="wilson")
    assert stats.wilson(successes, trials) == pytest.approx(
        (interval.low, interval.high), abs=1e-12
    )


@given(counts)
def test_wilson_holds_the_rate_and_mirrors(count: tuple[int, int]) -> None:
    successes, trials = count
    low, high = stats.wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert stats.wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.97])
def test_wilson_holds_the_truth_in_19_of_20_cases(probability: float) -> None:
    draws = np.random.default_rng(0).binomial(500, probability, size=4000)
    intervals = np.array([stats.wilson(int(draw), 500) for draw in draws])
    held = ((intervals[:, 0] <= probability) & (probability <= intervals[:, 1])).mean()
    assert 0.93 <= held <= 0.97


def test_rate_without_trials_is_none_and_json() -> None:
    assert stats.rate(0, 0) == {"rate": None, "low": 0.0, "high": 1.0}
    assert stats.rate(3, 4)["rate"] == 0.75
    json.dumps(stats.rate(3, 4), allow_nan=False)
    for successes, trials in ((5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="successes"):
            stats.rate(successes, trials)


trials = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=40)


@given(trials)
def test_kaplan_meier_median_agrees_with_scipy(data: list[tuple[int, bool]]) -> None:
    times = np.array([time for time, _ in data], float)
    observed = np.array([seen for _, seen in data])
    assume(observed.any())
    sample = reference.CensoredData(uncensored=times[observed], right=times[~observed])
    curve = reference.ecdf(sample).sf
    reached = curve.quantiles[curve.probabilities <= 0.5 + 1e-12]
    expected = float(reached[0]) if reached.size else None
    assert stats.kaplan_meier_median(times, observed) == expected


def test_kaplan_meier_median_by_hand() -> None:
    assert stats.kaplan_meier_median([1, 2, 3, 4], [True] * 4) == 2
    assert stats.kaplan_meier_median([1, 2, 3, 4], [False] * 4) is None
    # Of four, one leaves unseen at 1: the events at 2 and 3 take the curve to 2/3, then 1/3.
    assert stats.kaplan_meier_median([1, 2, 3, 4], [False, True, True, True]) == 3
    assert stats.kaplan_meier_median([], []) is None
    with pytest.raises(ValueError, match="must both be"):
        stats.kaplan_meier_median([1.0], [True, False])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300))
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found, mirrored = stats.mcnemar(a, b), stats.mcnemar(b, a)
    assert (found["only_a"], found["only_b"]) == (mirrored["only_b"], mirrored["only_a"])
    assert found["p"] == mirrored["p"]
    total = found["only_a"] + found["only_b"]
    expected = reference.binomtest(found["only_a"], total).pvalue if total else 1.0
    assert found["p"] == pytest.approx(expected)


def test_mcnemar_of_many_episodes_and_of_unequal_lengths() -> None:
    a, b = np.arange(4000) < 3000, np.arange(4000) >= 3000
    assert 0 < stats.mcnemar(a, b)["p"] < 1e-100
    with pytest.raises(ValueError, match="must both be"):
        stats.mcnemar([True], [True, False])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_the_interquartile_mean_agrees_with_scipy_and_stays_in_the_middle(
    scores: list[float],
) -> None:
    iqm = stats.interquartile_mean(scores)
    assert iqm == pytest.approx(reference.trim_mean(scores, 0.25))
    assert min(scores) - 1e-9 <= iqm <= max(scores) + 1e-9
    assert stats.interquartile_mean([0.0, 1.0, 2.0, 1e9]) == 1.5


def test_its_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(150, 2, 16))
    held = 0
    for sample in draws:
        measured = stats.interquartile(list(sample), resamples=200)
        assert measured["low"] is not None
        assert measured["high"] is not None
        assert measured["low"] <= measured["iqm"] <= measured["high"]
        held += measured["low"] <= 0 <= measured["high"]
    assert 0.88 <= held / 150 <= 0.98


def test_strata_are_resampled_within_themselves() -> None:
    apart = [[0.0] * 4, [10.0] * 4]  # whatever is drawn within a group is the same
    assert stats.interquartile(apart) == {"iqm": 5.0, "low": 5.0, "high": 5.0}
    pooled = stats.interquartile([[0.0] * 4 + [10.0] * 4])
    assert pooled["low"] == 0.0
    assert pooled["high"] == 10.0


def test_a_single_score_has_no_interval_and_none_no_mean() -> None:
    assert stats.interquartile([[0.5]]) == {"iqm": 0.5, "low": None, "high": None}
    for wrong in ([], [[]], [[float("nan"), 1.0]]):
        with pytest.raises(ValueError, match="finite"):
            stats.interquartile(wrong)
