"""From JAX to ONNX."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping

import jax.extend.core
import numpy as np
import onnx

from alohas2r.core.types import Array
from alohas2r.errors import ArtifactError
from alohas2r.policies.onnx.interface import OUTPUT, Interface
from alohas2r.policies.onnx.network import Network
from alohas2r.policies.onnx.simplify import simplify

OPSET = 17  # runs on every onnxruntime since 1.12
_CAST = "/float32"  # what the float32 form of a float16 weight is called


def _specs(interface: Interface) -> list[jax.ShapeDtypeStruct]:
    (batch,) = jax.export.symbolic_shape("B")
    return [
        jax.ShapeDtypeStruct((batch, *one.shape), np.dtype(one.dtype))
        for one in interface.network_inputs
    ]


def convert(network: Network, opset: int = OPSET, fp16: bool = False) -> onnx.ModelProto:
    """Returns the ONNX model of a network, with a dynamic batch size and every weight by its name.

    jax2onnx leaves functions of JAX and flax replaced (jax.numpy.cumsum by one that takes fewer arguments): who goes on
    with JAX afterwards calls `convert_apart`.

    Raises:
      ArtifactError: jax2onnx cannot convert it, or a weight did not arrive in the model.
    """
    names = list(network.weights)
    inputs = [one.name for one in network.interface.network_inputs]
    specs = [jax.ShapeDtypeStruct(np.shape(network.weights[name]), np.float32) for name in names]
    specs += _specs(network.interface)

    def flat(*values: Array, rows: bool = False) -> Array:
        given = dict(zip((*names, *inputs), values, strict=True))
        weights = {name: given.pop(name) for name in names}
        if not rows:
            return network.apply(weights, given)

        def one(row: Mapping[str, Array]) -> Array:
            batch = {name: value[None] for name, value in row.items()}
            return network.apply(weights, batch)[0]

        return jax.vmap(one)(given)

    # Traced here, so that the model holds what JAX computes: while jax2onnx traces, it puts
    # stand-ins of its own in the place of functions of flax and jax.numpy.
    try:
        jaxpr = jax.make_jaxpr(flat)(*specs)
    except Exception:  # some functions want the batch's size as a number: one row at a time then
        jaxpr = jax.make_jaxpr(functools.partial(flat, rows=True))(*specs)
    traced = jax.extend.core.jaxpr_as_fun(jaxpr)
    try:
        with _quiet("onnx_ir"):
            import jax2onnx

            model = jax2onnx.to_onnx(
                lambda *values: traced(*values)[0],
                specs,
                model_name="policy",
                opset=opset,
                input_names=[*names, *inputs],
                output_names=[OUTPUT],
            )
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever its plugins raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"jax2onnx cannot convert this policy: {reason}") from error
    assert isinstance(model, onnx.ModelProto)
    graph = model.graph
    for given in [one for one in graph.input if one.name in network.weights]:
        graph.input.remove(given)
    used = {name for node in graph.node for name in node.input}
    lost = [name for name in names if name not in used]
    if lost or [one.name for one in graph.input] != inputs:
        raise ArtifactError(f"jax2onnx left out {', '.join(lost) or 'an input'}.")
    simplify(graph, [name for name in names if np.ndim(network.weights[name]) == 1])
    for name in names:
        _place(graph, name, np.asarray(network.weights[name], np.float32), fp16)
    del graph.value_info[:]
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"jax2onnx made an invalid model: {error}") from error
    return model


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Lets a package log nothing less than errors: onnx_ir warns of shapes it leaves out."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def narrow(value: np.ndarray, fp16: bool) -> np.ndarray:
    """Returns a weight as it is stored: kernels as float16 if wanted and if they fit."""
    fits = value.ndim >= 2 and np.abs(value).max() < np.finfo(np.float16).max
    return value.astype(np.float16) if fp16 and fits else value


def _place(graph: onnx.GraphProto, name: str, value: np.ndarray, fp16: bool) -> None:
    """Adds a weight to the graph."""
    stored = narrow(value, fp16)
    graph.initializer.append(onnx.numpy_helper.from_array(stored, name))
    if stored.dtype == np.float32:
        return
    for node in graph.node:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = name + _CAST
    cast = onnx.helper.make_node("Cast", [name], [name + _CAST], to=onnx.TensorProto.FLOAT)
    graph.node.insert(0, cast)
