"""Decisions of a run, read from its log: what was seen, what was executed, what came of it.

The log's steps are control steps; a policy that learns decides every few of them. What counts as its action is what was
executed, recovered from the commands after the guard. A hold, a retreat, missing pictures or missing steps cut the
chain: of the decision during which that happened nothing is learnt, and what came before ends in what was seen last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.core.records import Record
from alohas2r.errors import ArtifactError
from alohas2r.policies.online.recent import recent_actions
from alohas2r.policies.online.spec import RECENT, LearntSpec

SOURCES = ("policy", "demo", "human", "coach", "reset", "base")
_TEACH_NOTHING = ("reset", "base")  # ways back, and what a base does that nothing is added to
_RUN = "run"  # of the loop's modes the one in which the policy's wish is followed


class Row(NamedTuple):
    """What was seen at a decision, or at the end of a chain, where nothing was decided any more.

    Attributes:
      inputs: what the policy takes, by name. recent: [3, A] the last executed actions.
      source: who decided; "" at the end of a chain. episode: number.
      features: [F] where the log holds them; None where they are to be made of the inputs.
    """

    inputs: dict[str, np.ndarray]
    recent: np.ndarray
    source: str
    episode: int
    features: np.ndarray | None = None

    @property
    def proprioception(self) -> np.ndarray:
        """What both arms feel [32]."""
        return self.inputs["proprioception"]


class Closed(NamedTuple):
    """What came of the newest row's decision.

    Attributes:
      action: [A] what was executed. reward: until the next decision.
      terminated: whether the task was done, so that nothing comes after.
    """

    action: np.ndarray
    reward: float
    terminated: bool


@dataclasses.dataclass
class Counts:
    """What was read so far: decisions that a policy began, successes by the robot's own reward, chains cut."""

    decisions: int = 0
    successes: int = 0
    cuts: int = 0


class Chains:
    """Turns records into rows: each row is followed by what came of it, or by nothing where the chain was cut.

    Args:
      spec: what learns.
    """

    def __init__(self, spec: LearntSpec) -> None:
        self._spec = spec
        self._open: Row | None = None
        self._reward = 0.0
        self._last: tuple[int, int] | None = None  # episode and step of the newest step
        self._past: list[np.ndarray] = []  # proprioception at the episode's decisions
        self.counts = Counts()

    @property
    def task(self) -> str:
        """What learns here does."""
        return self._spec.task

    def take(self, record: Record) -> list[Row | Closed]:
        """Returns what a record adds, in order.

        Raises:
          ArtifactError: it is of another task, or lacks what learning needs.
        """
        if record.kind == "episode":
            self._past, self._last = [], None
        if record.kind in ("episode", "end", "header"):
            self._cut()
        if record.kind != "step":
            return []
        said = record.values.get("learning") or {}
        acted = bool(said) and record.values["mode"] == _RUN and "action" in record.arrays
        if not acted or said.get("evaluation") or said["source"] in _TEACH_NOTHING:
            self._cut()
            return []
        if said["task"] != self._spec.task:
            raise ArtifactError(
                f"The log is of the task '{said['task']}', not of '{self._spec.task}': it teaches something else."
            )
        return self._step(record, said)

    def _step(self, record: Record, said: Mapping[str, object]) -> list[Row | Closed]:
        made: list[Row | Closed] = []
        place = int(record.values["episode"]), int(record.values["step"])
        if self._last is not None and place != (self._last[0], self._last[1] + 1):
            self._cut()
        self._last = place
        self._reward += float(str(said["reward"]))
        terminated, truncated = bool(said["terminated"]), bool(said["truncated"])
        seen = self._seen(record, str(said["source"]))
        decides = bool(said["decision"])
        if self._open is not None and (terminated or truncated or decides):
            action = self._spec.executed(self._open.proprioception, seen.proprioception)
            made.append(Closed(action, self._reward, terminated))
            self._open = None
            self.counts.successes += terminated
            if truncated and not terminated:
                made.append(seen._replace(source="", recent=self._recent(seen.proprioception)))
        if decides and not (terminated or truncated):
            row = seen._replace(recent=self._recent(seen.proprioception))
            self._past.append(seen.proprioception)
            self._open, self._reward = row, 0.0
            self.counts.decisions += 1
            made.append(row)
        return made

    def _seen(self, record: Record, source: str) -> Row:
        spec = self._spec
        wanted = {f"observation/{name}": shape for name, (shape, *_) in spec.inputs.items()}
        if spec.given:
            wanted["learning/features"] = (spec.features,)
        for name, shape in wanted.items():
            if name not in record.arrays:
                raise ArtifactError(
                    f"The log lacks {name}: it is of a robot without what this policy sees."
                )
            found = record.arrays[name].shape
            if found != shape:
                sizes = [" x ".join(map(str, one)) for one in (found, shape)]
                raise ArtifactError(f"The log's {name} is {sizes[0]}: the policy takes {sizes[1]}.")
        if source not in SOURCES:
            raise ArtifactError(f"The log's source '{source}' is none of {', '.join(SOURCES)}.")
        inputs = {name: record.arrays[f"observation/{name}"] for name in spec.inputs}
        recent = np.zeros((RECENT, spec.actions), np.float32)
        episode = int(record.values["episode"])
        return Row(inputs, recent, source, episode, record.arrays.get("learning/features"))

    def _recent(self, now: np.ndarray) -> np.ndarray:
        return recent_actions(self._spec, [*self._past, now])

    def _cut(self) -> None:
        """Forgets the decision whose outcome is not known."""
        self.counts.cuts += self._open is not None
        self._open, self._reward = None, 0.0


def read_all(spec: LearntSpec, records: Iterable[Record]) -> list[Row | Closed]:
    """Returns all rows of records."""
    chains = Chains(spec)
    return [one for record in records for one in chains.take(record)]
