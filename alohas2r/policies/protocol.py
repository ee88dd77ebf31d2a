"""What acts on a robot, and what artifacts hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from alohas2r.core.types import JsonObject

if TYPE_CHECKING:
    from alohas2r.policies.spec import PolicySpec, StudentSpec


class Policy(Protocol):
    """What is deployed: `OnnxPolicy`, a client of a policy server, or the like."""

    def reset(self) -> None:
        """Forgets the past, at the start of an episode."""
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the actions [14] in [-1, 1] for an observation of `observe`."""
        ...


class Stored(Protocol):
    """What an artifact holds: a policy, or a part of one. Its class says all that is particular to its kind.

    Attributes:
      file: name of the description.
      called: what messages call it; made_by: the command that makes one.
      output: what the outputs are called in check.npz.
    """

    file: ClassVar[str]
    called: ClassVar[str]
    made_by: ClassVar[str]
    output: ClassVar[str]

    @property
    def trained(self) -> Mapping[str, object]:
        """How it was trained, for the description."""
        ...

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """Arrays by name."""
        ...

    @property
    def hash(self) -> str:
        """Identifies what it computes: its description and weights."""
        ...

    def describe(self) -> JsonObject:
        """Returns what the description says beside version, hash and training; "kind" first."""
        ...

    @classmethod
    def build(cls, description: JsonObject, weights: Mapping[str, np.ndarray]) -> Stored:
        """Makes it of its description and weights.

        Raises:
          ArtifactError: the weights do not fit the description. Others of Python's errors: no such description.
        """
        ...

    def check_inputs(self, recorded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns those of the recorded arrays [T, ...] that it takes, as it takes them.

        Raises:
          KeyError: one is missing.
        """
        ...

    def answer(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the outputs [T, ...] for what `check_inputs` returned, one after the other."""
        ...


class AnyPolicy(Stored, Protocol):
    """What all policies of artifacts have, whatever they observe."""

    @property
    def spec(self) -> PolicySpec | StudentSpec:
        """What goes in and what comes out; of a staged policy that of its last part."""
        ...

    @property
    def action_size(self) -> int:
        """Number of actions."""
        ...

    def reset(self) -> None:
        """Forgets the past."""
        ...


class Named(Protocol):
    """An input of a policy."""

    @property
    def name(self) -> str: ...  # noqa: D102


class Takes(Protocol):
    """What a policy takes."""

    @property
    def inputs(self) -> Sequence[Named]: ...  # noqa: D102


@runtime_checkable
class Described(Protocol):
    """A policy that says what it takes; None: it does not."""

    @property
    def interface(self) -> Takes | None:
        """What goes in."""
        ...


@runtime_checkable
class Renewable(Protocol):
    """A policy that may have to begin anew without memory, as one on a server; counts how often it did."""

    renewals: int


class Notes(NamedTuple):
    """What a policy says of its last answer: plain values, and arrays by name."""

    values: JsonObject
    arrays: Mapping[str, np.ndarray]


@runtime_checkable
class Noting(Protocol):
    """A policy that says more of its last answer than the actions, for the log of a run that learns."""

    def notes(self) -> Notes:
        """Returns what is logged beside the actions."""
        ...


def select(policy: Policy, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves out what a policy does not take, where it says what it takes."""
    if not isinstance(policy, Described) or policy.interface is None:
        return dict(observation)
    names = {one.name for one in policy.interface.inputs}
    return {name: value for name, value in observation.items() if name in names}
