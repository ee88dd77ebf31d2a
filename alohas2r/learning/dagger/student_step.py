"""The student's step in a distillation: observe, label, encode, decide; the same on the host and on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array, PyTree
from alohas2r.envs import student_step
from alohas2r.envs.student_step import Drawn
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import Seen, SensesState
from alohas2r.learning.dagger.labels import LEAST_STD, staged_std, wanted
from alohas2r.learning.dagger.samples import LearnerState, Samples
from alohas2r.learning.dagger.worlds import Setup, WorldState
from alohas2r.policies.networks import mlp
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.staged import StagedPolicy
from alohas2r.sim.signals import Readout
from alohas2r.tasks.insert import hold_out

Encode = Callable[
    [PyTree, Array], Array
]  # from the encoder's parameters and pictures [N, C, H, W, 3]


class Noted(NamedTuple):
    """What a step notes before the student decides."""

    state: EnvState
    sense: SensesState | None
    samples: Samples  # [N]
    seen: Seen
    tutor: SensesState | None = None  # of a teacher that sees


class Acted(NamedTuple):
    """A whole step: what was noted, and the actuator targets [N, nu]."""

    noted: Noted
    state: EnvState
    ctrl: jax.Array


class StudentStep:
    """The parts of the step, as functions that JAX traces.

    Args:
      setup: of the distillation.
      code: encodes colour pictures; traceable.
    """

    def __init__(self, setup: Setup, code: Encode) -> None:
        self._setup, self.code = setup, code
        scene = setup.env.task.scene
        grips = [scene.home_ctrl[arm.ctrl[-1]] for arm in scene.arms]
        self._open_grip = np.array(grips, np.float32)

    def note(
        self,
        state: EnvState,
        readout: Readout,
        sense: SensesState | None,
        drawn: Drawn | None,
        tutor: SensesState | None = None,
        shown: Drawn | None = None,
    ) -> Noted:
        """Observes, and lets the teacher say what to do.

        Args:
          state, readout, sense: of the environments. drawn: their pictures.
          tutor: the senses' state of a teacher that sees. shown: its pictures.
        """
        setup, looked = self._setup, None
        settings = setup.settings
        held_out, switched = state.task.held_out, state.task.switched
        if setup.tutor is not None and tutor is not None and shown is not None:
            tutor, looked = student_step.perceive(
                setup.env, setup.tutor, state, readout, tutor, shown
            )
        state, sense, seen, known, signals, _ = student_step.observe(
            setup.env, setup.senses, state, readout, sense, drawn
        )
        label = wanted(setup.teacher, known, looked, switched)
        if settings.guide:
            guided = switched[:, None] | (settings.guide == "all")
            label = jnp.where(guided, setup.env.guided(state, readout), label)
        label = hold_out.still(
            label,
            held_out,
            signals.ctrl[..., -1],
            self._open_grip,
            settings.control.scale,
        )
        weight = jnp.ones_like(label)
        if settings.precision > 0 and isinstance(setup.teacher, StagedPolicy):
            std = jnp.maximum(staged_std(setup.teacher, known[:, 0], switched), LEAST_STD)
            weight = std**-settings.precision
        samples = Samples(
            rgb=seen.rgb,
            depth=seen.depth,
            features=seen.features,
            switched=switched,
            label=label,
            future=jnp.zeros((*label.shape[:1], settings.ahead, *label.shape[1:])),
            known=jnp.zeros((*label.shape[:1], settings.ahead), bool),
            weight=weight,
            objects=hold_out.object_in_gripper(signals),
            present=~held_out,
            near=seen.near if settings.auxiliary > 0 else None,
        )
        return Noted(state, sense, samples, seen, tutor)

    def decide(
        self,
        learner: LearnerState,
        state: EnvState,
        readout: Readout,
        samples: Samples,
        code: jax.Array | None,
        teacher_acts: jax.Array,
    ) -> tuple[EnvState, jax.Array]:
        """Acts on samples whose colour pictures are encoded to `code`; returns targets [N, nu] as well."""
        setup = self._setup
        features = mlp.normalize(samples.features, learner.stats.mean, learner.stats.std)
        logits, _ = vision_network.head(
            setup.spec,
            learner.params["head"],
            code,
            samples.depth,
            features,
            samples.switched,
            setup.auxiliary,
            setup.settings.ahead,
        )
        label = samples.label
        action = jnp.where(teacher_acts, label, jnp.tanh(logits[:, : label.shape[1]]))
        return setup.env.control(state, readout, action)

    def __call__(
        self,
        learner: LearnerState,
        frozen: PyTree,
        world: WorldState,
        drawn: Drawn | None,
        teacher_acts: jax.Array,
    ) -> Acted:
        """Goes through a whole step inside `jax.jit`, with a teacher on the state.

        Args:
          learner, frozen: the student. world: state of the environments. drawn: their pictures.
          teacher_acts: whether the teacher does.
        """
        noted = self.note(world.env, world.readout, world.sense, drawn)
        code = None
        if noted.seen.rgb is not None:
            code = self.code({**learner.params, **frozen}["encoder"], noted.seen.rgb)
        state, ctrl = self.decide(
            learner, noted.state, world.readout, noted.samples, code, teacher_acts
        )
        return Acted(noted, state, ctrl)


class HostStep:
    """The same step in three calls, which take less time than one on a CPU.

    Args:
      step: the parts. encode: encodes colour pictures, in a call of its own.
      alone: whether each call computes on its thread's core alone, since other threads compute at the same time.
    """

    def __init__(self, step: StudentStep, encode: Encode, alone: bool) -> None:
        self._parts, self._encode = step, encode
        options = {"xla_cpu_multi_thread_eigen": False} if alone else None
        # The buffers of the delay are overwritten, not copied.
        self._note = jax.jit(self._note_in_place, donate_argnums=0, compiler_options=options)
        self._decide = jax.jit(step.decide, compiler_options=options)

    def _note_in_place(
        self,
        buffers: tuple[jax.Array | None, jax.Array | None] | None,
        state: EnvState,
        readout: Readout,
        sense: SensesState | None,
        drawn: Drawn | None,
        tutor: SensesState | None,
        shown: Drawn | None,
    ) -> Noted:
        """Takes the pictures of the senses apart, so that they alone can be overwritten."""
        if sense is not None and buffers is not None:
            sense = sense._replace(rgb=buffers[0], depth=buffers[1])
        return self._parts.note(state, readout, sense, drawn, tutor, shown)

    def __call__(
        self,
        learner: LearnerState,
        frozen: PyTree,
        world: WorldState,
        drawn: Drawn | None,
        teacher_acts: jax.Array,
        shown: Drawn | None = None,
    ) -> Acted:
        """Goes through a whole step; overwrites the pictures of `world.sense`. `shown` is what a teacher sees."""
        sense, buffers = world.sense, None
        if sense is not None:
            buffers = sense.rgb, sense.depth
            sense = sense._replace(rgb=None, depth=None)
        noted = self._note(buffers, world.env, world.readout, sense, drawn, world.tutor, shown)
        code = None
        if noted.seen.rgb is not None:
            code = self._encode({**learner.params, **frozen}["encoder"], noted.seen.rgb)
        state, ctrl = self._decide(
            learner, noted.state, world.readout, noted.samples, code, teacher_acts
        )
        return Acted(noted, state, ctrl)


def join(ahead: int, parts: list[Samples], dones: list[jax.Array]) -> Samples:
    """Puts the samples of all steps together (traceable), and to each what follows it.

    Args:
      ahead: how many steps of the future a sample knows.
      parts: [N] of each step. dones: [N] whether an episode ended with the step.
    """
    whole: list[Samples] = []
    for step, part in enumerate(parts):
        going_on, future, known = jnp.ones_like(dones[0]), part.future, part.known
        for number in range(1, ahead + 1):
            if step + number < len(parts):
                going_on = going_on & ~dones[step + number - 1]
                future = future.at[:, number - 1].set(parts[step + number].label)
                known = known.at[:, number - 1].set(going_on)
        whole.append(part._replace(future=future, known=known))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *whole)
