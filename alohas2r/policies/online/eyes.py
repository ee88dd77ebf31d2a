"""The frozen eyes of a policy that learns on the robot: a student's first layers."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from alohas2r.config import from_dict
from alohas2r.core.types import Array
from alohas2r.errors import ArtifactError
from alohas2r.policies import artifact
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig

_LAYERS = ("Conv_0", "Conv_1", "Conv_2")


def read_eyes(
    folder: str | os.PathLike[str], side: str
) -> tuple[dict[str, np.ndarray], CameraSpec, StudentNetworkConfig]:
    """Reads a student's first layers.

    Args:
      folder: of the student. side: of the camera.

    Returns:
      Weights by name "eyes/...", what the pictures are like, and the shapes.

    Raises:
      ArtifactError: it is no student with colour, depth, places and patches, or it is damaged.
    """
    description = artifact.describe(folder)
    if description.get("kind") != "student" or description.get("observation") != "rgbd":
        raise ArtifactError(
            f"{folder} is no student on colour and depth, whose eyes could be lent."
        )
    weights = artifact.read_npz(pathlib.Path(folder) / "weights.npz")
    network = from_dict(StudentNetworkConfig, description["network"])
    cameras = from_dict(CameraSpec, description["cameras"])
    eyes = eyes_of(weights, side, network)
    return {name: np.asarray(eyes[name], np.float32) for name in eyes}, cameras, network


def eyes_of(
    weights: Mapping[str, Array], side: str, network: StudentNetworkConfig
) -> dict[str, Array]:
    """Returns a student's first layers for a side's camera, by the names of `networks`."""
    names = {f"encoder/{layer}/kernel": f"eyes/{layer}/kernel" for layer in _LAYERS}
    dense = {f"head/{side}_rgb": "rgb", f"head/{side}_depth": "depth"}
    if network.places:
        dense |= {"head/places": "places", f"head/{side}_places": "side_places"}
    if network.patches:
        dense |= {"head/patches0": "patches0", "head/patches1": "patches1"}
        dense[f"head/{side}_patches"] = "side_patches"
    for theirs, ours in dense.items():
        for part in ("kernel", "bias"):
            names[f"{theirs}/{part}"] = f"eyes/{ours}/{part}"
    return {ours: weights[theirs] for theirs, ours in names.items()}
