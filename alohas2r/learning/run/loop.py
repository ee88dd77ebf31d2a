"""The one loop of all training: what is learnt is an algorithm, everything else is here.

A run owns its folder (a lock), says what it is (manifest), and goes through iterations: collect, update, evaluate
now and then, write metrics, save, report. It stops cleanly on signals and when its time is up, and resumes to the
same result as an unbroken run. Saving comes before showing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import alohas2r
from alohas2r.config import check
from alohas2r.core import files, threads
from alohas2r.core.lock import FolderLock
from alohas2r.core.machine import peak_memory_gb
from alohas2r.core.progress import Progress
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import Json, JsonObject, PyTree
from alohas2r.errors import ArtifactError
from alohas2r.learning.run import curves, manifest
from alohas2r.learning.run.best import Best
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.log import RunLog
from alohas2r.learning.run.loggers.base import Logger, Loggers, RunInfo

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CHECKPOINT = "checkpoint"
KEPT = 3  # checkpoints, beside the state that was evaluated best
State = TypeVar("State")
Data = TypeVar("Data")
Figures = dict[str, float]


class Algorithm(Protocol[State, Data]):
    """What a run trains.

    Its state holds all that changes; the object itself holds what is built once, such as environments and compiled
    functions. A state may be used up by the next call, but for `checkpointed`, which leaves it alone.

    """

    @property
    def label(self) -> str:
        """What the progress is called."""
        ...

    @property
    def iterations(self) -> int:
        """How often it collects and updates."""
        ...

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps, or pictures, of each time."""
        ...

    @property
    def losses(self) -> tuple[str, ...]:
        """Figures that must stay finite."""
        ...

    @property
    def remedy(self) -> str:
        """The setting that should be smaller if they do not."""
        ...

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Names of what `finish` always writes."""
        ...

    def init(self) -> State:
        """Returns the state before the first iteration."""
        ...

    def collect(self, state: State) -> tuple[State, Data]:
        """Makes what the next update learns from."""
        ...

    def update(self, state: State, data: Data) -> tuple[State, Figures]:
        """Learns from it; returns figures for the metrics as well."""
        ...

    def finish(self, state: State, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the artifacts.

        Args:
          state: the last one, or the best; see `Schedule`. trained: provenance, for their descriptions.
          figures: the newest.

        Returns:
          Name -> path.
        """
        ...

    def evaluate(self, state: State) -> Figures:
        """Returns figures of what is learnt so far."""
        ...

    def checkpointed(self, state: State) -> PyTree:
        """Returns what a checkpoint keeps of a state; later iterations leave it alone."""
        ...

    def restored(self, kept: PyTree) -> State:
        """Returns the state from what a checkpoint kept."""
        ...


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens beside learning.

    Attributes:
      evaluations: how many on the way, evenly spread; the last is at the end.
      checkpoints: likewise; there is one at the end and at every stop in any case.
      minutes: stop (resumably) after this time; None for never.
      chosen_by: the figure of evaluations that says of which state the artifacts are made, the larger the better;
        empty: of the last one, as where nothing is evaluated.
    """

    evaluations: int = 0
    checkpoints: int = 0
    minutes: float | None = None
    chosen_by: str = ""


class Run:
    """A run in a folder of its own; see `manifest` for the rule of starting and resuming.

    with Run(folder, settings, identity, resume) as run:
        result = run.train(algorithm, ...)

    Args:
      folder: created if missing; nobody else can run in it meanwhile.
      settings: the configuration, a frozen dataclass.
      identity: what else makes the run what it is, see `manifest.begin`.
      resume: whether to continue the run in the folder.
      finish: with `resume`, end it where its last checkpoint is and write the artifacts.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: DataclassInstance,
        identity: Mapping[str, Json],
        resume: bool = False,
        finish: bool = False,
    ) -> None:
        check(resume or not finish, "--finish ends the run in --out where it is; add --resume.")
        self.folder = pathlib.Path(folder)
        self.settings, self.identity = settings, identity
        self.resume, self.finish = resume, finish
        self.checkpoint = Checkpoint(self.folder / CHECKPOINT)
        self._lock = FolderLock(self.folder)

    def __enter__(self) -> Run:
        """Takes the folder and writes or compares its manifest.

        Raises:
          ConfigError: a run is there already, or another configuration is to be resumed.
          ArtifactError: the folder cannot be written or is in use, or there is nothing to resume.
        """
        files.make_folder(self.folder)
        self._lock.__enter__()
        try:
            self.checkpoint.tidy()
            exists = self.checkpoint.exists()
            manifest.begin(self.folder, self.settings, self.identity, self.resume, exists)
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the folder back."""
        self._lock.__exit__()

    def train(
        self,
        algorithm: Algorithm[State, Data],
        command: str,
        parents: Mapping[str, str | None],
        schedule: Schedule,
        progress: Progress | None = None,
        loggers: Sequence[Logger] = (),
    ) -> JsonObject:
        """Goes through the iterations that are left and, after the last, writes the artifacts.

        Args:
          algorithm: what learns.
          command: that trains the same again, for the artifacts.
          parents: role -> hash of the artifacts that it learns from.
          schedule: when what else happens.
          progress: receives reports.
          loggers: who else is told, see `Logger`.

        Returns:
          "steps", "finished", "wall_s", "peak_memory_gb" of this process, "out"; each artifact's folder, or None
          if the run was stopped early; "chosen": steps and figure of the evaluation that was best, of whose state the
          artifacts are, if there was any; "metrics": the newest.

        Raises:
          ArtifactError: the disk is full, a checkpoint is damaged, the loss is not finite, or there is nothing to
            finish.
        """
        total = algorithm.iterations * algorithm.steps_per_iteration
        with (
            Loggers(loggers) as told,
            RunLog(
                self.folder, total, label=algorithm.label, progress=progress, loggers=told
            ) as log,
            StopSignal.patient() as stop,
        ):
            told.begin(
                RunInfo(self.folder, algorithm.label, manifest.described(self.folder), self.resume)
            )
            best = Best(self.folder, schedule.chosen_by)
            state, done, figures = self._begin(algorithm, log, best)
            if self.finish and done == 0:
                raise ArtifactError(
                    f"{self.folder} holds no checkpoint to finish; leave out --finish."
                )
            if done < algorithm.iterations and not self.finish:
                state, done, figures = self._iterate(
                    algorithm, schedule, log, stop, state, done, figures, best
                )
            finished = self.finish or done == algorithm.iterations
            measured: JsonObject = {
                "steps": done * algorithm.steps_per_iteration,
                **({"of_steps": total} if finished and done < algorithm.iterations else {}),
                "wall_s": round(log.wall_s, 1),
                "peak_memory_gb": round(peak_memory_gb(), 2),
            }
            written: dict[str, str] = {}
            chosen: JsonObject = {}
            if best.iterations is not None:
                chosen = {"steps": best.iterations * algorithm.steps_per_iteration}
                chosen[best.name] = best.value
            if finished:
                if best.iterations not in (None, done):
                    state = algorithm.restored(best.load(algorithm.checkpointed(state)))
                trained = manifest.provenance(
                    command, self.settings, self.identity, parents, measured | chosen
                )
                written = algorithm.finish(state, trained, figures)
            if loggers:
                self._draw_curves()
            told.finish("finished" if finished else "stopped", {**measured, **figures})
        return {
            "steps": measured["steps"],
            "finished": finished,
            "wall_s": measured["wall_s"],
            "peak_memory_gb": measured["peak_memory_gb"],
            "out": str(self.folder),
            **dict.fromkeys(algorithm.artifacts),
            **written,
            **({"chosen": chosen} if chosen else {}),
            "metrics": figures,
        }

    def _begin(
        self, algorithm: Algorithm[State, Data], log: RunLog, best: Best
    ) -> tuple[State, int, Figures]:
        """Returns the state to go on from, the iterations done, and the newest figures."""
        state, done, figures = algorithm.init(), 0, {}
        best.begin(self.resume)
        if not self.resume:
            self.checkpoint.forget()
            log.start()
            return state, done, figures
        if self.checkpoint.exists():
            kept, extra = self.checkpoint.load(algorithm.checkpointed(state))
            state, done = algorithm.restored(kept), _iterations(extra)
            self.checkpoint.keep(done, KEPT)  # it may have been killed between saving and this
        rows = log.resume(done * algorithm.steps_per_iteration)
        if rows:
            apart = ("step", "wall_s")
            figures = {k: v for k, v in rows[-1].items() if k not in apart and v is not None}
        log.start()
        return state, done, figures

    def _iterate(
        self,
        algorithm: Algorithm[State, Data],
        schedule: Schedule,
        log: RunLog,
        stop: StopSignal,
        state: State,
        done: int,
        figures: Figures,
        best: Best,
    ) -> tuple[State, int, Figures]:
        """Goes through iterations to the end or to a stop; returns as `_begin`."""
        started, first, total = time.monotonic(), done + 1, algorithm.iterations
        minutes = math.inf if schedule.minutes is None else schedule.minutes
        ending = bool(stop)
        while done < total and not ending:
            state, data = algorithm.collect(state)
            state, figures = algorithm.update(state, data)
            del data  # its memory is the next one's
            done += 1
            if done == first:
                threads.give_memory_back()  # what compiling left
            self._check_losses(algorithm, figures, done)
            if manifest.due(done, total, schedule.evaluations):
                figures |= algorithm.evaluate(state)
                if schedule.chosen_by:
                    best.offer(algorithm.checkpointed(state), done, figures)
            log.write(done * algorithm.steps_per_iteration, figures)
            late = time.monotonic() - started > 60 * minutes
            planned = done == total or manifest.due(done, total, schedule.checkpoints)
            saved = planned or late or bool(stop)
            if saved:
                self._save(algorithm, state, done, log)
            log.show()
            ending = late or bool(stop)
            if ending and not saved:  # asked for meanwhile
                self._save(algorithm, state, done, log)
        return state, done, figures

    def _save(
        self, algorithm: Algorithm[State, Data], state: State, done: int, log: RunLog
    ) -> None:
        extra: JsonObject = {
            "iterations": done,
            "wall_s": log.wall_s,
            "version": alohas2r.__version__,
        }
        self.checkpoint.save(algorithm.checkpointed(state), extra)
        self.checkpoint.keep(done, KEPT)
        threads.give_memory_back()

    def _draw_curves(self) -> None:
        """Draws the run for its loggers; without a picture they do as well."""
        with contextlib.suppress(Exception):
            curves.training_curve(self.folder, self.folder / "curves.png", str(self.folder))

    def _check_losses(
        self, algorithm: Algorithm[State, Data], figures: Figures, iteration: int
    ) -> None:
        if not all(math.isfinite(figures[name]) for name in algorithm.losses):
            raise ArtifactError(
                f"The loss is not finite in iteration {iteration}: start anew, in another --out, with a smaller"
                f" {algorithm.remedy}; the last checkpoint in {self.folder} is from before."
            )


def _iterations(extra: JsonObject) -> int:
    """Returns how many iterations a checkpoint has behind it; earlier versions called them by other names."""
    return int(next(extra[name] for name in ("iterations", "updates", "rounds") if name in extra))
