"""alohas2r: from an empty machine to a bimanual ALOHA that inserts a peg, trained only in simulation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alohas2r.tasks.registry import register as register_task

__all__ = ["register_task"]
__version__ = "0.1.0"

_WHERE = {"register_task": ("alohas2r.tasks.registry", "register")}  # imported when first used


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'alohas2r' has no attribute '{name}'")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
