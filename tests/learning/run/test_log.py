from __future__ import annotations

import json
import os
import pathlib
import struct
import sys
import time

import numpy as np
import pytest
from disk_cases import full_disk

from alohas2r.core.progress import Report
from alohas2r.errors import ArtifactError
from alohas2r.learning.run import log as run_log
from alohas2r.learning.run.events import TensorBoard
from alohas2r.learning.run.log import RunLog


def events(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """Reads (step, tag, value) from TensorBoard event files: records of length, crc, data, crc."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_entries_are_on_disk_at_once_as_strict_json(tmp_path: pathlib.Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    with RunLog(tmp_path / "new" / "run", 100, tensorboard=False) as log:
        log.write(10, {"reward": np.float32(0.5), "count": 3, "bad": float("nan")})
        log.write(20, {"reward": np.array(1.5), "bad": -np.inf, "done": np.int64(7)})
        lines = log.path.read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["step"] for row in rows] == [10, 20]
    assert (rows[0]["reward"], rows[0]["count"], rows[0]["bad"]) == (0.5, 3, None)
    assert (rows[1]["reward"], rows[1]["bad"], rows[1]["done"]) == (1.5, None, 7)
    assert 0 <= rows[0]["wall_s"] <= rows[1]["wall_s"]


def test_resumed_log_equals_an_unbroken_one_wherever_the_last_line_was_cut(
    tmp_path: pathlib.Path,
) -> None:
    def rows(path: pathlib.Path) -> list[dict[str, object]]:
        kept = run_log.read_metrics(path)
        walls = [row.pop("wall_s") for row in kept]
        assert walls == sorted(walls)
        return kept

    with RunLog(tmp_path / "whole", 50, tensorboard=False) as log:
        for step in range(10, 60, 10):
            log.write(step, {"loss": 1 / step})
    whole = log.path.read_bytes()
    expected = rows(log.path)
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in {last, last + 1, (last + len(whole)) // 2, len(whole) - 1, len(whole)}:
        path = tmp_path / f"cut{cut}" / run_log.METRICS
        path.parent.mkdir()
        path.write_bytes(whole[:cut])
        resumed = RunLog(path.parent, 50, tensorboard=False)
        kept = resumed.resume(20)
        assert [row["step"] for row in kept] == [10, 20]
        assert resumed.wall_s >= kept[-1]["wall_s"]
        for step in (30, 40, 50):
            resumed.write(step, {"loss": 1 / step})
        resumed.close()
        assert rows(path) == expected


def test_new_run_starts_its_log_over_and_close_does_not(tmp_path: pathlib.Path) -> None:
    for first in (1, 2):
        log = RunLog(tmp_path, 10, tensorboard=False)
        log.write(first, {})
        log.close()
        log.write(first + 1, {})
        log.close()
        assert [row["step"] for row in run_log.read_metrics(log.path)] == [first, first + 1]
    assert run_log.read_metrics(tmp_path / "absent") == []
    assert RunLog(tmp_path / "empty", 1).resume(5) == []


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b'{"loss": 1}', b"", b"\xff"])
def test_damage_before_the_last_line_is_named(tmp_path: pathlib.Path, line: bytes) -> None:
    path = tmp_path / run_log.METRICS
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl is damaged in line 2"):
        RunLog(tmp_path, 10).resume(3)


def test_unreadable_metrics_are_an_error_of_the_package(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="could not be read"):
        run_log.read_metrics(tmp_path)


def test_progress_is_reported_from_the_resumed_step(tmp_path: pathlib.Path) -> None:
    reports: list[Report] = []
    log = RunLog(tmp_path, 100, label="pick", progress=reports.append, tensorboard=False)
    log.resume(40)
    log.start()
    log.write(50, {"reward": 2.0, "bad": float("nan")})
    assert not reports  # saving comes before showing
    log.show()
    log.write(60, {"reward": 3.0})
    log.show()
    log.close()
    first, second = reports
    assert (first.label, first.done, first.total) == ("pick", 50, 100)
    assert first.figures == {"reward": 2.0}
    assert (first.per_s, first.left_s) == (0, None)  # not known yet
    assert second.done == 60
    assert second.per_s > 0


def test_tensorboard_events_hold_the_same_figures(tmp_path: pathlib.Path) -> None:
    with RunLog(tmp_path, 30) as log:
        for step, figures in (
            (10, {"eval/success": 0.25, "bad": np.nan}),
            (20, {"eval/success": 0.5}),
        ):
            log.write(step, figures)
            log.show()
    assert events(tmp_path / "tensorboard") == [
        (10, "eval/success", 0.25),
        (20, "eval/success", 0.5),
    ]


def test_without_tensorboard_the_metrics_are_written_all_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with RunLog(tmp_path, 30) as log:
        log.write(10, {"loss": 1.0})
        log.show()
    assert not (tmp_path / "tensorboard").exists()
    assert [row["step"] for row in run_log.read_metrics(log.path)] == [10]


def test_full_disk_leaves_the_entries_before_and_can_be_continued(tmp_path: pathlib.Path) -> None:
    log = RunLog(tmp_path, 100, tensorboard=False)
    log.write(1, {"loss": 1.0})
    size = log.path.stat().st_size
    with full_disk(size + 10), pytest.raises(ArtifactError, match="entries before are intact"):
        log.write(2, {"loss": 1.0})
    assert log.path.stat().st_size == size
    log.write(3, {"loss": 1.0})
    log.close()
    assert [row["step"] for row in run_log.read_metrics(log.path)] == [1, 3]


def test_a_resumed_run_hides_the_events_past_its_checkpoint(tmp_path: pathlib.Path) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with RunLog(tmp_path, 30) as log:
        for step in (10, 20):
            log.write(step, {"loss": 1.0})
            log.show()
    before = set((tmp_path / "tensorboard").iterdir())
    time.sleep(1.1)  # the files' names have the second
    with RunLog(tmp_path, 30) as log:
        log.resume(10)
        log.write(20, {"loss": 2.0})
        log.show()
    (second,) = set((tmp_path / "tensorboard").iterdir()) - before
    steps, starts = [], []
    data = second.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        steps.append(event.step)
        starts.append(event.HasField("session_log"))
        data = data[16 + length :]
    assert steps == [0, 11, 11, 20]
    assert starts == [False, False, True, False]


def test_tensorboard_that_cannot_write_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tensorboard").touch()  # a file where the folder should be
    with RunLog(tmp_path, 30) as log:
        for step in (10, 20):
            log.write(step, {"loss": 1.0})
            log.show()
    assert [row["step"] for row in run_log.read_metrics(log.path)] == [10, 20]


def test_a_full_disk_of_tensorboards_ends_nothing(tmp_path: pathlib.Path) -> None:
    board = TensorBoard(tmp_path / "tensorboard")
    board.write(1, {"loss": 1.0})
    (path,) = (tmp_path / "tensorboard").iterdir()
    with full_disk(path.stat().st_size + 5):
        for step in range(2, 40):
            board.write(step, {"loss": 1.0})
    board.write(40, {"loss": 1.0})  # there is room again, but the file is cut
    board.close()


def test_metrics_are_no_program(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o022)
    try:
        with RunLog(tmp_path, 30) as log:
            log.write(1, {})
    finally:
        os.umask(before)
    assert oct(log.path.stat().st_mode & 0o777) == "0o644"
