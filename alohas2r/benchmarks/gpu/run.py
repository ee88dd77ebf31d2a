"""One measurement of all that runs on an NVIDIA GPU, within a fixed time: see docs/gpu.md.

Each phase runs in a process of its own, so that a crash, a hang or memory that is never given back costs one phase.
Time that a phase leaves over goes to the later ones; what does not fit any more is left out and said so. The JSON
file is written anew after every phase.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from alohas2r.benchmarks.gpu.job import (
    BUDGET_S,
    FORMAT,
    LOG_TAIL,
    NAME,
    RESERVE_S,
    TINY_BUDGET_S,
    VERSION,
)
from alohas2r.benchmarks.gpu.phases import PHASES, Phase
from alohas2r.benchmarks.gpu.projection import project
from alohas2r.config import check
from alohas2r.core import files
from alohas2r.core import progress as core_progress
from alohas2r.core import stop as core_stop
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import ConfigError, did_you_mean


def bench_gpu(
    out: str | os.PathLike[str] = "runs/gpu",
    tiny: bool = False,
    budget_s: float | None = None,
    only: Sequence[str] = (),
    progress: core_progress.Progress | None = None,
    phases: Sequence[Phase] = PHASES,
) -> JsonObject:
    """Runs all phases and writes `out`/gpu.json, anew after each.

    Args:
      out: folder of the JSON file.
      tiny: whether to run everything at a tiny size, on the CPU: to see that it works, not how fast it is.
      budget_s: time that all phases together may take (s); BUDGET_S, or TINY_BUDGET_S, if None.
      only: names of phases; all if empty. The device is always looked at.
      progress: receives a report before each phase.
      phases: the phases, the first of which says what device there is.

    Returns:
      What the file holds: "format", "version", "alohas2r", "date", "tiny", "budget_s", "wall_s", "finished" (False
      while phases are left), "device", "packages", "phases" (name -> "status", "wall_s", "limit_s", "figures", and
      "reason", "error" or "log"), "projection" (see `project`), "errors" ("phase" and "error" of each that failed).
      The status is "ok", "failed", "timeout" (killed; what it had found is kept) or "skipped".

    Raises:
      ConfigError: an unknown phase, or no time. ArtifactError: the folder cannot be written.
    """
    names = [phase.name for phase in phases]
    for name in only:
        if name not in names:
            raise ConfigError(f"Unknown phase '{name}'.{did_you_mean(name, names)}")
    budget_s = (TINY_BUDGET_S if tiny else BUDGET_S) if budget_s is None else budget_s
    check(0 < budget_s <= 86400, f"budget = {budget_s} must lie in (0, 86400] s")
    started = time.monotonic()
    path = files.make_folder(out) / NAME
    chosen = [phase for phase in phases if not only or phase.name in (names[0], *only)]
    result = _begun(tiny, budget_s)

    def write() -> None:
        result["wall_s"] = round(time.monotonic() - started, 1)
        files.write_atomic(path, json.dumps(result, indent=1).encode() + b"\n")

    write()
    with (
        tempfile.TemporaryDirectory(prefix="alohas2r-bench-") as scratch,
        core_stop.StopSignal() as stop,
    ):
        for index, phase in enumerate(chosen):
            if progress is not None:
                what = f"phases: {phase.name}"
                progress(core_progress.Report("bench-gpu", index, len(chosen), what, 0.0, None, {}))
            left = budget_s - RESERVE_S - (time.monotonic() - started)
            share = left * phase.weight / sum(other.weight for other in chosen[index:])
            if stop:
                entry = _skipped("stopped")
            elif index and result["phases"][chosen[0].name]["status"] == "failed":
                entry = _skipped("no device")
            elif share < phase.least_s:
                entry = _skipped("out of time")
            else:
                entry = _run(
                    phase, tiny, share, min(left, 1.5 * share), pathlib.Path(scratch), stop
                )
            if not index:
                result["device"] = dict(entry.get("figures", {}))
                result["packages"] = result["device"].pop("packages", {})
            result["phases"][phase.name] = entry
            if "error" in entry:
                result["errors"].append({"phase": phase.name, "error": entry["error"]})
            result["projection"] = project(result["phases"])
            result["finished"] = index == len(chosen) - 1 and not stop
            write()
    if progress is not None:
        progress(
            core_progress.Report("bench-gpu", len(chosen), len(chosen), "phases", 0.0, None, {})
        )
    return result


def _begun(tiny: bool, budget_s: float) -> JsonObject:
    """Returns a result before the first phase."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "alohas2r": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tiny": tiny,
        "budget_s": budget_s,
        "wall_s": 0.0,
        "finished": False,
        "device": {},
        "packages": {},
        "phases": {},
        "projection": {},
        "errors": [],
    }


def _skipped(reason: str) -> JsonObject:
    """Returns the entry of a phase that was left out."""
    return {"status": "skipped", "reason": reason, "wall_s": 0.0}


def _run(
    phase: Phase,
    tiny: bool,
    seconds: float,
    limit_s: float,
    scratch: pathlib.Path,
    stop: core_stop.StopSignal,
) -> JsonObject:
    """Runs a phase in a process of its own, which is killed after `limit_s`, and returns its entry."""
    job, figures_file = scratch / f"{phase.name}.job.json", scratch / f"{phase.name}.json"
    log_file = scratch / f"{phase.name}.log"
    description = {
        "phase": phase.name,
        "tiny": tiny,
        "seconds": seconds,
        "limit_s": limit_s,
        "figures": str(figures_file),
        "scratch": str(scratch),
    }
    job.write_text(json.dumps(description))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if tiny:
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:  # or what is compiled in one run would be missing in the figures of the next
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = phase.command or (sys.executable, "-m", "alohas2r.benchmarks.gpu.phases")
    started = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, str(job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() - started < limit_s and not stop:
                time.sleep(0.05)
        finally:
            ended = process.poll() is not None
            if not ended:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    figures: JsonObject = {}
    with contextlib.suppress(OSError, ValueError):
        figures = json.loads(figures_file.read_text())
    error = figures.pop("error", None)
    entry: JsonObject = {
        "status": "ok",
        "wall_s": round(time.monotonic() - started, 1),
        "share_s": round(seconds, 1),
        "limit_s": round(limit_s, 1),
        "figures": figures,
    }
    if ended and code == 0 and error is None:
        return entry
    if ended:
        entry["status"] = "failed"
        entry["error"] = error or f"the process ended with exit status {code}"
    elif stop:
        entry |= {"status": "skipped", "reason": "stopped"}
    else:
        entry["status"] = "timeout"
        entry["error"] = f"killed after {limit_s:.0f} s"
    entry["log"] = log_file.read_text(errors="replace")[-LOG_TAIL:]
    return entry
