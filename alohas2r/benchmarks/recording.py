"""Records what an environment does, to repeat its physics alone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from alohas2r.envs.env import Env
from alohas2r.sim.engines.base import Engine


class Recording:
    """A CPU engine that keeps the targets it is given, so that its physics can be run again alone."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self.targets: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, physics: Any, ctrl: np.ndarray) -> Any:
        """Steps the engine, and keeps the targets."""
        self.targets.append(ctrl)
        return self._engine.step(physics, ctrl)


def traced_steps(env: Env) -> Any:
    """Returns the compiled function from physics and targets [T, N, nu] to the physics after them."""

    @jax.jit
    def steps(physics: Any, targets: jax.Array) -> Any:
        return jax.lax.scan(lambda p, ctrl: (env.engine.step(p, ctrl)[0], None), physics, targets)

    return steps
