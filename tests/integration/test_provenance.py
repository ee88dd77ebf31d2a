"""The command that an artifact records makes it again."""

from __future__ import annotations

import json
import pathlib
import shlex
from collections.abc import Iterator

import numpy as np
import pytest
import student_cases

from alohas2r.cli import app
from alohas2r.core.types import JsonObject
from alohas2r.policies import artifact
from alohas2r.policies.state import StatePolicy

NETWORK = ("ppo.network.policy=8", "ppo.network.value=8")
TEACHER = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1", *NETWORK),
    *("evaluations=0", "task.steps=5", "total_steps=16"),
)
INSERT = (*TEACHER, "collect.variants=4", "collect.rounds=1", "collect.steps=40")


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with student_cases.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def lifting(random_policy: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A pick policy that raises its empty arm, so that there are switch states."""
    policy = artifact.load(random_policy)
    assert isinstance(policy, StatePolicy)
    weights = {name: np.zeros_like(value) for name, value in policy.weights.items()}
    weights["std"] += 1
    weights["layer1/bias"][1] = -3.0
    folder = tmp_path_factory.mktemp("a folder") / "lift"
    return artifact.save(
        StatePolicy(policy.spec, weights, {}), folder, {"observations": np.zeros((2, 53))}
    )


def chosen(settings: tuple[str, ...]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def described(folder: pathlib.Path) -> JsonObject:
    name = "encoder.json" if (folder / "encoder.json").exists() else "policy.json"
    return json.loads((folder / name).read_text())


def assert_made_again(
    arguments: list[str], names: tuple[str, ...], parts: list[str], tmp_path: pathlib.Path
) -> None:
    """Runs a command, then the one that its artifact records, and compares what both wrote."""
    assert app.main([*arguments, "--out", str(tmp_path / "first")]) == 0
    first = [described(tmp_path / "first" / name) for name in names]
    words = shlex.split(first[0]["trained"]["command"])
    assert words[0] == "alohas2r"
    for part in parts:
        assert part in words
    assert app.main([*words[1:], "--out", str(tmp_path / "again")]) == 0
    for name, before in zip(names, first, strict=True):
        after = described(tmp_path / "again" / name)
        assert after["hash"] == before["hash"]
        with (
            np.load(tmp_path / "first" / name / "weights.npz") as one,
            np.load(tmp_path / "again" / name / "weights.npz") as other,
        ):
            assert one.files == other.files
            for key in one.files:
                np.testing.assert_array_equal(one[key], other[key])
    again = described(tmp_path / "again" / names[0])["trained"]
    assert again["command"] == first[0]["trained"]["command"]
    assert again["config"] == first[0]["trained"]["config"]
    assert again["parents"] == first[0]["trained"]["parents"]


def assert_seed_matters(arguments: list[str], name: str, tmp_path: pathlib.Path) -> None:
    """Runs a command that was run before with another seed."""
    assert app.main([*arguments, "--seed", "9", "--out", str(tmp_path / "other")]) == 0
    hashes = [described(tmp_path / run / name)["hash"] for run in ("first", "other")]
    assert hashes[0] != hashes[1]


def test_a_pick_policy(tmp_path: pathlib.Path) -> None:
    arguments = ["train-teacher", "--phase", "pick", "--preset", "quick", "--seed", "3"]
    arguments += ["--threads", "1", "--engine", "cpu", *chosen(TEACHER)]
    assert_made_again(arguments, ("policy",), ["--engine", "cpu"], tmp_path)
    assert_seed_matters(arguments, "policy", tmp_path)


def test_a_teacher_of_insertion(lifting: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = ["train-teacher", "--phase", "insert", "--preset", "quick", "--seed", "3"]
    arguments += ["--threads", "1", "--pick", str(lifting), *chosen(INSERT)]
    assert_made_again(arguments, ("policy", "teacher"), ["--pick", str(lifting)], tmp_path)
    assert_seed_matters(arguments, "teacher", tmp_path)


@pytest.mark.parametrize(
    "method", ["supervised", pytest.param("contrastive", marks=pytest.mark.long)]
)
def test_an_encoder(tmp_path: pathlib.Path, method: str) -> None:
    arguments = ["pretrain-encoder", "--preset", "quick", "--method", method, "--renderer", "exact"]
    arguments += ["--threads", "1", "--seed", "3", *chosen(student_cases.TINY_ENCODER)]
    parts = ["--method", method, "--renderer", "exact"]
    assert_made_again(arguments, ("encoder",), parts, tmp_path)
    assert_seed_matters(arguments, "encoder", tmp_path)


@pytest.mark.parametrize(
    ("observation", "encoder", "more"),
    [
        pytest.param("rgbd", "given", (), marks=pytest.mark.long),
        pytest.param("rgbd", "params/encoder", (), marks=pytest.mark.long),
        pytest.param("rgb", "finetune", (), marks=pytest.mark.long),
        pytest.param("rgb", "none", ("hold_out.probability=(0.2, 0.3)",), marks=pytest.mark.long),
        pytest.param("depth", None, ("cameras.size=32",), marks=pytest.mark.long),
        ("state", None, ()),
    ],
)
def test_a_student(
    tmp_path: pathlib.Path, observation: str, encoder: str | None, more: tuple[str, ...]
) -> None:
    teacher = student_cases.save_teacher(tmp_path / "my teacher")
    arguments = ["distill", "--preset", "quick", "--observation", observation, "--seed", "3"]
    arguments += ["--renderer", "exact", "--threads", "1", "--teacher", str(teacher)]
    arguments += chosen((*student_cases.TINY, *more))
    parts = ["--observation", observation, "--teacher", str(teacher)]
    if observation != "state":
        parts += ["--renderer", "exact"]
    if encoder == "given":
        encoder = str(student_cases.save_encoder(tmp_path / "my encoder"))
    if encoder is not None:
        arguments += ["--encoder", encoder]
        parts += ["--encoder", encoder]
    assert_made_again(arguments, ("student",), parts, tmp_path)
    if encoder is None:  # of all that has a student, the smallest
        assert_seed_matters(arguments, "student", tmp_path)
