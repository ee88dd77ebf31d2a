"""Whether a GPU computes the right thing: physics, pictures, evaluations, the exported file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from alohas2r.benchmarks.gpu.job import Job
from alohas2r.benchmarks.gpu.throughput import views
from alohas2r.core.types import JsonObject
from alohas2r.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

JOINT_TOLERANCE = 5e-3  # rad or m; the engines differ by less than 1e-3 where nothing touches
PIXELS_ALIKE = 0.99  # share of pixels; the rest lies on silhouettes


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

    prepared, poses, sample = views(job.scale.states)
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
