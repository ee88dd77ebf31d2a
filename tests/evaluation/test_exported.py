"""An exported file in simulation: it must do what the artifact does, episode by episode."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("jax2onnx")

import onnx
import onnx_cases
import student_cases

from alohas2r.core import assets
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import episodes, evaluate
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies.onnx import container
from alohas2r.policies.onnx import exported as onnx_exported
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import StudentPolicy
from alohas2r.tasks.insert import entry
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.protocol import EVAL_V1, Protocol

pytestmark = pytest.mark.compiles
EPISODES = 4


def shortened(steps: int) -> Protocol:
    """So short that differences of rounding cannot grow."""
    return dataclasses.replace(EVAL_V1, insert=dataclasses.replace(EVAL_V1.insert, steps=steps))


@pytest.fixture(scope="module")
def pick_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("pick") / "pick.onnx"
    onnx_cases.export(assets.data_path("params") / "pick", file, verify_samples=16)
    return file


def test_the_shipped_pick_policy_succeeds_in_the_same_episodes(pick_file: pathlib.Path) -> None:
    of_artifact = evaluate.evaluate(
        assets.data_path("params") / "pick", EPISODES, seed=7, threads=1
    )
    of_file = evaluate.evaluate(pick_file, EPISODES, seed=7, threads=1)
    assert of_file["table"]["success"].any()
    assert of_file.keys() == of_artifact.keys()
    assert of_file["table"].keys() == of_artifact["table"].keys()
    for name in ("protocol", "protocol_hash", "policy", "phase", "episodes", "success", "stages"):
        assert of_file[name] == of_artifact[name]
    for name in ("success", "precise", "grasped", "lifted"):
        np.testing.assert_array_equal(of_file["table"][name], of_artifact["table"][name])
    # Rounding apart, the very same motion.
    for name, most in (("position_error_mm", 0.5), ("rotation_error_deg", 0.5)):
        np.testing.assert_allclose(
            of_file["table"][name], of_artifact["table"][name], rtol=0, atol=most
        )


def test_a_staged_teacher_moves_alike_before_and_after_the_switch(
    staged_file: tuple[pathlib.Path, pathlib.Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact, file = staged_file
    # After the first step, the fingers of the home pose are high enough for this one.
    switch = Switch(on_height=0.02, off_height=0.01)
    monkeypatch.setattr(entry, "InsertConfig", functools.partial(InsertConfig, switch=switch))
    exported, loaded = evaluate.load_policy(file), policies_artifact.load(artifact)
    assert isinstance(exported, onnx_exported.ExportedPolicy)
    assert isinstance(loaded, StagedPolicy)
    assert exported.hash == loaded.hash
    assert exported.spec == loaded.spec
    keys = episodes.episode_keys(7, 0, 3)
    table, of_file, *_ = evaluate.run(exported, shortened(8), keys, threads=1)
    of_artifact = evaluate.run(loaded, shortened(8), keys, threads=1).qpos
    assert table["switched"].all()
    np.testing.assert_allclose(of_file, of_artifact, rtol=0, atol=1e-5)
    assert np.ptp(of_file, axis=0).max() > 0.01


@pytest.fixture(scope="module")
def staged_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    folder = tmp_path_factory.mktemp("staged")
    artifact, file = student_cases.save_teacher(folder / "teacher"), folder / "teacher.onnx"
    onnx_cases.export(artifact, file, verify_samples=16)
    return artifact, file


def test_a_student_sees_and_moves_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact, file = onnx_cases.exported("student", tmp_path_factory)
    exported, loaded = evaluate.load_policy(file), policies_artifact.load(artifact)
    assert isinstance(exported, onnx_exported.ExportedPolicy)
    assert isinstance(loaded, StudentPolicy)
    assert (exported.hash, exported.spec) == (loaded.hash, loaded.spec)
    keys = episodes.episode_keys(7, 0, 2)
    of_file, of_artifact = (
        evaluate.run(one, shortened(4), keys, threads=1, renderer="exact").qpos
        for one in (exported, loaded)
    )
    np.testing.assert_allclose(of_file, of_artifact, rtol=0, atol=1e-5)
    assert np.ptp(of_file, axis=0).max() > 0.001


def test_what_is_compiled_for_one_group_of_episodes_serves_another(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """To the bit, of the artifact and of its file: objects, looks and physics of the other group are its own."""
    first, second = (episodes.episode_keys(7, number, 2) for number in (0, 2))
    for path in onnx_cases.exported("student", tmp_path_factory):
        policy = evaluate.load_policy(path)
        before = evaluate.Runner(policy, shortened(4), first, 1, "exact")
        moved = before.run().qpos
        after = evaluate.Runner(policy, shortened(4), second, 1, "exact", after=before).run()
        alone = evaluate.run(policy, shortened(4), second, 1, "exact")
        np.testing.assert_array_equal(after.qpos, alone.qpos)
        assert (after.qpos[-1] != moved[-1]).any(axis=1).all()
        for name, column in alone.table.items():
            np.testing.assert_array_equal(after.table[name], column, err_msg=name)


def test_a_file_without_a_valid_description_is_refused(
    staged_file: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    content = container.unseal(staged_file[1].read_bytes(), "the file")
    for change in ({"kind": "horse"}, {"parts": {}}, {"parts": {"insert": {"phase": "insert"}}}):
        model = onnx.load_model_from_string(content)
        for item in model.metadata_props:
            if item.key == container.DESCRIPTION_KEY:
                item.value = json.dumps({**json.loads(item.value), **change})
        path = tmp_path / "changed.onnx"
        path.write_bytes(container.seal(model.SerializeToString()))
        with pytest.raises(ArtifactError, match="no valid description"):
            onnx_exported.load(path)


def test_an_insertion_policy_alone_is_refused(tmp_path: pathlib.Path) -> None:
    pick = student_cases.staged().pick
    alone = student_cases.insertion_policy(pick)
    rows = np.random.default_rng(0).normal(0, 0.1, (8, alone.spec.observation_size))
    file = tmp_path / "insert.onnx"
    onnx_cases.export(
        policies_artifact.save(alone, tmp_path / "insert", {"observations": rows}),
        file,
        verify_samples=16,
    )
    with pytest.raises(ArtifactError, match="for 'insert' alone"):
        evaluate.evaluate(file, 1)
