"""Types that every package shares.

`Array` and `PyTree` cannot be said more closely: the same function runs on NumPy arrays, JAX arrays and tracers, and
JAX's own trees have no static type. They are the one place where that is admitted; everything else has a type of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

# An array of NumPy or JAX; shapes stand in comments and docstrings.
Array: TypeAlias = Any
# Nested tuples, lists, dicts and NamedTuples of arrays, as JAX transforms them.
PyTree: TypeAlias = Any
# An optional package's module, class or object that comes without types.
Untyped: TypeAlias = Any
# What JSON can hold.
Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None
# A JSON object that is being filled or read field by field.
JsonObject: TypeAlias = dict[str, Any]
