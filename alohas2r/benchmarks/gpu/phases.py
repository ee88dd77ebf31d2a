"""The phases of the GPU benchmark; each runs in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from alohas2r.benchmarks.gpu.job import Job, Scene, repeat, said
from alohas2r.core import progress
from alohas2r.core.types import Array, JsonObject, PyTree
from alohas2r.errors import BackendUnavailable, ModelError

if TYPE_CHECKING:
    import numpy as np

    from alohas2r.learning.ppo.presets import TrainConfig
    from alohas2r.rendering.protocol import Prepared

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


# What is found out about the machine


def device(job: Job) -> None:
    """Notes what there is to compute on.

    Raises:
      BackendUnavailable: no GPU that both JAX and Warp can use, unless all is tiny and on the CPU anyway.
    """
    import jax
    import warp as wp

    from alohas2r.deployment import doctor

    first = jax.devices()[0]
    cuda = wp.get_cuda_device_count()
    (line,) = doctor.gpu()
    driver = line.text.rpartition(",")[2].strip() if first.platform == "gpu" else None
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
        from alohas2r.learning.pipeline import PUBLISHED_S as published
    job.note(
        platform=first.platform,
        name=first.device_kind if first.platform == "gpu" else cpu,
        driver=driver,
        warp=str(wp.get_device()),
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        packages=versions,
        published_s=dict(published),
    )
    if not job.tiny and (first.platform != "gpu" or not cuda):
        raise BackendUnavailable(
            f"No NVIDIA GPU that both JAX and Warp can use (JAX: {first.platform}, Warp: {wp.get_device()}): install"
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


def _same_physics(job: Job) -> JsonObject:
    """Moves both arms alike on both engines, the objects falling freely far above them."""
    import numpy as np

    from alohas2r.envs.actuation import ControlConfig
    from alohas2r.sim import scene
    from alohas2r.sim.engines import registry as engines

    count, steps = job.scale.simulations, job.scale.checked_steps
    loaded = scene.load_physics("insert")
    qpos = np.tile(loaded.home_qpos, (count, 1))
    for arm in loaded.arms:
        qpos[:, arm.object_qpos[2]] = 100.0
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (count, len(loaded.home_ctrl)))
    waves = np.sin(0.3 * np.arange(steps)[:, None, None] + phase)
    targets = loaded.home_ctrl + np.cumsum(ControlConfig().scale * waves, 0)
    targets = np.clip(targets, loaded.ctrl_low, loaded.ctrl_high)
    visited: dict[str, np.ndarray] = {}
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
        visited[name] = np.stack(rows)
    joints = np.concatenate([arm.qpos for arm in loaded.arms])
    ours, theirs = visited["warp"][..., joints], visited["cpu"][..., joints]
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


def _same_pictures(job: Job) -> JsonObject:
    """Draws the same states with both renderers."""
    import numpy as np

    from alohas2r.rendering import registry as renderers

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


def _same_rates(job: Job) -> JsonObject:
    """Evaluates the shipped teacher on both engines."""
    from alohas2r.core import assets
    from alohas2r.evaluation import evaluate
    from alohas2r.sim.engines import registry as engines
    from alohas2r.tasks.protocol import EVAL_V1, modified

    protocol = modified(EVAL_V1, seconds=job.scale.check_s)
    teacher = assets.data_path("params") / "teacher"
    tables = {
        name: evaluate.evaluate(teacher, job.scale.episodes, protocol=protocol, engine=name)
        for name in engines.ENGINES
    }
    ours, theirs = tables["warp"]["success"], tables["cpu"]["success"]
    if ours["low"] > theirs["high"] or theirs["low"] > ours["high"]:
        raise ModelError(
            f"the teacher succeeds in {ours['rate']:.0%} of the episodes, on the CPU in {theirs['rate']:.0%}"
        )
    return {
        "episodes": job.scale.episodes,
        "protocol": protocol.name,
        "success": ours,
        "success_cpu": theirs,
        "evaluation_s": tables["warp"]["wall_s"],
    }


# Throughput


def physics_settings(phase: Scene, environments: int) -> TrainConfig:
    """Returns the default training's configuration with another number of environments.

    Raises:
      ConfigError: a number out of range.
    """
    from alohas2r.learning.ppo import presets

    return presets.find_preset(phase, "default").with_envs(environments)


def _physics(job: Job, phase: Scene) -> None:
    """Steps the training's randomized simulations under random actions."""
    import jax
    import jax.numpy as jnp

    from alohas2r.envs.actuation import ControlConfig
    from alohas2r.evaluation import episodes
    from alohas2r.learning.ppo import envs as ppo_envs

    def measure(environments: int) -> JsonObject:
        started = time.monotonic()
        env = ppo_envs.make_env(physics_settings(phase, environments), 0, engine="warp")
        engine, loaded = env.engine, env.engine.scene
        _, physics, _ = env.reset(episodes.episode_keys(0, 0, environments))
        jax.block_until_ready(physics)
        built_s = time.monotonic() - started
        shape = (job.scale.steps, environments, len(loaded.home_ctrl))
        actions = jax.random.uniform(jax.random.PRNGKey(0), shape, minval=-1.0, maxval=1.0)
        walk = physics.ctrl + ControlConfig().scale * jnp.cumsum(actions, 0)
        targets = jnp.clip(walk, jnp.asarray(loaded.ctrl_low), jnp.asarray(loaded.ctrl_high))

        @jax.jit
        def run(physics: PyTree, targets: jax.Array) -> PyTree:
            return jax.lax.scan(lambda p, ctrl: (engine.step(p, ctrl)[0], None), physics, targets)

        first, took, last = repeat(lambda: run(physics, targets), job.scale.seconds)
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


