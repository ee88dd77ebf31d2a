"""Trains a teacher by PPO and writes its artifact."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

import alohas2r
from alohas2r import config
from alohas2r.core import assets
from alohas2r.core.progress import Progress
from alohas2r.core.types import Json, JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation import evaluate
from alohas2r.evaluation.episodes import SEEDS, episode_keys
from alohas2r.learning.fleet.base import PARALLEL, FleetConfig
from alohas2r.learning.fleet.launch import threads_of
from alohas2r.learning.fleet.worker import Part, World, parts
from alohas2r.learning.ppo.algorithm import PpoAlgorithm, PpoState, Stage
from alohas2r.learning.ppo.apart import PpoWorld
from alohas2r.learning.ppo.envs import make_env
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.learning.ppo.places import Further, fitted, train_apart
from alohas2r.learning.ppo.policy import for_first_arm, record_check, to_policy, with_policy
from alohas2r.learning.ppo.presets import FollowingTrainConfig, TrainConfig, find_preset, unset
from alohas2r.learning.ppo.spread import all_processes
from alohas2r.learning.ppo.start import first_policy
from alohas2r.learning.run import manifest
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Figures, Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.follows import Starts
from alohas2r.tasks.registry import find_task

EVALUATION_SEED = 1_000_003  # on top of the run's: what is evaluated on the way was not trained on


class Teacher(PpoAlgorithm):
    """A teacher's training.

    Args:
      settings: the configuration.
      folder: of the run.
      seed: of everything random. threads: of the physics; 0 for all cores.
      engine: "cpu" or "warp".
      before: the policy that this one follows, and where it hands over; None if the task starts by itself.
      start_from: the policy that training goes on with; a random one if None.
      part: which of the environments there are here; all if None.
    """

    artifacts = ("policy",)

    def __init__(
        self,
        settings: TrainConfig,
        folder: pathlib.Path,
        seed: int,
        threads: int,
        engine: str,
        before: tuple[StatePolicy, Starts] | None,
        start_from: StatePolicy | None = None,
        part: Part | None = None,
    ) -> None:
        self.settings, self.folder, self.seed = settings, folder, seed
        self.threads, self.engine = threads, engine
        self.before, states = (None, None) if before is None else before
        stages = stages_of(settings, seed, threads, states, engine, part)
        key = jax.random.fold_in(jax.random.PRNGKey(seed), 0)
        super().__init__(f"train {settings.phase}", stages, key, folder, part)
        self._start_from = start_from

    def first(self) -> LearnerState:
        """Returns the learner before the first update."""
        learner, policy = super().first(), self._start_from
        if policy is None:
            return learner
        if policy.spec.phase != self.settings.phase:
            policy = for_first_arm(policy, self.settings.phase, self.env.task)
        return with_policy(learner, policy)

    def _staged(self, policy: StatePolicy, trained: JsonObject) -> StagedPolicy | None:
        """Returns the whole teacher, where the policy follows another one."""
        follows = find_task(self.settings.phase).follows
        if self.before is None or follows is None:
            return None
        return follows.staged(self.before, policy, self.settings.task, trained)

    def judge(self, learner: LearnerState) -> Figures:
        """Returns rates of the deterministic policy under the frozen protocol."""
        policy = to_policy(self.settings, self.env, learner, {})
        acting: StatePolicy | StagedPolicy = self._staged(policy, {}) or policy
        keys = episode_keys(
            (self.seed + EVALUATION_SEED) % SEEDS, 0, self.settings.evaluation_episodes
        )
        entry = find_task(acting.spec.phase)
        rules = entry.find_protocol(self.settings.protocol) if self.settings.protocol else None
        table = evaluate.run(acting, rules, keys, self.threads, engine=self.engine).table
        watched = evaluate.watched(entry, table)
        return {f"eval/{name}": value for name, value in watched.items()}

    def finish(self, state: PpoState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the policy and, where it follows another one, the whole teacher."""
        del figures
        policy = to_policy(self.settings, self.env, state.learner, trained)
        observations = record_check(policy, self.env, self.seed)
        paths = {
            "policy": str(
                artifact.save(policy, self.folder / "policy", {"observations": observations})
            )
        }
        brief = {"alohas2r": alohas2r.__version__, "date": trained["date"]}
        whole = self._staged(policy, brief)
        if whole is not None:
            switched = np.arange(len(observations)) >= len(observations) // 2
            saved = artifact.save(
                whole, self.folder / "teacher", {"observations": observations, "switched": switched}
            )
            paths["teacher"] = str(saved)
        return paths


