"""Random policies to export: tiny ones on state observations, and a student of full size."""

from __future__ import annotations

import itertools
import pathlib
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
from alohas2r.policies.onnx import export as onnx_export
from alohas2r.policies.onnx import samples
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


_SAVERS = {"pick": save_pick, "staged": save_staged, "student": save_student}
_EXPORTED: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}


def exported(kind: str, factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the artifact and the ONNX file of a random policy, made once for all tests."""
    if kind not in _EXPORTED:
        folder = factory.mktemp("exported")
        artifact, file = _SAVERS[kind](folder / kind), folder / f"{kind}.onnx"
        onnx_export.export(artifact, file)
        _EXPORTED[kind] = artifact, file
    return _EXPORTED[kind]
