"""Which tasks there are, and what each brings: all that commands, trainings, evaluations and videos ask of one.

A task of this package is a module `tasks/NAME.py`, or a package `tasks/NAME/` with a module `entry.py`, that calls
`register`; it is imported when it is asked for, so that names are known without JAX. (So the name that a package has
at Gymnasium, if it is another one, stands in its `__init__.py`: GYMNASIUM.) A task from outside calls
`alohas2r.register_task`, or its package declares an entry point of the group "alohas2r.tasks" that is its `TaskEntry`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import numpy as np

from alohas2r import tasks
from alohas2r.core.types import Untyped
from alohas2r.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from alohas2r.envs.noise import NoiseConfig
    from alohas2r.envs.task import Task, TaskConfig
    from alohas2r.sim.scene import Scene
    from alohas2r.tasks.follows import AnyFollows
    from alohas2r.tasks.protocol import Conditions, TaskProtocol
    from alohas2r.tasks.scoring import Scorer, Table
    from alohas2r.tasks.stages import SecondStage

GROUP = "alohas2r.tasks"  # of entry points
# Modules that are no task.
_SHARED = {
    "building",
    "follows",
    "grasping",
    "make",
    "protocol",
    "registry",
    "scoring",
    "single_arm",
    "stages",
    "starts",
}

Config = TypeVar("Config", bound="TaskConfig")
Rules = TypeVar("Rules", bound="TaskProtocol")
# Point looked at (m), distance (m), azimuth and elevation (degrees).
View: TypeAlias = tuple[tuple[float, float, float], float, float, float]
# Conditions by name of the sweep.
Sweeps: TypeAlias = Mapping[str, tuple[Mapping[str, float], ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class TaskEntry(Generic[Config, Rules]):
    """A task and all that belongs to it.

    Attributes:
      name: of the task; artifacts call it their phase.
      scene: name of its scene: xmls/scene_NAME.xml, or one that `sim.scene.register_scene` knows.
      config: what it is trained with, before a preset changes it.
      noise: observation noise in training.
      task: makes the task on its scene.
      randomize: turns uniform draws [N, draws] into the physics of N environments: model field -> [N, ...], and
        context [N, C].
      draws: uniform numbers that the physics of one environment takes.
      protocol: frozen conditions of its evaluation.
      conditions: what a protocol says of its episodes.
      scorer: counts the episodes of environments with a context [N, C].
      watched: columns of the table that a training shows on the way.
      presets: settings of its teacher's training by preset, "key=value" as after --set.
      second: second stage of its training.
      view: camera of its videos.
      sizes: what a table says of sizes that differ between episodes: box geom -> half sizes [N, 3] (m).
      follows: whose policy drives each arm until this one's takes over, and where that is; None if the task starts
        by itself.
      sweeps: conditions that `evaluate --sweep` repeats the evaluation under, by names of protocol and sweep.
      modified: the protocol with such a condition, under another name.
      protocols: further frozen protocols.
    """

    name: str
    scene: str
    config: Config
    noise: NoiseConfig
    task: Callable[[Scene, Config], Task]
    randomize: Callable[[Scene, Config, np.ndarray], tuple[Mapping[str, np.ndarray], np.ndarray]]
    draws: int
    protocol: Rules
    conditions: Callable[[Rules], Conditions[Config]]
    scorer: Callable[[Rules, np.ndarray], Scorer]
    watched: tuple[str, ...]
    presets: Mapping[str, tuple[str, ...]]
    second: SecondStage
    view: View
    sizes: Callable[[Table], Mapping[str, np.ndarray]] | None = None
    follows: AnyFollows | None = None
    sweeps: Mapping[str, Sweeps] = dataclasses.field(default_factory=dict)
    modified: Callable[[Rules, Mapping[str, float]], Rules] | None = None
    protocols: tuple[Rules, ...] = ()

    def find_protocol(self, name: str) -> Rules:
        """Returns one of the task's protocols by its name.

        Raises:
          ConfigError: it has none of that name.
        """
        known = {rules.name: rules for rules in (self.protocol, *self.protocols)}
        if name not in known:
            raise ConfigError(
                f"The task '{self.name}' has no protocol '{name}'.{did_you_mean(name, known)}"
            )
        return known[name]


AnyTask: TypeAlias = TaskEntry[Untyped, Untyped]
_entries: dict[str, AnyTask] = {}


def register(entry: AnyTask) -> AnyTask:
    """Makes a task known.

    Returns:
      The entry.

    Raises:
      ConfigError: another task has that name.
    """
    name = entry.name
    if _entries.get(name, entry) is not entry:
        raise ConfigError(f"There is a task '{name}' already; choose another name.")
    if not name.isidentifier() or "default" not in entry.presets:
        raise ConfigError(
            f"A task needs a name that Python takes, not '{name}', and a preset 'default'."
        )
    _entries[name] = entry
    if "gymnasium" in sys.modules:
        register_with_gymnasium()
    return entry


def register_with_gymnasium() -> None:
    """Makes all tasks known to Gymnasium as "alohas2r/NAME-v1", where Gymnasium is installed and not known yet."""
    try:
        import gymnasium
    except ImportError:
        return
    for task in task_names():
        name = _gymnasium_name(task)
        if f"alohas2r/{name}-v1" not in gymnasium.registry:
            gymnasium.register(
                id=f"alohas2r/{name}-v1",
                entry_point="alohas2r.tasks.make:make_single",
                vector_entry_point="alohas2r.tasks.make:make_env",
                kwargs={"task": task},
            )


def _gymnasium_name(task: str) -> str:
    """Returns the name of a task at Gymnasium: what its package calls GYMNASIUM, or its own in capitals."""
    name = "".join(part.capitalize() for part in task.split("_"))
    module = _modules().get(task, "")
    if not module.endswith(".entry"):
        return name
    return vars(importlib.import_module(module.removesuffix(".entry"))).get("GYMNASIUM", name)


def task_names() -> tuple[str, ...]:
    """Returns the names of all tasks, without importing them."""
    return tuple(sorted({*_modules(), *_points(), *_entries}))


def find_task(name: str) -> AnyTask:
    """Returns a task by its name, importing it if need be.

    Raises:
      ConfigError: there is none of that name, or its module does not register it.
    """
    if name not in _entries:
        points = _points()
        if name in points:
            register(points[name].load())
        elif name in _modules():
            importlib.import_module(_modules()[name])
        else:
            raise ConfigError(f"Unknown task '{name}'.{did_you_mean(name, task_names())}")
        if name not in _entries:
            raise ConfigError(f"What declares the task '{name}' registers another one or none.")
    return _entries[name]


def _modules() -> dict[str, str]:
    """Returns task -> module of those in this package."""
    return {
        name: f"{tasks.__name__}.{name}" + (".entry" if package else "")
        for _, name, package in pkgutil.iter_modules(tasks.__path__)
        if name not in _SHARED
    }


def _points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
