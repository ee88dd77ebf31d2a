"""Checks an exported policy against the one it was made from."""

from __future__ import annotations

from collections.abc import Callable

import jax.extend.core
import numpy as np
import onnx
import onnxruntime

from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError
from alohas2r.policies.onnx.convert import narrow
from alohas2r.policies.onnx.interface import OUTPUT, Input
from alohas2r.policies.onnx.network import Network
from alohas2r.policies.onnx.samples import Arrays

TOLERANCE = 1e-5  # of actions in [-1, 1], onnxruntime against JAX
LEAST_EFFECT = 1e-6  # of a disturbance on the actions
FP16_TOLERANCE = 0.01  # of actions, float16 against float32 weights
DISTURBANCE = 0.1  # relative to a tensor's size


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's have no common base
        opset = model.opset_import[0].version
        raise ArtifactError(
            f"onnxruntime {onnxruntime.__version__} cannot run this policy at opset {opset}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def verify(network: Network, model: onnx.ModelProto, seed: int = 0) -> JsonObject:
    """Compares a converted model with the JAX function that it came from.

    On the samples, in batches of several sizes; then, after each weight tensor in turn has got 10%
    noise, and each input (each named part of a vector) in turn: the two must still agree, and both
    must react.

    Args:
      network: the function.
      model: as `convert` made it, or a model read from a file.
      seed: of the noise.

    Returns:
      "samples", "batches", "max_difference", "disturbed", "least_effect", "without_effect",
      "fp16_difference"; see `export.write`.

    Raises:
      ArtifactError: they differ, something is without effect, or float16 is too coarse.
    """
    draw = np.random.default_rng(seed)
    weights = _stored_weights(network, model)
    fp16 = any(value.dtype == np.float16 for value in weights.values())
    wide = {name: value.astype(np.float32) for name, value in weights.items()}
    samples = {name: np.asarray(value) for name, value in network.samples.items()}
    count = len(next(iter(samples.values())))
    compiled = jax.jit(network.apply)
    session = _session(model)

    def reference(weights: Arrays, inputs: Arrays) -> np.ndarray:
        return np.asarray(compiled(weights, inputs))

    plain = reference(wide, samples)
    if plain.shape != (count, network.interface.actions):
        raise ArtifactError(f"The network returns {plain.shape}, not one action per sample.")
    coarse = np.abs(reference(network.weights, samples) - plain).max() if fp16 else 0.0
    if coarse > FP16_TOLERANCE:
        raise ArtifactError(
            f"float16 changes the actions by {coarse:.2g}; export this policy without it."
        )
    comparison, batches = _Comparison(plain), sorted({1, min(7, count), count})
    for batch in batches:
        for first in (0, count - batch):
            rows = {name: value[first : first + batch] for name, value in samples.items()}
            wanted, when = plain[first : first + batch], f"in a batch of {batch}"
            comparison.compare(wanted, _run(session, rows), when)
    for name, stored in weights.items():
        noisy = (wide[name] + _noise(wide[name], draw)).astype(stored.dtype)
        wanted = reference({**wide, name: noisy.astype(np.float32)}, samples)
        other = _session(_with_weight(model, name, noisy))
        comparison.react(wanted, _run(other, samples), f"the weight '{name}'")
    silent: dict[str, list[int]] = {}
    for one in network.interface.network_inputs:
        for what, noisy in _disturbed(one, samples[one.name], draw):
            changed = {**samples, one.name: noisy}
            comparison.react(reference(wide, changed), _run(session, changed), what)
        if dead := _silent(one, samples, lambda rows: _run(session, rows)):
            silent[one.name] = dead
    return {
        "samples": count,
        "batches": batches,
        "max_difference": max(comparison.differences),
        "disturbed": len(comparison.effects),
        "least_effect": min(comparison.effects),
        "without_effect": silent,
        "fp16_difference": float(coarse),
    }


class _Comparison:
    """How far apart JAX and onnxruntime are, and how much disturbances show.

    Args:
      plain: [S, n] JAX's actions on the samples.
    """

    def __init__(self, plain: np.ndarray):
        self.plain = plain
        self.differences: list[float] = []
        self.effects: list[float] = []

    def compare(self, wanted: np.ndarray, actions: np.ndarray, when: str) -> None:
        """Keeps the difference of JAX's actions and onnxruntime's.

        Raises:
          ArtifactError: they differ.
        """
        if actions.shape != wanted.shape or not np.isfinite(wanted).all():
            raise ArtifactError(f"The actions are {actions.shape} or not finite {when}.")
        difference = float(np.abs(wanted - actions).max())
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"onnxruntime and JAX differ by {difference:.2g} {when}; {TOLERANCE} is allowed."
            )
        self.differences.append(difference)

    def react(self, wanted: np.ndarray, actions: np.ndarray, what: str) -> None:
        """The same after a disturbance, whose effect on both is kept.

        Raises:
          ArtifactError: they differ, or one does not react.
        """
        self.compare(wanted, actions, f"when {what} is disturbed")
        effect = min(float(np.abs(self.plain - one).max()) for one in (wanted, actions))
        if not effect > LEAST_EFFECT:
            raise ArtifactError(f"{what} has no effect on the actions.")
        self.effects.append(effect)


