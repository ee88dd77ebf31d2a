"""What a student learns from samples: loss, augmentation, gradient steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from brax.training.acme import running_statistics, specs

from alohas2r.core.types import JsonObject, PyTree
from alohas2r.learning.dagger.config import (
    ORDER_STREAM,
    SHIFT_STREAM,
    WEIGHTS_STREAM,
    DistillConfig,
)
from alohas2r.learning.dagger.encoding import Encoding
from alohas2r.learning.dagger.samples import LearnerState, Learnt, Samples
from alohas2r.policies.networks import mlp, stereo
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.vision import StereoPolicy, StudentPolicy

Metrics = dict[str, jax.Array]


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


class Learner:
    """The student's learning.

    Args:
      settings: the configuration. spec: of the student.
      auxiliary: whether the student predicts where the objects are.
      encoding: of colour pictures.
      pretrained: parameters of the colour encoder to begin with; None to begin at random.
      frozen: {"encoder": ...} if that stays as it is, else empty.
      at_once: whether a whole update is one compiled function, where `compiles_passes` allows it.
      begun: the student that learning goes on with, whose features keep their scale; a random one if None.
    """

    def __init__(
        self,
        settings: DistillConfig,
        spec: StudentSpec,
        auxiliary: bool,
        encoding: Encoding,
        pretrained: PyTree | None,
        frozen: Mapping[str, PyTree],
        at_once: bool,
        begun: StudentPolicy | None = None,
    ) -> None:
        self.settings, self.spec, self.auxiliary, self._begun = settings, spec, auxiliary, begun
        self.frozen, self._encoding, self._pretrained = dict(frozen), encoding, pretrained
        # Without the rate, which changes with the iteration.
        self.optimizer = optax.scale_by_adam()
        self._epoch = jax.jit(self._one_epoch)
        self._step = jax.jit(self._one_step)
        # Rates of learning [iterations].
        share = np.arange(settings.iterations) / max(settings.iterations - 1, 1)
        first, last = settings.learning_rate
        self._rates = jnp.asarray(first + share * (last - first), jnp.float32)
        self._at_once = jax.jit(self._learn) if at_once and self.compiles_passes else None

    @property
    def learns_convolutions(self) -> bool:
        """Whether there are convolutions that learn."""
        if self.spec.paired:  # whose networks are matrix products
            return False
        return (self.spec.has_rgb and not self.frozen) or self.spec.observation == "depth"

    @property
    def compiles_passes(self) -> bool:
        """Whether the gradient steps of a pass are one compiled loop; see `_pass`."""
        return not self.learns_convolutions or jax.default_backend() != "cpu"

    def init(self, seed: int) -> LearnerState:
        """Returns the learner before the first iteration."""
        key = jax.random.PRNGKey(seed)
        weights_key = jax.random.fold_in(key, WEIGHTS_STREAM)
        ahead = self.settings.ahead
        params = jax.jit(lambda key: vision_network.init(self.spec, key, self.auxiliary, ahead))(
            weights_key
        )
        if self.spec.has_rgb and self._pretrained is not None:
            params["encoder"] = jax.tree.map(jnp.asarray, self._pretrained)
        stats: PyTree = running_statistics.init_state(
            specs.Array((self.spec.features,), jnp.float32)
        )
        if self._begun is not None:
            weights = jax.tree.map(jnp.asarray, vision_network.tree_of(self._begun.weights))
            stats = stats.replace(mean=weights["mean"], std=weights["std"])
            for part in params.keys() & weights.keys():  # what only training needs begins anew
                params[part] = {**params[part], **weights[part]}
        if self.frozen:
            params.pop("encoder")
        averaged = params if self.settings.average else {}
        state = LearnerState(
            params, averaged, self.optimizer.init(params), stats, jnp.zeros((), jnp.int32), key
        )
        # Plain numbers among the statistics become arrays, so that a checkpoint restores the same types.
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, getattr(leaf, "dtype", jnp.float32)), state
        )

    def loss(self, params: PyTree, stats: PyTree, batch: Samples) -> tuple[jax.Array, Metrics]:
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
            self.spec,
            params["head"],
            rgb,
            batch.depth,
            features,
            batch.switched,
            self.auxiliary,
            self.settings.ahead,
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
        if rgb is not None and "inverse" in params and batch.near is not None:
            told = stereo.tell_inverse(params["inverse"], rgb)
            figures["loss/inverse_depth"] = jnp.square(told - batch.near).mean()
            total = total + self.settings.auxiliary * figures["loss/inverse_depth"]
        return total, figures

    def _pass(
        self, learnt: Learnt, stats: PyTree, samples: Samples, key: jax.Array, rate: jax.Array
    ) -> tuple[Learnt, Metrics]:
        """Takes one gradient step per batch of the samples.

        Where convolutions learn on a CPU, each step is a call of its own: inside a compiled loop XLA's gradients of
        convolutions are some fifty times slower there.

        Args:
          learnt: what learns.
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
        self, learnt: Learnt, stats: PyTree, samples: Samples, chosen: jax.Array, rate: jax.Array
    ) -> tuple[Learnt, Metrics]:
        """Takes one gradient step on the chosen samples."""
        params, averaged, optimizer = learnt
        batch = jax.tree.map(lambda leaf: leaf[chosen], samples)
        gradient, figures = jax.grad(self.loss, has_aux=True)(params, stats, batch)
        updates, new = self.optimizer.update(gradient, optimizer)
        optimizer: PyTree = new
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        if self.settings.average:
            # Short at first, so that the start is soon forgotten.
            taken = jnp.asarray(optimizer.count, jnp.float32)
            kept = jnp.minimum(self.settings.average, (1 + taken) / (10 + taken))
            averaged = jax.tree.map(lambda a, p: a + (1 - kept) * (p - a), averaged, params)
        return Learnt(params, averaged, optimizer), figures

    def _one_epoch(
        self, learnt: Learnt, stats: PyTree, samples: Samples, key: jax.Array, rate: jax.Array
    ) -> tuple[Learnt, Metrics]:
        """As `_pass`, in one compiled loop."""
        order = jax.random.permutation(key, self.settings.samples)

        def step(carry: Learnt, chosen: jax.Array) -> tuple[Learnt, Metrics]:
            return self._one_step(carry, stats, samples, chosen, rate)

        return jax.lax.scan(step, learnt, order.reshape(-1, self.settings.batch))

    def update(
        self, learner: LearnerState, samples: Samples
    ) -> tuple[LearnerState, dict[str, float]]:
        """Learns from one iteration's samples.

        Returns:
          The learner, and figures: "loss/first" is on samples it has not learnt from yet.
        """
        learn = self._learn if self._at_once is None else self._at_once
        learner, metrics = learn(learner, self.frozen, samples)
        return learner, {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _learn(
        self, learner: LearnerState, frozen: PyTree, samples: Samples
    ) -> tuple[LearnerState, Metrics]:
        """Learns as `update` does (traceable if `compiles_passes`)."""
        settings = self.settings
        stats: PyTree = learner.stats
        if self._begun is None:
            stats = running_statistics.update(stats, samples.features)
        rate = self._rates[learner.iteration]
        learnt = Learnt(learner.params, learner.averaged, learner.optimizer)
        key = jax.random.fold_in(learner.key, learner.iteration)
        seen, rows = samples, []
        for epoch in range(settings.epochs):
            if epoch < settings.shifts:
                shift_key = jax.random.fold_in(jax.random.fold_in(key, SHIFT_STREAM), epoch)
                seen = self._encoding.augment(shift_key, frozen, samples)
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

    def to_policy(self, learner: LearnerState, trained: JsonObject) -> StudentPolicy:
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
        made = StereoPolicy if self.spec.paired else StudentPolicy
        return made(self.spec, weights, trained)
