"""Turns its process into a training that is asked to stop when the process that started it ends, however it ends.

Run as a program: the number of that process, then what Python is given. The training saves and stops as on any
SIGTERM, so that a sweep that was killed leaves nothing behind that computes, and runs that can be resumed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG. Source: prctl(2)


def main(parent: int, arguments: list[str]) -> None:
    """Becomes the training; where the system cannot watch the parent (not Linux), it goes on alone if that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
