"""A sweep as a whole: what is killed goes on, what has finished is not run again."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

pytest.importorskip("brax")

import sweep_cases

from alohas2r.cli import app
from alohas2r.core.lock import FolderLock, in_use
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.experiments.sweep import space, state, summary
from alohas2r.experiments.sweep.state import Trial
from alohas2r.experiments.sweep.trainings import Training
from alohas2r.learning.run.log import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1", "task.steps=5"),
    *("ppo.network.policy=8", "ppo.network.value=8", "total_steps=240", "checkpoints=10"),
    "evaluations=0",
)


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def results(out: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Returns run -> when its result was written, and as which file, for the runs that have finished."""
    ended = {}
    for path in sorted((out / "runs").glob("*/result.json")):
        text = path.read_text()
        if text and json.loads(text)["finished"]:
            ended[path.parent.name] = (path.stat().st_mtime_ns, path.stat().st_ino)
    return ended


def under_way(out: pathlib.Path) -> list[pathlib.Path]:
    """Returns the metrics of runs that have begun and not finished."""
    done = results(out)
    return [path for path in (out / "runs").glob("*/metrics.jsonl") if path.parent.name not in done]


def kill_when_half_done(
    command: list[str], out: pathlib.Path, rows: int
) -> dict[str, tuple[int, int]]:
    """Starts a sweep, kills it when a run has finished and another has just begun, and waits until that has saved.

    Args:
      rows: at most so many metrics has the one that has just begun.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: (
                bool(results(out)) and any(0 < len(read_metrics(p)) <= rows for p in under_way(out))
            )
        )
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    folders = [path.parent for path in under_way(out)]
    wait_for(lambda: not any(in_use(folder) for folder in folders))  # nothing computes on
    return results(out)


def nothing_was_run_twice(out: pathlib.Path, before: dict[str, tuple[int, int]]) -> None:
    """Compares a sweep that was killed with itself after it went on to its end."""
    after = results(out)
    assert {name: after[name] for name in before} == before
    begun = json.loads((out / state.NAME).read_text())
    starts = {
        f"{number:03d}-seed{seed}": run["starts"]
        for number, trial in enumerate(begun["trials"])
        for seed, run in trial["runs"].items()
    }
    assert set(starts) == set(after)
    assert all(starts[name] == 1 for name in before)
    assert max(starts.values()) == 2  # what was under way
    for path in (out / "runs").glob("*/metrics.jsonl"):
        steps = [row["step"] for row in read_metrics(path)]
        assert steps == sorted(set(steps))


def test_a_killed_sweep_goes_on_and_runs_nothing_twice(tmp_path: pathlib.Path) -> None:
    out, settings = tmp_path / "sweep", ("rate=0.5,0.9", "pause=0.25")
    words = [str(sweep_cases.PLACE), "sweep", str(out), "local", "2"]
    before = kill_when_half_done([sys.executable, *words, *settings], out, 2)
    result = sweep_cases.run(out, sweep_cases.plan(*settings))
    assert result["finished"]
    assert result["runs"] == {"done": 4, "failed": 0, "stopped": 0, "open": 0}
    assert result["best"]["settings"]["rate"] == "0.5"
    assert [row["iqm"] for row in result["configurations"]] == pytest.approx([1.005, 0.605])
    nothing_was_run_twice(out, before)
    for path in (out / "runs").glob("*/metrics.jsonl"):
        assert [row["step"] for row in read_metrics(path)] == [10, 20, 30, 40, 50, 60]
    page = (out / "index.html").read_text()
    assert "<svg" in page
    assert "--set rate=0.5 --set pause=0.25 --seed 0" in page
    for other, word in (
        (sweep_cases.plan(*settings, seeds=(0, 1, 2)), "seeds"),
        (sweep_cases.plan("rate=0.5", "pause=0.25"), "space"),
    ):
        with pytest.raises(ConfigError, match=f"holds another sweep .{word}"):
            sweep_cases.run(out, other)
    with FolderLock(out), pytest.raises(ArtifactError, match="in use"):
        sweep_cases.run(out, sweep_cases.plan(*settings))


def test_a_killed_run_is_resumed_and_a_failed_one_says_why(tmp_path: pathlib.Path) -> None:
    asked = sweep_cases.plan("die=4", "fails=false,true", seeds=(0,))
    result = sweep_cases.run(tmp_path, asked)
    assert result["runs"] == {"done": 1, "failed": 1, "stopped": 0, "open": 0}
    killed, failed = json.loads((tmp_path / state.NAME).read_text())["trials"]
    assert killed["runs"]["0"]["starts"] == 2
    assert [row["step"] for row in read_metrics(tmp_path / "runs/000-seed0/metrics.jsonl")] == [
        *range(10, 70, 10)
    ]
    assert failed["runs"]["0"]["starts"] == 1
    assert result["failures"] == [
        {"run": str(tmp_path / "runs/001-seed0"), "reason": "Error: it was told to fail."}
    ]
    assert result["configurations"][1]["iqm"] is None
    # Tried again, and only that one.
    again = sweep_cases.run(tmp_path, asked)
    assert again["runs"] == result["runs"]
    trials = json.loads((tmp_path / state.NAME).read_text())["trials"]
    assert [trial["runs"]["0"]["starts"] for trial in trials] == [2, 2]


def test_a_metric_that_runs_lack_is_said_with_those_they_have(tmp_path: pathlib.Path) -> None:
    asked = sweep_cases.plan("number=1", seeds=(0,), metric="eval/scor")
    with pytest.raises(ArtifactError, match=r"no figure 'eval/scor', but eval/score, loss/total"):
        sweep_cases.run(tmp_path, asked)


def begun(tmp_path: pathlib.Path, scores: dict[str, list[float]]) -> state.SweepState:
    """Returns a sweep with a score for each rate and seed; a missing one is open."""
    plan = sweep_cases.plan(f"rate={','.join(scores)}", "number=1", seeds=(0, 1, 2))
    sweep = state.begin(tmp_path, plan, 1, [{"rate": rate, "number": "1"} for rate in scores])
    for trial, known in zip(sweep.trials, scores.values(), strict=True):
        for seed, score in enumerate(known):
            trial.runs[seed] = state.RunState("done", 1, score)
    return sweep


def test_a_sweep_is_kept_and_read_again(tmp_path: pathlib.Path) -> None:
    sweep = begun(tmp_path, {"0.1": [0.25, 0.5], "0.2": []})
    sweep.trials[0].runs[2] = state.RunState("failed", 2, reason="a reason")
    sweep.trials[1].stopped = {"step": 10, "value": 0.0, "better": 0.75}
    sweep.save()
    read = state.begin(tmp_path, sweep.plan, 7, [])
    assert (read.plan, read.threads) == (sweep.plan, 1)  # the threads of its beginning
    assert read.trials[0].runs[2] == state.RunState("open", 2)  # is tried again
    read.trials[0].runs[2] = sweep.trials[0].runs[2]
    assert read.trials == sweep.trials
    (tmp_path / state.NAME).write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        state.begin(tmp_path, sweep.plan, 1, [])
    (tmp_path / state.NAME).unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a training"):
        state.begin(tmp_path, sweep.plan, 1, [])


def test_only_whole_configurations_are_compared(tmp_path: pathlib.Path) -> None:
    sweep = begun(tmp_path, {"0.1": [0.1, 0.2, 0.3], "0.2": [0.9, 0.9], "0.3": [1.0, 1.0, 1.0]})
    sweep.trials[2].stopped = {"step": 10, "value": 0.0, "better": 0.75}
    result: JsonObject = summary.summarize(sweep, False)
    assert result["best"]["configuration"] == 0
    assert [row["state"] for row in result["configurations"]] == ["done", "open", "stopped"]
    assert [row["iqm"] for row in result["values"]["rate"]] == [pytest.approx(0.2), None, None]
    assert result["runs"] == {"done": 8, "failed": 0, "stopped": 0, "open": 1}
    assert "number" not in result["values"]
    page = summary.build(result, sweep)
    assert "Not finished yet" in page.lead
    assert Trial({}, {}).state == "done"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trainteacher"], ["'trainteacher'", "Did you mean 'train-teacher'?"]),
        (["train-teacher", "--phase", "pick", "--set", "ppo.discont=1,2"], ["'ppo.discount'"]),
        (["train-teacher", "--phase", "pick", "--set", "ppo.discount=0.9,7"], ["[0, 1]"]),
        (["train-teacher", "--phase", "pick", "--set", "ppo.discount="], ["empty"]),
        (["train-teacher", "--phase", "pick", "--set", "ppo.discount=0.9,"], ["empty"]),
        (["train-teacher", "--phase", "pick", "--set", "ppo.discount=0.9:0.95"], ["--sampler"]),
        (["train-teacher", "--phase", "pick", "--seeds", "0..x"], ["'0..x'", "0..4 or 0,3,7"]),
        (["train-teacher", "--phase", "pick", "--seeds", "3..1"], ["'3..1'"]),
        (["train-teacher", "--phase", "pick", "--trials", "3"], ["--sampler tpe or random"]),
        (["train-teacher", "--phase", "pick", "--seed", "3"], ["--seeds"]),
        (["distill", "--preset", "quick"], ["not evaluated", "--set evaluations=1"]),
    ],
)
def test_bad_input_gets_one_line_before_anything_is_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["sweep", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
    assert not list(tmp_path.iterdir())


def test_without_optuna_or_ray_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    for package in ("optuna", "ray"):
        monkeypatch.setitem(sys.modules, package, None)
    common = ["sweep", "train-teacher", "--phase", "pick", "--out", str(tmp_path / "out")]
    drawn = ["--sampler", "tpe", "--trials", "2", "--set", "ppo.discount=0.9:0.95"]
    for more in (drawn, ["--fleet", "ray"]):
        assert app.main([*common, *more]) == 1
        err = capsys.readouterr().err
        assert "pip install 'alohas2r[sweep]'" in err
        assert err.count("\n") == 1


def test_options_of_the_training_are_read_by_its_own_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["sweep", "train-teacher", "--phase", "pik"]) == 2
    assert "'insert', 'pick'" in capsys.readouterr().err
    assert app.main(["sweep", "train-teacher", "--phase", "pick", "--engin", "cpu"]) == 2
    assert "alohas2r train-teacher --help" in capsys.readouterr().err


def real(out: pathlib.Path, fleet: str) -> list[str]:
    """Returns a sweep of 2 x 3 pick trainings of the quick preset, as tiny as they come."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    return [
        *("sweep", "train-teacher", "--phase", "pick", "--preset", "quick", *settings),
        *("--set", "ppo.learning_rate=1e-3,3e-4", "--seeds", "0..2", "--out", str(out)),
        *("--metric", "train/reward"),
        *("--fleet", fleet, "--workers", "2", "--json"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("fleet", ["local", "ray"])
def test_six_quick_trainings_go_on_after_sigkill(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fleet: str,
) -> None:
    if fleet == "ray":
        pytest.importorskip("ray")
    # The trainings compile quickly rather than well, and once.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "alohas2r.cli", *real(out, fleet)]
    before = kill_when_half_done(command, out, 15)
    assert app.main(real(out, fleet)) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"]
    assert result["runs"] == {"done": 6, "failed": 0, "stopped": 0, "open": 0}
    assert all(row["seeds"] == 3 for row in result["configurations"])
    nothing_was_run_twice(out, before)
    assert len(list((out / "runs").glob("*/policy/policy.json"))) == 6


@pytest.mark.long
def test_a_run_whose_ray_actor_is_killed_is_resumed_by_the_sweep(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ray")
    asked = sweep_cases.plan("die=4", "fails=false,true", seeds=(0,))
    result = sweep_cases.run(tmp_path / "died", asked, "ray")
    assert result["runs"] == {"done": 1, "failed": 1, "stopped": 0, "open": 0}
    out, settings = tmp_path / "killed", ("rate=0.5,0.9", "pause=0.3")
    words = [str(sweep_cases.PLACE), "sweep", str(out), "ray", "2", *settings]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: any(read_metrics(path) for path in under_way(out)))
        folder = next(path.parent for path in under_way(out) if read_metrics(path))
        training = int((folder / ".lock").read_text())
        status = pathlib.Path(f"/proc/{training}/status").read_text()
        actor = int(status.split("PPid:")[1].split()[0])
        assert actor != process.pid
        os.kill(actor, signal.SIGKILL)
        written, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert json.loads(written)["runs"] == {"done": 4, "failed": 0, "stopped": 0, "open": 0}
    trials = json.loads((out / state.NAME).read_text())["trials"]
    starts = [run["starts"] for trial in trials for run in trial["runs"].values()]
    assert sorted(starts) == [1, 1, 1, 2]
    for path in (out / "runs").glob("*/metrics.jsonl"):
        assert [row["step"] for row in read_metrics(path)] == [10, 20, 30, 40, 50, 60]


def test_the_table_of_trainings_names_commands() -> None:
    from alohas2r.experiments.sweep.trainings import TRAININGS, find_training

    assert find_training("distill") is TRAININGS["distill"]
    for training in TRAININGS.values():
        assert isinstance(training, Training)
        assert app.main([training.name, "--help"]) == 0


def test_the_sensitivity_sweeps_have_settings_that_exist() -> None:
    from alohas2r.experiments.sweep.sweep import prepared
    from alohas2r.experiments.sweep.trainings import TRAININGS

    script = (ROOT / "benchmarks" / "sensitivity.sh").read_text()
    for name in ("pick", "insert", "distill"):
        text = script.split(f"\n{name})\n")[1].split(";;")[0].replace("\\\n", " ")
        words = shlex.split(text)
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        training = TRAININGS[words[1]]
        options = {"phase": name, "preset": "default", "observation": "rgbd", "encoder": "none"}
        asked = dataclasses.replace(
            sweep_cases.plan(*settings, sampler="each"), metric=training.metric
        )
        plan, configurations = prepared(asked, training.settings(options))
        assert len(space.varied(plan.space)) == 5
        assert len(configurations) == 11


@pytest.mark.long
def test_the_worst_are_stopped_saved_and_stay_stopped(tmp_path: pathlib.Path) -> None:
    asked = sweep_cases.plan("rate=0.5,0.6,0.7,0.8,1.5", "pause=0.4", stop_worst=0.5)
    result = sweep_cases.run(tmp_path, asked)
    assert result["finished"]
    states = {row["settings"]["rate"]: row["state"] for row in result["configurations"]}
    assert states["0.5"] == "done"
    assert states["1.5"] == "stopped"
    assert result["best"]["settings"]["rate"] == "0.5"
    assert result["runs"]["open"] == result["runs"]["failed"] == 0
    assert result["runs"]["stopped"] >= 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    again = sweep_cases.run(tmp_path, asked)
    assert again["configurations"] == result["configurations"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before
