"""What a training asks of a fleet, and how its worlds are divided among workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Json, PyTree
from alohas2r.learning.fleet.worker import WORLD, Identity, Order, Rolled, World, parts

LOCAL, RAY, PARALLEL = "local", "ray", "data-parallel"
KINDS = (LOCAL, RAY, PARALLEL)
HAND_OVER = 8  # updates after which workers hand over their states
Plan = TypeVar("Plan")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class FleetConfig:
    """Where the environments of a training live.

    Attributes:
      kind: "local": threads of this process; "ray": actors of a Ray cluster; "data-parallel": no fleet, but processes
        of this machine that all simulate and learn.
      workers: how many.
      lag: 0: a rollout acts with the newest parameters, and the learner waits; 1: with those before, while it learns.
      address: of the cluster's head, HOST:PORT; one of this machine alone if empty.
      world: environments of a world.
    """

    kind: str = LOCAL
    workers: int = 1
    lag: int = 0
    address: str = ""
    world: int = WORLD

    def __post_init__(self) -> None:
        check(self.kind in KINDS, f"fleet must be one of {', '.join(KINDS)}, not '{self.kind}'")
        check(self.lag in (0, 1), f"lag must be 0 or 1, not {self.lag}")
        check(self.workers >= 1, f"workers must be at least 1, not {self.workers}")
        check(
            self.lag == 0 or self.kind != PARALLEL,
            f"lag is of simulators apart from the learner: leave it out with --fleet {PARALLEL}",
        )
        check(self.world >= 1, f"world must be at least 1, not {self.world}")
        check(
            not self.address or self.kind == RAY,
            f"address is a Ray cluster's: choose --fleet {RAY} for it",
        )

    @property
    def identity(self) -> Json:
        """What of it decides what comes out: not who computes it, where that does not matter."""
        if self.kind == PARALLEL:
            return {"processes": self.workers}
        return {"world": self.world, "lag": self.lag}

    @property
    def options(self) -> dict[str, object]:
        """How a command asks for it."""
        lag = None if self.kind == PARALLEL else self.lag
        return {"fleet": self.kind, "workers": self.workers, "lag": lag}

    def check_worlds(self, environments: int, setting: str = "ppo.num_envs") -> int:
        """Returns how many worlds there are.

        Args:
          environments: of the training. setting: that says how many.

        Raises:
          ConfigError: there are more workers.
        """
        count = len(parts(environments, self.world))
        check(
            self.workers <= count,
            f"{self.workers} workers are more than the {count} worlds of {self.world} environments that"
            f" {setting} = {environments} makes: take at most --workers {count}",
        )
        return count


class Setup(NamedTuple, Generic[Plan]):
    """What a fleet is to simulate.

    Attributes:
      build: makes a world, see `Worker`. plan: of the training.
      worlds: how many.
      model: digest of the learner's compiled scene.
    """

    build: Callable[[Plan, int, World | None], World]
    plan: Plan
    worlds: int
    model: str


class Fleet(Protocol):
    """The worlds of a training. What is returned is in the order of their numbers."""

    def order(self, order: Order, acting: PyTree) -> None:
        """Lets all worlds begin to carry out an order, acting with this; the next comes after `gather`."""
        ...

    def gather(self) -> list[Rolled]:
        """Waits for the order that was given, and returns what each world did."""
        ...

    def begin(self, stage: int) -> list[PyTree]:
        """Returns the states in which worlds begin a stage; they themselves stay as they are."""
        ...

    def states(self, version: int) -> list[PyTree]:
        """Returns the states before a rollout: the next one, or the one that has just been ordered."""
        ...

    def restore(self, version: int, states: Sequence[PyTree]) -> None:
        """Puts all worlds into states that `states` returned."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


def divide(worlds: int, workers: int) -> list[list[int]]:
    """Returns the numbers of each worker's worlds."""
    return [part.tolist() for part in np.array_split(np.arange(worlds), workers)]


def in_order(results: Sequence[Mapping[int, Result]]) -> list[Result]:
    """Returns what several workers' worlds did, or their states, by number."""
    merged = {number: result for answer in results for number, result in answer.items()}
    return [merged[number] for number in sorted(merged)]


def check_identity(learner: Identity, worker: Identity) -> None:
    """Makes sure that a worker computes as the learner does.

    Raises:
      ConfigError: it has other code, libraries or another scene.
    """
    for name, ours, theirs, remedy in (
        ("code", learner.code, worker.code, "install the same alohas2r on both"),
        ("scene", learner.model, worker.model, "install the same alohas2r on both"),
        ("libraries", learner.libraries, worker.libraries, "install the same versions on both"),
    ):
        check(
            ours == theirs,
            f"The worker on {worker.host} (alohas2r {worker.package}) has other {name} than the learner (alohas2r"
            f" {learner.package}): {theirs[:40]}, not {ours[:40]}; {remedy}",
        )
