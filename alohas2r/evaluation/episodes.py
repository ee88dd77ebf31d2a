"""The one loop that runs episodes: whatever the task, whoever acts, whatever is counted."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.config import check
from alohas2r.core.progress import Meter
from alohas2r.core.stop import StopSignal
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState
from alohas2r.sim import physics_randomization
from alohas2r.sim.signals import Readout
from alohas2r.sim.variation import Robots
from alohas2r.tasks.building import build
from alohas2r.tasks.protocol import TaskProtocol
from alohas2r.tasks.registry import AnyTask
from alohas2r.tasks.scoring import Scorer, Step

SEEDS = 2**32  # the generator takes 32 bits of a seed
MAX_ENVS = 2048  # episodes simulated at once; what is drawn for each does not depend on it


class Actor(Protocol):
    """What acts in N environments at once: a policy of whatever kind, with all that it perceives by."""

    def reset(self, keys: jax.Array) -> None:
        """Forgets the past, at the start of the episodes of these keys [N, 2]."""
        ...

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts; returns the environments' new state and the actuator targets [N, nu]."""
        ...


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Holds the random generator and the precision that protocols are drawn with, whatever JAX is set to elsewhere.

    Also a decorator. Without it, a variable such as JAX_ENABLE_X64 would change the episodes of a seed.
    """
    with (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.default_prng_impl("threefry2x32"),
        jax.enable_custom_prng(False),
        jax.legacy_prng_key("allow"),
    ):
        yield


def check_seed(seed: int) -> None:
    """Raises ConfigError unless the generator tells the seed from all others."""
    check(0 <= seed < SEEDS, f"seed must be in 0..{SEEDS - 1}, not {seed}")


@pinned()
def episode_keys(seed: int, first: int, count: int) -> jax.Array:
    """Returns the random keys [count, 2] of episodes first .. first + count - 1 of a seed.

    Raises:
      ConfigError: the seed is out of range.
    """
    check_seed(seed)
    root = jax.random.PRNGKey(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.arange(first, first + count))


class Acted(NamedTuple):
    """A control step of N episodes, as data sets take it."""

    going: np.ndarray  # [N] bool, episodes that had not ended before it
    readout: Readout  # of the physics that was acted on
    before: EnvState  # the state that was acted on
    after: EnvState  # the same with what the policy's action changed in it


class Halted(Exception):
    """A group of episodes was left before its end."""


def halting(stop: StopSignal | None) -> Callable[[Acted], None]:
    """Returns a watcher of episodes that leaves them, by raising Halted, once a stop is asked for."""

    def watch(acted: Acted) -> None:
        del acted
        if stop:
            raise Halted

    return watch


class Played(NamedTuple):
    """What films are made of: N episodes of T control steps."""

    qpos: np.ndarray  # [T, N, nq] float32, before each step
    steps: (
        np.ndarray
    )  # [N] control steps until the episode ended; what follows belongs to another one


class Setting(NamedTuple):
    """N episodes that can be run, as often as one likes."""

    env: Env
    context: np.ndarray  # [N, C] what is fixed in each, in full precision
    scorer: Callable[[], Scorer]  # makes what counts them, anew for each run
    robots: Robots | None = None  # where they vary


def physics_draws(task: AnyTask, keys: jax.Array, more: int = 0) -> jax.Array:
    """Returns the uniform draws [N, draws + more] of the episodes' physics."""
    return jax.vmap(
        lambda key: jax.random.uniform(
            jax.random.fold_in(key, physics_randomization.STREAM), (task.draws + more,)
        )
    )(keys)


@pinned()
def draws_digest(task: AnyTask, seed: int) -> str:
    """Identifies what a seed draws for a task: 16 hexadecimal digits of its first keys and numbers.

    Results of one protocol and seed are of the same episodes only if these agree as well.
    """
    keys = episode_keys(seed, 0, 8)
    arrays = (keys, physics_draws(task, keys), jax.random.uniform(keys[0], (8,)))
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.asarray(values).tobytes())
    return digest.hexdigest()[:16]


@pinned()
def set_up(
    task: AnyTask,
    protocol: TaskProtocol,
    memory: HistoryConfig,
    keys: jax.Array,
    threads: int = 0,
    engine: str = "cpu",
    scale: float | None = None,
) -> Setting:
    """Returns one environment per episode key under a protocol.

    Args:
      task: what is to be done. protocol: of that task.
      memory: what the policy remembers of the observation.
      keys: [N, 2] of the episodes.
      threads: of the physics; 0 for all cores.
      engine: "cpu" or "warp".
      scale: by which the policy's actions move the targets; the protocol's if None.
    """
    conditions = task.conditions(protocol)
    config = conditions.env(memory, scale)
    draws = np.asarray(physics_draws(task, keys, config.variation.draws), np.float64)
    built = build(task, conditions.task, config, draws, threads, engine)
    context = built.context
    return Setting(built.env, context, lambda: task.scorer(protocol, context), built.robots)


@pinned()
def run_episodes(
    env: Env,
    actor: Actor,
    scorer: Scorer,
    keys: jax.Array,
    meter: Meter | None = None,
    done_before: int = 0,
    watch: Callable[[Acted], None] | None = None,
) -> Played:
    """Runs one whole episode per key.

    Args:
      env: the environments. actor: acts in them. scorer: is shown every step; ask it for the table.
      keys: [N, 2] of the episodes.
      meter: receives counts of episodes, on top of `done_before`.
      watch: is shown every step before its outcome.

    Returns:
      The states, for videos.
    """
    count, steps = len(keys), scorer.steps
    state, physics, readout = env.reset(keys)
    actor.reset(keys)
    going, lasted = np.ones(count, bool), np.zeros(count, int)
    qpos = np.zeros((steps, count, env.engine.scene.model.nq), np.float32)
    for number in range(steps):
        qpos[number] = readout.qpos
        before, seen = state, readout
        state, ctrl = actor.act(state, readout)
        if watch is not None:
            watch(Acted(going, readout, before, state))
        state, physics, readout, scored = env.advance(state, physics, ctrl)
        measures = jax.tree.map(np.asarray, scored.measures)
        done, finite = np.asarray(scored.done), np.asarray(scored.finite)
        scorer.update(Step(number, going, before, seen, done, finite, measures))
        lasted += going
        going = going & ~done
        if meter is not None:
            meter.update(done_before + count * (number + 1) // steps)
    return Played(qpos, lasted)
