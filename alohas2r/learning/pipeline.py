"""The whole way from nothing to a policy file for the robot, phase by phase, each in a folder of its own.

`pipeline.json` says which phases are done and how long they took. Started again in the same folder, the pipeline
goes on where it was stopped or killed: finished phases are left alone, the one under way resumes from its last
checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from alohas2r import config
from alohas2r.core import assets, files
from alohas2r.core import progress as core_progress
from alohas2r.core.lock import FolderLock
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.evaluation import evaluate
from alohas2r.learning.dagger import train as dagger
from alohas2r.learning.encoder import train as pretrain
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo import train as teacher
from alohas2r.learning.run import manifest
from alohas2r.learning.run.loggers.base import Logger, Loggers, RunInfo
from alohas2r.policies.onnx import export as onnx_export
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.insert import switch_states
from alohas2r.tasks.protocol import EVAL_V1, modified

PHASES = ("encoder", "pick", "switch_states", "insert", "distill", "evaluate", "export")
# Seconds on one RTX 4090, compilation included. Source: the published report.
PUBLISHED_S: dict[str, float] = {"pick": 600.0, "insert": 600.0, "distill": 199.0, "total": 1410.0}
NAME = "pipeline.json"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How the phases are run.

    Attributes:
      preset: of the phases.
      shipped_pick: whether insertion follows the shipped pick policy. A pick policy of tiny scale does not lift yet,
        and without a switch there is no insertion to train.
      episodes: of the evaluation. seconds: length of each, if not the protocol's own.
      evaluation_seed: of the evaluation, which nothing was trained on.
    """

    preset: str = "default"
    shipped_pick: bool = False
    episodes: int = 1000
    seconds: float | None = None
    evaluation_seed: int = 7


PRESETS = {
    "default": PipelineConfig(),
    "quick": PipelineConfig("quick", shipped_pick=True, episodes=16),
}


def run(
    preset: str = "default",
    out: str | os.PathLike[str] = "runs/pipeline",
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    overrides: Mapping[str, Sequence[str]] | None = None,
    renderer: str = "auto",
    engine: str = engines.AUTO,
    loggers: Sequence[Logger] = (),
) -> JsonObject:
    """Runs all phases that are not done yet.

    Args:
      preset: "default" or "quick".
      out: folder of the pipeline.
      seed: of all training.
      threads: of physics and ray caster; 0 for all cores.
      progress: receives reports.
      overrides: "key=value" settings by phase ("encoder", "pick", "insert", "distill"), or "pipeline".
      renderer: see `rendering.registry`.
      engine: of the training of teacher and student, see `teacher.train` and `dagger.distill`.
      loggers: who is told each training and, when all is done, the whole; see `Logger`.

    Returns:
      "finished"; "phases": seconds of each phase that is done and, where there is one, the published time; "total_s",
      "published_total_s"; "teacher", "student", "onnx": paths; "evaluation": the student's rates.

    Raises:
      ConfigError: unknown preset or setting, or the folder holds a pipeline that was started otherwise.
      ArtifactError: a folder cannot be written or is in use, or its contents are damaged.
    """
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset '{preset}'.{did_you_mean(preset, PRESETS)}")
    changes = {name: list(values) for name, values in (overrides or {}).items()}
    for name in changes:
        if name not in (*PHASES, "pipeline"):
            raise ConfigError(f"Unknown phase '{name}'.{did_you_mean(name, PHASES)}")
    settings = config.override(PRESETS[preset], changes.get("pipeline", []))
    folder = files.make_folder(out)
    plan: JsonObject = {"preset": preset, "seed": seed, "overrides": changes}
    plan |= {"renderer": renderer, "engine": engine}
    with FolderLock(folder):
        state = _read(folder / NAME, plan)
        _write(folder / NAME, state)
        given = _Given(
            folder, settings, changes, seed, threads, progress, renderer, engine, loggers
        )
        for name in PHASES:
            if name in state["done"]:
                continue
            started = time.monotonic()
            result = _DO[name](given)
            if not result.get("finished", True):
                return _summary(folder, state, False)
            wall = result.pop("wall_s", None)
            wall = round(time.monotonic() - started, 1) if wall is None else wall
            state["done"][name] = {"wall_s": wall, **result}
            _write(folder / NAME, state)
        summary = _summary(folder, state, True)
        with Loggers(loggers) as told:
            told.begin(RunInfo(folder, "pipeline", plan, resumed=True))
            told.finish("finished", _figures(summary))
    return summary


def _figures(summary: JsonObject) -> dict[str, float]:
    """Returns what a pipeline came to as numbers: the seconds of its phases, the student's rates."""
    figures = {f"seconds/{name}": phase["wall_s"] for name, phase in summary["phases"].items()}
    for name, value in summary["evaluation"].items():
        if isinstance(value, dict) and value.get("rate") is not None:
            figures[f"evaluation/{name}"] = value["rate"]
    return figures


