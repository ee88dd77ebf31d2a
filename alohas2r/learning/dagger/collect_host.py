"""Collection on the host: Python joins the physics of the engine "cpu", a renderer and the student's compiled parts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alohas2r.core.types import PyTree
from alohas2r.envs import student_step
from alohas2r.envs.task import Scored
from alohas2r.learning.dagger.host_buffers import HostBuffers, advance_all
from alohas2r.learning.dagger.samples import LearnerState, Samples, balanced
from alohas2r.learning.dagger.student_step import HostStep, join
from alohas2r.learning.dagger.worlds import Setup, World, WorldState


class Collected(NamedTuple):
    """What an iteration learns from, [steps * N] (time first), and the scores of its steps."""

    samples: Samples
    scores: list[Scored]


class HostCollector:
    """Collects samples; several worlds each in one thread at a time.

    The states of several worlds lie in two buffers that take turns, the samples in one: a state is valid until the
    next collection ends, samples until it begins.

    Args:
      setup: environments, senses, teacher.
      step: the student's step.
      frozen: parameters of the encoder that does not learn; empty if there is none.
    """

    def __init__(self, setup: Setup, step: HostStep, frozen: PyTree) -> None:
        self._setup, self._step, self._frozen = setup, step, frozen
        count, steps = setup.count, setup.settings.steps
        self._single = len(setup.worlds) == 1
        self._states = (HostBuffers(count), HostBuffers(count))
        self._scores = HostBuffers(count)
        self._pictures, self._others = HostBuffers(count, steps), HostBuffers(count, steps)
        alone = not self._single and jax.default_backend() == "cpu"
        options = {"xla_cpu_multi_thread_eigen": False} if alone else None
        ahead = setup.settings.ahead
        self._join = jax.jit(lambda *given: join(ahead, *given), compiler_options=options)
        self._compiled = False  # whether a world has gone through an iteration

    def begin(self) -> WorldState:
        """Starts all environments."""
        if self._single:
            return self._setup.begin(self._setup.worlds[0])
        for world in self._setup.worlds:
            self._states[0].put(world.where, self._setup.begin(world))
        return self._states[0].whole()

    def collect(self, learner: LearnerState, begun: WorldState) -> tuple[WorldState, Collected]:
        """Collects one iteration's samples.

        Args:
          learner: the student. begun: the states to go on from.
        """
        setup = self._setup
        following = next(b for b in self._states if not b.holds(begun.physics.rows))
        ended: list[tuple[WorldState, list[Scored]]] = []  # a single world's, whatever made of

        def collected(world: World) -> Iterator[None]:
            samples, after, scores = yield from self._gather(
                world, learner, part_of(setup, world, begun)
            )
            self._others.put(world.where, samples)
            if self._single:
                ended.append((after, scores))
            else:
                following.put(world.where, after)
                self._scores.put(world.where, scores)

        runs = [collected(world) for world in setup.worlds]
        if not self._compiled:
            for _ in runs.pop(0):  # alone, so that nothing is compiled twice
                pass
            self._compiled = True
        # Twice as many as cores, so that there is always one that waits for nothing.
        workers = min(2 * setup.threads, len(setup.worlds)) if setup.threads > 1 else 1
        advance_all(runs, workers)
        rgb, depth = self._pictures.whole()
        samples = self._others.whole()._replace(rgb=rgb, depth=depth)
        if setup.part is None:
            samples = balanced(samples)
        after, scores = ended[0] if ended else (following.whole(), self._scores.whole())
        return after, Collected(samples, scores)

    def _gather(
        self, world: World, learner: LearnerState, state: WorldState
    ) -> Generator[None, None, tuple[Samples, WorldState, list[Scored]]]:
        """Collects one world's samples [steps * n], time first; yields after each step.

        Returns:
          The samples, whose pictures are in the buffers already; the states after them; the scores of each step.
        """
        teacher_acts = learner.iteration == 0
        parts: list[Samples] = []
        scores: list[Scored] = []
        for step in range(self._setup.settings.steps):
            drawn = student_step.draw(world.senses, state.sense, state.readout)
            shown = student_step.draw(world.tutor, state.tutor, state.readout)
            noted, env_state, ctrl = self._step(
                learner, self._frozen, state, drawn, teacher_acts, shown
            )
            env_state, physics, readout, scored = world.env.advance(env_state, state.physics, ctrl)
            sense = noted.sense
            if world.senses is not None and sense is not None:
                sense = world.senses.restart_some(sense, scored.done)
            tutor = noted.tutor
            if world.tutor is not None and tutor is not None:
                tutor = world.tutor.restart_some(tutor, scored.done)
            state = WorldState(env_state, physics, readout, sense, tutor)
            pictures = noted.samples.rgb, noted.samples.depth
            self._pictures.put(world.where, pictures, step)
            parts.append(noted.samples._replace(rgb=None, depth=None))
            scores.append(scored)
            yield
        return self._join(parts, [scored.done for scored in scores]), state, scores


def part_of(setup: Setup, world: World, whole: WorldState) -> WorldState:
    """Returns one world's share of the states, whose senses' pictures may be overwritten."""
    env_state, physics, readout, sense, tutor = whole
    if len(setup.worlds) == 1:
        if sense is not None:
            rgb, depth = (
                None if leaf is None else jnp.copy(leaf) for leaf in (sense.rgb, sense.depth)
            )
            sense = sense._replace(rgb=rgb, depth=depth)
        return WorldState(env_state, physics, readout, sense, tutor)
    physics, readout = (
        type(rows)(*(leaf[world.where] for leaf in rows)) for rows in (physics, readout)
    )
    count = world.where.stop - world.where.start
    env_state, sense, tutor = _take((env_state, sense, tutor), world.where.start, count)
    return WorldState(env_state, physics, readout, sense, tutor)


def _sliced(tree: PyTree, first: int, count: int) -> PyTree:
    """Returns `count` rows of each leaf."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), tree)


_take = jax.jit(_sliced, static_argnums=2)
