"""The learner's process, by its module's name: nothing of it is imported, as a robot's computer has no JAX."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import time

from alohas2r.core.lock import in_use
from alohas2r.errors import ArtifactError
from alohas2r.policies.online.config import LEARNER

WORKER = "alohas2r.learning.online.worker"
_LOG = "learner.log"
_LEAVES_S, _END_S = 120.0, 30.0


class LearnerProcess:
    """Learns from the log in a run's folder; ends with this process, however that ends.

    Args:
      folder: of the run.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def free(self) -> bool:
        """Whether no learner works in the folder, not even one of a process that was killed."""
        return not in_use(self._folder / LEARNER)

    def wait_until_free(self) -> None:
        """Waits for a learner whose parent was killed, which it notices after an update."""
        patience_s = time.monotonic() + _LEAVES_S
        while not self.free and time.monotonic() < patience_s:
            time.sleep(0.1)

    def start(self, resume: bool) -> None:
        """Starts it, where it stood if it is resumed and had begun."""
        words = [sys.executable, "-m", WORKER, str(self._folder), str(os.getpid())]
        if resume and (self._folder / LEARNER / "config.json").exists():
            words.append("--resume")
        with open(self._folder / _LOG, "ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")},
                start_new_session=True,  # Ctrl-C is its parent's; the learner ends when that does
            )

    def alive(self) -> bool:
        """Returns whether it runs; False before it was started, and when all is learnt.

        Raises:
          ArtifactError: it ended in an error; its last words.
        """
        status = None if self._process is None else self._process.poll()
        if status in (None, 0):
            return self._process is not None and status is None
        said = (self._folder / _LOG).read_text(errors="replace").strip().rpartition("\n")[2]
        raise ArtifactError(said or f"The learner ended with exit status {status}.")

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._process is not None

    def wait(self, seconds: float) -> None:
        """Waits until all is learnt.

        Raises:
          ArtifactError: it ended in an error, or not in time.
        """
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ArtifactError(f"The learner did not end; see {self._folder / _LOG}.") from error
        self.alive()

    def end(self, patience_s: float = _END_S) -> None:
        """Ends it, if need be by force: what a checkpoint does not hold is learnt again."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
