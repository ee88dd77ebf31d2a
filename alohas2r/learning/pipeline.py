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
from typing import Any

from alohas2r import config
from alohas2r.core import assets, files
from alohas2r.core import progress as core_progress
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.evaluation import evaluate
from alohas2r.learning.dagger import train as dagger
from alohas2r.learning.encoder import train as pretrain
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo import train as teacher
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.policies.onnx import export as onnx_export
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.insert import switch_states
from alohas2r.tasks.protocol import EVAL_V1, modified

PHASES = ("encoder", "pick", "switch_states", "insert", "distill", "evaluate", "export")
# Seconds on one RTX 4090, compilation included. Source: recipe, section 6.
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
) -> dict[str, Any]:
    """Runs all phases that are not done yet.

    Args:
      preset: "default" or "quick".
      out: folder of the pipeline.
      seed: of all training.
      threads: of physics and ray caster; 0 for all cores.
      progress: receives reports.
      overrides: "key=value" settings by phase ("encoder", "pick", "insert", "distill"), or "pipeline".
      renderer: see senses.RENDERERS.
      engine: of the training of teacher and student, see `teacher.train` and `dagger.distill`.

    Returns:
      "finished"; "phases": seconds of each phase that is done and, where there is one, the published time; "total_s",
      "published_total_s"; "teacher", "student", "onnx": paths; "evaluation": the student's rates.

    Raises:
      ConfigError: unknown preset or setting, or the folder holds a pipeline with another preset, seed or settings.
      ArtifactError: a folder cannot be written, or its contents are damaged.
    """
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset '{preset}'.{did_you_mean(preset, PRESETS)}")
    changes = {name: list(values) for name, values in (overrides or {}).items()}
    for name in changes:
        if name not in (*PHASES, "pipeline"):
            raise ConfigError(f"Unknown phase '{name}'.{did_you_mean(name, PHASES)}")
    settings = config.override(PRESETS[preset], changes.get("pipeline", []))
    folder = files.make_folder(out)
    plan = {"preset": preset, "seed": seed, "overrides": changes}
    state = _read(folder / NAME, plan)
    phases = _phases(folder, settings, changes, seed, threads, progress, renderer, engine)
    for name in PHASES:
        if name in state["done"]:
            continue
        started = time.monotonic()
        result = phases[name]()
        if not result.get("finished", True):
            return _summary(folder, state, False)
        wall = result.pop("wall_s", None)
        state["done"][name] = {
            "wall_s": round(time.monotonic() - started, 1) if wall is None else wall,
            **result,
        }
        _write(folder / NAME, state)
    return _summary(folder, state, True)


def _phases(
    folder: pathlib.Path,
    settings: PipelineConfig,
    changes: Mapping[str, Sequence[str]],
    seed: int,
    threads: int,
    progress: core_progress.Progress | None,
    renderer: str,
    engine: str,
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns what each phase does; each takes nothing but what earlier phases left on disk."""
    preset = settings.preset
    pick = assets.data_path("params") / "pick" if settings.shipped_pick else folder / "pick/policy"
    student = folder / "distill" / "student"

    def chosen(name: str) -> list[str]:
        return list(changes.get(name, []))

    def started(name: str) -> bool:
        return Checkpoint(folder / name / "checkpoint").exists()

    def common(name: str) -> dict[str, Any]:
        return {
            "preset": preset,
            "out": folder / name,
            "overrides": chosen(name),
            "seed": seed,
            "threads": threads,
            "progress": progress,
            "resume": started(name),
        }

    def trained(result: Mapping[str, Any]) -> dict[str, Any]:
        return {name: result[name] for name in ("finished", "wall_s", "steps")}

    def encoder() -> dict[str, Any]:
        return trained(pretrain.pretrain_encoder(renderer=renderer, **common("encoder")))

    def learn_pick() -> dict[str, Any]:
        return trained(teacher.train("pick", engine=engine, **common("pick")))

    def collect() -> dict[str, Any]:
        insert = config.override(presets.find_preset("insert", preset), chosen("insert"))
        assert isinstance(insert, presets.InsertTrainConfig)
        wanted = dataclasses.replace(insert.collect, physics=insert.task.physics)
        path = files.make_folder(folder / "insert") / "switch_states.npz"
        states = switch_states.ensure(path, pick, wanted, seed, threads, progress)
        return {"switched_rate": states.rate}

    def learn_insert() -> dict[str, Any]:
        return trained(teacher.train("insert", pick=pick, engine=engine, **common("insert")))

    def distill() -> dict[str, Any]:
        return trained(
            dagger.distill(
                teacher=folder / "insert" / "teacher",
                encoder=folder / "encoder" / "encoder",
                renderer=renderer,
                engine=engine,
                **common("distill"),
            )
        )

    def measure() -> dict[str, Any]:
        protocol = modified(EVAL_V1, seconds=settings.seconds)
        found = evaluate.evaluate(
            student,
            settings.episodes,
            settings.evaluation_seed,
            threads,
            progress,
            protocol=protocol,
            renderer=renderer,
        )
        found.pop("table")
        return {"wall_s": found.pop("wall_s"), "evaluation": found}

    def to_onnx() -> dict[str, Any]:
        found = onnx_export.export(student, folder / "policy.onnx")
        return {"onnx": str(found["path"])}

    return {
        "encoder": encoder,
        "pick": learn_pick,
        "switch_states": collect,
        "insert": learn_insert,
        "distill": distill,
        "evaluate": measure,
        "export": to_onnx,
    }


def _read(path: pathlib.Path, plan: dict[str, Any]) -> dict[str, Any]:
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
        f"{name}: {before.get(name)} -> {plan[name]}"
        for name in plan
        if before.get(name) != plan[name]
    ]
    if changed:
        raise ConfigError(
            f"The pipeline in {path.parent} was started otherwise: {'; '.join(changed)}."
        )
    return state


def _write(path: pathlib.Path, state: Mapping[str, Any]) -> None:
    text = json.dumps(state, indent=2, default=float)  # scalars of NumPy
    files.write_atomic(path, text.encode() + b"\n")


def _summary(folder: pathlib.Path, state: Mapping[str, Any], finished: bool) -> dict[str, Any]:
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
