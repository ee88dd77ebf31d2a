from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alohas2r.embodiment import history
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ConfigError

rates = st.lists(st.floats(0.01, 1.0), max_size=4).map(tuple)


def direct(rate: float, observations: np.ndarray) -> np.ndarray:
    """The average as one weighted sum over all observations."""
    weights = np.zeros(len(observations))
    for index in range(len(observations)):
        share = max(rate, 1 / (index + 1))
        weights *= 1 - share
        weights[index] = share
    assert weights.sum() == pytest.approx(1)
    return weights @ observations


@given(rates, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_averages_are_weighted_sums_of_the_past(
    rates: tuple[float, ...], steps: int, seed: int
) -> None:
    config = HistoryConfig(rates)
    observations = np.random.default_rng(seed).normal(size=(steps, 3)).astype(np.float32)
    state = history.init(config, 3, np)
    features = np.zeros(0)
    for observation in observations:
        state, features = history.update(config, state, observation, np)
    expected = [observations[-1], *(direct(rate, observations) for rate in rates)]
    assert features.shape == (config.size(3),)
    np.testing.assert_allclose(features, np.concatenate(expected), atol=1e-5)
    assert state.seen == steps


def test_first_steps_are_plain_means_and_a_constant_stays_itself() -> None:
    config = HistoryConfig((0.05,))
    values = np.array([[1.0], [2.0], [6.0]], np.float32)
    state = history.init(config, 1, np)
    means = []
    for value in values:
        state, features = history.update(config, state, value, np)
        means.append(float(features[1]))
    assert means == pytest.approx([1, 1.5, 3])
    state = history.init(config, 1, np)
    for _ in range(100):
        state, features = history.update(config, state, np.full(1, 7.0, np.float32), np)
        np.testing.assert_allclose(features, 7, rtol=1e-6)


def test_numpy_and_jax_agree_also_in_batches() -> None:
    config = HistoryConfig()
    draws = np.random.default_rng(0).normal(size=(30, 2, 5)).astype(np.float32)
    one = [history.init(config, 5, np) for _ in range(2)]
    many = history.init(config, 5, jnp, (2,))
    for observation in draws:
        many, batched = history.update(config, many, jnp.asarray(observation), jnp)
        for row in range(2):
            one[row], single = history.update(config, one[row], observation[row], np)
            np.testing.assert_allclose(batched[row], single, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(many.seen, [30, 30])


def test_averages_are_less_noisy_the_slower_they_are() -> None:
    config = HistoryConfig((0.5, 0.1, 0.02))
    state = history.init(config, 4000, np)
    features = np.zeros(0)
    for observation in np.random.default_rng(1).normal(size=(100, 4000)).astype(np.float32):
        state, features = history.update(config, state, observation, np)
    spread = features.reshape(4, -1).std(axis=1)
    assert all(second < first for first, second in itertools.pairwise(spread))
    # An average of rate r over independent noise has variance r / (2 - r).
    assert spread[1] == pytest.approx(np.sqrt(0.5 / 1.5), rel=0.05)


@pytest.mark.parametrize("wrong", [(0.0,), (1.5,), (0.3, -0.1)])
def test_rates_out_of_range(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rates"):
        HistoryConfig(wrong)
