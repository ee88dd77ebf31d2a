"""One measurement of all that runs on an NVIDIA GPU, within a fixed time: see docs/gpu.md.

Each phase runs in a process of its own, so that a crash, a hang or memory that is never given back costs one phase.
Time that a phase leaves over goes to the later ones; what does not fit any more is left out and said so. The JSON
file is written anew after every phase.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import alohas2r
from alohas2r import runlog
from alohas2r.config import check
from alohas2r.errors import Alohas2rError, BackendUnavailable, ConfigError, ModelError, did_you_mean

FORMAT = "alohas2r-bench-gpu"
VERSION = 1  # of the JSON file; a change that readers would stumble over makes it 2
NAME = "gpu.json"
BUDGET_S = 520.0  # of a whole run; with the report after it this stays below nine minutes
TINY_BUDGET_S = 3600.0
PACKAGES = (
    *(
        "jax",
        "jaxlib",
        "jax-cuda12-plugin",
        "jax-cuda13-plugin",
        "warp-lang",
        "mujoco",
        "mujoco-mjx",
    ),
    *("brax", "flax", "optax", "numpy", "onnxruntime"),
)
JOINT_TOLERANCE = 5e-3  # rad or m; the engines differ by less than 1e-3 where nothing touches
PIXELS_ALIKE = 0.99  # share of pixels; the rest lies on silhouettes
Scene = Literal["pick", "insert"]
_RESERVE_S = 2.0  # of the budget, for writing
_LOG_TAIL = 3000  # characters of a failed phase's output that are kept


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


class Job:
    """What a phase is given, and what it has found so far.

    Args:
      description: the job as `bench_gpu` wrote it: "phase", "tiny", "seconds", "figures" (file), "scratch" (folder).
    """

    def __init__(self, description: Mapping[str, Any]):
        self.phase: str = description["phase"]
        self.tiny: bool = description["tiny"]
        self.scale = TINY if self.tiny else FULL
        self.scratch = pathlib.Path(description["scratch"])
        self.figures: dict[str, Any] = {}
        self._file = pathlib.Path(description["figures"])
        self._end = time.monotonic() + float(description["seconds"])

    @property
    def left_s(self) -> float:
        """Seconds after which nothing further should be begun."""
        return self._end - time.monotonic()

    def note(self, **figures: Any) -> None:
        """Keeps figures, on disk as well, so that they outlast the process."""
        self.figures |= figures
        runlog.write_atomic(self._file, json.dumps(_plain(self.figures)).encode())

    def each(self, units: Sequence[dict[str, Any]], measure: Callable[..., dict[str, Any]]) -> None:
        """Measures one unit after the other while there is time; a failure leaves the others alone.

        Args:
          units: the arguments of `measure`, which begin the unit's row.
          measure: returns the rest of the row.

        Raises:
          ModelError: a unit has failed; the others are measured.
        """
        rows: list[dict[str, Any]] = []
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
                rows.append({**unit, "error": _said(error)})
                failed.append(f"{', '.join(f'{k} {v}' for k, v in unit.items())}: {_said(error)}")
            longest = max(longest, time.monotonic() - started)
            self.note(rows=rows)
        self.note(rows=rows)
        if failed:
            raise ModelError("; ".join(failed))


def _said(error: BaseException) -> str:
    """Returns an error in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, Alohas2rError)
    return (text if known else f"{type(error).__name__}: {text}")[:500]


