"""An evaluation that is interrupted shows and keeps what it has, and goes on to the result of an unbroken one."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
import signal
from collections.abc import Callable

import numpy as np
import pytest
from disk_cases import full_disk
from stop_cases import StopAfter

from alohas2r.cli import app
from alohas2r.core.lock import FolderLock
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, ConfigError, Interrupted
from alohas2r.evaluation import evaluate, paired, sweep
from alohas2r.evaluation.episodes import episode_keys
from alohas2r.evaluation.evaluate import Episodes, load_policy
from alohas2r.evaluation.folder import PLAN, RESULT, EvaluationFolder
from alohas2r.tasks.protocol import EVAL_V1, modified
from alohas2r.tasks.scoring import Table

pytestmark = pytest.mark.compiles

EPISODES, SEED, AT_ONCE = 5, 7, 2
TEACHER = pathlib.Path(__file__).parents[2] / "params" / "teacher"


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "AT_ONCE", AT_ONCE)
    monkeypatch.setattr(evaluate, "MAX_ENVS", AT_ONCE)


class Groups:
    """Notes which groups are run."""

    def __init__(self) -> None:
        self.first: list[int] = []

    def recorder(self, first: int) -> None:
        """Wants nothing of what is seen."""

    def keep(self, first: int, episodes: Episodes) -> None:
        """Takes a group that was run."""
        del episodes
        self.first.append(first)


def measure(
    policy: pathlib.Path,
    out: pathlib.Path,
    resume: bool = False,
    stop: StopSignal | None = None,
    at: int = EPISODES + 1,
) -> tuple[JsonObject, list[int]]:
    """Evaluates into a folder, and stops as soon as more than `at` episodes are counted; returns the groups it ran."""
    stop, groups = StopSignal() if stop is None else stop, Groups()

    def count(report: object) -> None:
        stop.requested |= getattr(report, "done") > at  # noqa: B009

    with EvaluationFolder(out, resume) as folder:
        result = evaluate.evaluate(
            policy, EPISODES, SEED, 1, progress=count, keeper=groups, folder=folder, stop=stop
        )
    return result, groups.first


def check_same(table: Table, expected: Table) -> None:
    assert table.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(table[name], column, err_msg=name)
        assert table[name].dtype == column.dtype


@pytest.fixture(scope="module")
def unbroken(random_policy: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> JsonObject:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "AT_ONCE", AT_ONCE)
        out = tmp_path_factory.mktemp("evaluations") / "unbroken"
        result, groups = measure(random_policy, out)
    assert groups == [0, 2, 4]
    assert json.loads((out / RESULT).read_text())["success"] == result["success"]
    return result


def test_what_was_interrupted_goes_on_to_the_result_of_an_unbroken_one(
    random_policy: pathlib.Path, unbroken: JsonObject, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(Interrupted, match="2 of 5 episodes had ended") as caught:
        measure(random_policy, tmp_path, at=2)  # in the middle of the second group
    part = caught.value.result
    assert part is not None
    assert (part["episodes"], part["of"]) == (2, 5)
    check_same(part["table"], {name: column[:2] for name, column in unbroken["table"].items()})
    assert part["success"]["rate"] == part["table"]["success"].mean()
    kept = json.loads((tmp_path / RESULT).read_text())
    assert (kept["episodes"], kept["of"], kept["success"]) == (2, 5, part["success"])
    assert "table" not in kept

    with pytest.raises(ConfigError, match="add --resume"):
        measure(random_policy, tmp_path)
    result, groups = measure(random_policy, tmp_path, resume=True)
    assert groups == [2, 4]
    check_same(result["table"], unbroken["table"])
    apart = ("table", "wall_s")
    assert {k: v for k, v in result.items() if k not in apart} == {
        k: v for k, v in unbroken.items() if k not in apart
    }
    # Once more, when nothing is left to run.
    result, groups = measure(random_policy, tmp_path, resume=True)
    assert groups == []
    check_same(result["table"], unbroken["table"])
    assert result["stages"] == unbroken["stages"]
    assert json.loads((tmp_path / RESULT).read_text())["episodes"] == EPISODES


def test_a_later_group_is_what_it_is_by_itself(
    random_policy: pathlib.Path, unbroken: JsonObject
) -> None:
    """It runs with what was compiled for the first one."""
    policy = load_policy(random_policy)
    alone = evaluate.run(policy, None, episode_keys(SEED, 2, 2), 1).table
    check_same({name: column[2:4] for name, column in unbroken["table"].items()}, alone)


def test_an_evaluation_of_something_else_is_not_resumed(
    random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(Interrupted) as caught:
        measure(random_policy, tmp_path, stop=StopAfter(0))
    assert caught.value.result is None  # nothing had ended
    files = sorted(tmp_path.iterdir())

    def refused(part: str, **changed: object) -> None:
        options = {"policy": random_policy, "episodes": EPISODES, "seed": SEED} | changed
        with (
            pytest.raises(ConfigError, match=part),
            EvaluationFolder(tmp_path, resume=True) as folder,
        ):
            evaluate.evaluate(**options, folder=folder)  # pyright: ignore[reportArgumentType]

    refused("seed: 7 -> 8", seed=8)
    refused("episodes: 5 -> 6", episodes=6)
    refused(f"protocol_hash: {EVAL_V1.hash} -> ", protocol=modified(EVAL_V1, extra_delay_steps=1))
    refused("policy: .* phase: pick -> insert", policy=TEACHER)
    refused("renderer: auto -> exact", renderer="exact")
    plan = json.loads((tmp_path / PLAN).read_text())
    (tmp_path / PLAN).write_text(json.dumps(plan | {"jax": "0.0.1"}))
    refused(r"jax: 0\.0\.1 -> ")
    (tmp_path / PLAN).write_text("[]")
    with pytest.raises(ArtifactError, match="damaged"):
        measure(random_policy, tmp_path, resume=True)
    assert sorted(tmp_path.iterdir()) == files


def test_a_folder_that_cannot_serve_is_named(
    random_policy: pathlib.Path, unbroken: JsonObject, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArtifactError, match="no evaluation to resume"):
        measure(random_policy, tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    with FolderLock(tmp_path), pytest.raises(ArtifactError, match="in use"):
        measure(random_policy, tmp_path)
    with EvaluationFolder(tmp_path) as folder:
        folder.begin({})
        folder.add(0, unbroken["table"], 1.0)
        kept = folder.load(0, EPISODES)
        assert kept is not None
        assert kept.wall_s == 1
        check_same(kept.table, unbroken["table"])
        assert folder.load(2, 1) is None
        with pytest.raises(ArtifactError, match=r"episodes-0000000\.npz is damaged"):
            folder.load(0, EPISODES - 1)
        path = tmp_path / "episodes-0000000.npz"
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        with pytest.raises(ArtifactError, match="damaged"):
            folder.load(0, EPISODES)
        for at in range(0, len(content), 7):  # a flipped bit is noticed, or changes nothing
            path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            with contextlib.suppress(ArtifactError):
                again = folder.load(0, EPISODES)
                assert again is not None
                check_same(again.table, unbroken["table"])


def test_on_a_full_disk_the_rates_are_told_all_the_same(
    random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with full_disk(1000), pytest.raises(Interrupted, match="could not be written") as caught:
        measure(random_policy, tmp_path)
    assert caught.value.result is not None
    assert caught.value.result["success"].keys() == {"rate", "low", "high"}
    assert caught.value.done == 2
    assert {path.name for path in tmp_path.iterdir()} == {PLAN, ".lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_command_with_what_it_has(
    number: signal.Signals,
    random_policy: pathlib.Path,
    unbroken: JsonObject,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, table = tmp_path / "out", tmp_path / "episodes.csv"
    command = ["evaluate", str(random_policy), "--episodes", str(EPISODES), "--seed", str(SEED)]
    command += ["--threads", "1", "--out", str(out), "--csv", str(table), "--json"]
    add = EvaluationFolder.add

    def add_and_signal(folder: EvaluationFolder, first: int, *kept: object) -> None:
        add(folder, first, *kept)  # pyright: ignore[reportArgumentType]
        if first == 2:
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    try:
        with monkeypatch.context() as patch:
            patch.setattr(EvaluationFolder, "add", add_and_signal)
            assert app.main(command) == 130
    finally:
        signal.signal(signal.SIGHUP, before)
    captured = capsys.readouterr()
    part = json.loads(captured.out)
    assert (part["episodes"], part["of"]) == (4, 5)
    assert part["success"]["low"] <= part["success"]["rate"] <= part["success"]["high"]
    assert "4 of 5 episodes had ended. The same command with --resume goes on." in captured.err
    assert len(list(csv.DictReader(table.read_text().splitlines()))) == 4

    assert app.main([*command, "--resume"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert "of" not in whole
    assert whole["success"] == unbroken["success"]
    assert whole["stages"] == unbroken["stages"]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["peak_joint_speed"]) for row in rows] == pytest.approx(
        unbroken["table"]["peak_joint_speed"], rel=1e-5
    )


def test_without_a_folder_the_groups_that_had_ended_are_shown(
    random_policy: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluate.Runner.run

    def run_and_signal(self: evaluate.Runner, *arguments: object, **named: object) -> Episodes:
        if arguments[1] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, *arguments, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(evaluate.Runner, "run", run_and_signal)
    assert app.main(["evaluate", str(random_policy), "--episodes", "5", "--threads", "1"]) == 130
    captured = capsys.readouterr()
    assert "2 of 5 episodes" in captured.out
    assert "95%" in captured.out
    assert "With --out DIR they are kept" in captured.err


SHORT = modified(EVAL_V1, seconds=0.2)  # 4 steps


def interrupted(work: Callable[[], JsonObject]) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        work()
    return caught.value


def test_sweeps_and_pairs_show_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    found = interrupted(
        lambda: paired.paired(TEACHER, TEACHER, 1, SEED, 1, protocol=SHORT, stop=StopAfter(5))
    )
    assert (found.done, found.total) == (1, 2)
    assert found.result is not None
    assert found.result["first"]["episodes"] == 1
    monkeypatch.setattr("alohas2r.evaluation.sweep.find_task", lambda _: _Short())
    found = interrupted(lambda: sweep.sweep(TEACHER, "short", 1, SEED, 1, stop=StopAfter(5)))
    assert (found.done, found.total) == (1, 2)
    assert found.result is not None
    assert [row["condition"] for row in found.result["rows"]] == [{"seconds": 0.2}]


class _Short:
    """The insertion with two conditions of 4 steps each."""

    protocol = EVAL_V1
    sweeps = {EVAL_V1.name: {"short": ({"seconds": 0.2}, {"seconds": 0.2})}}  # noqa: RUF012

    @staticmethod
    def modified(rules: object, condition: object) -> object:
        del rules, condition
        return SHORT


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--resume"], "give --out as well"),
        (["--out", "x", "--sweep", "latency"], "leave out --server, --world"),
        (["--out", "x", "--paired", "pick"], "leave out --server, --world"),
        (["--out", "x", "--resume", "--video", "x.mp4"], "films the first episodes"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    options: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["evaluate", "teacher", *options]) == 1
    assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
