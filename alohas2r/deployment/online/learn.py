"""Learning on a robot: the actor in this process, the learner in another; the run's log is all that joins them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from alohas2r import config as configs
from alohas2r.config import check
from alohas2r.core import assets
from alohas2r.core.files import make_folder
from alohas2r.core.lock import FolderLock
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import LIMITS
from alohas2r.deployment.deploy import log_header
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.online.coach import Coach, Coached
from alohas2r.deployment.online.demonstrate import PERSON_S, stage_config, why_stopped
from alohas2r.deployment.online.director import EVALUATIONS, LearnDirector, Progress, read_progress
from alohas2r.deployment.online.explorer import Explorer, Learned
from alohas2r.deployment.online.stage import Ended, Plan, ResetDraws, Stage
from alohas2r.deployment.online.truth import Start, Truth
from alohas2r.deployment.report import Report
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.deployment.timing import Tally
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.online.config import LOGS, POLICY, OnlineRun, find_arm, read_online_run
from alohas2r.policies.online.demonstrations import check_demos
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.learner import LearnerProcess
from alohas2r.policies.online.protocol import protocol_of
from alohas2r.policies.online.tasks import make_spec
from alohas2r.sim.changed import NOMINAL, WorldParams

_LEARNER_END_S = 600.0


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """What is learnt, how and on which arms.

    Attributes:
      task: name of the task. arm: of ARMS. overrides: "key=value" settings of the arm.
      demos: folders of demonstrations. robot: simulated or emulated arms.
      stepped: whether time stands still between control steps, and actor and learner wait for each other.
      resets: "robot", "placed", or "" for the task's own: pick goes back to a start itself, reach is placed.
      seed: of all that is drawn. student: whose eyes the policy has; "": the shipped one.
      offline: folders of earlier runs of the task, whose decisions are learnt from as well.
      world: what is otherwise in the world than in the nominal one, for learning and evaluations.
    """

    task: str
    arm: str
    demos: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    robot: Literal["sim", "emulated"] = "sim"
    stepped: bool = False
    resets: Literal["robot", "placed", ""] = ""
    seed: int = 0
    student: str = ""
    offline: tuple[str, ...] = ()
    world: WorldParams = NOMINAL

    def __post_init__(self) -> None:
        """Checks what fits together."""
        check(self.robot in ("sim", "emulated"), "learn needs --robot sim or emulated")
        check(self.resets in ("robot", "placed", ""), "resets must be robot or placed")
        check(
            bool(self.demos),
            "learn needs demonstrations: --demos FOLDER, which alohas2r demonstrate makes",
        )


def plan_run(config: LearnConfig) -> OnlineRun:
    """Returns what a run is.

    Raises:
      ConfigError: an unknown task, arm or setting. ArtifactError: no such student, or no demonstrations.
    """
    settings = find_arm(config.arm, config.overrides)
    student = config.student or str(assets.data_path("params") / "student")
    _, cameras, network = read_eyes(student, "left")
    cloned = config.arm in ("bc", "residual")
    spec = make_spec(
        config.task,
        cameras,
        network,
        hidden=settings.hidden,
        base=cloned,
        policy=settings.learns,
        scale=settings.scale or None,
        loudest=settings.loudest,
    )
    for demo in config.demos:
        check_demos(pathlib.Path(demo), spec)
    resets = config.resets or ("robot" if config.task == "pick" else "placed")
    return OnlineRun(
        spec=spec,
        config=settings,
        seed=config.seed,
        stepped=config.stepped,
        robot=config.robot,
        demos=tuple(str(pathlib.Path(demo).resolve()) for demo in config.demos),
        student=student,
        eyes_hash=str(artifact.describe(student)["hash"]),
        resets=resets,
        offline=tuple(str(pathlib.Path(one).resolve()) for one in config.offline),
        world=config.world,
    )


def learn(
    config: LearnConfig,
    out: str | os.PathLike[str],
    resume: bool = False,
    on_step: Callable[[Report], None] | None = None,
    tell: Callable[[Progress, Ended], object] | None = None,
    learner: str = "",
    api_key: str = "",
    coach: Coach | None = None,
) -> JsonObject:
    """Learns a task on simulated or emulated arms, from demonstrations and by doing it.

    Args:
      config: what. out: folder of the run. resume: whether to go on with the run in it.
      on_step: called after each control step. tell: after each episode.
      learner: "ws://host:port" of `alohas2r learner` on another machine; "": a process beside.
      api_key: if that wants one. coach: a person who helps; evaluations stay unaided.

    Returns:
      "task", "arm", "protocol" with its hash, "world_params", "seed", "minutes" of acting, "reset_minutes", "wall_s",
      "episodes", "successes", "true_successes", "helped", "aborted", "success" (of the last evaluation, by the truth),
      "evaluations", "timing", "policy", "out".

    Raises:
      ConfigError: settings that do not fit together, or other ones than the run was begun with.
      ArtifactError: a folder, demonstration or version is missing or damaged; the learner ended, or keeps another run.
      BackendUnavailable: there is no learner where it should be, or it refuses the key.
      RobotFault: three episodes in a row were ended by the guard.
    """
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
                _act(folder, run, progress, state, alive, tally, on_step, tell, coach)
        return _result(folder, run, progress, time.monotonic() - begun_s, tally)


def _begin(config: LearnConfig, folder: pathlib.Path, resume: bool) -> OnlineRun:
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


def _act(
    folder: pathlib.Path,
    run: OnlineRun,
    progress: Progress,
    state: Start | None,
    alive: Callable[[], bool],
    tally: Tally,
    on_step: Callable[[Report], None] | None,
    tell: Callable[[Progress, Ended], object] | None,
    coach: Coach | None,
) -> None:
    """Goes through the episodes that are left."""
    spec = run.spec
    rig = RigConfig(
        run.robot,
        stepped=run.stepped,
        size=spec.cameras.size,
        fovy_deg=spec.cameras.fovy_deg,
        seed=run.seed,
        params=run.world,
    )
    deploy = stage_config()
    eyes, *_ = read_eyes(run.student, spec.side)
    learned = Learned(spec, eyes)
    with open_rig(rig, judged=False) as arms:
        assert arms.simulation is not None
        truth = Truth(spec, arms.simulation, run.world)
        back = ResetDraws(spec, (run.seed,), run.resets == "robot")
        if coach is None:
            explorer = Explorer(spec, learned, back, truth.done)
        else:
            explorer = Explorer(spec, Coached(spec, learned, coach), back, truth.done, PERSON_S)
        header = log_header(deploy, LIMITS[deploy.mode], run.robot, run.config.arm)
        header |= {"task": spec.task, "seed": run.seed, "stepped": run.stepped}
        header |= {"world_params": str(run.world), "coached": coach is not None}
        with _segment(folder, progress, run.stepped, header) as log:
            director = LearnDirector(
                *(folder, run, learned, progress, alive),
                log_end=lambda: log.path.stat().st_size,
                tell=tell,
                state=state,
            )
            stage = Stage(
                *(explorer, arms.simulation, truth, _Numbered(director, back), log),
                realtime=not run.stepped,
                state=state,
                failures=progress.failures,
            )

            def note(report: Report) -> None:
                tally(report)
                if on_step is not None:
                    on_step(report)

            deployment = Deployment(
                arms.robot, arms.cameras, explorer, deploy, stage, log, on_step=note
            )
            outcome = deployment.run(stage)
    if not progress.final:
        raise ArtifactError(
            f"The run was stopped ({why_stopped(outcome)}); --resume --out {folder} continues."
        )


class _Numbered:
    """Tells the ways back which episode it is, so that a resumed run draws the same."""

    def __init__(self, director: LearnDirector, back: ResetDraws) -> None:
        self._director, self._back = director, back

    def next(self) -> Plan | None:
        plan = self._director.next()
        if plan is not None:
            self._back.number = plan.number
        return plan

    def ended(self, episode: Ended, state: Start) -> None:
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
    folder: pathlib.Path, run: OnlineRun, progress: Progress, wall_s: float, tally: Tally
) -> JsonObject:
    protocol, path = protocol_of(run.config, run.world), folder / EVALUATIONS
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
        "aborted": progress.aborted,
        "success": rows[-1]["success"] if rows else None,
        "evaluations": rows,
        "timing": tally.figures(paced=not run.stepped),
        "policy": str(folder / POLICY),
        "out": str(folder),
    }
