"""A policy that was learnt on a robot, exported: NumPy, JAX and onnxruntime compute the same, step by step."""

import numpy as np
import online_cases
import onnx_cases
import pytest

from alohas2r.core import assets
from alohas2r.deployment.terms import load_policy, terms
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import evaluate
from alohas2r.policies import artifact
from alohas2r.policies.online import networks
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.policy import OnlinePolicy
from alohas2r.policies.online.spec import EncoderSpec, SeeingSpec
from alohas2r.policies.onnx import exported
from alohas2r.policies.onnx.network import load_network
from alohas2r.policies.onnx.samples import wrist_views

pytestmark = pytest.mark.compiles

pytest.importorskip("jax2onnx")
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["student", "own"])
def folder(request, tmp_path_factory):
    """A policy with a student's eyes, and one with an encoder of its own, as artifact and file."""
    own = EncoderSpec(layers=3, filters=8, features=10) if request.param == "own" else None
    spec = online_cases.spec(hidden=(16, 16), encoder=own)
    draw = np.random.default_rng(0)
    eyes, *_ = read_eyes(assets.data_path("params") / "student", "left")
    weights = {
        name: draw.normal(0, 0.2, shape).astype(np.float32)
        for name, shape in networks.shapes(spec).items()
    }
    weights["std"] = np.abs(weights["std"]) + np.float32(0.3)
    rows = wrist_views(32, 24, 2)
    targets = np.tile(online_cases.HOME, 2) + np.cumsum(draw.normal(0, 0.005, (24, 14)), 0)
    rows["proprioception"] = np.stack([online_cases.proprioception(one) for one in targets])
    path = tmp_path_factory.mktemp("online")
    looking = weights if own else {**eyes, **weights}
    artifact.save(OnlinePolicy(spec, looking, {}), path / "policy", rows)
    onnx_cases.export(path / "policy", path / "policy.onnx", 16)
    return path


def test_numpy_jax_and_onnx_agree(folder):
    policy, file = (
        artifact.load(folder / "policy", OnlinePolicy),
        load_policy(folder / "policy.onnx"),
    )
    network = load_network(folder / "policy", 16)
    rows = policy.check_inputs(artifact.read_npz(folder / "policy" / "check.npz"))
    state, before = None, np.zeros(14)
    for step in range(24):
        seen = {name: row[step] for name, row in rows.items()}
        ours, theirs = policy.act(seen), file.act(seen)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        if step % 4 == 0:  # it decides, and keeps that up
            state, inputs = network.interface.remember(state, seen)
            batch = {name: value[None] for name, value in inputs.items()}
            np.testing.assert_allclose(
                ours, network.apply(network.weights, batch)[0], atol=TOLERANCE
            )
            before = ours
        np.testing.assert_array_equal(ours, before)
    policy.reset()
    file.reset()
    first = {name: row[0] for name, row in rows.items()}
    np.testing.assert_allclose(policy.act(first), file.act(first), atol=TOLERANCE)


def test_a_robot_can_run_it_and_an_evaluation_says_why_not(folder):
    file = load_policy(folder / "policy.onnx")
    wants = terms(file)
    assert (wants.size, wants.action_scale, wants.single) == (32, 0.02, False)
    assert file.interface.hold == 4
    assert set(online_cases.spec().inputs) == {one.name for one in file.interface.inputs}
    for path in (folder / "policy", folder / "policy.onnx"):
        with pytest.raises(ArtifactError, match="learnt on a robot for 'reach', no task"):
            evaluate.load_policy(path)
    with pytest.raises(ArtifactError, match="no task"):
        exported.load(folder / "policy.onnx")


def test_weights_that_do_not_fit_are_refused(folder):
    policy = artifact.load(folder / "policy", OnlinePolicy)
    own = isinstance(policy.spec, SeeingSpec)
    assert any(name.startswith("encoder/") for name in policy.weights) == own
    assert len(policy.hash) == 64
    assert policy.action_size == 14
    weights = {name: value for name, value in policy.weights.items() if name != "mean"}
    with pytest.raises(ArtifactError, match="do not fit"):
        OnlinePolicy(policy.spec, weights, {})
