"""Results as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class _Listable(Protocol):
    """An array or a scalar of numpy or jax."""

    def tolist(self) -> object:
        """Returns it as plain numbers, in lists where it has axes."""
        ...


def plain(value: object) -> object:
    """Turns what the library may report into what JSON has; a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, _Listable):  # arrays and scalars of numpy and jax
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
