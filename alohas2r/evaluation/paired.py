"""Two policies in the same episodes."""

from __future__ import annotations

import math
import os
from typing import Any

from alohas2r.core import progress as core_progress
from alohas2r.core import stats
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import evaluate
from alohas2r.tasks.protocol import EVAL_V1, Protocol


def paired(
    policy_path: str | os.PathLike[str],
    other_path: str | os.PathLike[str],
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
) -> dict[str, Any]:
    """Runs two policies that insert in the same episodes, a student and its teacher say.

    Returns:
      "first" and "second": the results of `evaluate.evaluate` without their tables; "difference": of the rates of
      success, first minus second, with its 95% interval for paired episodes; "mcnemar": see `stats.mcnemar`.

    Raises:
      ArtifactError: a policy cannot be read, or does not insert. ConfigError: a number out of range.
    """
    results, success = [], []
    for path in (policy_path, other_path):
        if evaluate.checked_policy(path, episodes).spec.phase == "pick":
            raise ArtifactError(f"{path} only picks; a paired evaluation needs two that insert.")
    for path in (policy_path, other_path):
        result = evaluate.evaluate(path, episodes, seed, threads, progress, protocol, renderer)
        success.append(result.pop("table")["success"])
        results.append(result)
    tested = stats.mcnemar(*success)
    difference = (tested["only_a"] - tested["only_b"]) / episodes
    # Source: A. Agresti, Categorical Data Analysis, section 11.1: Wald interval of dependent proportions.
    spread = (tested["only_a"] + tested["only_b"]) / episodes - difference**2
    margin = 1.96 * math.sqrt(max(spread, 0.0) / episodes)
    return {
        "protocol": results[0]["protocol"],
        "protocol_hash": results[0]["protocol_hash"],
        "episodes": episodes,
        "seed": seed,
        "difference": {
            "success": difference,
            "low": max(difference - margin, -1.0),
            "high": min(difference + margin, 1.0),
        },
        "mcnemar": dict(tested),
        "first": results[0],
        "second": results[1],
    }
