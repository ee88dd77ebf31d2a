"""Shipped policies that see: the student, its exported file, where both come from; the one from pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from alohas2r.core import assets
from alohas2r.evaluation import episodes, evaluate
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.onnx import exported as onnx_exported
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.tasks.protocol import EVAL_V1

PARAMS = assets.data_path("params")
EPISODES = 3


class Recording:
    """An exported policy that keeps what its network is given and what it answers."""

    def __init__(self, file: OnnxPolicy) -> None:
        self.file = file
        self.interface = file.interface
        self.calls: list[tuple[dict[str, np.ndarray], np.ndarray]] = []

    def network(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        actions = self.file.network(inputs)
        self.calls.append((dict(inputs), actions))
        return actions


@pytest.mark.slow
def test_artifact_and_file_act_alike_on_all_that_three_episodes_show() -> None:
    """Closed loop: the file acts; in hindsight the artifact is asked about every observation."""
    artifact = policies_artifact.load(PARAMS / "student", StudentPolicy)
    exported = onnx_exported.load(PARAMS / "student" / "policy.onnx")
    file: Any = Recording(exported.file)
    keys = episodes.episode_keys(7, 0, EPISODES)
    table = evaluate.run(dataclasses.replace(exported, file=file), EVAL_V1, keys).table
    forward = jax.jit(
        lambda weights, inputs: vision_network.forward(artifact.spec, weights, inputs)
    )
    furthest, switched = 0.0, 0
    for inputs, actions in file.calls:
        expected = np.asarray(forward(artifact.weights, inputs))
        furthest = max(furthest, float(np.abs(actions - expected).max()))
        switched += int(inputs["switched"].sum())
    assert len(file.calls) == EVAL_V1.insert.steps
    assert switched > EPISODES  # both halves of the task were seen
    assert table["success"].mean() > 0.5
    assert furthest <= 1e-5


def test_the_file_is_the_artifact_and_small() -> None:
    path = PARAMS / "student" / "policy.onnx"
    assert OnnxPolicy.load(path).hash == policies_artifact.describe(PARAMS / "student")["hash"]
    assert path.stat().st_size <= 2e6


def test_its_parents_are_shipped() -> None:
    trained = json.loads((PARAMS / "student" / "policy.json").read_text())["trained"]
    assert trained["parents"]["teacher"] == policies_artifact.describe(PARAMS / "teacher")["hash"]
    encoder = json.loads((PARAMS / "encoder" / "encoder.json").read_text())
    assert trained["parents"]["encoder"] == encoder["hash"]
    assert trained["command"].startswith("alohas2r distill")


@pytest.mark.long
def test_the_policy_from_pixels_finds_blocks_that_it_does_not_see_at_first() -> None:
    result = evaluate.evaluate(PARAMS / "pixels-pick", 128, 7)
    assert result["success"]["rate"] > 0.65
    assert result["success_by_sight"]["unseen"]["rate"] > 0.45


@pytest.mark.long
def test_the_policy_from_pixels_that_began_as_a_student_is_the_better_one() -> None:
    result = evaluate.evaluate(PARAMS / "pixels-pick-student", 128, 7)
    assert result["success"]["rate"] > 0.82
    assert result["precise"]["rate"] > 0.78


@pytest.mark.long
def test_the_staged_policy_from_pixels_inserts() -> None:
    result = evaluate.evaluate(PARAMS / "pixels-insert", 128, 7)
    assert result["success"]["rate"] > 0.65
    pick = policies_artifact.describe(PARAMS / "pixels-pick")["hash"]
    trained = json.loads((PARAMS / "pixels-insert" / "policy.json").read_text())["trained"]
    assert trained["parents"]["pick"] == pick
