"""Environments whose state is measured several times at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.embodiment.history import HistoryState
from alohas2r.envs.env import Env
from alohas2r.envs.noise import DelayState
from alohas2r.envs.task import EnvConfig, EnvState, Start, Task
from alohas2r.sim.engines.base import Engine
from alohas2r.sim.signals import Signals
from alohas2r.sim.variation import Held


class RepeatedMeasurement(Env):
    """Environments whose state is measured several times at once, each time with a delay and a memory of its own.

    Args:
      draws: how often, D. `observe` returns features [N, D, F].
      task, engine, config, context, held: as `Env`.
    """

    def __init__(
        self,
        draws: int,
        task: Task,
        engine: Engine,
        config: EnvConfig,
        context: np.ndarray,
        held: Held | None = None,
    ):
        self.draws = draws
        super().__init__(task, engine, config, context, held)

    def _fresh(
        self, key: jax.Array, context: jax.Array, held: Held | None, stage: jax.Array
    ) -> tuple[EnvState, Start]:
        state, start = super()._fresh(key, context, held, stage)
        delay, history = jax.tree.map(
            lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], self.draws, 0),
            (state.delay, state.history),
        )
        return state._replace(delay=delay, history=history), start

    def _observe_one(
        self, state: EnvState, signal: Signals
    ) -> tuple[EnvState, jax.Array, jax.Array]:
        observe = super()._observe_one
        keys = jax.random.split(state.key, self.draws + 1)

        def one(
            key: jax.Array, delay: DelayState, history: HistoryState
        ) -> tuple[DelayState, HistoryState, jax.Array, jax.Array]:
            observed, features, privileged = observe(
                state._replace(key=key, delay=delay, history=history), signal
            )
            return observed.delay, observed.history, features, privileged

        delay, history, features, privileged = jax.vmap(one)(keys[1:], state.delay, state.history)
        state = state._replace(key=keys[0], delay=delay, history=history)
        return state, features, privileged[0]
