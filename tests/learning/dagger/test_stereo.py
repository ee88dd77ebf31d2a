"""Distillation of students that see pairs of pictures."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import student_cases

from alohas2r.cli import app
from alohas2r.core import assets
from alohas2r.errors import ConfigError
from alohas2r.learning.dagger import config as dagger_config
from alohas2r.learning.dagger import train as dagger
from alohas2r.learning.dagger.distiller import make_distiller
from alohas2r.policies import artifact
from alohas2r.policies.vision import StereoPolicy

pytestmark = pytest.mark.compiles
SMALL = ("cameras.size=16", "network.places=4", "stereo.filters=8,16", "average=0")


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[StereoPolicy, list[dict[str, float]]]:
    """A tiny distillation: its student, and the figures of its iterations."""
    settings = student_cases.settings("stereo", *SMALL)
    folder = tmp_path_factory.mktemp("stereo")
    distiller = make_distiller(settings, student_cases.staged(), None, 3, 1, "exact", folder=folder)
    before = distiller.init()
    state, rows = before, []
    for _ in range(2):
        state, data = distiller.collect(state)
        assert data.samples.rgb.shape == (8, 2, 16, 16, 4)
        assert np.asarray(data.samples.near).shape == (8, 2, 8, 8)
        state, figures = distiller.update(state, data)
        rows.append(figures)
    for name in ("head", "encoder", "inverse"):
        old, new = (jax.tree.leaves(one.learner.params[name]) for one in (before, state))
        assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(old, new, strict=True))
    distiller.finish(state, {"seed": 3}, {})
    return artifact.load(folder / "student", StereoPolicy), rows


def test_all_of_the_student_learns_and_its_artifact_acts(student) -> None:
    policy, rows = student
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert {"loss/imitation", "loss/objects", "loss/inverse_depth"} <= rows[0].keys()
    assert not any(name.startswith(("inverse", "head/objects")) for name in policy.weights)
    assert [*policy.spec.inputs] == [
        *("left_rgb", "left_grey", "right_rgb", "right_grey", "proprioception", "switched")
    ]
    observation = {
        name: np.zeros(shape, dtype) for name, (shape, dtype, _) in policy.spec.inputs.items()
    }
    action = policy.act(observation)
    policy.reset()
    other = policy.act({**observation, "right_grey": np.eye(16, dtype=np.uint8) * 255})
    assert np.abs(action - other).max() > 0


def test_looks_that_are_drawn_for_one_imager_alone_are_refused() -> None:
    settings = student_cases.settings("stereo", "senses.looks=transfer")
    with pytest.raises(ConfigError, match="left imagers alone"):
        make_distiller(settings, student_cases.staged(), None, 3, 1, "exact")


def test_pictures_are_larger_on_a_gpu_and_the_preset_is_for_an_engine() -> None:
    sizes = [
        dagger_config.find_preset("default", "stereo", engine).cameras.size
        for engine in ("cpu", "warp")
    ]
    assert sizes == [48, 64]
    assert dagger_config.find_preset("default", "rgbd", "warp").cameras.size == 32


def test_a_teacher_from_depth_is_refused_where_there_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (assets.data_path("params") / dagger.TEACHERS["depth"]).is_dir()  # it is shipped
    monkeypatch.setattr(assets, "data_path", lambda name: tmp_path / name)
    out = str(tmp_path / "run")
    assert app.main(["distill", "--observation", "stereo", "--teacher", "depth", "--out", out]) == 1
    said = capsys.readouterr().err.strip()
    assert "pixels-insert" in said
    assert "--teacher state" in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()
