"""Pretraining of the colour encoder: on rendered wrist pictures, or on CIFAR-10.

Rendered pictures need nothing but this package. From them the encoder learns either to tell which objects are in
sight and where they are (supervised), or to recognize a picture among others after a random crop (contrastive).
The result is an artifact of its own: encoder.json, weights.npz (no pickle) and check.npz.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from alohas2r import config
from alohas2r.core.progress import Progress
from alohas2r.core.types import Json, JsonObject
from alohas2r.learning.encoder.cifar10 import read_cifar10
from alohas2r.learning.encoder.config import (
    CHECK_ROWS,
    HELD_STREAM,
    ROUND_STREAM,
    PretrainConfig,
    find_preset,
)
from alohas2r.learning.encoder.learner import LearnerState, Pretrainer
from alohas2r.learning.encoder.pictures import Pictures, Studio
from alohas2r.learning.run import manifest
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Figures, Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.rendering import registry as renderers


class Round(NamedTuple):
    """What a round learns from."""

    pictures: Pictures
    key: jax.Array  # of its shifts and order


class EncoderTraining:
    """A pretraining as an algorithm of the run loop.

    Args:
      settings: the configuration.
      folder: of the run.
      seed: of everything random.
      pictures: the pictures of a round from its key. count: of a round.
      held: pictures that nothing is learnt from.
    """

    label = "pretrain encoder"
    losses = ("train/loss",)
    remedy = "learning_rate"
    artifacts = ("encoder",)

    def __init__(
        self,
        settings: PretrainConfig,
        folder: pathlib.Path,
        seed: int,
        pictures: Callable[[jax.Array], Pictures],
        count: int,
        held: Pictures,
    ) -> None:
        self.settings, self._folder = settings, folder
        self._root = jax.random.PRNGKey(seed)
        self._pictures, self._held = pictures, held
        self._steps_per_round = settings.passes * (count // settings.batch)
        self.iterations = settings.rounds
        self.steps_per_iteration = count * settings.passes
        self._pretrainer = Pretrainer(settings, seed, self._steps_per_round * settings.rounds)

    def init(self) -> LearnerState:
        """Returns the learner before the first round."""
        return self._pretrainer.init()

    def collect(self, state: LearnerState) -> tuple[LearnerState, Round]:
        """Makes the next round's pictures."""
        number = int(state.updates) // self._steps_per_round + 1
        key = jax.random.fold_in(jax.random.fold_in(self._root, ROUND_STREAM), number)
        return state, Round(self._pictures(key), key)

    def update(self, state: LearnerState, data: Round) -> tuple[LearnerState, Figures]:
        """Passes over the pictures, and measures on those that were held back."""
        metrics: dict[str, jax.Array] = {}
        for part in range(self.settings.passes):
            key = jax.random.fold_in(data.key, part)
            state, metrics = self._pretrainer.train(state, data.pictures, key)
        figures = {f"train/{name}": float(value.mean()) for name, value in metrics.items()}
        key = jax.random.fold_in(self._root, HELD_STREAM)
        measured = self._pretrainer.measure(state, self._held, key)
        return state, figures | {f"held/{name}": float(v) for name, v in measured.items()}

    def evaluate(self, state: LearnerState) -> Figures:
        """Returns nothing: each round is measured."""
        del state
        return {}

    def checkpointed(self, state: LearnerState) -> LearnerState:
        """Returns the learner itself."""
        return state

    def restored(self, kept: LearnerState) -> LearnerState:
        """Returns the learner itself."""
        return kept

    def finish(self, state: LearnerState, trained: JsonObject, figures: Figures) -> dict[str, str]:
        """Writes the encoder."""
        trained = trained | {"metrics": {name: round(value, 4) for name, value in figures.items()}}
        encoder = EncoderArtifact(
            self.settings.filters, self.settings.size, state.params["encoder"], trained
        )
        pictures = self._held.rgb[:CHECK_ROWS]
        return {"encoder": str(artifact.save(encoder, self._folder / "encoder", {"rgb": pictures}))}


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
    progress: Progress | None = None,
    renderer: str = "auto",
    archives: Mapping[str, tuple[str, str]] | None = None,
    loggers: Sequence[Logger] = (),
    finish: bool = False,
) -> JsonObject:
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
      finish: with `resume`, learn no further but write what the last checkpoint has learnt.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see `rendering.registry`; "auto": that of the run that is resumed, else what suits the machine.
      archives: see `read_cifar10`.
      loggers: who is told beside the run's folder, see `Logger`.

    Returns:
      "data", "method", and what `Run.train` returns; "encoder" is the artifact's folder, "metrics" are on pictures
      that nothing was learnt from.

    Raises:
      ConfigError: unknown setting, value out of range, or another configuration than the run that is resumed.
      ArtifactError: CIFAR-10 is missing, the folder cannot be written or is in use, or the checkpoint is damaged.
    """
    settings = config.override(find_preset(preset, data, method), overrides)
    folder = pathlib.Path("runs", "encoder") if out is None else pathlib.Path(out)
    options: dict[str, object] = {"preset": preset, "data": data, "method": method, "seed": seed}
    identity: dict[str, Json] = {"seed": seed}
    held_key = jax.random.fold_in(jax.random.PRNGKey(seed), HELD_STREAM)
    if settings.data == "cifar10":
        train, held = read_cifar10(data_dir, archives)
        settings = dataclasses.replace(settings, size=32)
        options["data-dir"] = data_dir
    else:
        if renderer == "auto" and resume:
            renderer = manifest.recorded(folder, "renderer", "auto")
        if renderer == "auto":
            renderer = renderers.default_backend()
        identity["renderer"] = options["renderer"] = renderer
        options["threads"] = threads or None
        train, held = None, None
    with Run(folder, settings, identity, resume, finish) as run:
        if train is not None and held is not None:
            algorithm = EncoderTraining(
                settings, folder, seed, lambda _: train, len(train.label), held
            )
        else:
            shoot = Studio(settings, threads, renderer).shoot
            algorithm = EncoderTraining(
                settings,
                folder,
                seed,
                lambda key: shoot(key, settings.pictures),
                settings.pictures,
                shoot(held_key, settings.held),
            )
        command = manifest.command("pretrain-encoder", options, overrides)
        schedule = Schedule(0, settings.checkpoints, minutes)
        result = run.train(algorithm, command, {}, schedule, progress, loggers)
    return {"data": settings.data, "method": settings.method, **result}