def _views(count: int) -> tuple[Prepared, np.ndarray, dict[str, np.ndarray]]:
    """Returns the insertion scene as renderers want it, poses [count, nq], and looks."""
    import jax
    import numpy as np

    from alohas2r.rendering import gallery, visual_randomization
    from alohas2r.rendering import protocol as rendering_protocol
    from alohas2r.sim import scene

    loaded = scene.load("insert")
    sample = visual_randomization.sample_looks(jax.random.key(0), count, loaded)
    sample = {name: np.asarray(value) for name, value in sample.items()}
    return rendering_protocol.prepare(loaded), gallery.random_poses(loaded, count), sample


def rendering(job: Job) -> None:
    """Draws both wrist cameras' pictures of random poses and looks, with and without shadows."""
    import jax
    import numpy as np

    from alohas2r.rendering import registry as renderers

    prepared, all_poses, all_looks = _views(max(job.scale.environments))
    cameras = len(prepared.cameras)

    def measure(environments: int, shadows: bool) -> JsonObject:
        poses = jax.device_put(np.asarray(all_poses[:environments], np.float32))
        sample = jax.device_put({name: value[:environments] for name, value in all_looks.items()})
        started = time.monotonic()
        drawer: Array = renderers.make("warp", prepared, shadows=shadows, capacity=environments)
        built_s = time.monotonic() - started
        draw = jax.jit(drawer.draw)
        first, took, _ = repeat(lambda: draw(poses, sample), job.scale.seconds)
        typical = statistics.median(took)
        _, copied, _ = repeat(lambda: jax.tree.map(np.asarray, draw(poses, sample)), 0)
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

    def __call__(self, report: progress.Report) -> None:
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

    def figures(self) -> JsonObject:
        """Returns what is known by now: speed (None until two updates are done) and start-up time."""
        (first, done), *_ = self._marks
        begun = self._before[-1] if self._before else self._began
        known: JsonObject = {
            "steps_per_update": done,
            "updates": len(self._marks) - 1,
            "first_update_s": first - begun,
            "steps_per_s": None,
            "jit_s": None,
        }
        times = [mark[0] for mark in self._marks]
        if len(times) > 1:
            update = statistics.median(b - a for a, b in itertools.pairwise(times))
            known |= {"steps_per_s": done / update, "jit_s": max(first - begun - update, 0.0)}
        if len(self._before) > 1:
            known["before_s"] = self._before[-1] - self._before[0]
        return known

    def finish(self) -> None:
        """Raises if there is no speed.

        Raises:
          ModelError: fewer than two updates were done.
        """
        if len(self._marks) < 2:
            raise ModelError("fewer than two updates fitted into the time")


def _ppo(job: Job, phase: Scene) -> None:
    """Trains a teacher for a few updates, and times an evaluation as training makes it."""
    from alohas2r import config
    from alohas2r.core import assets
    from alohas2r.evaluation import evaluate
    from alohas2r.learning.ppo import presets, train

    changes = job.scale.overrides.get(phase, ())
    default = presets.find_preset(phase, "default")
    stages = default.stages()
    job.note(
        environments=config.override(
            presets.find_preset(phase, job.scale.preset), changes
        ).ppo.num_envs,
        preset={
            "steps": sum(stage.updates for stage in stages) * default.ppo.steps_per_update,
            "compilations": len(stages),
            "evaluations": default.evaluations,
            "evaluation_episodes": default.evaluation_episodes,
            "before": default.collect.rounds
            if isinstance(default, presets.InsertTrainConfig)
            else 0,
        },
    )
    clock = _Clock(job, f"train {phase}")
    result = train.train(
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
        shipped = assets.data_path("params") / ("pick" if phase == "pick" else "teacher")
        table = evaluate.evaluate(shipped, default.evaluation_episodes, engine="warp")
        job.note(evaluation_s=table["wall_s"])


def pretraining(job: Job) -> None:
    """Trains the encoder for a few rounds on pictures that Warp draws."""
    from alohas2r.learning.encoder import config as encoder_config
    from alohas2r.learning.encoder import train as pretrain

    default = encoder_config.find_preset("default")
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
    from alohas2r import config
    from alohas2r.learning.dagger import config as dagger_config
    from alohas2r.learning.dagger import train as dagger

    changes = job.scale.overrides.get("distill", ())
    default = dagger_config.find_preset("default")
    job.note(
        environments=config.override(dagger_config.find_preset(job.scale.preset), changes).num_envs,
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
    from alohas2r.core import assets
    from alohas2r.policies.onnx import export as onnx_export
    from alohas2r.policies.onnx import verify
    from alohas2r.policies.onnx.runtime import OnnxPolicy

    out = job.scratch / "policy.onnx"
    samples = job.scale.verify_samples
    exported = onnx_export.export(assets.data_path("params") / "pick", out, verify_samples=samples)
    job.note(
        bytes=exported["bytes"],
        max_difference=exported["verified"]["max_difference"],
        read_back_difference=OnnxPolicy.load(out).verify(),
        tolerance=verify.TOLERANCE,
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
        job.note(error=said(error))
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


if __name__ == "__main__":
    sys.exit(run_phase(sys.argv[1]))
