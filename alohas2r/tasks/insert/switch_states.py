"""Switch states: where the pick policy hands over to the insertion policy, collected once and kept as a file."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r import config
from alohas2r.core import files
from alohas2r.core import progress as core_progress
from alohas2r.core.types import JsonObject
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.actuation import ControlConfig
from alohas2r.envs.env import Env
from alohas2r.envs.noise import NoiseConfig
from alohas2r.envs.task import PYRAMIDAL, EnvConfig, EnvState
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import InsertRandomization, ObjectRanges
from alohas2r.sim.scene import Scene
from alohas2r.sim.signals import Readout
from alohas2r.sim.variation import VariationConfig
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.insert.config import INSERT_NOISE, InsertConfig
from alohas2r.tasks.insert.task import InsertTask, Pool, single_arm_features
from alohas2r.tasks.registry import find_task

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """How switch states are collected.

    Attributes:
      variants: physics variants, one per environment.
      rounds: episodes per variant; each gives at most one state.
      steps: control steps per episode.
      physics: randomized physics.
    """

    variants: int = 1024
    rounds: int = 8
    steps: int = 120
    physics: InsertRandomization = InsertRandomization()

    def __post_init__(self) -> None:
        config.check(1 <= self.variants <= 1_000_000, "variants must be in 1..1000000")
        config.check(1 <= self.rounds <= 1000, "rounds must be in 1..1000")
        config.check(1 <= self.steps <= 10_000, "steps must be in 1..10000")


@dataclasses.dataclass(frozen=True)
class CollectConditions:
    """Conditions of the episodes beyond the physics of `CollectConfig`; those of eval-v1 by default.

    Attributes:
      objects, switch: as InsertConfig. contacts, variation, noise, cone: as EnvConfig.
    """

    objects: ObjectRanges = ObjectRanges()
    switch: Switch = Switch()
    contacts: bool = False
    variation: VariationConfig = VariationConfig()
    noise: NoiseConfig = INSERT_NOISE
    cone: str = PYRAMIDAL


@dataclasses.dataclass(frozen=True, eq=False)
class SwitchStates:
    """A pool and what it belongs to.

    Attributes:
      pool: arrays [V, S, ...].
      draws: [V, INSERT_DRAWS] the uniform draws of the physics variants.
      physics: their distribution.
      pick: hash of the pick policy. rate: share of episodes that reached the switch.
      conditions: further conditions.
    """

    pool: Pool
    draws: np.ndarray
    physics: InsertRandomization
    pick: str
    rate: float
    conditions: CollectConditions = CollectConditions()

    def first(self, count: int) -> SwitchStates:
        """Returns the states of the first physics variants."""
        return self.part(0, count)

    def without_memory(self) -> SwitchStates:
        """Returns the states of the world and its targets alone: whoever goes on from them has seen nothing yet."""
        pool = self.pool._replace(delay=None, delay_count=None, averages=None, seen=None)
        return dataclasses.replace(self, pool=pool)

    def part(self, first: int, last: int) -> SwitchStates:
        """Returns the states of some physics variants, `last` not among them."""
        pool = jax.tree.map(lambda leaf: leaf[first:last], self.pool)
        return dataclasses.replace(self, pool=pool, draws=self.draws[first:last])


class Picking(Protocol):
    """What picks with both arms of N environments at once."""

    def reset(self, keys: jax.Array) -> None:
        """Forgets the past, at the start of the episodes of these keys [N, 2]."""
        ...

    def act(self, state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
        """Observes and acts; returns the environments' new state and the actuator targets [N, nu]."""
        ...


class Picker(NamedTuple):
    """A pick policy of whatever kind.

    Attributes:
      hash: of the policy. scale: by which its actions move the targets (rad; m).
      history: what the environments remember for it.
      acting: makes what acts, in environments with a context [N, C].
    """

    hash: str
    scale: float
    history: HistoryConfig
    acting: Callable[[Env, np.ndarray], Picking]


def begin(
    loaded: Scene, settings: InsertConfig, states: SwitchStates
) -> tuple[InsertConfig, InsertTask]:
    """Returns the insertion whose episodes begin in the states, in which both objects are raised, and its settings."""
    settings = dataclasses.replace(settings, physics=states.physics)
    return settings, InsertTask(loaded, settings, jax.tree.map(jnp.asarray, states.pool))


def ensure_for(
    path: pathlib.Path,
    pick_path: pathlib.Path,
    settings: CollectConfig,
    insert: InsertConfig,
    env: EnvConfig,
    seed: int,
    threads: int,
    progress: core_progress.Progress | None,
) -> SwitchStates:
    """As `ensure`, under the conditions of an insertion."""
    settings, conditions = under(settings, insert, env)
    return ensure(path, pick_path, settings, seed, threads, progress, conditions)


