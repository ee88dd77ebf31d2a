"""Measures policies in simulation under the frozen protocol: success rates with 95% Wilson intervals."""

from __future__ import annotations

import os
import pathlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from alohas2r.core import progress as core_progress
from alohas2r.core.stats import quantiles
from alohas2r.embodiment import joints
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.evaluation.actors import run
from alohas2r.evaluation.episodes import MAX_ENVS, episode_keys
from alohas2r.policies import artifact
from alohas2r.policies import staged as policies_staged
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim.engines import registry as engines
from alohas2r.tasks.insert.scoring import insert_summary
from alohas2r.tasks.insert.task import InsertTask
from alohas2r.tasks.pick.scoring import pick_summary
from alohas2r.tasks.pick.task import PickTask
from alohas2r.tasks.protocol import EVAL_V1, Protocol

if TYPE_CHECKING:
    from alohas2r.policies.onnx.exported import ExportedPolicy


def checked_policy(
    policy_path: str | os.PathLike[str], episodes: int
) -> policies_staged.AnyPolicy | StudentPolicy | ExportedPolicy:
    """Reads a policy that can be evaluated.

    Raises:
      ArtifactError: it cannot be read, or observes other things than this version gives.
      ConfigError: `episodes` out of range.
    """
    if not 1 <= episodes <= 1_000_000:
        raise ConfigError(f"episodes must be in 1..1000000, not {episodes}.")
    if pathlib.Path(policy_path).suffix.lower() == ".onnx" or pathlib.Path(policy_path).is_file():
        from alohas2r.policies.onnx import exported

        policy = exported.load(policy_path)
        single = policy.kind == "state"
    else:
        policy = artifact.load(policy_path)
        single = isinstance(policy, StatePolicy)
    if isinstance(policy.spec, StudentSpec):
        return policy
    if single and policy.spec.phase != "pick":
        raise ArtifactError(
            f"{policy_path} is a policy for the insertion alone; evaluate the teacher that holds it and a pick policy."
        )
    task = PickTask if single else InsertTask
    expected = tuple((part.name, part.size, part.unit) for part in policy.spec.observation)
    if expected != task.observation_spec:
        raise ArtifactError(
            f"{policy_path} expects other observations than this version of alohas2r gives."
        )
    return policy


def evaluate(
    policy_path: str | os.PathLike[str],
    episodes: int = 1000,
    seed: int = 0,
    threads: int = 0,
    progress: core_progress.Progress | None = None,
    protocol: Protocol = EVAL_V1,
    renderer: str = "auto",
    engine: str = "cpu",
) -> dict[str, Any]:
    """Evaluates a policy under eval-v1: exactly the first `episodes` episodes of the seed.

    Args:
      policy_path: an artifact's directory, or an exported file (.onnx).
      episodes: how many.
      seed: of starts, blocks, noise and delays; episode i is the same whatever `episodes` is.
      threads: of the physics; 0 for all cores.
      progress: receives reports.
      protocol: eval-v1, or one made from it by `protocol.modified`.
      renderer: what draws a student's pictures; see senses.RENDERERS.
      engine: what simulates: "cpu", "warp" or "auto"; students and exported files know the first only.

    Returns:
      Rates with Wilson intervals, quantiles of errors and times, and "table": per-episode columns.

    Raises:
      ArtifactError: the policy cannot be read or is none for this protocol.
      ConfigError: a number out of range.
    """
    started = time.monotonic()
    policy = checked_policy(policy_path, episodes)
    knows = isinstance(policy, StatePolicy | StagedPolicy)
    engine = "cpu" if engine == engines.AUTO and not knows else engines.choose(engine)
    if engine != "cpu" and not knows:
        raise ConfigError(
            f"The engine '{engine}' evaluates teachers only; use --engine cpu for {policy_path}."
        )
    meter = core_progress.Meter("evaluate", episodes, progress, unit="episodes")
    parts = []
    for first in range(0, episodes, MAX_ENVS):
        count = min(MAX_ENVS, episodes - first)
        parts.append(
            run(
                policy,
                protocol,
                episode_keys(seed, first, count),
                threads,
                meter,
                first,
                renderer,
                engine,
            )[0]
        )
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    staged = policy.spec.phase != "pick"
    result = {
        "protocol": protocol.name,
        "protocol_hash": protocol.hash,
        "policy": policy.hash,
        "phase": policy.spec.phase,
        "engine": engine,
        "episodes": episodes,
        "seed": seed,
    }
    if staged:
        result |= insert_summary(table, protocol.insert.steps * joints.CONTROL_PERIOD_S)
    else:
        result |= pick_summary(table)
    result |= {
        "peak_joint_speed_rad_s": quantiles(table["peak_joint_speed"]),
        "peak_contact_force_n": quantiles(table["peak_contact_force"]),
        "wall_s": round(time.monotonic() - started, 2),
        "table": table,
    }
    return result
