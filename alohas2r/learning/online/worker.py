"""The learner, a process of its own: `python -m alohas2r.learning.online.worker FOLDER PARENT [--resume]`."""

from __future__ import annotations

import pathlib
import shlex
import sys

import numpy as np

from alohas2r.config import overrides
from alohas2r.core.types import Json, JsonObject
from alohas2r.errors import Alohas2rError, ArtifactError
from alohas2r.learning.online.algorithm import OnlineAlgorithm
from alohas2r.learning.online.ferm import FermAlgorithm
from alohas2r.learning.run.loop import Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.online.config import (
    FERM,
    LEARNER,
    AnyRun,
    InsertRun,
    SeeingRun,
    find_arm,
    read_online_run,
)
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.remote import at_hand
from alohas2r.policies.onnx.base import read_base
from alohas2r.sim.changed import NOMINAL

_OPTIONS = ("minutes", "encoder")  # settings that commands have options for
REFUSED = 3  # exit status where what went wrong is said in one line


def learn(folder: pathlib.Path, resume: bool, parent: int | None = None) -> JsonObject:
    """Learns from the log of a run until all of it is learnt.

    Args:
      folder: of the run. resume: whether to go on from the newest checkpoint.
      parent: process that writes the log; the learner ends with it.

    Returns:
      As `learning.run.loop.Run.train`.

    Raises:
      ArtifactError: the log, a demonstration or the student is damaged or of something else.
    """
    told = read_online_run(folder)
    run = at_hand(told, folder)
    frozen, found_hash = _frozen(run)
    if found_hash != run.eyes_hash:
        raise ArtifactError(
            f"The student {run.student} is another one than when this run began; its eyes would see otherwise."
        )
    if isinstance(run, SeeingRun) and run.config.arm == FERM:
        algorithm: OnlineAlgorithm = FermAlgorithm(folder, run, parent)
    else:
        algorithm = OnlineAlgorithm(folder, run, frozen, parent)
    identity: dict[str, Json] = {"seed": run.seed, "stepped": run.stepped, "student": run.eyes_hash}
    with Run(folder / LEARNER, run.config, identity, resume) as trained:
        schedule = Schedule(checkpoints=max(1, algorithm.iterations // 5))
        parents: dict[str, str | None] = {"student": run.eyes_hash}
        if isinstance(run, InsertRun) and run.classifier_hash:
            parents["reward"] = run.classifier_hash
        return trained.train(algorithm, command_of(told), parents, schedule)


def _frozen(run: AnyRun) -> tuple[dict[str, np.ndarray], str]:
    """Returns the weights that look at pictures, none of an insertion or of eyes of its own, and the student's hash."""
    if isinstance(run, InsertRun):
        return {}, read_base(run.student).policy.hash
    eyes: dict[str, np.ndarray] = {}
    if not isinstance(run, SeeingRun):
        eyes, *_ = read_eyes(run.student, run.spec.side)
    return eyes, str(artifact.describe(run.student)["hash"])


def command_of(run: AnyRun) -> str:
    """Returns the command that learns the same again."""
    words = ["alohas2r", "learn", run.spec.task, "--arm", run.config.arm, "--seed", str(run.seed)]
    if isinstance(run, InsertRun):
        words += ["--base", run.student, "--reward", run.reward]
    if isinstance(run, SeeingRun):
        words += ["--encoder", run.config.encoder]
    for demo in run.demos:
        words += ["--demos", demo]
    for earlier in run.offline:
        words += ["--offline", earlier]
    usual = overrides("", find_arm(run.config.arm, (), run.spec.task))
    for setting in overrides("", run.config):
        if setting not in usual and setting.partition("=")[0] not in _OPTIONS:
            words += ["--set", setting]
    words += ["--minutes", f"{run.config.minutes:g}", "--robot", run.robot, "--resets", run.resets]
    if run.world != NOMINAL:
        words += ["--world-params", str(run.world)]
    return shlex.join([*words, *(["--stepped"] if run.stepped else [])])


def main(arguments: list[str]) -> int:
    """Learns, and returns the exit status."""
    folder, parent, *options = arguments  # who started it may be gone by now
    try:
        learn(pathlib.Path(folder), "--resume" in options, int(parent))
    except Alohas2rError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return REFUSED
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
