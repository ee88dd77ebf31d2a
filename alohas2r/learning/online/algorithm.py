"""The learner as an algorithm of the run loop: an iteration is a chunk of the robot's decisions, and a version."""

from __future__ import annotations

import functools
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alohas2r.core.records import Record
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.errors import ArtifactError
from alohas2r.learning.online import losses
from alohas2r.learning.online.clone import clone
from alohas2r.learning.online.experience import Chains, Row
from alohas2r.learning.online.pretrain import first_encoder
from alohas2r.learning.online.replay import Batch, Replay, all_together, half_and_half
from alohas2r.learning.online.sources import Tail, read_demos, read_earlier
from alohas2r.learning.run.loop import Figures
from alohas2r.policies import artifact
from alohas2r.policies.online import insertion, networks, published
from alohas2r.policies.online.config import LOGS, POLICY, PUBLISHED, AnyRun, InsertRun
from alohas2r.policies.online.policy import OnlinePolicy
from alohas2r.policies.online.spec import SeeingSpec
from alohas2r.policies.onnx.base import read_base
from alohas2r.policies.protocol import Stored
from alohas2r.policies.vision import ResidualPolicy

_POLL_S = 0.02


class State(NamedTuple):
    """What changes: weights that learn by name, slow critics, optimizers, chunks that are done."""

    policy: PyTree
    critics: PyTree
    slow: PyTree
    temperature: PyTree  # its logarithm
    optimizers: PyTree
    chunks: np.ndarray


