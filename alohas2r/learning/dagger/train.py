"""Distillation: a student that sees learns by online DAgger from a teacher that knows the exact state.

Each iteration collects a few steps of all environments and learns from them alone, so memory does not grow with
the run. The teacher acts in the first iteration, the student in all others; the label is always the staged
teacher's deterministic action, computed from its own noisy observations. Source: the published report; Ross et al.,
DAgger (2011).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alohas2r import config
from alohas2r.config import check
from alohas2r.core import assets
from alohas2r.core import threads as core_threads
from alohas2r.core.progress import Progress
from alohas2r.core.types import Json, JsonObject
from alohas2r.errors import ConfigError
from alohas2r.learning.dagger.apart import (
    DistillApart,
    DistillPlan,
    DistillWorld,
    distill_world,
    kept,
)
from alohas2r.learning.dagger.config import DistillConfig, choose_engine, find_preset
from alohas2r.learning.dagger.distiller import make_distiller
from alohas2r.learning.dagger.labels import Teacher
from alohas2r.learning.dagger.learner import full_precision
from alohas2r.learning.fleet.base import PARALLEL, FleetConfig, Setup
from alohas2r.learning.fleet.launch import launched, threads_of
from alohas2r.learning.fleet.worker import parts
from alohas2r.learning.run import manifest
from alohas2r.learning.run.loggers.base import Logger
from alohas2r.learning.run.loop import Run, Schedule
from alohas2r.policies import artifact
from alohas2r.policies.encoder import EncoderArtifact
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import STAGED_PIXELS
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.staged_pixels import StagedPixelsPolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import registry as renderers
from alohas2r.sim.engines import registry as engines

NO_ENCODER, FINETUNE = "none", "finetune"  # instead of an encoder's folder
# Instead of a teacher's folder -> the shipped one's name.
TEACHERS = {"state": "teacher", "depth": "pixels-insert"}


def find_teacher(name: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns a teacher's folder: one that is named, or the shipped one of a kind; None is "state".

    Raises:
      ConfigError: there is none of that kind.
    """
    name = "state" if name is None else os.fspath(name)
    if name not in TEACHERS:
        return pathlib.Path(name)
    folder = assets.data_path("params") / TEACHERS[name]
    if not folder.exists():
        raise ConfigError(
            f"There is no policy from depth for the whole task to learn from ({folder.name} is not among the shipped"
            " ones): choose --teacher state, or the folder of a teacher."
        )
    return folder


def load_teacher(path: str | os.PathLike[str]) -> Teacher:
    """Reads a staged teacher, on the state or from pixels.

    Raises:
      ArtifactError: it cannot be read, or is none.
    """
    seeing = pathlib.Path(path, StagedPolicy.file).is_file()
    if seeing and artifact.describe(path).get("kind") == STAGED_PIXELS:
        return artifact.load(path, StagedPixelsPolicy)
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
    progress: Progress | None = None,
    renderer: str = "auto",
    engine: str = engines.AUTO,
    loggers: Sequence[Logger] = (),
    fleet: FleetConfig | None = None,
    start_from: str | os.PathLike[str] | None = None,
    finish: bool = False,
) -> JsonObject:
    """Distils a teacher into a student and writes the student's artifact to `out`/student.

    Args:
      preset: "default" (full scale) or "quick".
      overrides: "key=value" settings on top of the preset.
      teacher: the staged teacher's folder; or "state", the shipped one, as if None; or "depth", one from pixels.
      encoder: folder of a pretrained colour encoder; "none" to begin at random and learn it as well, "finetune"
        to go on learning the shipped one; the shipped one, frozen, if None. Of no use without colour. With
        `start_from` "finetune" goes on learning that student's, None keeps it as it is, and there is no other.
      observation: "rgbd", "depth", "rgb", "stereo", or "state" for the teacher's own observation.
      out: folder of the run; runs/student if None.
      seed: of everything random.
      threads: of physics and ray caster; 0 for all cores.
      resume: continue the run in `out` to the same result as an unbroken run.
      finish: with `resume`, learn no further but write what the last checkpoint has learnt.
      minutes: stop (resumably) after this time.
      progress: receives reports.
      renderer: see `rendering.registry`; "auto": that of the run that is resumed, else what suits engine and machine.
      engine: what simulates and learns: "cpu"; "warp", which draws as well; or "auto": the engine of the run that is
        resumed, else as `choose_engine`. Evaluations on the way run on the engine "cpu" in any case.
      loggers: who is told beside the run's folder, see `Logger`.
      fleet: where the environments live; with the learner if None.
      start_from: the student that learning goes on with, under whatever settings: an artifact of the same
        observation, network and action scale. What its features are divided by stays.

    Returns:
      "observation", "engine", and what `Run.train` returns; "student" is the artifact's folder.

    Raises:
      ConfigError: unknown setting, value out of range, another configuration than the run that is resumed, an
        engine and a renderer that do not go together, or a teacher that is not there.
      BackendUnavailable: the engine or the renderer cannot run here.
      ModelError: the engine's buffers are too small; the message says what to set.
      ArtifactError: an artifact cannot be read, the folder cannot be written or is in use, or the checkpoint is
        damaged.
    """
    teacher = find_teacher(teacher)
    folder = pathlib.Path("runs", "student") if out is None else pathlib.Path(out)
    sees = observation != "state"
    staged = load_teacher(teacher)
    settings = find_preset(preset, observation, _choose(folder, resume, engine, renderer, sees)[0])
    if isinstance(staged, StagedPixelsPolicy):  # which observes once
        settings = dataclasses.replace(settings, draws=1)
    if encoder is not None and os.fspath(encoder) == FINETUNE:
        settings = dataclasses.replace(settings, finetune=True)
    settings = config.override(settings, overrides)
    engine, renderer = _choose(folder, resume, engine, renderer, settings.sees)
    begun = None if start_from is None else artifact.load(start_from, StudentPolicy)
    if begun is None:
        pretrained, encoder_name = _encoder_of(encoder, settings)
    else:
        pretrained, encoder_name = _encoder_in(begun, encoder)
    parents = {"teacher": staged.hash, "encoder": None if pretrained is None else pretrained.hash}
    if begun is not None:
        parents["start_from"] = begun.hash
    identity: dict[str, Json] = {"seed": seed, "engine": engine, **parents}
    identity["fleet"] = None if fleet is None else fleet.identity
    options: dict[str, object] = {
        "preset": preset,
        "observation": observation,
        "seed": seed,
        "engine": engine,
        "renderer": renderer if settings.sees else None,
        "teacher": manifest.named(teacher),
        "encoder": encoder_name,
        "start_from": None if start_from is None else manifest.named(start_from),
        "threads": threads or None,
    }
    if settings.sees:
        identity["renderer"] = renderer
    if fleet is not None:
        _check_fleet(fleet, settings)
        options |= fleet.options
    command = manifest.command("distill", options, overrides)
    schedule = Schedule(settings.evaluations, settings.checkpoints, minutes, "eval/success")
    further = command, parents, schedule, progress, loggers
    given = _Given(settings, staged, pretrained, seed, threads, renderer, engine, folder)
    with Run(folder, settings, identity, resume, finish) as run:
        core_threads.keep_memory()
        if fleet is None:
            result = run.train(make_distiller(*given, begun=begun), *further)
        else:
            with _apart(given, fleet, begun) as training:
                result = run.train(training, *further)
    return {"observation": settings.observation, "engine": engine, **result}


