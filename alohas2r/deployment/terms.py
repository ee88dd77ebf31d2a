"""What a policy asks of the robot, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alohas2r.config import from_dict
from alohas2r.core.types import JsonObject
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG, SIZE
from alohas2r.embodiment.joints import ACTUATORS, JOINTS, SIDES
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.delays import Delays, delays_from, trained_delays
from alohas2r.policies.onnx.interface import Interface
from alohas2r.policies.remote.served import ANSWER_S, STEPPED_ANSWER_S, ServedPolicy
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene

if TYPE_CHECKING:
    from alohas2r.policies.onnx.runtime import OnnxPolicy

# What a robot gives, and in which unit.
_UNITS = {"rgb": "sRGB", "grey": "luma", "depth": "m", "switched": "1", "target_in_base": "m"}
_PICTURES = ("_rgb", "_depth", "_grey")  # what names of pictures end in
_JOINT_UNIT = "rad, m"
# Largest difference between the ranges of targets that a policy was trained with and the robot's (rad; m).
_RANGE_TOLERANCE = 1e-3


class Terms(NamedTuple):
    """What a policy says about how it wants to be run.

    Attributes:
      name: file or address; hash: that of the artifact.
      action_scale: how far a full action moves a target (rad; m).
      switch: when insertion takes over.
      size: side of its pictures (pixels).
      fovy_deg: their field of view.
      depth_cutoff: depth beyond which it sees nothing (m).
      delays: the longest ones that it was trained for.
      single: whether it is a policy of one arm, see `EachArm`.
      paired: whether it sees what the right imagers of its cameras see.
    """

    name: str
    hash: str
    action_scale: float
    switch: Switch
    size: int
    fovy_deg: float
    depth_cutoff: float
    delays: Delays
    single: bool = False
    paired: bool = False


class _Statement(NamedTuple):
    """What a file or a server says about its policy."""

    name: str
    hash: str
    interface: Interface | None
    action: Mapping[str, object]
    switch: JsonObject | None
    cameras: JsonObject
    delays: Delays


def terms(policy: OnnxPolicy | ServedPolicy) -> Terms:
    """Reads how a policy wants to be run, and that a robot can do it.

    Raises:
      ArtifactError: it takes what a robot does not have, drives other joints, is in other units, or does not say
        what a run depends on.
    """
    if isinstance(policy, ServedPolicy):
        said = _served(policy)
    else:
        said = _Statement(
            str(policy.path),
            policy.hash,
            policy.interface,
            policy.action,
            policy.description.get("switch"),
            policy.description.get("cameras", {}),
            trained_delays(policy.description),
        )
    size = SIZE if said.interface is None else _inputs(said.name, said.interface)
    return Terms(
        name=said.name,
        hash=said.hash,
        action_scale=_scale(said.name, said.action),
        switch=Switch() if said.switch is None else from_dict(Switch, said.switch),
        size=size,
        fovy_deg=float(said.cameras.get("fovy_deg", FOVY_DEG)),
        depth_cutoff=float(said.cameras.get("depth_cutoff", DEPTH_CUTOFF)),
        delays=said.delays,
        single=_joints(said.action) == ACTUATORS,
        paired=said.interface is not None
        and any(one.name.endswith("_grey") for one in said.interface.inputs),
    )


def _served(policy: ServedPolicy) -> _Statement:
    metadata = policy.metadata
    action = metadata.get("actions")
    action = action if isinstance(action, dict) else {}
    missing = [key for key in ("policy", "interface", "switch", "cameras") if key not in metadata]
    wanted = ("joints", "scale", "low", "high", "control_period_s")
    missing += [f"actions.{key}" for key in wanted if key not in action]
    if missing:
        raise ArtifactError(
            f"The policy server at {policy.url} does not say {', '.join(missing)}, which a run depends on. Serve the"
            " exported policy with alohas2r serve of this version."
        )
    return _Statement(
        policy.url,
        str(metadata["policy"]),
        policy.interface,
        action,
        metadata["switch"],
        metadata["cameras"] or {},
        delays_from(metadata.get("delays")),
    )


def _inputs(name: str, interface: Interface) -> int:
    """Returns the side of the pictures; a robot must have all that the policy takes, in its units."""
    shapes = {one.name: one.shape for one in interface.inputs}
    sizes = {shape[:2] for one, shape in shapes.items() if one.endswith(_PICTURES)}
    size = min(sizes)[0] if sizes else SIZE
    given: dict[str, tuple[int, ...]] = {"proprioception": (32,), "switched": ()}
    if "wrist_depth" in shapes:  # of one arm, which is told where to bring the object
        given = {"proprioception": (19,), "wrist_depth": (size, size)}
    for side in SIDES:
        given |= {f"{side}_rgb": (size, size, 3)}
        given |= dict.fromkeys((f"{side}_depth", f"{side}_grey"), (size, size))
    strange = [one for one, shape in shapes.items() if given.get(one) != shape]
    if strange:
        raise ArtifactError(
            f"{name} takes {', '.join(strange)}, which a robot does not have: it sees wrist"
            " pictures and its own joints only. Deploy a student, not a teacher."
        )
    for one in interface.inputs:
        for part, unit in [(one.name, one.unit), *((part.name, part.unit) for part in one.parts)]:
            ours = _UNITS.get(part, _UNITS.get(part.rpartition("_")[2], _JOINT_UNIT))
            if unit not in ("", ours):
                raise ArtifactError(
                    f"{name} takes {part} in {unit}; a robot gives it in {ours}. Export it anew."
                )
    return size


def _joints(action: Mapping[str, object]) -> tuple[str, ...]:
    """Returns the joints that a policy drives."""
    joints = action.get("joints", JOINTS)
    return tuple(joints) if isinstance(joints, list | tuple) else ()


def _scale(name: str, action: Mapping[str, object]) -> float:
    """Returns the scale of the actions; they must be for these joints, this period and these units."""
    joints, period_s = _joints(action), action.get("control_period_s")
    if joints not in (JOINTS, ACTUATORS) or period_s not in (
        None,
        embodiment_joints.CONTROL_PERIOD_S,
    ):
        odd = next((one for one, ours in zip(joints, JOINTS, strict=False) if one != ours), "")
        order = f" ({odd} out of order)" if odd and sorted(joints) == sorted(JOINTS) else ""
        raise ArtifactError(
            f"{name} drives {len(joints)} joints{order} every {period_s} s, not the {len(JOINTS)} of"
            f" two arms every {embodiment_joints.CONTROL_PERIOD_S} s."
        )
    insert = scene.load("insert")
    order = np.concatenate([arm.ctrl for arm in insert.arms])
    for key, ours in (("low", insert.ctrl_low[order]), ("high", insert.ctrl_high[order])):
        if key not in action:
            continue
        theirs, ours = np.asarray(action[key], float), ours[: len(joints)]
        if theirs.shape != ours.shape or not np.abs(theirs - ours).max() < _RANGE_TOLERANCE:
            raise ArtifactError(
                f"{name} drives targets whose {key} ends are {np.round(theirs, 3).tolist()}, not"
                f" {np.round(ours, 3).tolist()} (rad, m): it was trained for another robot, or in other units."
            )
    scale = action.get("scale")
    if not isinstance(scale, float | int) or not 0 < scale <= 0.1:
        raise ArtifactError(f"{name} has the action scale {scale}, not one in (0, 0.1] rad.")
    return float(scale)


def open_policy(
    file: str | os.PathLike[str] | None,
    server: str | None,
    api_key: str = "",
    stepped: bool = False,
) -> contextlib.AbstractContextManager[OnnxPolicy | ServedPolicy]:
    """Returns a policy to be entered, from an ONNX file or a server.

    Args:
      file: the exported policy.
      server: address of a policy server, instead of `file`.
      api_key: if the server wants one.
      stepped: whether time stands still until the server has answered.

    Raises:
      ConfigError: neither or both are given.
      ArtifactError: the file is missing or damaged.
      BackendUnavailable: no server answers.
    """
    if (file is None) == (server is None):
        raise ConfigError("Give one of --policy FILE and --server URL.")
    if server is not None:
        return ServedPolicy(server, api_key, STEPPED_ANSWER_S if stepped else ANSWER_S)
    return contextlib.nullcontext(load_policy(file or ""))


def load_policy(file: str | os.PathLike[str]) -> OnnxPolicy:
    """Reads an exported policy.

    Raises:
      ArtifactError: the file is missing or damaged.
    """
    from alohas2r.policies.onnx.runtime import OnnxPolicy

    path = pathlib.Path(file)
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder; deploy takes the exported file. Export it with"
            f" alohas2r export {path}, which writes an .onnx file."
        )
    if not path.exists():
        raise ArtifactError(
            f"There is no policy {path}. Export a trained student with alohas2r export."
        )
    return OnnxPolicy.load(path)
