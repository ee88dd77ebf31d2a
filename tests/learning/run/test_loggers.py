"""What loggers are told, by the real packages offline; and that nothing they do touches the run."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
import run_cases
from run_cases import count

from alohas2r.core.types import JsonObject, Untyped
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.run.loggers import base, registry
from alohas2r.learning.run.loggers.base import Loggers, Outcome, RunInfo


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # with nobody's key in it


class Listening:
    """Notes what it is told.

    Args:
      fails: the call in which it raises `error`.
    """

    name = "listening"

    def __init__(self, fails: str = "", error: BaseException | None = None) -> None:
        self.told: list[tuple[str, object]] = []
        self._fails, self._error = fails, error

    def begin(self, run: RunInfo, earlier: JsonObject) -> JsonObject:
        self._note("begin", (run, dict(earlier)))
        return {"parts": earlier.get("parts", 0) + 1}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._note("write", (step, dict(values)))

    def finish(self, outcome: Outcome) -> None:
        self._note("finish", outcome)

    def _note(self, call: str, value: object) -> None:
        self.told.append((call, value))
        if call == self._fails and self._error is not None:
            raise self._error


def outcome_of(logger: Listening) -> Outcome:
    call, outcome = logger.told[-1]
    assert call == "finish"
    assert isinstance(outcome, Outcome)
    return outcome


def test_a_logger_of_ones_own_is_told_all_of_a_run_and_of_its_next_part(
    tmp_path: pathlib.Path,
) -> None:
    def stop(iteration: int) -> None:
        if iteration == 12:
            os.kill(os.getpid(), signal.SIGINT)

    folder, first, second = tmp_path / "run", Listening(), Listening()
    assert not count(folder, during=stop, loggers=[first])["finished"]
    assert count(folder, resume=True, loggers=[second])["finished"]
    (_, (run, earlier)), (_, (again, before)) = first.told[0], second.told[0]  # type: ignore[misc]
    assert run == RunInfo(folder, "count", {"config": {"iterations": 30}, "seed": 0}, False)
    assert (again.resumed, earlier, before) == (True, {}, {"parts": 1})
    written = [
        value for logger in (first, second) for call, value in logger.told if call == "write"
    ]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert written == [
        (row.pop("step"), {k: v for k, v in row.items() if k != "wall_s"}) for row in metrics
    ]
    assert outcome_of(first).status == "stopped"
    last = outcome_of(second)
    assert (last.status, last.figures["steps"]) == ("finished", 300)
    assert last.figures["eval/largest"] == metrics[-1]["eval/largest"]
    names = {path.name for path in last.files}
    assert {"config.json", "metrics.jsonl"} <= names
    assert not any("checkpoint" in path.parts for path in last.files)


def test_a_run_that_fails_says_so_to_its_loggers(tmp_path: pathlib.Path) -> None:
    logger = Listening()
    with pytest.raises(ArtifactError, match="not finite"):
        count(tmp_path / "run", during=lambda n: np.nan if n == 18 else None, loggers=[logger])
    assert outcome_of(logger).status == "failed"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("begin", OSError(28, "No space left on device")),
        ("write", SystemExit(1)),
        ("finish", KeyboardInterrupt()),
    ],
)
def test_a_logger_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, call: str, error: BaseException
) -> None:
    logger, other = Listening(call, error), Listening()
    with caplog.at_level(logging.WARNING, "alohas2r"):
        assert count(tmp_path / "run", loggers=[logger, other])["finished"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"--log listening failed ({type(error).__name__}: ")
    assert "\n" not in said[0]
    assert [name for name, _ in logger.told].count(call) == 1  # it is not asked again
    assert outcome_of(other).status == "finished"  # nor do others suffer
    expected = sum(np.random.default_rng(number).normal(size=100) for number in range(30))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "sum.npy"), expected)


def test_a_logger_that_hangs_is_left_behind(tmp_path: pathlib.Path) -> None:
    class Hanging(Listening):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            released.wait(60)

    released, said = threading.Event(), list[str]()
    started = time.monotonic()
    try:
        with Loggers([Hanging()], said.append, wait_s=0.2) as told:
            told.begin(RunInfo(tmp_path, "hang", {}, False))
            for step in range(base.WAITING + 10):  # more than may wait
                told.write(step, {"x": 1.0})
            told.finish("finished", {})
    finally:
        released.set()
    assert time.monotonic() - started < 10
    assert len(said) == 1
    assert "does not keep up" in said[0]


def test_files_of_other_runs_and_loggers_are_not_handed_over(tmp_path: pathlib.Path) -> None:
    for name in (
        *("config.json", "film.mp4", "student/policy.json", "report/index.html"),
        *("pick/config.json", "pick/metrics.jsonl", "checkpoint/state.npz", "wandb/run.json"),
        *("mlruns/0/x.json", "tensorboard/events", "run.lock"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    kept = [str(path.relative_to(tmp_path)) for path in base.kept_files(tmp_path)]
    assert kept == ["config.json", "film.mp4", "report/index.html", "student/policy.json"]


def test_unknown_loggers_are_answered_with_those_that_exist() -> None:
    assert registry.logger_names() == ("mlflow", "wandb")
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        registry.make("wand")


def test_mlflow_keeps_one_run_over_both_parts(tmp_path: pathlib.Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path / "runs" / "count"

    def stop(iteration: int) -> None:
        if iteration == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    count(folder, during=stop, loggers=[registry.make("mlflow")])
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'alohas2r'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    count(folder, resume=True, loggers=[registry.make("mlflow")])
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "runs/count")
    assert run.data.params == {"config.iterations": "30", "seed": "0"}
    history = client.get_metric_history(run.info.run_id, "loss/total")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(m.step, m.value) for m in history] == [
        (row["step"], row["loss/total"]) for row in metrics
    ]
    assert run.data.metrics["run/steps"] == 300
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "metrics.jsonl"} <= files


@pytest.mark.long
def test_wandb_keeps_one_run_offline_over_both_parts(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "count"

    def stop(iteration: int) -> None:
        if iteration == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    count(folder, during=stop, loggers=[registry.make("wandb")])
    assert count(folder, resume=True, loggers=[registry.make("wandb")])["finished"]
    assert "wandb" not in "".join(capfd.readouterr())
    kept = json.loads((folder / "log_wandb.json").read_text())["id"]
    logs = sorted((folder / "wandb").glob(f"offline-run-*/run-{kept}.wandb"))
    assert len(logs) == 2
    steps = [row["env_steps"] for log in logs for row in history(log) if "loss/total" in row]
    assert steps == [*range(10, 301, 10)]
    files = logs[1].parent / "files"
    assert json.loads((files / "config.json").read_text())["config"] == {"iterations": 30}
    assert (files / "metrics.jsonl").read_text().count("\n") == 30


def history(path: pathlib.Path) -> list[JsonObject]:
    """Reads the rows of a run that wandb keeps offline: after 7 bytes, LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    messages: Untyped = wandb_internal_pb2
    data, rows, part, at = path.read_bytes(), list[JsonObject](), b"", 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = messages.Record.FromString(part)
            part = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
    return rows


@pytest.mark.long
def test_a_server_that_is_out_of_reach_costs_no_run(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("wandb")
    done = subprocess.run(
        [sys.executable, run_cases.__file__, str(tmp_path / "count"), "--log", "wandb", "mlflow"],
        env=os.environ
        | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert np.load(tmp_path / "count" / "sum.npy").shape == (100,)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("--log wandb") == 1
    assert done.stderr.count("--log mlflow") == 1
