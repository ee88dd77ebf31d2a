"""From a learner to a policy."""

from __future__ import annotations

from alohas2r.core.types import JsonObject
from alohas2r.learning.ppo.learner import LearnerState
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import StudentSpec
from alohas2r.policies.vision import PixelPolicy


def to_policy(spec: StudentSpec, learner: LearnerState, trained: JsonObject) -> PixelPolicy:
    """Returns the learner's deterministic policy, without its spreads and what only training needs."""
    stats = learner.policy_stats
    weights = vision_network.flatten({"head": learner.params["policy"]}, stats.mean, stats.std)
    actions = len(spec.action.joints)
    for name in ("kernel", "bias"):
        last = f"head/layer{len(spec.network.hidden)}/{name}"
        weights[last] = weights[last][..., :actions]
    return PixelPolicy(spec, weights, trained)
