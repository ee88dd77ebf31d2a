"""Loggers by name, for the command line; those of other packages come by entry points."""

from __future__ import annotations

import importlib
import importlib.metadata

from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.learning.run.loggers.base import Logger

GROUP = "alohas2r.loggers"  # of entry points: a name, and a class that needs no arguments
_OWN = {
    "mlflow": "alohas2r.learning.run.loggers.mlflow:Mlflow",
    "wandb": "alohas2r.learning.run.loggers.weights_and_biases:WeightsAndBiases",
}


def logger_names() -> tuple[str, ...]:
    """Returns the names of all loggers, without importing them."""
    return tuple(sorted({*_OWN, *(point.name for point in _points())}))


def make(name: str) -> Logger:
    """Returns a new logger.

    Raises:
      ConfigError: there is none of that name.
      ModuleNotFoundError: its package is not installed.
    """
    if name in _OWN:
        module, _, member = _OWN[name].partition(":")
        return vars(importlib.import_module(module))[member]()
    for point in _points():
        if point.name == name:
            return point.load()()
    raise ConfigError(f"Unknown logger '{name}'.{did_you_mean(name, logger_names())}")


def _points() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=GROUP)
