"""Statistics of what a data set holds, as policies need them to normalize: of vectors and of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PICTURES_EVERY = 5  # steps between the pictures that are counted
_LEVELS = 256


def of_vectors(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns name -> [D] of vectors [T, D]; "count" is [1]."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()},
    }


def histogram(pictures: np.ndarray) -> np.ndarray:
    """Returns how often each level comes up in pictures [T, H, W, C] uint8, [C, 256]; of each fifth picture."""
    some = pictures[::PICTURES_EVERY]
    return np.stack(
        [np.bincount(some[..., c].ravel(), minlength=_LEVELS) for c in range(some.shape[-1])]
    )


def of_pictures(counts: np.ndarray, pictures: int) -> dict[str, np.ndarray]:
    """Returns name -> [C, 1, 1] of pictures in 0..1; "count" is [1].

    Args:
      counts: [C, 256] sum of `histogram`. pictures: how many were counted.
    """
    levels = np.arange(_LEVELS) / (_LEVELS - 1)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    shown = counts > 0
    cumulated = np.cumsum(share, 1)
    figures = {
        "min": levels[shown.argmax(1)],
        "max": levels[_LEVELS - 1 - shown[:, ::-1].argmax(1)],
        "mean": mean,
        "std": std,
        **{
            name: levels[(cumulated >= quantile - 1e-12).argmax(1)]
            for name, quantile in QUANTILES.items()
        },
    }
    return {
        **{name: value[:, None, None] for name, value in figures.items()},
        "count": np.array([pictures]),
    }


def plain(statistics: Mapping[str, np.ndarray]) -> dict[str, Sequence[object]]:
    """Returns statistics as lists, for JSON and parquet."""
    return {name: value.tolist() for name, value in statistics.items()}