def _plain(value: Any) -> Any:
    """Returns a value as JSON takes it: plain numbers, null where one is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _repeat(call: Callable[[], Any], seconds: float) -> tuple[float, list[float], Any]:
    """Calls something whose result is waited for.

    Returns:
      The first call's time (s), in which things are compiled, those of further calls, two at least, and the last
      result.
    """
    import jax

    def timed() -> tuple[float, Any]:
        started = time.monotonic()
        result = jax.block_until_ready(call())
        return time.monotonic() - started, result

    first, result = timed()
    took: list[float] = []
    while len(took) < 2 or sum(took) < seconds:
        last, result = timed()
        took.append(last)
    return first, took, result


# What is found out about the machine


def device(job: Job) -> None:
    """Notes what there is to compute on.

    Raises:
      BackendUnavailable: no GPU that both JAX and Warp can use, unless all is tiny and on the CPU anyway.
    """
    import jax
    import warp as wp

    from alohas2r import doctor

    found = jax.devices()[0]
    cuda = wp.get_cuda_device_count()
    (line,) = doctor.gpu()
    driver = line.text.rpartition(",")[2].strip() if found.platform == "gpu" else None
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        names = [row.partition(":")[2].strip() for row in text.splitlines() if "model name" in row]
        cpu = names[0] if names else cpu
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    published: Mapping[str, float] = {}
    with contextlib.suppress(ImportError):  # without the extra "export"
        from alohas2r.pipeline import PUBLISHED_S as published
    job.note(
        platform=found.platform,
        name=found.device_kind if found.platform == "gpu" else cpu,
        driver=driver,
        warp=str(wp.get_device()),
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        packages=versions,
        published_s=dict(published),
    )
    if not job.tiny and (found.platform != "gpu" or not cuda):
        raise BackendUnavailable(
            f"No NVIDIA GPU that both JAX and Warp can use (JAX: {found.platform}, Warp: {wp.get_device()}): install"
            " 'alohas2r[warp]' and 'jax[cuda13]'; --tiny runs everything small, on the CPU."
        )


# Whether it computes the right thing


def smoke(job: Job) -> None:
    """Compares Warp's physics, pictures and evaluations with those of the CPU.

    Raises:
      ModelError: they differ, or something failed.
    """
    checks = {"engine": _same_physics, "renderer": _same_pictures, "evaluation": _same_rates}
    job.each([{"name": name} for name in checks], lambda name: checks[name](job))


def _same_physics(job: Job) -> dict[str, Any]:
    """Moves both arms alike on both engines, the objects falling freely far above them."""
    import numpy as np

    from alohas2r import engines, scene
    from alohas2r.control import ControlConfig

    count, steps = job.scale.simulations, job.scale.checked_steps
    loaded = scene.load_physics("insert")
    qpos = np.tile(loaded.home_qpos, (count, 1))
    for arm in loaded.arms:
        qpos[:, arm.object_qpos[2]] = 100.0
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (count, len(loaded.home_ctrl)))
    waves = np.sin(0.3 * np.arange(steps)[:, None, None] + phase)
    targets = loaded.home_ctrl + np.cumsum(ControlConfig().scale * waves, 0)
    targets = np.clip(targets, loaded.ctrl_low, loaded.ctrl_high)
    found: dict[str, np.ndarray] = {}
    first_s = 0.0
    for name in engines.ENGINES:
        started = time.monotonic()
        engine = engines.make(name, loaded, count)
        physics, _ = engine.reset(
            None, np.ones(count, bool), qpos, np.tile(loaded.home_ctrl, (count, 1))
        )
        rows = []
        for step, target in enumerate(targets):
            physics, readout = engine.step(physics, target)
            rows.append(np.asarray(readout.qpos))
            if name == "warp" and not step:
                first_s = time.monotonic() - started
        found[name] = np.stack(rows)
    joints = np.concatenate([arm.qpos for arm in loaded.arms])
    ours, theirs = found["warp"][..., joints], found["cpu"][..., joints]
    difference, travel = float(np.abs(ours - theirs).max()), float(np.ptp(theirs, 0).max())
    if not difference <= JOINT_TOLERANCE or not travel > JOINT_TOLERANCE:
        raise ModelError(
            f"joints differ by {difference:.2g} from C MuJoCo's ({JOINT_TOLERANCE:g} is allowed) after moving by"
            f" {travel:.2g}"
        )
    return {
        "jit_s": first_s,
        "difference": difference,
        "tolerance": JOINT_TOLERANCE,
        "travel": travel,
    }


def _same_pictures(job: Job) -> dict[str, Any]:
    """Draws the same states with both renderers."""
    import numpy as np

    from alohas2r import renderers

    prepared, poses, sample = _views(job.scale.states)
    started = time.monotonic()
    ours = renderers.make("warp", prepared).render(poses, sample)
    first_s = time.monotonic() - started
    theirs = renderers.make("raycast", prepared).render(poses, sample)
    depth = float((np.abs(ours.depth - theirs.depth) <= 1e-4).mean())
    colour = float((np.abs(ours.rgb.astype(int) - theirs.rgb) <= 2).all(-1).mean())
    seen = float((theirs.depth > 0).mean())
    if min(depth, colour) < PIXELS_ALIKE or seen < 0.1:
        raise ModelError(
            f"{depth:.4f} of the depths and {colour:.4f} of the colours are the ray caster's; {PIXELS_ALIKE} is"
            " required"
        )
    return {
        "jit_s": first_s,
        "depth_alike": depth,
        "colour_alike": colour,
        "required": PIXELS_ALIKE,
    }


def _same_rates(job: Job) -> dict[str, Any]:
    """Evaluates the shipped teacher on both engines."""
    from alohas2r import engines, evaluate, scene
    from alohas2r.protocol import EVAL_V1, modified

    protocol = modified(EVAL_V1, seconds=job.scale.check_s)
    teacher = scene.data_path("params") / "teacher"
    found = {
        name: evaluate.evaluate(teacher, job.scale.episodes, protocol=protocol, engine=name)
        for name in engines.ENGINES
    }
    ours, theirs = found["warp"]["success"], found["cpu"]["success"]
    if ours["low"] > theirs["high"] or theirs["low"] > ours["high"]:
        raise ModelError(
            f"the teacher succeeds in {ours['rate']:.0%} of the episodes, on the CPU in {theirs['rate']:.0%}"
        )
    return {
        "episodes": job.scale.episodes,
        "protocol": protocol.name,
        "success": ours,
        "success_cpu": theirs,
        "evaluation_s": found["warp"]["wall_s"],
    }


# Throughput


def physics_settings(phase: Scene, environments: int) -> Any:
    """Returns the default training's configuration with another number of environments.

    Raises:
      ConfigError: a number out of range.
    """
    from alohas2r import config, teacher

    changes = [f"ppo.num_envs={environments}"]
    if phase == "insert":
        changes.append(f"collect.variants={environments}")
    return config.override(teacher.find_preset(phase, "default"), changes)


def _physics(job: Job, phase: Scene) -> None:
    """Steps the training's randomized simulations under random actions."""
    import jax
    import jax.numpy as jnp

    from alohas2r import evaluate, teacher
    from alohas2r.control import ControlConfig

    def measure(environments: int) -> dict[str, Any]:
        started = time.monotonic()
        env = teacher.make_env(physics_settings(phase, environments), 0, engine="warp")
        engine, loaded = env.engine, env.engine.scene
        _, physics, _ = env.reset(evaluate.episode_keys(0, 0, environments))
        jax.block_until_ready(physics)
        built_s = time.monotonic() - started
        shape = (job.scale.steps, environments, len(loaded.home_ctrl))
        actions = jax.random.uniform(jax.random.PRNGKey(0), shape, minval=-1.0, maxval=1.0)
        walk = physics.ctrl + ControlConfig().scale * jnp.cumsum(actions, 0)
        targets = jnp.clip(walk, jnp.asarray(loaded.ctrl_low), jnp.asarray(loaded.ctrl_high))

        @jax.jit
        def run(physics: Any, targets: jax.Array) -> Any:
            return jax.lax.scan(lambda p, ctrl: (engine.step(p, ctrl)[0], None), physics, targets)

        first, took, last = _repeat(lambda: run(physics, targets), job.scale.seconds)
        engine.check(last[0])
        typical = statistics.median(took)
        return {
            "control_steps_per_s": job.scale.steps * environments / typical,
            "physics_steps_per_s": job.scale.steps * environments * engine.substeps / typical,
            "built_s": built_s,
            "jit_s": max(first - typical, 0.0),
            "calls": len(took),
        }

    job.each([{"environments": count} for count in job.scale.environments], measure)


