"""Export: a policy artifact as one ONNX file that is verified to be the same policy.

Every weight tensor becomes an initializer of the artifact's name, because the conversion takes the
weights as inputs of the graph: none can be folded away or left behind unseen. Before the file is
written, onnxruntime and JAX must agree on realistic inputs, and again after every single weight
tensor and every single input has been disturbed; a disturbance must show in the actions.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime

import alohas2r
from alohas2r import config, history, onnx_policy, policy, renderers, runlog, scene, student
from alohas2r.config import check
from alohas2r.errors import ArtifactError
from alohas2r.history import HistoryConfig
from alohas2r.onnx_policy import OUTPUT, Input, Interface, Memory, OnnxPolicy, Part
from alohas2r.policy import StagedPolicy, StatePolicy

OPSET = 17  # runs on every onnxruntime since 1.12
TOLERANCE = 1e-5  # of actions in [-1, 1], onnxruntime against JAX
LEAST_EFFECT = 1e-6  # of a disturbance on the actions
FP16_TOLERANCE = 0.01  # of actions, float16 against float32 weights
DISTURBANCE = 0.1  # relative to a tensor's size
CHECK_STEPS = 8  # recorded observations in the file, if there are more of them
# Operations that repeat a single number as often as their other inputs need it.
_BROADCAST = ("Add", "Div", "Greater", "Less", "Max", "Min", "Mul", "Sub", "Where")
# Operations that are told sizes: by which input, and what stands there for the whole batch.
_SIZED = {"Reshape": (1, -1), "Slice": (2, np.iinfo(np.int64).max)}
_CAST = "/float32"  # what the float32 form of a float16 weight is called

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A policy as a pure JAX function, ready to be exported.

    Attributes:
      apply: (weights by name, inputs by name [B, ...]) -> actions [B, n] in [-1, 1]. It computes
        everything from the raw inputs on; weights must reach it through its argument alone.
      weights: name -> float32 array.
      interface: what goes in and comes out.
      action: what the actions mean, with the keys of `policy.ActionSpec`.
      description: the artifact's policy.json, with its "hash".
      check: recorded observations, each of `interface.inputs` as [T, ...], and "actions" [T, n],
        those that the artifact returned in this order after a reset.
      samples: realistic network inputs, each of `interface.network_inputs` as [S, ...].
    """

    apply: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    weights: Arrays
    interface: Interface
    action: Mapping[str, Any]
    description: Mapping[str, Any]
    check: Arrays
    samples: Arrays


def export(
    policy_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    opset: int = OPSET,
    fp16: bool = False,
    verify_samples: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
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
      As `export_network`.

    Raises:
      ArtifactError: the policy cannot be read, converted or written, or differs from the file.
      ConfigError: a number out of range.
    """
    check(8 <= verify_samples <= 1_000_000, f"verify_samples = {verify_samples} must be in 8..1e6")
    _check_opset(opset)
    network = load_network(policy_path, verify_samples, seed)
    return export_network(network, out, opset=opset, fp16=fp16, seed=seed)


def export_network(
    network: Network,
    out: str | os.PathLike[str],
    opset: int = OPSET,
    fp16: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Exports any policy that is given as a JAX function; see `export`.

    Returns:
      "path", "bytes", "policy" (its hash), "opset", "fp16", "weights" and "values" (how many
      tensors, how many numbers in them), and "verified": "samples", "batches", "max_difference"
      (onnxruntime against JAX), "disturbed" (how many weights and inputs were), "least_effect" (of
      a disturbance on the actions), "without_effect" (elements of vector inputs that no sample
      reacts to), "fp16_difference" (float16 against float32 weights).

    Raises:
      ArtifactError: jax2onnx or onnxruntime cannot convert or run it, the two differ, a weight or
        an input is without effect, or the file cannot be written.
      ConfigError: a number out of range.
    """
    _check_opset(opset)
    model = convert(network, opset, fp16)
    verified = verify(network, model, seed)
    details = {
        "format_version": onnx_policy.FORMAT_VERSION,
        "interface": config.to_dict(network.interface),
        "action": dict(network.action),
        "opset": opset,
        "fp16": fp16,
        "versions": {
            "alohas2r": alohas2r.__version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jax2onnx")},
        },
        "verified": verified,
    }
    metadata = {
        onnx_policy.DESCRIPTION_KEY: json.dumps(network.description, indent=2),
        onnx_policy.EXPORT_KEY: json.dumps(details),
        onnx_policy.CHECK_KEY: onnx_policy.pack(_check(network, fp16)),
    }
    onnx.helper.set_model_props(model, metadata)
    content = onnx_policy.seal(model.SerializeToString(deterministic=True))
    path = pathlib.Path(out)
    aside = path.with_name(f".{path.name}.unverified")
    try:  # the file itself must pass, as the robot's computer will read it
        runlog.write_atomic(aside, content)
        difference = OnnxPolicy.load(aside).verify()
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"The recorded actions of the policy and the file's differ by {difference:.2g}; "
                f"{TOLERANCE} is allowed."
            )
        runlog.write_atomic(path, content)
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


