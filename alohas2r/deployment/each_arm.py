"""A policy of one arm on a robot of two: it drives each of them by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.embodiment.joints import SIDES
from alohas2r.policies.protocol import Policy, Renewable
from alohas2r.tasks.starts import InsertStart

_VIEW = "wrist_depth"  # what such a policy calls the picture of its arm's camera


class EachArm:
    """Drives both arms by a policy of one arm, each as if it were alone.

    Each brings its object to where insertion begins. Which of them goes first is no question: what they know of each
    other is what their cameras see.

    Args:
      policies: one for each arm, left first: the same policy with memories of their own.

    Attributes:
      targets: where each brings its object, in its base frame [2, 3] (m).
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = tuple(policies)
        self.targets = InsertStart().targets_in_bases()

    @property
    def renewals(self) -> int:
        """How often one of them had to begin anew without memory."""
        return sum(one.renewals for one in self._policies if isinstance(one, Renewable))

    def reset(self) -> None:
        """Forgets the past."""
        for policy in self._policies:
            policy.reset()

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation of `observe`."""
        # Positions of both arms, then positions less targets of both.
        joints = np.asarray(observation["proprioception"], np.float32).reshape(2, len(SIDES), -1)
        actions = []
        for place, (side, policy) in enumerate(zip(SIDES, self._policies, strict=True)):
            vector = np.concatenate([*joints[:, place], self.targets[place]])
            own = {_VIEW: observation[f"{side}_depth"], "proprioception": vector}
            actions.append(np.asarray(policy.act(own)))
        return np.concatenate(actions)
