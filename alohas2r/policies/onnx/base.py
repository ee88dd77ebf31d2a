"""A student from its exported file, with its weights: what a residual is added to."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

import numpy as np

from alohas2r.errors import ArtifactError
from alohas2r.policies.online.insertion import TASK, InsertSpec, PacedSpec
from alohas2r.policies.online.tasks import TASKS
from alohas2r.policies.onnx import exported
from alohas2r.policies.onnx.container import unseal
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.spec import STUDENT, StudentSpec


class Base(NamedTuple):
    """A student that was exported.

    Attributes:
      policy: the file, ready to act. spec: the student's description. weights: the student's, by name.
    """

    policy: OnnxPolicy
    spec: StudentSpec
    weights: dict[str, np.ndarray]


def insert_spec(
    base: Base,
    hidden: tuple[int, ...] = (256, 256),
    scale: float | None = None,
    loudest: float = -1.0,
    tempo: bool = False,
) -> InsertSpec:
    """Returns what a residual of a student is.

    Args:
      base: the student.
      hidden, scale, loudest: see `LearntSpec`; None: the task's scale.
      tempo: whether it sets the tempo as well.

    Raises:
      ConfigError: a number out of range, or the student lacks what a residual sees by.
    """
    share = TASKS[TASK].scale if scale is None else scale
    make = PacedSpec if tempo else InsertSpec
    return make(
        student=base.spec,
        student_hash=base.policy.hash,
        hidden=hidden,
        scale=share,
        loudest=loudest,
    )


def read_base(path: str | os.PathLike[str]) -> Base:
    """Reads an exported student.

    Raises:
      ArtifactError: missing, damaged, or no student of the insertion on colour and depth.
    """
    read = exported.load(path)
    spec = read.spec
    if not isinstance(spec, StudentSpec) or spec.kind != STUDENT or spec.observation != "rgbd":
        raise ArtifactError(
            f"{path} is no exported student of the insertion on colour and depth, which a residual could be added to."
        )
    import onnx  # robots' computers have none, and deploy what was corrected without it

    model = onnx.ModelProto.FromString(unseal(pathlib.Path(path).read_bytes(), str(path)))
    weights = {
        one.name: np.asarray(onnx.numpy_helper.to_array(one), np.float32)
        for one in model.graph.initializer
        if one.name in ("mean", "std") or one.name.startswith(("encoder/", "head/"))
    }
    return Base(read.file, spec, weights)
