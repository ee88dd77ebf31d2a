"""Pretraining of the colour encoder: on rendered wrist pictures, or on CIFAR-10.

Rendered pictures need nothing but this package. From them the encoder learns either to tell which objects are in
sight and where they are (supervised), or to recognize a picture among others after a random crop (contrastive).
The result is an artifact of its own: encoder.json, weights.npz (no pickle) and check.npz.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import alohas2r
from alohas2r import config
from alohas2r.core import files
from alohas2r.core import progress as core_progress
from alohas2r.core import stop as core_stop
from alohas2r.learning.encoder.cifar10 import read_cifar10
from alohas2r.learning.encoder.config import CHECK_ROWS, HELD_STREAM, ROUND_STREAM, find_preset
from alohas2r.learning.encoder.learner import LearnerState, Pretrainer
from alohas2r.learning.encoder.pictures import Pictures, Studio
from alohas2r.learning.run import log as run_log
from alohas2r.learning.run import manifest
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact


def pretrain_encoder(
    preset: str = "default",
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    data: str = "sim",
    data_dir: str | os.PathLike[str] | None = None,
    method: str = "supervised",
    seed: int = 0,
    threads: int = 0,
    resume: bool = False,
    minutes: float | None = None,
    progress: core_progress.Progress | None = None,
    renderer: str = "auto",
    archives: Mapping[str, tuple[str, str]] | None = None,
) -> dict[str, Any]:
    """Trains the colour encoder and writes its artifact to `out`/encoder.

    Args:
      preset: "default" or "quick".
      overrides: "key=value" settings on top of the preset.
      out: folder of the run; runs/encoder if None.
      data: "sim" for rendered wrist pictures, or "cifar10".
      data_dir: folder with an archive of CIFAR-10.
      method: "supervised" or "contrastive".
      seed: of everything random.
      threads: of the renderer; 0 for all cores.
      resume: continue the run in `out` to the same result as an unbroken run.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see senses.RENDERERS.
      archives: see `read_cifar10`.

    Returns:
      "encoder": the artifact's folder, or None if stopped early; "finished", "wall_s", and "metrics" on pictures
      that nothing was learnt from.

    Raises:
      ConfigError: unknown setting, value out of range, or another configuration than the run that is resumed.
      ArtifactError: CIFAR-10 is missing, the folder cannot be written, or the checkpoint is damaged.
    """
    settings = config.override(find_preset(preset, data, method), overrides)
    train, shoot = None, None
    root = jax.random.PRNGKey(seed)
    if settings.data == "cifar10":
        train, held = read_cifar10(data_dir, archives)
        settings = dataclasses.replace(settings, size=32)
    else:
        studio = Studio(settings, threads, renderer)
        shoot = studio.shoot
        held = None
    folder = files.make_folder(out if out is not None else pathlib.Path("runs") / "encoder")
    checkpoint = Checkpoint(folder / "checkpoint")
    manifest.begin(folder, settings, {"seed": seed}, resume, checkpoint.exists())
    if shoot is not None:
        held = shoot(jax.random.fold_in(root, HELD_STREAM), settings.held)
    assert held is not None
    count = settings.pictures if train is None else len(train.label)
    per_round = settings.passes * (count // settings.batch)
    pretrainer = Pretrainer(settings, seed, per_round * settings.rounds)
    learner = pretrainer.init()
    done, wall_before = 0, 0.0
    if resume and checkpoint.exists():
        learner, extra = checkpoint.load(learner)
        done, wall_before = int(extra["rounds"]), float(extra["wall_s"])
    started = time.monotonic()
    figures: dict[str, float] = {}

    def wall() -> float:
        return wall_before + time.monotonic() - started

    total = settings.rounds * count * settings.passes
    with (
        run_log.RunLog(folder, total, label="pretrain encoder", progress=progress) as log,
        core_stop.StopSignal() as stop,
    ):
        if resume:
            log.resume(done * count * settings.passes)
        log.start()
        for number in range(done + 1, settings.rounds + 1):
            key = jax.random.fold_in(jax.random.fold_in(root, ROUND_STREAM), number)
            pictures = train if shoot is None else shoot(key, settings.pictures)
            assert pictures is not None
            found: dict[str, jax.Array] = {}
            for part in range(settings.passes):
                learner, found = pretrainer.train(learner, pictures, jax.random.fold_in(key, part))
            figures = {f"train/{name}": float(value.mean()) for name, value in found.items()}
            figures |= _held_figures(pretrainer, learner, held, root)
            done = number
            log.write(number * count * settings.passes, figures)
            expired = minutes is not None and (time.monotonic() - started) > 60 * minutes
            last = number == settings.rounds
            if (
                stop
                or expired
                or last
                or manifest.due(number, settings.rounds, settings.checkpoints)
            ):
                extra = {"rounds": number, "wall_s": wall(), "version": alohas2r.__version__}
                checkpoint.save(learner, extra)
            if stop or expired:
                break

    finished = done == settings.rounds
    if finished and not figures:
        figures = _held_figures(pretrainer, learner, held, root)
    result: dict[str, Any] = {
        "data": settings.data,
        "method": settings.method,
        "steps": done * count * settings.passes,
        "finished": finished,
        "wall_s": round(wall(), 1),
        "out": str(folder),
        "encoder": None,
        "metrics": figures,
    }
    if finished:
        command = (
            f"alohas2r pretrain-encoder --preset {preset} --data {settings.data}"
            f" --method {settings.method} --seed {seed}"
            + "".join(f" --set {setting}" for setting in overrides)
        )
        trained = manifest.provenance(
            command, settings, seed, result["steps"], result["wall_s"], {}
        ) | {"metrics": {k: round(v, 4) for k, v in figures.items()}}
        found_encoder = EncoderArtifact(
            settings.filters, settings.size, learner.params["encoder"], trained
        )
        result["encoder"] = str(
            artifact.save(found_encoder, folder / "encoder", {"rgb": held.rgb[:CHECK_ROWS]})
        )
    return result


def _held_figures(
    pretrainer: Pretrainer, learner: LearnerState, held: Pictures, root: jax.Array
) -> dict[str, float]:
    found = pretrainer.measure(learner, held, jax.random.fold_in(root, HELD_STREAM))
    return {f"held/{name}": float(value) for name, value in found.items()}
