from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from alohas2r.core.lock import FolderLock, in_use
from alohas2r.errors import ArtifactError

HOLD = """
import sys, time
from alohas2r.core.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_owner_who_is_named(tmp_path: pathlib.Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(ArtifactError, match=f"in use by the running process {os.getpid()};"),
        FolderLock(tmp_path),
    ):
        pass
    assert not in_use(tmp_path / "nowhere")
    with FolderLock(tmp_path):  # given back, and the refusal took nothing
        assert in_use(tmp_path)
    assert not in_use(tmp_path)


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: pathlib.Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ArtifactError, match=f"process {holder.pid};"), FolderLock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with FolderLock(tmp_path):
        pass
