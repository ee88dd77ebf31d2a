"""Random policies to export: tiny ones on state observations, and a student of full size."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.joints import JOINTS, SIDES
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies import vision
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.onnx import convert as onnx_convert
from alohas2r.policies.onnx import export as onnx_export
from alohas2r.policies.onnx import network as onnx_network
from alohas2r.policies.onnx import samples
from alohas2r.policies.onnx.network import Network
from alohas2r.policies.spec import (
    ActionSpec,
    CameraSpec,
    ObservationPart,
    PolicySpec,
    StudentNetworkConfig,
)
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene


def action_spec(arms: int) -> ActionSpec:
    joints = JOINTS[: 7 * arms] if arms == 2 else embodiment_joints.ACTUATORS
    return ActionSpec(
        joints, 0.02, (-3.0,) * 7 * arms, (3.0,) * 7 * arms, embodiment_joints.CONTROL_PERIOD_S
    )


def state_policy(
    phase: str,
    parts: tuple[tuple[str, int, str], ...],
    arms: int,
    seed: int = 0,
    hidden: tuple[int, ...] = (8,),
    activation: str = "swish",
    rates: tuple[float, ...] = (0.35, 0.1),
) -> StatePolicy:
    observation = tuple(ObservationPart(*part) for part in parts)
    history = HistoryConfig(rates)
    spec = PolicySpec("state", phase, observation, history, action_spec(arms), hidden, activation)
    draw = np.random.default_rng(seed)
    features = history.size(spec.observation_size)
    weights = {"mean": draw.normal(size=features), "std": draw.uniform(0.5, 2, features)}
    sizes = (features, *hidden, 14 * arms)
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, 1 / np.sqrt(shape[0]), shape)
        weights[f"layer{layer}/bias"] = draw.normal(0, 0.1, shape[1])
    return StatePolicy(spec, weights, {"seed": seed})


def save_pick(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    parts = (("joint_pos", 8, "rad, m"), ("object_pos_in_base", 3, "m"))
    found = state_policy("pick", parts, 1, **changes)
    return policies_artifact.save(
        found, folder, {"observations": np.random.default_rng(1).normal(size=(20, 11))}
    )


def save_staged(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    parts = (("joint_pos", 8, "rad, m"), ("object_pos_in_base", 3, "m"))
    pick = state_policy("pick", parts, 1, seed=1, **changes)
    both = tuple((f"{side}/{name}", n, unit) for side in SIDES for name, n, unit in parts)
    insert = state_policy("insert", (*both, ("socket_minus_peg", 3, "m")), 2, seed=2, **changes)
    found = StagedPolicy(pick, insert, Switch(), {"seed": 3})
    draw = np.random.default_rng(4)
    switched = np.arange(20) % 8 > 3
    return policies_artifact.save(
        found, folder, {"observations": draw.normal(size=(20, 25)), "switched": switched}
    )


def save_student(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Saves an untrained student of full size on colour and depth."""
    import jax

    spec = policies_spec.make_spec(
        scene.load("insert"),
        "rgbd",
        StudentNetworkConfig(activation="relu"),
        CameraSpec(),
        HistoryConfig((0.3,)),
        Switch(),
        0.02,
    )
    draw = np.random.default_rng(seed)
    params = vision_network.init(spec, jax.random.PRNGKey(seed))
    weights = vision_network.flatten(params, np.zeros(spec.features), np.full(spec.features, 0.5))
    last = f"head/layer{len(spec.network.hidden)}/kernel"  # starts small
    weights[last] = draw.normal(0, 0.1, weights[last].shape)
    rows = samples.wrist_views(spec.cameras.size, 20, seed + 1)
    rows[spec.vector] = draw.normal(0, 0.5, (20, spec.vector_size)).astype(np.float32)
    rows["switched"] = draw.random(20) < 0.5
    return policies_artifact.save(vision.StudentPolicy(spec, weights, {"seed": seed}), folder, rows)


def save_stereo(
    folder: pathlib.Path, network: str = "cost", size: int = 16, right: str = "seen"
) -> pathlib.Path:
    """Saves an untrained student that sees small pairs of pictures."""
    import jax

    spec = policies_spec.make_spec(
        scene.load("insert"),
        "stereo",
        StudentNetworkConfig(hidden=(16,), embedding=8, places=4),
        CameraSpec(size=size),
        HistoryConfig((0.3,)),
        Switch(),
        0.02,
        stereo=policies_spec.StereoNetworkConfig(
            network, stem=4, filters=(8, 16), shifts=4, right=right
        ),
    )
    draw = np.random.default_rng(0)
    params = vision_network.init(spec, jax.random.PRNGKey(0), auxiliary=True)
    weights = vision_network.flatten(params, np.zeros(spec.features), np.full(spec.features, 0.5))
    weights["head/layer1/kernel"] = draw.normal(0, 0.3, weights["head/layer1/kernel"].shape)
    rows = samples.wrist_views(size, 20, 1, paired=True)
    rows[spec.vector] = draw.normal(0, 0.5, (20, spec.vector_size)).astype(np.float32)
    rows["switched"] = draw.random(20) < 0.5
    return policies_artifact.save(vision.StereoPolicy(spec, weights, {"seed": 0}), folder, rows)


def convert(network: Network, opset: int = onnx_convert.OPSET, fp16: bool = False) -> Any:
    """Converts in this process, which goes on with JAX: in a second, and any function."""
    with _unpatched("jax", "flax"):
        return onnx_convert.convert(network, opset, fp16)


def export(
    artifact: pathlib.Path, file: pathlib.Path, verify_samples: int = 256, **options: Any
) -> dict[str, Any]:
    """Exports as `onnx_export.export` does, with the conversion in this process."""
    network = onnx_network.load_network(artifact, verify_samples)
    return onnx_export.write(network, convert(network, **options), file)


@contextlib.contextmanager
def _unpatched(*packages: str) -> Iterator[None]:
    """Undoes what jax2onnx does to functions and methods of packages, for the tests that follow."""
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


_SAVERS = {"pick": save_pick, "staged": save_staged, "student": save_student, "stereo": save_stereo}
_EXPORTED: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}


def exported(kind: str, factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the artifact and the ONNX file of a random policy, made once for all tests."""
    if kind not in _EXPORTED:
        folder = factory.mktemp("exported")
        artifact, file = _SAVERS[kind](folder / kind), folder / f"{kind}.onnx"
        export(artifact, file)
        _EXPORTED[kind] = artifact, file
    return _EXPORTED[kind]
