"""Records what an environment does, to repeat its physics alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

import jax
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.envs.env import Env
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.engines.cpu import CpuEngine, Physics
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Readout

State = TypeVar("State")


class Recording(Generic[State]):
    """An engine that keeps the targets it is given, so that its physics can be run again alone.

    Args:
      engine: the engine that does the work.
    """

    def __init__(self, engine: Engine[State]):
        self.engine = engine
        self.targets: list[np.ndarray] = []

    @property
    def name(self) -> str:
        """By which the engine is chosen."""
        return self.engine.name

    @property
    def traceable(self) -> bool:
        """Whether compiled code can call it: there it could not keep anything."""
        return False

    @property
    def scene(self) -> Scene:
        """What is simulated."""
        return self.engine.scene

    @property
    def num_envs(self) -> int:
        """Number of simulations."""
        return self.engine.num_envs

    @property
    def threads(self) -> int:
        """CPU threads that it uses."""
        return self.engine.threads

    @property
    def substeps(self) -> int:
        """Physics steps of a control step."""
        return self.engine.substeps

    def reset(
        self,
        physics: State | None,
        mask: Array,
        qpos: Array,
        ctrl: Array,
        qvel: Array | None = None,
    ) -> tuple[State, Readout]:
        """Restarts the masked simulations; see `Engine.reset`."""
        return self.engine.reset(physics, mask, qpos, ctrl, qvel)

    def step(self, physics: State, ctrl: Array) -> tuple[State, Readout]:
        """Advances all simulations by one control step, and keeps its targets."""
        self.targets.append(np.asarray(ctrl))
        return self.engine.step(physics, ctrl)

    def readout(self, physics: State) -> Readout:
        """Returns what a state reports, without stepping."""
        return self.engine.readout(physics)

    def check(self, physics: State) -> None:
        """Raises ModelError if something did not fit into the engine's buffers."""
        self.engine.check(physics)


def repeat_steps(engine: CpuEngine, began: Physics, targets: list[np.ndarray]) -> float:
    """Runs the physics of recorded steps again, and nothing else.

    Args:
      engine: has the simulations; its state is that after the steps when this returns.
      began: the state before them.
      targets: [N, nu] per step.

    Returns:
      The seconds that it took.
    """
    batch = engine.batch
    batch.state[:] = began.rows
    started = time.monotonic()
    for ctrl in targets:
        batch.ctrl = ctrl
        batch.step(nstep=engine.substeps)
    return time.monotonic() - started


def traced_steps(env: Env) -> Callable[[PyTree, jax.Array], PyTree]:
    """Returns the compiled function from physics and targets [T, N, nu] to the physics after them."""

    @jax.jit
    def steps(physics: PyTree, targets: jax.Array) -> PyTree:
        return jax.lax.scan(lambda p, ctrl: (env.engine.step(p, ctrl)[0], None), physics, targets)

    return steps
