"""Collection on one device: a whole iteration is one compiled function, for engines that can be traced."""

from __future__ import annotations

import jax

from alohas2r.core.types import PyTree
from alohas2r.envs import student_step
from alohas2r.envs.task import Scored
from alohas2r.learning.dagger.collect_host import Collected
from alohas2r.learning.dagger.samples import LearnerState, Samples, balanced
from alohas2r.learning.dagger.student_step import StudentStep, join
from alohas2r.learning.dagger.worlds import Setup, WorldState

# Targets [T, N, nu] and poses [T, N, nq] of an iteration.
Moved = tuple[jax.Array, jax.Array]


class DeviceCollector:
    """Collects samples without leaving the device.

    Args:
      setup: environments, senses, teacher; one world.
      step: the student's step.
      frozen: parameters of the encoder that does not learn; empty if there is none.
    """

    def __init__(self, setup: Setup, step: StudentStep, frozen: PyTree) -> None:
        self._setup, self._step, self._frozen = setup, step, frozen
        self._collect = jax.jit(self._collect_traced)

    def begin(self) -> WorldState:
        """Starts all environments."""
        return self._setup.begin(self._setup.worlds[0])

    def collect(self, learner: LearnerState, begun: WorldState) -> tuple[WorldState, Collected]:
        """Collects one iteration's samples.

        Of the scores there is only the last step's, but `done` and `finite` of all steps [steps, N]; the caller asks
        `engine.check` afterwards.
        """
        samples, after, scored, _ = self._collect(learner, self._frozen, begun)
        return after, Collected(samples, [scored])

    def trace(self, learner: LearnerState, begun: WorldState) -> Moved:
        """Returns actuator targets and poses of what `collect` does."""
        return self._collect(learner, self._frozen, begun)[-1]

    def _collect_traced(
        self, learner: LearnerState, frozen: PyTree, begun: WorldState
    ) -> tuple[Samples, WorldState, Scored, Moved]:
        env, senses = self._setup.env, self._setup.senses
        teacher_acts = learner.iteration == 0

        def step(world: WorldState, _: None) -> tuple[WorldState, PyTree]:
            drawn = student_step.draw_traced(senses, world.sense, world.readout)
            noted, state, ctrl = self._step(learner, frozen, world, drawn, teacher_acts)
            moved = (ctrl, world.readout.qpos)
            state, physics, readout, scored = env.advance_traced(state, world.physics, ctrl)
            sense = noted.sense
            if senses is not None and sense is not None:
                sense = senses.restart(sense, scored.done)
            after = WorldState(state, physics, readout, sense)
            return after, (noted.samples, scored, moved)

        count = self._setup.settings.steps
        after, (rows, scores, moved) = jax.lax.scan(step, begun, None, length=count)
        parts: list[tuple[Samples, Scored]] = [
            jax.tree.map(lambda leaf, at=at: leaf[at], (rows, scores)) for at in range(count)
        ]
        samples = join(
            self._setup.settings.ahead,
            [part for part, _ in parts],
            [scored.done for _, scored in parts],
        )
        last = parts[-1][1]._replace(done=scores.done, finite=scores.finite)
        if self._setup.part is None:
            samples = balanced(samples)
        return samples, after, last, moved
