"""Memory that a process keeps and gives back."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys

import numpy as np

from alohas2r.core import threads

if sys.argv[1] == "keep":
    assert threads.keep_memory()


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


PIECES = """
import pathlib
import sys

import numpy as np

from alohas2r.core import threads


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


assert threads.keep_memory()
arrays = [np.ones(2**17) for _ in range(128)]
full = resident()
arrays = arrays[::2]
if sys.argv[1] == "give":
    assert threads.give_memory_back()
print(full - resident())
assert all((array == 1).all() for array in arrays)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or mmap.PAGESIZE != 4096,
    reason="needs the GNU C library and pages of 4 KiB",
)
def test_kept_memory_is_given_back() -> None:
    """64 MiB are free, in pieces between what is in use."""
    gone = {
        how: int(subprocess.check_output([sys.executable, "-c", PIECES, how], text=True))
        for how in ("give", "keep")
    }
    assert gone["give"] > 60 * 2**20
    assert gone["keep"] < 4 * 2**20
