"""What a training starts from: a policy, a run, or a checkpoint of a run."""

from __future__ import annotations

import os
import pathlib

import jax

from alohas2r import config
from alohas2r.embodiment.joints import PER_ARM
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.ppo.envs import make_env
from alohas2r.learning.ppo.learner import Ppo
from alohas2r.learning.ppo.policy import to_policy
from alohas2r.learning.ppo.presets import find_preset
from alohas2r.learning.run import best, loop, manifest
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.policies import artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy


def first_policy(path: str | os.PathLike[str], phase: str) -> StatePolicy:
    """Returns the policy of a task that a path names.

    Args:
      path: an artifact: a policy of the task, a teacher with one in it, or a policy of one arm. Or a run of
        train-teacher, finished or not: its policy, else the state that was evaluated best so far, else the newest.
        Or one of the checkpoints in a run.
      phase: name of the task.

    Raises:
      ArtifactError: there is no such policy, or it is damaged.
    """
    kept, made = kept_state(path), pathlib.Path(path) / "policy"
    if kept is not None and not made.is_dir():
        return _of_checkpoint(kept, phase)
    policy = artifact.load(path if kept is None else made)
    if isinstance(policy, StagedPolicy) and phase in ("pick", "insert"):
        policy = policy.pick if phase == "pick" else policy.insert
    if not isinstance(policy, StatePolicy) or (
        policy.spec.phase != phase and len(policy.spec.action.joints) != PER_ARM
    ):
        raise ArtifactError(f"{path} has no policy for '{phase}' to start from.")
    return policy


def kept_state(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Returns the state that a path names; None if it is neither a run nor one of a run's checkpoints.

    Of a run that is the state that was evaluated best so far, else the newest.
    """
    folder = pathlib.Path(path)
    if manifest.exists(folder):
        kept = (folder / best.FOLDER, folder / loop.CHECKPOINT)
        return next((one for one in kept if one.is_dir()), kept[-1])
    if manifest.exists(folder.parent) and folder.name.startswith(loop.CHECKPOINT):
        return folder
    return None


def _of_checkpoint(folder: pathlib.Path, phase: str) -> StatePolicy:
    """Returns the policy of a state that a run kept: it may be training still."""
    run = folder.parent
    try:
        recorded = manifest.described(run)["config"]
        if recorded["phase"] != phase:
            raise ArtifactError(f"{run} trains '{recorded['phase']}', not '{phase}'.")
        settings = config.from_dict(type(find_preset(phase, "default")), recorded)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"{run} is no run of train-teacher to start from ({error}).") from error
    # The learner's shapes depend on what is observed, not on how many environments there are.
    few = settings.with_envs(settings.ppo.minibatches)
    env = make_env(few, seed=0)
    learner = Checkpoint(folder).load_first(Ppo(few.ppo, env).init(jax.random.PRNGKey(0)))
    return to_policy(settings, env, learner, {})
