from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import student_cases

from alohas2r.cli import app
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning import pipeline
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies.onnx import runtime as onnx_runtime

pytest.importorskip("jax2onnx")

NETWORK = ("ppo.network.policy=8", "ppo.network.value=8")
PPO = ("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1", "evaluations=0")
# Every phase at the smallest scale; insertion follows the shipped pick policy, which does lift.
OVERRIDES: dict[str, tuple[str, ...]] = {
    "pipeline": ("episodes=2", "seconds=0.2"),
    "encoder": student_cases.TINY_ENCODER,
    "pick": (*PPO, *NETWORK, "task.steps=5", "total_steps=16"),
    "insert": (
        *(*PPO, *NETWORK, "task.steps=5", "total_steps=16"),
        *("collect.variants=4", "collect.rounds=1"),
    ),
    "distill": student_cases.TINY,
}
SCRIPT = """
import json, sys
from alohas2r.learning import pipeline
out, overrides = sys.argv[1], json.loads(sys.argv[2])
pipeline.run("quick", out, 1, 1, overrides=overrides, renderer="exact")
"""


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


def done(out: pathlib.Path) -> list[str]:
    path = out / "pipeline.json"
    return list(json.loads(path.read_text())["done"]) if path.exists() else []


def kill(out: pathlib.Path, when: Callable[[], bool]) -> None:
    """Runs the pipeline in a process of its own and kills that at a moment, before its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), json.dumps(OVERRIDES)],
        env={**os.environ, **student_cases.compile_environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not when():
        time.sleep(0.01)
    process.kill()
    complaints = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, complaints


@pytest.mark.long
def test_a_killed_pipeline_goes_on_where_it_was(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    kill(out, lambda: "pick" in done(out))
    before = json.loads((out / "pipeline.json").read_text())["done"]
    encoder = (out / "encoder" / "encoder" / "weights.npz").stat().st_mtime_ns

    result = pipeline.run("quick", out, 1, 1, overrides=OVERRIDES, renderer="exact")
    assert result["finished"]
    assert done(out) == list(pipeline.PHASES)
    # What was done is left alone, its time is kept.
    assert (out / "encoder" / "encoder" / "weights.npz").stat().st_mtime_ns == encoder
    for name in before:
        assert result["phases"][name]["wall_s"] == before[name]["wall_s"]
    for name, phase in result["phases"].items():
        assert phase["wall_s"] > 0
        assert phase.get("published_s") == pipeline.PUBLISHED_S.get(name)
    total = sum(phase["wall_s"] for phase in result["phases"].values())
    assert result["total_s"] == pytest.approx(total, abs=0.1)
    assert result["published_total_s"] == 23.5 * 60
    student = policies_artifact.describe(result["student"])
    assert (
        student["trained"]["parents"]["teacher"] == policies_artifact.load(result["teacher"]).hash
    )
    assert result["evaluation"]["policy"] == student["hash"]
    assert result["evaluation"]["episodes"] == 2
    exported = onnx_runtime.OnnxPolicy.load(result["onnx"])
    assert exported.act(exported.examples()[0]).shape == (14,)

    # Once more: nothing is left to do.
    again = pipeline.run("quick", out, 1, 1, overrides=OVERRIDES, renderer="exact")
    assert again == result
    with pytest.raises(ConfigError, match="seed: 1 -> 2"):
        pipeline.run("quick", out, 2, 1, overrides=OVERRIDES)
    capsys.readouterr()
    assert app.main(["pipeline", "--preset", "quick", "--out", str(out)]) == 1
    assert "was started otherwise" in capsys.readouterr().err
    (out / "pipeline.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        pipeline.run("quick", out, 1, overrides=OVERRIDES)


def test_unknown_presets_and_phases(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        pipeline.run("quik", tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'distill'"):
        pipeline.run("quick", tmp_path, overrides={"distil": []})
    with pytest.raises(ConfigError, match="episods"):
        pipeline.run("quick", tmp_path, overrides={"pipeline": ["episods=3"]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["pretrain-encoder", "distill", "pipeline"])
def test_help_says_what_every_option_is_for(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([command, "--help"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("│") for line in out.splitlines() if "--" in line and "│" in line]
    assert len(rows) >= 4
    for _, row, _ in rows:
        assert len(row.split()) >= 3
    assert app.main(["--help"]) == 0
    assert command in capsys.readouterr().out


@pytest.mark.long
def test_a_pipeline_killed_in_every_phase_gives_the_same_student(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "killed"
    kill(out, (out / "encoder").is_dir)
    assert done(out) == []
    for phase, before in enumerate(pipeline.PHASES[:-1], start=1):
        kill(out, lambda before=before: before in done(out))
        assert done(out) == list(pipeline.PHASES[:phase])
    results = [
        pipeline.run("quick", folder, 1, 1, overrides=OVERRIDES, renderer="exact")
        for folder in (out, tmp_path / "whole")
    ]
    assert all(result["finished"] for result in results)
    for artifact in ("teacher", "student"):
        killed, whole = (policies_artifact.load(result[artifact]).hash for result in results)
        assert killed == whole


@pytest.mark.long
def test_every_phase_at_small_scale_by_the_command_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["pipeline", "--preset", "quick", "--out", str(tmp_path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"]
    assert result["phases"].keys() == set(pipeline.PHASES)
    assert (tmp_path / "policy.onnx").is_file()
