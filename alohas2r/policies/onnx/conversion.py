"""Conversion in a process of its own: jax2onnx puts functions of its own in the place of JAX's, and leaves some there.

As a program: `python -m alohas2r.policies.onnx.conversion POLICY OUT OPSET FP16`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import onnx

from alohas2r.errors import Alohas2rError, ArtifactError
from alohas2r.policies.onnx.convert import OPSET, convert
from alohas2r.policies.onnx.network import load_network

_REFUSED = 3  # exit status where what went wrong is said in one line
_LEAST_SAMPLES = 8  # the conversion needs none


def convert_apart(
    policy_path: str | os.PathLike[str], opset: int = OPSET, fp16: bool = False
) -> onnx.ModelProto:
    """Returns the ONNX model of an artifact; see `convert`, which a process of its own calls on the CPU.

    Raises:
      ArtifactError: the policy cannot be read or converted.
      ModuleNotFoundError: there is no jax2onnx.
    """
    if importlib.util.find_spec("jax2onnx") is None:
        raise ModuleNotFoundError("No module named 'jax2onnx'", name="jax2onnx")
    with tempfile.TemporaryDirectory(prefix="alohas2r-export-") as folder:
        out = pathlib.Path(folder) / "model.onnx"
        arguments = [os.fspath(policy_path), str(out), str(opset), str(int(fp16))]
        done = subprocess.run(
            [sys.executable, "-m", "alohas2r.policies.onnx.conversion", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=False,
        )
        said = done.stderr.strip().rpartition("\n")[2]
        if done.returncode == _REFUSED:
            raise ArtifactError(said)
        if done.returncode:
            reason = f": {said}" if said else ""
            raise ArtifactError(
                f"The conversion of {policy_path} ended with exit status {done.returncode}{reason}"
            )
        return onnx.load(str(out))


def main(arguments: list[str]) -> int:
    """Converts an artifact and writes the model.

    Args:
      arguments: the artifact's folder, the file to write, opset, and 1 for float16 weights, else 0.

    Returns:
      The exit status.
    """
    policy, out, opset, fp16 = arguments
    try:
        model = convert(load_network(policy, _LEAST_SAMPLES), int(opset), fp16 == "1")
    except Alohas2rError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        return _REFUSED
    onnx.save(model, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
