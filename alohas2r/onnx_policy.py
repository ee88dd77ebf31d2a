"""A policy as one ONNX file, on NumPy and onnxruntime alone: all that a robot computer needs.

The file holds the network with everything around it (preprocessing, normalization, squashing), what
goes in and comes out, the policy.json of the artifact that it was made from, and recorded
observations with the actions they must give, which every load verifies. Moving averages of past
observations, where the policy has them, are kept here.
"""

from __future__ import annotations

import base64
import binascii
import copy
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from alohas2r import history
from alohas2r.config import check, from_dict
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.history import HistoryConfig

FORMAT_VERSION = 1
CHECK_TOLERANCE = 1e-4  # of actions in [-1, 1]; machines round differently
OUTPUT = "actions"
# Keys of the file's metadata_props.
DESCRIPTION_KEY = "policy.json"
EXPORT_KEY = "alohas2r"
CHECK_KEY = "check"
# The last metadata entry (field 14 of ModelProto) ends the file: key "sha256", 64 digits.
_SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"

DTYPES = ("float32", "uint8", "bool")
_TYPES = {name: np.dtype(name) for name in DTYPES}
State = tuple[history.HistoryState, ...]  # of each memory


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

    def read(self, value: Any) -> np.ndarray:
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
        if floats and not _finite(array):
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
    """

    observation: str
    feature: str
    history: HistoryConfig

    def feature_input(self, observed: Input) -> Input:
        """Returns the network's input that takes the place of the observed one."""
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
    """

    inputs: tuple[Input, ...]
    memories: tuple[Memory, ...]
    actions: int

    def __post_init__(self) -> None:
        """Checks that the fields fit together."""
        names = [one.name for one in self.inputs]
        check(bool(names) and len(set(names)) == len(names), "inputs need names of their own")
        check(self.actions > 0, f"actions must be positive, not {self.actions}")
        vectors = [one.name for one in self.inputs if len(one.shape) == 1]
        remembered = [memory.observation for memory in self.memories]
        check(len(set(remembered)) == len(remembered), "one memory for one input")
        for name in remembered:
            check(name in vectors, f"memory needs a vector '{name}' among the inputs")

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
        found, states = dict(values), []
        for index, memory in enumerate(self.memories):
            newest = found.pop(memory.observation)
            before = (
                history.init(memory.history, len(newest), np) if state is None else state[index]
            )
            after, features = history.update(memory.history, before, newest, np)
            states.append(after)
            found[memory.feature] = features
        return tuple(states), found


class OnnxPolicy:
    """An exported policy.

    Attributes:
      path: the file.
      interface: what goes in and comes out.
      description: the artifact's policy.json.
      action: what the actions mean: "joints" in order, "scale", "low" and "high" limits of the
        targets (rad, m), "control_period_s".
      export: how the file was made and verified.
      hash: that of the artifact.
    """

    def __init__(
        self,
        path: pathlib.Path,
        session: onnxruntime.InferenceSession,
        metadata: Mapping[str, str],
    ) -> None:
        """Reads the metadata; use `OnnxPolicy.load`."""
        self.path = path
        self._session = session
        self._memory: State | None = None
        try:
            self.export: dict[str, Any] = json.loads(metadata[EXPORT_KEY])
            version = int(self.export["format_version"])
            if version > FORMAT_VERSION:
                raise ArtifactError(
                    f"{path} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: "
                    "upgrade alohas2r."
                )
            self.description: dict[str, Any] = json.loads(metadata[DESCRIPTION_KEY])
            self.hash = str(self.description["hash"])
            self.action: dict[str, Any] = self.export["action"]
            self.interface = from_dict(Interface, self.export["interface"])
            self._check = unpack(metadata[CHECK_KEY])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(f"{path} is no exported policy ({error!r}).") from error
        self._inputs = {one.name: one for one in self.interface.inputs}
        wanted = {one.name: [*one.shape] for one in self.interface.network_inputs}
        found = {one.name: [*one.shape[1:]] for one in session.get_inputs()}
        if found != wanted or not {OUTPUT, *self._inputs} <= self._check.keys():
            raise ArtifactError(f"{path} is no exported policy: its network takes {found}.")

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int = 1) -> OnnxPolicy:
        """Reads a file and verifies that it computes what the artifact did.

        Args:
          path: the file.
          threads: of onnxruntime; 1 is best for networks as small as these.

        Raises:
          ArtifactError: missing, cut off, changed since the export, too new, no policy, or its
            check fails.
        """
        path = pathlib.Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} could not be read: {error.strerror or error}.") from error
        unseal(content, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors arrive as exceptions
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            metadata = session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime's have no common base
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"onnxruntime {onnxruntime.__version__} cannot run {path}: {reason}"
            ) from error
        policy = cls(path, session, metadata)
        policy.verify()
        return policy

    @property
    def action_size(self) -> int:
        """Number of actions."""
        return self.interface.actions

    def fork(self) -> OnnxPolicy:
        """Returns a policy that shares this one's network and has a memory of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Forgets the past."""
        self._memory = None

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Returns the action for one observation and remembers it.

        An observation that is refused leaves the memory as it was.

        Args:
          observation: a value for each of `interface.inputs`, by name.

        Returns:
          [n] float32 in [-1, 1].

        Raises:
          ArtifactError: a key is missing or unknown, a value has another shape or type or is not
            finite, or is so large that the action is not.
        """
        values = self._read(observation)
        for one in self.interface.memories:  # no difference of such values is too large either
            if not math.isfinite(_squares(values[one.observation])):
                raise ArtifactError(f"The values of '{one.observation}' are too large to average.")
        memory, values = self.interface.remember(self._memory, values)
        actions = self.network({name: value[None] for name, value in values.items()})[0]
        if not _finite(actions):
            raise ArtifactError("The observation's values are too large to compute with.")
        self._memory = memory
        return actions

    def network(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the network alone on a batch, without memory.

        Args:
          inputs: [B, ...] for each of `interface.network_inputs`, by name.

        Returns:
          [B, n] float32.
        """
        return np.asarray(self._session.run([OUTPUT], dict(inputs))[0])

    def examples(self) -> list[dict[str, np.ndarray]]:
        """Returns the recorded sequence of observations that the file is verified with."""
        return [
            {name: self._check[name][step] for name in self._inputs}
            for step in range(len(self._check[OUTPUT]))
        ]

    def verify(self) -> float:
        """Returns how far the actions for the recorded observations are from the artifact's.

        Raises:
          ArtifactError: further than CHECK_TOLERANCE.
        """
        other = self.fork()
        actions = np.stack([other.act(observation) for observation in self.examples()])
        difference = float(np.abs(actions - self._check[OUTPUT]).max())
        if not difference <= CHECK_TOLERANCE:
            raise ArtifactError(
                f"{self.path} fails its check: actions differ by {difference:.2g} on this machine."
            )
        return difference

    def _read(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if not isinstance(observation, Mapping):
            raise ArtifactError(
                f"The observation must be a mapping with the keys {', '.join(self._inputs)}, "
                f"not {type(observation).__name__}."
            )
        if observation.keys() != self._inputs.keys():
            missing = [name for name in self._inputs if name not in observation]
            unknown = [str(name)[:80] for name in observation if name not in self._inputs]
            found = [f"lacks {', '.join(missing)}"] if missing else []
            found += [f"has the unknown {', '.join(unknown[:8])}"] if unknown else []
            wanted = "; ".join(
                f"{one.name} {one.dtype} {list(one.shape)}" for one in self._inputs.values()
            )
            raise ArtifactError(f"The observation {' and '.join(found)}. It must have: {wanted}.")
        return {name: one.read(observation[name]) for name, one in self._inputs.items()}


def _squares(array: np.ndarray) -> float:
    """Returns the sum of all squares, without a warning where it is too large."""
    return float(np.vdot(array, array))


def _finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite; the sum of squares nearly always tells, and sooner."""
    return math.isfinite(_squares(array)) or bool(np.isfinite(array).all())


def seal(content: bytes) -> bytes:
    """Returns a serialized model with a metadata entry at its end that holds its own digest."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def unseal(content: bytes, name: str) -> bytes:
    """Returns the model without its digest.

    Args:
      content: what `seal` returned.
      name: what to call it in the error.

    Raises:
      ArtifactError: the digest is missing or differs.
    """
    body, mark, digest = content[:-76], content[-76:-64], content[-64:]
    if mark != _SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise ArtifactError(
            f"{name} is cut off, damaged, was changed after its export, or is no exported policy; "
            "export it again."
        )
    return body


def pack(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns arrays as text for the file's metadata."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # pyright: ignore[reportArgumentType]
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> dict[str, np.ndarray]:
    """Returns the arrays that `pack` was given.

    Raises:
      ValueError: the text is damaged.
    """
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (binascii.Error, zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise ValueError(f"damaged arrays: {error}") from error
