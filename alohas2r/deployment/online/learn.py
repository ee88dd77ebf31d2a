"""Learning on a robot: the actor in this process, the learner in another; the run's log is all that joins them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from alohas2r import config as configs
from alohas2r.config import check
from alohas2r.core.files import make_folder
from alohas2r.core.lock import FolderLock
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import LIMITS, DeployConfig
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.coach import Coach, Coached
from alohas2r.deployment.online.deciders import Chooser, Learned, Looking
from alohas2r.deployment.online.demonstrate import PERSON_S, why_stopped
from alohas2r.deployment.online.director import EVALUATIONS, LearnDirector, Progress, read_progress
from alohas2r.deployment.online.explorer import LEASH_RAD, Acting, Explorer
from alohas2r.deployment.online.insert_coach import CoachedInsertion, InsertCoach
from alohas2r.deployment.online.insert_way import InsertBack
from alohas2r.deployment.online.inserter import LOOK_S, Inserter, Unsaid
from alohas2r.deployment.online.opened import (
    attended_config,
    open_world,
    seeing,
    slower_by,
    stage_config,
)
from alohas2r.deployment.online.runs import LearnConfig, plan_run
from alohas2r.deployment.online.stage import Attended, Ended, Plan, ResetDraws, Stage
from alohas2r.deployment.online.truth import Knowing, Start
from alohas2r.deployment.pause import Pause
from alohas2r.deployment.report import Outcome, Report
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.deployment.timing import Tally
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.online.classifier import InsertReward, read_classifier
from alohas2r.policies.online.config import (
    LOGS,
    PERSON,
    POLICY,
    TRUTH,
    AnyRun,
    InsertRun,
    read_online_run,
)
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.insertion import TASK
from alohas2r.policies.online.learner import LearnerProcess
from alohas2r.policies.online.protocol import protocol_of
from alohas2r.policies.online.tasks import find_online_task
from alohas2r.policies.onnx.base import read_base

_LEARNER_END_S = 600.0
# After a classifier's success: the student goes on, and the truth says whether the peg is in to stay.
SETTLE_S = 0.25


def learn(
    config: LearnConfig,
    out: str | os.PathLike[str],
    resume: bool = False,
    on_step: Callable[[Report], None] | None = None,
    tell: Callable[[Progress, Ended], object] | None = None,
    learner: str = "",
    api_key: str = "",
    coach: Coach | None = None,
    rig: RigConfig | None = None,
    mode: Literal["slow", "full"] = "slow",
    pause: Pause | None = None,
) -> JsonObject:
    """Learns a task on simulated, emulated or real arms, from demonstrations and by doing it.

    Real arms begin in the start pose. Where a person is to put things back (see `Attended`), they set down what they
    hold, fold up and let go, until `pause` says that it is done. A fault, or what the guard ends, ends the run, which
    goes on with `resume`.

    Args:
      config: what. out: folder of the run. resume: whether to go on with the run in it.
      on_step: called after each control step. tell: after each episode.
      learner: "ws://host:port" of `alohas2r learner` on another machine; "": a process beside.
      api_key: if that wants one. coach: a person who helps; evaluations stay unaided.
      rig: real arms and their cameras; None: what the run says. mode: at whose speed limits they move. pause: what is
        waited for where a person is to put things back.

    Returns:
      "task", "arm", "protocol" with its hash, "world_params", "seed", "minutes" of acting, "reset_minutes", "wall_s",
      "episodes", "successes", "true_successes", "helped", "returns" (the robot's own ways back that the simulation
      judged), "returned" (those that led to a start), "aborted", "success" (of the last evaluation, by the truth),
      "evaluations", "timing", "policy", "out".

    Raises:
      ConfigError: settings that do not fit together, or other ones than the run was begun with.
      ArtifactError: a folder, demonstration or version is missing or damaged; the learner ended, or keeps another run.
      BackendUnavailable: there is no learner where it should be, or it refuses the key.
      RobotFault: three episodes in a row were ended by the guard.
    """
    inserts = isinstance(coach, InsertCoach)
    check(
        coach is None or inserts == (config.task == TASK),
        f"who helps with {config.task} is {'a Coach' if inserts else 'an InsertCoach'}",
    )
    check(
        config.reward != PERSON or coach is not None,
        "--reward person needs --coach: by its keys you say what succeeded",
    )
    check(
        coach is None or not config.stepped,
        "a person cannot help while time stands still: leave out --stepped",
    )
    folder = make_folder(out)
    with FolderLock(folder):
        run = _begin(config, folder, resume)
        progress, state = read_progress(folder) if resume else (Progress(), None)
        begun_s = time.monotonic()
        if learner:
            from alohas2r.deployment.online.link import remote_learner

            learning = remote_learner(folder, run, learner, api_key)
        else:
            learning = _learner(folder, resume)
        with learning as alive:
            tally = Tally()
            if not progress.final:
                arms = rig or RigConfig(
                    run.robot, stepped=run.stepped, seed=run.seed, params=run.world
                )
                played = _Played(folder, run, progress, state, alive, tally, on_step, tell, coach)
                if run.real:
                    _act_attended(played, arms, mode, pause)
                else:
                    _act(played, arms)
        return _result(folder, run, progress, time.monotonic() - begun_s, tally)


def _begin(config: LearnConfig, folder: pathlib.Path, resume: bool) -> AnyRun:
    """Writes what the run is, or compares it."""
    run = plan_run(config)
    if not resume:
        if (folder / LOGS).exists():
            raise ConfigError(
                f"{folder} holds a run already; add --resume to continue it, or choose another --out."
            )
        run.write(folder)
        return run
    changes = configs.difference(read_online_run(folder), run)
    if changes:
        raise ConfigError(
            f"The run in {folder} was started with another configuration: {'; '.join(changes)}."
        )
    return run


@contextlib.contextmanager
def _learner(folder: pathlib.Path, resume: bool) -> Iterator[Callable[[], bool]]:
    """Runs the learner beside; gives whether it still runs, which raises if it ended in an error."""
    process = LearnerProcess(folder)
    process.wait_until_free()
    process.start(resume)
    try:
        yield process.alive
        process.wait(_LEARNER_END_S)
    finally:
        process.end()


class _Played(NamedTuple):
    """A run whose episodes are gone through, and who is told."""

    folder: pathlib.Path
    run: AnyRun
    progress: Progress
    state: Start | None
    alive: Callable[[], bool]
    tally: Tally
    on_step: Callable[[Report], None] | None
    tell: Callable[[Progress, Ended], object] | None
    coach: Coach | None

    def note(self, report: Report) -> None:
        """Takes a control step."""
        self.tally(report)
        if self.on_step is not None:
            self.on_step(report)

    def log(self, deploy: DeployConfig) -> LogWriter:
        """Opens the next segment of the log."""
        run = self.run
        header = log_header(deploy, LIMITS[deploy.mode], run.robot, run.config.arm)
        header |= {"task": run.spec.task, "seed": run.seed, "stepped": run.stepped}
        header |= {"world_params": str(run.world), "coached": self.coach is not None}
        header["student_hash"] = run.eyes_hash
        return _segment(self.folder, self.progress, run.stepped, header)

    def director(self, learned: Learned, log: LogWriter, back: _DrawnWays | None) -> _Numbered:
        """Returns who says which episodes there are."""
        director = LearnDirector(
            self.folder,
            self.run,
            learned,
            self.progress,
            self.alive,
            log_end=lambda: log.path.stat().st_size,
            tell=self.tell,
            state=self.state,
        )
        return _Numbered(director, back)

    def check_done(self, outcome: Outcome) -> None:
        """Raises ArtifactError unless the run has come to its end."""
        if not self.progress.final:
            raise ArtifactError(
                f"The run was stopped ({why_stopped(outcome)}); --resume --out {self.folder} continues."
            )


def _act(played: _Played, rig: RigConfig) -> None:
    """Goes through the episodes that are left, on simulated or emulated arms."""
    run = played.run
    deploy = stage_config(run.spec)
    with open_world(run.spec, rig) as (arms, simulation, truth):
        learned, acting, back = _cast(run, truth, played.coach)
        with played.log(deploy) as log:
            stage = Stage(
                acting,
                simulation,
                truth,
                played.director(learned, log, back),
                log,
                realtime=not run.stepped,
                state=played.state,
                failures=played.progress.failures,
            )
            deployment = Deployment(
                arms.robot, arms.cameras, acting, deploy, stage, log, on_step=played.note
            )
            outcome = deployment.run(stage)
    played.check_done(outcome)


def _act_attended(
    played: _Played, rig: RigConfig, mode: Literal["slow", "full"], pause: Pause | None
) -> None:
    """Does the same on real arms."""
    run = played.run
    deploy = attended_config(run.spec, mode)
    with open_rig(seeing(rig, run.spec.cameras), judged=False) as arms:
        learned, acting, back = _cast(run, None, played.coach, slower_by(run.spec, mode))
        with played.log(deploy) as log:
            director = played.director(learned, log, back)
            attended = Attended(acting, director, log, played.progress.failures)
            deployment = Deployment(
                arms.robot,
                arms.cameras,
                acting,
                deploy,
                log=log,
                on_step=played.note,
                pause=pause,
                attendant=attended,
            )
            outcome = deployment.run()
    if attended.failed is not None:
        raise attended.failed
    played.check_done(outcome)


def _cast(
    run: AnyRun, truth: Knowing | None, coach: Coach | None, slower: float = 1.0
) -> tuple[Learned, Acting, _DrawnWays | None]:
    """Returns who decides, what acts, and what draws the ways back, where there are any; no truth of real arms.

    Args:
      run: what it is. truth, coach: what is known, who helps. slower: how many times as long as else episodes may last.
    """
    if isinstance(run, InsertRun):
        return _cast_insertion(run, truth, coach, slower)
    leash_rad = LEASH_RAD if run.real else math.inf
    done = None if truth is None else truth.done
    eyes, *_ = read_eyes(run.student, run.spec.side)
    learned = Looking(run.spec, eyes, run.config.steady)
    back = ResetDraws(run.spec, (run.seed,), run.resets == "robot")
    if coach is None:
        seconds = slower * find_online_task(run.spec.task).seconds
        return learned, Explorer(run.spec, learned, back, done, seconds, leash_rad), back
    decider = Coached(run.spec, learned, coach)
    return learned, Explorer(run.spec, decider, back, done, PERSON_S, leash_rad), back


def _cast_insertion(
    run: InsertRun, truth: Knowing | None, coach: Coach | None, slower: float
) -> tuple[Learned, Inserter, InsertBack | None]:
    """Returns likewise who corrects a student's insertion; see `_cast`."""
    chosen = Learned(run.spec, run.config.steady)
    chooser: Chooser = chosen
    seconds: float | None = None
    if isinstance(coach, InsertCoach):
        looks_s = LOOK_S if run.reward == PERSON else 0.0
        limit = round(slower * find_online_task(TASK).steps + looks_s / CONTROL_PERIOD_S)
        chooser = CoachedInsertion(run.spec, chosen, coach, limit, judged=truth is None)
        seconds = max(PERSON_S, slower * find_online_task(TASK).seconds)
    reward: InsertReward | Unsaid | None = None
    past_s = 0.0
    if run.reward == PERSON:
        reward = Unsaid(TASK)
    elif run.reward != TRUTH:
        reward, past_s = InsertReward(read_classifier(run.reward, run.spec)), SETTLE_S
    way = InsertBack(run.spec, (run.seed,)) if run.resets == "robot" else None
    inserter = Inserter(
        run.spec,
        chooser,
        read_base(run.student),
        None if truth is None else truth.done,
        past_s,
        reward,
        way,
        leash_rad=LEASH_RAD if run.real else math.inf,
        slower=slower,
        seconds=seconds,
    )
    return chosen, inserter, way


