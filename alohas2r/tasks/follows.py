"""What a task says of the one that it follows: whose policy acts first, and where this one's takes over."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeAlias, TypeVar

import numpy as np

from alohas2r.core.types import JsonObject, Untyped

if TYPE_CHECKING:
    from alohas2r.core.progress import Progress
    from alohas2r.envs.task import EnvConfig, Task, TaskConfig
    from alohas2r.policies.staged import StagedPolicy
    from alohas2r.policies.state import StatePolicy
    from alohas2r.sim.scene import Scene


class Collect(Protocol):
    """How starts are collected; frozen, and part of a training's configuration."""

    @property
    def variants(self) -> int:
        """Physics variants, one per environment."""
        ...


class Starts(Protocol):
    """Where episodes of a task begin that follows another: states of physics variants that belong to them."""

    draws: np.ndarray  # [V, draws] the uniform draws of the physics variants

    def first(self, count: int) -> Self:
        """Returns the starts of the first physics variants."""
        ...

    def part(self, first: int, last: int) -> Self:
        """Returns the starts of some physics variants, `last` not among them."""
        ...


Config = TypeVar("Config", bound="TaskConfig")
Collecting = TypeVar("Collecting", bound=Collect)
Kept = TypeVar("Kept", bound=Starts)


@dataclasses.dataclass(frozen=True, eq=False)
class Follows(Generic[Config, Collecting, Kept]):
    """Another task's policy drives each arm until this one's takes over.

    Attributes:
      task: name of the other task.
      file: name of the starts' file in the folder of a run.
      collect: how many starts are collected and how, before a preset changes it.
      ensure: reads the starts of a policy, or collects and writes them if they are missing or belong to another:
        (file, folder of the other task's policy, how, configurations of this task and of its environments, seed,
        threads, progress) -> starts.
      load: reads the starts in a file.
      begin: makes the task whose episodes begin there: (scene, configuration, starts) -> configuration, task.
      staged: puts both policies together: (first, second, configuration, training's record) -> teacher.
    """

    task: str
    file: str
    collect: Collecting
    ensure: Callable[
        [pathlib.Path, pathlib.Path, Collecting, Config, EnvConfig, int, int, Progress | None], Kept
    ]
    load: Callable[[str | os.PathLike[str]], Kept]
    begin: Callable[[Scene, Config, Kept], tuple[Config, Task]]
    staged: Callable[[StatePolicy, StatePolicy, Config, JsonObject], StagedPolicy]


AnyFollows: TypeAlias = Follows[Untyped, Untyped, Untyped]
