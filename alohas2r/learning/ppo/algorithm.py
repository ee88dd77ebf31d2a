"""PPO as an algorithm of the run loop, in one training stage or several."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core import files
from alohas2r.core.types import PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState, Scored
from alohas2r.envs.vision import SensesState
from alohas2r.errors import ArtifactError
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.learner import LearnerState, Ppo, Rollout
from alohas2r.learning.run.loop import Figures
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.signals import Readout

# Measures of a task that show what exploration reaches, where the task has them.
WATCHED = ("reached", "grasped", "lifted", "success", "stage", "dropped", "in_place")


class Stage(NamedTuple):
    """One stage of a training; stages differ in data and schedule, never in shapes."""

    config: PpoConfig
    updates: int
    make_env: Callable[[], Env]
    key: jax.Array  # of the environments


class PpoState(NamedTuple):
    """All that changes in a training."""

    learner: LearnerState
    env: EnvState
    physics: PyTree
    readout: Readout
    sense: SensesState | None = None  # of a policy that sees


class PpoData(NamedTuple):
    """What an update learns from, and the scores of its steps."""

    rollout: Rollout
    final: jax.Array  # [N, P] the critic's view after it
    scores: list[Scored]


class PpoAlgorithm:
    """Learning by PPO; `finish` and `evaluate` are the subclass's.

    Args:
      label: of the progress.
      stages: one after the other; the learner goes from each to the next, environments begin anew.
      key: of the learner.
      folder: of the run, for what a non-finite number leaves behind.
    """

    losses = ("loss/value", "loss/policy")
    remedy = "ppo.learning_rate_range"

    def __init__(
        self, label: str, stages: Sequence[Stage], key: jax.Array, folder: pathlib.Path
    ) -> None:
        self.label, self.stages, self._key, self._folder = label, stages, key, folder
        self._ends = np.cumsum([stage.updates for stage in stages])
        self.iterations = int(self._ends[-1])
        self.steps_per_iteration = stages[0].config.steps_per_update
        self.stage = 0
        self.env, self.ppo = self.build(0)

    def build(self, stage: int) -> tuple[Env, Ppo]:
        """Returns the environments of a stage, and what learns in them."""
        env = self.stages[stage].make_env()
        return env, Ppo(self.stages[stage].config, env)

    def begin(self, learner: LearnerState) -> PpoState:
        """Starts the environments of the present stage."""
        keys = jax.random.split(self.stages[self.stage].key, self.env.num_envs)
        return PpoState(learner, *self.env.reset(keys, stagger=True))

    def _stage_of(self, update: int) -> int:
        """Returns the stage of an update (1 .. iterations)."""
        return int(np.searchsorted(self._ends, max(update, 1)))

    def _enter(self, stage: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self.env, self.ppo = self.build(stage)

    def init(self) -> PpoState:
        """Returns the state before the first update."""
        return self.begin(self.ppo.init(self._key))

    def collect(self, state: PpoState) -> tuple[PpoState, PpoData]:
        """Collects one unroll, in the next stage where that begins."""
        stage = self._stage_of(int(state.learner.updates) + 1)
        if stage != self.stage:
            self._enter(stage)
            state = self.begin(state.learner)
        before = snapshot(state.physics)
        state, data = self.roll(state)
        check_finite(data.rollout, before, self._folder)
        return state, data

    def roll(self, state: PpoState) -> tuple[PpoState, PpoData]:
        """Lets the policy act for one unroll."""
        rollout, final, env_state, physics, readout, scores = self.ppo.rollout(*state[:4])
        return PpoState(state.learner, env_state, physics, readout), PpoData(rollout, final, scores)

    def update(self, state: PpoState, data: PpoData) -> tuple[PpoState, Figures]:
        """Learns from an unroll."""
        stage = self.stages[self.stage]
        first = int(self._ends[self.stage]) - stage.updates
        share = jnp.float32((int(state.learner.updates) - first) / stage.updates)
        learner, metrics = self.ppo.update(state.learner, data.rollout, data.final, share)
        figures = {name: float(value) for name, value in metrics.items()}
        figures |= {f"train/{name}": value for name, value in self.watch(data.scores).items()}
        return state._replace(learner=learner), figures

    def watch(self, scores: Sequence[Scored]) -> Figures:
        """Returns what exploration reaches: shares of environments at the last step, and of diverged ones."""
        measures = jax.tree.map(lambda x: np.asarray(x, np.float32), scores[-1].measures)._asdict()
        figures = {name: float(measures[name].mean()) for name in WATCHED if name in measures}
        unstable = [(~np.asarray(scored.finite)).mean() for scored in scores]
        return figures | {"unstable": float(np.mean(unstable))}

    def evaluate(self, state: PpoState) -> Figures:
        """Returns nothing."""
        del state
        return {}

    def checkpointed(self, state: PpoState) -> PpoState:
        """Returns the state with its physics copied."""
        return state._replace(physics=snapshot(state.physics))

    def restored(self, kept: PpoState) -> PpoState:
        """Returns the state, in its stage."""
        self._enter(self._stage_of(int(kept.learner.updates)))
        return kept


@jax.jit
def _finite(rollout: Rollout) -> jax.Array:
    """Returns [T, N]: whether all that the learner takes from that step is finite."""
    values = (rollout.features, rollout.privileged, rollout.reward, rollout.log_prob)
    flat = [jnp.isfinite(value).reshape(*rollout.reward.shape, -1) for value in values]
    return jnp.concatenate(flat, -1).all(-1)


def check_finite(rollout: Rollout, physics_before: PyTree, folder: pathlib.Path) -> None:
    """Raises if learning data is not finite, naming the environment and keeping its state.

    Environments whose physics diverge are restarted by `Env.score`; what must never happen is a non-finite
    number that reaches the learner.

    Args:
      rollout: what is to be learnt from. physics_before: the physics before it. folder: for nonfinite.npz.

    Raises:
      ArtifactError: a number is not finite.
    """
    finite = np.asarray(_finite(rollout))
    if finite.all():
        return
    step, env = (int(index[0]) for index in np.nonzero(~finite))
    dump = folder / "nonfinite.npz"
    arrays = {
        "state_before_unroll": physics_before.rows[env],
        "features": np.asarray(rollout.features[:, env]),
        "privileged": np.asarray(rollout.privileged[:, env]),
        "raw_action": np.asarray(rollout.raw_action[:, env]),
        "reward": np.asarray(rollout.reward[:, env]),
    }
    files.write_atomic(dump, lambda file: np.savez(file, **arrays))
    raise ArtifactError(
        f"Environment {env} gave a non-finite number in step {step} of the unroll; its state is in {dump}."
    )