def _views(count: int) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the insertion scene as renderers want it, poses [count, nq], and looks."""
    import jax
    import numpy as np

    from alohas2r import bench_render, looks, renderers, scene

    loaded = scene.load("insert")
    sample = looks.sample_looks(jax.random.key(0), count, loaded)
    sample = {name: np.asarray(value) for name, value in sample.items()}
    return renderers.prepare(loaded), bench_render.random_poses(loaded, count), sample


def rendering(job: Job) -> None:
    """Draws both wrist cameras' pictures of random poses and looks, with and without shadows."""
    import jax
    import numpy as np

    from alohas2r import renderers

    prepared, all_poses, all_looks = _views(max(job.scale.environments))
    cameras = len(prepared.cameras)

    def measure(environments: int, shadows: bool) -> dict[str, Any]:
        poses = jax.device_put(np.asarray(all_poses[:environments], np.float32))
        sample = jax.device_put({name: value[:environments] for name, value in all_looks.items()})
        started = time.monotonic()
        drawer: Any = renderers.make("warp", prepared, shadows=shadows, capacity=environments)
        built_s = time.monotonic() - started
        draw = jax.jit(drawer.draw)
        first, took, _ = _repeat(lambda: draw(poses, sample), job.scale.seconds)
        typical = statistics.median(took)
        _, copied, _ = _repeat(lambda: jax.tree.map(np.asarray, draw(poses, sample)), 0)
        return {
            "environments_per_s": environments / typical,
            "pictures_per_s": cameras * environments / typical,
            "environments_per_s_copied": environments / statistics.median(copied),
            "built_s": built_s,
            "jit_s": max(first - typical, 0.0),
            "calls": len(took),
        }

    units = [
        {"environments": count, "shadows": shadows}
        for count in job.scale.environments
        for shadows in (False, True)
    ]
    job.each(units, measure)


