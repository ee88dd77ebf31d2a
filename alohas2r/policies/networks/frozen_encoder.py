"""A colour encoder that does not learn, on a CPU: onnxruntime takes two thirds of the time that compiled JAX takes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from alohas2r.core.types import Array, PyTree
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import StudentSpec

_OPSET, _IR_VERSION = 17, 8  # run on every onnxruntime since 1.12


class FrozenEncoder:
    """The same as `student.encode`, for given weights; any number of threads may call it at once.

    Each call runs in the calling thread, and the code of a picture does not depend on those beside it. It rounds
    differently from `student.encode` (1e-5 of a value).

    Args:
      spec: the student.
      encoder: its convolutions, "Conv_0" and so on, each with a "kernel" [side, side, in, out].
    """

    def __init__(self, spec: StudentSpec, encoder: PyTree):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            _graph(spec, encoder).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rgb: Array) -> np.ndarray:
        """Encodes colour pictures [B, C, H, W, 3] uint8 -> [B, C, E], or [B, C, H', W', E] where places count."""
        pictures = np.asarray(rgb)
        flat = pictures.reshape(-1, *pictures.shape[2:])
        code = np.asarray(self._session.run(None, {"rgb": flat})[0])
        return code.reshape(*pictures.shape[:2], *code.shape[1:])


def _graph(spec: StudentSpec, encoder: PyTree) -> onnx.ModelProto:
    """Returns the encoder as an ONNX graph."""
    size = spec.cameras.size
    nodes = [
        helper.make_node("Cast", ["rgb"], ["bytes"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes"], ["values0"], perm=[0, 3, 1, 2]),
    ]
    weights, side = [], size
    for index, (width, stride) in enumerate(vision_network.ENCODER_LAYERS):
        kernel = np.asarray(encoder[f"Conv_{index}"]["kernel"], np.float32).transpose(3, 2, 0, 1)
        if index == 0:
            kernel = kernel / np.float32(255)  # colours in 0..1
        weights.append(numpy_helper.from_array(np.ascontiguousarray(kernel), f"kernel{index}"))
        reached = -(-side // stride)
        pad = max((reached - 1) * stride + width - side, 0)  # as "SAME"
        pads = [pad // 2, pad // 2, pad - pad // 2, pad - pad // 2]
        inputs = [f"values{index}", f"kernel{index}"]
        nodes += [
            helper.make_node("Conv", inputs, [f"sums{index}"], strides=[stride] * 2, pads=pads),
            helper.make_node("Relu", [f"sums{index}"], [f"values{index + 1}"]),
        ]
        side = reached
    last, shape = f"values{len(weights)}", ["count", side, side, spec.network.filters[-1]]
    if spec.network.places:
        nodes.append(helper.make_node("Transpose", [last], ["code"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("ReduceMean", [last], ["code"], axes=[2, 3], keepdims=0))
        shape = [shape[0], shape[-1]]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("rgb", onnx.TensorProto.UINT8, ["count", size, size, 3])],
        [helper.make_tensor_value_info("code", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    versions = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=versions, ir_version=_IR_VERSION)