def load_network(policy_path: str | os.PathLike[str], samples: int = 256, seed: int = 0) -> Network:
    """Reads an artifact as a JAX function, of whatever kind the policy is.

    Args:
      policy_path: the artifact's directory.
      samples: how many inputs to draw for the verification.
      seed: of these.

    Raises:
      ArtifactError: the policy cannot be read.
    """
    description = policy.describe(policy_path)
    loaded = policy.load(policy_path)
    with np.load(pathlib.Path(policy_path) / "check.npz", allow_pickle=False) as file:
        recorded = {name: file[name] for name in file.files}
    if isinstance(loaded, student.StudentPolicy):
        return student_network(loaded, description, recorded, samples, seed)
    return state_network(loaded, description, recorded, samples, seed)


def state_network(
    loaded: policy.AnyPolicy,
    description: Mapping[str, Any],
    recorded: Arrays,
    samples: int,
    seed: int = 0,
) -> Network:
    """Returns a policy on state observations, single or staged, as a JAX function.

    Args:
      loaded: the policy; its description: policy.json.
      description: policy.json.
      recorded: check.npz: "observations" [T, n], "switched" [T], "actions" [T, n].
      samples: how many inputs to draw for the verification.
      seed: of these.
    """
    spec = loaded.spec
    parts = tuple(Part(part.name, part.size, part.unit) for part in spec.observation)
    observation = Input("observation", (spec.observation_size,), "float32", parts=parts)
    staged = isinstance(loaded, StagedPolicy)
    switched = (Input("switched", (), "bool", "1"),) if staged else ()
    interface = Interface(
        inputs=(observation, *switched),
        memories=(Memory("observation", "features", spec.history),),
        actions=loaded.action_size,
    )
    if staged:
        weights = {f"pick/{name}": value for name, value in loaded.pick.weights.items()}
        weights |= {f"insert/{name}": value for name, value in loaded.insert.weights.items()}
    else:
        weights = dict(loaded.weights)

    def apply(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        if not isinstance(loaded, StagedPolicy):
            return _with_weights(loaded, weights, "").apply(inputs["features"], jnp)
        other = copy.copy(loaded)
        other.pick = _with_weights(loaded.pick, weights, "pick/")
        other.insert = _with_weights(loaded.insert, weights, "insert/")
        return other.apply(inputs["features"], inputs["switched"], jnp)

    last, rows = loaded.insert if staged else loaded, recorded["observations"]
    drawn = {"features": _features(spec.history, last.weights, rows, samples, seed)}
    check_data = {"observation": rows, OUTPUT: recorded["actions"]}
    if staged:
        drawn["switched"] = _flags(recorded["switched"], samples, seed)
        check_data["switched"] = recorded["switched"]
    return Network(
        apply, weights, interface, config.to_dict(spec.action), description, check_data, drawn
    )


def _with_weights(part: StatePolicy, weights: Mapping[str, Any], prefix: str) -> StatePolicy:
    other = copy.copy(part)
    other.weights = {name: weights[prefix + name] for name in part.weights}
    return other


def student_network(
    loaded: student.StudentPolicy,
    description: Mapping[str, Any],
    recorded: Arrays,
    samples: int,
    seed: int = 0,
) -> Network:
    """Returns a policy on wrist pictures as a JAX function of raw sensor inputs.

    Args:
      loaded: the policy; its description: policy.json.
      description: policy.json.
      recorded: check.npz: each of the policy's inputs as [T, ...], and "actions" [T, n].
      samples: how many inputs to draw for the verification; pictures are rendered.
      seed: of these.
    """
    spec = loaded.spec
    parts = tuple(Part(part.name, part.size, part.unit) for part in spec.proprioception)
    inputs = tuple(
        Input(name, shape, dtype, parts=parts)
        if name == spec.vector
        else Input(name, shape, dtype, unit)
        for name, (shape, dtype, unit) in spec.inputs.items()
    )
    memory = Memory(spec.vector, "features", spec.history)
    interface = Interface(inputs, (memory,), loaded.action_size)
    drawn = {
        "features": _features(spec.history, loaded.weights, recorded[spec.vector], samples, seed),
        "switched": _flags(recorded["switched"], samples, seed),
    }
    if spec.has_rgb or spec.has_depth:
        views = wrist_views(spec.cameras.size, samples, seed)
        for name in views.keys() & spec.inputs.keys():
            drawn[name] = np.concatenate([recorded[name], views[name]])[:samples]
    apply = functools.partial(student.forward, spec)
    check_data = {name: recorded[name] for name in (*spec.inputs, OUTPUT)}
    action = config.to_dict(spec.action)
    return Network(apply, loaded.weights, interface, action, description, check_data, drawn)


def wrist_views(size: int, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Renders what both wrist cameras see at random poses of arms and objects.

    Args:
      size: side of the pictures (pixels).
      count: how many.
      seed: of the poses.

    Returns:
      "left_rgb", "right_rgb" [N, size, size, 3] uint8; "left_depth", "right_depth" [N, size, size]
      float32 (m).
    """
    loaded = scene.load("insert")
    draw = np.random.default_rng(seed)
    poses = np.repeat(loaded.home_qpos[None], count, axis=0)
    for arm in loaded.arms:
        joints = arm.qpos[: len(scene.ARM_JOINTS)]
        poses[:, joints] += draw.uniform(-0.3, 0.3, (count, len(joints)))
        poses[:, arm.object_qpos[:3]] += draw.uniform(-0.1, 0.1, (count, 3))
    # Of the ray casters the one that starts quickest; all draw the same.
    options = {"width": size, "height": size, "shadows": False, "threads": 1, "caster": "mujoco"}
    frames = renderers.make("raycast", loaded, **options).render(poses)
    found = {f"{side}_rgb": frames.rgb[:, index] for index, side in enumerate(student.SIDES)}
    found |= {f"{side}_depth": frames.depth[:, index] for index, side in enumerate(student.SIDES)}
    return found


def _flags(recorded: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Draws the switch's state [S]: the recorded sequence, then a random one."""
    drawn = np.random.default_rng(seed).random(samples) < 0.5
    return np.concatenate([recorded.astype(bool), drawn])[:samples]


def _features(
    remembered: HistoryConfig, weights: Arrays, recorded: np.ndarray, samples: int, seed: int
) -> np.ndarray:
    """Draws features [S, F]: the recorded sequence, then a smooth one of the policy's own spread."""
    size = recorded.shape[1]
    mean, std = weights["mean"][:size], weights["std"][:size]
    noise = np.random.default_rng(seed).normal(size=(samples, size))
    found, state, value = [], history.init(remembered, size, np), noise[0]
    for step in range(samples):
        if step == len(recorded):  # a new episode
            state = history.init(remembered, size, np)
        value = 0.8 * value + 0.6 * noise[step]
        observed = recorded[step] if step < len(recorded) else mean + std * value
        state, features = history.update(remembered, state, np.float32(observed), np)
        found.append(features)
    return np.stack(found)


def _check(network: Network, fp16: bool) -> dict[str, np.ndarray]:
    """Returns the recorded sequence; with float16 weights, actions as these give them."""
    found = {name: np.asarray(value[:CHECK_STEPS]) for name, value in network.check.items()}
    if not fp16:
        return found
    rounded = {
        name: _narrow(value, fp16).astype(np.float32) for name, value in network.weights.items()
    }
    compiled, state = jax.jit(network.apply), None
    actions = np.empty_like(found[OUTPUT])
    for step in range(len(actions)):
        values = {one.name: found[one.name][step] for one in network.interface.inputs}
        state, inputs = network.interface.remember(state, values)
        actions[step] = compiled(rounded, {name: value[None] for name, value in inputs.items()})[0]
    return {**found, OUTPUT: actions}


def _specs(interface: Interface) -> list[jax.ShapeDtypeStruct]:
    (batch,) = jax.export.symbolic_shape("B")
    return [
        jax.ShapeDtypeStruct((batch, *one.shape), np.dtype(one.dtype))
        for one in interface.network_inputs
    ]


def convert(network: Network, opset: int = OPSET, fp16: bool = False) -> onnx.ModelProto:
    """Returns the ONNX model of a network, with a dynamic batch size and every weight by its name.

    Raises:
      ArtifactError: jax2onnx cannot convert it, or a weight did not arrive in the model.
    """
    names = list(network.weights)
    inputs = [one.name for one in network.interface.network_inputs]
    specs = [jax.ShapeDtypeStruct(np.shape(network.weights[name]), np.float32) for name in names]
    specs += _specs(network.interface)

    def flat(*values: Any, rows: bool = False) -> Any:
        given = dict(zip((*names, *inputs), values, strict=True))
        weights = {name: given.pop(name) for name in names}
        if not rows:
            return network.apply(weights, given)

        def one(row: Mapping[str, Any]) -> Any:
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
        with _unpatched("jax", "flax"), _quiet("onnx_ir"):
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
    _simplify(graph, [name for name in names if np.ndim(network.weights[name]) == 1])
    for name in names:
        _place(graph, name, np.asarray(network.weights[name], np.float32), fp16)
    del graph.value_info[:]
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"jax2onnx made an invalid model: {error}") from error
    return model


def _simplify(graph: onnx.GraphProto, biases: Collection[str]) -> None:
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


@contextlib.contextmanager
def _unpatched(*packages: str) -> Iterator[None]:
    """Undoes what is done to functions and methods of packages meanwhile.

    jax2onnx leaves some of JAX's functions replaced (jax.numpy.cumsum by one that takes fewer
    arguments) and attributes of its own on flax's classes; whoever exports goes on with JAX.
    """
    before: list[tuple[Any, dict[str, Any]]] = []
    for name, module in list(sys.modules.items()):
        path = name.split(".")
        if module is None or path[0] not in packages or any(part[:1] == "_" for part in path):
            continue
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        own = [one for one in classes if one.__module__.split(".")[0] in packages]
        before += [(one, dict(vars(one))) for one in (module, *own)]
    try:
        yield
    finally:
        for one, values in before:
            for name, value in list(vars(one).items()):
                if callable(values.get(name)) and value is not values[name]:
                    setattr(one, name, values[name])
                elif name not in values and isinstance(one, type) and callable(value):
                    delattr(one, name)


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


def _narrow(value: np.ndarray, fp16: bool) -> np.ndarray:
    """Returns a weight as it is stored: kernels as float16 if wanted and if they fit."""
    fits = value.ndim >= 2 and np.abs(value).max() < np.finfo(np.float16).max
    return value.astype(np.float16) if fp16 and fits else value


def _place(graph: onnx.GraphProto, name: str, value: np.ndarray, fp16: bool) -> None:
    """Adds a weight to the graph."""
    stored = _narrow(value, fp16)
    graph.initializer.append(onnx.numpy_helper.from_array(stored, name))
    if stored.dtype == np.float32:
        return
    for node in graph.node:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = name + _CAST
    cast = onnx.helper.make_node("Cast", [name], [name + _CAST], to=onnx.TensorProto.FLOAT)
    graph.node.insert(0, cast)


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


def verify(network: Network, model: onnx.ModelProto, seed: int = 0) -> dict[str, Any]:
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
      "fp16_difference"; see `export_network`.

    Raises:
      ArtifactError: they differ, something is without effect, or float16 is too coarse.
    """
    draw = np.random.default_rng(seed)
    places = {one.name: index for index, one in enumerate(model.graph.initializer)}
    missing = [name for name in network.weights if name not in places]
    if missing:
        raise ArtifactError(f"The file lacks the weights {', '.join(missing)}.")
    weights = {
        name: onnx.numpy_helper.to_array(model.graph.initializer[places[name]])
        for name in network.weights
    }
    fp16 = any(value.dtype == np.float16 for value in weights.values())
    wide = {name: value.astype(np.float32) for name, value in weights.items()}
    for name, value in network.weights.items():
        if not np.array_equal(_narrow(np.asarray(value, np.float32), fp16), weights[name]):
            raise ArtifactError(f"The file's weights '{name}' are not the policy's.")
    samples = {name: np.asarray(value) for name, value in network.samples.items()}
    count = len(next(iter(samples.values())))
    compiled = jax.jit(network.apply)
    session = _session(model)

    def reference(weights: Arrays, inputs: Arrays) -> np.ndarray:
        return np.asarray(compiled(weights, inputs))

    def found(session: onnxruntime.InferenceSession, inputs: Arrays) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], dict(inputs))[0])

    def compare(wanted: np.ndarray, actions: np.ndarray, when: str) -> float:
        if actions.shape != wanted.shape or not np.isfinite(wanted).all():
            raise ArtifactError(f"The actions are {actions.shape} or not finite {when}.")
        difference = float(np.abs(wanted - actions).max())
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"onnxruntime and JAX differ by {difference:.2g} {when}; {TOLERANCE} is allowed."
            )
        return difference

    plain = reference(wide, samples)
    if plain.shape != (count, network.interface.actions):
        raise ArtifactError(f"The network returns {plain.shape}, not one action per sample.")
    coarse = np.abs(reference(network.weights, samples) - plain).max() if fp16 else 0.0
    if coarse > FP16_TOLERANCE:
        raise ArtifactError(
            f"float16 changes the actions by {coarse:.2g}; export this policy without it."
        )
    differences, effects, batches = [], [], sorted({1, min(7, count), count})
    for batch in batches:
        for first in (0, count - batch):
            rows = {name: value[first : first + batch] for name, value in samples.items()}
            wanted, when = plain[first : first + batch], f"in a batch of {batch}"
            differences.append(compare(wanted, found(session, rows), when))

    def react(wanted: np.ndarray, actions: np.ndarray, what: str) -> None:
        differences.append(compare(wanted, actions, f"when {what} is disturbed"))
        effect = min(float(np.abs(plain - one).max()) for one in (wanted, actions))
        if not effect > LEAST_EFFECT:
            raise ArtifactError(f"{what} has no effect on the actions.")
        effects.append(effect)

    for name, stored in weights.items():
        noisy = (wide[name] + _noise(wide[name], draw)).astype(stored.dtype)
        other = onnx.ModelProto()
        other.CopyFrom(model)
        other.graph.initializer[places[name]].CopyFrom(onnx.numpy_helper.from_array(noisy, name))
        wanted = reference({**wide, name: noisy.astype(np.float32)}, samples)
        react(wanted, found(_session(other), samples), f"the weight '{name}'")
    silent: dict[str, list[int]] = {}
    for one in network.interface.network_inputs:
        for what, noisy in _disturbed(one, samples[one.name], draw):
            changed = {**samples, one.name: noisy}
            react(reference(wide, changed), found(session, changed), what)
        if dead := _silent(one, samples, lambda rows: found(session, rows)):
            silent[one.name] = dead
    return {
        "samples": count,
        "batches": batches,
        "max_difference": max(differences),
        "disturbed": len(effects),
        "least_effect": min(effects),
        "without_effect": silent,
        "fp16_difference": float(coarse),
    }


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
    found, first = [], 0
    for part in one.parts:
        noisy = values.copy()
        noisy[:, first : first + part.size] += noise[:, first : first + part.size]
        found.append((f"{name} ({part.name})", noisy))
        first += part.size
    return found


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
