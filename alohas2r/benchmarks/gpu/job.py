"""What a run of the GPU benchmark is: sizes, budget, results so far."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

import jax
import numpy as np

from alohas2r.core import files
from alohas2r.core.types import JsonObject
from alohas2r.errors import Alohas2rError, ModelError

FORMAT = "alohas2r-bench-gpu"
VERSION = 1  # of the JSON file; a change that readers would stumble over makes it 2
NAME = "gpu.json"
BUDGET_S = 520.0  # of a whole run; with the report after it this stays below nine minutes
TINY_BUDGET_S = 3600.0
Scene = Literal["pick", "insert"]
RESERVE_S = 2.0  # of the budget, for writing
LOG_TAIL = 3000  # characters of a failed phase's output that are kept


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
      environments: batch sizes of physics and rendering, in the order in which they are measured.
      steps: control steps of a timed call of the physics.
      seconds: least time of a measurement.
      simulations, states, episodes: of the checks: compared simulations, pictures, and evaluated episodes.
      checked_steps: control steps that are compared. check_s: length of an episode; None for the protocol's own.
      updates: training updates that are timed, after the one that compiles.
      preset: of the trainings. overrides: settings on top of it, by phase.
      evaluate: whether to time an evaluation as training makes it.
      verify_samples: inputs on which the exported file is compared.
    """

    environments: tuple[int, ...] = (1024, 16384, 4096, 2048, 8192)
    steps: int = 10
    seconds: float = 2.0
    simulations: int = 64
    states: int = 200
    episodes: int = 64
    checked_steps: int = 20
    check_s: float | None = None
    updates: int = 24
    preset: str = "default"
    overrides: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: {"insert": ("collect.rounds=1",)}
    )
    evaluate: bool = True
    verify_samples: int = 64


_TINY_PPO = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1"),
    *("ppo.network.policy=8", "ppo.network.value=8"),
)
FULL = Scale()
TINY = Scale(
    environments=(2, 4),
    steps=1,
    seconds=0.0,
    simulations=2,
    states=8,
    episodes=2,
    checked_steps=3,
    check_s=0.1,
    updates=2,
    preset="quick",
    overrides={
        "pick": _TINY_PPO,
        "insert": (*_TINY_PPO, "collect.variants=4", "collect.rounds=1"),
        "pretrain": ("pictures=16", "batch=8", "passes=1", "held=16"),
        "distill": ("num_envs=4", "steps=2", "batch=8"),
    },
    evaluate=False,
    verify_samples=8,
)


Result = TypeVar("Result")


class Job:
    """What a phase is given, and what it has found so far.

    Args:
      description: the job as `bench_gpu` wrote it: "phase", "tiny", "seconds", "figures" (file), "scratch" (folder).
    """

    def __init__(self, description: JsonObject):
        self.phase: str = description["phase"]
        self.tiny: bool = description["tiny"]
        self.scale = TINY if self.tiny else FULL
        self.scratch = pathlib.Path(description["scratch"])
        self.figures: JsonObject = {}
        self._file = pathlib.Path(description["figures"])
        self._end = time.monotonic() + float(description["seconds"])

    @property
    def left_s(self) -> float:
        """Seconds after which nothing further should be begun."""
        return self._end - time.monotonic()

    def note(self, **figures: object) -> None:
        """Keeps figures, on disk as well, so that they outlast the process."""
        self.figures |= figures
        files.write_atomic(self._file, json.dumps(_plain(self.figures)).encode())

    def each(self, units: Sequence[JsonObject], measure: Callable[..., JsonObject]) -> None:
        """Measures one unit after the other while there is time; a failure leaves the others alone.

        Args:
          units: the arguments of `measure`, which begin the unit's row.
          measure: returns the rest of the row.

        Raises:
          ModelError: a unit has failed; the others are measured.
        """
        rows: list[JsonObject] = []
        failed: list[str] = []
        longest = 0.0
        for unit in units:
            if rows and self.left_s < longest:
                rows.append({**unit, "skipped": "out of time"})
                continue
            started = time.monotonic()
            try:
                rows.append({**unit, **measure(**unit)})
            except Exception as error:  # whatever JAX and Warp raise, out of memory among it
                traceback.print_exc()
                rows.append({**unit, "error": said(error)})
                failed.append(f"{', '.join(f'{k} {v}' for k, v in unit.items())}: {said(error)}")
            longest = max(longest, time.monotonic() - started)
            self.note(rows=rows)
        self.note(rows=rows)
        if failed:
            raise ModelError("; ".join(failed))


def said(error: BaseException) -> str:
    """Returns an error in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, Alohas2rError)
    return (text if known else f"{type(error).__name__}: {text}")[:500]


def _plain(value: object) -> object:
    """Returns a value as JSON takes it: plain numbers, null where one is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def repeat(call: Callable[[], Result], seconds: float) -> tuple[float, list[float], Result]:
    """Calls something whose result is waited for.

    Returns:
      The first call's time (s), in which things are compiled, those of further calls, two at least, and the last
      result.
    """
    import jax

    def timed() -> tuple[float, Result]:
        started = time.monotonic()
        result = jax.block_until_ready(call())
        return time.monotonic() - started, result

    first, result = timed()
    took: list[float] = []
    while len(took) < 2 or sum(took) < seconds:
        last, result = timed()
        took.append(last)
    return first, took, result
