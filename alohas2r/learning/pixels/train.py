"""Trains a policy from pixels by PPO and writes its artifact."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alohas2r import config
from alohas2r.config import check
from alohas2r.core import assets
from alohas2r.core.progress import Progress
from alohas2r.core.types import Json, JsonObject
from alohas2r.envs import student_step
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState
from alohas2r.envs.vision import Senses, SensesState
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import evaluate
from alohas2r.evaluation.episodes import SEEDS, episode_keys
from alohas2r.evaluation.evaluate import Runner
from alohas2r.learning.fleet.base import PARALLEL, FleetConfig
from alohas2r.learning.fleet.launch import threads_of
from alohas2r.learning.fleet.worker import Part, World, parts
from alohas2r.learning.pixels.config import (
    ENCODER,
    SCRATCH,
    STARTS,
    STUDENT,
    FollowingPixelsConfig,
    PixelsConfig,
    find_preset,
)
from alohas2r.learning.pixels.encoder import EncoderLearner
from alohas2r.learning.pixels.follow import Before, before, hand_overs
from alohas2r.learning.pixels.imitation import ImitationLearner, TetheredPpo
from alohas2r.learning.pixels.learner import PixelPpo
from alohas2r.learning.pixels.policy import to_policy
from alohas2r.learning.ppo.algorithm import PpoAlgorithm, PpoData, PpoState, Simulated, Stage
from alohas2r.learning.ppo.apart import PpoWorld
from alohas2r.learning.ppo.envs import make_env
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.learning.ppo.places import Further, fitted, train_apart
from alohas2r.learning.ppo.spread import Spread, all_processes
from alohas2r.learning.ppo.start import first_policy, kept_state
from alohas2r.learning.ppo.train import EVALUATION_SEED
from alohas2r.learning.run import manifest
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Figures, Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.spec import StudentSpec, make_pixel_spec
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import PixelPolicy
from alohas2r.rendering.protocol import DEPTH
from alohas2r.rendering.registry import make_renderer
from alohas2r.sim import scene
from alohas2r.sim.signals import Readout
from alohas2r.tasks.follows import Starts
from alohas2r.tasks.registry import find_task

SENSES_STREAM = 0x5E5E  # of the random numbers of the senses, beside those of the environments
CHECK_ROWS = 16  # observations in the artifact's check
RENDERERS = ("raycast", "exact")  # that draw depth alone on a CPU


class Given(NamedTuple):
    """What a training is given beside its configuration.

    Attributes:
      folder: of the run.
      seed: of everything random. threads: of physics and ray caster; 0 for all cores.
      renderer: one of RENDERERS.
      start: one of STARTS.
      part: which of the environments there are here; all if None.
      teacher: on the state, that a student imitates, where a training begins with one.
      states: where the episodes of a task begin that follows another.
      begun: what an earlier run had learnt, with which this one goes on; a checkpoint of it.
    """

    folder: pathlib.Path
    seed: int
    threads: int
    renderer: str
    start: str = SCRATCH
    part: Part | None = None
    teacher: StatePolicy | None = None
    states: Starts | None = None
    begun: pathlib.Path | None = None


class PixelTraining(PpoAlgorithm):
    """A training from pixels.

    Args:
      settings: the configuration. given: what else there is.
      like: the same training of another part, whose compiled functions may be used.
      spread: the processes that learn together, see `Ppo`.
      first: the policy that this one follows; None if the task starts by itself, or where nothing is evaluated.
    """

    def __init__(
        self,
        settings: PixelsConfig,
        given: Given,
        like: PixelTraining | None = None,
        spread: Spread | None = None,
        first: Before | None = None,
    ) -> None:
        self.settings, self.given, self.before = settings, given, first
        self.artifacts = ("policy",) if first is None else ("policy", "staged")
        root = jax.random.PRNGKey(given.seed)
        self.spec = spec_of(settings)
        self.senses: Senses | None = None
        self._runner: Runner | None = None
        stages = [
            Stage(
                stage.ppo,
                stage.updates,
                lambda stage=stage, number=number: make_env(
                    stage, given.seed, given.threads, given.states, number, part=given.part
                ),
                jax.random.fold_in(root, 1 + number),
                alike=given.states is None,
            )
            for number, stage in enumerate(settings.stages())
        ]
        if given.start == ENCODER:
            stages.insert(0, self._of_pictures(stages[0]))
        elif given.start == STUDENT:
            stages.insert(0, stages[0]._replace(updates=settings.student.updates))
        label = f"train {settings.phase} from pixels"
        key = jax.random.fold_in(root, 0)
        super().__init__(label, stages, key, given.folder, given.part, like, spread)

    def _of_pictures(self, first: Stage) -> Stage:
        """Returns the stage before the first one, in the same environments; its step size stays as it is."""
        rate = first.config.learning_rate
        config = dataclasses.replace(first.config, learning_rate_range=(rate, rate))
        return first._replace(config=config, updates=self.settings.pictures)

    def build(self, stage: int) -> tuple[Env, PixelPpo]:
        """Returns the environments of a stage, and what learns in them."""
        settings, given = self.settings, self.given
        env, like = self.make_env(stage), self.lender(stage)
        drawer = make_renderer(
            given.renderer,
            self.spec.cameras.size,
            given.threads,
            looks=settings.senses.looks,
            outputs=DEPTH,
            drawn=self.spec.phase,
        )
        half = np.asarray(env.context)[:, 0]
        self.senses = Senses(self.spec, settings.senses, half, drawer)
        if like is not None and isinstance(like.ppo, PixelPpo):
            return env, like.ppo.beside(env).with_senses(self.senses)
        common = self.stages[stage].config, env, self.senses, settings.auxiliary, self.spread
        if given.start == ENCODER and stage == 0:
            return env, EncoderLearner(*common)
        if given.start == STUDENT and stage == 0:
            assert given.teacher is not None
            return env, ImitationLearner(*common, settings.student, given.teacher)
        if given.start == STUDENT and stage == 1:
            return env, TetheredPpo(*common, settings.student, self.stages[1].updates)
        return env, PixelPpo(*common)

    def first(self) -> LearnerState:
        """Returns the learner before the first update: a new one, or all that an earlier run's had learnt."""
        learner, begun = super().first(), self.given.begun
        if begun is None:
            return learner
        earlier = Checkpoint(begun).load_first(learner)
        return earlier._replace(key=learner.key, updates=learner.updates)

    def entered(self, learner: LearnerState) -> LearnerState:
        """Returns with what the learner goes into a stage.

        After pictures alone, all but the policy is new. After a student, so is the critic; what the policy's numbers
        are normalized by stays, and its step size goes on from there.
        """
        start = self.given.start
        if self.stage != 1 or start == SCRATCH:
            return learner
        fresh, policy = self.ppo.init(learner.key), learner.params["policy"]
        params = {**fresh.params, "policy": policy}
        fresh = fresh._replace(params=params, key=learner.key, updates=learner.updates)
        if start == ENCODER:
            return fresh
        return fresh._replace(
            policy_stats=learner.policy_stats, learning_rate=learner.learning_rate, start=policy
        )

    def start(self) -> Simulated:
        """Starts environments and senses of the present stage."""
        key = jax.random.fold_in(self.stages[self.stage].key, SENSES_STREAM)
        assert self.senses is not None
        sense = self.senses.reset(self.keys(key))
        return super().start()._replace(sense=sense)

    def roll(self, state: PpoState) -> tuple[PpoState, PpoData]:
        """Lets the policy act for one unroll."""
        assert isinstance(self.ppo, PixelPpo)
        assert state.sense is not None
        rollout, final, world, scores = self.ppo.look_and_roll(*state[:4], state.sense)
        data = PpoData(rollout, final, self.measured(scores), [one.finite for one in scores])
        return PpoState(state.learner, *world), data

    def judge(self, learner: LearnerState) -> Figures:
        """Returns rates of the deterministic policy under the frozen protocol."""
        settings, given = self.settings, self.given
        entry = find_task(settings.phase)
        if self._runner is None:
            seed = (given.seed + EVALUATION_SEED) % SEEDS
            keys = episode_keys(seed, 0, settings.evaluation_episodes)
            rules = entry.find_protocol(settings.protocol) if settings.protocol else None
            acting = self._whole(to_policy(self.spec, learner, {}), {})
            self._runner = Runner(acting.spec, rules, keys, given.threads, given.renderer)
        weights = self._whole(to_policy(self.spec, learner, {}), {}).weights
        watched = evaluate.watched(entry, self._runner.run(weights=weights).table)
        return {f"eval/{name}": value for name, value in watched.items()}

    def _whole(self, policy: PixelPolicy, trained: JsonObject) -> PixelPolicy | StagedPixelsPolicy:
        """Returns the policy, or both as one where it follows another."""
        return policy if self.before is None else self.before.join(policy, trained)

    def finish(self, state: PpoState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the policy and, where it follows another one, both as one."""
        del figures
        policy, rows = to_policy(self.spec, state.learner, trained), self.record(state)
        saved = artifact.save(policy, self.given.folder / "policy", rows)
        if self.before is None:
            return {"policy": str(saved)}
        switched = np.arange(CHECK_ROWS) >= CHECK_ROWS // 2
        rows["switched"] = switched[: len(rows[self.spec.vector])]
        whole = artifact.save(self._whole(policy, trained), self.given.folder / "staged", rows)
        return {"policy": str(saved), "staged": str(whole)}

    def record(self, state: PpoState) -> dict[str, np.ndarray]:
        """Returns what the first environments observe now, one after the other, for an artifact's check."""
        env, senses = self.env, self.senses
        assert senses is not None
        assert state.sense is not None
        drawn = senses.draw(state.sense, state.readout.qpos)

        @jax.jit
        def look(state: EnvState, readout: Readout, sense: SensesState) -> student_step.Seen:
            return student_step.observe(env, senses, state, readout, sense, drawn).seen

        seen = look(state.env, state.readout, state.sense)
        assert seen.depth is not None
        rows = {self.spec.vector: np.asarray(seen.vector)}
        for place, view in enumerate(self.spec.views):
            rows[f"{view}_depth"] = np.asarray(seen.depth[:, place])
        return {name: value[:CHECK_ROWS] for name, value in rows.items()}


def spec_of(settings: PixelsConfig) -> StudentSpec:
    """Returns the description of the policy that a configuration trains."""
    drawn = scene.load(find_task(settings.phase).scene)
    scale = settings.env.control.scale
    return make_pixel_spec(drawn, settings.network, settings.cameras, settings.history, scale)


def train(
    phase: str = "pick",
    preset: str = "default",
    start: str = "scratch",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    minutes: float | None = None,
    progress: Progress | None = None,
    renderer: str = "raycast",
    loggers: Sequence[Logger] = (),
    fleet: FleetConfig | None = None,
    pick: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    start_from: str | os.PathLike[str] | None = None,
    finish: bool = False,
) -> JsonObject:
    """Trains a policy from wrist depth and writes its artifact to `out`/policy.

    Insertion starts where a pick policy from pixels hands over, having seen nothing yet; these states are collected
    into `out` if the file is missing or belongs to another policy. Both policies as one are `out`/staged.

    Args:
      phase: name of the task.
      preset: "default" or "quick".
      start: what it begins with: "scratch"; or "encoder": what looks at pictures first learns to tell where the block
        is, of pictures at random poses (`pictures` updates more); or "student": a teacher on the state is imitated
        first (`student.updates` more).
      out: folder of the run; runs/pixels-<phase> if None.
      resume: continue the run in `out` to the same result as an unbroken run.
      finish: with `resume`, learn no further but write what the last checkpoint has learnt.
      overrides: "key=value" settings on top of the preset.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores. Part of what makes a run reproducible.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: one of RENDERERS.
      loggers: who is told beside the run's folder, see `Logger`.
      fleet: where the environments live; with the learner, as one batch, if None.
      pick: the policy from pixels that insertion follows; the shipped one if None.
      teacher: that a student imitates first, see `first_policy`; the shipped one if None.
      start_from: what training goes on with, under whatever settings: a run of the same task and networks, or one of
        its checkpoints, see `kept_state`. Policy, critic and step size go on; environments and stages begin anew.

    Returns:
      "phase", "start", and what `Run.train` returns; "policy" is the artifact's folder, "staged" that of both.

    Raises:
      ConfigError: unknown task, preset, start, renderer or setting, value out of range, another configuration than
        the run that is resumed, or policies that do not go together with it.
      ArtifactError: a policy cannot be read, the folder cannot be written or is in use, or the checkpoint is missing
        or damaged.
    """
    for name, value, choices in (("start", start, STARTS), ("renderer", renderer, RENDERERS)):
        check(value in choices, f"{name} must be one of {', '.join(choices)}, not '{value}'")
    settings = config.override(find_preset(phase, preset), overrides)
    folder = pathlib.Path("runs") / f"pixels-{phase}" if out is None else pathlib.Path(out)
    check(teacher is None or start == STUDENT, "a teacher goes with the start 'student' alone")
    check(
        start_from is None or start == SCRATCH,
        "what goes on from a run has a start: leave --start out",
    )
    taught = _teacher(phase, teacher) if start == STUDENT else None
    begun = None if start_from is None else _begun(start_from, phase)
    if taught is not None:
        settings = _as_taught(settings, taught.policy)
    first = before(phase, pick, settings)
    known = {"teacher": taught and taught.policy.hash, "pick": first and first.pick.hash}
    known["start_from"] = begun and Checkpoint(begun).digest()
    parents = {role: digest for role, digest in known.items() if digest is not None}
    identity: Mapping[str, Json] = {
        **{"seed": seed, "renderer": renderer, "start": start},
        **known,
        "fleet": None if fleet is None else fleet.identity,
    }
    options: dict[str, object] = {
        **{"phase": phase, "start": start, "preset": preset, "seed": seed},
        "teacher": taught and manifest.named(taught.path),
        "pick": first and manifest.named(first.path),
        "start_from": None if start_from is None else manifest.named(start_from),
        **{"renderer": renderer, "threads": threads or None},
    }
    given = Given(
        folder, seed, threads, renderer, start, teacher=taught and taught.policy, begun=begun
    )
    if fleet is not None:
        fleet = fitted(fleet, settings.ppo)
        options |= fleet.options
    command = manifest.command("train-pixels", options, overrides)
    schedule = Schedule(settings.evaluations, settings.checkpoints, minutes, "eval/success")
    further = Further(command, parents, schedule, progress, loggers)
    with Run(folder, settings, identity, resume, finish) as run:
        if first is not None:
            assert isinstance(settings, FollowingPixelsConfig)
            states = hand_overs(first, folder, settings, seed, threads, renderer, progress)
            given = given._replace(states=states)
        if fleet is None:
            result = run.train(PixelTraining(settings, given, first=first), *further)
        else:
            part = parts(settings.ppo.num_envs, fleet.world)[0]
            training = PixelTraining(settings, given._replace(part=part), first=first)
            each = threads_of(fleet, threads)
            plan = PixelPlan(
                phase,
                config.to_dict(settings),
                given._replace(threads=each),
                fleet.world,
                parallel=fleet.kind == PARALLEL,
            )
            result = train_apart(run, training, fleet, pixel_world, plan, each, 0.0, further)
    return {"phase": phase, "start": start, **result}


def _begun(path: str | os.PathLike[str], phase: str) -> pathlib.Path:
    """Returns the state of an earlier run that a path names.

    Raises:
      ArtifactError: it is no run of train-pixels, or of another task.
    """
    kept = kept_state(path)
    if kept is None:
        raise ArtifactError(
            f"{path} is no run of train-pixels to go on from: a policy alone lacks what the critic had learnt."
        )
    try:
        recorded = manifest.described(kept.parent)
        if "start" not in recorded:  # as other trainings' are
            raise KeyError("start")
        trained = recorded["config"]["phase"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{kept.parent} is no run of train-pixels to go on from ({error})."
        ) from error
    if trained != phase:
        raise ArtifactError(f"{path} trains '{trained}', not '{phase}'.")
    return kept


class Taught(NamedTuple):
    """A teacher on the state, and where it is from."""

    policy: StatePolicy
    path: pathlib.Path


def _teacher(phase: str, path: str | os.PathLike[str] | None) -> Taught:
    """Returns the teacher of a task that a path names, see `first_policy`; the shipped one if None."""
    if path is None:
        name = phase if find_task(phase).follows is None else "teacher"
        path = assets.data_path("params") / name
    return Taught(first_policy(path, phase), pathlib.Path(path))


def _as_taught(settings: PixelsConfig, teacher: StatePolicy) -> PixelsConfig:
    """Returns the configuration with environments that remember what a teacher does.

    Raises:
      ConfigError: its actions are of another scale, or it observes other things.
    """
    scale, own = teacher.spec.action.scale, settings.env.control.scale
    check(
        scale == own,
        f"the teacher's actions have the scale {scale}, not {own}: set env.control.scale={scale}",
    )
    entry = find_task(settings.phase)
    seen = tuple((part.name, part.size, part.unit) for part in teacher.spec.observation)
    task = entry.task(scene.load_physics(entry.scene), settings.task)
    check(
        teacher.spec.phase == settings.phase and seen == task.observation_spec,
        f"the teacher observes other things than '{settings.phase}' gives",
    )
    return dataclasses.replace(
        settings, env=dataclasses.replace(settings.env, history=teacher.spec.history)
    )


class PixelPlan(NamedTuple):
    """What a worker has to know to make the worlds of a training from pixels."""

    phase: str
    settings: JsonObject
    given: Given
    world: int
    parallel: bool = False  # whether this process is one of several that learn together


def pixel_world(plan: PixelPlan, number: int, like: World | None) -> PpoWorld:
    """Returns one world of a training from pixels; `like` has compiled what it may use."""
    settings = config.from_dict(type(find_preset(plan.phase, "default")), plan.settings)
    part = parts(settings.ppo.num_envs, plan.world)[number]
    lender = like.training if isinstance(like, PpoWorld) else None
    assert lender is None or isinstance(lender, PixelTraining)
    spread = all_processes() if plan.parallel else None
    return PpoWorld(PixelTraining(settings, plan.given._replace(part=part), lender, spread))
