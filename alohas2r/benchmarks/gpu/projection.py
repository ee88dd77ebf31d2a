"""What full-scale training would take, projected from measured speeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def project(phases: Mapping[str, Any]) -> dict[str, Any]:
    """Projects how long the default presets take, from what was measured.

    A stage takes its preset's steps at the measured speed, its start-up (building, compiling, reading) as often as
    the preset starts environments anew, and its evaluations. Collecting switch states is on the CPU in any case.

    Args:
      phases: as in the JSON file.

    Returns:
      "stages": name -> "steps", "steps_per_s", "start_s" (of all starts), "evaluation_s" (of all evaluations; None
      where they were not measured or are not part of the measurement), "total_s", "published_s"; "kernels_s":
      building Warp's kernels, once on a machine, as the checks met it (0 if they were built already, None without
      checks); "total_s" of all, None if a stage is missing; "missing": those stages; "published_total_s".
    """

    def figures(name: str) -> dict[str, Any]:
        return phases.get(name, {}).get("figures", {})

    published = figures("device").get("published_s", {})
    stages: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    sources = {
        "encoder": "pretrain",
        "pick": "train_pick",
        "insert": "train_insert",
        "distill": "distill",
    }
    for stage, name in sources.items():
        found = figures(name)
        if not found.get("steps_per_s") or found.get("jit_s") is None:
            missing.append(stage)
            continue
        preset = found["preset"]
        if preset.get("before") and found.get("before_s") is not None:
            stages["switch_states"] = {"total_s": preset["before"] * found["before_s"]}
        start = preset["compilations"] * found["jit_s"]
        evaluations = found.get("evaluation_s")
        if evaluations is not None:
            evaluations *= preset["evaluations"]
        stages[stage] = {
            "steps": preset["steps"],
            "steps_per_s": found["steps_per_s"],
            "start_s": start,
            "evaluation_s": evaluations,
            "total_s": preset["steps"] / found["steps_per_s"] + start + (evaluations or 0.0),
            "published_s": published.get(stage),
        }
    kernels = 0.0
    checks = figures("smoke").get("rows", [])
    if figures("smoke").get("warp_kernels_built") != 0:
        kernels = sum(row.get("jit_s", 0.0) for row in checks)
    return {
        "stages": stages,
        "kernels_s": kernels if checks else None,
        "total_s": None
        if missing
        else sum(stage["total_s"] for stage in stages.values()) + kernels,
        "missing": missing,
        "published_total_s": published.get("total"),
    }
