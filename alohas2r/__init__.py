"""alohas2r: from an empty machine to a bimanual ALOHA that inserts a peg, trained only in simulation.

The names in `__all__` are the public API; each is imported when it is first asked for, so `import alohas2r` costs
nothing and needs no extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from alohas2r.core.version import __version__

if TYPE_CHECKING:
    from alohas2r.envs.task import Task as Task
    from alohas2r.evaluation.evaluate import evaluate as evaluate
    from alohas2r.policies.artifact import load as load_policy
    from alohas2r.policies.onnx.runtime import OnnxPolicy as OnnxPolicy
    from alohas2r.tasks.make import make_env as make_env
    from alohas2r.tasks.registry import TaskEntry as TaskEntry
    from alohas2r.tasks.registry import register as register_task


# Public name -> module and name there.
_PUBLIC = {
    "OnnxPolicy": ("alohas2r.policies.onnx.runtime", "OnnxPolicy"),
    "evaluate": ("alohas2r.evaluation.evaluate", "evaluate"),
    "load_policy": ("alohas2r.policies.artifact", "load"),
    "make_env": ("alohas2r.tasks.make", "make_env"),
    "Task": ("alohas2r.envs.task", "Task"),
    "TaskEntry": ("alohas2r.tasks.registry", "TaskEntry"),
    "register_task": ("alohas2r.tasks.registry", "register"),
}
__all__ = [
    "OnnxPolicy",
    "Task",
    "TaskEntry",
    "__version__",
    "evaluate",
    "load_policy",
    "make_env",
    "register_task",
]


def __getattr__(name: str) -> object:
    """Imports a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'alohas2r' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted({*globals(), *_PUBLIC})


def _register_with_gymnasium() -> None:
    """Lets `gymnasium.make` find the tasks, whichever of the two packages is imported first."""
    from alohas2r.tasks.registry import register_with_gymnasium

    register_with_gymnasium()


_register_with_gymnasium()
