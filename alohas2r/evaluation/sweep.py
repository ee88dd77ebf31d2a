"""One condition of the protocol varied, everything else as it is."""

from __future__ import annotations

import os
from typing import Any

from alohas2r.core import progress as core_progress
from alohas2r.errors import ArtifactError, ConfigError, did_you_mean
from alohas2r.evaluation.evaluate import checked_policy, evaluate
from alohas2r.tasks.protocol import EVAL_V1, modified

# Conditions of the sweeps; the teacher is the same in all of them.
SWEEPS: dict[str, tuple[dict[str, float], ...]] = {
    "clearance": tuple({"peg_mm": float(side)} for side in (20, 24, 28, 32, 34)),
    "latency": tuple({"extra_delay_steps": steps} for steps in range(5)),
    "recovery": ({"seconds": 15.0},),
}


def sweep(
    policy_path: str | os.PathLike[str],
    name: str,
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
) -> dict[str, Any]:
    """Evaluates one teacher under several conditions.

    Args:
      policy_path: a staged teacher.
      name: "clearance" (pegs of 20 to 34 mm in the 36 mm hole), "latency" (0 to 4 steps of constant action delay on
        top) or "recovery" (15 s instead of 10, for success at 8, 10 and 15 s).
      episodes: per condition. seed, threads, progress: as `evaluate`.

    Returns:
      "sweep": the name, and "rows": each condition with the result of `evaluate`, per-episode tables left out.

    Raises:
      ConfigError: unknown sweep. ArtifactError: as `evaluate`, or the policy is no staged teacher.
    """
    if name not in SWEEPS:
        raise ConfigError(f"Unknown sweep '{name}'.{did_you_mean(name, SWEEPS)}")
    if checked_policy(policy_path, episodes).spec.phase == "pick":
        raise ArtifactError(f"{policy_path} is no staged teacher; a sweep needs one that inserts.")
    rows = []
    for condition in SWEEPS[name]:
        changed: dict[str, Any] = dict(condition)
        result = evaluate(
            policy_path, episodes, seed, threads, progress, modified(EVAL_V1, **changed)
        )
        result.pop("table")
        rows.append({"condition": condition, **result})
    return {"sweep": name, "rows": rows}
