"""The errors of this package; the command line turns each into one line and exit code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class Alohas2rError(Exception):
    """Base class: something that the caller can put right, said in one sentence."""


class ModelError(Alohas2rError):
    """The MJCF lacks a name, sensor or size that the code relies on."""


class ConfigError(Alohas2rError):
    """A configuration key does not exist, or its value is out of range."""


class ArtifactError(Alohas2rError):
    """A policy, checkpoint or data file is missing, damaged, too new, or cannot be written."""


class BackendUnavailable(Alohas2rError):
    """An optional package, a device or a driver is missing; the message says how to get it."""


class Interrupted(Alohas2rError):
    """Work was asked to stop, or could not go on, before all of it was done.

    Args:
      done, total, unit: how far it came.
      result: what the part that was done came to, as the whole would have been returned; None of nothing.
      why: it could not go on; empty where it was asked to stop.
    """

    def __init__(
        self, done: int, total: int, unit: str, result: dict[str, Any] | None, why: str = ""
    ):
        self.done, self.total, self.unit, self.result, self.why = done, total, unit, result, why
        super().__init__(f"{why or 'Interrupted.'} {done} of {total} {unit} had ended.")


class RobotFault(Alohas2rError):
    """The robot, its bus or its cameras failed, or a guard refused a command."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest choice, or the list of choices if none is close."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Valid choices: {', '.join(sorted(choices))}."
