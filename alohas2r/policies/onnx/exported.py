"""An exported policy together with the description of what it was made from."""

from __future__ import annotations

import dataclasses
import os

from alohas2r import config
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.online.policy import NOT_EVALUATED, ONLINE
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.spec import (
    PACED,
    PIXELS,
    RESIDUAL,
    STAGED_PIXELS,
    STEREO,
    STUDENT,
    PolicySpec,
    StudentSpec,
    spec_class,
)


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedPolicy:
    """An ONNX file and the description of the artifact that it was made from.

    Attributes:
      file: the policy.
      kind: "state", "staged", "student", "residual", "paced", "stereo", "pixels" or "staged_pixels".
      spec: of the artifact; of the insertion policy, if it is staged.
    """

    file: OnnxPolicy
    kind: str
    spec: PolicySpec | StudentSpec

    @property
    def hash(self) -> str:
        """That of the artifact."""
        return self.file.hash


def load(path: str | os.PathLike[str]) -> ExportedPolicy:
    """Reads an exported policy and verifies it.

    Raises:
      ArtifactError: the file cannot be read, fails its check, or was made from nothing that is known here.
    """
    file = OnnxPolicy.load(path)
    try:
        kind = str(file.description["kind"])
        described = file.description["parts"]["insert"] if kind == "staged" else file.description
        if kind == ONLINE:
            raise ArtifactError(NOT_EVALUATED.format(path=path, task=described["phase"]))
        students = (STUDENT, RESIDUAL, PACED, STEREO, PIXELS, STAGED_PIXELS)
        if kind not in ("state", "staged", *students):
            raise ValueError(f"kind '{kind}'")
        of = spec_class(kind)
        fields = {field.name: described[field.name] for field in dataclasses.fields(of)}
        return ExportedPolicy(file, kind, config.from_dict(of, fields))
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has no valid description of its policy: {error}") from error
