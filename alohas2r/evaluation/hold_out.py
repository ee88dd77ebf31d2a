"""Measures students: whole episodes with pictures, under the same protocol and with the same rows as a teacher.

Looks are drawn anew for every episode, with shadows, and every noise is on.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from alohas2r.config import check
from alohas2r.core import progress as core_progress
from alohas2r.core import stats
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import episodes as evaluation_episodes
from alohas2r.evaluation.actors import run_student
from alohas2r.policies import artifact, vision
from alohas2r.policies.vision import StudentPolicy
from alohas2r.tasks.protocol import EVAL_V1, Protocol


def _load(path: str | os.PathLike[str]) -> StudentPolicy:
    if artifact.describe(path).get("kind") != "student":
        raise ArtifactError(f"{path} is no student; `alohas2r distill` makes one.")
    return vision.load(path)


def hold_out_table(
    policy_path: str | os.PathLike[str],
    episodes: int = 500,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
) -> dict[str, Any]:
    """Evaluates a student with one object missing in every episode.

    Returns:
      "closed_on_air": rate of episodes in which the arm on that side closed on nothing, "left" and "right": the
      same by the side that is missing, "other_lifted": rate of episodes in which the other arm lifted its object.

    Raises:
      ArtifactError: the student cannot be read, or is none. ConfigError: a number out of range.
    """
    check(1 <= episodes <= 1_000_000, f"episodes must be in 1..1000000, not {episodes}")
    started = time.monotonic()
    found = _load(policy_path)
    meter = core_progress.Meter("evaluate", episodes, progress, unit="episodes")
    parts = []
    for first in range(0, episodes, evaluation_episodes.MAX_ENVS):
        keys = evaluation_episodes.episode_keys(
            seed, first, min(evaluation_episodes.MAX_ENVS, episodes - first)
        )
        parts.append(
            run_student(
                found, protocol, keys, threads, meter, first, renderer=renderer, missing=True
            )[0]
        )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    left = table["missing_left"]

    def rate(name: str, where: np.ndarray) -> stats.Rate:
        return stats.rate(int(table[name][where].sum()), int(where.sum()))

    every = np.ones(episodes, bool)
    return {
        "protocol": f"{protocol.name}+hold-out",
        "policy": found.hash,
        "episodes": episodes,
        "seed": seed,
        "closed_on_air": rate("closed_on_air", every),
        "left": rate("closed_on_air", left),
        "right": rate("closed_on_air", ~left),
        "other_lifted": rate("other_lifted", every),
        "wall_s": round(time.monotonic() - started, 2),
        "table": table,
    }
