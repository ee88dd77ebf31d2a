from __future__ import annotations

import pathlib
import random
import subprocess
import sys
import time

import pytest
from disk_cases import full_disk

from alohas2r.core import files
from alohas2r.errors import ArtifactError
from alohas2r.learning.run.log import RunLog


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
