"""What every physics engine offers."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar

import numpy as np

from alohas2r.config import check
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Readout


@dataclasses.dataclass(frozen=True)
class BufferConfig:
    """Sizes of the buffers of the engine `warp`; the engine `cpu` needs none.

    Where they are too small, an error says what to set.

    Attributes:
      contacts: contacts of one simulation, on average over all; 0 for what the scene needs.
      constraints: constraint rows of one simulation; 0 for what the scene needs.
    """

    contacts: int = 0
    constraints: int = 0

    def __post_init__(self) -> None:
        check(0 <= self.contacts <= 100_000, "contacts must be in 0..100000")
        check(0 <= self.constraints <= 100_000, "constraints must be in 0..100000")


class Engine(Protocol):
    """Steps N simulations of a scene.

    The physics state is a NamedTuple of arrays, numpy's or JAX's, the whole of what a checkpoint needs; its `rows`
    are the simulations' states [N, n]. Where `traceable`, `reset` and `step` can be called inside `jax.jit`.
    """

    name: str
    traceable: bool
    scene: Scene
    num_envs: int
    threads: int
    substeps: int

    def reset(
        self, physics: Any, mask: Any, qpos: Any, ctrl: Any, qvel: Any = None
    ) -> tuple[Any, Readout]:
        """Restarts the masked simulations and runs their whole forward pass."""
        ...

    def step(self, physics: Any, ctrl: Any) -> tuple[Any, Readout]:
        """Advances all simulations by one control step."""
        ...

    def readout(self, physics: Any) -> Readout:
        """Returns what a state reports, without stepping."""
        ...

    def check(self, physics: Any) -> None:
        """Raises ModelError if something did not fit into the engine's buffers since the first reset."""
        ...


PhysicsState = TypeVar("PhysicsState", bound=tuple)


def snapshot(physics: PhysicsState) -> PhysicsState:
    """Returns a copy of any engine's state that later steps leave alone, for checkpoints."""
    return type(physics)(
        *(leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in physics)
    )
