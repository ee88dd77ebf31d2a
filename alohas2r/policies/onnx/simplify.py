"""Removes from an ONNX graph what computes nothing."""

from __future__ import annotations

import collections
from collections.abc import Collection

import numpy as np
import onnx

# Operations that repeat a single number as often as their other inputs need it.
_BROADCAST = ("Add", "Div", "Greater", "Less", "Max", "Min", "Mul", "Sub", "Where")
# Operations that are told sizes: by which input, and what stands there for the whole batch.
_SIZED = {"Reshape": (1, -1), "Slice": (2, np.iinfo(np.int64).max)}


def simplify(graph: onnx.GraphProto, biases: Collection[str]) -> None:
    """Says with fewer nodes what jax2onnx says with many.

    Every node costs some microseconds, which is most of the time that so small a network takes. The
    batch's size is left to reshaping and broadcasting instead of being computed; biases go into the
    matrix products; maxima with zero become Relu, which onnxruntime joins with what precedes it.

    Args:
      graph: changed in place.
      biases: the names of the weights that are vectors.
    """
    made = {name: node for node in graph.node for name in node.output}
    fixed = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type not in _SIZED:
            continue
        index, batch = _SIZED[node.op_type]
        source = made.get(node.input[index])
        parts = [fixed.get(name) for name in source.input] if source is not None else []
        if source is None or source.op_type != "Concat" or sum(one is None for one in parts) != 1:
            continue
        if any(one is not None and (one < 1).any() for one in parts):
            continue
        sizes = np.concatenate([[batch] if one is None else one.ravel() for one in parts])
        node.input[index] = f"{node.output[0]}/sizes"
        graph.initializer.append(
            onnx.numpy_helper.from_array(sizes.astype(np.int64), node.input[index])
        )
    numbers = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Expand" and fixed.get(node.input[0], np.zeros(2)).size == 1
    }
    for node in graph.node:
        if node.op_type in _BROADCAST and not numbers.keys() >= {*node.input}:
            for index, name in enumerate(node.input):
                node.input[index] = numbers.get(name, name)
    _drop_unused(graph)
    zeros = {name for name, value in fixed.items() if not value.any()}
    for node in graph.node:
        others = [name for name in node.input if name not in zeros]
        if node.op_type == "Max" and len(node.input) == 2 and len(others) == 1:
            node.op_type, node.input[:] = "Relu", others
    users = collections.Counter(name for node in graph.node for name in node.input)
    for node in [node for node in graph.node if node.op_type == "Add"]:
        first, second = (made.get(name) for name in node.input)
        if first is None or second is None:
            continue
        product, bias = (first, second) if first.op_type == "Gemm" else (second, first)
        if (
            product.op_type == "Gemm"
            and (len(product.input) < 3 or product.input[2] in zeros)
            and users[product.output[0]] == 1
            and bias.op_type == "Reshape"
            and bias.input[0] in biases
        ):
            product.input[:] = [*product.input[:2], bias.input[0]]
            for one in [one for one in product.attribute if one.name == "beta"]:
                product.attribute.remove(one)  # it was 0; without it the bias counts
            product.output[0] = node.output[0]
            graph.node.remove(node)
    fixed = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        source = made.get(node.input[0]) if node.op_type == "Reshape" else None
        sizes = fixed.get(node.input[1]) if node.op_type == "Reshape" else None
        if source is None or source.op_type != "Reshape" or sizes is None:
            continue
        if sizes.all():  # a 0 would keep a size of what the first one made
            node.input[0] = source.input[0]
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Takes nodes and constants whose values nothing needs out of a graph."""
    outputs = {one.name for one in graph.output}
    while True:
        used = outputs.union(*(node.input for node in graph.node))
        idle = [node for node in graph.node if used.isdisjoint(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)
