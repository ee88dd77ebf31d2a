"""Measures policies in simulation under the frozen protocol: success rates with 95% Wilson intervals.

Every way to evaluate goes through `load_policy` and `Runner`.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

import jax
import numpy as np

from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core.progress import Meter
from alohas2r.core.stats import quantiles
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.envs.vision import EVALUATION, PIXEL_SENSES, SensesConfig
from alohas2r.errors import ArtifactError, ConfigError, Interrupted
from alohas2r.evaluation import causes
from alohas2r.evaluation.actors import (
    ExportedActor,
    Eyes,
    Recorder,
    StateActor,
    VisionActor,
    memory_of,
)
from alohas2r.evaluation.episodes import (
    MAX_ENVS,
    Acted,
    Actor,
    Halted,
    Setting,
    draws_digest,
    episode_keys,
    halting,
    pinned,
    run_episodes,
    set_up,
)
from alohas2r.evaluation.folder import AT_ONCE, EvaluationFolder
from alohas2r.policies import artifact
from alohas2r.policies.online.policy import NOT_EVALUATED, OnlinePolicy
from alohas2r.policies.onnx import exported
from alohas2r.policies.onnx.exported import ExportedPolicy
from alohas2r.policies.spec import PIXELS, PolicySpec, StudentSpec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim import scene
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.protocol import TaskProtocol, TransferProtocol, without_causes
from alohas2r.tasks.registry import AnyTask, find_task
from alohas2r.tasks.scoring import Scorer, Table

Evaluable: TypeAlias = StatePolicy | StagedPolicy | StudentPolicy | ExportedPolicy


def load_policy(path: str | os.PathLike[str]) -> Evaluable:
    """Reads a policy, an artifact or an exported file, and makes sure that it can be evaluated.

    Raises:
      ArtifactError: it cannot be read, or observes other things than this version gives.
    """
    policy: Evaluable
    if pathlib.Path(path).suffix.lower() == ".onnx" or pathlib.Path(path).is_file():
        policy = exported.load(path)
    else:
        loaded = artifact.load(path)
        if isinstance(loaded, OnlinePolicy):
            raise ArtifactError(NOT_EVALUATED.format(path=path, task=loaded.describe()["phase"]))
        assert isinstance(loaded, StatePolicy | StagedPolicy | StudentPolicy)
        policy = loaded
    _check_evaluable(policy, str(path))
    return policy


def _check_evaluable(policy: Evaluable, name: str) -> None:
    """Raises ArtifactError unless a policy can be evaluated; `name` is what the message calls it."""
    if isinstance(policy.spec, StudentSpec):
        follows = find_task(policy.spec.phase).follows
        if policy.spec.kind == PIXELS and follows is not None:
            raise ArtifactError(
                f"{name} is a policy from pixels for '{policy.spec.phase}' alone; evaluate the staged one that"
                f" holds it and a policy for '{follows.task}'."
            )
        return
    try:
        entry = find_task(policy.spec.phase)
    except ConfigError as error:
        raise ArtifactError(
            f"{name} is a policy of a task that is not known here: {error}"
        ) from None
    single = isinstance(policy, StatePolicy)
    if isinstance(policy, ExportedPolicy):
        single = policy.kind == "state"
    if single and entry.follows is not None:
        raise ArtifactError(
            f"{name} is a policy for '{entry.name}' alone; evaluate the teacher that holds it"
            f" and a policy for '{entry.follows.task}'."
        )
    expected = tuple((part.name, part.size, part.unit) for part in policy.spec.observation)
    if expected != entry.task(scene.load_physics(entry.scene), entry.config).observation_spec:
        raise ArtifactError(
            f"{name} expects other observations than this version of alohas2r gives."
        )


class Episodes(NamedTuple):
    """Episodes that were run."""

    table: Table
    qpos: np.ndarray  # [T, N, nq] float32, before each step; for videos
    scorer: Scorer
    steps: np.ndarray  # [N] control steps until the episode ended
    setting: Setting


class Keeper(Protocol):
    """Keeps of an evaluation what its films are made of."""

    def recorder(self, first: int) -> Recorder | None:
        """Returns what receives what students see in a group of episodes; `first` is the number of its first one."""
        ...

    def keep(self, first: int, episodes: Episodes) -> None:
        """Takes a group that was run."""
        ...


class Runner:
    """Runs the same episodes as often as one likes; what is compiled serves them all.

    Starts, physics and action delays of an episode are the same for every policy.

    Args:
      policy: what acts: a teacher, a student, an exported file; or the specification alone of students whose
        weights `run` is given.
      protocol: distributions, delays and thresholds; that of the policy's task if None.
      keys: [N, 2] of the episodes.
      threads: of physics and ray caster; 0 for all cores.
      renderer: of a student's pictures; see `rendering.registry`.
      engine: "cpu" or "warp"; students and exported files run on "cpu" only.
      conditions: noise and randomization of what a student observes; those of the protocol if None.
      setting: the environments and the scorer, if they are not those of the task.
      recorded: receives what a student observes in each step, for videos.
      after: another of the same policy, protocol, renderer and conditions; what it has compiled serves this one as
        well.
    """

    @pinned()
    def __init__(
        self,
        policy: Evaluable | StudentSpec,
        protocol: TaskProtocol | None,
        keys: jax.Array,
        threads: int = 0,
        renderer: str = "auto",
        engine: str = "cpu",
        *,
        conditions: SensesConfig | None = None,
        setting: Setting | None = None,
        recorded: Recorder | None = None,
        after: Runner | None = None,
    ):
        spec = policy if isinstance(policy, StudentSpec) else policy.spec
        if setting is None:
            entry = find_task(spec.phase)
            rules = entry.protocol if protocol is None else protocol
            scale = spec.action.scale
            setting = set_up(entry, rules, memory_of(spec), keys, threads, engine, scale)
        if conditions is None and isinstance(spec, StudentSpec) and spec.from_pixels:
            conditions = pixel_conditions(protocol)
        if conditions is None:
            conditions = student_conditions(protocol)
        self.setting, self.keys = setting, keys
        earlier = None
        if after is not None:
            setting.env.share(after.setting.env)
            earlier = after.actor
        eyes = None
        if isinstance(spec, StudentSpec):
            eyes = Eyes(spec, setting, threads, renderer, conditions)
        self._student: VisionActor | None = None
        if isinstance(policy, ExportedPolicy):
            compiled = earlier if isinstance(earlier, ExportedActor) else None
            self.actor: Actor = ExportedActor(setting.env, policy, eyes, recorded, compiled)
        elif eyes is not None and isinstance(spec, StudentSpec):
            compiled = earlier if isinstance(earlier, VisionActor) else None
            self.actor = self._student = VisionActor(eyes, spec, recorded, compiled)
            if isinstance(policy, StudentPolicy):
                self._student.use(policy.weights)
        elif isinstance(policy, StatePolicy | StagedPolicy):
            compiled = earlier if isinstance(earlier, StateActor) else None
            self.actor = StateActor(setting.env, policy, compiled)

    def run(
        self,
        meter: Meter | None = None,
        done_before: int = 0,
        weights: Mapping[str, np.ndarray] | None = None,
        watch: Callable[[Acted], None] | None = None,
    ) -> Episodes:
        """Runs all episodes from their start.

        Args:
          meter: receives counts of episodes, on top of `done_before`.
          weights: lets another student of the same specification act.
          watch: is shown every step.
        """
        if weights is not None and self._student is not None:
            self._student.use(weights)
        scorer = self.setting.scorer()
        played = run_episodes(
            self.setting.env, self.actor, scorer, self.keys, meter, done_before, watch
        )
        drawn = dict({} if self.setting.robots is None else self.setting.robots.causes)
        if isinstance(self.actor, VisionActor | ExportedActor):
            drawn |= self.actor.causes()
        table = scorer.table() | {causes.PREFIX + name: value for name, value in drawn.items()}
        return Episodes(table, played.qpos, scorer, played.steps, self.setting)


def student_conditions(protocol: TaskProtocol | None) -> SensesConfig:
    """Returns noise and randomization of what a student observes under a protocol; None for eval-v1."""
    if not isinstance(protocol, TransferProtocol):
        return EVALUATION
    joint_pos = protocol.insert.noise.joint_pos
    return SensesConfig(joint_pos=joint_pos, shadows=1.0, looks=protocol.looks or False)


def pixel_conditions(protocol: TaskProtocol | None) -> SensesConfig:
    """Returns likewise what a policy from pixels observes under a protocol.

    Raises:
      ConfigError: the protocol has looks that depth alone is not drawn with.
    """
    if isinstance(protocol, TransferProtocol):
        raise ConfigError(
            f"A policy from pixels cannot be evaluated by '{protocol.name}'; choose eval-v1."
        )
    return PIXEL_SENSES


def run(
    policy: Evaluable,
    protocol: TaskProtocol | None,
    keys: jax.Array,
    threads: int = 0,
    renderer: str = "auto",
    engine: str = "cpu",
) -> Episodes:
    """Runs one episode per key with any policy; see `Runner`."""
    return Runner(policy, protocol, keys, threads, renderer, engine).run()


def check_episodes(episodes: int) -> None:
    """Raises ConfigError unless so many episodes can be evaluated."""
    check(1 <= episodes <= 1_000_000, f"episodes must be in 1..1000000, not {episodes}.")


def chunks(seed: int, episodes: int, size: int = MAX_ENVS) -> list[tuple[int, jax.Array]]:
    """Returns the episodes of a seed in groups that are simulated at once: the first one's number, and the keys."""
    return [
        (first, episode_keys(seed, first, min(size, episodes - first)))
        for first in range(0, episodes, size)
    ]


