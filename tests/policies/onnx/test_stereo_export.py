"""Students that see pairs of pictures are exported as all others."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

pytest.importorskip("jax2onnx")

import onnx_cases

from alohas2r.errors import ArtifactError
from alohas2r.policies import artifact
from alohas2r.policies.onnx import exported, samples
from alohas2r.policies.spec import StereoSpec
from alohas2r.policies.vision import StereoPolicy

pytestmark = pytest.mark.compiles


@pytest.mark.parametrize(
    "network",
    ["cost", *(pytest.param(name, marks=pytest.mark.long) for name in ("early", "attention"))],
)
def test_the_file_is_the_same_policy(network: str, tmp_path: pathlib.Path) -> None:
    folder, file = onnx_cases.save_stereo(tmp_path / "stereo", network), tmp_path / "stereo.onnx"
    verified = onnx_cases.export(folder, file, 16)["verified"]
    policy = artifact.load(folder, StereoPolicy)
    # Every weight, two colour and two grey pictures, four parts of proprioception and their averages, the switch.
    assert verified["disturbed"] == len(policy.weights) + 4 + 8 + 1
    assert not any(name.startswith("inverse") for name in policy.weights)
    found = exported.load(file)
    assert found.kind == "stereo"
    assert isinstance(found.spec, StereoSpec)
    assert found.spec == policy.spec
    rows = samples.wrist_views(16, 3, 5, paired=True)
    observation = {name: value[1] for name, value in rows.items() if not name.endswith("depth")}
    observation |= {"proprioception": np.zeros(32, np.float32), "switched": np.array(True)}
    np.testing.assert_allclose(
        found.file.act(observation), policy.act(observation), rtol=0, atol=1e-5
    )


def test_one_that_does_not_look_at_the_right_picture_is_no_stereo_policy_to_export(
    tmp_path: pathlib.Path,
) -> None:
    folder = onnx_cases.save_stereo(tmp_path / "black", "early", right="black")
    with pytest.raises(ArtifactError, match=r"left_grey.* no effect|left out"):
        onnx_cases.export(folder, tmp_path / "black.onnx", 16)
