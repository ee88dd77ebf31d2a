"""Inputs, outputs and memory of an exported policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from alohas2r.config import check, from_dict, to_dict
from alohas2r.core.types import JsonObject
from alohas2r.embodiment import history as embodiment_history
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ArtifactError

OUTPUT = "actions"

DTYPES = ("float32", "uint8", "bool")
_TYPES = {name: np.dtype(name) for name in DTYPES}
State = tuple[embodiment_history.HistoryState, ...]  # of each memory


@dataclasses.dataclass(frozen=True)
class Part:
    """A named slice of a vector."""

    name: str
    size: int
    unit: str


@dataclasses.dataclass(frozen=True)
class Input:
    """One thing that a policy observes.

    Attributes:
      name: its key.
      shape: without a batch axis; () for a number or flag.
      dtype: one of DTYPES.
      unit: of its values; "" if its parts have their own.
      parts: the named slices of a vector, in order; () if there are none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    unit: str = ""
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        check(bool(self.name), "an input needs a name")
        check(self.dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype}")
        check(all(size > 0 for size in self.shape), f"shape must be positive, not {self.shape}")
        sizes = sum(part.size for part in self.parts)
        check(
            not self.parts or self.shape == (sizes,),
            f"the parts of '{self.name}' have {sizes} values in all, its shape is {self.shape}",
        )

    def read(self, value: object) -> np.ndarray:
        """Returns a value as an array of this shape and dtype.

        Floating-point numbers of another width are converted, nothing else is.

        Raises:
          ArtifactError: another shape or type, or a number that is not finite.
        """
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ArtifactError(f"{self._wanted()}, not {type(value).__name__}.") from error
        wanted = _TYPES[self.dtype]
        floats = wanted.kind == "f" and array.dtype.kind == "f"
        if array.shape != self.shape or not (floats or array.dtype == wanted):
            raise ArtifactError(f"{self._wanted()}, not {array.dtype} {list(array.shape)}.")
        if array.dtype != wanted or not array.flags.c_contiguous:
            with np.errstate(over="ignore", invalid="ignore"):
                array = np.ascontiguousarray(array, wanted).reshape(self.shape)
        if floats and not all_finite(array):
            bad = np.argwhere(~np.isfinite(array))
            where = "".join(f"[{index}]" for index in bad[0])
            raise ArtifactError(
                f"'{self.name}' must be finite; {len(bad)} of {array.size} values are not, "
                f"the first is {self.name}{where}{self._part(bad[0])}."
            )
        return array

    def _wanted(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"'{self.name}' must be {self.dtype} {list(self.shape)}{unit}"

    def _part(self, index: np.ndarray) -> str:
        left = int(index[0]) if index.size else 0
        for part in self.parts:
            if left < part.size:
                return f" ({part.name})"
            left -= part.size
        return ""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Moving averages between an observation and the network.

    Attributes:
      observation: the input that is remembered.
      feature: the network's input, which takes its place: the newest value, then the averages.
      history: the averages.
      recent: instead of averages, so many values of the past, newest first; before there are any, the present one.
    """

    observation: str
    feature: str
    history: HistoryConfig
    recent: int = 0

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        check(self.recent >= 0, f"recent must not be negative, not {self.recent}")
        check(not (self.recent and self.history.rates), "a memory has averages or past values")

    def feature_input(self, observed: Input) -> Input:
        """Returns the network's input that takes the place of the observed one."""
        if self.recent:
            shape = (observed.shape[0] * (1 + self.recent),)
            return Input(self.feature, shape, observed.dtype, observed.unit)
        averages = [
            Part(f"{part.name} averaged at {rate}", part.size, part.unit)
            for rate in self.history.rates
            for part in observed.parts
        ]
        shape = (self.history.size(observed.shape[0]),)
        return Input(
            self.feature, shape, observed.dtype, observed.unit, (*observed.parts, *averages)
        )


@dataclasses.dataclass(frozen=True)
class Interface:
    """What goes into an exported policy and what comes out.

    Attributes:
      inputs: of `OnnxPolicy.act`, in order.
      memories: what it remembers of them.
      actions: how many come out, each in [-1, 1].
      hold: control steps for which an answer is kept up, before the network is asked again.
    """

    inputs: tuple[Input, ...]
    memories: tuple[Memory, ...]
    actions: int
    hold: int = 1

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        names = [one.name for one in self.inputs]
        check(bool(names) and len(set(names)) == len(names), "inputs need names of their own")
        check(self.hold >= 1, f"hold must be at least 1, not {self.hold}")
        check(self.actions > 0, f"actions must be positive, not {self.actions}")
        vectors = [one.name for one in self.inputs if len(one.shape) == 1]
        remembered = [memory.observation for memory in self.memories]
        check(len(set(remembered)) == len(remembered), "one memory for one input")
        for name in remembered:
            check(name in vectors, f"memory needs a vector '{name}' among the inputs")

    def described(self) -> JsonObject:
        """Returns it as files keep it: what has its usual value is left out."""
        plain = to_dict(self)
        if self.hold == 1:
            del plain["hold"]
        for one in plain["memories"]:
            if not one["recent"]:
                del one["recent"]
        return plain

    @classmethod
    def read(cls, data: JsonObject) -> Interface:
        """Returns what was described.

        Raises:
          ConfigError: it is no description of an interface.
        """
        if not isinstance(data, dict):
            return from_dict(cls, data)
        memories = data.get("memories", ())
        if isinstance(memories, list | tuple) and all(isinstance(one, dict) for one in memories):
            data = {**data, "memories": [{"recent": 0, **one} for one in memories]}
        return from_dict(cls, {"hold": 1, **data})

    @property
    def network_inputs(self) -> tuple[Input, ...]:
        """The inputs of the network itself, averages with what they are taken of."""
        memories = {memory.observation: memory for memory in self.memories}
        return tuple(
            memories[one.name].feature_input(one) if one.name in memories else one
            for one in self.inputs
        )

    def remember(
        self, state: State | None, values: Mapping[str, np.ndarray]
    ) -> tuple[State, dict[str, np.ndarray]]:
        """Adds an observation to the memory.

        Args:
          state: the memory; None after a reset.
          values: the observation by name, without a batch axis.

        Returns:
          The new memory and the network's inputs.
        """
        inputs, states = dict(values), []
        for index, memory in enumerate(self.memories):
            newest = inputs.pop(memory.observation)
            if memory.recent:
                after, inputs[memory.feature] = _recent(
                    memory.recent, None if state is None else state[index], newest
                )
                states.append(after)
                continue
            before = (
                embodiment_history.init(memory.history, len(newest), np)
                if state is None
                else state[index]
            )
            after, features = embodiment_history.update(memory.history, before, newest, np)
            states.append(after)
            inputs[memory.feature] = features
        return tuple(states), inputs


def _recent(
    count: int, before: embodiment_history.HistoryState | None, newest: np.ndarray
) -> tuple[embodiment_history.HistoryState, np.ndarray]:
    """Returns the past values [count, n] with the newest among them, and the newest followed by those before it."""
    past = np.repeat(newest[None], count, axis=0) if before is None else before.averages
    seen = 0 if before is None else int(before.seen)
    features = np.concatenate([newest, past.ravel()])
    kept = np.concatenate([newest[None], past[:-1]])
    return embodiment_history.HistoryState(kept, np.int32(seen + 1)), features


def squares(array: np.ndarray) -> float:
    """Returns the sum of all squares, without a warning where it is too large."""
    return float(np.vdot(array, array))


def all_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite; the sum of squares nearly always tells, and sooner."""
    return math.isfinite(squares(array)) or bool(np.isfinite(array).all())
