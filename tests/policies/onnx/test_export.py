"""The exported file is the same policy, and the built-in verification notices when it is not."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax2onnx")

import jax.numpy as jnp
import onnx
import onnx_cases

from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies.onnx import conversion, verify
from alohas2r.policies.onnx import export as onnx_export
from alohas2r.policies.onnx import network as onnx_network
from alohas2r.policies.onnx import samples as onnx_samples
from alohas2r.policies.onnx.interface import OUTPUT
from alohas2r.policies.onnx.network import Network
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import StudentPolicy

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return onnx_cases.save_student(tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="module")
def student(student_folder: pathlib.Path) -> Network:
    return onnx_network.load_network(student_folder)


@pytest.fixture(scope="module")
def student_file(student: Network, student_folder: pathlib.Path) -> pathlib.Path:
    path = student_folder.with_name("student.onnx")
    found = onnx_export.write(student, onnx_cases.convert(student), path)
    assert found["bytes"] == path.stat().st_size <= 2e6
    verified = found["verified"]
    assert verified["samples"] >= 256
    assert verified["max_difference"] <= 1e-5
    assert verified["least_effect"] > verify.LEAST_EFFECT
    # Every weight, four pictures, four parts of proprioception and their averages, the switch.
    assert verified["disturbed"] == len(student.weights) + 4 + 8 + 1
    assert verified["without_effect"] == {}
    return path


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    return onnx_cases.exported("pick", tmp_path_factory)


def initializers(path: pathlib.Path) -> dict[str, np.ndarray]:
    graph = onnx.load(str(path)).graph
    return {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}


def test_every_weight_of_the_student_is_in_the_file(
    student: Network, student_file: pathlib.Path
) -> None:
    found = initializers(student_file)
    kernels = {name: value.shape for name, value in found.items() if name.startswith("encoder/")}
    assert sorted(kernels.values()) == [(3, 3, 64, 64), (4, 4, 32, 64), (8, 8, 3, 32)]
    for name, value in student.weights.items():
        np.testing.assert_array_equal(found.pop(name), value)
    # Nothing else is large: no second copy of a weight, nothing that a closure brought in.
    assert sum(value.size for value in found.values()) < 0.02 * sum(
        value.size for value in student.weights.values()
    )
    operators = [node.op_type for node in onnx.load(str(student_file)).graph.node]
    assert operators.count("Conv") == 3  # both cameras at once
    assert operators.count("Tanh") == 1
    # The batch's size is not computed in chains of nodes, but for the features' normalization.
    assert operators.count("Shape") <= 2
    fixed = initializers(student_file).keys()
    for node in onnx.load(str(student_file)).graph.node:
        if node.op_type == "Reshape" and node.input[0] not in fixed:
            assert node.input[1] in fixed, node.output


def test_the_student_acts_from_raw_sensor_inputs(
    student_folder: pathlib.Path, student_file: pathlib.Path
) -> None:
    file, artifact = (
        OnnxPolicy.load(student_file),
        policies_artifact.load(student_folder, StudentPolicy),
    )
    rows = onnx_samples.wrist_views(32, 64, seed=5)
    rows["proprioception"] = np.random.default_rng(5).normal(size=(64, 32)).astype(np.float32)
    rows["switched"] = np.arange(64) % 16 > 7
    actions, seconds = [], []
    for step in range(64):
        observation = {name: value[step] for name, value in rows.items()}
        started = time.perf_counter()
        actions.append(file.act(observation))
        seconds.append(time.perf_counter() - started)
        np.testing.assert_allclose(actions[-1], artifact.act(observation), rtol=0, atol=1e-5)
    assert np.std(actions, axis=0).min() > 0.001
    assert np.median(seconds) < 0.003  # on one thread
    wrong = {name: value[0] for name, value in rows.items()}
    wrong["left_rgb"] = wrong["left_rgb"].astype(np.float32)
    with pytest.raises(ArtifactError, match=r"'left_rgb' must be uint8 \[32, 32, 3\]"):
        file.act(wrong)


def test_each_input_of_the_student_changes_its_action(student_file: pathlib.Path) -> None:
    file = OnnxPolicy.load(student_file)
    observation, other = file.examples()[0], file.examples()[3]
    other["switched"] = ~observation["switched"]
    actions = file.fork().act(observation)
    for name in observation:
        assert not np.array_equal(observation[name], other[name])
        changed = file.fork().act({**observation, name: other[name]})
        assert np.abs(changed - actions).max() > 1e-4


@pytest.mark.parametrize("layer", ["encoder/Conv_0/kernel", "head/layer0/bias", "std"])
def test_a_weight_that_is_left_behind_is_noticed(
    student: Network, student_file: pathlib.Path, layer: str
) -> None:
    """The flaw of the published export: the graph runs, with other weights in one place."""
    model = onnx.load(str(student_file))
    places = {one.name: one for one in model.graph.initializer}
    value = onnx.numpy_helper.to_array(places[layer])
    # The right weights are in the file, the nodes read a copy of them.
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == layer:
                node.input[index] = "copy"
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, "copy"))
    with pytest.raises(ArtifactError, match=f"differ .* when the weight '{layer}' is disturbed"):
        verify.verify(student, model)
    # Other weights are in the file.
    places[layer].CopyFrom(onnx.numpy_helper.from_array(value + 1, layer))
    with pytest.raises(ArtifactError, match=f"file's weights '{layer}' are not the policy's"):
        verify.verify(student, model)
    places[layer].name = "renamed"
    with pytest.raises(ArtifactError, match=f"lacks the weights {layer}"):
        verify.verify(student, model)


def small_network(apply: Any, artifact: pathlib.Path) -> Network:
    """Returns the pick policy with another function."""
    return dataclasses.replace(onnx_network.load_network(artifact), apply=apply)


def test_what_has_no_effect_is_noticed(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    right = onnx_network.load_network(pick[0])
    zero = {name: jnp.zeros_like(value) for name, value in right.weights.items()}

    def without(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        return right.apply({**weights, "layer0/bias": zero["layer0/bias"]}, inputs)

    def cancelled(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        return right.apply({**weights, "layer0/bias": weights["layer0/bias"] * 0}, inputs)

    def blind(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        sighted = np.repeat([1, 0, 1], [8, 3, 22]).astype(np.float32)
        return right.apply(weights, {"features": inputs["features"] * sighted})

    with pytest.raises(ArtifactError, match="left out layer0/bias"):
        onnx_cases.convert(small_network(without, pick[0]))
    for apply, words in (
        (cancelled, "the weight 'layer0/bias' has no effect"),
        (blind, r"the input 'features' \(object_pos_in_base\) has no effect"),
    ):
        network = small_network(apply, pick[0])
        with pytest.raises(ArtifactError, match=words):
            verify.verify(network, onnx_cases.convert(network))


def test_a_single_dead_element_is_reported(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    right = onnx_network.load_network(pick[0])

    def blind(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        sighted = (np.arange(33) != 9).astype(np.float32)
        return right.apply(weights, {"features": inputs["features"] * sighted})

    network = small_network(blind, pick[0])
    found = verify.verify(network, onnx_cases.convert(network))
    assert found["without_effect"] == {"features": [9]}


def test_a_network_that_computes_something_else_is_noticed(
    pick: tuple[pathlib.Path, pathlib.Path],
) -> None:
    right = onnx_network.load_network(pick[0])
    model = onnx_cases.convert(right)

    def slightly(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        return right.apply(weights, inputs) * 0.999

    def broken(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        return right.apply(weights, inputs) / 0

    with pytest.raises(ArtifactError, match=r"differ by .* in a batch of"):
        verify.verify(small_network(slightly, pick[0]), model)
    with pytest.raises(ArtifactError, match="not finite"):
        verify.verify(small_network(broken, pick[0]), model)


def test_a_refused_export_leaves_the_earlier_file(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(pick[1].read_bytes())
    before = path.read_bytes()
    right = onnx_network.load_network(pick[0])
    wrong = {**right.check, OUTPUT: right.check[OUTPUT] + np.float32(3e-5)}
    with pytest.raises(ArtifactError, match="recorded actions"):
        onnx_export.write(dataclasses.replace(right, check=wrong), onnx.load(path), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ArtifactError, match="could not be written"):
        onnx_export.export(pick[0], blocked / "policy.onnx")
    with pytest.raises(ArtifactError, match="holds no policy"):
        onnx_export.export(tmp_path, path)


def test_the_same_policy_gives_the_same_bytes_and_jax_is_left_as_it_was(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """jax2onnx itself would leave jax.numpy.cumsum with one positional argument."""
    before = {name: value for name, value in vars(jnp).items() if callable(value)}
    onnx_export.export(pick[0], tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == pick[1].read_bytes()
    assert all(getattr(jnp, name) is value for name, value in before.items())


def test_what_the_conversions_process_says_is_one_line(
    pick: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ArtifactError, match="holds no policy") as refused:
        conversion.convert_apart(tmp_path)
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ArtifactError, match=r"ended with exit status 1$"):
        conversion.convert_apart(pick[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError, match="jax2onnx"):
        conversion.convert_apart(pick[0])


def test_any_batch_size_gives_the_same_rows(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    file = OnnxPolicy.load(pick[1])
    (one,) = file.interface.network_inputs
    features = np.random.default_rng(0).normal(size=(33, *one.shape)).astype(np.float32)
    whole = file.network({one.name: features})
    for first, last in ((0, 1), (5, 7), (3, 33)):
        rows = file.network({one.name: features[first:last]})
        np.testing.assert_allclose(rows, whole[first:last], rtol=0, atol=1e-6)
    assert file.network({one.name: features[:0]}).shape == (0, 7)


@pytest.mark.parametrize("opset", [13, 21, 23])
def test_other_opsets(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path, opset: int
) -> None:
    found = onnx_cases.export(pick[0], tmp_path / "policy.onnx", 8, opset=opset)
    assert found["opset"] == opset
    model = onnx.load(str(tmp_path / "policy.onnx"))
    assert {one.domain: one.version for one in model.opset_import} == {"": opset}
    assert len(OnnxPolicy.load(tmp_path / "policy.onnx").examples()) == onnx_export.CHECK_STEPS


def test_numbers_out_of_range(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    for opset, samples in ((5, 256), (999, 256), (17, 1)):
        with pytest.raises(ConfigError):
            onnx_export.export(pick[0], "never.onnx", opset=opset, verify_samples=samples)
    assert not pathlib.Path("never.onnx").exists()


def test_fp16_halves_the_file_and_hardly_changes_the_actions(
    student: Network, student_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "half.onnx"
    found = onnx_export.write(student, onnx_cases.convert(student, fp16=True), path)
    assert found["bytes"] < 0.6 * student_file.stat().st_size
    assert 0 < found["verified"]["fp16_difference"] < verify.FP16_TOLERANCE
    kernels = initializers(path)
    for name, value in student.weights.items():
        assert kernels[name].dtype == (np.float16 if value.ndim > 1 else np.float32)
    whole, half = OnnxPolicy.load(student_file), OnnxPolicy.load(path)
    for observation in whole.examples():
        assert np.abs(whole.act(observation) - half.act(observation)).max() < 0.01


def test_fp16_is_refused_where_it_is_too_coarse(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    right = onnx_network.load_network(pick[0])
    # Two large weights cancel: float16 keeps neither well enough.
    kernel = np.array(right.weights["layer1/kernel"])
    features = dataclasses.replace(
        right,
        weights={**right.weights, "layer1/kernel": kernel + 300},
        apply=lambda weights, inputs: right.apply(
            {**weights, "layer1/kernel": weights["layer1/kernel"] - 300}, inputs
        ),
    )
    with pytest.raises(ArtifactError, match="float16 changes the actions"):
        verify.verify(features, onnx_cases.convert(features, fp16=True))


@pytest.mark.parametrize(
    ("activation", "rates"), [("relu", ()), ("tanh", (1.0,)), ("elu", (0.5, 0.2, 0.1))]
)
def test_other_policies(activation: str, rates: tuple[float, ...], tmp_path: pathlib.Path) -> None:
    artifact = onnx_cases.save_pick(
        tmp_path / "pick", activation=activation, rates=rates, hidden=(8, 6)
    )
    onnx_cases.export(artifact, tmp_path / "policy.onnx", 64)
    file, loaded = OnnxPolicy.load(tmp_path / "policy.onnx"), policies_artifact.load(artifact)
    assert isinstance(loaded, StatePolicy)
    for row in np.random.default_rng(0).normal(size=(10, 11)):
        actions = loaded.act(row)
        np.testing.assert_allclose(file.act({"observation": row}), actions, rtol=0, atol=1e-5)


def test_the_pick_policy_as_trained(random_policy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    found = onnx_cases.export(random_policy, tmp_path / "policy.onnx")
    assert found["verified"]["disturbed"] == 6 + 4 * 10  # weights; parts, newest and averaged
    described = json.loads((random_policy / "policy.json").read_text())
    assert found["policy"] == described["hash"]


def test_a_function_that_wants_the_batch_size_as_a_number(
    pick: tuple[pathlib.Path, pathlib.Path],
) -> None:
    right = onnx_network.load_network(pick[0])

    def fixed(weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        return right.apply(weights, inputs) + np.zeros(len(inputs["features"]), np.float32)[:, None]

    network = small_network(fixed, pick[0])
    assert verify.verify(network, onnx_cases.convert(network))["batches"] == [1, 7, 256]
