"""Distillation: a student that sees learns by online DAgger from a teacher that knows the exact state.

Each iteration collects a few steps of all environments and learns from them alone, so memory does not grow with
the run. The teacher acts in the first iteration, the student in all others; the label is always the staged
teacher's deterministic action, computed from its own noisy observations. Source: recipe, section 6.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from brax.training.acme import running_statistics, specs

import alohas2r
from alohas2r import (
    config,
    engines,
    networks,
    parallel,
    plan,
    policy,
    pretrain,
    randomize,
    renderers,
    runlog,
    scene,
    student,
)
from alohas2r.checkpoint import Checkpoint
from alohas2r.config import check
from alohas2r.control import ControlConfig
from alohas2r.engines import BufferConfig, Engine
from alohas2r.engines.cpu import snapshot
from alohas2r.env import Env, EnvConfig, EnvState, Scored, Start
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.history import HistoryConfig
from alohas2r.noise import NoiseConfig
from alohas2r.policy import StagedPolicy, StatePolicy
from alohas2r.senses import Seen, Senses, SensesConfig, SensesState, make_renderer
from alohas2r.signals import Readout, Signals
from alohas2r.student import CameraSpec, StudentNetworkConfig, StudentPolicy
from alohas2r.switch_states import INSERT_NOISE
from alohas2r.tasks import hold_out
from alohas2r.tasks.hold_out import HoldOutConfig, HoldOutTask
from alohas2r.tasks.insert import InsertConfig

# Streams of random numbers.
_ENVS, _SENSES, _SHIFT, _ORDER, _WEIGHTS = range(5)
_CHUNK = 512  # samples that are encoded at once
_ALIGNMENT = 64  # bytes
_WORLD = 256  # environments that one thread simulates, draws and decides for at a time
_RECORDED = 16  # observations in the artifact's check
_LEAST_STD = 0.05  # of an action in [-1, 1]; a teacher is never trusted to be more precise


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Multiplies float32 matrices in float32 on GPUs too, where JAX else rounds them to ten bits (TensorFloat-32).

    That is 1e-3 of a value: too much for an artifact's check, which other machines must agree with.
    """
    if jax.default_backend() == "cpu":
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A distillation. Source of the numbers: recipe, section 6, or docs/ablations.md where they differ from it.

    Attributes:
      observation: what the student observes, one of student.OBSERVATIONS.
      iterations: rounds of collecting and learning.
      steps: control steps of every environment per iteration.
      num_envs: environments side by side.
      batch: samples of a gradient step; divides steps * num_envs.
      epochs: passes over an iteration's samples.
      learning_rate: of Adam, at the start and at the end; between them it changes linearly.
      shift: pictures are shifted at random by up to so many pixels before the encoder.
      shifts: different shifts of a sample; 1 to epochs. Fewer save time where the encoder is frozen.
      finetune: whether a pretrained encoder goes on learning.
      auxiliary: weight of predicting where the objects are from the pictures; 0 for none.
      ahead: the student also predicts the teacher's actions in the next so many steps, less than `steps`; only the
        present one is ever taken.
      average: the policy is the exponential average of the parameters, of which each gradient step keeps this
        share (less in the first steps); 0 for the newest parameters.
      precision: errors are weighted by the teacher's standard deviation to the power of minus this; 0 for alike.
      history: what is remembered of the proprioception.
      cameras: pictures. network: shapes.
      task: the episodes. hold_out: missing objects.
      control: action delay. senses: what the student's observation suffers.
      noise: what the teacher's does.
      draws: a label is the mean of the teacher's actions on so many independent measurements of the state, each with
        its own memory. From one measurement to the next they scatter about as much as all that a student fails to
        predict. 1 for a state student, which observes what the teacher does.
      engine: sizes of the buffers of the engine "warp".
      evaluations: evaluations on the way, evenly spread; the last is at the end.
      evaluation_episodes: episodes of each.
      checkpoints: how many on the way, evenly spread.
    """

    observation: str = "rgbd"
    iterations: int = 400
    steps: int = 6
    num_envs: int = 1024
    batch: int = 256
    epochs: int = 4
    learning_rate: tuple[float, float] = (1e-3, 3e-5)
    shift: int = 1
    shifts: int = 1
    finetune: bool = False
    auxiliary: float = 0.1
    ahead: int = 0
    average: float = 0.999
    precision: float = 0.0
    history: HistoryConfig = HistoryConfig((0.35, 0.1))
    cameras: CameraSpec = CameraSpec()
    network: StudentNetworkConfig = StudentNetworkConfig(
        hidden=(320, 256, 256), embedding=48, places=16, patches=(16, 24)
    )
    task: InsertConfig = InsertConfig(steps=200)
    hold_out: HoldOutConfig = HoldOutConfig((0.07, 0.18))
    control: ControlConfig = ControlConfig()
    noise: NoiseConfig = INSERT_NOISE
    draws: int = 4
    senses: SensesConfig = SensesConfig()
    engine: BufferConfig = BufferConfig()
    evaluations: int = 2
    evaluation_episodes: int = 256
    checkpoints: int = 40

    def __post_init__(self) -> None:
        choices = ", ".join(student.OBSERVATIONS)
        check(
            self.observation in student.OBSERVATIONS,
            f"observation must be one of {choices}, not '{self.observation}'",
        )
        for name in ("iterations", "steps", "num_envs", "batch", "epochs"):
            check(
                1 <= getattr(self, name) <= 10**7,
                f"{name} must be 1 or more, not {getattr(self, name)}",
            )
        check(
            (self.steps * self.num_envs) % self.batch == 0,
            f"batch = {self.batch} must divide steps * num_envs = {self.steps * self.num_envs}",
        )
        check(min(self.learning_rate) > 0, "learning_rate must be two numbers > 0")
        check(0 <= self.shift <= 16, f"shift must be in 0..16 pixels, not {self.shift}")
        check(1 <= self.shifts <= self.epochs, f"shifts must be in 1..{self.epochs} (epochs)")
        check(0 <= self.auxiliary <= 100, f"auxiliary must be in 0..100, not {self.auxiliary}")
        check(
            0 <= self.ahead < self.steps, f"ahead must be in 0..{self.steps - 1} (less than steps)"
        )
        check(0 <= self.average < 1, f"average must be in [0, 1), not {self.average}")
        check(0 <= self.precision <= 4, f"precision must be in 0..4, not {self.precision}")
        check(1 <= self.draws <= 64, f"draws must be in 1..64, not {self.draws}")
        check(
            self.draws == 1 or self.observation != "state",
            f"draws must be 1 for a state student, not {self.draws}",
        )
        check(0 <= self.evaluations <= 10_000, "evaluations must be in 0..10000")
        check(1 <= self.evaluation_episodes <= 100_000, "evaluation_episodes must be in 1..100000")
        check(0 <= self.checkpoints <= 100_000, "checkpoints must be in 0..100000")

    @property
    def samples(self) -> int:
        """Samples of one iteration."""
        return self.steps * self.num_envs


PRESETS = {
    "default": DistillConfig(),
    "quick": DistillConfig(
        iterations=20,
        num_envs=64,
        steps=4,
        batch=64,
        evaluations=0,
        checkpoints=4,
    ),
}
DEPTH_ONLY_SIZE = (
    64  # pixels; side of the pictures of the depth-only student. Source: recipe, section 6.
)


def find_preset(name: str, observation: str = "rgbd") -> DistillConfig:
    """Returns a preset for an observation.

    Raises:
      ConfigError: unknown preset or observation.
    """
    if name not in PRESETS:
        raise ConfigError(f"Unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
    if observation not in student.OBSERVATIONS:
        raise ConfigError(
            f"Unknown observation '{observation}'.{did_you_mean(observation, student.OBSERVATIONS)}"
        )
    draws = 1 if observation == "state" else PRESETS[name].draws
    found = dataclasses.replace(PRESETS[name], observation=observation, draws=draws)
    if observation == "depth":
        cameras = dataclasses.replace(found.cameras, size=DEPTH_ONLY_SIZE)
        found = dataclasses.replace(found, cameras=cameras)
    return found


class LearnerState(NamedTuple):
    """What learning changes."""

    params: Any  # "head", and "encoder" where it learns
    averaged: Any  # likewise; empty if nothing is averaged
    optimizer: Any
    stats: Any  # running statistics of the features
    iteration: jax.Array  # [] int32 iterations done
    key: jax.Array  # [2] never changes


class Samples(NamedTuple):
    """Samples of B; pictures that the student lacks are None."""

    rgb: Any  # [B, C, H, W, 3] uint8, or once encoded as `student.encode` returns
    depth: Any  # [B, C, H, W] m
    features: jax.Array  # [B, F]
    switched: jax.Array  # [B] bool
    label: jax.Array  # [B, 14] the teacher's actions
    future: jax.Array  # [B, K, 14] its actions in the next steps
    known: jax.Array  # [B, K] bool, whether the episode and the iteration last so long
    weight: jax.Array  # [B, 14] of the squared errors
    objects: jax.Array  # [B, 2, 3] where they are from the fingertips, in the gripper's frame (m)
    present: jax.Array  # [B, 2] bool, not held out


def teacher_std(found: StatePolicy, features: jax.Array) -> jax.Array:
    """Returns how uncertain a trained policy is of its actions in [-1, 1]: standard deviations [..., n].

    The network's second half of outputs is the scale of a normal distribution before tanh, as PPO trains it;
    the derivative of tanh at the mean carries it over.
    """
    values = jnp.clip((features - found.weights["mean"]) / found.weights["std"], -10.0, 10.0)
    layers = len(found.spec.hidden) + 1
    for layer in range(layers):
        values = (
            values @ found.weights[f"layer{layer}/kernel"] + found.weights[f"layer{layer}/bias"]
        )
        if layer < layers - 1:
            values = policy.activate(found.spec.activation, values, jnp)
    mean, raw = jnp.split(values, 2, -1)
    scale = jax.nn.softplus(raw) + 0.001  # Source: brax NormalTanhDistribution, min_std
    return scale * (1 - jnp.tanh(mean) ** 2)


def staged_std(teacher: StagedPolicy, features: jax.Array, switched: jax.Array) -> jax.Array:
    """Returns `teacher_std` of the policy in charge, [..., 14]."""
    size, rates = teacher.pick.spec.observation_size, len(teacher.spec.history.rates)
    bank = features.reshape(*features.shape[:-1], 1 + rates, -1)
    arms = [bank[..., :size], bank[..., size : 2 * size]]
    pick = [teacher_std(teacher.pick, arm.reshape(*arm.shape[:-2], -1)) for arm in arms]
    insert = teacher_std(teacher.insert, features)
    return jnp.where(switched[..., None], insert, jnp.concatenate(pick, -1))


def choose_engine(engine: str, renderer: str, sees: bool) -> tuple[str, str]:
    """Returns an engine and a renderer that go together.

    Args:
      engine: "cpu"; "warp"; or "auto": "warp" where there is CUDA and no renderer is named that needs a CPU.
      renderer: see senses.RENDERERS. On the engine "warp" pictures stay on its device, so "auto" is "warp".
      sees: whether there are pictures at all.

    Raises:
      ConfigError: an unknown name, or two that do not go together.
    """
    if engine == engines.AUTO and renderer not in ("auto", "warp"):
        engine = "cpu"
    engine = engines.choose(engine)
    if engine != "warp" or not sees:
        return engine, renderer
    if renderer not in ("auto", "warp"):
        raise ConfigError(
            f"The engine 'warp' cannot be combined with the renderer '{renderer}': pictures are drawn on the same"
            " device. Use the renderer 'warp', or the engine 'cpu'."
        )
    return engine, "warp"


class _Draws(Env):
    """Environments whose state is measured several times at once, each time with a delay and a memory of its own.

    Args:
      draws: how often, D. `observe` returns features [N, D, F].
      task, engine, config, context: as `Env`.
    """

    def __init__(
        self, draws: int, task: Any, engine: Engine, config: EnvConfig, context: np.ndarray
    ):
        self.draws = draws
        super().__init__(task, engine, config, context)

    def _fresh(
        self, key: jax.Array, context: jax.Array, stage: jax.Array
    ) -> tuple[EnvState, Start]:
        state, start = super()._fresh(key, context, stage)
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

        def one(key: jax.Array, delay: Any, history: Any) -> tuple[Any, ...]:
            found, features, privileged = observe(
                state._replace(key=key, delay=delay, history=history), signal
            )
            return found.delay, found.history, features, privileged

        delay, history, features, privileged = jax.vmap(one)(keys[1:], state.delay, state.history)
        state = state._replace(key=keys[0], delay=delay, history=history)
        return state, features, privileged[0]


def _balanced(samples: Samples) -> Samples:
    """Divides the weights by their mean."""
    return samples._replace(weight=samples.weight / samples.weight.mean())


class _Together:
    """A tree of all environments, into which each thread writes its own; nothing is copied twice.

    Args:
      count: environments, N.
      memory: where it is kept.
      steps: leaves are [steps * N, ...], time first.
    """

    def __init__(self, count: int, memory: _Memory, steps: int = 1):
        self._shape, self._memory = (steps, count), memory
        self._lock = threading.Lock()
        self._leaves: list[np.ndarray] = []
        self._on_device: list[bool] = []
        self._tree: Any = None

    def put(self, where: slice, tree: Any, step: int | None = None) -> None:
        """Adds the leaves [steps * n, ...] of some environments, or [n, ...] of one step."""
        leaves, structure = jax.tree.flatten(tree)
        rows = [np.asarray(leaf) for leaf in leaves]
        with self._lock:
            if self._tree is None:
                self._tree = structure
                self._on_device = [isinstance(leaf, jax.Array) for leaf in leaves]
                take = self._memory.take
                self._leaves = [take((*self._shape, *row.shape[1:]), row.dtype) for row in rows]
        for target, row in zip(self._leaves, rows, strict=True):
            if step is not None:
                target[step, where] = row
            else:
                some = where.stop - where.start
                target[:, where] = row.reshape(len(target), some, *row.shape[1:])

    def whole(self) -> Any:
        """Returns the whole tree; nobody may write any more."""
        count = self._shape[0] * self._shape[1]
        rows = [leaf.reshape(count, *leaf.shape[2:]) for leaf in self._leaves]
        found = [
            jax.device_put(row, may_alias=True) if on_device else row
            for row, on_device in zip(rows, self._on_device, strict=True)
        ]
        return jax.tree.unflatten(self._tree, found)


def _advance_all(runs: list[Iterator[None]], workers: int) -> None:
    """Runs all generators to their ends; a thread takes the one that has waited longest one step further.

    So no thread is done much before the others, and each generator is in one thread at a time.
    """
    waiting = collections.deque(runs)

    def work() -> None:
        while True:
            try:
                run = waiting.popleft()
            except IndexError:  # each of the others is in a thread, which will go on with it
                return
            try:
                next(run)
            except StopIteration:
                continue
            waiting.append(run)

    with parallel.spread(), concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _ in range(workers)]:
            done.result()


class _Memory:
    """Arrays whose memory is used again as soon as nothing refers to it any more.

    Fresh memory takes longer to get than what is written there takes to write.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, list[np.ndarray]] = {}
        self._unused = _references([np.empty(1, np.uint8)], 0)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array with any content, which JAX can take over on a CPU without a copy."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            kept = self._kept.setdefault(size, [])
            free = (at for at in range(len(kept)) if _references(kept, at) == self._unused)
            found = next(free, len(kept))
            if found == len(kept):
                kept.append(np.empty(size + _ALIGNMENT, np.uint8))
            first = -kept[found].ctypes.data % _ALIGNMENT
            return kept[found][first : first + size].view(dtype).reshape(shape)


