from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.core import files
from alohas2r.core.progress import Meter, Report
from alohas2r.core.stop import StopSignal
from alohas2r.errors import ArtifactError
from alohas2r.learning.run import log as run_log
from alohas2r.learning.run.log import RunLog


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Refuses to let any file of this process grow past `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_meter_reports_speed_and_time_left_without_the_first_slow_update() -> None:
    now, reports = [0.0], []
    meter = Meter("train", 1000, reports.append, unit="rows", clock=lambda: now[0])
    now[0] = 50.0  # compiling
    meter.update(100, {"loss": 1.0})
    for done in range(200, 1001, 100):
        now[0] += 2.0
        meter.update(done)
    assert reports[0] == Report("train", 100, 1000, "rows", 2.0, 450.0, {"loss": 1.0})
    for report in reports[1:]:
        assert report.per_s == pytest.approx(50.0)
        assert report.left_s == pytest.approx((1000 - report.done) / 50.0)
    assert reports[-1].left_s == 0.0


def test_meter_follows_a_change_of_speed_and_counts_resumed_work_as_no_speed() -> None:
    now, reports = [0.0], []
    meter = Meter("train", 10_000, reports.append, done=5_000, clock=lambda: now[0])
    for update in range(100):
        now[0] += 1.0 if update < 50 else 0.5
        meter.update(5_000 + 10 * (update + 1))
    assert reports[10].per_s == pytest.approx(10.0)
    assert reports[-1].per_s == pytest.approx(20.0)


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
    log.close()
    (report,) = reports
    assert (report.label, report.done, report.total) == ("pick", 50, 100)
    assert report.figures == {"reward": 2.0}
    assert report.per_s > 0


def test_tensorboard_events_hold_the_same_figures(tmp_path: pathlib.Path) -> None:
    with RunLog(tmp_path, 30) as log:
        log.write(10, {"eval/success": 0.25, "bad": float("nan")})
        log.write(20, {"eval/success": 0.5})
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


def test_full_disk_leaves_the_earlier_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "weights"
    with full_disk(1000), pytest.raises(ArtifactError, match="nothing was left behind"):
        files.write_atomic(path, bytes(5000))
    assert list(path.parent.iterdir()) == []
    files.write_atomic(path, b"first")
    with full_disk(1000), pytest.raises(ArtifactError, match="the earlier file is intact"):
        files.write_atomic(path, lambda file: file.write(bytes(5000)))
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_failing_writer_leaves_the_earlier_file(tmp_path: pathlib.Path) -> None:
    def interrupted(file: object) -> None:
        raise KeyboardInterrupt

    path = files.write_atomic(tmp_path / "weights", b"first")
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, interrupted)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"first"]


def test_a_file_is_whole_whenever_the_writer_is_killed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights"
    script = (
        "import sys; from alohas2r.core.files import write_atomic\n"
        "while True:\n"
        "    for letter in b'ab': write_atomic(sys.argv[1], bytes([letter]) * 300_000)\n"
    )
    draw = random.Random(0)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", script, str(path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        writer.kill()
        writer.wait()
        content = path.read_bytes()
        assert content in (b"a" * 300_000, b"b" * 300_000)
        path.unlink()


def test_folder_is_replaced_whole(tmp_path: pathlib.Path) -> None:
    def fill(text: str, *names: str):
        def writer(folder: pathlib.Path) -> None:
            for name in names:
                (folder / name).write_text(text)

        return writer

    def content(folder: pathlib.Path) -> dict[str, str]:
        return {file.name: file.read_text() for file in folder.iterdir()}

    path = files.write_folder_atomic(tmp_path / "policy", fill("1", "a", "b"))
    assert content(path) == {"a": "1", "b": "1"}
    files.write_folder_atomic(path, fill("2", "a"))
    assert content(path) == {"a": "2"}
    with full_disk(1000), pytest.raises(ArtifactError, match="the earlier folder is intact"):
        files.write_folder_atomic(path, fill("3" * 5000, "a"))
    with pytest.raises(ZeroDivisionError):
        files.write_folder_atomic(path, lambda folder: 1 / 0)
    assert content(path) == {"a": "2"}
    assert list(tmp_path.iterdir()) == [path]


def test_folder_comes_back_after_a_kill_between_the_renames(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "policy"
    path.mkdir()
    (path / "a").write_text("1")
    path.rename(tmp_path / ".policy.earlier")
    files.recover_folder(path)
    assert (path / "a").read_text() == "1"
    (tmp_path / ".policy.earlier").mkdir()  # killed after both
    files.recover_folder(path)
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_be_written_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ArtifactError, match=str(folder)):
            RunLog(folder, 10)
    with pytest.raises(ArtifactError, match="could not be written"):
        files.write_atomic(tmp_path / "file" / "weights", b"")
    with pytest.raises(ArtifactError, match="could not be written"):
        files.write_folder_atomic(tmp_path / "file" / "policy", lambda folder: None)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_to_stop_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    asked = []
    with StopSignal(lambda: asked.append(True)) as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert asked == [True]
    assert signal.getsignal(number) is before


def test_stop_signal_outside_of_the_main_thread_does_nothing() -> None:
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
