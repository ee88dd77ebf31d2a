"""What a sweep is and how far it is, in one file that is written anew after each change."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Literal

from alohas2r.config import check
from alohas2r.core import files
from alohas2r.core.types import Json, JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.experiments.sweep.space import Choices, Space, Values, assignments, varied
from alohas2r.learning.run import manifest

NAME = "sweep.json"
FORMAT = 1
SAMPLERS = ("grid", "each", "random", "tpe")
Status = Literal["open", "done", "failed"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is swept; two sweeps are the same if all of it is.

    Attributes:
      command: that trains. arguments: of it, beside settings, seed and folder.
      space: settings and their values.
      seeds: of each configuration.
      sampler: what chooses configurations: "grid", all; "each", one key at a time; "random" or "tpe".
      trials: configurations that a sampler draws; 0 for the others.
      sampler_seed: of its draws.
      metric: figure of the last metrics by which runs are compared. maximize: whether more is better.
      stop_worst: share of configurations that are stopped early at each evaluation; 0 for none.
    """

    command: str
    arguments: tuple[str, ...]
    space: Space
    seeds: tuple[int, ...]
    sampler: str
    trials: int
    sampler_seed: int
    metric: str
    maximize: bool
    stop_worst: float

    def __post_init__(self) -> None:
        check(self.sampler in SAMPLERS, f"The sampler must be one of {', '.join(SAMPLERS)}.")
        check(bool(self.seeds), "A sweep needs a seed.")
        check(0 <= self.stop_worst < 1, f"stop_worst = {self.stop_worst} must lie in [0, 1).")
        if self.draws:
            check(self.trials > 0, f"--sampler {self.sampler} needs --trials, how many to draw.")
            check(
                bool(varied(self.space)),
                f"--sampler {self.sampler} needs a --set with several values.",
            )
        else:
            check(
                self.trials == 0,
                f"--trials goes with --sampler tpe or random, not {self.sampler}, which has a number of its own.",
            )

    @property
    def draws(self) -> bool:
        """Whether configurations are drawn one after the other."""
        return self.sampler in ("random", "tpe")

    def plain(self) -> JsonObject:
        """Returns it as JSON has it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        space = {
            key: list(one.values) if isinstance(one, Choices) else dataclasses.asdict(one)
            for key, one in self.space.items()
        }
        return fields | {
            "space": space,
            "seeds": list(self.seeds),
            "arguments": list(self.arguments),
        }


@dataclasses.dataclass
class RunState:
    """A training with one seed.

    Attributes:
      status: "open" until it has finished or failed.
      starts: how often it was started or resumed.
      score: its metric, once it has finished.
      steps: environment steps, likewise. wall_s: its time.
      reason: why it failed.
    """

    status: Status = "open"
    starts: int = 0
    score: float | None = None
    steps: int | None = None
    wall_s: float | None = None
    reason: str | None = None


@dataclasses.dataclass
class Trial:
    """A configuration.

    Attributes:
      values: settings.
      runs: by seed.
      stopped: None, or why its runs were stopped early: "step", its "value" there, share of others that are "better".
    """

    values: Values
    runs: dict[int, RunState]
    stopped: dict[str, float] | None = None

    @property
    def state(self) -> Literal["stopped", "failed", "open", "done"]:
        """How far all of its runs are."""
        if self.stopped is not None:
            return "stopped"
        statuses = {run.status for run in self.runs.values()}
        if "open" in statuses:
            return "open"
        return "failed" if "failed" in statuses else "done"

    def scores(self) -> dict[int, float]:
        """Returns seed -> score of the runs that have finished."""
        return {
            seed: run.score
            for seed, run in self.runs.items()
            if run.status == "done" and run.score is not None
        }


@dataclasses.dataclass
class SweepState:
    """A sweep in its folder.

    Attributes:
      plan: what it is. threads: of each run.
      trials: so far; where they are not drawn, all.
    """

    folder: pathlib.Path
    plan: Plan
    threads: int
    trials: list[Trial]

    def add(self, values: Values) -> Trial:
        """Adds a configuration."""
        trial = Trial(values, {seed: RunState() for seed in self.plan.seeds})
        self.trials.append(trial)
        return trial

    def run_folder(self, number: int, seed: int) -> pathlib.Path:
        """Returns the folder of a run of the trial of that number."""
        return self.folder / "runs" / f"{number:03d}-seed{seed}"

    def command(self, values: Values, seed: int) -> list[str]:
        """Returns the words of the command that trains a configuration."""
        settings = [word for one in assignments(values) for word in ("--set", one)]
        return [self.plan.command, *self.plan.arguments, *settings, "--seed", str(seed)]

    def save(self) -> None:
        """Writes sweep.json.

        Raises:
          ArtifactError: it cannot be written; the earlier one is intact.
        """
        plain = {
            "format": FORMAT,
            "plan": self.plan.plain(),
            "threads": self.threads,
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }
        files.write_atomic(self.folder / NAME, json.dumps(plain, indent=1).encode() + b"\n")


def begin(
    folder: pathlib.Path, plan: Plan, threads: int, configurations: Sequence[Values]
) -> SweepState:
    """Returns a sweep at its beginning, or where it was stopped or killed; what had failed is open again.

    Args:
      folder: of the sweep. plan: what it is.
      threads: of each run, where it begins now.
      configurations: its trials; none where they are drawn.

    Raises:
      ConfigError: the folder holds another sweep, or something else.
      ArtifactError: sweep.json is damaged or newer.
    """
    path = folder / NAME
    if not path.exists():
        check(
            not manifest.exists(folder),
            f"{folder} holds a training; choose another --out for the sweep.",
        )
        state = SweepState(folder, plan, threads, [])
        for values in configurations:
            state.add(values)
        return state
    try:
        earlier = json.loads(path.read_text())
        version, before = earlier["format"], dict(earlier["plan"])
        threads = int(earlier["threads"])
        trials = [_trial(one) for one in earlier["trials"]] if version == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}); choose another --out."
        ) from error
    if version != FORMAT:
        raise ArtifactError(
            f"{path} was written by another version of alohas2r (format {version})."
        )
    now: dict[str, Json] = json.loads(json.dumps(plan.plain()))
    changes = [
        f"{name} {json.dumps(before.get(name))} -> {json.dumps(now[name])}"
        for name in now
        if before.get(name) != now[name]
    ]
    if changes:
        raise ConfigError(
            f"{folder} holds another sweep ({'; '.join(changes)}); choose another --out, or give the command that"
            " began it."
        )
    return SweepState(folder, plan, threads, trials)


def _trial(plain: JsonObject) -> Trial:
    """Returns a trial as it was written; a run that had failed is tried again."""
    runs = {int(seed): RunState(**run) for seed, run in plain["runs"].items()}
    for run in runs.values():
        if run.status == "failed":
            run.status, run.reason = "open", None
    return Trial(dict(plain["values"]), runs, plain["stopped"])
