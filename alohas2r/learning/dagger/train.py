"""Distillation: a student that sees learns by online DAgger from a teacher that knows the exact state.

Each iteration collects a few steps of all environments and learns from them alone, so memory does not grow with
the run. The teacher acts in the first iteration, the student in all others; the label is always the staged
teacher's deterministic action, computed from its own noisy observations. Source: recipe, section 6.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import alohas2r
from alohas2r import config
from alohas2r.core import assets, files
from alohas2r.core import progress as core_progress
from alohas2r.core import stop as core_stop
from alohas2r.core import threads as core_threads
from alohas2r.errors import ArtifactError
from alohas2r.learning.dagger.config import choose_engine, find_preset
from alohas2r.learning.dagger.learner import Distiller, full_precision
from alohas2r.learning.run import log as run_log
from alohas2r.learning.run import manifest
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.policies import artifact
from alohas2r.policies import encoder as encoder_artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import snapshot


def load_teacher(path: str | os.PathLike[str]) -> StagedPolicy:
    """Reads a staged teacher.

    Raises:
      ArtifactError: it cannot be read, or is none.
    """
    return artifact.load(path, StagedPolicy)


@full_precision()
def distill(
    preset: str = "default",
    overrides: Sequence[str] = (),
    teacher: str | os.PathLike[str] | None = None,
    encoder: str | os.PathLike[str] | None = None,
    observation: str = "rgbd",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    progress: core_progress.Progress | None = None,
    renderer: str = "auto",
    engine: str = engines.AUTO,
) -> dict[str, Any]:
    """Distils a teacher into a student and writes the student's artifact to `out`/student.

    Args:
      preset: "default" (full scale) or "quick".
      overrides: "key=value" settings on top of the preset.
      teacher: the staged teacher's folder; the shipped one if None.
      encoder: folder of a pretrained colour encoder; "none" to begin at random and learn it as well, "finetune"
        to go on learning the shipped one; the shipped one, frozen, if None. Of no use without colour.
      observation: "rgbd", "depth", "rgb", or "state" for the teacher's own observation.
      out: folder of the run; runs/student if None.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores.
      resume: continue the run in `out` to the same result as an unbroken run.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see senses.RENDERERS. Part of what makes a run reproducible.
      engine: what simulates and learns: "cpu"; "warp", which draws as well; or "auto": the engine of the run that is
        resumed, else as `choose_engine`. Evaluations on the way run on the engine "cpu" in any case.

    Returns:
      "student": the artifact's folder, or None if stopped early; "engine", "steps", "finished", "wall_s", last
      metrics.

    Raises:
      ConfigError: unknown setting, value out of range, another configuration than the run that is resumed, or an
        engine and a renderer that do not go together.
      BackendUnavailable: the engine or the renderer cannot run here.
      ModelError: the engine's buffers are too small; the message says what to set.
      ArtifactError: an artifact cannot be read, the folder cannot be written, or the checkpoint is damaged.
    """
    from alohas2r.evaluation.episodes import SEEDS, episode_keys
    from alohas2r.evaluation.evaluate import Runner

    settings = find_preset(preset, observation)
    if encoder is not None and os.fspath(encoder) == "finetune":
        encoder, settings = None, dataclasses.replace(settings, finetune=True)
    settings = config.override(settings, overrides)
    folder = files.make_folder(out if out is not None else pathlib.Path("runs") / "student")
    if resume and engine == engines.AUTO:
        engine = _engine_of(folder / manifest.NAME)
    engine, _ = choose_engine(engine, renderer, settings.observation != "state")
    shipped = assets.data_path("params")
    staged = load_teacher(shipped / "teacher" if teacher is None else teacher)
    found = None
    if settings.observation in ("rgb", "rgbd") and (
        encoder is None or os.fspath(encoder) != "none"
    ):
        found = artifact.load(
            shipped / "encoder" if encoder is None else encoder, encoder_artifact.EncoderArtifact
        )
    checkpoint = Checkpoint(folder / "checkpoint")
    parents = {"teacher": staged.hash, "encoder": None if found is None else found.hash}
    others = {"seed": seed, "engine": engine, **parents}
    manifest.begin(folder, settings, others, resume, checkpoint.exists())

    core_threads.keep_memory()
    distiller = Distiller(settings, staged, found, seed, threads, renderer, engine)
    learner = distiller.init()
    state, physics, readout, sense = distiller.begin()
    done, wall_before = 0, 0.0
    if resume and checkpoint.exists():
        whole, extra = checkpoint.load((learner, state, snapshot(physics), readout, sense))
        learner, state, physics, readout, sense = whole
        done, wall_before = int(extra["iterations"]), float(extra["wall_s"])
    per_iteration = settings.samples
    started = time.monotonic()
    figures: dict[str, float] = {}
    runner: Runner | None = None

    def wall() -> float:
        return wall_before + time.monotonic() - started

    def save(iteration: int) -> None:
        extra = {"iterations": iteration, "wall_s": wall(), "version": alohas2r.__version__}
        checkpoint.save((learner, state, snapshot(physics), readout, sense), extra)

    with (
        run_log.RunLog(
            folder, settings.iterations * per_iteration, label="distill", progress=progress
        ) as log,
        core_stop.StopSignal() as stop,
    ):
        if resume:
            log.resume(done * per_iteration)
        log.start()
        first = done + 1
        for iteration in range(first, settings.iterations + 1):
            samples, state, physics, readout, sense, scores = distiller.collect(
                learner, state, physics, readout, sense
            )
            learner, figures = distiller.update(learner, samples)
            del samples  # their memory is the next ones'
            figures |= _measures(scores)
            distiller.env.engine.check(physics)
            if iteration == first:
                core_threads.give_memory_back()  # what compiling left
            done = iteration
            if not np.isfinite(figures["loss/imitation"]):
                raise ArtifactError(
                    f"The loss is not finite in iteration {iteration}; the last checkpoint in {folder} is good:"
                    " start anew with a smaller learning_rate."
                )
            if manifest.due(iteration, settings.iterations, settings.evaluations):
                if runner is None:
                    keys = episode_keys((seed + 1_000_003) % SEEDS, 0, settings.evaluation_episodes)
                    runner = Runner(distiller.spec, None, keys, threads, renderer)
                table = runner.run(weights=distiller.to_policy(learner, {}).weights).table
                figures |= {
                    f"eval/{name}": float(table[name].mean())
                    for name in ("success", "held_at_end", "lifted_both", "switched", "dropped")
                }
            log.write(iteration * per_iteration, figures)
            expired = minutes is not None and (time.monotonic() - started) > 60 * minutes
            last = iteration == settings.iterations
            if (
                stop
                or expired
                or last
                or manifest.due(iteration, settings.iterations, settings.checkpoints)
            ):
                save(iteration)
                core_threads.give_memory_back()
            if stop or expired:
                break

    finished = done == settings.iterations
    result: dict[str, Any] = {
        "observation": settings.observation,
        "engine": engine,
        "steps": done * per_iteration,
        "finished": finished,
        "wall_s": round(wall(), 1),
        "out": str(folder),
        "student": None,
        "metrics": figures,
    }
    if finished:
        command = (
            f"alohas2r distill --preset {preset} --observation {settings.observation} --seed {seed}"
            + f" --engine {engine}"
            + (f" --encoder {os.fspath(encoder)}" if encoder is not None else "")
            + "".join(f" --set {setting}" for setting in overrides)
        )
        trained = manifest.provenance(
            command, settings, seed, result["steps"], result["wall_s"], parents
        )
        trained["engine"] = engine
        rows = distiller.record(learner, state, physics, readout, sense)
        result["student"] = str(
            artifact.save(distiller.to_policy(learner, trained), folder / "student", rows)
        )
    return result


def _engine_of(described: pathlib.Path) -> str:
    """Returns the engine of a run, "auto" if it cannot be read; `plan.begin` says why."""
    try:
        return str(json.loads(described.read_text())["engine"])
    except (OSError, ValueError, TypeError, KeyError):
        return engines.AUTO


def _measures(scores: Sequence[Any]) -> dict[str, float]:
    """Returns the shares of environments in each stage at the last step, and of those that diverged."""
    names = ("grasped", "lifted", "switched", "success")
    last, finite = jax.device_get(
        ([getattr(scores[-1].measures, name) for name in names], [s.finite for s in scores])
    )
    found = {
        f"train/{name}": float(np.asarray(value, np.float32).mean())
        for name, value in zip(names, last, strict=True)
    }
    found["train/unstable"] = float(np.mean([(~row).mean() for row in finite]))
    return found
