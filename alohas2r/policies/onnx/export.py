"""Export: a policy artifact as one ONNX file that is verified to be the same policy.

Every weight tensor becomes an initializer of the artifact's name, because the conversion takes the
weights as inputs of the graph: none can be folded away or left behind unseen. Before the file is
written, onnxruntime and JAX must agree on realistic inputs, and again after every single weight
tensor and every single input has been disturbed; a disturbance must show in the actions.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib

import jax.extend.core
import numpy as np
import onnx

from alohas2r.config import check
from alohas2r.core import files
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.errors import ArtifactError
from alohas2r.policies.onnx import container
from alohas2r.policies.onnx.conversion import convert_apart
from alohas2r.policies.onnx.convert import OPSET, narrow
from alohas2r.policies.onnx.interface import OUTPUT
from alohas2r.policies.onnx.network import Network, load_network
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.onnx.verify import TOLERANCE, verify

CHECK_STEPS = 8  # recorded observations in the file, if there are more of them


def export(
    policy_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    opset: int = OPSET,
    fp16: bool = False,
    verify_samples: int = 256,
    seed: int = 0,
) -> JsonObject:
    """Exports a policy artifact; the file is written only if it is verified.

    Args:
      policy_path: the artifact's directory.
      out: the file, policy.onnx.
      opset: version of the ONNX operators; a lower one runs on older versions of onnxruntime.
      fp16: whether to store weight matrices and kernels as float16, which halves the file. They are
        widened when the file is loaded, so that every CPU runs it and none runs it slower.
      verify_samples: how many inputs to compare onnxruntime and JAX on.
      seed: of the inputs and disturbances.

    Returns:
      As `write`.

    Raises:
      ArtifactError: the policy cannot be read, converted or written, or differs from the file.
      ConfigError: a number out of range.
    """
    check(8 <= verify_samples <= 1_000_000, f"verify_samples = {verify_samples} must be in 8..1e6")
    _check_opset(opset)
    network = load_network(policy_path, verify_samples, seed)
    model = convert_apart(policy_path, opset, fp16)
    return write(network, model, out, seed)


def write(
    network: Network, model: onnx.ModelProto, out: str | os.PathLike[str], seed: int = 0
) -> JsonObject:
    """Verifies a converted model and writes it with all that belongs to the policy.

    Args:
      network: the policy as a JAX function.
      model: as `convert` made it.
      out: the file.
      seed: of the disturbances.

    Returns:
      "path", "bytes", "policy" (its hash), "opset", "fp16", "weights" and "values" (how many
      tensors, how many numbers in them), and "verified": "samples", "batches", "max_difference"
      (onnxruntime against JAX), "disturbed" (how many weights and inputs were), "least_effect" (of
      a disturbance on the actions), "without_effect" (elements of vector inputs that no sample
      reacts to), "fp16_difference" (float16 against float32 weights).

    Raises:
      ArtifactError: onnxruntime cannot run it, it differs from JAX, a weight or an input is without
        effect, or the file cannot be written.
    """
    opset = next(one.version for one in model.opset_import if not one.domain)
    fp16 = any(one.data_type == onnx.TensorProto.FLOAT16 for one in model.graph.initializer)
    verified = verify(network, model, seed)
    details = {
        "format_version": container.FORMAT_VERSION,
        "interface": network.interface.described(),
        "action": dict(network.action),
        "opset": opset,
        "fp16": fp16,
        "versions": {
            "alohas2r": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jax2onnx")},
        },
        "verified": verified,
    }
    metadata = {
        container.DESCRIPTION_KEY: json.dumps(network.description, indent=2),
        container.EXPORT_KEY: json.dumps(details),
        container.CHECK_KEY: container.pack(_check(network, fp16)),
    }
    onnx.helper.set_model_props(model, metadata)
    content = container.seal(model.SerializeToString(deterministic=True))
    path = pathlib.Path(out)
    aside = path.with_name(f".{path.name}.unverified")
    try:  # the file itself must pass, as the robot's computer will read it
        files.write_atomic(aside, content)
        difference = OnnxPolicy.load(aside).verify()
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"The recorded actions of the policy and the file's differ by {difference:.2g}; "
                f"{TOLERANCE} is allowed."
            )
        files.write_atomic(path, content)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return {
        "path": str(path),
        "bytes": len(content),
        "policy": network.description["hash"],
        "opset": opset,
        "fp16": fp16,
        "weights": len(network.weights),
        "values": sum(np.size(value) for value in network.weights.values()),
        "verified": verified,
    }


def _check_opset(opset: int) -> None:
    highest = onnx.defs.onnx_opset_version()
    check(13 <= opset <= highest, f"opset = {opset} must be in 13..{highest}")


def _check(network: Network, fp16: bool) -> dict[str, np.ndarray]:
    """Returns the recorded sequence; with float16 weights, actions as these give them."""
    recorded = {name: np.asarray(value[:CHECK_STEPS]) for name, value in network.check.items()}
    if not fp16:
        return recorded
    if network.interface.hold > 1:
        raise ArtifactError("A policy that keeps its answers up is exported without --fp16.")
    rounded = {
        name: narrow(value, fp16).astype(np.float32) for name, value in network.weights.items()
    }
    compiled, state = jax.jit(network.apply), None
    actions = np.empty_like(recorded[OUTPUT])
    for step in range(len(actions)):
        values = {one.name: recorded[one.name][step] for one in network.interface.inputs}
        state, inputs = network.interface.remember(state, values)
        actions[step] = compiled(rounded, {name: value[None] for name, value in inputs.items()})[0]
    return {**recorded, OUTPUT: actions}
