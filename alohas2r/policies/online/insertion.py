"""The residual of an insertion: what is added to the arms' actions of an exported student while it inserts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.policies.online import networks
from alohas2r.policies.online.spec import Inputs, LearntSpec
from alohas2r.policies.online.tasks import TASKS
from alohas2r.policies.spec import (
    PACED,
    RESIDUAL,
    STUDENT,
    CameraSpec,
    ResidualSpec,
    StudentSpec,
)

TASK = "insert"
_ARM = PER_ARM - 1  # joints of an arm; its gripper is left to the student
_PREFIX = "residual/"  # of the names that its weights have beside the student's


@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertSpec(LearntSpec):
    """A residual and the student that it corrects: everything but the weights.

    It decides in every control step, of both arms' joints, once the student has switched to insertion.

    Attributes:
      student: what is corrected. student_hash: of its file.
    """

    student: StudentSpec
    student_hash: str
    task: str = TASK
    base: bool = False
    scale: float = TASKS[TASK].scale

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        network = self.student.network
        sees = self.student.observation == "rgbd" and network.places and network.patches
        check(
            bool(sees) and self.student.kind in (STUDENT, RESIDUAL, PACED),
            "what is corrected must be a student on colour and depth, with places and patches",
        )
        check(self.task == TASK, f"task must be {TASK}, not '{self.task}'")
        check(self.policy and not self.base, "a residual learns by reward, on a base that is given")

    @property
    def cameras(self) -> CameraSpec:
        """What its pictures are like: the student's."""
        return self.student.cameras

    @property
    def given(self) -> bool:
        """Whether its base is made elsewhere: by the student."""
        return True

    @property
    def hold(self) -> int:
        """Control steps of a decision."""
        return 1

    @property
    def actions(self) -> int:
        """Numbers of an action: the joints of both arms, without grippers."""
        return len(SIDES) * _ARM

    @property
    def pictures(self) -> int:
        """Numbers that the student's first layers make of both wrists' pictures; the first of the features."""
        return len(SIDES) * 4 * self.student.network.embedding

    @property
    def features(self) -> int:
        """Numbers that the networks get of an observation."""
        return self.pictures + self.student.features + self.actions

    @property
    def inputs(self) -> Inputs:
        """What such a policy takes: what the student takes."""
        return self.student.inputs

    def executed(self, before: Array, after: Array) -> Array:
        """Returns the action [..., 12] that was executed between two steps: from the commands after the guard.

        Args:
          before, after: [..., 32] proprioception.
        """
        return np.clip((_targets(after) - _targets(before)) / self.student.action.scale, -1, 1)

    def unlike(self, other: Mapping[str, object]) -> str:
        """Returns why demonstrations of another description do not serve: another student gave them."""
        found = str(other["student_hash"])
        if found == self.student_hash:
            return ""
        return f"is of another student ({found[:12]}) than --base ({self.student_hash[:12]})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PacedSpec(InsertSpec):
    """A residual that sets the tempo as well, by which the arms' movements of a control step are multiplied."""

    @property
    def outputs(self) -> int:
        """The joints, and the tempo."""
        return self.actions + 1


def _targets(proprioception: Array) -> Array:
    """Returns the last targets [..., 12] of both arms' joints."""
    size = proprioception.shape[:-1]
    parts = proprioception.reshape(*size, 2, len(SIDES), PER_ARM + 1)[..., :_ARM]
    return (parts[..., 0, :, :] - parts[..., 1, :, :]).reshape(*size, -1)


def features_of(seen: Sequence[Array], felt: Array, base: Array, xp: Array = np) -> Array:
    """Returns what the networks get [..., F].

    Args:
      seen: [..., n] what the student's first layers make of each wrist's pictures, left first.
      felt: [..., 96] proprioception and its moving averages, which tell what was executed lately.
      base: [..., 14] what the student wants.
      xp: the array namespace.
    """
    return xp.concatenate([*seen, felt, joints_of(base)], -1)


def joints_of(actions: Array) -> Array:
    """Returns the arms' part [..., 12] of actions [..., 14]."""
    size = actions.shape[:-1]
    return actions.reshape(*size, len(SIDES), PER_ARM)[..., :_ARM].reshape(*size, -1)


def with_joints(actions: Array, joints: Array, xp: Array = np) -> Array:
    """Returns actions [..., 14] with another part of the arms [..., 12]; the grippers stay."""
    size = actions.shape[:-1]
    grippers = actions.reshape(*size, len(SIDES), PER_ARM)[..., _ARM:]
    both = xp.concatenate([joints.reshape(*size, len(SIDES), _ARM), grippers], -1)
    return both.reshape(*size, -1)


def corrected(
    spec: ResidualSpec, weights: Mapping[str, Array], told: Array, actions: Array, xp: Array = np
) -> Array:
    """Returns a student's actions [..., 14] with the residual, by all weights and what `features_of` told."""
    own = {name.removeprefix(_PREFIX): weights[name] for name in shapes_of(spec)}
    _, wanted = networks.decide(_learnt(spec), own, told, xp=xp)
    return with_joints(actions, wanted, xp)


def shapes_of(spec: ResidualSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the residual's weights by name."""
    return {f"{_PREFIX}{name}": shape for name, shape in networks.shapes(_learnt(spec)).items()}


def residual_spec(spec: InsertSpec) -> ResidualSpec:
    """Returns what describes student and residual as one policy."""
    fields = {one.name: getattr(spec.student, one.name) for one in dataclasses.fields(StudentSpec)}
    fields["kind"] = PACED if isinstance(spec, PacedSpec) else RESIDUAL
    return ResidualSpec(**fields, corrections=spec.hidden, share=spec.scale)


def joined_weights(
    student: Mapping[str, np.ndarray], residual: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the weights of student and residual as those of one policy."""
    return {**student, **{f"{_PREFIX}{name}": value for name, value in residual.items()}}


def _learnt(spec: ResidualSpec) -> InsertSpec:
    make = PacedSpec if spec.tempo else InsertSpec
    return make(student=spec, student_hash="", hidden=spec.corrections, scale=spec.share)