# Training


class _Clock:
    """Takes a training's reports, notes its speed, and stops it cleanly once enough updates are timed.

    Args:
      job: where figures go.
      label: of the training's own reports; others come from what it does beforehand.
    """

    def __init__(self, job: Job, label: str):
        self._job, self._label = job, label
        self._began = time.monotonic()
        self._before: list[float] = []  # times of reports about other work
        self._marks: list[tuple[float, int]] = []
        self._stopped = False

    def __call__(self, report: runlog.Report) -> None:
        now = time.monotonic()
        if report.label != self._label:
            self._before.append(now)
            return
        self._marks.append((now, report.done))
        self._job.note(**self.figures())
        enough = len(self._marks) > self._job.scale.updates
        late = self._job.left_s < 0 and len(self._marks) > 1
        if (enough or late) and not self._stopped:
            self._stopped = True
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C: saves a checkpoint and returns

    def figures(self) -> dict[str, Any]:
        """Returns what is known by now: speed (None until two updates are done) and start-up time."""
        (first, done), *_ = self._marks
        begun = self._before[-1] if self._before else self._began
        found: dict[str, Any] = {
            "steps_per_update": done,
            "updates": len(self._marks) - 1,
            "first_update_s": first - begun,
            "steps_per_s": None,
            "jit_s": None,
        }
        times = [mark[0] for mark in self._marks]
        if len(times) > 1:
            update = statistics.median(b - a for a, b in itertools.pairwise(times))
            found |= {"steps_per_s": done / update, "jit_s": max(first - begun - update, 0.0)}
        if len(self._before) > 1:
            found["before_s"] = self._before[-1] - self._before[0]
        return found

    def finish(self) -> None:
        """Raises if there is no speed.

        Raises:
          ModelError: fewer than two updates were done.
        """
        if len(self._marks) < 2:
            raise ModelError("fewer than two updates fitted into the time")


def _ppo(job: Job, phase: Scene) -> None:
    """Trains a teacher for a few updates, and times an evaluation as training makes it."""
    from alohas2r import config, evaluate, scene, teacher

    changes = job.scale.overrides.get(phase, ())
    default = teacher.find_preset(phase, "default")
    stages = default.stages()
    job.note(
        environments=config.override(
            teacher.find_preset(phase, job.scale.preset), changes
        ).ppo.num_envs,
        preset={
            "steps": sum(stage.updates for stage in stages) * default.ppo.steps_per_update,
            "compilations": len(stages),
            "evaluations": default.evaluations,
            "evaluation_episodes": default.evaluation_episodes,
            "before": default.collect.rounds
            if isinstance(default, teacher.InsertTrainConfig)
            else 0,
        },
    )
    clock = _Clock(job, f"train {phase}")
    result = teacher.train(
        phase,
        job.scale.preset,
        job.scratch / phase,
        overrides=changes,
        progress=clock,
        engine="warp",
    )
    job.note(engine=result["engine"])
    clock.finish()
    if job.scale.evaluate and job.left_s > 0:
        shipped = scene.data_path("params") / ("pick" if phase == "pick" else "teacher")
        found = evaluate.evaluate(shipped, default.evaluation_episodes, engine="warp")
        job.note(evaluation_s=found["wall_s"])


