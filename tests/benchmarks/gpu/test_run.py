"""The GPU benchmark: how it keeps its time, what it survives, and what the report makes of its figures."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from alohas2r.benchmarks.gpu import job as gpu_job
from alohas2r.benchmarks.gpu import phases as gpu_phases
from alohas2r.benchmarks.gpu import projection, report, throughput, training
from alohas2r.benchmarks.gpu import run as gpu_run
from alohas2r.benchmarks.gpu.job import Job
from alohas2r.benchmarks.gpu.phases import Phase
from alohas2r.cli import app
from alohas2r.core import progress
from alohas2r.core import stop as core_stop
from alohas2r.errors import ConfigError, ModelError
from alohas2r.learning.run import log as run_log

ROOT = pathlib.Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests" / "data" / "bench_gpu_tiny.json"  # written by benchmarks/gpu.sh --tiny


def phase(name: str, code: str, weight: float = 1.0, least_s: float = 0.1) -> Phase:
    """Returns a phase that runs some lines of Python; `job` is its job, `found(...)` writes figures."""
    start = """
        import json, os, pathlib, signal, sys, time
        job = json.loads(pathlib.Path(sys.argv[1]).read_text())
        def found(**figures):
            pathlib.Path(job["figures"]).write_text(json.dumps(figures))
    """
    lines = textwrap.dedent(start) + textwrap.dedent(code)
    return Phase(name, weight, least_s, (sys.executable, "-c", lines))


def run(tmp_path: pathlib.Path, budget_s: float, *phases: Phase, **options: Any) -> dict[str, Any]:
    result = gpu_run.bench_gpu(tmp_path, budget_s=budget_s, phases=phases, **options)
    assert json.loads((tmp_path / gpu_job.NAME).read_text()) == result
    return result


DEVICE = phase("device", "found(platform='cpu', packages={'jax': '1.2.3'})")


@pytest.mark.alone
def test_a_phase_that_hangs_is_killed_and_keeps_what_it_found(tmp_path: pathlib.Path) -> None:
    hang = """
        found(pid=os.getpid(), rows=[1, 2])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("about to hang", flush=True)
        time.sleep(600)
    """
    started = time.monotonic()
    result = run(tmp_path, 10, DEVICE, phase("hang", hang), phase("after", "found(good=True)"))
    assert time.monotonic() - started < 10
    assert result["wall_s"] < 10
    entry = result["phases"]["hang"]
    assert entry["status"] == "timeout"
    assert entry["wall_s"] >= entry["limit_s"] > entry["share_s"]
    assert entry["error"] == f"killed after {entry['limit_s']:.0f} s"
    assert entry["figures"]["rows"] == [1, 2]
    assert "about to hang" in entry["log"]
    with pytest.raises(ProcessLookupError):
        os.kill(entry["figures"]["pid"], 0)
    assert result["phases"]["after"]["status"] == "ok"
    assert result["phases"]["after"]["figures"] == {"good": True}
    assert result["errors"] == [{"phase": "hang", "error": entry["error"]}]
    assert result["finished"]


def test_phases_that_fail_cost_none_of_the_others(tmp_path: pathlib.Path) -> None:
    result = run(
        tmp_path,
        60,
        DEVICE,
        phase("exits", "print('what went before'); sys.exit(3)"),
        phase("crashes", "found(rows=[1]); os.abort()"),
        phase("says", "found(rows=[2], error='no such option'); sys.exit(1)"),
        Phase("nonsense", 5, 0.1),  # through this module's own process
        phase("good", "found(rows=[3])"),
    )
    phases = result["phases"]
    assert {name: entry["status"] for name, entry in phases.items()} == {
        "device": "ok",
        "exits": "failed",
        "crashes": "failed",
        "says": "failed",
        "nonsense": "failed",
        "good": "ok",
    }
    assert "exit status 3" in phases["exits"]["error"]
    assert "what went before" in phases["exits"]["log"]
    assert phases["crashes"]["figures"] == {"rows": [1]}
    assert phases["says"]["error"] == "no such option"
    assert phases["says"]["figures"] == {"rows": [2]}
    assert phases["nonsense"]["error"] == "KeyError: 'nonsense'"
    assert [error["phase"] for error in result["errors"]] == [
        "exits",
        "crashes",
        "says",
        "nonsense",
    ]
    assert result["device"] == {"platform": "cpu"}
    assert result["packages"] == {"jax": "1.2.3"}


@pytest.mark.alone
def test_time_left_over_goes_to_later_phases_and_none_is_begun_without(
    tmp_path: pathlib.Path,
) -> None:
    result = run(
        tmp_path,
        14,
        DEVICE,
        phase("short", "", weight=8),
        phase("large", "time.sleep(60)", weight=1),
        phase("small", "", weight=1, least_s=5.0),
        phase("last", "found(seconds=job['seconds'])", weight=1),
    )
    phases = result["phases"]
    # A twelfth of the budget was its share at first.
    assert phases["large"]["share_s"] > 2.0
    assert phases["large"]["status"] == "timeout"
    assert phases["small"] == {"status": "skipped", "reason": "out of time", "wall_s": 0.0}
    assert phases["last"]["status"] == "ok"
    assert result["wall_s"] < 14
    assert [error["phase"] for error in result["errors"]] == ["large"]
    assert phases["last"]["figures"]["seconds"] == pytest.approx(
        phases["last"]["share_s"], abs=0.06
    )


def test_a_kill_loses_only_the_phase_in_progress(tmp_path: pathlib.Path) -> None:
    look = f"""
        before = json.loads(pathlib.Path({str(tmp_path / gpu_job.NAME)!r}).read_text())
        found(before={{name: entry["figures"] for name, entry in before["phases"].items()}},
              finished=before["finished"])
    """
    result = run(tmp_path, 20, DEVICE, phase("first", "found(rows=[1])"), phase("look", look))
    seen = result["phases"]["look"]["figures"]
    assert seen["before"]["first"] == {"rows": [1]}
    assert seen["finished"] is False
    # Nothing of an earlier run in the same folder stays.
    (tmp_path / gpu_job.NAME).write_text("{}")
    interrupt = phase("first", "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)")
    again = run(tmp_path, 20, DEVICE, interrupt, phase("later", ""))
    for name in ("first", "later"):
        assert again["phases"][name]["status"] == "skipped"
        assert again["phases"][name]["reason"] == "stopped"
    assert not again["finished"]
    assert again["wall_s"] < 20
    assert again["errors"] == []


def test_without_a_device_nothing_is_measured(tmp_path: pathlib.Path) -> None:
    lacking = phase("device", "found(platform='cpu', error='no GPU here'); sys.exit(1)")
    result = run(tmp_path, 20, lacking, phase("first", "found(rows=[1])"))
    assert result["phases"]["first"]["reason"] == "no device"
    assert result["errors"] == [{"phase": "device", "error": "no GPU here"}]
    some = run(tmp_path, 20, DEVICE, phase("a", ""), phase("b", "found(rows=[2])"), only=["b"])
    assert list(some["phases"]) == ["device", "b"]
    assert some["finished"]
    with pytest.raises(ConfigError, match="budget"):
        gpu_run.bench_gpu(tmp_path, budget_s=0, phases=(DEVICE,))
    with pytest.raises(ConfigError, match=r"'devise'.*Did you mean 'device'"):
        gpu_run.bench_gpu(tmp_path, only=["devise"], phases=(DEVICE,))


def make_job(tmp_path: pathlib.Path, seconds: float) -> Job:
    figures = str(tmp_path / "figures.json")
    description = {"phase": "x", "tiny": True, "seconds": seconds, "figures": figures}
    return Job({**description, "scratch": str(tmp_path)})


def test_a_unit_that_fails_or_finds_no_time_leaves_the_others_alone(
    tmp_path: pathlib.Path,
) -> None:
    job = make_job(tmp_path, 60)

    def measure(size: int) -> dict[str, Any]:
        if size == 2:
            raise MemoryError("out of\nmemory")
        return {"speed": 10.0 * size, "odd": float("nan")}

    with pytest.raises(ModelError, match="size 2: MemoryError: out of memory"):
        job.each([{"size": size} for size in (1, 2, 3)], measure)
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert rows == [
        {"size": 1, "speed": 10.0, "odd": None},
        {"size": 2, "error": "MemoryError: out of memory"},
        {"size": 3, "speed": 30.0, "odd": None},
    ]
    late = make_job(tmp_path, 0)
    late.each([{"size": 1}, {"size": 3}], measure)
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert rows[0]["speed"] == 10.0  # the first is always measured
    assert rows[1] == {"size": 3, "skipped": "out of time"}


@pytest.mark.alone
def test_a_training_is_timed_and_then_stopped_as_by_ctrl_c(tmp_path: pathlib.Path) -> None:
    job = make_job(tmp_path, 60)
    clock = training.Clock(job, "train")
    other = progress.Meter("collect", 10, clock)
    with pytest.raises(ModelError, match="fewer than two"):
        clock.finish()
    other.update(5)
    time.sleep(0.1)
    other.update(10)
    began, updates = time.monotonic(), 0
    with (
        run_log.RunLog(
            tmp_path / "run", 800, label="train", progress=clock, tensorboard=False
        ) as log,
        core_stop.StopSignal() as stop,
    ):
        for updates in range(1, 9):
            time.sleep(0.5 if updates == 1 else 0.1)
            log.write(100 * updates, {"loss": 1.0})
            log.show()
            if stop:
                break
    assert updates == job.scale.updates + 1
    clock.finish()
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["updates"] == job.scale.updates
    assert found["steps_per_update"] == 100
    # Sleeping takes a little longer than it was asked to.
    assert 50 < found["steps_per_s"] <= 1000
    assert 0.5 <= found["first_update_s"] <= time.monotonic() - began
    assert found["jit_s"] == pytest.approx(found["first_update_s"] - 100 / found["steps_per_s"])
    assert 0.1 <= found["before_s"] < 2


def test_the_full_size_is_a_valid_one_and_its_time_is_below_nine_minutes() -> None:
    pytest.importorskip("brax")
    from alohas2r import config
    from alohas2r.learning.dagger import config as dagger_config
    from alohas2r.learning.encoder import config as encoder_config
    from alohas2r.learning.ppo import presets as ppo_presets

    assert gpu_job.BUDGET_S <= 540 - 15  # the report comes after it
    for scale in (gpu_job.FULL, gpu_job.TINY):
        presets = {
            "pick": ppo_presets.find_preset("pick", scale.preset),
            "insert": ppo_presets.find_preset("insert", scale.preset),
            "pretrain": encoder_config.find_preset(scale.preset),
            "distill": dagger_config.find_preset(scale.preset),
        }
        assert set(scale.overrides) <= set(presets)
        for name, preset in presets.items():
            config.override(preset, scale.overrides.get(name, ()))
    for count in gpu_job.FULL.environments:
        for name in ("pick", "insert"):
            throughput.physics_settings(name, count)
    assert {phase.name for phase in gpu_phases.PHASES} == set(report.LABELS)


def test_the_projection_multiplies_what_was_measured() -> None:
    def trained(steps: int, speed: float | None, **more: Any) -> dict[str, Any]:
        preset = {"steps": steps, "compilations": 2, **more.pop("preset", {})}
        figures = {"steps_per_s": speed, "jit_s": 5.0, "preset": preset, **more}
        return {"status": "ok", "figures": figures}

    phases = {
        "device": {"figures": {"published_s": {"pick": 600.0, "total": 1410.0}}},
        "smoke": {"figures": {"warp_kernels_built": 9, "rows": [{"jit_s": 30.0}, {"jit_s": 20.0}]}},
        "pretrain": trained(1000, 100.0),
        "train_pick": trained(2000, 100.0, evaluation_s=3.0, preset={"evaluations": 10}),
        "train_insert": trained(500, 100.0, before_s=4.0, preset={"evaluations": 8, "before": 8}),
        "distill": trained(600, 100.0),
    }
    found = projection.project(phases)
    assert found["stages"]["encoder"]["total_s"] == 10 + 10
    assert found["stages"]["pick"]["total_s"] == 20 + 10 + 30
    assert found["stages"]["pick"]["published_s"] == 600
    assert found["stages"]["switch_states"]["total_s"] == 32
    assert found["stages"]["insert"]["total_s"] == 5 + 10
    assert found["stages"]["insert"]["evaluation_s"] is None
    assert found["total_s"] == 20 + 60 + 32 + 15 + 16 + 50
    assert found["missing"] == []
    assert found["published_total_s"] == 1410
    phases["distill"] = {"status": "failed", "figures": {"preset": {"steps": 600}}}
    phases["smoke"]["figures"]["warp_kernels_built"] = 0  # they lay in the cache
    found = projection.project(phases)
    assert found["missing"] == ["distill"]
    assert found["total_s"] is None
    assert found["kernels_s"] == 0
    assert projection.project({})["missing"] == ["encoder", "pick", "insert", "distill"]


# The report


def test_the_report_has_every_figure_and_calls_them_no_gpu_figures(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = json.loads(RECORDED.read_text())
    assert app.main(["bench-report", str(RECORDED), "--out", str(tmp_path / "new")]) == 0
    captured = capsys.readouterr()
    text = captured.out
    assert "No GPU figures" in text
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert len(titles) == 6
    assert all("no GPU figures" in title for title in titles)
    assert (tmp_path / "new" / report.MARKDOWN).read_text().strip() == text.strip()
    assert captured.err.count("\n") == 1
    for name in (report.THROUGHPUT, report.WALL):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    for label in report.LABELS.values():
        assert f"| {label} |" in text
    assert recorded["device"]["name"] in text
    for name, key in (
        ("physics_pick", "control_steps_per_s"),
        ("physics_insert", "control_steps_per_s"),
        ("rendering", "environments_per_s"),
    ):
        rows = recorded["phases"][name]["figures"]["rows"]
        assert len(rows) >= 2
        for row in rows:
            assert f" {report._number(row[key])} |" in text
    for name in ("train_pick", "train_insert", "pretrain"):
        speed = recorded["phases"][name]["figures"]["steps_per_s"]
        assert f" {report._number(speed)} " in text
    assert "1,410" in text  # the published total
    # The same figures, had they come from a GPU.
    recorded["device"]["platform"], recorded["tiny"] = "gpu", False
    (tmp_path / "gpu.json").write_text(json.dumps(recorded))
    text = report.bench_report(tmp_path / "gpu.json")["markdown"]
    assert "no gpu figures" not in text.lower()


def test_missing_phases_are_called_not_measured(tmp_path: pathlib.Path) -> None:
    recorded = json.loads(RECORDED.read_text())
    whole = report.markdown(recorded)
    for name in recorded["phases"]:
        few = {**recorded, "phases": {k: v for k, v in recorded["phases"].items() if k != name}}
        few["projection"] = projection.project(few["phases"])
        text = report.markdown(few)
        assert f"| {report.LABELS[name]} | not measured |" in text
        assert text.count("not measured") > whole.count("not measured")
    bare = {**recorded, "device": {}, "phases": {}, "projection": {}, "finished": False}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(bare))
    found = report.bench_report(path, tmp_path)
    assert "broken off" in found["markdown"]
    assert len(found["files"]) == 3
    # A part of a phase: a size that was left out, and one that failed.
    rows = recorded["phases"]["physics_pick"]["figures"]["rows"]
    first, second = sorted(row["environments"] for row in rows)[:2]
    recorded["phases"]["physics_pick"]["figures"]["rows"] = [
        {"environments": first, "skipped": "out of time"},
        {"environments": second, "error": "out | of memory"},
    ]
    recorded["phases"]["physics_pick"] |= {"status": "failed", "error": "out | of memory"}
    path.write_text(json.dumps(recorded))
    text = report.bench_report(path, tmp_path)["markdown"]
    assert f"| {first:,} | not measured (out of time) |" in text
    assert f"| {second:,} | failed |" in text
    assert "out \\| of memory |" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "alohas2r bench-gpu writes one"),
        ("{", "no JSON file"),
        ("[]", "no result of alohas2r bench-gpu"),
        ('{"format": "other", "version": 1}', "no result of alohas2r bench-gpu"),
        ('{"format": "alohas2r-bench-gpu", "version": 2}', "version 2"),
        ('{"format": "alohas2r-bench-gpu", "version": 1}', "damaged"),
        ('{"format": "alohas2r-bench-gpu", "version": 1, "device": []}', "damaged"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    part: str,
) -> None:
    path = tmp_path / "gpu.json"
    if content is not None:
        path.write_text(content)
    assert app.main(["bench-report", str(path), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
    assert part in captured.err


def test_wrong_usage_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["bench-report"]) == 2
    assert app.main(["bench-report", str(RECORDED), "--out", "/dev/null/x"]) == 1
    assert app.main(["bench-gpu", "--budget", "0"]) == 2
    capsys.readouterr()
    assert app.main(["bench-gpu", "--only", "smok", "--out", str(tmp_path)]) == 1
    assert "Did you mean 'smoke'?" in capsys.readouterr().err
    for name in ("bench-gpu", "bench-report"):
        assert app.main([name, "--help"]) == 0
        assert f"alohas2r {name}" in capsys.readouterr().out


@pytest.mark.long
def test_without_a_gpu_the_script_says_so_and_ends_with_1(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        ["sh", str(script), "--out", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "No NVIDIA GPU that both JAX and Warp can use" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["phases"]["smoke"]["reason"] == "no device"
    assert found["packages"]["warp-lang"]
    assert "not measured" in done.stdout


@pytest.mark.long
def test_the_whole_script_at_a_tiny_size(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(
        ["sh", str(script), "--tiny", "--out", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["finished"]
    assert {entry["status"] for entry in found["phases"].values()} == {"ok"}
    assert list(found["phases"]) == [phase.name for phase in gpu_phases.PHASES]
    assert found["projection"]["total_s"] > 0
    assert "No GPU figures" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        *(gpu_job.NAME, report.MARKDOWN, report.THROUGHPUT, report.WALL),
    }
