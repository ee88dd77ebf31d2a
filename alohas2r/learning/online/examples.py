"""Examples of insertions and of failures, read from logs: what a classifier of success learns from."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alohas2r.core.records import Record
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online.sources import Tail
from alohas2r.policies.online.classifier import Look
from alohas2r.policies.online.config import LOGS
from alohas2r.policies.online.insertion import TASK
from alohas2r.policies.online.spec import PROPRIOCEPTION
from alohas2r.sim import scene
from alohas2r.tasks.insert.config import InsertConfig

SURE = InsertConfig().hold_steps  # control steps for which a peg is in when the truth first says so
# Control steps before a person's key of which nobody knows whether the peg was in: 1.5 s. Source: chosen.
REACTION = 30
_PLACE_M = 0.0005  # nearer to each other two starts of an object are the same
_MADE_BY = "alohas2r demonstrate insert --tries"
_SUCCESS = "success"  # as a person's mark


class Trial(NamedTuple):
    """An episode that came to its end.

    Attributes:
      looks: of its control steps; None before the policy inserts.
      inserted: the first of these of which the truth says that the peg is in; None: it never was.
      start: where the objects lay; the same for episodes that began alike. world: in which it was, "" the nominal one.
      unsure: control steps before those five of which nobody knows.
    """

    looks: list[Look | None]
    inserted: int | None
    start: tuple[int, ...]
    world: str
    unsure: int = 0

    @property
    def told(self) -> int:
        """The first control step of which the truth can no longer say that the peg was in from then on."""
        return len(self.looks) - SURE + 1

    @property
    def open(self) -> int:
        """The first control step in which the peg may have been in."""
        return self.told if self.inserted is None else self.inserted - SURE + 1 - self.unsure

    def examples(self) -> tuple[list[Look], list[bool]]:
        """Returns what was seen while it inserted, and whether the peg was in, as far as anybody can tell."""
        first = self.open + self.unsure
        end = self.told if self.inserted is None else len(self.looks)
        kept = [
            (look, step >= first)
            for step, look in enumerate(self.looks[:end])
            if look is not None and not self.open <= step < first
        ]
        return [look for look, _ in kept], [there for _, there in kept]


class Trials(NamedTuple):
    """Episodes of one student's insertions, and the hash of its file; repeats are left out."""

    trials: list[Trial]
    student_hash: str
    repeats: int


def read_trials(runs: Sequence[pathlib.Path], pictures: int) -> Trials:
    """Returns all episodes of runs but evaluations, such as were cut off, and such as never came to insert.

    Where no simulation knows the truth, a person's keys tell; episodes without are left out.

    Args:
      runs: folders of `demonstrate insert` and `learn insert`. pictures: how many numbers a student makes of them.

    Raises:
      ArtifactError: a folder holds no log, is damaged, or its log lacks what a classifier learns from.
      ConfigError: a log is of another task, or of another student than the one before it.
    """
    found: list[Trial] = []
    students: dict[str, pathlib.Path] = {}
    for number, run in enumerate(runs):
        reader = _Reader(run, pictures, number)
        for record in Tail(run / LOGS).poll():
            reader.take(record)
        if not reader.student:
            raise ArtifactError(f"{run} holds no log of an insertion; {_MADE_BY} N records one.")
        if reader.untold and not reader.trials:
            raise ArtifactError(
                f"The log of {run} does not say whether the peg was in: where no simulation knows, you do, by the keys"
                " of --judge or --coach."
            )
        students.setdefault(reader.student, run)
        found += reader.trials
    if len(students) > 1:
        (one, first), (other, second), *_ = students.items()
        raise ConfigError(
            f"{first} is of another student ({one[:12]}) than {second} ({other[:12]}), which sees otherwise; learn from"
            " the logs of one."
        )
    kept: dict[bytes, Trial] = {}
    for trial in found:
        looks = [look for look in trial.looks if look is not None]
        kept.setdefault(b"".join(one.tobytes() for look in looks for one in look), trial)
    return Trials(list(kept.values()), next(iter(students), ""), len(found) - len(kept))


class _Reader:
    """Takes the records of a run's log, in order.

    Args:
      run: its folder. pictures: how many numbers a student makes of them. number: of the run.

    Attributes:
      student: hash of its file. trials: episodes so far.
      untold: how many were left out, as nobody knows what they came to.
    """

    def __init__(self, run: pathlib.Path, pictures: int, number: int) -> None:
        self._run, self._pictures, self._number = run, pictures, number
        self._objects = [arm.object_qpos[:2] for arm in scene.load("insert").arms]
        self._header: JsonObject = {}
        self._looks: list[Look | None] = []
        self._inserted: int | None = None
        self._ended = self._unknown = False
        self._marks: list[str] = []  # what a person said in the steps up to now, without a break
        self._start: tuple[int, ...] = ()
        self.student, self.untold = "", 0
        self.trials: list[Trial] = []

    def take(self, record: Record) -> None:
        """Takes a record."""
        if record.kind in ("header", "episode", "end"):
            self._close()
        if record.kind == "header":
            self._begin(record.values)
        elif record.kind == "episode":
            if "qpos" not in record.arrays:  # of arms whose world nobody knows: no two begin alike
                self._start = (-1, self._number, int(record.values["number"]))
                return
            places = np.concatenate([record.arrays["qpos"][one] for one in self._objects])
            self._start = tuple(np.round(places / _PLACE_M).astype(int).tolist())
        elif record.kind == "step" and record.values.get("learning"):
            self._step(record, record.values["learning"])

    def _begin(self, header: JsonObject) -> None:
        task = header.get("task")
        if task != TASK:
            raise ConfigError(f"{self._run} is of '{task}'; a reward is learnt of {TASK}.")
        if "student_hash" not in header:
            raise ArtifactError(
                f"{self._run} was logged before logs said which student saw it; record it anew with {_MADE_BY} N."
            )
        self._header, self.student = header, str(header["student_hash"])

    def _step(self, record: Record, said: JsonObject) -> None:
        if said["evaluation"] or said.get("source") == "reset":
            return
        self._unknown |= said["truth"] is None
        self._marks = [*self._marks, said["marked"]] if "marked" in said else []
        if said["truth"] and self._inserted is None:
            self._inserted = len(self._looks)
        self._ended |= bool(said["terminated"] or said["truncated"])
        features = record.arrays.get("learning/features")
        felt = record.arrays.get("observation/proprioception")
        look = None
        if features is not None and felt is not None:
            if len(features) < self._pictures or len(felt) != PROPRIOCEPTION:
                raise ArtifactError(f"The log of {self._run} holds other features than --base has.")
            look = Look(features[: self._pictures], felt)
        self._looks.append(look)

    def _close(self) -> None:
        """Keeps the episode if it is whole and came to insert, and somebody knows what it came to."""
        looks, inserted, unsure = self._looks, self._inserted, 0
        if self._ended and any(look is not None for look in looks):
            if self._marks and self._unknown and self._marks[-1] == _SUCCESS:
                inserted, unsure = len(looks) - len(self._marks) + SURE - 1, REACTION
            if self._marks or not self._unknown:
                world = str(self._header.get("world_params", ""))
                self.trials.append(Trial(looks, inserted, self._start, world, unsure))
            else:
                self.untold += 1
        self._looks, self._inserted, self._marks = [], None, []
        self._ended = self._unknown = False
