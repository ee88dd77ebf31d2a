"""What a policy remembers of past observations: a bank of exponential moving averages.

The observation noise is independent from step to step, so averages over a few and over many steps say more
than the newest value; the network learns how far to trust each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """Moving averages beside the newest observation.

    Attributes:
      rates: weight of the newest observation in each average; () for none. The first steps of an episode
        use the plain mean, so that an average is never biased towards its start.
    """

    rates: tuple[float, ...] = (0.35, 0.1, 0.03)

    def __post_init__(self) -> None:
        check(
            all(0 < rate <= 1 for rate in self.rates), f"rates must be in (0, 1], not {self.rates}"
        )

    def size(self, observation: int) -> int:
        """Number of features for an observation of that size."""
        return observation * (1 + len(self.rates))


class HistoryState(NamedTuple):
    """Averages after `seen` observations, any leading batch axes."""

    averages: Array  # [..., rates, n]
    seen: Array  # [...] int32


def init(config: HistoryConfig, size: int, xp: Array, batch: tuple[int, ...] = ()) -> HistoryState:
    """Returns the state after a reset; `xp` is numpy or jax.numpy."""
    return HistoryState(
        xp.zeros((*batch, len(config.rates), size), xp.float32), xp.zeros(batch, xp.int32)
    )


@functools.cache
def _rates(rates: tuple[float, ...]) -> np.ndarray:
    return np.array(rates, np.float32)


@functools.lru_cache(4096)
def _rates_at(rates: tuple[float, ...], seen: int) -> np.ndarray:
    """Returns the rates [R, 1] after so many observations: the first ones count equally."""
    return np.maximum(_rates(rates), np.float32(1 / (seen + 1)))[:, None]


def update(
    config: HistoryConfig, state: HistoryState, observation: Array, xp: Array
) -> tuple[HistoryState, Array]:
    """Adds an observation [..., n] and returns the new state and the features [..., n * (1 + rates)]."""
    if not config.rates:
        return HistoryState(state.averages, state.seen + 1), observation
    if xp is np and np.ndim(state.seen) == 0:  # on a robot, where each call counts
        rate = _rates_at(config.rates, min(int(state.seen), math.ceil(1 / min(config.rates))))
        averages = state.averages + rate * (observation - state.averages)
        return HistoryState(averages, state.seen + 1), np.concatenate([observation, *averages])
    first = 1.0 / (state.seen[..., None].astype(xp.float32) + 1.0)
    rate = xp.maximum(_rates(config.rates), first)[..., None]  # [..., R, 1]
    averages = state.averages + rate * (observation[..., None, :] - state.averages)
    features = xp.concatenate([observation[..., None, :], averages], -2)
    flat = features.reshape(*features.shape[:-2], -1)
    return HistoryState(averages, state.seen + 1), flat