@dataclasses.dataclass(frozen=True)
class _Given:
    """What every phase is given; what it takes from earlier phases it finds on disk."""

    folder: pathlib.Path
    settings: PipelineConfig
    changes: Mapping[str, Sequence[str]]
    seed: int
    threads: int
    progress: core_progress.Progress | None
    renderer: str
    engine: str
    loggers: Sequence[Logger]

    @property
    def pick(self) -> pathlib.Path:
        """The pick policy that insertion follows."""
        if self.settings.shipped_pick:
            return assets.data_path("params") / "pick"
        return self.folder / "pick" / "policy"

    @property
    def student(self) -> pathlib.Path:
        """The student."""
        return self.folder / "distill" / "student"

    def chosen(self, phase: str) -> list[str]:
        """Returns the settings of a phase."""
        return list(self.changes.get(phase, []))

    def common(self, phase: str) -> JsonObject:
        """Returns what all trainings take; one that was begun is resumed."""
        return {
            "preset": self.settings.preset,
            "out": self.folder / phase,
            "overrides": self.chosen(phase),
            "seed": self.seed,
            "threads": self.threads,
            "progress": self.progress,
            "loggers": self.loggers,
            "resume": manifest.exists(self.folder / phase),
        }


def _trained(result: JsonObject) -> JsonObject:
    return {name: result[name] for name in ("finished", "wall_s", "steps")}


def _encoder(given: _Given) -> JsonObject:
    common = given.common("encoder")
    return _trained(pretrain.pretrain_encoder(renderer=given.renderer, **common))


def _pick(given: _Given) -> JsonObject:
    return _trained(teacher.train("pick", engine=given.engine, **given.common("pick")))


def _switch_states(given: _Given) -> JsonObject:
    insert = presets.find_preset("insert", given.settings.preset)
    insert = config.override(insert, given.chosen("insert"))
    assert isinstance(insert, presets.FollowingTrainConfig)
    path = files.make_folder(given.folder / "insert") / "switch_states.npz"
    states = switch_states.ensure_for(
        path,
        given.pick,
        insert.collect,
        insert.task,  # pyright: ignore[reportArgumentType]
        insert.env,
        given.seed,
        given.threads,
        given.progress,
    )
    return {"switched_rate": states.rate}


def _insert(given: _Given) -> JsonObject:
    common = given.common("insert")
    return _trained(teacher.train("insert", pick=given.pick, engine=given.engine, **common))


def _distill(given: _Given) -> JsonObject:
    result = dagger.distill(
        teacher=given.folder / "insert" / "teacher",
        encoder=given.folder / "encoder" / "encoder",
        renderer=given.renderer,
        engine=given.engine,
        **given.common("distill"),
    )
    return _trained(result)


def _evaluate(given: _Given) -> JsonObject:
    protocol = modified(EVAL_V1, seconds=given.settings.seconds)
    measured = evaluate.evaluate(
        given.student,
        given.settings.episodes,
        given.settings.evaluation_seed,
        given.threads,
        given.progress,
        protocol=protocol,
        renderer=given.renderer,
    )
    measured.pop("table")
    return {"wall_s": measured.pop("wall_s"), "evaluation": measured}


def _export(given: _Given) -> JsonObject:
    exported = onnx_export.export(given.student, given.folder / "policy.onnx")
    return {"onnx": str(exported["path"])}


_DO: Mapping[str, Callable[[_Given], JsonObject]] = {
    "encoder": _encoder,
    "pick": _pick,
    "switch_states": _switch_states,
    "insert": _insert,
    "distill": _distill,
    "evaluate": _evaluate,
    "export": _export,
}


def _read(path: pathlib.Path, plan: JsonObject) -> JsonObject:
    if not path.exists():
        return {"plan": plan, "done": {}}
    try:
        state = json.loads(path.read_text())
        before, done = state["plan"], state["done"]
        if not isinstance(done, dict):
            raise TypeError("no table of phases")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); start with another --out.") from error
    changed = [
        f"{name}: {before[name]} -> {plan[name]}"
        for name in plan
        if name in before and before[name] != plan[name]
    ]
    if changed:
        raise ConfigError(
            f"The pipeline in {path.parent} was started otherwise: {'; '.join(changed)}."
        )
    return state


def _write(path: pathlib.Path, state: JsonObject) -> None:
    text = json.dumps(state, indent=2, default=float)  # scalars of NumPy
    files.write_atomic(path, text.encode() + b"\n")


def _summary(folder: pathlib.Path, state: JsonObject, finished: bool) -> JsonObject:
    done = state["done"]
    phases: dict[str, dict[str, float]] = {}
    for name in PHASES:
        if name in done:
            phases[name] = {"wall_s": done[name]["wall_s"]}
            if name in PUBLISHED_S:
                phases[name]["published_s"] = PUBLISHED_S[name]
    evaluation = done.get("evaluate", {}).get("evaluation")
    return {
        "finished": finished,
        "phases": phases,
        "total_s": round(sum(phase["wall_s"] for phase in phases.values()), 1),
        "published_total_s": PUBLISHED_S["total"],
        "teacher": str(folder / "insert" / "teacher") if "insert" in done else None,
        "student": str(folder / "distill" / "student") if "distill" in done else None,
        "onnx": done.get("export", {}).get("onnx"),
        "evaluation": evaluation,
    }