class _Given(NamedTuple):
    """What `make_distiller` takes."""

    settings: DistillConfig
    teacher: Teacher
    encoder: EncoderArtifact | None
    seed: int
    threads: int
    renderer: str
    engine: str
    folder: pathlib.Path


@contextlib.contextmanager
def _apart(
    given: _Given, fleet: FleetConfig, begun: StudentPolicy | None
) -> Iterator[DistillApart]:
    """Starts a fleet for a distillation, and ends it."""
    whole = parts(given.settings.num_envs, fleet.world)
    distiller = make_distiller(*given, part=whole[0], begun=begun)
    each = threads_of(fleet, given.threads)
    plan = DistillPlan(
        config.to_dict(given.settings),
        kept(given.teacher),
        None if given.encoder is None else kept(given.encoder),
        given.seed,
        each,
        given.renderer,
        given.engine,
        fleet.world,
    )
    setup = Setup(distill_world, plan, len(whole), DistillWorld(distiller).model)
    with launched(fleet, setup, each, float(given.engine == "warp")) as workers:
        yield DistillApart(distiller, workers, fleet.lag)


def _check_fleet(fleet: FleetConfig, settings: DistillConfig) -> None:
    """Raises ConfigError unless a fleet goes with a distillation."""
    check(
        fleet.kind != PARALLEL,
        f"distill has no --fleet {PARALLEL}: choose local or ray",
    )
    fleet.check_worlds(settings.num_envs, "num_envs")


def _choose(
    folder: pathlib.Path, resume: bool, engine: str, renderer: str, sees: bool
) -> tuple[str, str]:
    """Returns engine and renderer: those of the run that is resumed, if none are named."""
    if resume and engine == engines.AUTO:
        engine = manifest.recorded(folder, "engine", engines.AUTO)
    if resume and sees and renderer == "auto":
        renderer = manifest.recorded(folder, "renderer", "auto")
    engine, renderer = choose_engine(engine, renderer, sees)
    if sees and renderer == "auto":
        renderer = renderers.default_backend()
    return engine, renderer


def _encoder_of(
    encoder: str | os.PathLike[str] | None, settings: DistillConfig
) -> tuple[EncoderArtifact | None, str | None]:
    """Returns the pretrained encoder, and how a command names what was chosen; None where there is none."""
    if settings.observation not in ("rgb", "rgbd"):
        return None, None
    name = None if encoder is None else os.fspath(encoder)
    if name == NO_ENCODER:
        return None, NO_ENCODER
    shipped = assets.data_path("params") / "encoder"
    if name == FINETUNE:
        return artifact.load(shipped, EncoderArtifact), FINETUNE
    path = shipped if encoder is None else pathlib.Path(encoder)
    return artifact.load(path, EncoderArtifact), manifest.named(path)


def _encoder_in(
    begun: StudentPolicy, encoder: str | os.PathLike[str] | None
) -> tuple[EncoderArtifact | None, str | None]:
    """Returns the colour encoder of a student that learning goes on with, as `_encoder_of` does."""
    name = None if encoder is None else os.fspath(encoder)
    check(
        name in (None, FINETUNE),
        f"--start-from brings its own encoder: leave --encoder out, or choose {FINETUNE}, not '{name}'",
    )
    if begun.spec.observation not in ("rgb", "rgbd"):
        return None, None
    params = vision_network.tree_of(begun.weights)["encoder"]
    return EncoderArtifact(begun.spec.network.filters, begun.spec.cameras.size, params, {}), name
