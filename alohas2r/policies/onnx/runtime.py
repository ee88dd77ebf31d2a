"""A policy as one ONNX file, on NumPy and onnxruntime alone: all that a robot computer needs.

The file holds the network with everything around it (preprocessing, normalization, squashing), what
goes in and comes out, the policy.json of the artifact that it was made from, and recorded
observations with the actions they must give, which every load verifies. Moving averages of past
observations, where the policy has them, are kept here.
"""

from __future__ import annotations

import copy
import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import onnxruntime

from alohas2r.core.types import Array, JsonObject
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.onnx.container import (
    CHECK_KEY,
    CHECK_TOLERANCE,
    DESCRIPTION_KEY,
    EXPORT_KEY,
    FORMAT_VERSION,
    unpack,
    unseal,
)
from alohas2r.policies.onnx.interface import OUTPUT, Interface, State, all_finite, squares


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
        self._asked, self._answer = 0, np.zeros(0, np.float32)
        try:
            self.export: JsonObject = json.loads(metadata[EXPORT_KEY])
            version = int(self.export["format_version"])
            if version > FORMAT_VERSION:
                raise ArtifactError(
                    f"{path} has format {version}; this alohas2r reads up to {FORMAT_VERSION}: "
                    "upgrade alohas2r."
                )
            self.description: JsonObject = json.loads(metadata[DESCRIPTION_KEY])
            self.hash = str(self.description["hash"])
            self.action: JsonObject = self.export["action"]
            self.interface = Interface.read(self.export["interface"])
            self._check = unpack(metadata[CHECK_KEY])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(f"{path} is no exported policy ({error!r}).") from error
        self._inputs = {one.name: one for one in self.interface.inputs}
        wanted = {one.name: [*one.shape] for one in self.interface.network_inputs}
        shapes = {one.name: [*one.shape[1:]] for one in session.get_inputs()}
        if shapes != wanted or not {OUTPUT, *self._inputs} <= self._check.keys():
            raise ArtifactError(f"{path} is no exported policy: its network takes {shapes}.")

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
        self._memory, self._asked = None, 0

    def act(self, observation: Mapping[str, Array]) -> np.ndarray:
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
        if self._asked % self.interface.hold:
            self._asked += 1
            return self._answer.copy()
        for one in self.interface.memories:  # no difference of such values is too large either
            if not math.isfinite(squares(values[one.observation])):
                raise ArtifactError(f"The values of '{one.observation}' are too large to average.")
        memory, values = self.interface.remember(self._memory, values)
        actions = self.network({name: value[None] for name, value in values.items()})[0]
        if not all_finite(actions):
            raise ArtifactError("The observation's values are too large to compute with.")
        self._memory = memory
        self._asked, self._answer = self._asked + 1, actions
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

    def _read(self, observation: Mapping[str, Array]) -> dict[str, np.ndarray]:
        if not isinstance(observation, Mapping):
            raise ArtifactError(
                f"The observation must be a mapping with the keys {', '.join(self._inputs)}, "
                f"not {type(observation).__name__}."
            )
        if observation.keys() != self._inputs.keys():
            missing = [name for name in self._inputs if name not in observation]
            unknown = [str(name)[:80] for name in observation if name not in self._inputs]
            faults = [f"lacks {', '.join(missing)}"] if missing else []
            faults += [f"has the unknown {', '.join(unknown[:8])}"] if unknown else []
            wanted = "; ".join(
                f"{one.name} {one.dtype} {list(one.shape)}" for one in self._inputs.values()
            )
            raise ArtifactError(f"The observation {' and '.join(faults)}. It must have: {wanted}.")
        return {name: one.read(observation[name]) for name, one in self._inputs.items()}