def pretraining(job: Job) -> None:
    """Trains the encoder for a few rounds on pictures that Warp draws."""
    from alohas2r import pretrain

    default = pretrain.find_preset("default")
    job.note(
        renderer="warp",
        preset={
            "steps": default.rounds * default.passes * default.pictures,
            "compilations": 1,
        },
    )
    clock = _Clock(job, "pretrain encoder")
    pretrain.pretrain_encoder(
        job.scale.preset,
        job.scale.overrides.get("pretrain", ()),
        job.scratch / "encoder",
        renderer="warp",
        progress=clock,
    )
    clock.finish()


def distillation(job: Job) -> None:
    """Distils the shipped teacher for a few iterations, physics and pictures both on Warp."""
    from alohas2r import config, dagger

    changes = job.scale.overrides.get("distill", ())
    default = dagger.find_preset("default")
    job.note(
        environments=config.override(dagger.find_preset(job.scale.preset), changes).num_envs,
        preset={"steps": default.iterations * default.samples, "compilations": 1},
    )
    clock = _Clock(job, "distill")
    result = dagger.distill(
        preset=job.scale.preset,
        overrides=changes,
        out=job.scratch / "distill",
        engine="warp",
        renderer="warp",
        progress=clock,
    )
    job.note(engine=result["engine"], renderer="warp")
    clock.finish()


def exporting(job: Job) -> None:
    """Exports the shipped pick policy; the file is compared with JAX on this device, and read back."""
    from alohas2r import export, scene
    from alohas2r.onnx_policy import OnnxPolicy

    out = job.scratch / "policy.onnx"
    samples = job.scale.verify_samples
    found = export.export(scene.data_path("params") / "pick", out, verify_samples=samples)
    job.note(
        bytes=found["bytes"],
        max_difference=found["verified"]["max_difference"],
        read_back_difference=OnnxPolicy.load(out).verify(),
        tolerance=export.TOLERANCE,
    )


# Phases


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
      name: as in the JSON file.
      weight: share of the budget, relative to the phases that are left.
      least_s: the phase is left out if its share is smaller.
      command: the process, which gets the path of its job as last argument; this module if empty.
    """

    name: str
    weight: float
    least_s: float
    command: tuple[str, ...] = ()


PHASES = (
    Phase("device", 60, 3),
    Phase("smoke", 120, 20),
    Phase("physics_pick", 55, 15),
    Phase("physics_insert", 55, 15),
    Phase("rendering", 50, 15),
    Phase("train_pick", 55, 20),
    Phase("train_insert", 65, 25),
    Phase("pretrain", 35, 15),
    Phase("distill", 55, 20),
    Phase("export", 20, 10),
)
_RUN: dict[str, Callable[[Job], None]] = {
    "device": device,
    "smoke": smoke,
    "physics_pick": lambda job: _physics(job, "pick"),
    "physics_insert": lambda job: _physics(job, "insert"),
    "rendering": rendering,
    "train_pick": lambda job: _ppo(job, "pick"),
    "train_insert": lambda job: _ppo(job, "insert"),
    "pretrain": pretraining,
    "distill": distillation,
    "export": exporting,
}


def run_phase(job_file: str | os.PathLike[str]) -> int:
    """Runs one phase, in a process of its own.

    Args:
      job_file: what `bench_gpu` wrote; see `Job`.

    Returns:
      The exit code.
    """
    description = json.loads(pathlib.Path(job_file).read_text())
    # Whoever waits for this process may be killed; nothing is to hold the GPU for ever.
    signal.setitimer(signal.ITIMER_REAL, description["limit_s"] + 5)
    job = Job(description)
    try:
        before = _built_kernels()
        try:
            _RUN[job.phase](job)
        finally:
            job.note(warp_kernels_built=_built_kernels() - before)
    except Exception as error:
        traceback.print_exc()
        job.note(error=_said(error))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _built_kernels() -> int:
    """Returns how many compiled modules lie in Warp's cache; the first run on a machine builds them."""
    import warp as wp

    wp.init()
    with contextlib.suppress(OSError, TypeError):
        return len(list(pathlib.Path(wp.config.kernel_cache_dir).iterdir()))  # pyright: ignore[reportArgumentType]
    return 0


