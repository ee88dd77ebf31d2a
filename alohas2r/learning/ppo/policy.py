"""From a learner to a policy and back."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.embodiment import joints
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvState, Task
from alohas2r.errors import ArtifactError
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.learning.ppo.presets import TrainConfig
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies import state as state_policy
from alohas2r.sim.signals import Readout


def to_policy(
    settings: TrainConfig, env: Env, learner: LearnerState, trained: JsonObject
) -> state_policy.StatePolicy:
    """Returns the learner's deterministic policy."""
    model = env.task.scene
    layers = learner.params["policy"]["params"]
    weights = {
        "mean": np.asarray(learner.policy_stats.mean),
        "std": np.asarray(learner.policy_stats.std),
    }
    for index in range(len(layers)):
        weights[f"layer{index}/kernel"] = np.asarray(layers[f"Dense_{index}"]["kernel"])
        weights[f"layer{index}/bias"] = np.asarray(layers[f"Dense_{index}"]["bias"])
    spec = policies_spec.PolicySpec(
        kind="state",
        phase=settings.phase,
        observation=tuple(
            policies_spec.ObservationPart(*part) for part in env.task.observation_spec
        ),
        history=settings.env.history,
        action=policies_spec.action_spec(model, settings.env.control.scale),
        hidden=settings.ppo.network.policy,
        activation=settings.ppo.network.activation,
    )
    return state_policy.StatePolicy(spec, weights, trained)


_SPREAD = -1.26  # output for a standard deviation of 0.25 before tanh
_OBSERVED = 10_000_000  # observations that a loaded normalization counts for


def with_policy(
    learner: LearnerState, policy: state_policy.StatePolicy | str | os.PathLike[str]
) -> LearnerState:
    """Returns the learner with an artifact's weights and normalization in its policy.

    Raises:
      ArtifactError: the artifact cannot be read, or its network has other shapes.
    """
    if not isinstance(policy, state_policy.StatePolicy):
        policy = artifact.load(policy, state_policy.StatePolicy)
    layers = learner.params["policy"]["params"]
    new = {
        name: {
            kind: jnp.asarray(policy.weights.get(f"layer{name.split('_')[1]}/{kind}", 0))
            for kind in layer
        }
        for name, layer in layers.items()
    }
    if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, layers):
        raise ArtifactError(
            "The policy to start from has a network of other shapes than this configuration."
        )
    # As if of many observations: the first new ones must not shift what the network is used to.
    std = jnp.asarray(policy.weights["std"])
    stats_now = learner.policy_stats.replace(
        count=learner.policy_stats.count.replace(lo=jnp.uint32(_OBSERVED)),
        mean=jnp.asarray(policy.weights["mean"]),
        summed_variance=std**2 * _OBSERVED,
        std=std,
    )
    return learner._replace(
        params={**learner.params, "policy": {"params": new}}, policy_stats=stats_now
    )


def for_first_arm(
    policy: state_policy.StatePolicy, phase: str, task: Task
) -> state_policy.StatePolicy:
    """Returns a policy of two arms of which the first acts as a policy of one arm does; the other gets the action 0.

    Args:
      policy: of one arm.
      phase: name of the task. task: of two arms; its observation begins with all that the policy observes, arm by arm.

    Raises:
      ArtifactError: the task observes something else, or has other arms.
    """
    own, arms = policy.spec.observation, len(task.scene.arms)
    seen = task.observation_spec[: arms * len(own)]
    alike = len(seen) == arms * len(own) and all(
        name.endswith(own[place % len(own)].name) and size == own[place % len(own)].size
        for place, (name, size, _) in enumerate(seen)
    )
    if arms != 2 or task.action_size != 2 * policy.action_size or not alike:
        raise ArtifactError(
            f"A policy for '{policy.spec.phase}' cannot drive an arm of '{phase}', which observes other things."
        )
    size, width = policy.spec.observation_size, task.observation_size
    banks, joints_of_one = 1 + len(policy.spec.history.rates), policy.action_size
    # Each arm's features in those of both; the other arm's numbers are about as large as the first one's.
    first = np.concatenate([bank * width + np.arange(size) for bank in range(banks)])
    mean, std = np.zeros(banks * width), np.ones(banks * width)
    for arm in range(arms):
        mean[first + arm * size] = policy.weights["mean"]
        std[first + arm * size] = policy.weights["std"]
    kernel = np.zeros((banks * width, policy.spec.hidden[0]))
    kernel[first] = policy.weights["layer0/kernel"]
    weights: dict[str, np.ndarray] = dict(policy.weights)
    weights |= {"mean": mean, "std": std, "layer0/kernel": kernel}
    last = f"layer{len(policy.spec.hidden)}"
    # The outputs are all means, then all spreads; a new task needs more exploration than the old one left.
    for part in ("kernel", "bias"):
        old = policy.weights[f"{last}/{part}"]
        new = np.zeros((*old.shape[:-1], 4 * joints_of_one))
        new[..., :joints_of_one] = old[..., :joints_of_one]
        weights[f"{last}/{part}"] = new
    weights[f"{last}/bias"][2 * joints_of_one : 3 * joints_of_one] = _SPREAD
    spec = dataclasses.replace(
        policy.spec,
        phase=phase,
        observation=tuple(policies_spec.ObservationPart(*part) for part in task.observation_spec),
        action=dataclasses.replace(
            policy.spec.action,
            joints=tuple(
                f"{arm.name}/{name}" for arm in task.scene.arms for name in joints.ACTUATORS
            ),
            low=policy.spec.action.low * arms,
            high=policy.spec.action.high * arms,
        ),
    )
    return state_policy.StatePolicy(spec, weights, policy.trained)


def record_check(
    policy: state_policy.StatePolicy, env: Env, seed: int, steps: int = 40
) -> np.ndarray:
    """Returns the observations [steps, n] of one environment while the policy acts."""
    fresh = Env(env.task, env.engine, env.config, np.asarray(env.context), env.held)
    state, physics, readout = fresh.reset(jax.random.split(jax.random.PRNGKey(seed), env.num_envs))
    size = env.task.observation_size
    rows = []

    @jax.jit
    def act(state: EnvState, readout: Readout) -> tuple[EnvState, jax.Array, jax.Array]:
        state, features, _ = fresh.observe(state, readout)
        state, ctrl = fresh.control(state, readout, policy.apply(features, jnp))
        return state, ctrl, features[0, :size]

    for _ in range(steps):
        state, ctrl, row = act(state, readout)
        rows.append(np.asarray(row))
        state, physics, readout, _ = fresh.advance(state, physics, ctrl)
    return np.stack(rows)
