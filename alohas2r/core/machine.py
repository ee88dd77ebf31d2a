"""What machine this is, and how much memory the process holds."""

from __future__ import annotations

import os
import pathlib
import platform
import resource

from alohas2r.core.types import JsonObject


def describe_cores() -> JsonObject:
    """Returns the processor's name, cores and load."""
    name = platform.processor() or platform.machine()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0))
    return {"name": f"{name}, {cores} cores", "cores": cores, "load": os.getloadavg()[0]}


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_machine() -> JsonObject:
    """Returns what a run ran on: processor, cores, device, versions."""
    import jax
    import mujoco

    return {
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mujoco": mujoco.__version__,
    }


def peak_memory_gb() -> float:
    """Returns the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