def bench_gpu(
    out: str | os.PathLike[str] = "runs/gpu",
    tiny: bool = False,
    budget_s: float | None = None,
    only: Sequence[str] = (),
    progress: runlog.Progress | None = None,
    phases: Sequence[Phase] = PHASES,
) -> dict[str, Any]:
    """Runs all phases and writes `out`/gpu.json, anew after each.

    Args:
      out: folder of the JSON file.
      tiny: whether to run everything at a tiny size, on the CPU: to see that it works, not how fast it is.
      budget_s: time that all phases together may take (s); BUDGET_S, or TINY_BUDGET_S, if None.
      only: names of phases; all if empty. The device is always looked at.
      progress: receives a report before each phase.
      phases: the phases, the first of which says what device there is.

    Returns:
      What the file holds: "format", "version", "alohas2r", "date", "tiny", "budget_s", "wall_s", "finished" (False
      while phases are left), "device", "packages", "phases" (name -> "status", "wall_s", "limit_s", "figures", and
      "reason", "error" or "log"), "projection" (see `project`), "errors" ("phase" and "error" of each that failed).
      The status is "ok", "failed", "timeout" (killed; what it had found is kept) or "skipped".

    Raises:
      ConfigError: an unknown phase, or no time. ArtifactError: the folder cannot be written.
    """
    names = [phase.name for phase in phases]
    for name in only:
        if name not in names:
            raise ConfigError(f"Unknown phase '{name}'.{did_you_mean(name, names)}")
    budget_s = (TINY_BUDGET_S if tiny else BUDGET_S) if budget_s is None else budget_s
    check(0 < budget_s <= 86400, f"budget = {budget_s} must lie in (0, 86400] s")
    started = time.monotonic()
    path = runlog.make_folder(out) / NAME
    chosen = [phase for phase in phases if not only or phase.name in (names[0], *only)]
    result: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "alohas2r": alohas2r.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tiny": tiny,
        "budget_s": budget_s,
        "wall_s": 0.0,
        "finished": False,
        "device": {},
        "packages": {},
        "phases": {},
        "projection": {},
        "errors": [],
    }

    def write() -> None:
        result["wall_s"] = round(time.monotonic() - started, 1)
        runlog.write_atomic(path, json.dumps(result, indent=1).encode() + b"\n")

    write()
    with (
        tempfile.TemporaryDirectory(prefix="alohas2r-bench-") as scratch,
        runlog.StopSignal() as stop,
    ):
        for index, phase in enumerate(chosen):
            if progress is not None:
                what = f"phases: {phase.name}"
                progress(runlog.Report("bench-gpu", index, len(chosen), what, 0.0, None, {}))
            left = budget_s - _RESERVE_S - (time.monotonic() - started)
            share = left * phase.weight / sum(other.weight for other in chosen[index:])
            reason = ""
            if stop:
                reason = "stopped"
            elif index and result["phases"][chosen[0].name]["status"] == "failed":
                reason = "no device"
            elif share < phase.least_s:
                reason = "out of time"
            if reason:
                entry: dict[str, Any] = {"status": "skipped", "reason": reason, "wall_s": 0.0}
            else:
                entry = _run(
                    phase, tiny, share, min(left, 1.5 * share), pathlib.Path(scratch), stop
                )
            if not index:
                result["device"] = dict(entry.get("figures", {}))
                result["packages"] = result["device"].pop("packages", {})
            result["phases"][phase.name] = entry
            if "error" in entry:
                result["errors"].append({"phase": phase.name, "error": entry["error"]})
            result["projection"] = project(result["phases"])
            result["finished"] = index == len(chosen) - 1 and not stop
            write()
    if progress is not None:
        progress(runlog.Report("bench-gpu", len(chosen), len(chosen), "phases", 0.0, None, {}))
    return result


