"""Runs a training command over settings and seeds, in one folder from which the sweep goes on at any time.

sweep.json says what is done; it is written before a run is started and when it has ended. A run that has finished is
never started again. One that was stopped or killed, alone or with the whole sweep, is resumed by its own --resume.
Between two looks at its runs the sweep only waits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from alohas2r import config
from alohas2r.core import files, threads
from alohas2r.core.lock import FolderLock, in_use
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError
from alohas2r.experiments.sweep import proposals, space, state, stopping, summary
from alohas2r.experiments.sweep.fleet import (
    LOG,
    RESULT,
    Fleet,
    Handle,
    Job,
    LocalFleet,
    share_of_cores,
)
from alohas2r.experiments.sweep.state import Plan, SweepState
from alohas2r.experiments.sweep.trainings import Options, Training, check_metric
from alohas2r.learning.run import manifest
from alohas2r.learning.run.log import METRICS, read_metrics

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FLEETS = ("local", "ray")
MOST_LOSSES = 3  # of a run in one sitting, after which it counts as failed
_LOOK_S, _READ_S = 0.1, 1.0  # between looks at the processes, and at their metrics


class Place(NamedTuple):
    """A run: which trial, which seed."""

    trial: int
    seed: int


class _Running(NamedTuple):
    """A run under way."""

    handle: Handle
    worker: int
    since: float


def sweep(
    plan: Plan,
    training: Training,
    options: Options,
    out: str | os.PathLike[str],
    fleet: str = "local",
    workers: int = 1,
    progress: Progress | None = None,
) -> JsonObject:
    """Runs what is left of a sweep, and writes its page.

    Args:
      plan: what is swept.
      training: the command. options: of it, as read by its own parser.
      out: folder of the sweep.
      fleet: "local" or "ray".
      workers: runs at once.
      progress: receives reports.

    Returns:
      See `summary.summarize`; "finished" is False if it was stopped early.

    Raises:
      ConfigError: a setting or value that does not exist, or the folder holds another sweep.
      ArtifactError: the folder cannot be written or is in use, or the runs lack the metric.
      ModuleNotFoundError: a sampler or a fleet that is not installed.
    """
    config.check(fleet in FLEETS, f"The fleet must be one of {', '.join(FLEETS)}, not '{fleet}'.")
    plan, configurations = prepared(plan, training.settings(options))
    if plan.draws:
        proposals.check_installed()
    folder = files.make_folder(out)
    with FolderLock(folder):
        each = int(str(options.get("threads") or 0)) or max(1, len(threads.cores()) // workers)
        begun = state.begin(folder, plan, each, configurations)
        begun.save()
        with _Crew(begun, training, workers, _fleet(fleet, workers), progress) as crew:
            finished = crew.work()
        return summary.write(begun, finished)


def prepared(plan: Plan, settings: DataclassInstance) -> tuple[Plan, list[dict[str, str]]]:
    """Returns the plan with its ranges known, and the configurations that are known before.

    Args:
      plan: as it was asked for. settings: the configuration of the preset.

    Raises:
      ConfigError: an unknown key, or values that a configuration cannot have.
    """
    plan = dataclasses.replace(plan, space=space.typed(plan.space, settings))
    if plan.draws:
        known, tried = [], space.corners(plan.space)
    else:
        known = (space.grid if plan.sampler == "grid" else space.one_at_a_time)(plan.space)
        tried = known
    for values in tried:
        check_metric(plan.metric, config.override(settings, space.assignments(values)))
    return plan, known


def _fleet(name: str, workers: int) -> Fleet:
    if name == "local":
        return LocalFleet()
    from alohas2r.experiments.sweep.ray_fleet import RayFleet

    return RayFleet(workers)


class _Crew:
    """The runs under way, and what starts, watches and stops them."""

    def __init__(
        self,
        begun: SweepState,
        training: Training,
        workers: int,
        fleet: Fleet,
        progress: Progress | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._training, self._workers = begun, training, workers
        self._fleet, self._clock = fleet, clock
        self._running: dict[Place, _Running] = {}
        self._losses: dict[Place, int] = {}
        self._read_at = 0.0
        self._meter = Meter("sweep", self._total(), progress, unit="runs", done=self._done())

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.close()

    def work(self) -> bool:
        """Runs what is left; returns whether all is done, or False if it was asked to stop."""
        self._keep_what_ended_alone()
        with StopSignal.patient() as stop:
            self._meter.update(self._done())
            while not stop:
                self._take_back()
                self._stop_the_worst()
                while len(self._running) < self._workers and (place := self._next()) is not None:
                    self._start(place)
                if not self._running and self._nothing_left():
                    return True
                time.sleep(_LOOK_S)
            for running in self._running.values():
                running.handle.stop()
            while self._running:
                self._take_back()
                time.sleep(_LOOK_S)
        return False

    def _keep_what_ended_alone(self) -> None:
        """Notes the runs that finished when the sweep was no longer there."""
        for place in self._open():
            self._note_if_finished(place)
        self._state.save()

    def _open(self) -> list[Place]:
        """Returns the runs that are still to be run: all trials with the first seed, then with the next."""
        return [
            Place(number, seed)
            for seed in self._state.plan.seeds
            for number, trial in enumerate(self._state.trials)
            if trial.stopped is None and trial.runs[seed].status == "open"
        ]

    def _total(self) -> int:
        plan = self._state.plan
        return (plan.trials if plan.draws else len(self._state.trials)) * len(plan.seeds)

    def _done(self) -> int:
        """Returns how many runs need nothing more."""
        return len(self._state.trials) * len(self._state.plan.seeds) - len(self._open())

    def _nothing_left(self) -> bool:
        plan = self._state.plan
        return not self._open() and (not plan.draws or len(self._state.trials) >= plan.trials)

    def _next(self) -> Place | None:
        """Returns a run to start; None if there is none at the moment."""
        waiting = [place for place in self._open() if place not in self._running]
        plan, trials = self._state.plan, self._state.trials
        if not waiting and plan.draws and len(trials) < plan.trials:
            self._state.add(proposals.propose(self._state))
            self._state.save()
            waiting = [Place(len(trials) - 1, seed) for seed in plan.seeds]
        # Where the sweep was killed, a run may still be saving what it has.
        free = (place for place in waiting if not in_use(self._state.run_folder(*place)))
        return next(free, None)

    def _start(self, place: Place) -> None:
        """Starts or resumes a run."""
        folder = files.make_folder(self._state.run_folder(*place))
        trial = self._state.trials[place.trial]
        command = self._state.command(trial.values, place.seed)
        command += ["--out", str(folder), "--threads", str(self._state.threads), "--json"]
        if manifest.exists(folder):
            command.append("--resume")
        taken = {running.worker for running in self._running.values()}
        worker = next(index for index in range(self._workers) if index not in taken)
        trial.runs[place.seed].starts += 1
        self._state.save()
        cores = share_of_cores(worker, self._workers)
        job = Job([*self._training.program, *command], folder, cores, dict(os.environ))
        self._running[place] = _Running(self._fleet.start(job), worker, self._clock())

    def _take_back(self) -> None:
        """Notes the runs that have ended."""
        for place, running in list(self._running.items()):
            code = running.handle.poll()
            if code is None:
                continue
            del self._running[place]
            run = self._state.trials[place.trial].runs[place.seed]
            run.wall_s = round((run.wall_s or 0.0) + self._clock() - running.since, 1)
            if code != 0 or not self._note_if_finished(place):
                self._note_end(place, code)
            self._state.save()
            self._meter.update(self._done(), summary.headline(self._state))

    def _note_if_finished(self, place: Place) -> bool:
        """Notes the score of a run that says it has finished; returns whether it does.

        Raises:
          ArtifactError: it lacks the metric.
        """
        result = _result(self._state.run_folder(*place))
        if not result.get("finished"):
            return False
        run, metric = self._state.trials[place.trial].runs[place.seed], self._state.plan.metric
        figures = result.get("metrics") or {}
        if metric not in figures:
            raise ArtifactError(
                f"The runs have no figure '{metric}', but {', '.join(sorted(figures))}; choose one of these by"
                " --metric, with another --out."
            )
        run.steps = result.get("steps")
        if figures[metric] is None:
            run.status, run.reason = "failed", f"{metric} is not finite"
        else:
            run.status, run.score = "done", float(figures[metric])
        return True

    def _note_end(self, place: Place, code: int) -> None:
        """Notes that a run ended before its end: by an error of its own, or stopped or killed by somebody."""
        trial = self._state.trials[place.trial]
        run = trial.runs[place.seed]
        folder = self._state.run_folder(*place)
        if code > 0:
            run.status, run.reason = "failed", _last_line(folder / LOG) or f"exit status {code}"
        elif trial.stopped is None:
            self._losses[place] = self._losses.get(place, 0) + 1
            if self._losses[place] >= MOST_LOSSES:
                how = f"killed by signal {-code}" if code else "stopped"
                run.status, run.reason = "failed", f"{how} {MOST_LOSSES} times"

    def _stop_the_worst(self) -> None:
        """Stops configurations that are behind the others."""
        plan, now = self._state.plan, self._clock()
        if not plan.stop_worst or now - self._read_at < _READ_S:
            return
        self._read_at = now
        curves = {
            number: [
                _curve(self._state.run_folder(number, seed), plan.metric) for seed in trial.runs
            ]
            for number, trial in enumerate(self._state.trials)
        }
        for number, verdict in stopping.behind(curves, plan.stop_worst, plan.maximize).items():
            if self._state.trials[number].state == "open":
                self._state.trials[number].stopped = verdict._asdict()
                self._state.save()
                for place, running in self._running.items():
                    if place.trial == number:
                        running.handle.stop()
                self._meter.update(self._done(), summary.headline(self._state))


def _result(folder: pathlib.Path) -> JsonObject:
    """Returns what a run printed at its end; nothing if it has not come to it."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def _last_line(path: pathlib.Path) -> str:
    """Returns the last line of a log."""
    try:
        lines: Sequence[str] = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _curve(folder: pathlib.Path, metric: str) -> list[tuple[int, float]]:
    """Returns the evaluations of a run so far."""
    rows = read_metrics(folder / METRICS)
    return [(row["step"], float(row[metric])) for row in rows if row.get(metric) is not None]