def _stored_weights(network: Network, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Returns the weights as they lie in the model.

    Raises:
      ArtifactError: they are not the network's.
    """
    stored = {one.name: one for one in model.graph.initializer}
    missing = [name for name in network.weights if name not in stored]
    if missing:
        raise ArtifactError(f"The file lacks the weights {', '.join(missing)}.")
    weights = {name: onnx.numpy_helper.to_array(stored[name]) for name in network.weights}
    fp16 = any(value.dtype == np.float16 for value in weights.values())
    for name, value in network.weights.items():
        if not np.array_equal(narrow(np.asarray(value, np.float32), fp16), weights[name]):
            raise ArtifactError(f"The file's weights '{name}' are not the policy's.")
    return weights


def _with_weight(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    """Returns a copy of a model with another value of a weight."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (place,) = (one for one in other.graph.initializer if one.name == name)
    place.CopyFrom(onnx.numpy_helper.from_array(value, name))
    return other


def _run(session: onnxruntime.InferenceSession, inputs: Arrays) -> np.ndarray:
    return np.asarray(session.run([OUTPUT], dict(inputs))[0])


def _noise(value: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns 10% noise for an array; for one that is zero, noise as if its values were about 1."""
    scale = float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))) or 1.0
    return DISTURBANCE * scale * draw.normal(size=value.shape)


def _step(values: np.ndarray) -> np.ndarray:
    """Returns 10% of the spread of each element of [S, ...]; of 1 where there is none."""
    spread = values.std(axis=0)
    return DISTURBANCE * np.where(spread > 0, spread, 1)


def _disturbed(
    one: Input, values: np.ndarray, draw: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """Returns an input [S, ...] with noise, whole or part by part, and what was disturbed."""
    name = f"the input '{one.name}'"
    if one.dtype == "bool":
        return [(name, ~values)]
    if one.dtype == "uint8":
        noise = draw.integers(-25, 26, values.shape)
        return [(name, np.clip(values + noise, 0, 255).astype(np.uint8))]
    noise = _step(values) * draw.normal(size=values.shape)
    if not one.parts:
        return [(name, (values + noise).astype(np.float32))]
    disturbed, first = [], 0
    for part in one.parts:
        noisy = values.copy()
        noisy[:, first : first + part.size] += noise[:, first : first + part.size]
        disturbed.append((f"{name} ({part.name})", noisy))
        first += part.size
    return disturbed


def _silent(one: Input, samples: Arrays, run: Callable[[Arrays], np.ndarray]) -> list[int]:
    """Returns the elements of a vector input whose change shows for none of eight samples."""
    if one.dtype != "float32" or len(one.shape) != 1:
        return []
    (size,) = one.shape
    values = samples[one.name]
    step = _step(values)
    shows = np.zeros(size, bool)
    for row in np.linspace(0, len(values) - 1, 8).astype(int):
        rows = {name: np.repeat(value[row, None], size, axis=0) for name, value in samples.items()}
        plain = run(rows)
        rows[one.name] = (rows[one.name] + np.diag(step)).astype(np.float32)
        shows |= np.abs(run(rows) - plain).max(axis=1) > 0
    return np.flatnonzero(~shows).tolist()