class _DrawnWays(Protocol):
    """Ways back that are drawn by the number of their episode."""

    number: int


class _Numbered:
    """Tells the ways back which episode it is, so that a resumed run draws the same."""

    def __init__(self, director: LearnDirector, back: _DrawnWays | None) -> None:
        self._director, self._back = director, back

    def next(self) -> Plan | None:
        plan = self._director.next()
        if plan is not None and self._back is not None:
            self._back.number = plan.number
        return plan

    def ended(self, episode: Ended, state: Start | None) -> None:
        self._director.ended(episode, state)


def _segment(
    folder: pathlib.Path, progress: Progress, stepped: bool, header: JsonObject
) -> LogWriter:
    """Opens the next segment of the log; says up to where the one before it counts in a stepped run."""
    earlier: Sequence[pathlib.Path] = sorted((folder / LOGS).glob("*.run"))
    if earlier and stepped:
        header = {**header, "continues_at": progress.log_end}
    return LogWriter(folder / LOGS / f"{len(earlier):04d}.run", header)


def _result(
    folder: pathlib.Path, run: AnyRun, progress: Progress, wall_s: float, tally: Tally
) -> JsonObject:
    protocol, path = protocol_of(run), folder / EVALUATIONS
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        "task": run.spec.task,
        "arm": run.config.arm,
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "world_params": str(run.world),
        "seed": run.seed,
        "minutes": round(progress.minutes, 2),
        "reset_minutes": round(progress.reset_steps / 1200, 2),
        "wall_s": round(wall_s, 1),
        "episodes": progress.episodes,
        "successes": progress.successes,
        "true_successes": progress.true_successes,
        "helped": progress.helped,
        "returns": progress.returns,
        "returned": progress.returned,
        "aborted": progress.aborted,
        "success": rows[-1]["success"] if rows else None,
        "evaluations": rows,
        "timing": tally.figures(paced=not run.stepped),
        "policy": str(folder / POLICY),
        "out": str(folder),
    }