class OnlineAlgorithm:
    """Learns from the log that a robot writes; see `learning.run.loop.Algorithm`.

    Args:
      folder: of the run. run: what it is.
      eyes: a student's, that look at pictures; none where the log holds features or the policy has its own.
      parent: process that writes the log; the learner ends with it. None: it goes on.
    """

    label = "learn"
    losses = ("critic_loss",)
    remedy = "learning_rate"
    artifacts = (POLICY,)

    def __init__(
        self,
        folder: pathlib.Path,
        run: AnyRun,
        eyes: Mapping[str, np.ndarray],
        parent: int | None = None,
    ) -> None:
        self._folder, self._run, self._eyes, self._parent = folder, run, dict(eyes), parent
        config = run.config
        self.steps_per_iteration = config.chunk if config.learns else 1
        self.iterations = run.decisions // config.chunk if config.learns else 1
        self._rows = read_demos(run.demos, run.spec)
        self._check = [one for one in self._rows if isinstance(one, Row)][:64]
        self._demos, self._own = self._replay(True), self._replay(False)
        self._chains, self._tail = Chains(run.spec), Tail(folder / LOGS)
        self._stream: Iterator[Record] | None = None  # what was polled, and not taken yet
        self._fixed: dict[str, np.ndarray] = {}
        self._optimizers = (
            optax.adam(config.policy_rate),
            optax.adam(config.learning_rate),
            optax.adam(config.learning_rate),
        )
        self._learn = jax.jit(self._group, donate_argnums=0)

    def _replay(self, demos: bool) -> Replay:
        """Returns a replay without rows."""
        return Replay(self._run.spec, self._eyes, demos)

    def init(self) -> State:
        """Clones the demonstrations, learns of earlier runs, and publishes the first version."""
        run, config = self._run, self._run.config
        self._prepare()
        draw = np.random.default_rng([run.seed, 5])
        weights = self._first(draw)
        if config.clone_steps:
            weights, _ = clone(
                run.spec, weights, self._demos, config.clone_steps, config.feature_noise, run.seed
            )
        policy = {name: jnp.asarray(weights[name]) for name in weights if name.startswith("policy")}
        self._fixed = {name: value for name, value in weights.items() if name not in policy}
        critics = jax.tree.map(jnp.asarray, self._critics(draw))
        temperature = jnp.log(jnp.maximum(jnp.float32(config.temperature), 1e-6))
        parts = (policy, critics, temperature)
        several = zip(self._optimizers, parts, strict=True)
        optimizers = tuple(optimizer.init(part) for optimizer, part in several)
        slow = jax.tree.map(jnp.copy, critics)
        first = (policy, critics, slow, temperature, optimizers)
        policy, critics, slow, temperature, optimizers = self._learn_offline(first)
        state = State(policy, critics, slow, temperature, optimizers, np.zeros((), np.int64))
        self._publish(state, 0)
        return state

    def _learn_offline(self, learning: PyTree) -> PyTree:
        """Learns of demonstrations and earlier runs alone, close to what was done there: `offline_updates`."""
        config, seed = self._run.config, self._run.seed
        draw, key = np.random.default_rng([seed, 7]), jax.random.PRNGKey(seed + 1)
        for number in range(config.offline_updates // config.policy_every):
            self._stay()
            each = jax.random.fold_in(key, number)
            learning, _ = self._improve(learning, draw, each, config.offline_weight)
        return learning

    def _prepare(self) -> None:
        """Makes the encoder, where it is the policy's own, and fills the replays with what was there before."""
        run = self._run
        if isinstance(run.spec, SeeingSpec):
            eyes, _ = first_encoder(run.spec, run.config, self._rows, run.seed, self._stay)
            self._eyes.update(eyes)
        self._demos.add(self._rows)
        for earlier in run.offline:
            self._own.add(read_earlier(earlier, run.spec))

    def _critics(self, draw: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns all that the critics' gradient changes, at random."""
        return losses.init_critics(self._run.spec, self._run.config, draw)

    def _first(self, draw: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns random weights, the features' moments, and an encoder of the policy's own."""
        spec = self._run.spec
        mean, std = self._demos.moments()
        weights = {"mean": mean, "std": std}
        if isinstance(spec, SeeingSpec):
            weights |= self._eyes
        if spec.base:
            sizes = (spec.features, *spec.hidden, spec.actions)
            weights |= networks.init_mlp(draw, "base", sizes, 0.1)
        if spec.policy:
            inputs = spec.features + spec.actions * spec.base
            sizes = (inputs, *spec.hidden, 2 * spec.outputs)
            weights |= networks.init_mlp(draw, "policy", sizes, 0.01)
        return weights

    def collect(self, state: State) -> tuple[State, int]:
        """Reads the log up to the last decision of this chunk; returns how many decisions it then has."""
        config = self._run.config
        if not config.learns:
            return state, 0
        self._stay()
        wanted = (int(state.chunks) + 1) * config.chunk
        while self._chains.counts.decisions < wanted:
            if not self._read(wanted):
                self._wait()
        return state, wanted

    def _read(self, wanted: int) -> bool:
        """Takes records until so many decisions were begun; whether there was any."""
        any_read = False
        if self._stream is None:
            self._stream = self._tail.poll()
        for record in self._stream:
            any_read = True
            self._own.add(self._chains.take(record))
            if self._chains.counts.decisions >= wanted:
                break
        return any_read

    def _wait(self) -> None:
        self._stream = None
        self._stay()
        time.sleep(_POLL_S)

    def _stay(self) -> None:
        """Raises ArtifactError if the process that writes the log has ended."""
        if self._parent is not None and os.getppid() != self._parent:
            raise ArtifactError("The robot's side ended; --resume goes on.")

    def update(self, state: State, data: int) -> tuple[State, Figures]:
        """Learns from all that was read, and publishes the next version."""
        config, run = self._run.config, self._run
        if not config.learns:
            return state, {"critic_loss": 0.0}
        chunk = int(state.chunks)
        draw = np.random.default_rng([run.seed, 6, chunk])
        key = jax.random.fold_in(jax.random.PRNGKey(run.seed), chunk)
        groups = config.chunk * config.updates // config.policy_every
        if data <= config.warmup or not self._own.decisions:
            groups = 0
        total: dict[str, float] = {}
        learning: PyTree = state[:-1]
        for number in range(groups):
            self._stay()
            learning, figures = self._improve(learning, draw, jax.random.fold_in(key, number))
            for name, value in figures.items():
                total[name] = total.get(name, 0.0) + float(value) / groups
        policy, critics, slow, temperature, optimizers = learning
        state = State(policy, critics, slow, temperature, optimizers, np.asarray(chunk + 1))
        self._publish(state, chunk + 1)
        counts = self._chains.counts
        return state, {
            "critic_loss": 0.0,
            **total,
            "successes": float(counts.successes),
            "cuts": float(counts.cuts),
            "replay": float(self._own.decisions),
        }

    def _improve(
        self, learning: PyTree, draw: np.random.Generator, key: jax.Array, near: float = 0.0
    ) -> tuple[PyTree, Mapping[str, Array]]:
        """Makes `policy_every` updates of the critics, and one of the policy; near: see `losses.policy_loss`."""
        several = [self._sample(draw) for _ in range(self._run.config.policy_every)]
        batch = Batch(*(np.stack(parts) for parts in zip(*several, strict=True)))
        return self._learn(learning, self._fixed, batch, key, near)

    def _sample(self, draw: np.random.Generator) -> Batch:
        config = self._run.config
        mixed = all_together if config.together else half_and_half
        return mixed(self._demos, self._own, draw, config.batch, config.n_step, config.discount)

    def _group(
        self,
        learning: PyTree,
        fixed: Mapping[str, Array],
        batch: Batch,
        key: jax.Array,
        near: Array,
    ) -> tuple[PyTree, dict[str, Array]]:
        """Some updates of the critics, and one of the policy on the last of their batches."""
        spec, config = self._run.spec, self._run.config
        policy, critics, slow, log_temperature, optimizers = learning
        weights = {**fixed, **policy}

        def one(carried: PyTree, given: PyTree) -> PyTree:
            critics, slow, memory = carried
            each, each_key = given
            worth = jnp.exp(log_temperature)
            target = losses.target_value(spec, config, weights, slow, each, each_key, worth)
            normal = networks.normalize(weights, each.features, jnp)
            (loss, value), slope = jax.value_and_grad(
                functools.partial(losses.critic_loss, config), has_aux=True
            )(critics, jax.lax.stop_gradient(target), normal, each.action)
            change, memory = self._optimizers[1].update(slope, memory, critics)
            critics = optax.apply_updates(critics, change)
            slow = jax.tree.map(lambda a, b: a + config.tau * (b - a), slow, critics)
            return (critics, slow, memory), (loss, value)

        keys = jax.random.split(key, config.policy_every + 1)
        carried = (critics, slow, optimizers[1])
        (critics, slow, memory), (loss, value) = jax.lax.scan(one, carried, (batch, keys[1:]))
        last = jax.tree.map(lambda x: x[-1], batch)
        memories = (optimizers[0], memory, optimizers[2])
        learning = (policy, critics, slow, log_temperature, memories)
        learning, figures = self._follow(learning, fixed, last, keys[0], near)
        return learning, {"critic_loss": loss.mean(), "value": value.mean(), **figures}

    def _follow(
        self,
        learning: PyTree,
        fixed: Mapping[str, Array],
        last: Batch,
        key: jax.Array,
        near: Array,
    ) -> tuple[PyTree, dict[str, Array]]:
        """An update of the policy, and of the temperature where that is tuned."""
        spec, config = self._run.spec, self._run.config
        policy, critics, slow, log_temperature, optimizers = learning
        noise = jax.random.normal(key, (*last.action.shape[:-1], spec.outputs))
        temperature: Array = jnp.exp(log_temperature)
        slope, entropy = jax.grad(
            lambda part: losses.policy_loss(
                spec, config, part, fixed, critics, temperature, last, noise, near
            ),
            has_aux=True,
        )(policy)
        change, policy_memory = self._optimizers[0].update(slope, optimizers[0], policy)
        policy = optax.apply_updates(policy, change)
        third = optimizers[2]
        if config.tuned:  # towards an entropy of minus the numbers that are drawn
            slope = jnp.exp(log_temperature) * (entropy + spec.outputs)
            change, third = self._optimizers[2].update(slope, third, log_temperature)
            log_temperature = cast(Array, optax.apply_updates(log_temperature, change))
        figures = {"entropy": entropy, "temperature": jnp.exp(log_temperature)}
        memories = (policy_memory, optimizers[1], third)
        return (policy, critics, slow, log_temperature, memories), figures

    def _weights(self, state: State) -> dict[str, np.ndarray]:
        return {**self._fixed, **{name: np.asarray(value) for name, value in state.policy.items()}}

    def _publish(self, state: State, version: int) -> None:
        weights = self._weights(state)
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise ArtifactError(
                f"The weights are not finite in version {version}: start anew, in another --out, with a smaller"
                f" {self.remedy}."
            )
        published.publish(self._folder / PUBLISHED, self._run.spec, version, weights)
        published.tidy(self._folder / PUBLISHED)

    def evaluate(self, state: State) -> Figures:
        """The robot's side evaluates."""
        return {}

    def finish(self, state: State, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the policy."""
        weights = self._weights(state)
        if isinstance(self._run, InsertRun):
            student = read_base(self._run.student)
            joined = insertion.joined_weights(student.weights, weights)
            both = {**student.policy.description.get("trained", {}), "corrections": trained}
            spec = insertion.residual_spec(self._run.spec)
            policy: Stored = ResidualPolicy(spec, joined, both)
        else:
            policy = OnlinePolicy(self._run.spec, {**self._eyes, **weights}, trained)
        names = self._run.spec.inputs
        rows = {name: np.stack([one.inputs[name] for one in self._check]) for name in names}
        return {POLICY: str(artifact.save(policy, self._folder / POLICY, rows))}

    def checkpointed(self, state: State) -> PyTree:
        """Returns what a checkpoint keeps: everything that changes; the replay is built anew from the log."""
        return jax.tree.map(np.asarray, state)

    def restored(self, kept: PyTree) -> State:
        """Returns the state from what a checkpoint kept."""
        policy, critics, slow, temperature, optimizers, chunks = kept
        arrays = (policy, critics, slow, temperature, optimizers)
        policy, critics, slow, temperature, optimizers = jax.tree.map(jnp.asarray, arrays)
        wanted = int(chunks) * self._run.config.chunk
        while self._run.config.learns and self._chains.counts.decisions < wanted:
            if not self._read(wanted):
                self._wait()
        return State(policy, critics, slow, temperature, optimizers, np.asarray(chunks))
