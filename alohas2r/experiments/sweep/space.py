"""What is swept: values and ranges of settings, and seeds, as a command line says them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from alohas2r import config
from alohas2r.config import check
from alohas2r.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_SEEDS, MOST_CONFIGURATIONS = 10_000, 10_000
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(:log)?")
# Setting -> value, both as text.
Values: TypeAlias = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values that are listed; a single one is a setting that all runs share."""

    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, both included; `log`: alike in each decade. `whole`: integers alone."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def text(self, value: float) -> str:
        """Returns a value as a setting: six digits, within the range."""
        if self.whole:
            return str(round(value))
        return repr(min(max(float(f"{value:.6g}"), self.low), self.high))


Space: TypeAlias = Mapping[str, Choices | Range]


def parse_space(settings: Sequence[str]) -> dict[str, Choices | Range]:
    """Reads what --set says: "key=value", "key=value,value", or "key=low:high" and "key=low:high:log".

    A value that is a list itself stands in brackets: "ppo.target_kl=(0.01,0.004),(0.02,0.004)".

    Raises:
      ConfigError: no key, no value, a value or a key twice, or a range that is none.
    """
    space: dict[str, Choices | Range] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key, text = key.strip(), text.strip()
        check(
            bool(equals and key), f"'{setting}' is no setting; write key=value or key=value,value."
        )
        check(key not in space, f"'{key}' is set twice; write all its values in one --set.")
        space[key] = _values(key, text)
    return space


def _values(key: str, text: str) -> Choices | Range:
    """Returns the values of a setting."""
    if (matched := _RANGE.fullmatch(text)) is not None:
        low, high, log = float(matched[1]), float(matched[2]), matched[3] is not None
        check(
            math.isfinite(low) and math.isfinite(high) and low < high,
            f"{key}={text}: a range goes from a number to a larger one.",
        )
        check(not log or low > 0, f"{key}={text}: a logarithmic range begins above 0.")
        return Range(low, high, log)
    values = tuple(config.outer_parts(text))
    check(all(values), f"{key}={text}: a value is empty; write {key}=value or {key}=value,value.")
    twice = [value for value in values if values.count(value) > 1]
    check(
        not twice,
        f"{key}={text}: the value {twice[0] if twice else ''} stands there twice; a value that is a list itself"
        f" needs brackets, as in {key}=(64,64).",
    )
    return Choices(values)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads seeds such as "0..4", "0,3,7" or "0..2,10".

    Raises:
      ConfigError: it is no list of seeds, or one stands there twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d{1,10})(?:\.\.(\d{1,10}))?\s*", part)
        wrong = f"--seeds '{text}' is no list of seeds; write 0..4 or 0,3,7."
        if matched is None:
            raise ConfigError(wrong)
        first = int(matched[1])
        last = first if matched[2] is None else int(matched[2])
        check(first <= last < 2**32, f"{wrong} Seeds go from 0 to {2**32 - 1}.")
        check(last - first < MOST_SEEDS, f"--seeds '{text}' are more than {MOST_SEEDS}.")
        seeds += range(first, last + 1)
    check(len(set(seeds)) == len(seeds), f"--seeds '{text}': a seed stands there twice.")
    return tuple(seeds)


def varied(space: Space) -> list[str]:
    """Returns the keys that have more than one value."""
    return [key for key, one in space.items() if isinstance(one, Range) or len(one.values) > 1]


def listed(space: Space) -> dict[str, tuple[str, ...]]:
    """Returns the values of each key.

    Raises:
      ConfigError: one is a range.
    """
    choices = {}
    for key, one in space.items():
        if isinstance(one, Range):
            raise ConfigError(
                f"{key} is a range, which needs --sampler tpe or random; without one write its values, with commas"
                " between."
            )
        choices[key] = one.values
    return choices


def grid(space: Space) -> list[dict[str, str]]:
    """Returns every combination of listed values; the last key changes fastest.

    Raises:
      ConfigError: a range, or more than MOST_CONFIGURATIONS.
    """
    choices = listed(space)
    count = math.prod(len(values) for values in choices.values())
    check(
        count <= MOST_CONFIGURATIONS,
        f"The grid has {count} combinations, more than {MOST_CONFIGURATIONS}; list fewer values, or take --sampler"
        " random.",
    )
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


def one_at_a_time(space: Space) -> list[dict[str, str]]:
    """Returns the first value of every key and, each alone, every other value.

    Raises:
      ConfigError: a range.
    """
    choices = listed(space)
    first = {key: values[0] for key, values in choices.items()}
    return [
        first,
        *(first | {key: value} for key, values in choices.items() for value in values[1:]),
    ]


def typed(space: Space, settings: DataclassInstance) -> dict[str, Choices | Range]:
    """Returns the space with ranges of whole numbers known as such.

    Args:
      space: as it was read.
      settings: the configuration of the preset.

    Raises:
      ConfigError: an unknown key, or a range of something that is no number.
    """
    known: dict[str, Choices | Range] = {}
    for key, one in space.items():
        if isinstance(one, Range):
            # An unknown key is told as by any training.
            config.override(settings, [f"{key}={one.text(one.low)}"])
            now = config.flatten(settings)[key]
            if isinstance(now, bool) or not isinstance(now, int | float):
                raise ConfigError(f"{key} is no number; list its values, with commas between.")
            whole = isinstance(now, int)
            check(
                not whole or (one.low.is_integer() and one.high.is_integer()),
                f"{key} is a whole number, so its range must begin and end with one.",
            )
            one = dataclasses.replace(one, whole=whole)
        known[key] = one
    return known


def corners(space: Space) -> list[dict[str, str]]:
    """Returns what to try before a sampler draws: values and ends of each key beside the first ones of the others."""
    ends = {
        key: (one.text(one.low), one.text(one.high)) if isinstance(one, Range) else one.values
        for key, one in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    return [first, *(first | {key: value} for key in ends for value in ends[key][1:])]


def assignments(values: Values) -> list[str]:
    """Returns values as settings, "key=value" each."""
    return [f"{key}={value}" for key, value in values.items()]
