"""Memory that a process keeps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys

import numpy as np

from alohas2r import parallel

if sys.argv[1] == "keep":
    assert parallel.keep_memory()


def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**17) for _ in range(64)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


work()
print(max(work() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_memory_is_used_again() -> None:
    """64 MiB are 16,384 pages, each of which would have to be got anew."""
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], text=True))
        for how in ("keep", "leave")
    }
    assert faults["leave"] > 4000
    assert faults["keep"] < 200
