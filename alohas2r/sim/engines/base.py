"""What every physics engine offers."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

from alohas2r.core.types import Array
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Readout


class PhysicsState(Protocol):
    """The state of N simulations: a NamedTuple of arrays, numpy's or JAX's, the whole of what a checkpoint needs."""

    @property
    def rows(self) -> np.ndarray:
        """The simulations' states [N, n]: what they are compared by."""
        ...


State = TypeVar("State")  # an engine's own PhysicsState


class Engine(Protocol[State]):
    """Steps N simulations of a scene; where `traceable`, `reset` and `step` can be called inside `jax.jit`."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        ...

    @property
    def traceable(self) -> bool:
        """Whether compiled code can call it."""
        ...

    @property
    def scene(self) -> Scene:
        """What is simulated."""
        ...

    @property
    def num_envs(self) -> int:
        """N."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads that it uses."""
        ...

    @property
    def substeps(self) -> int:
        """Physics steps of a control step."""
        ...

    def reset(
        self,
        physics: State | None,
        mask: Array,
        qpos: Array,
        ctrl: Array,
        qvel: Array | None = None,
    ) -> tuple[State, Readout]:
        """Restarts the masked simulations and runs their whole forward pass.

        Args:
          physics: the state of all simulations; None for a first reset.
          mask: [N] which simulations restart.
          qpos: [N, nq], ctrl: [N, nu], qvel: [N, nv] (zero if None); rows outside the mask are ignored.

        Returns:
          The new state and the readout of all simulations.
        """
        ...

    def step(self, physics: State, ctrl: Array) -> tuple[State, Readout]:
        """Advances all simulations by one control step.

        Args:
          physics: the state, from the last call or a copy of an earlier one.
          ctrl: [N, nu] actuator targets.

        Returns:
          The new state and the readout; frames describe the new state.
        """
        ...

    def readout(self, physics: State) -> Readout:
        """Returns what a state reports, without stepping."""
        ...

    def check(self, physics: State) -> None:
        """Raises ModelError if something did not fit into the engine's buffers since the first reset."""
        ...


Kept = TypeVar("Kept", bound=tuple)


def snapshot(physics: Kept) -> Kept:
    """Returns a copy of any engine's state that later steps leave alone, for checkpoints."""
    return type(physics)(
        *(leaf.copy() if isinstance(leaf, np.ndarray) else leaf for leaf in physics)
    )
