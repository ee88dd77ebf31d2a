"""What full-scale training would take, projected from measured speeds."""

from __future__ import annotations

from alohas2r.core.types import JsonObject


def project(phases: JsonObject) -> JsonObject:
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

    def figures(name: str) -> JsonObject:
        return phases.get(name, {}).get("figures", {})

    published = figures("device").get("published_s", {})
    stages: dict[str, JsonObject] = {}
    missing: list[str] = []
    sources = {
        "encoder": "pretrain",
        "pick": "train_pick",
        "insert": "train_insert",
        "distill": "distill",
    }
    for stage, name in sources.items():
        measured = figures(name)
        if not measured.get("steps_per_s") or measured.get("jit_s") is None:
            missing.append(stage)
            continue
        preset = measured["preset"]
        if preset.get("before") and measured.get("before_s") is not None:
            stages["switch_states"] = {"total_s": preset["before"] * measured["before_s"]}
        start = preset["compilations"] * measured["jit_s"]
        evaluations = measured.get("evaluation_s")
        if evaluations is not None:
            evaluations *= preset["evaluations"]
        stages[stage] = {
            "steps": preset["steps"],
            "steps_per_s": measured["steps_per_s"],
            "start_s": start,
            "evaluation_s": evaluations,
            "total_s": preset["steps"] / measured["steps_per_s"] + start + (evaluations or 0.0),
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
