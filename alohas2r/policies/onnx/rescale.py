"""An exported policy whose actions move the arms by another share: slower, or a little faster."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import onnx

from alohas2r.config import check
from alohas2r.core.files import write_atomic
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError
from alohas2r.policies.online.spec import TEMPOS
from alohas2r.policies.onnx.container import DESCRIPTION_KEY, EXPORT_KEY, seal, unseal
from alohas2r.policies.onnx.runtime import OnnxPolicy


def rescale(path: str | os.PathLike[str], out: str | os.PathLike[str], tempo: float) -> JsonObject:
    """Writes a policy file whose action scale is multiplied; the network stays as it is.

    Whoever runs the file takes its scale from it, so that nothing else has to change.

    Args:
      path: the exported policy. out: the new file. tempo: factor of the action scale.

    Returns:
      "path", "policy" (the new file's hash), "scale" (rad; m) and "tempo", which counts from the first file on.

    Raises:
      ConfigError: the tempo is out of range.
      ArtifactError: the file is missing, damaged or no policy with a scale of its own, or `out` cannot be written.
    """
    low, high = TEMPOS
    check(low <= tempo <= high, f"tempo = {tempo:g} must lie in {low:g}..{high:g}")
    policy = OnnxPolicy.load(path)
    description, export = dict(policy.description), dict(policy.export)
    try:
        scale = float(policy.action["scale"]) * tempo
        export["action"] = {**policy.action, "scale": scale}
        description["action"] = {**description["action"], "scale": scale}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} says no action scale of its own that could be changed; choose an exported student."
        ) from error
    description["hash"] = hashlib.sha256(f"{policy.hash} scale {scale!r}".encode()).hexdigest()
    description["tempo"] = float(description.get("tempo", 1.0)) * tempo
    model = onnx.ModelProto.FromString(unseal(pathlib.Path(path).read_bytes(), str(path)))
    metadata = {one.key: one.value for one in model.metadata_props}
    metadata[DESCRIPTION_KEY] = json.dumps(description, indent=2)
    metadata[EXPORT_KEY] = json.dumps(export)
    onnx.helper.set_model_props(model, metadata)
    write_atomic(out, seal(model.SerializeToString(deterministic=True)))
    written = OnnxPolicy.load(out)
    return {
        "path": str(out),
        "policy": written.hash,
        "scale": scale,
        "tempo": description["tempo"],
    }
