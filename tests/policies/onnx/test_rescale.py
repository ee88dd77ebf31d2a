"""A policy's file with another action scale: the same network, another policy, runs wherever the first one does."""

import json

import numpy as np
import onnx
import pytest

from alohas2r.core import assets
from alohas2r.deployment.terms import terms
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies.onnx import container, exported
from alohas2r.policies.onnx.rescale import rescale
from alohas2r.policies.onnx.runtime import OnnxPolicy

STUDENT = assets.data_path("params") / "student" / "policy.onnx"


def test_only_the_scale_differs(tmp_path):
    before = OnnxPolicy.load(STUDENT)
    told = rescale(STUDENT, tmp_path / "slow.onnx", 0.6)
    after = OnnxPolicy.load(tmp_path / "slow.onnx")
    assert told["scale"] == after.action["scale"] == pytest.approx(0.6 * before.action["scale"])
    assert told["policy"] == after.hash != before.hash
    for seen in before.examples():
        np.testing.assert_array_equal(before.act(seen), after.act(seen))
    same = {**before.action, "scale": None}, {**after.action, "scale": None}
    assert same[0] == same[1]
    assert before.interface == after.interface
    assert terms(after)._replace(name="", hash="", action_scale=0) == terms(before)._replace(
        name="", hash="", action_scale=0
    )
    # Evaluations take the scale from the description.
    assert exported.load(tmp_path / "slow.onnx").spec.action.scale == told["scale"]


def test_tempos_multiply_and_say_whose_they_are(tmp_path):
    slow, slower = tmp_path / "slow.onnx", tmp_path / "slower.onnx"
    first = rescale(STUDENT, slow, 0.8)
    again = rescale(STUDENT, tmp_path / "again.onnx", 0.8)
    assert first["policy"] == again["policy"]
    assert slow.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    told = rescale(slow, slower, 0.5)
    assert told["tempo"] == pytest.approx(0.4)
    assert told["scale"] == pytest.approx(0.5 * first["scale"])
    assert len({OnnxPolicy.load(STUDENT).hash, first["policy"], told["policy"]}) == 3


@pytest.mark.parametrize("tempo", [0.0, 0.39, 1.3, float("nan")])
def test_tempos_out_of_range_are_refused(tempo, tmp_path):
    with pytest.raises(ConfigError, match=r"must lie in 0\.4\.\.1\.2"):
        rescale(STUDENT, tmp_path / "x.onnx", tempo)
    assert not list(tmp_path.iterdir())


def test_what_is_no_policy_is_refused(tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(STUDENT.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is cut off, damaged"):
        rescale(damaged, tmp_path / "x.onnx", 0.6)
    model = onnx.ModelProto.FromString(container.unseal(STUDENT.read_bytes(), ""))
    metadata = {one.key: one.value for one in model.metadata_props}
    description = json.loads(metadata[container.DESCRIPTION_KEY])
    del description["action"]
    metadata[container.DESCRIPTION_KEY] = json.dumps(description)
    onnx.helper.set_model_props(model, metadata)
    silent = tmp_path / "silent.onnx"
    silent.write_bytes(container.seal(model.SerializeToString()))
    with pytest.raises(ArtifactError, match="says no action scale of its own"):
        rescale(silent, tmp_path / "x.onnx", 0.6)
