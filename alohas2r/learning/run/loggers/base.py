"""What a logger is, and how a run is kept apart from what its loggers do.

A run's own metrics and TensorBoard files need none of this. A logger may be slow, fail or hang: it works in a thread
of its own, its first failure is said once and ends it, and the run never waits for it but a limited time at its end,
when everything is saved.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from alohas2r.core.files import write_atomic
from alohas2r.core.types import JsonObject

END_WAIT_S = 60.0  # for what is still to be sent when a run has ended
_KEPT = (".csv", ".html", ".json", ".jsonl", ".mp4", ".npz", ".onnx", ".png")
_OTHERS = ("checkpoint", "mlruns", "tensorboard", "wandb")  # beginnings of folders' names
FAILED_WAIT_S = 5.0  # likewise of one that failed
WAITING = 10_000  # calls that may wait; more are dropped, as of a server that is gone

Status = Literal["finished", "stopped", "failed"]
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a logger is told of a run that begins.

    Attributes:
      folder: of the run.
      label: what it does, such as "train pick".
      manifest: what it was started with, the contents of config.json.
      resumed: whether it goes on with an earlier part.
    """

    folder: pathlib.Path
    label: str
    manifest: JsonObject
    resumed: bool

    @property
    def name(self) -> str:
        """The folder's name with that of the one it is in: "runs/pick"."""
        return "/".join(self.folder.absolute().parts[-2:])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a logger is told of a run that ends.

    Attributes:
      status: "finished"; "stopped", and can be resumed; or "failed".
      figures: of the whole run: steps, time (s), memory (GB), the newest metrics.
      files: to be kept with it, all within `folder`: manifest, metrics, curves, videos, pages, artifacts.
      folder: of the run.
    """

    status: Status
    figures: Mapping[str, float]
    files: Sequence[pathlib.Path]
    folder: pathlib.Path


class Logger(Protocol):
    """Takes what a run tells. Calls come from one thread, in this order; any may raise whatever it likes.

    A logger of one's own: a class with these methods, made known by an entry point of the group `alohas2r.loggers`
    (then `--log NAME` finds it), or given to `train`, `distill`, `pretrain_encoder` and `pipeline.run` as it is.
    """

    @property
    def name(self) -> str:
        """What it is called in messages, and in whose file (log_NAME.json) the run keeps what it needs to go on."""
        ...

    def begin(self, run: RunInfo, earlier: JsonObject) -> JsonObject:
        """Begins.

        Args:
          run: the run.
          earlier: what this method returned when the run that goes on began; empty for a new one.

        Returns:
          What is needed to go on later, kept in the run's folder.
        """
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the figures of a step (environment steps so far), all finite."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Takes what the run came to, and closes whatever is open."""
        ...


class Background:
    """A logger at work in a thread of its own, harmless to the run.

    Args:
      logger: that does the work.
      tell: receives its one complaint; a warning of the package's log (on stderr) if None.
      wait_s: how long the end of a run waits for it.
    """

    def __init__(
        self, logger: Logger, tell: Tell | None = None, wait_s: float = END_WAIT_S
    ) -> None:
        self._logger, self._tell, self._wait_s = logger, tell or _warn, wait_s
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"log {logger.name}", daemon=True)
        self._failed = threading.Event()

    def begin(self, run: RunInfo) -> None:
        """Begins, or goes on with the earlier part of a resumed run."""
        self._thread.start()
        self._put(lambda: self._begin(run))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Passes on the figures of a step; those that are None are left out."""
        finite = {name: value for name, value in values.items() if value is not None}
        self._put(lambda: self._logger.write(step, finite))

    def finish(self, outcome: Outcome) -> None:
        """Passes on what the run came to; `wait` lets it be done."""
        self._put(lambda: self._logger.finish(outcome))
        self._put(None)

    def wait(self, longest_s: float = math.inf) -> None:
        """Waits until all is done or the time is up."""
        limit = min(self._wait_s, longest_s)
        self._thread.join(limit)
        if self._thread.is_alive() and not self._failed.is_set():
            self._fail(f"is not done after {limit:g} s")

    def _begin(self, run: RunInfo) -> None:
        path = run.folder / f"log_{self._logger.name}.json"
        kept = self._logger.begin(run, _read(path) if run.resumed else {})
        write_atomic(path, json.dumps(kept, indent=2).encode() + b"\n")

    def _put(self, call: Callable[[], None] | None) -> None:
        if self._failed.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail("does not keep up")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failed.is_set():
                return
            try:
                call()
            except BaseException as error:  # nothing that it does is the run's business
                if not self._failed.is_set():
                    text = " ".join(str(error).split()) or "no reason given"
                    self._fail(f"failed ({type(error).__name__}: {text[:300]})")
                return

    def _fail(self, why: str) -> None:
        self._failed.set()
        self._tell(f"--log {self._logger.name} {why}; the run itself is not touched by it.")


class Loggers:
    """All loggers of a run, which they begin and end with.

    with Loggers(loggers) as told:
        told.begin(run)
        told.write(step, figures)
        told.finish("finished", figures)

    A run that ends by an error tells "failed".

    Args:
      loggers: that are told.
      tell: receives the one complaint of each; a warning of the package's log (on stderr) if None.
      wait_s: how long the end of a run waits for them.
    """

    def __init__(
        self, loggers: Sequence[Logger] = (), tell: Tell | None = None, wait_s: float = END_WAIT_S
    ) -> None:
        self._all = [Background(logger, tell, wait_s) for logger in loggers]
        self._folder: pathlib.Path | None = None

    def __enter__(self) -> Loggers:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Tells that the run failed, unless `finish` was called; who ends it by force is not kept waiting long."""
        self.finish("failed", {}, FAILED_WAIT_S)

    def begin(self, run: RunInfo) -> None:
        """Begins all."""
        self._folder = run.folder
        for one in self._all:
            one.begin(run)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Passes on the figures of a step."""
        for one in self._all:
            one.write(step, values)

    def finish(
        self, status: Status, figures: Mapping[str, object], wait_s: float = math.inf
    ) -> None:
        """Hands over what the run came to, with the files that its folder holds by now; then nothing is told any more.

        Args:
          status: how it ended. figures: of the whole run; what is no number is left out.
          wait_s: the longest to wait for them, if less than usual.
        """
        folder, self._folder = self._folder, None
        if not self._all or folder is None:
            return
        numbers = {
            name: float(value)
            for name, value in figures.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        outcome = Outcome(status, numbers, kept_files(folder), folder)
        for one in self._all:
            one.finish(outcome)
        for one in self._all:
            one.wait(wait_s)


def kept_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what of a run's folder is worth keeping elsewhere: manifest, metrics, artifacts, pictures, films, pages.

    Checkpoints, other loggers' files and the folders of other runs are left out.
    """
    kept = []
    for root, folders, names in os.walk(folder):
        here = pathlib.Path(root)
        if here != folder and "config.json" in names:  # another run, as in a pipeline's folder
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(_OTHERS)]
        kept += [here / name for name in names if pathlib.Path(name).suffix in _KEPT]
    return sorted(kept)


def _read(path: pathlib.Path) -> JsonObject:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _warn(text: str) -> None:
    logging.getLogger("alohas2r").warning(text)