def join(tables: list[Table]) -> Table:
    """Returns tables one below the other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def evaluate(
    policy: str | os.PathLike[str] | Evaluable,
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: TaskProtocol | None = None,
    renderer: str = "auto",
    engine: str = "cpu",
    keeper: Keeper | None = None,
    *,
    folder: EvaluationFolder | None = None,
    stop: StopSignal | None = None,
) -> JsonObject:
    """Runs exactly `episodes` fresh episodes, one per environment, and says how they went.

    Args:
      policy: a policy, or the path of an artifact or an exported file (.onnx).
      episodes: how many.
      seed: what is drawn for episode i (start, physics, noise, looks) depends on the seed and i alone. What comes of
        it agrees to rounding: products of matrices are summed in another order in another number of episodes.
      threads: of the physics; 0 for all cores.
      progress: receives counts of episodes.
      protocol: the distributions and thresholds; that of the policy's task if None.
      renderer: of a student's pictures; see `rendering.registry`.
      engine: "cpu"; "warp", for teachers; or "auto": "warp" for teachers where there is CUDA.
      keeper: is shown each group of episodes that is run, for films.
      folder: where episodes are kept, `folder.AT_ONCE` at a time, and taken from if they are there already.
      stop: ends the work where it is.

    Returns:
      Protocol, "draws" (see `draws_digest`), rates with Wilson intervals, quantiles of errors and times, and "table":
      per-episode columns.

    Raises:
      ArtifactError: the policy cannot be read or is none for this protocol.
      ConfigError: a number out of range, or a folder of another evaluation.
      Interrupted: a stop was asked for, or the folder could not be written; with the result of the groups of
        episodes that had ended, in which "of" is how many it should have been.
    """
    check_episodes(episodes)
    if isinstance(policy, str | os.PathLike):
        loaded, name = load_policy(policy), str(policy)
    else:
        loaded, name = policy, "The policy"
        _check_evaluable(loaded, name)
    entry = find_task(loaded.spec.phase)
    rules: TaskProtocol = entry.protocol if protocol is None else protocol
    engine = _engine(engine, loaded, name)
    about: JsonObject = {
        "protocol": rules.name,
        "protocol_hash": rules.hash,
        "policy": loaded.hash,
        "phase": loaded.spec.phase,
        "engine": engine,
        "episodes": episodes,
        "seed": seed,
        "draws": draws_digest(entry, seed),
    }
    size = MAX_ENVS if folder is None or engine == "warp" else AT_ONCE
    if folder is not None:
        folder.begin({**about, "renderer": renderer, "at_once": size})
    meter = Meter("evaluate", episodes, progress, unit="episodes")
    ended = _Ended(about, loaded.spec, rules, folder)
    runner: Runner | None = None
    try:
        for first, keys in chunks(seed, episodes, size):
            if not ended.take(first, len(keys)):
                if stop:  # before it is compiled
                    raise Halted
                recorded = None if keeper is None else keeper.recorder(first)
                runner = Runner(
                    loaded,
                    rules,
                    keys,
                    threads,
                    renderer,
                    engine,
                    recorded=recorded,
                    after=runner,
                )
                part = runner.run(meter, first, watch=halting(stop))
                ended.add(first, part)
                if keeper is not None:
                    keeper.keep(first, part)
            meter.update(first + len(keys), {"success": ended.success})
    except Halted:
        raise Interrupted(ended.count, episodes, "episodes", ended.result()) from None
    result = ended.result()
    assert result is not None
    return result


class _Ended:
    """The groups of an evaluation that have ended, in memory and, where there is one, in a folder."""

    def __init__(
        self,
        about: JsonObject,
        spec: PolicySpec | StudentSpec,
        rules: TaskProtocol,
        folder: EvaluationFolder | None,
    ):
        self._about, self._spec, self._rules, self._folder = about, spec, rules, folder
        self._tables: list[Table] = []
        self._scorer: Scorer | None = None
        self._started, self._earlier_s = time.monotonic(), 0.0
        self._since = self._started  # when the running group began

    @property
    def count(self) -> int:
        """How many episodes have ended."""
        return sum(len(table["success"]) for table in self._tables)

    @property
    def success(self) -> float:
        """The share of them that succeeded."""
        return sum(int(table["success"].sum()) for table in self._tables) / max(self.count, 1)

    def take(self, first: int, count: int) -> bool:
        """Takes a group from the folder; returns whether it is there."""
        kept = None if self._folder is None else self._folder.load(first, count)
        self._since = time.monotonic()
        if kept is None:
            return False
        self._tables.append(kept.table)
        self._earlier_s += kept.wall_s
        return True

    def add(self, first: int, part: Episodes) -> None:
        """Takes a group that was run, and keeps it.

        Raises:
          Interrupted: it cannot be kept.
        """
        self._tables.append(part.table)
        self._scorer = part.scorer
        if self._folder is None:
            return
        try:
            self._folder.add(first, part.table, time.monotonic() - self._since)
            self._folder.tell(self.result())
        except ArtifactError as error:
            of = self._about["episodes"]
            result = self.result()
            raise Interrupted(self.count, of, "episodes", result, str(error)) from error

    def result(self) -> JsonObject | None:
        """Returns what they came to; None of none."""
        if not self._tables:
            return None
        table, scorer = join(self._tables), self._scorer or self._make_scorer()
        about = self._about
        if self.count < about["episodes"]:
            about = about | {"episodes": self.count, "of": about["episodes"]}
        return {
            **about,
            **scorer.summary(table),
            "peak_joint_speed_rad_s": quantiles(table["peak_joint_speed"]),
            "peak_contact_force_n": quantiles(table["peak_contact_force"]),
            "wall_s": round(self._earlier_s + time.monotonic() - self._started, 2),
            "table": table,
        }

    def _make_scorer(self) -> Scorer:
        """Returns one that has counted nothing, where no episode was run: it sums up what was kept."""
        entry, keys = find_task(self._spec.phase), episode_keys(self._about["seed"], 0, 1)
        memory, scale = memory_of(self._spec), self._spec.action.scale
        return set_up(entry, self._rules, memory, keys, 1, scale=scale).scorer()


def find_rules(phase: str, name: str | None, nominal: bool = False) -> TaskProtocol:
    """Returns a protocol of a task.

    Args:
      phase: the task. name: of the protocol; the task's own if None.
      nominal: whether nothing of what the protocol draws differs from the nominal robot.

    Raises:
      ConfigError: the task has no such protocol, or it draws nothing.
    """
    entry = find_task(phase)
    rules = entry.protocol if name is None else entry.find_protocol(name)
    if not nominal:
        return rules
    if not isinstance(rules, TransferProtocol):
        raise ConfigError(
            f"The protocol '{rules.name}' has no causes to leave out; use --protocol eval-v2 or eval-v3."
        )
    return without_causes(rules)


def _engine(name: str, policy: Evaluable, path: str) -> str:
    """Returns the engine to run on; students and exported files have no choice."""
    teacher = isinstance(policy, StatePolicy | StagedPolicy)
    chosen = "cpu" if name == engines.AUTO and not teacher else engines.choose(name)
    if chosen != "cpu" and not teacher:
        raise ConfigError(
            f"The engine '{chosen}' evaluates teachers only; use --engine cpu for {path}."
        )
    return chosen


def watched(entry: AnyTask, table: Table) -> dict[str, float]:
    """Returns the figures of a table that a training shows on the way: rates, and medians of what is no flag."""
    columns = {name: table[name] for name in entry.watched}
    return {
        name: float(column.mean() if column.dtype == bool else np.nanmedian(column))
        for name, column in columns.items()
    }