def under(
    settings: CollectConfig, insert: InsertConfig, env: EnvConfig
) -> tuple[CollectConfig, CollectConditions]:
    """Returns how switch states are collected under the conditions of an insertion."""
    conditions = CollectConditions(
        insert.objects, insert.switch, env.contacts, env.variation, env.noise, env.cone
    )
    return dataclasses.replace(settings, physics=insert.physics), conditions


def staged(
    pick: StatePolicy, insert: StatePolicy, settings: InsertConfig, trained: JsonObject
) -> StagedPolicy:
    """Returns the whole teacher."""
    return StagedPolicy(pick, insert, settings.switch, trained)


def collect(
    pick: StatePolicy,
    settings: CollectConfig,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    conditions: CollectConditions = CollectConditions(),
) -> SwitchStates:
    """Rolls out the pick policy with both arms and keeps the whole state at each first switch.

    A variant for which no episode of any round switched takes the physics and the states of another.

    Args:
      pick: the single-arm policy.
      settings: how many.
      seed: of physics, starts, noise and delays.
      threads: of the physics; 0 for all cores.
      progress: receives reports.
      conditions: further conditions.

    Raises:
      ConfigError: no episode reached the switch.
    """
    return collect_by(_picker_of(pick), settings, seed, threads, progress, conditions)


def _picker_of(pick: StatePolicy) -> Picker:
    """Returns a pick policy on the state as one of whatever kind."""
    scale, history = pick.spec.action.scale, pick.spec.history
    return Picker(pick.hash, scale, history, lambda env, context: _ByState(env, pick))


class _ByState:
    """A pick policy on the noisy state, for both arms.

    Args:
      env: where it acts. pick: the policy.
    """

    def __init__(self, env: Env, pick: StatePolicy) -> None:
        rates = len(pick.spec.history.rates)

        def act(state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array]:
            state, features, _ = env.observe(state, readout)
            actions = [pick.apply(single_arm_features(features, arm, rates), jnp) for arm in (0, 1)]
            return env.control(state, readout, jnp.concatenate(actions, -1))

        self.act = jax.jit(act)

    def reset(self, keys: jax.Array) -> None:
        """Does nothing: the environments hold what is remembered."""


def collect_by(
    picker: Picker,
    settings: CollectConfig,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    conditions: CollectConditions = CollectConditions(),
) -> SwitchStates:
    """Does the same as `collect` with a pick policy of whatever kind."""
    count = settings.variants
    env, context, draws = _environments(picker, settings, seed, threads, conditions)
    engine, acting = env.engine, picker.acting(env, context)
    assert isinstance(engine, CpuEngine)
    meter = core_progress.Meter("collect switch states", settings.rounds * settings.steps, progress)
    rounds: list[Pool] = []
    reached: list[np.ndarray] = []
    for round_ in range(settings.rounds):
        root = jax.random.fold_in(jax.random.PRNGKey(seed), round_)
        keys = jax.random.split(root, count)
        state, physics, readout = env.reset(keys)
        acting.reset(keys)
        kept, got = _grab(engine, state), np.zeros(count, bool)
        for step in range(settings.steps):
            state, ctrl = acting.act(state, readout)
            state, physics, readout, scored = env.advance(state, physics, ctrl)
            new = np.asarray(scored.measures.switched) & ~np.asarray(scored.done) & ~got
            if new.any():
                now = _grab(engine, state)
                kept = jax.tree.map(
                    lambda a, b, m=new: np.where(m.reshape(-1, *[1] * (a.ndim - 1)), a, b),
                    now,
                    kept,
                )
                got |= new
            meter.update(round_ * settings.steps + step + 1)
            if got.all():
                break
        rounds.append(kept)
        reached.append(got)
    mask = np.stack(reached, 1)  # [V, S]
    if not mask.any():
        raise ConfigError(
            "The pick policy never raised both grippers; train it longer before collecting switch states."
        )
    source, columns = _filled(mask)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *rounds)
    pool = jax.tree.map(lambda x: x[source[:, None], columns], stacked)
    rate = float(mask.mean())
    return SwitchStates(pool, draws[source], settings.physics, picker.hash, rate, conditions)


