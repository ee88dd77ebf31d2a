"""What acts on a robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Policy(Protocol):
    """What is deployed: `OnnxPolicy`, a client of a policy server, or the like."""

    def reset(self) -> None:
        """Forgets the past, at the start of an episode."""
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation of `observe`."""
        ...


def select(policy: Policy, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves out what a policy does not take, where it says what it takes."""
    interface = getattr(policy, "interface", None)
    if interface is None:
        return dict(observation)
    names = {one.name for one in interface.inputs}
    return {name: value for name, value in observation.items() if name in names}
