"""Two policies in the same episodes."""

from __future__ import annotations

import math
import os

from alohas2r.core import progress as core_progress
from alohas2r.core import stats
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError, Interrupted
from alohas2r.evaluation import evaluate
from alohas2r.tasks.protocol import TaskProtocol


def paired(
    policy_path: str | os.PathLike[str],
    other_path: str | os.PathLike[str],
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: TaskProtocol | None = None,
    renderer: str = "auto",
    stop: StopSignal | None = None,
) -> JsonObject:
    """Runs two policies of one task in the same episodes, a student and its teacher say.

    Returns:
      "first" and "second": the results of `evaluate.evaluate` without their tables; "difference": of the rates of
      success, first minus second, with its 95% interval for paired episodes; "mcnemar": see `stats.mcnemar`.

    Raises:
      ArtifactError: a policy cannot be read, or they are of two tasks. ConfigError: a number out of range.
      Interrupted: a stop was asked for; with the result of the first policy, if it was done.
    """
    results, success = [], []
    evaluate.check_episodes(episodes)
    policies = [evaluate.load_policy(path) for path in (policy_path, other_path)]
    first, second = (policy.spec.phase for policy in policies)
    if first != second:
        raise ArtifactError(
            f"{policy_path} is a policy for '{first}', {other_path} one for '{second}'; a paired"
            " evaluation needs two of the same task."
        )
    for policy in policies:
        try:
            result = evaluate.evaluate(
                policy, episodes, seed, threads, progress, protocol, renderer, stop=stop
            )
        except Interrupted:
            done = {"first": results[0]} if results else None
            raise Interrupted(len(results), 2, "policies", done) from None
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
        "draws": results[0]["draws"],
        "difference": {
            "success": difference,
            "low": max(difference - margin, -1.0),
            "high": min(difference + margin, 1.0),
        },
        "mcnemar": dict(tested),
        "first": results[0],
        "second": results[1],
    }