def _environments(
    picker: Picker,
    settings: CollectConfig,
    seed: int,
    threads: int,
    conditions: CollectConditions,
) -> tuple[Env, np.ndarray, np.ndarray]:
    """Returns insertions that begin at home, their context [V, C], and the draws [V, ...] of their physics."""
    count, entry = settings.variants, find_task("insert")
    env = EnvConfig(
        control=ControlConfig(scale=picker.scale),
        noise=conditions.noise,
        history=picker.history,
        contacts=conditions.contacts,
        variation=conditions.variation,
        cone=conditions.cone,
    )
    shape = count, count_draws(entry, env)
    draws = np.random.default_rng([seed, 1]).random(shape)
    task = InsertConfig(
        steps=settings.steps + 1,
        physics=settings.physics,
        objects=conditions.objects,
        switch=conditions.switch,
    )
    built = build(entry, task, env, draws, threads)
    return built.env, built.context, draws


def _grab(engine: CpuEngine, state: EnvState) -> Pool:
    """Returns the state before the observation at the switch is made."""
    batch = engine.batch
    return Pool(
        qpos=np.asarray(batch.qpos, np.float32).copy(),
        qvel=np.asarray(batch.qvel, np.float32).copy(),
        ctrl=np.asarray(batch.ctrl, np.float32).copy(),
        actions=np.asarray(state.control.actions),
        delay=np.asarray(state.delay.observations),
        delay_count=np.asarray(state.delay.seen),
        averages=np.asarray(state.history.averages),
        seen=np.asarray(state.history.seen),
    )


def _filled(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which state to take for each variant and round: variants [V] and rounds [V, S].

    Where a round failed, a state of the same variant is repeated; where all failed, another variant is taken whole.

    Args:
      mask: [V, S] bool: which rounds of which variants reached the switch; at least one did.
    """
    good, bad = np.flatnonzero(mask.any(1)), np.flatnonzero(~mask.any(1))
    source = np.arange(len(mask))
    source[bad] = good[np.arange(len(bad)) % len(good)]
    return source, np.stack([_repeat(mask[row]) for row in source])


def _repeat(mask: np.ndarray) -> np.ndarray:
    """Returns the indices of the set entries, repeated in turn up to the mask's length."""
    indices = np.flatnonzero(mask)
    return indices[np.arange(len(mask)) % len(indices)]


def save(states: SwitchStates, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the states as one .npz.

    Raises:
      ArtifactError: the file cannot be written.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "physics": config.to_dict(states.physics),
        "pick": states.pick,
        "rate": states.rate,
        "conditions": config.to_dict(states.conditions),
    }
    arrays = {f"pool/{name}": value for name, value in states.pool._asdict().items()}
    arrays |= {
        "draws": states.draws,
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
    }
    return files.write_atomic(path, lambda file: np.savez(file, **arrays))


def load(path: str | os.PathLike[str]) -> SwitchStates:
    """Reads what `save` wrote.

    Raises:
      ArtifactError: missing, damaged, or from a newer version.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays["header"].tobytes().decode())
        version = int(header["format_version"])
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} has format {version}; this alohas2r reads up to {FORMAT_VERSION}."
            )
        return SwitchStates(
            pool=Pool(**{name: arrays[f"pool/{name}"] for name in Pool._fields}),
            draws=arrays["draws"],
            physics=config.from_dict(InsertRandomization, header["physics"]),
            pick=str(header["pick"]),
            rate=float(header["rate"]),
            conditions=config.from_dict(
                CollectConditions, header.get("conditions", config.to_dict(CollectConditions()))
            ),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{path} is missing or damaged ({error}); collect the switch states again."
        ) from error


def ensure(
    path: str | os.PathLike[str],
    pick_path: str | os.PathLike[str],
    settings: CollectConfig,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    conditions: CollectConditions = CollectConditions(),
) -> SwitchStates:
    """Reads the states of a pick policy, or collects and writes them if they are missing or belong to another.

    Raises:
      ArtifactError: the pick policy cannot be read, or the file cannot be written.
    """
    pick = artifact.load(pick_path, StatePolicy)
    if pick.spec.phase != "pick":
        raise ArtifactError(f"{pick_path} is no pick policy.")
    return ensure_by(path, _picker_of(pick), settings, seed, threads, progress, conditions)


def ensure_by(
    path: str | os.PathLike[str],
    picker: Picker,
    settings: CollectConfig,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    conditions: CollectConditions = CollectConditions(),
) -> SwitchStates:
    """Does the same as `ensure` with a pick policy of whatever kind."""
    if pathlib.Path(path).exists():
        try:
            states = load(path)
        except ArtifactError:
            states = None
        if (
            states is not None
            and states.pick == picker.hash
            and states.physics == settings.physics
            and states.conditions == conditions
            and states.draws.shape[0] == settings.variants
        ):
            return states
    states = collect_by(picker, settings, seed, threads, progress, conditions)
    save(states, path)
    return states