def _run(
    phase: Phase,
    tiny: bool,
    seconds: float,
    limit_s: float,
    scratch: pathlib.Path,
    stop: runlog.StopSignal,
) -> dict[str, Any]:
    """Runs a phase in a process of its own, which is killed after `limit_s`, and returns its entry."""
    job, figures_file = scratch / f"{phase.name}.job.json", scratch / f"{phase.name}.json"
    log_file = scratch / f"{phase.name}.log"
    description = {
        "phase": phase.name,
        "tiny": tiny,
        "seconds": seconds,
        "limit_s": limit_s,
        "figures": str(figures_file),
        "scratch": str(scratch),
    }
    job.write_text(json.dumps(description))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if tiny:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:  # or what is compiled in one run would be missing in the figures of the next
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = phase.command or (sys.executable, "-m", "alohas2r.bench_gpu")
    started = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, str(job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - started < limit_s and not stop:
                time.sleep(0.05)
        finally:
            ended = process.poll() is not None
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    figures: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        figures = json.loads(figures_file.read_text())
    error = figures.pop("error", None)
    entry: dict[str, Any] = {
        "status": "ok",
        "wall_s": round(time.monotonic() - started, 1),
        "share_s": round(seconds, 1),
        "limit_s": round(limit_s, 1),
        "figures": figures,
    }
    if ended and code == 0 and error is None:
        return entry
    if ended:
        entry["status"] = "failed"
        entry["error"] = error or f"the process ended with exit status {code}"
    elif stop:
        entry |= {"status": "skipped", "reason": "stopped"}
    else:
        entry["status"] = "timeout"
        entry["error"] = f"killed after {limit_s:.0f} s"
    entry["log"] = log_file.read_text(errors="replace")[-_LOG_TAIL:]
    return entry


def project(phases: Mapping[str, Any]) -> dict[str, Any]:
    """Projects how long the default presets take, from what was measured.

    A stage takes its preset's steps at the measured speed, its start-up (building, compiling, reading) as often as
    the preset starts environments anew, and its evaluations. Collecting switch states is on the CPU in any case.

    Args:
      phases: as in the JSON file.

    Returns:
      "stages": name -> "steps", "steps_per_s", "start_s" (of all starts), "evaluation_s" (of all evaluations; None
      where they were not measured or are not part of the measurement), "total_s", "published_s"; "kernels_s":
      building Warp's kernels, once on a machine, as the checks met it (0 if they were built already, None without
      checks); "total_s" of all, None if a stage is missing; "missing": those stages; "published_total_s".
    """

    def figures(name: str) -> dict[str, Any]:
        return phases.get(name, {}).get("figures", {})

    published = figures("device").get("published_s", {})
    stages: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    sources = {
        "encoder": "pretrain",
        "pick": "train_pick",
        "insert": "train_insert",
        "distill": "distill",
    }
    for stage, name in sources.items():
        found = figures(name)
        if not found.get("steps_per_s") or found.get("jit_s") is None:
            missing.append(stage)
            continue
        preset = found["preset"]
        if preset.get("before") and found.get("before_s") is not None:
            stages["switch_states"] = {"total_s": preset["before"] * found["before_s"]}
        start = preset["compilations"] * found["jit_s"]
        evaluations = found.get("evaluation_s")
        if evaluations is not None:
            evaluations *= preset["evaluations"]
        stages[stage] = {
            "steps": preset["steps"],
            "steps_per_s": found["steps_per_s"],
            "start_s": start,
            "evaluation_s": evaluations,
            "total_s": preset["steps"] / found["steps_per_s"] + start + (evaluations or 0.0),
            "published_s": published.get(stage),
        }
    kernels = 0.0
    checks = figures("smoke").get("rows", [])
    if figures("smoke").get("warp_kernels_built") != 0:
        kernels = sum(row.get("jit_s", 0.0) for row in checks)
    return {
        "stages": stages,
        "kernels_s": kernels if checks else None,
        "total_s": None
        if missing
        else sum(stage["total_s"] for stage in stages.values()) + kernels,
        "missing": missing,
        "published_total_s": published.get("total"),
    }


if __name__ == "__main__":
    sys.exit(run_phase(sys.argv[1]))
