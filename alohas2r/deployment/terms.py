"""What a policy asks of the robot, and how it is opened."""

from __future__ import annotations

import contextlib
import os
import pathlib
from typing import Any, NamedTuple

from alohas2r.config import from_dict
from alohas2r.deployment.config import DeployConfig
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.embodiment.joints import JOINTS, SIDES
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.remote.served import ServedPolicy
from alohas2r.policies.switch import Switch
from alohas2r.robots.realsense.crop import FOVY_DEG


class Terms(NamedTuple):
    """What a policy says about how it wants to be run.

    Attributes:
      name: file or address; hash: that of the artifact.
      action_scale: how far a full action moves a target (rad; m).
      switch: when insertion takes over.
      size: side of its pictures (pixels).
      fovy_deg: their field of view.
    """

    name: str
    hash: str
    action_scale: float
    switch: Switch
    size: int
    fovy_deg: float


def terms(policy: Any) -> Terms:
    """Reads how an `OnnxPolicy` or a `ServedPolicy` wants to be run, and that a robot can do it.

    Raises:
      ArtifactError: it takes what a robot does not have, or drives other joints.
    """
    served = isinstance(policy, ServedPolicy)
    name = policy.url if served else str(policy.path)
    action = policy.metadata.get("actions", {}) if served else policy.action
    description = {} if served else policy.description
    size = 32
    if policy.interface is not None:
        shapes = {one.name: one.shape for one in policy.interface.inputs}
        sizes = {shape[:2] for one, shape in shapes.items() if one.endswith(("_rgb", "_depth"))}
        size = min(sizes)[0] if sizes else size
        given: dict[str, tuple[int, ...]] = {"proprioception": (32,), "switched": ()}
        for side in SIDES:
            given |= {f"{side}_rgb": (size, size, 3), f"{side}_depth": (size, size)}
        strange = [one for one, shape in shapes.items() if given.get(one) != shape]
        if strange:
            raise ArtifactError(
                f"{name} takes {', '.join(strange)}, which a robot does not have: it sees wrist"
                " pictures and its own joints only. Deploy a student, not a teacher."
            )
    joints, period_s = tuple(action.get("joints", JOINTS)), action.get("control_period_s")
    if joints != JOINTS or period_s not in (None, embodiment_joints.CONTROL_PERIOD_S):
        raise ArtifactError(
            f"{name} drives {len(joints)} joints every {period_s} s, not the {len(JOINTS)} of"
            f" two arms every {embodiment_joints.CONTROL_PERIOD_S} s."
        )
    switch, cameras = description.get("switch"), description.get("cameras", {})
    return Terms(
        name=name,
        hash=str(policy.metadata.get("policy", "") if served else policy.hash),
        action_scale=float(action.get("scale", DeployConfig.action_scale)),
        switch=Switch() if switch is None else from_dict(Switch, switch),
        size=size,
        fovy_deg=float(cameras.get("fovy_deg", FOVY_DEG)),
    )


def open_policy(
    file: str | os.PathLike[str] | None, server: str | None, api_key: str = ""
) -> contextlib.AbstractContextManager[Any]:
    """Returns a policy to be entered, from an ONNX file or a server.

    Raises:
      ConfigError: neither or both are given.
      ArtifactError: the file is missing or damaged.
      BackendUnavailable: no server answers.
    """
    if (file is None) == (server is None):
        raise ConfigError("Give one of --policy FILE and --server URL.")
    if server is not None:
        return ServedPolicy(server, api_key)
    from alohas2r.policies.onnx.runtime import OnnxPolicy

    path = pathlib.Path(file or "")
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder; deploy takes the exported file. Export it with"
            f" alohas2r export {path}, which writes an .onnx file."
        )
    if not path.exists():
        raise ArtifactError(
            f"There is no policy {path}. Export a trained student with alohas2r export."
        )
    return contextlib.nullcontext(OnnxPolicy.load(path))