def train(
    phase: str = "pick",
    preset: str = "default",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    minutes: float | None = None,
    progress: Progress | None = None,
    pick: str | os.PathLike[str] | None = None,
    engine: str = engines.AUTO,
    start_from: str | os.PathLike[str] | None = None,
    loggers: Sequence[Logger] = (),
    fleet: FleetConfig | None = None,
    finish: bool = False,
) -> JsonObject:
    """Trains a teacher and writes its artifact to `out`/policy.

    A task that follows another, as insertion follows pick, starts where that one's policy hands over; these states are
    collected into `out` if the file is missing or belongs to another policy. The whole teacher is `out`/teacher.

    Args:
      phase: name of the task.
      preset: "default" or "quick".
      out: folder of the run; runs/<phase> if None.
      resume: continue the run in `out` to the same result as an unbroken run.
      finish: with `resume`, learn no further but write what the last checkpoint has learnt.
      overrides: "key=value" settings on top of the preset.
      seed: of everything random.
      threads: of the physics; 0 for all cores. Part of what makes a run reproducible.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      pick: the policy that the task follows; the shipped one if None.
      engine: "cpu"; "warp"; or "auto": the engine of the run that is resumed, else "warp" where there is CUDA, else
        "cpu". Switch states are collected on the CPU engine in any case.
      start_from: what training goes on with, under whatever settings: a policy of the same task and network, a run, or
        one of a run's checkpoints, see `first_policy`; the critic begins anew. A random policy if None.
      loggers: who is told beside the run's folder, see `Logger`.
      fleet: where the environments live; with the learner, as one batch, if None.

    Returns:
      "phase", "engine", and what `Run.train` returns; "policy" is the artifact's folder.

    Raises:
      ConfigError: unknown setting, value out of range, or another configuration than the run that is resumed.
      ArtifactError: the folder cannot be written or is in use, or the checkpoint is missing or damaged.
      BackendUnavailable: the engine cannot run here.
      ModelError: the engine's buffers are too small; the message says what to set.
    """
    settings = config.override(find_preset(phase, preset), overrides)
    folder = pathlib.Path("runs") / phase if out is None else pathlib.Path(out)
    follows = find_task(phase).follows
    pick_path, pick_policy = (None, None) if follows is None else _before(follows.task, pick)
    if resume and engine == engines.AUTO:
        engine = manifest.recorded(folder, "engine", engines.AUTO)
    engine = engines.choose(engine)
    parents = {} if pick_policy is None else {"pick": pick_policy.hash}
    first = None if start_from is None else first_policy(start_from, phase)
    if first is not None:
        parents["start_from"] = first.hash
    identity: Mapping[str, Json] = {
        **{"seed": seed, "engine": engine, "pick": None, "start_from": None},
        **parents,
        "fleet": None if fleet is None else fleet.identity,
    }
    options = {"phase": phase, "preset": preset, "seed": seed, "engine": engine}
    options["pick"] = None if pick_path is None else manifest.named(pick_path)
    options["start_from"] = None if start_from is None else manifest.named(start_from)
    options["threads"] = threads or None
    if fleet is not None:
        fleet = fitted(fleet, settings.ppo)
        options |= fleet.options
    with Run(folder, settings, identity, resume, finish) as run:
        following = None
        if isinstance(settings, FollowingTrainConfig) and follows is not None:
            assert pick_path is not None
            assert pick_policy is not None
            _check_memory(settings, pick_policy)
            where = folder / follows.file, pick_path
            how = settings.collect, settings.task, settings.env
            following = pick_policy, follows.ensure(*where, *how, seed, threads, progress)
        command = manifest.command("train-teacher", options, overrides)
        schedule = Schedule(settings.evaluations, settings.checkpoints, minutes, "eval/success")
        given = settings, folder, seed, threads, engine, following, first
        further = Further(command, parents, schedule, progress, loggers)
        if fleet is None:
            result = run.train(Teacher(*given), *further)
        else:
            training = Teacher(*given, parts(settings.ppo.num_envs, fleet.world)[0])
            each, states = threads_of(fleet, threads), None if following is None else following[1]
            plan = TeacherPlan(
                phase,
                config.to_dict(settings),
                seed,
                each,
                engine,
                states,
                fleet.world,
                parallel=fleet.kind == PARALLEL,
            )
            gpus = float(engine == "warp")
            result = train_apart(run, training, fleet, teacher_world, plan, each, gpus, further)
    return {"phase": phase, "engine": engine, **result}


class TeacherPlan(NamedTuple):
    """What a worker has to know to make the worlds of a teacher's training."""

    phase: str
    settings: JsonObject
    seed: int
    threads: int
    engine: str
    states: Starts | None
    world: int
    parallel: bool = False  # whether this process is one of several that learn together


def teacher_world(plan: TeacherPlan, number: int, like: World | None) -> PpoWorld:
    """Returns one world of a teacher's training; `like` has compiled what it may use."""
    settings = config.from_dict(type(unset(plan.phase)), plan.settings)
    part = parts(settings.ppo.num_envs, plan.world)[number]
    stages = stages_of(settings, plan.seed, plan.threads, plan.states, plan.engine, part)
    lender = like.training if isinstance(like, PpoWorld) else None
    key = jax.random.fold_in(jax.random.PRNGKey(plan.seed), 0)
    spread = all_processes() if plan.parallel else None
    return PpoWorld(PpoAlgorithm(plan.phase, stages, key, pathlib.Path(), part, lender, spread))


def stages_of(
    settings: TrainConfig,
    seed: int,
    threads: int,
    states: Starts | None,
    engine: str,
    part: Part | None,
) -> list[Stage]:
    """Returns the stages of a teacher's training, with the environments of a part of it."""
    root = jax.random.PRNGKey(seed)
    return [
        Stage(
            stage.ppo,
            stage.updates,
            lambda stage=stage, number=number: make_env(
                stage, seed, threads, states, number, engine, part
            ),
            jax.random.fold_in(root, 1 + number),
            alike=states is None,
        )
        for number, stage in enumerate(settings.stages())
    ]


def _before(task: str, path: str | os.PathLike[str] | None) -> tuple[pathlib.Path, StatePolicy]:
    """Returns the path and the policy of a task that another follows; the shipped one if the path is None."""
    path = assets.data_path("params") / task if path is None else pathlib.Path(path)
    policy = artifact.load(path)
    if not isinstance(policy, StatePolicy) or policy.spec.phase != task:
        raise ArtifactError(f"{path} is no {task} policy.")
    return path, policy


def _check_memory(settings: TrainConfig, before: StatePolicy) -> None:
    """Raises ConfigError unless the policy that is followed has the same memory."""
    if settings.env.history != before.spec.history:
        raise ConfigError(
            f"env.history.rates must be those of the {before.spec.phase} policy,"
            f" {before.spec.history.rates}."
        )
