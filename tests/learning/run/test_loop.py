"""What every algorithm gets from the loop, with the smallest one; real ones are in tests/integration/test_runs.py."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import run_cases
from run_cases import count

from alohas2r.core.progress import Report
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.run.best import Best
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.log import read_metrics
from alohas2r.learning.run.loop import CHECKPOINT, KEPT, Schedule

PROGRAM = pathlib.Path(run_cases.__file__)


def rows(folder: pathlib.Path) -> list[JsonObject]:
    found = read_metrics(folder / "metrics.jsonl")
    for row in found:
        row.pop("wall_s")
    return found


def saved_iterations(folder: pathlib.Path) -> int:
    template = run_cases.Counting(folder).init()
    return Checkpoint(folder / CHECKPOINT).load(template)[1]["iterations"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    result = count(folder)
    assert result["finished"]
    assert result["steps"] == 300
    assert result["sum"] == str(folder / "sum.npy")
    return folder


def test_the_last_checkpoints_are_kept(unbroken: pathlib.Path) -> None:
    names = sorted(path.name for path in unbroken.glob("checkpoint-0*"))
    assert len(names) == KEPT
    assert saved_iterations(unbroken) == int(names[-1].removeprefix("checkpoint-"))


def assert_same(folder: pathlib.Path, unbroken: pathlib.Path) -> None:
    np.testing.assert_array_equal(np.load(folder / "sum.npy"), np.load(unbroken / "sum.npy"))
    assert rows(folder) == rows(unbroken)


def test_an_unbroken_run_measures_and_evaluates(unbroken: pathlib.Path) -> None:
    written = rows(unbroken)
    assert [row["step"] for row in written] == list(range(10, 301, 10))
    assert [row["step"] for row in written if "eval/largest" in row] == [100, 200, 300]
    assert saved_iterations(unbroken) == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("at", [1, 7, 29, 30])
def test_signals_stop_cleanly_and_the_run_resumes(
    unbroken: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals, at: int
) -> None:
    def interrupt(iteration: int) -> None:
        if iteration == at:
            for _ in range(3):  # the terminal's, the shell's, and an impatient finger's
                os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run under nohup ignores it
    try:
        result = count(tmp_path / "run", during=interrupt)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result["finished"] == (at == 30)
    if at < 30:
        assert result["sum"] is None
        assert result["steps"] == 10 * at
        assert saved_iterations(tmp_path / "run") == at
        assert count(tmp_path / "run", resume=True)["finished"]
    assert_same(tmp_path / "run", unbroken)


def test_a_run_goes_on_as_often_as_its_time_is_up(
    unbroken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    steps = []
    for part in range(3):
        result = count(tmp_path / "run", part > 0, Schedule(3, 0, minutes=0))
        steps.append(result["steps"])
    assert steps == [10, 20, 30]
    assert count(tmp_path / "run", True, Schedule(3, 0))["finished"]
    assert_same(tmp_path / "run", unbroken)
    # Once more: nothing is left to do but to write the artifact again.
    (tmp_path / "run" / "sum.npy").unlink()
    again = count(tmp_path / "run", True)
    assert again["metrics"]["loss/total"] == rows(unbroken)[-1]["loss/total"]
    assert_same(tmp_path / "run", unbroken)


def test_a_stopped_run_is_finished_where_it_is_and_can_still_go_on(
    unbroken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match="add --resume"):
        count(folder, finish=True)
    stopped = count(folder, schedule=Schedule(minutes=0))
    assert stopped["sum"] is None
    ended = count(folder, resume=True, finish=True)
    assert ended["finished"]
    assert ended["steps"] == 10
    np.testing.assert_array_equal(np.load(ended["sum"]), np.random.default_rng(0).normal(size=100))
    assert count(folder, resume=True)["steps"] == 300
    assert_same(folder, unbroken)


def test_a_run_without_a_checkpoint_has_nothing_to_finish(tmp_path: pathlib.Path) -> None:
    def kill(iteration: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        count(tmp_path / "run", during=kill)
    with pytest.raises(ArtifactError, match="no checkpoint to finish"):
        count(tmp_path / "run", resume=True, finish=True)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_its_manifest(
    unbroken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def kill(iteration: int) -> None:
        if iteration == 3:
            raise Killed

    with pytest.raises(Killed):
        count(tmp_path / "run", during=kill)
    assert not Checkpoint(tmp_path / "run" / CHECKPOINT).exists()
    assert len(rows(tmp_path / "run")) == 2
    assert count(tmp_path / "run", resume=True)["finished"]
    assert_same(tmp_path / "run", unbroken)
    with pytest.raises(ConfigError, match="add --resume"):
        count(tmp_path / "run")
    with pytest.raises(ArtifactError, match="leave out --resume"):
        count(tmp_path / "nothing", resume=True)


def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(
    unbroken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder, draw = tmp_path / "run", random.Random(1)
    for lines in (1, 8, 15, 22):
        resume = ["--resume"] if (folder / "config.json").exists() else []
        process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder), *resume])
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert count(folder, resume=True)["finished"]
    assert_same(folder, unbroken)
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in unbroken.iterdir()}


class Killed(BaseException):
    """The process ends."""


def test_the_artifact_is_the_best_that_was_evaluated(tmp_path: pathlib.Path) -> None:
    schedule = Schedule(evaluations=6, checkpoints=5, chosen_by="eval/mean")
    totals = np.cumsum([np.random.default_rng(n).normal(size=100) for n in range(30)], axis=0)
    evaluated = range(5, 31, 5)
    best = max(evaluated, key=lambda number: totals[number - 1].mean())
    assert best == 5  # after it there are checkpoints, evaluations and the end
    result = count(tmp_path / "whole", schedule=schedule)
    assert result["chosen"] == {"steps": 50, "eval/mean": totals[4].mean()}
    assert result["steps"] == 300
    assert saved_iterations(tmp_path / "whole") == 30  # which is what --resume goes on from
    np.testing.assert_array_equal(np.load(tmp_path / "whole" / "sum.npy"), totals[4])
    # Once more, when nothing is left to do, and by a schedule that asks for the last one.
    (tmp_path / "whole" / "sum.npy").unlink()
    assert count(tmp_path / "whole", True, schedule)["chosen"]["steps"] == 50
    np.testing.assert_array_equal(np.load(tmp_path / "whole" / "sum.npy"), totals[4])
    assert "chosen" not in count(tmp_path / "whole", True, Schedule(6, 5))
    np.testing.assert_array_equal(np.load(tmp_path / "whole" / "sum.npy"), totals[29])


@pytest.mark.parametrize("at", [6, 9, 16])
def test_a_run_killed_after_its_best_evaluation_still_has_it(
    tmp_path: pathlib.Path, at: int
) -> None:
    """Before and after a checkpoint, and in a run that is begun anew."""

    def kill(iteration: int) -> None:
        if iteration == at:
            raise Killed

    folder, schedule = tmp_path / "run", Schedule(6, 5, chosen_by="eval/mean")
    with pytest.raises(Killed):
        count(folder, schedule=schedule, during=kill)
    if at == 6:  # no checkpoint yet: this is another run, which was not evaluated
        with pytest.raises(Killed):
            count(folder, schedule=Schedule(0, 0, chosen_by="eval/mean"), during=kill)
    result = count(folder, True, schedule)
    assert result["chosen"]["steps"] == 50
    expected = sum(np.random.default_rng(number).normal(size=100) for number in range(5))
    np.testing.assert_array_equal(np.load(folder / "sum.npy"), expected)


def test_of_equally_good_evaluations_the_latest_counts(tmp_path: pathlib.Path) -> None:
    best = Best(tmp_path, "rate")
    for number, rate in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.8), (5, float("nan"))):
        best.offer(np.full(3, number), number, {"rate": rate})
    best.offer(np.full(3, 6), 6, {"other": 1.0})
    again = Best(tmp_path, "rate")
    again.begin(resumed=True)
    assert (again.iterations, again.value) == (3, 0.9)
    np.testing.assert_array_equal(again.load(np.zeros(3, int)), [3, 3, 3])
    again.begin(resumed=False)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_in_a_folder_are_one_too_many(tmp_path: pathlib.Path) -> None:
    refused: list[str] = []

    def start_another(iteration: int) -> None:
        if iteration in (2, 20):  # with a checkpoint and without
            for resume in (False, True):
                with pytest.raises(ArtifactError, match="in use by the running process") as error:
                    count(tmp_path / "run", resume)
                refused.append(str(error.value))

    assert count(tmp_path / "run", during=start_another)["finished"]
    assert len(refused) == 4
    assert all(str(os.getpid()) in text and "\n" not in text for text in refused)


@pytest.mark.parametrize("failure", [BrokenPipeError("gone"), SystemExit(1), ValueError("closed")])
def test_what_shows_the_progress_may_fail(
    unbroken: pathlib.Path, tmp_path: pathlib.Path, failure: BaseException
) -> None:
    def broken(report: Report) -> None:
        raise failure

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").touch()  # TensorBoard's folder cannot be made either
    assert count(tmp_path / "run", progress=broken)["finished"]
    assert_same(tmp_path / "run", unbroken)


def test_a_run_saves_before_it_shows(tmp_path: pathlib.Path) -> None:
    folder, seen = tmp_path / "run", []

    def look(report: Report) -> None:
        if report.done % 60 == 0:  # where a checkpoint is due
            assert len(rows(folder)) == report.done // 10
            seen.append((report.done, 10 * saved_iterations(folder)))
        if report.done == 130:
            os.kill(os.getpid(), signal.SIGINT)  # asked for while it shows

    result = count(folder, progress=look)
    assert seen == [(60, 60), (120, 120)]
    assert result["steps"] == 130
    assert saved_iterations(folder) == 13


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(
    tmp_path: pathlib.Path, value: float
) -> None:
    during: Callable[[int], float | None] = lambda number: value if number == 18 else None  # noqa: E731
    with pytest.raises(ArtifactError, match=r"not finite in iteration 18: .* smaller number"):
        count(tmp_path / "run", during=during)
    assert saved_iterations(tmp_path / "run") == 12


def test_a_stop_before_the_first_iteration_loses_nothing(
    unbroken: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_cases.Counting.init

    def slow_start(self: run_cases.Counting) -> run_cases.State:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self)

    with monkeypatch.context() as patched:
        patched.setattr(run_cases.Counting, "init", slow_start)
        result = count(tmp_path / "run")
    assert (result["finished"], result["steps"]) == (False, 0)
    assert count(tmp_path / "run", resume=True)["finished"]
    assert_same(tmp_path / "run", unbroken)
