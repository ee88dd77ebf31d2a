"""What machine this is, and how much memory the process holds."""

from __future__ import annotations

import pathlib
import platform
import resource
import sys

from alohas2r.core import threads
from alohas2r.core.types import JsonObject


def processor() -> str:
    """Returns the processor's name."""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_machine() -> JsonObject:
    """Returns what something ran on: "processor", "cores" that this process may use, "python"."""
    return {
        "processor": processor(),
        "cores": len(threads.cores()),
        "python": platform.python_version(),
    }


def forget_peak() -> None:
    """Makes the process's peak memory start anew, where Linux allows it."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Returns the process's peak memory in MB."""
    try:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 1000 * peak_memory_gb()


def peak_memory_gb() -> float:
    """Returns the most memory that this process has held so far."""
    # Source: getrusage(2): in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
