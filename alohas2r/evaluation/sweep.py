"""One condition of a protocol varied, everything else as it is."""

from __future__ import annotations

import os

from alohas2r.core import progress as core_progress
from alohas2r.core.stop import StopSignal
from alohas2r.core.types import JsonObject
from alohas2r.errors import ConfigError, Interrupted, did_you_mean
from alohas2r.evaluation.evaluate import check_episodes, evaluate, load_policy
from alohas2r.tasks.registry import find_task


def sweep(
    policy_path: str | os.PathLike[str],
    name: str,
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: str | None = None,
    stop: StopSignal | None = None,
) -> JsonObject:
    """Evaluates one policy under several conditions; it is the same in all of them.

    Args:
      policy_path: the policy.
      name: one of the sweeps of its task and protocol. Of the insertion: "clearance" (pegs of 20 to 34 mm in the
        36 mm hole); under eval-v1 "latency" (0 to 4 steps of constant action delay on top) and "recovery" (15 s
        instead of 10, for success at 8, 10 and 15 s); under eval-v2 and eval-v3, from their nominal robot,
        "latency" (0 to 150 ms of constant delay of actions, of what is seen, of both) and "calibration" (joint zeros,
        finger travel, bases).
      episodes: per condition. seed, threads, progress: as `evaluate`.
      protocol: to start from; the task's own if None.
      stop: ends the work where it is.

    Returns:
      "sweep": the name, and "rows": each condition with the result of `evaluate`, per-episode tables left out.

    Raises:
      ConfigError: the policy's task has no such sweep. ArtifactError: as `evaluate`.
      Interrupted: a stop was asked for; with the rows of the conditions that were done.
    """
    check_episodes(episodes)
    policy = load_policy(policy_path)
    entry = find_task(policy.spec.phase)
    rules = entry.protocol if protocol is None else entry.find_protocol(protocol)
    sweeps = entry.sweeps.get(rules.name, {})
    if name not in sweeps or entry.modified is None:
        if not sweeps:
            raise ConfigError(
                f"The task '{entry.name}' of {policy_path} has no sweeps under {rules.name}."
            )
        raise ConfigError(f"Unknown sweep '{name}' of {rules.name}.{did_you_mean(name, sweeps)}")
    rows: list[JsonObject] = []
    swept: JsonObject = {"sweep": name, "rows": rows}
    for condition in sweeps[name]:
        changed = entry.modified(rules, condition)
        try:
            result = evaluate(policy, episodes, seed, threads, progress, changed, stop=stop)
        except Interrupted:
            done = swept if rows else None
            raise Interrupted(len(rows), len(sweeps[name]), "conditions", done) from None
        result.pop("table")
        rows.append({"condition": dict(condition), **result})
    return swept
