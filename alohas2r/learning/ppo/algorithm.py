"""PPO as an algorithm of the run loop, in one training stage or several."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core import files
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState, Scored
from alohas2r.envs.vision import SensesState
from alohas2r.errors import ArtifactError
from alohas2r.learning.fleet.worker import Part
from alohas2r.learning.ppo.config import PpoConfig
from alohas2r.learning.ppo.learner import LearnerState, Ppo, Rollout
from alohas2r.learning.ppo.spread import Spread
from alohas2r.learning.run.loop import Figures
from alohas2r.sim.engines.base import PhysicsState, snapshot
from alohas2r.sim.signals import Readout

# Measures of a task that show what exploration reaches, where the task has them.
WATCHED = ("reached", "grasped", "lifted", "success", "stage", "dropped", "in_place")


class Stage(NamedTuple):
    """One stage of a training; stages differ in data and schedule, never in shapes."""

    config: PpoConfig
    updates: int
    make_env: Callable[[], Env]
    key: jax.Array  # of the environments
    alike: bool = True  # whether environments of all parts have the same task


class Simulated(NamedTuple):
    """All that changes in environments; as in `PpoState`."""

    env: EnvState
    physics: PyTree
    readout: Readout
    sense: SensesState | None = None


class PpoState(NamedTuple):
    """All that changes in a training."""

    learner: LearnerState
    env: EnvState
    physics: PyTree
    readout: Readout
    sense: SensesState | None = None  # of a policy that sees


class PpoData(NamedTuple):
    """What an update learns from, and what the task says of it."""

    rollout: Rollout
    final: Array  # [N, P] the critic's view after it
    measures: PyTree  # of the last step, [N, ...]
    finite: Sequence[Array]  # of each step [N], or of all [T, N]


class PpoAlgorithm:
    """Learning by PPO; `finish` and `judge` are the subclass's.

    Args:
      label: of the progress.
      stages: one after the other; the learner goes from each to the next, environments begin anew.
      key: of the learner.
      folder: of the run, for what a non-finite number leaves behind.
      part: which of the environments there are here; all if None.
      like: the same training of another part, whose compiled functions may be used.
      spread: the processes that learn together, see `Ppo`.
    """

    losses = ("loss/value", "loss/policy")
    remedy = "ppo.learning_rate_range"
    artifacts: tuple[str, ...] = ()

    def __init__(
        self,
        label: str,
        stages: Sequence[Stage],
        key: jax.Array,
        folder: pathlib.Path,
        part: Part | None = None,
        like: PpoAlgorithm | None = None,
        spread: Spread | None = None,
    ) -> None:
        self.label, self.stages, self._key, self.folder = label, stages, key, folder
        self.part, self.like, self.spread = part, like, spread
        self._ends = np.cumsum([stage.updates for stage in stages])
        self.iterations = int(self._ends[-1])
        self.steps_per_iteration = stages[0].config.steps_per_update
        self.stage = 0
        self.env, self.ppo = self.build(0)

    def build(self, stage: int) -> tuple[Env, Ppo]:
        """Returns the environments of a stage, and what learns in them."""
        env = self.make_env(stage)
        like = self.lender(stage)
        if like is not None:
            return env, like.ppo.beside(env)
        return env, Ppo(self.stages[stage].config, env, self.spread)

    def make_env(self, stage: int) -> Env:
        """Returns the environments of a stage."""
        env, like = self.stages[stage].make_env(), self.lender(stage)
        if like is not None and self.stages[stage].alike:
            env.share(like.env)
        return env

    def lender(self, stage: int) -> PpoAlgorithm | None:
        """Returns the training that has compiled a stage already, if there is one."""
        like = self.like
        if like is None or like.stage != stage or like.env.engine.traceable:
            return None
        return like

    def keys(self, key: jax.Array) -> jax.Array:
        """Returns a random key for each of the environments here."""
        part = self.part
        if part is None:
            return jax.random.split(key, self.env.num_envs)
        return jax.random.split(key, part.total)[part.first : part.last]

    def start(self) -> Simulated:
        """Starts the environments of the present stage."""
        keys = self.keys(self.stages[self.stage].key)
        return Simulated(*self.env.reset(keys, stagger=True))

    def entered(self, learner: LearnerState) -> LearnerState:
        """Returns with what the learner goes into the present stage."""
        return learner

    def stage_of(self, update: int) -> int:
        """Returns the stage of an update (1 .. iterations)."""
        return int(np.searchsorted(self._ends, max(update, 1)))

    def enter(self, stage: int) -> None:
        """Makes the environments of a stage the present ones, and what learns in them."""
        if stage != self.stage:
            self.stage = stage
            self.env, self.ppo = self.build(stage)

    def first(self) -> LearnerState:
        """Returns the learner before the first update."""
        return self.ppo.init(self._key)

    def init(self) -> PpoState:
        """Returns the state before the first update."""
        return PpoState(self.first(), *self.start())

    def collect(self, state: PpoState) -> tuple[PpoState, PpoData]:
        """Collects one unroll, in the next stage where that begins."""
        stage = self.stage_of(int(state.learner.updates) + 1)
        if stage != self.stage:
            self.enter(stage)
            state = PpoState(self.entered(state.learner), *self.start())
        before = snapshot(state.physics)
        state, data = self.roll(state)
        check_finite(data.rollout, before, self.folder)
        return state, data

    def roll(self, state: PpoState) -> tuple[PpoState, PpoData]:
        """Lets the policy act for one unroll."""
        rollout, final, env_state, physics, readout, scores = self.ppo.rollout(*state[:4])
        data = PpoData(rollout, final, self.measured(scores), [one.finite for one in scores])
        return PpoState(state.learner, env_state, physics, readout), data

    def update(self, state: PpoState, data: PpoData) -> tuple[PpoState, Figures]:
        """Learns from an unroll."""
        learner, figures = self.learn(state.learner, data)
        return state._replace(learner=learner), figures

    def learn(self, learner: LearnerState, data: PpoData) -> tuple[LearnerState, Figures]:
        """Learns from an unroll, wherever it comes from."""
        stage = self.stages[self.stage]
        first = int(self._ends[self.stage]) - stage.updates
        share = jnp.float32((int(learner.updates) - first) / stage.updates)
        learner, metrics = self.ppo.update(learner, data.rollout, data.final, share)
        figures = {name: float(value) for name, value in metrics.items()}
        figures |= {
            f"train/{name}": value for name, value in self.watch(data.measures, data.finite).items()
        }
        return learner, figures

    def measured(self, scores: Sequence[Scored]) -> PyTree:
        """Returns what `watch` gets of an unroll: the measures of its last step."""
        return scores[-1].measures

    def watch(self, measures: PyTree, finite: Sequence[Array]) -> Figures:
        """Returns what exploration reaches: shares of environments at the last step, and of diverged ones.

        Args:
          measures, finite: as in `PpoData`.
        """
        last = jax.tree.map(lambda x: np.asarray(x, np.float32), measures)._asdict()
        figures = {name: float(last[name].mean()) for name in WATCHED if name in last}
        unstable = [(~np.asarray(one)).mean() for one in finite]
        return figures | {"unstable": float(np.mean(unstable))}

    def evaluate(self, state: PpoState) -> Figures:
        """Returns figures of what is learnt so far."""
        return self.judge(state.learner)

    def judge(self, learner: LearnerState) -> Figures:
        """Returns nothing."""
        del learner
        return {}

    def finish(self, state: PpoState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes nothing."""
        del state, trained, figures
        return {}

    def checkpointed(self, state: PpoState) -> PpoState:
        """Returns the state with its physics copied."""
        return state._replace(physics=snapshot(state.physics))

    def restored(self, kept: PpoState) -> PpoState:
        """Returns the state, in its stage."""
        self.enter(self.stage_of(int(kept.learner.updates)))
        return kept


@jax.jit
def _finite(rollout: Rollout) -> jax.Array:
    """Returns [T, N]: whether all that the learner takes from that step is finite."""
    values = (rollout.features, rollout.privileged, rollout.reward, rollout.log_prob)
    flat = [jnp.isfinite(value).reshape(*rollout.reward.shape, -1) for value in values]
    return jnp.concatenate(flat, -1).all(-1)


def check_finite(rollout: Rollout, physics_before: PhysicsState, folder: pathlib.Path) -> None:
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
