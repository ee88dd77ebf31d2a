"""What simulators apart from the learner bring: speed and memory, beside what two laws say.

With N devices, data parallelism simulates and learns on each; apart, N - 1 simulate and one learns.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alohas2r import config
from alohas2r.config import check
from alohas2r.core import threads as core_threads
from alohas2r.core.machine import describe_machine
from alohas2r.core.progress import Meter, Progress
from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import BackendUnavailable
from alohas2r.learning.fleet.base import LOCAL, PARALLEL, RAY, FleetConfig
from alohas2r.learning.fleet.launch import launched, threads_of
from alohas2r.learning.fleet.worker import Part, World, parts
from alohas2r.learning.pixels import train as pixels
from alohas2r.learning.pixels.config import find_preset as pixels_preset
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo import train as teachers
from alohas2r.learning.ppo.algorithm import PpoAlgorithm
from alohas2r.learning.ppo.apart import PpoApart, setup_of
from alohas2r.learning.ppo.parallel import DataParallel, together_in
from alohas2r.learning.ppo.places import fitted
from alohas2r.learning.run.loop import Algorithm

TEACHER, PIXELS = "teacher", "pixels"
TRAININGS = (TEACHER, PIXELS)
_WARM, _TIMED = 2, 3  # updates: in which things are compiled, and that are timed at least
DEVICES = range(2, 9)  # of the tables


class Memory(NamedTuple):
    """What a device has to hold: fixed, and for each environment (GB)."""

    simulator: float  # S0
    simulated: float  # s
    learner: float  # L0
    learnt: float  # l


def fitting(memory: Memory, budget: float, devices: int) -> tuple[int, int]:
    """Returns how many environments fit: data parallel, and apart.

    Args:
      memory: of a device. budget: of a device (GB). devices: how many.
    """
    both = memory.simulator + memory.learner, memory.simulated + memory.learnt
    parallel = devices * (budget - both[0]) / both[1]
    simulated = (devices - 1) * (budget - memory.simulator) / memory.simulated
    apart = min(simulated, (budget - memory.learner) / memory.learnt)
    return max(int(parallel), 0), max(int(apart), 0)


def speeding(share: float, devices: int) -> tuple[float, float, float]:
    """Returns how many times as fast as one device: data parallel, lag 0 and lag 1.

    Args:
      share: of the time of one device that simulation takes. devices: how many.
    """
    simulating = share / (devices - 1)
    return float(devices), 1 / (simulating + 1 - share), 1 / max(simulating, 1 - share)


def line(sizes: Sequence[int], peaks: Sequence[float]) -> tuple[float, float]:
    """Returns the fixed part and the part of each environment of peaks of memory, by least squares."""
    slope, fixed = np.polyfit(np.asarray(sizes, float), np.asarray(peaks, float), 1)
    return float(fixed), float(slope)


class Subject:
    """The training that is measured.

    Args:
      training: one of TRAININGS. phase: of it. environments: how many.
      folder: where it may leave what it writes.
    """

    def __init__(self, training: str, phase: str, environments: int, folder: pathlib.Path) -> None:
        self._phase, self._folder = phase, folder
        self._pixels = training == PIXELS
        find = pixels_preset if self._pixels else presets.find_preset
        self.settings = find(phase, "default").with_envs(environments)
        self.build: Callable[[Untyped, int, World | None], World] = teachers.teacher_world
        if self._pixels:
            self.build = pixels.pixel_world

    def training(self, part: Part | None, threads: int) -> PpoAlgorithm:
        """Returns the training with some of its environments."""
        if self._pixels:
            assert isinstance(self.settings, pixels.PixelsConfig)
            given = pixels.Given(self._folder, 0, threads, "raycast", part=part)
            return pixels.PixelTraining(self.settings, given)
        return teachers.Teacher(self.settings, self._folder, 0, threads, "cpu", None, part=part)

    def plan(self, world: int, threads: int, parallel: bool = False) -> Untyped:
        """Returns what `build` takes."""
        plain = config.to_dict(self.settings)
        if self._pixels:
            given = pixels.Given(self._folder, 0, threads, "raycast")
            return pixels.PixelPlan(self._phase, plain, given, world, parallel)
        return teachers.TeacherPlan(self._phase, plain, 0, threads, "cpu", None, world, parallel)


def bench_fleet(
    training: str = TEACHER,
    phase: str = "pick",
    environments: int = 1024,
    workers: Sequence[int] = (1, 2, 3),
    kind: str = LOCAL,
    seconds: float = 20.0,
    threads: int = 0,
    speed: bool = True,
    memory: Sequence[int] = (),
    budget: float = 4.0,
    progress: Progress | None = None,
) -> JsonObject:
    """Measures a training in one process, with simulators apart, and data parallel.

    Args:
      training: "teacher" or "pixels". phase: pick, or another task that starts by itself.
      environments: of the training. workers: how many, in turn.
      kind: of the fleet: "local" or "ray".
      seconds: of each measurement.
      threads: of the physics; 0 for all cores.
      speed: whether speed is measured, which takes a quiet machine.
      memory: numbers of environments, four or more, at which the peak of memory is measured; none if empty.
      budget: memory of a device in the table (GB).
      progress: receives reports.

    Returns:
      "machine", "load" before it and whether the machine was "busy"; "simulating", the share of the time; "rows" with
      "steps_per_s", and "times_as_fast" as one process beside what the law says; "memory": peaks, what was fitted to
      them, and the environments that fit by the number of devices.

    Raises:
      ConfigError: unknown training, or a number out of range.
      BackendUnavailable: Ray is missing.
    """
    check(
        training in TRAININGS, f"training must be one of {', '.join(TRAININGS)}, not '{training}'"
    )
    check(kind in (LOCAL, RAY), f"fleet must be {LOCAL} or {RAY}, not '{kind}'")
    check(seconds > 0, f"seconds must be > 0, not {seconds}")
    check(not memory or len(set(memory)) >= 4, "memory is fitted to four sizes or more")
    check(budget > 0, f"budget must be > 0 GB, not {budget}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        subject = Subject(training, phase, environments, pathlib.Path(made))
        layouts = _layouts(subject, workers, kind) if speed else []
        meter = Meter("bench-fleet", speed + len(layouts) + 2 * len(memory), progress)
        measured = _speed(subject, layouts, threads, seconds, meter) if speed else {}
        held = _memory(training, phase, memory, budget, meter, speed + len(layouts))
    return {
        "training": training,
        "phase": phase,
        "environments": environments,
        "fleet": kind,
        "machine": describe_machine(),
        "load": round(load, 2),
        "busy": load > 0.5 * len(core_threads.cores()),
        **measured,
        **({"memory": held} if held else {}),
    }


def _speed(
    subject: Subject, layouts: Sequence[FleetConfig], threads: int, seconds: float, meter: Meter
) -> JsonObject:
    """Returns the share of the time that simulation takes, and a row of figures for each layout."""
    steps = subject.settings.ppo.steps_per_update
    took, share = _alone(subject.training(None, threads), seconds)
    meter.update(1)
    rows: list[JsonObject] = [{"layout": "one process", "steps_per_s": round(steps / took, 1)}]
    for number, fleet in enumerate(layouts):
        apart = _elsewhere(subject, fleet, threads, seconds)
        devices = fleet.workers + (fleet.kind != PARALLEL)
        laws = speeding(share, devices)
        law = laws[0] if fleet.kind == PARALLEL else laws[1 + fleet.lag]
        rows.append(
            {
                "layout": fleet.kind if fleet.kind == PARALLEL else f"lag {fleet.lag}",
                "workers": fleet.workers,
                "steps_per_s": round(steps / apart, 1),
                "times_as_fast": round(took / apart, 3),
                "law": round(law, 3),
            }
        )
        meter.update(2 + number)
    return {"simulating": round(share, 3), "rows": rows}


def _layouts(subject: Subject, workers: Sequence[int], kind: str) -> list[FleetConfig]:
    """Returns the settings of what is measured beside one process."""
    result = [
        fitted(FleetConfig(kind, count, lag), subject.settings.ppo)
        for lag in (0, 1)
        for count in workers
    ]
    environments, minibatches = subject.settings.ppo.num_envs, subject.settings.ppo.minibatches
    for count in workers:  # where they can share equally
        own = environments // count * subject.settings.ppo.unroll
        if count > 1 and environments % count == 0 and own % minibatches == 0:
            result.append(FleetConfig(PARALLEL, count))
    return result


def _alone(training: PpoAlgorithm, seconds: float) -> tuple[float, float]:
    """Returns the time (s) of an update in one process, and the share of it that is simulation."""
    state, collecting, done = training.init(), 0.0, 0
    until = started = time.monotonic()
    while done < _WARM + _TIMED or time.monotonic() < until:
        if done == _WARM:
            collecting, started = 0.0, time.monotonic()
            until = started + seconds
        before = time.monotonic()
        state, data = training.collect(state)
        jax.block_until_ready(data.rollout)
        collecting += time.monotonic() - before
        state, _ = training.update(state, data)
        done += 1
    took = time.monotonic() - started
    return took / (done - _WARM), collecting / took


def _timed(algorithm: Algorithm[Untyped, Untyped], seconds: float) -> float:
    """Returns the time (s) of an update."""
    state, done = algorithm.init(), 0
    until = started = time.monotonic()
    while done < _WARM + _TIMED or time.monotonic() < until:
        if done == _WARM:
            started = time.monotonic()
            until = started + seconds
        state, _ = algorithm.update(*algorithm.collect(state))
        done += 1
    return (time.monotonic() - started) / (done - _WARM)


def _elsewhere(subject: Subject, asked: FleetConfig, threads: int, seconds: float) -> float:
    """Returns the time (s) of an update with environments elsewhere."""
    fleet = fitted(asked, subject.settings.ppo)
    each = threads_of(fleet, threads)
    training = subject.training(parts(subject.settings.ppo.num_envs, fleet.world)[0], each)
    plan = subject.plan(fleet.world, each, fleet.kind == PARALLEL)
    if fleet.kind == PARALLEL:
        with together_in(subject.build, plan, fleet.workers) as ranks:
            return _timed(DataParallel(training, ranks), seconds)
    with launched(fleet, setup_of(training, fleet, subject.build, plan), each) as workers:
        return _timed(PpoApart(training, workers, fleet.lag), seconds)


def _memory(
    training: str, phase: str, sizes: Sequence[int], budget: float, meter: Meter, done: int
) -> JsonObject:
    """Returns peaks of memory by size, what was fitted to them, and how many environments fit."""
    if not sizes:
        return {}
    peaks: dict[str, list[float]] = {"simulator": [], "learner": []}
    for what, measured in peaks.items():
        for size in sizes:
            measured.append(_peak(what, training, phase, size))
            done += 1
            meter.update(done)
    memory = Memory(*line(sizes, peaks["simulator"]), *line(sizes, peaks["learner"]))
    table = [
        {
            "devices": count,
            **dict(zip(("data parallel", "apart"), fitting(memory, budget, count), strict=True)),
        }
        for count in DEVICES
    ]
    return {
        "sizes": list(sizes),
        "simulator_gb": [round(peak, 3) for peak in peaks["simulator"]],
        "learner_gb": [round(peak, 3) for peak in peaks["learner"]],
        "S0_gb": round(memory.simulator, 3),
        "s_kb": round(1e6 * memory.simulated, 1),
        "L0_gb": round(memory.learner, 3),
        "l_kb": round(1e6 * memory.learnt, 1),
        "budget_gb": budget,
        "fit": table,
    }


def _peak(what: str, training: str, phase: str, size: int) -> float:
    """Returns the peak of memory (GB) of a process that does nothing else.

    Raises:
      BackendUnavailable: it failed, for want of memory or the like.
    """
    program = [sys.executable, "-m", "alohas2r.benchmarks.fleet_memory"]
    ended = subprocess.run(
        [*program, what, training, phase, str(size)], capture_output=True, text=True
    )
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise BackendUnavailable(f"The {what} of {size} environments could not be measured: {why}")
    return float(ended.stdout.split()[-1])