def _references(arrays: list[np.ndarray], index: int) -> int:
    """Returns how many references there are to an array, its views' and JAX's among them."""
    return sys.getrefcount(arrays[index])


class _World(NamedTuple):
    """Some of the environments; one thread at a time takes them a step further."""

    where: slice  # which of all
    env: _Draws
    senses: Senses | None


class Distiller:
    """Environments, the student's senses, the teacher, and the learning that joins them.

    On the engine "warp" all of it is compiled JAX on one device, an NVIDIA GPU. On the engine "cpu" Python joins the
    parts: `worlds` of a fixed size, so that samples do not depend on the number of threads, each in one thread at a
    time.

    Args:
      settings: the configuration.
      teacher: the staged teacher.
      encoder: a pretrained colour encoder; None to begin at random and learn it as well.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores.
      renderer, engine: see `choose_engine`.

    Raises:
      ConfigError: an engine and a renderer that do not go together.
      BackendUnavailable: one of them cannot run here.
    """

    def __init__(
        self,
        settings: DistillConfig,
        teacher: StagedPolicy,
        encoder: pretrain.EncoderArtifact | None,
        seed: int,
        threads: int = 0,
        renderer: str = "auto",
        engine: str = engines.AUTO,
    ):
        sees = settings.observation != "state"
        engine, renderer = choose_engine(engine, renderer, sees)
        loaded = scene.load_physics("insert")
        count = settings.num_envs
        draws = np.random.default_rng([seed, 2]).random((count, randomize.INSERT_DRAWS))
        fields, half = randomize.sample_insert(loaded, settings.task.physics, draws)
        task = HoldOutTask(
            loaded, dataclasses.replace(settings.task, switch=teacher.switch), settings.hold_out
        )
        environment = EnvConfig(settings.control, settings.noise, teacher.spec.history)
        context = np.stack([half, np.zeros(count)], 1)
        network, memory = settings.network, settings.history
        if encoder is not None:
            network = dataclasses.replace(network, filters=encoder.filters)
        if settings.observation == "state":  # the teacher's own observation and memory
            memory = teacher.spec.history
        self.settings, self.teacher, self.seed = settings, teacher, seed
        self.threads = threads or len(parallel.cores())
        self.fields = fields
        self.spec = student.make_spec(
            scene.load("insert"),
            settings.observation,
            network,
            settings.cameras,
            memory,
            teacher.switch,
            settings.control.scale,
            teacher.spec.observation,
        )
        arms = task.scene.arms
        self._open_grip = np.array([task.scene.home_ctrl[arm.ctrl[-1]] for arm in arms], np.float32)
        if sees and renderer == "auto":
            renderer = renderers.default_backend()
        # Only ray casters may draw in several threads at once.
        several = engine == "cpu" and (not sees or renderer in ("raycast", "exact"))
        size, self.renderer = _WORLD if several else count, renderer
        self._memory = _Memory()
        self.worlds: list[_World] = []
        for first in range(0, count, size):
            where = slice(first, min(first + size, count))
            some, alone = where.stop - first, 1 if count > size else threads
            made = engines.make(
                *(engine, loaded, some, alone),
                {name: value[where] for name, value in fields.items()},
                settings.engine,
            )
            env = _Draws(settings.draws, task, made, environment, context[where])
            senses = None
            if sees:
                capacity = some if made.traceable else 0
                drawer = make_renderer(renderer, self.spec.cameras.size, alone, capacity)
                senses = Senses(self.spec, settings.senses, half[where], drawer)
            if self.worlds:
                env.share(self.worlds[0].env)
            self.worlds.append(_World(where, env, senses))
        # What they have in common is compiled with the first one's.
        self.env, self.senses = self.worlds[0].env, self.worlds[0].senses
        self.frozen: dict[str, Any] = {}
        self._encoder = encoder
        if self.spec.has_rgb and encoder is not None and not settings.finetune:
            self.frozen = {"encoder": jax.tree.map(jnp.asarray, encoder.params)}
        # Without the rate, which changes with the iteration.
        self.optimizer = optax.scale_by_adam()
        on_cpu = jax.default_backend() == "cpu"
        # Where several threads collect at once, each computes on its own core alone.
        several_worlds = on_cpu and len(self.worlds) > 1
        options = {"xla_cpu_multi_thread_eigen": False} if several_worlds else None
        # The buffers of the delay are overwritten, not copied.
        self._sense = jax.jit(self._observe_in_place, donate_argnums=0, compiler_options=options)
        known = student.encode_in_products if on_cpu else student.encode
        self._code = functools.partial(known, self.spec)
        self._encode = jax.jit(self._code)
        self._encode_alone = None
        if on_cpu and self.frozen and not self.env.engine.traceable:
            from alohas2r.encoding import FrozenEncoder  # needs a package that a GPU does without

            self._encode_alone = encode = FrozenEncoder(self.spec, self.frozen["encoder"])
            self._encode = lambda _, rgb: encode(rgb)
        self._decide = jax.jit(self._decided, compiler_options=options)
        self._stack = jax.jit(self._join, compiler_options=options)
        self._take = jax.jit(
            lambda tree, first, count: jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), tree
            ),
            static_argnums=2,
        )
        self._augment = jax.jit(self._augmented)
        if self._encode_alone is not None:
            self._shift = jax.jit(student.shift_pictures, static_argnums=3)
            self._augment = self._augmented_apart
        self._epoch = jax.jit(self._one_epoch)
        self._step = jax.jit(self._one_step)
        self._compiled = False  # whether a world has gone through an iteration
        # Rates of learning [iterations].
        share = np.arange(settings.iterations) / max(settings.iterations - 1, 1)
        first, last = settings.learning_rate
        self._rates = jnp.asarray(first + share * (last - first), jnp.float32)
        self._collect = jax.jit(self._collect_traced)
        self._learn_at_once = jax.jit(self._learn)

    @property
    def auxiliary(self) -> bool:
        """Whether the student predicts where the objects are."""
        return self.settings.auxiliary > 0 and self.senses is not None

    @property
    def learns_convolutions(self) -> bool:
        """Whether there are convolutions that learn."""
        return (self.spec.has_rgb and not self.frozen) or self.spec.observation == "depth"

    @property
    def compiles_passes(self) -> bool:
        """Whether the gradient steps of a pass are one compiled loop; see `_pass`."""
        return not self.learns_convolutions or jax.default_backend() != "cpu"

    def init(self) -> LearnerState:
        """Returns the learner before the first iteration."""
        key = jax.random.PRNGKey(self.seed)
        weights_key = jax.random.fold_in(key, _WEIGHTS)
        ahead = self.settings.ahead
        params = jax.jit(lambda key: student.init(self.spec, key, self.auxiliary, ahead))(
            weights_key
        )
        if self.spec.has_rgb and self._encoder is not None:
            params["encoder"] = jax.tree.map(jnp.asarray, self._encoder.params)
        if self.frozen:
            params.pop("encoder")
        stats: Any = running_statistics.init_state(specs.Array((self.spec.features,), jnp.float32))
        averaged = params if self.settings.average else {}
        state = LearnerState(
            params, averaged, self.optimizer.init(params), stats, jnp.zeros((), jnp.int32), key
        )
        # Plain numbers among the statistics become arrays, so that a checkpoint restores the same types.
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, getattr(leaf, "dtype", jnp.float32)), state
        )

    def begin(self) -> tuple[EnvState, Any, Readout, SensesState | None]:
        """Starts all environments, their clocks scattered over the episode."""
        root = jax.random.PRNGKey(self.seed)
        count = self.settings.num_envs
        keys, sense_keys = (
            jax.random.split(jax.random.fold_in(root, stream), count) for stream in (_ENVS, _SENSES)
        )

        def started(world: _World) -> tuple[EnvState, Any, Readout, SensesState | None]:
            where, env, senses = world
            sense = None if senses is None else senses.reset(sense_keys[where])
            return (*env.reset(keys[where], stagger=True), sense)

        if len(self.worlds) == 1:
            return started(self.worlds[0])
        whole = _Together(count, self._memory)
        for world in self.worlds:
            whole.put(world.where, started(world))
        return whole.whole()

    def _part(
        self, world: _World, whole: tuple[EnvState, Any, Readout, SensesState | None]
    ) -> tuple[EnvState, Any, Readout, SensesState | None]:
        """Returns one world's share of the states."""
        state, physics, readout, sense = whole
        if len(self.worlds) == 1:
            if sense is not None:  # whose buffers are overwritten
                sense = sense._replace(
                    **{
                        name: None if leaf is None else jnp.copy(leaf)
                        for name, leaf in (("rgb", sense.rgb), ("depth", sense.depth))
                    }
                )
            return state, physics, readout, sense
        physics, readout = (
            type(rows)(*(leaf[world.where] for leaf in rows)) for rows in (physics, readout)
        )
        count = world.where.stop - world.where.start
        state, sense = self._take((state, sense), world.where.start, count)
        return state, physics, readout, sense

    def _act(
        self,
        learner: LearnerState,
        frozen: Any,
        state: EnvState,
        readout: Readout,
        sense: SensesState | None,
        drawn: Any,
        teacher_acts: Any,
        traced: bool = False,
    ) -> tuple[EnvState, SensesState | None, Samples, Seen, jax.Array]:
        """Observes, labels and acts.

        Args:
          learner, frozen: the student. state, readout, sense: of the environments.
          drawn: their pictures. teacher_acts: whether the teacher does.
          traced: inside `jax.jit`; else in three calls, which take less time than one on a CPU; these overwrite the
            pictures of `sense`.

        Returns:
          The new states, samples [N], the observation and targets [N, nu].
        """
        encode, decide = self._encode, self._decide
        if traced:
            encode, decide = self._code, self._decided
            state, sense, samples, seen = self._observe(state, readout, sense, drawn)
        else:
            buffers = None
            if sense is not None:
                buffers = sense.rgb, sense.depth
                sense = sense._replace(rgb=None, depth=None)
            state, sense, samples, seen = self._sense(buffers, state, readout, sense, drawn)
        code = None
        if seen.rgb is not None:
            code = encode({**learner.params, **frozen}["encoder"], seen.rgb)
        state, ctrl = decide(learner, state, readout, samples, code, teacher_acts)
        return state, sense, samples, seen, ctrl

    def _observe_in_place(
        self,
        buffers: tuple[jax.Array | None, jax.Array | None] | None,
        state: EnvState,
        readout: Readout,
        sense: SensesState | None,
        drawn: Any,
    ) -> tuple[EnvState, SensesState | None, Samples, Seen]:
        """Observes and labels; the senses' pictures come apart, so that they alone can be overwritten."""
        if sense is not None and buffers is not None:
            sense = sense._replace(rgb=buffers[0], depth=buffers[1])
        return self._observe(state, readout, sense, drawn)

    def _observe(
        self, state: EnvState, readout: Readout, sense: SensesState | None, drawn: Any
    ) -> tuple[EnvState, SensesState | None, Samples, Seen]:
        """Observes and labels."""
        held_out, switched = state.task.held_out, state.task.switched
        signals = self.env.extract(readout)
        state, known, _ = self.env.observe(state, readout)
        flags = jnp.broadcast_to(switched[:, None], known.shape[:2])
        label = hold_out.still(
            *(self.teacher.apply(known, flags, jnp).mean(1), held_out),
            *(signals.ctrl[..., -1], self._open_grip, self.settings.control.scale),
        )
        known = known[:, 0]
        weight = jnp.ones_like(label)
        if self.settings.precision > 0:
            std = jnp.maximum(staged_std(self.teacher, known, switched), _LEAST_STD)
            weight = std**-self.settings.precision
        if self.senses is None or sense is None:
            size = self.env.task.observation_size
            seen = Seen(None, None, known[:, :size], known)
        else:
            frames, brightness = drawn
            sense, seen = self.senses.perceive(sense, frames, brightness, signals)
        samples = Samples(
            rgb=seen.rgb,
            depth=seen.depth,
            features=seen.features,
            switched=switched,
            label=label,
            future=jnp.zeros((*label.shape[:1], self.settings.ahead, *label.shape[1:])),
            known=jnp.zeros((*label.shape[:1], self.settings.ahead), bool),
            weight=weight,
            objects=hold_out.object_in_gripper(signals),
            present=~held_out,
        )
        return state, sense, samples, seen

    def _decided(
        self,
        learner: LearnerState,
        state: EnvState,
        readout: Readout,
        samples: Samples,
        code: Any,
        teacher_acts: Any,
    ) -> tuple[EnvState, jax.Array]:
        """Acts on samples whose colour pictures are encoded to `code`; returns targets [N, nu] as well."""
        features = networks.normalize(samples.features, learner.stats.mean, learner.stats.std)
        logits, _ = student.head(
            *(self.spec, learner.params["head"], code, samples.depth, features, samples.switched),
            *(self.auxiliary, self.settings.ahead),
        )
        label = samples.label
        action = jnp.where(teacher_acts, label, jnp.tanh(logits[:, : label.shape[1]]))
        return self.env.control(state, readout, action)

    def collect(
        self,
        learner: LearnerState,
        state: EnvState,
        physics: Any,
        readout: Readout,
        sense: SensesState | None,
    ) -> tuple[Samples, EnvState, Any, Readout, SensesState | None, list[Any]]:
        """Collects one iteration's samples.

        Returns:
          Samples [steps * N] (time first), the states after them, and each step's `Scored`. Where the engine is
          traceable the whole runs on the device in one call; of the scores there is only the last step's, but
          `done` and `finite` of all steps [steps, N]; and the caller asks `engine.check` afterwards.
        """
        if self.env.engine.traceable:
            *found, scored, _ = self._collect(learner, self.frozen, state, physics, readout, sense)
            return *found, [scored]
        whole = (state, physics, readout, sense)
        count, steps = self.settings.num_envs, self.settings.steps
        pictures, others = (_Together(count, self._memory, steps) for _ in range(2))
        following = _Together(count, self._memory)
        ended: list[Any] = []  # a single world's states, whatever they are made of

        def collected(world: _World) -> Iterator[None]:
            begun = self._part(world, whole)
            samples, after = yield from self._gather(world, learner, begun, pictures)
            others.put(world.where, samples)
            if len(self.worlds) == 1:
                ended.append(after)
            else:
                following.put(world.where, after)

        runs = [collected(world) for world in self.worlds]
        if not self._compiled:
            for _ in runs.pop(0):  # alone, so that nothing is compiled twice
                pass
            self._compiled = True
        # Twice as many as cores, so that there is always one that waits for nothing.
        _advance_all(runs, min(2 * self.threads, len(self.worlds)) if self.threads > 1 else 1)
        rgb, depth = pictures.whole()
        samples = others.whole()._replace(rgb=rgb, depth=depth)
        after, scores = ended[0] if ended else following.whole()
        return _balanced(samples), *after, scores

    def _gather(
        self, world: _World, learner: LearnerState, begun: Any, pictures: _Together
    ) -> Generator[None, None, tuple[Samples, Any]]:
        """Collects one world's samples [steps * n], time first; yields after each step.

        Args:
          world: the environments. learner: the student. begun: their states.
          pictures: where the samples' pictures are put.

        Returns:
          The samples without their pictures; and their states after them, with the scores.
        """
        state, physics, readout, sense = begun
        teacher_acts = learner.iteration == 0
        parts, scores = [], []
        for step in range(self.settings.steps):
            drawn = None, None
            if world.senses is not None and sense is not None:
                drawn = world.senses.draw(sense, readout.qpos)
            state, sense, samples, _, ctrl = self._act(
                learner, self.frozen, state, readout, sense, drawn, teacher_acts
            )
            state, physics, readout, scored = world.env.advance(state, physics, ctrl)
            if world.senses is not None and sense is not None:
                sense = world.senses.restart_some(sense, scored.done)
            pictures.put(world.where, (samples.rgb, samples.depth), step)
            parts.append(samples._replace(rgb=None, depth=None))
            scores.append(scored)
            yield
        joined = self._stack(parts, [scored.done for scored in scores])
        return joined, ((state, physics, readout, sense), scores)

    def _collect_traced(
        self,
        learner: LearnerState,
        frozen: Any,
        state: EnvState,
        physics: Any,
        readout: Readout,
        sense: SensesState | None,
    ) -> tuple[Samples, EnvState, Any, Readout, SensesState | None, Scored, Any]:
        """Collects one iteration's samples inside `jax.jit`.

        Returns:
          As `collect`, and what `trace` returns.
        """
        teacher_acts = learner.iteration == 0

        def step(carry: Any, _: Any) -> tuple[Any, Any]:
            state, physics, readout, sense = carry
            drawn = None
            if self.senses is not None and sense is not None:
                drawn = self.senses.draw_traced(sense, readout.qpos)
            state, sense, samples, _, ctrl = self._act(
                learner, frozen, state, readout, sense, drawn, teacher_acts, traced=True
            )
            moved = (ctrl, readout.qpos)
            state, physics, readout, scored = self.env.advance_traced(state, physics, ctrl)
            if self.senses is not None and sense is not None:
                sense = self.senses.restart(sense, scored.done)
            return (state, physics, readout, sense), (samples, scored, moved)

        count = self.settings.steps
        carry, (rows, scores, moved) = jax.lax.scan(
            step, (state, physics, readout, sense), None, length=count
        )
        parts: list[Any] = [
            jax.tree.map(lambda leaf, at=at: leaf[at], (rows, scores)) for at in range(count)
        ]
        samples = self._join([part for part, _ in parts], [scored.done for _, scored in parts])
        samples = _balanced(samples)
        last: Scored = parts[-1][1]
        last = last._replace(done=scores.done, finite=scores.finite)
        return samples, *carry, last, moved

    def trace(
        self,
        learner: LearnerState,
        state: EnvState,
        physics: Any,
        readout: Readout,
        sense: SensesState | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns actuator targets [steps, N, nu] and poses [steps, N, nq] of what `collect` does on the device."""
        return self._collect(learner, self.frozen, state, physics, readout, sense)[-1]

    def _join(self, parts: list[Samples], dones: list[jax.Array]) -> Samples:
        """Puts the samples of all steps together, and to each what follows it."""
        for step, part in enumerate(parts):
            going_on, future, known = jnp.ones_like(dones[0]), part.future, part.known
            for number in range(1, self.settings.ahead + 1):
                if step + number < len(parts):
                    going_on = going_on & ~dones[step + number - 1]
                    future = future.at[:, number - 1].set(parts[step + number].label)
                    known = known.at[:, number - 1].set(going_on)
            parts[step] = part._replace(future=future, known=known)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def _augmented(self, key: jax.Array, frozen: Any, samples: Samples) -> Samples:
        """Shifts the pictures, and encodes them if the encoder does not learn."""
        rgb, depth = student.shift_pictures(key, samples.rgb, samples.depth, self.settings.shift)
        if rgb is not None and frozen:
            count = rgb.shape[0]
            chunk = next(size for size in range(min(_CHUNK, count), 0, -1) if count % size == 0)
            chunks = rgb.reshape(-1, chunk, *rgb.shape[1:])
            rgb = jax.lax.map(functools.partial(self._code, frozen["encoder"]), chunks)
            rgb = rgb.reshape(count, *rgb.shape[2:])
        return samples._replace(rgb=rgb, depth=depth)

    def _augmented_apart(self, key: jax.Array, _: Any, samples: Samples) -> Samples:
        """Does the same with `_encode_alone`, on all threads."""
        rgb, depth = self._shift(key, samples.rgb, samples.depth, self.settings.shift)
        encode, pictures = self._encode_alone, np.asarray(rgb)
        assert encode is not None
        first = encode(pictures[:1])
        code = self._memory.take((len(pictures), *first.shape[1:]), first.dtype)

        def some(start: int) -> None:
            code[start : start + _CHUNK] = encode(pictures[start : start + _CHUNK])

        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(some, range(0, len(pictures), _CHUNK)))
        return samples._replace(rgb=jax.device_put(code, may_alias=True), depth=depth)

    def loss(self, params: Any, stats: Any, batch: Samples) -> tuple[jax.Array, dict[str, Any]]:
        """Returns the loss of a batch, and figures.

        Args:
          params: what learns. stats: of the features.
          batch: colour pictures are encoded already unless the encoder learns.
        """
        rgb = batch.rgb
        if rgb is not None and "encoder" in params:
            rgb = student.encode(self.spec, params["encoder"], rgb)
        features = networks.normalize(batch.features, stats.mean, stats.std)
        logits, guess = student.head(
            *(self.spec, params["head"], rgb, batch.depth, features, batch.switched),
            *(self.auxiliary, self.settings.ahead),
        )
        actions = jnp.tanh(logits).reshape(len(logits), -1, batch.label.shape[1])
        squares = jnp.square(actions[:, 0] - batch.label)
        total = (batch.weight * squares).mean()
        figures = {"loss/imitation": squares.mean()}
        if self.settings.ahead:
            errors = jnp.square(actions[:, 1:] - batch.future).mean(-1) * batch.known
            figures["loss/ahead"] = errors.sum() / jnp.maximum(batch.known.sum(), 1)
            total = total + figures["loss/ahead"]
        if guess is not None:
            wanted = jnp.clip(batch.objects / student.AUXILIARY_SCALE, -3, 3)
            errors = jnp.square(guess - wanted).mean(-1) * batch.present
            figures["loss/objects"] = errors.sum() / jnp.maximum(batch.present.sum(), 1)
            total = total + self.settings.auxiliary * figures["loss/objects"]
        return total, figures

    def _pass(
        self, learnt: Any, stats: Any, samples: Samples, key: jax.Array, rate: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Takes one gradient step per batch of the samples.

        Where convolutions learn on a CPU, each step is a call of its own: inside a compiled loop XLA's gradients of
        convolutions are some fifty times slower there.

        Args:
          learnt: parameters, their average, optimizer.
          stats: of the features. samples: augmented. key: of their order. rate: of learning.

        Returns:
          What is learnt, and figures [batches].
        """
        if self.compiles_passes:
            return self._epoch(learnt, stats, samples, key, rate)
        order = np.asarray(jax.random.permutation(key, self.settings.samples))
        rows = []
        for chosen in order.reshape(-1, self.settings.batch):
            learnt, figures = self._step(learnt, stats, samples, chosen, rate)
            rows.append(figures)
        return learnt, jax.tree.map(lambda *values: jnp.stack(values), *rows)

    def _one_step(
        self, learnt: Any, stats: Any, samples: Samples, chosen: Any, rate: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Takes one gradient step on the chosen samples."""
        params, averaged, optimizer = learnt
        batch = jax.tree.map(lambda leaf: leaf[chosen], samples)
        gradient, figures = jax.grad(self.loss, has_aux=True)(params, stats, batch)
        updates, new = self.optimizer.update(gradient, optimizer)
        optimizer: Any = new
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        if self.settings.average:
            # Short at first, so that the start is soon forgotten.
            taken = jnp.asarray(optimizer.count, jnp.float32)
            kept = jnp.minimum(self.settings.average, (1 + taken) / (10 + taken))
            averaged = jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), averaged, params)
        return (params, averaged, optimizer), figures

    def _one_epoch(
        self, learnt: Any, stats: Any, samples: Samples, key: jax.Array, rate: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """As `_pass`, in one compiled loop."""
        order = jax.random.permutation(key, self.settings.samples)

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, Any]:
            return self._one_step(carry, stats, samples, chosen, rate)

        return jax.lax.scan(step, learnt, order.reshape(-1, self.settings.batch))

    def update(
        self, learner: LearnerState, samples: Samples
    ) -> tuple[LearnerState, dict[str, Any]]:
        """Learns from one iteration's samples.

        Returns:
          The learner, and figures: "loss/first" is on samples it has not learnt from yet.
        """
        at_once = self.env.engine.traceable and self.compiles_passes
        learn = self._learn_at_once if at_once else self._learn
        learner, metrics = learn(learner, self.frozen, samples)
        return learner, {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _learn(
        self, learner: LearnerState, frozen: Any, samples: Samples
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Learns as `update` does (traceable if `compiles_passes`)."""
        settings = self.settings
        stats: Any = running_statistics.update(learner.stats, samples.features)
        rate = self._rates[learner.iteration]
        learnt = (learner.params, learner.averaged, learner.optimizer)
        key = jax.random.fold_in(learner.key, learner.iteration)
        seen, rows = samples, []
        for epoch in range(settings.epochs):
            if epoch < settings.shifts:
                shift_key = jax.random.fold_in(jax.random.fold_in(key, _SHIFT), epoch)
                seen = self._augment(shift_key, frozen, samples)
            order_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
            learnt, figures = self._pass(learnt, stats, seen, order_key, rate)
            rows.append(figures)
        metrics = {name: value.mean() for name, value in rows[-1].items()}
        metrics["loss/first"] = rows[0]["loss/imitation"][0]
        metrics["loss/label_variance"] = jnp.var(samples.label, 0).mean()
        metrics["loss/learning_rate"] = rate
        params, averaged, optimizer = learnt
        done = learner.iteration + 1
        learner = LearnerState(params, averaged, optimizer, stats, done, learner.key)
        return learner, metrics

    def to_policy(self, learner: LearnerState, trained: Mapping[str, Any]) -> StudentPolicy:
        """Returns the learner's policy, without what only training needs."""
        params = learner.averaged if self.settings.average else learner.params
        weights = student.flatten({**params, **self.frozen}, learner.stats.mean, learner.stats.std)
        if self.settings.ahead:
            actions = len(self.spec.action.joints)
            for name in ("kernel", "bias"):
                last = f"head/layer{len(self.spec.network.hidden)}/{name}"
                weights[last] = weights[last][..., :actions]
        return StudentPolicy(self.spec, weights, trained)

    def record(
        self,
        learner: LearnerState,
        state: EnvState,
        physics: Any,
        readout: Readout,
        sense: SensesState | None,
    ) -> dict[str, np.ndarray]:
        """Returns what the first environments observe now, one after the other, for an artifact's check."""
        world = self.worlds[0]
        state, _, readout, sense = self._part(world, (state, physics, readout, sense))
        drawn = None, None
        if world.senses is not None and sense is not None:
            drawn = world.senses.draw(sense, readout.qpos)
        outcome = self._act(learner, self.frozen, state, readout, sense, drawn, jnp.asarray(False))
        seen, switched = outcome[3], np.asarray(state.task.switched)
        rows: dict[str, np.ndarray] = {self.spec.vector: np.asarray(seen.vector)}
        for camera, side in enumerate(student.SIDES):
            if seen.rgb is not None:
                rows[f"{side}_rgb"] = np.asarray(seen.rgb[:, camera])
            if seen.depth is not None:
                rows[f"{side}_depth"] = np.asarray(seen.depth[:, camera])
        rows["switched"] = switched
        return {name: value[:_RECORDED] for name, value in rows.items()}


def load_teacher(path: str | os.PathLike[str]) -> StagedPolicy:
    """Reads a staged teacher.

    Raises:
      ArtifactError: it cannot be read, or is none.
    """
    found = policy.load(path)
    if not isinstance(found, StagedPolicy):
        raise ArtifactError(
            f"{path} is no staged teacher; `alohas2r train-teacher --phase insert` makes one."
        )
    return found


@full_precision()
def distill(
    preset: str = "default",
    overrides: Sequence[str] = (),
    teacher: str | os.PathLike[str] | None = None,
    encoder: str | os.PathLike[str] | None = None,
    observation: str = "rgbd",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    progress: runlog.Progress | None = None,
    renderer: str = "auto",
    engine: str = engines.AUTO,
) -> dict[str, Any]:
    """Distils a teacher into a student and writes the student's artifact to `out`/student.

    Args:
      preset: "default" (full scale) or "quick".
      overrides: "key=value" settings on top of the preset.
      teacher: the staged teacher's folder; the shipped one if None.
      encoder: folder of a pretrained colour encoder; "none" to begin at random and learn it as well, "finetune"
        to go on learning the shipped one; the shipped one, frozen, if None. Of no use without colour.
      observation: "rgbd", "depth", "rgb", or "state" for the teacher's own observation.
      out: folder of the run; runs/student if None.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores.
      resume: continue the run in `out` to the same result as an unbroken run.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see senses.RENDERERS. Part of what makes a run reproducible.
      engine: what simulates and learns: "cpu"; "warp", which draws as well; or "auto": the engine of the run that is
        resumed, else as `choose_engine`. Evaluations on the way run on the engine "cpu" in any case.

    Returns:
      "student": the artifact's folder, or None if stopped early; "engine", "steps", "finished", "wall_s", last
      metrics.

    Raises:
      ConfigError: unknown setting, value out of range, another configuration than the run that is resumed, or an
        engine and a renderer that do not go together.
      BackendUnavailable: the engine or the renderer cannot run here.
      ModelError: the engine's buffers are too small; the message says what to set.
      ArtifactError: an artifact cannot be read, the folder cannot be written, or the checkpoint is damaged.
    """
    from alohas2r import student_eval
    from alohas2r.evaluate import episode_keys
    from alohas2r.protocol import EVAL_V1

    settings = find_preset(preset, observation)
    if encoder is not None and os.fspath(encoder) == "finetune":
        encoder, settings = None, dataclasses.replace(settings, finetune=True)
    settings = config.override(settings, overrides)
    folder = runlog.make_folder(out if out is not None else pathlib.Path("runs") / "student")
    if resume and engine == engines.AUTO:
        engine = _engine_of(folder / plan.NAME)
    engine, _ = choose_engine(engine, renderer, settings.observation != "state")
    shipped = scene.data_path("params")
    staged = load_teacher(shipped / "teacher" if teacher is None else teacher)
    found = None
    if settings.observation in ("rgb", "rgbd") and (
        encoder is None or os.fspath(encoder) != "none"
    ):
        found = pretrain.load_encoder(shipped / "encoder" if encoder is None else encoder)
    checkpoint = Checkpoint(folder / "checkpoint")
    parents = {"teacher": staged.hash, "encoder": None if found is None else found.hash}
    others = {"seed": seed, "engine": engine, **parents}
    plan.begin(folder, settings, others, resume, checkpoint.exists())

    parallel.keep_memory()
    distiller = Distiller(settings, staged, found, seed, threads, renderer, engine)
    learner = distiller.init()
    state, physics, readout, sense = distiller.begin()
    done, wall_before = 0, 0.0
    if resume and checkpoint.exists():
        whole, extra = checkpoint.load((learner, state, snapshot(physics), readout, sense))
        learner, state, physics, readout, sense = whole
        done, wall_before = int(extra["iterations"]), float(extra["wall_s"])
    per_iteration = settings.samples
    started = time.monotonic()
    figures: dict[str, float] = {}
    runner: student_eval.StudentRunner | None = None

    def wall() -> float:
        return wall_before + time.monotonic() - started

    def save(iteration: int) -> None:
        extra = {"iterations": iteration, "wall_s": wall(), "version": alohas2r.__version__}
        checkpoint.save((learner, state, snapshot(physics), readout, sense), extra)

    with (
        runlog.RunLog(
            folder, settings.iterations * per_iteration, label="distill", progress=progress
        ) as log,
        runlog.StopSignal() as stop,
    ):
        if resume:
            log.resume(done * per_iteration)
        log.start()
        first = done + 1
        for iteration in range(first, settings.iterations + 1):
            samples, state, physics, readout, sense, scores = distiller.collect(
                learner, state, physics, readout, sense
            )
            learner, figures = distiller.update(learner, samples)
            del samples  # their memory is the next ones'
            figures |= _measures(scores)
            distiller.env.engine.check(physics)
            if iteration == first:
                parallel.give_memory_back()  # what compiling left
            done = iteration
            if not np.isfinite(figures["loss/imitation"]):
                raise ArtifactError(
                    f"The loss is not finite in iteration {iteration}; the last checkpoint in {folder} is good:"
                    " start anew with a smaller learning_rate."
                )
            if plan.due(iteration, settings.iterations, settings.evaluations):
                if runner is None:
                    keys = episode_keys(seed + 1_000_003, 0, settings.evaluation_episodes)
                    runner = student_eval.StudentRunner(
                        distiller.spec, EVAL_V1, keys, threads, renderer
                    )
                table, _ = runner.run(distiller.to_policy(learner, {}).weights)
                figures |= {
                    f"eval/{name}": float(table[name].mean())
                    for name in ("success", "held_at_end", "lifted_both", "switched", "dropped")
                }
            log.write(iteration * per_iteration, figures)
            expired = minutes is not None and (time.monotonic() - started) > 60 * minutes
            last = iteration == settings.iterations
            if (
                stop
                or expired
                or last
                or plan.due(iteration, settings.iterations, settings.checkpoints)
            ):
                save(iteration)
                parallel.give_memory_back()
            if stop or expired:
                break

    finished = done == settings.iterations
    result: dict[str, Any] = {
        "observation": settings.observation,
        "engine": engine,
        "steps": done * per_iteration,
        "finished": finished,
        "wall_s": round(wall(), 1),
        "out": str(folder),
        "student": None,
        "metrics": figures,
    }
    if finished:
        command = (
            f"alohas2r distill --preset {preset} --observation {settings.observation} --seed {seed}"
            + f" --engine {engine}"
            + (f" --encoder {os.fspath(encoder)}" if encoder is not None else "")
            + "".join(f" --set {setting}" for setting in overrides)
        )
        trained = plan.provenance(
            command, settings, seed, result["steps"], result["wall_s"], parents
        )
        trained["engine"] = engine
        rows = distiller.record(learner, state, physics, readout, sense)
        result["student"] = str(
            student.save(distiller.to_policy(learner, trained), folder / "student", rows)
        )
    return result


def _engine_of(described: pathlib.Path) -> str:
    """Returns the engine of a run, "auto" if it cannot be read; `plan.begin` says why."""
    try:
        return str(json.loads(described.read_text())["engine"])
    except (OSError, ValueError, TypeError, KeyError):
        return engines.AUTO


def _measures(scores: Sequence[Any]) -> dict[str, float]:
    """Returns the shares of environments in each stage at the last step, and of those that diverged."""
    names = ("grasped", "lifted", "switched", "success")
    last, finite = jax.device_get(
        ([getattr(scores[-1].measures, name) for name in names], [s.finite for s in scores])
    )
    found = {
        f"train/{name}": float(np.asarray(value, np.float32).mean())
        for name, value in zip(names, last, strict=True)
    }
    found["train/unstable"] = float(np.mean([(~row).mean() for row in finite]))
    return found
