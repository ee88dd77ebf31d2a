"""What acts on a robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from alohas2r.policies.onnx.interface import Interface


class Policy(Protocol):
    """What is deployed: `OnnxPolicy`, a client of a policy server, or the like."""

    def reset(self) -> None:
        """Forgets the past, at the start of an episode."""
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation of `observe`."""
        ...


@runtime_checkable
class Described(Protocol):
    """A policy that says what it takes; None: it does not."""

    interface: Interface | None


@runtime_checkable
class Renewable(Protocol):
    """A policy that may have to begin anew without memory, as one on a server; counts how often it did."""

    renewals: int


def select(policy: Policy, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves out what a policy does not take, where it says what it takes."""
    if not isinstance(policy, Described) or policy.interface is None:
        return dict(observation)
    names = {one.name for one in policy.interface.inputs}
    return {name: value for name, value in observation.items() if name in names}
