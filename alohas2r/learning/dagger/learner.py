"""Environments, senses, teacher and student of a distillation, joined."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from brax.training.acme import running_statistics, specs

from alohas2r.core import threads as core_threads
from alohas2r.embodiment import joints
from alohas2r.envs import student_step
from alohas2r.envs.repeated_measurement import RepeatedMeasurement
from alohas2r.envs.task import EnvConfig, EnvState, Scored
from alohas2r.envs.vision import Seen, Senses, SensesState
from alohas2r.learning.dagger.config import (
    CHECK_ROWS,
    ENVS_STREAM,
    ORDER_STREAM,
    PICTURES_AT_ONCE,
    SENSES_STREAM,
    SHIFT_STREAM,
    WEIGHTS_STREAM,
    WORLD_SIZE,
    DistillConfig,
    choose_engine,
)
from alohas2r.learning.dagger.host_buffers import Memory, Together, advance_all
from alohas2r.learning.dagger.labels import LEAST_STD, staged_std
from alohas2r.learning.dagger.samples import LearnerState, Samples, balanced
from alohas2r.policies import encoder as encoder_artifact
from alohas2r.policies import spec
from alohas2r.policies.networks import cpu_encoder, mlp
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import augmentation
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.registry import make_renderer
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert import hold_out
from alohas2r.tasks.insert.hold_out import HoldOutTask


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


class _World(NamedTuple):
    """Some of the environments; one thread at a time takes them a step further."""

    where: slice  # which of all
    env: RepeatedMeasurement
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
        encoder: encoder_artifact.EncoderArtifact | None,
        seed: int,
        threads: int = 0,
        renderer: str = "auto",
        engine: str = engines.AUTO,
    ):
        sees = settings.observation != "state"
        engine, renderer = choose_engine(engine, renderer, sees)
        loaded = scene.load_physics("insert")
        count = settings.num_envs
        draws = np.random.default_rng([seed, 2]).random((count, physics_randomization.INSERT_DRAWS))
        fields, half = physics_randomization.sample_insert(loaded, settings.task.physics, draws)
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
        self.threads = threads or len(core_threads.cores())
        self.fields = fields
        self.spec = spec.make_spec(
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
        size, self.renderer = WORLD_SIZE if several else count, renderer
        self._memory = Memory()
        self.worlds: list[_World] = []
        for first in range(0, count, size):
            where = slice(first, min(first + size, count))
            some, alone = where.stop - first, 1 if count > size else threads
            made = engines.make(
                *(engine, loaded, some, alone),
                {name: value[where] for name, value in fields.items()},
                settings.engine,
            )
            env = RepeatedMeasurement(settings.draws, task, made, environment, context[where])
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
        known = cpu_encoder.encode_in_products if on_cpu else vision_network.encode
        self._code = functools.partial(known, self.spec)
        self._encode = jax.jit(self._code)
        self._encode_alone = None
        if on_cpu and self.frozen and not self.env.engine.traceable:
            from alohas2r.policies.networks.frozen_encoder import (
                FrozenEncoder,  # needs a package that a GPU does without
            )

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
            self._shift = jax.jit(augmentation.shift_pictures, static_argnums=3)
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
        weights_key = jax.random.fold_in(key, WEIGHTS_STREAM)
        ahead = self.settings.ahead
        params = jax.jit(lambda key: vision_network.init(self.spec, key, self.auxiliary, ahead))(
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
            jax.random.split(jax.random.fold_in(root, stream), count)
            for stream in (ENVS_STREAM, SENSES_STREAM)
        )

        def started(world: _World) -> tuple[EnvState, Any, Readout, SensesState | None]:
            where, env, senses = world
            sense = None if senses is None else senses.reset(sense_keys[where])
            return (*env.reset(keys[where], stagger=True), sense)

        if len(self.worlds) == 1:
            return started(self.worlds[0])
        whole = Together(count, self._memory)
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
        state, sense, seen, known, signals = student_step.observe(
            self.env, self.senses, state, readout, sense, drawn
        )
        flags = jnp.broadcast_to(switched[:, None], known.shape[:2])
        label = hold_out.still(
            *(self.teacher.apply(known, flags, jnp).mean(1), held_out),
            *(signals.ctrl[..., -1], self._open_grip, self.settings.control.scale),
        )
        weight = jnp.ones_like(label)
        if self.settings.precision > 0:
            std = jnp.maximum(staged_std(self.teacher, known[:, 0], switched), LEAST_STD)
            weight = std**-self.settings.precision
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
        features = mlp.normalize(samples.features, learner.stats.mean, learner.stats.std)
        logits, _ = vision_network.head(
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
        pictures, others = (Together(count, self._memory, steps) for _ in range(2))
        following = Together(count, self._memory)
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
        advance_all(runs, min(2 * self.threads, len(self.worlds)) if self.threads > 1 else 1)
        rgb, depth = pictures.whole()
        samples = others.whole()._replace(rgb=rgb, depth=depth)
        after, scores = ended[0] if ended else following.whole()
        return balanced(samples), *after, scores

    def _gather(
        self, world: _World, learner: LearnerState, begun: Any, pictures: Together
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
            drawn = student_step.draw(world.senses, sense, readout)
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
            drawn = student_step.draw_traced(self.senses, sense, readout)
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
        samples = balanced(samples)
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
        rgb, depth = augmentation.shift_pictures(
            key, samples.rgb, samples.depth, self.settings.shift
        )
        if rgb is not None and frozen:
            count = rgb.shape[0]
            chunk = next(
                size for size in range(min(PICTURES_AT_ONCE, count), 0, -1) if count % size == 0
            )
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
            code[start : start + PICTURES_AT_ONCE] = encode(
                pictures[start : start + PICTURES_AT_ONCE]
            )

        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(some, range(0, len(pictures), PICTURES_AT_ONCE)))
        return samples._replace(rgb=jax.device_put(code, may_alias=True), depth=depth)

    def loss(self, params: Any, stats: Any, batch: Samples) -> tuple[jax.Array, dict[str, Any]]:
        """Returns the loss of a batch, and figures.

        Args:
          params: what learns. stats: of the features.
          batch: colour pictures are encoded already unless the encoder learns.
        """
        rgb = batch.rgb
        if rgb is not None and "encoder" in params:
            rgb = vision_network.encode(self.spec, params["encoder"], rgb)
        features = mlp.normalize(batch.features, stats.mean, stats.std)
        logits, guess = vision_network.head(
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
            wanted = jnp.clip(batch.objects / vision_network.AUXILIARY_SCALE, -3, 3)
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
                shift_key = jax.random.fold_in(jax.random.fold_in(key, SHIFT_STREAM), epoch)
                seen = self._augment(shift_key, frozen, samples)
            order_key = jax.random.fold_in(jax.random.fold_in(key, ORDER_STREAM), epoch)
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
        weights = vision_network.flatten(
            {**params, **self.frozen}, learner.stats.mean, learner.stats.std
        )
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
        drawn = student_step.draw(world.senses, sense, readout)
        outcome = self._act(learner, self.frozen, state, readout, sense, drawn, jnp.asarray(False))
        seen, switched = outcome[3], np.asarray(state.task.switched)
        rows: dict[str, np.ndarray] = {self.spec.vector: np.asarray(seen.vector)}
        for camera, side in enumerate(joints.SIDES):
            if seen.rgb is not None:
                rows[f"{side}_rgb"] = np.asarray(seen.rgb[:, camera])
            if seen.depth is not None:
                rows[f"{side}_depth"] = np.asarray(seen.depth[:, camera])
        rows["switched"] = switched
        return {name: value[:CHECK_ROWS] for name, value in rows.items()}
