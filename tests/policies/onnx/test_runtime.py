"""A policy as an ONNX file: what it computes, what it refuses, and that it needs no JAX."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("jax2onnx")

import onnx
import onnx_cases

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact as policies_artifact
from alohas2r.policies.onnx import container
from alohas2r.policies.onnx import runtime as onnx_runtime
from alohas2r.policies.onnx.interface import Input, Interface, Memory, Part
from alohas2r.policies.onnx.runtime import OnnxPolicy
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy


@pytest.fixture(scope="module")
def pick(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    return onnx_cases.exported("pick", tmp_path_factory)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    return onnx_cases.exported("staged", tmp_path_factory)


def draws(count: int, size: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_acts_like_the_artifact_over_whole_episodes(
    pick: tuple[pathlib.Path, pathlib.Path], staged: tuple[pathlib.Path, pathlib.Path]
) -> None:
    artifact, file = policies_artifact.load(pick[0]), OnnxPolicy.load(pick[1])
    assert isinstance(artifact, StatePolicy)
    for _ in range(2):
        artifact.reset()
        file.reset()
        for row in draws(40, 11):
            actions = file.act({"observation": row})
            assert actions.dtype == np.float32
            np.testing.assert_allclose(actions, artifact.act(row), rtol=0, atol=1e-5)
    teacher, file = policies_artifact.load(staged[0]), OnnxPolicy.load(staged[1])
    assert isinstance(teacher, StagedPolicy)
    for step, row in enumerate(draws(40, 25)):
        switched = step % 16 > 7
        actions = file.act({"observation": row, "switched": switched})
        np.testing.assert_allclose(actions, teacher.act(row, switched), rtol=0, atol=1e-5)


def test_carries_the_description(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    file = OnnxPolicy.load(pick[1])
    assert file.description == json.loads((pick[0] / "policy.json").read_text())
    assert file.hash == policies_artifact.load(pick[0]).hash
    assert file.action["joints"] == list(onnx_cases.action_spec(1).joints)
    assert file.action["scale"] == 0.02
    assert file.action_size == len(file.action["low"]) == len(file.action["high"]) == 7
    assert file.interface.inputs[0].parts[1] == Part("object_pos_in_base", 3, "m")
    assert file.verify() <= 1e-5
    metadata = {one.key: one.value for one in onnx.load(str(pick[1])).metadata_props}
    assert json.loads(metadata["policy.json"]) == file.description


def test_reset_forgets_and_a_fork_has_its_own_memory(
    pick: tuple[pathlib.Path, pathlib.Path],
) -> None:
    file = OnnxPolicy.load(pick[1])
    rows = draws(6, 11)
    first = [file.act({"observation": row}) for row in rows]
    other = file.fork()
    again = [other.act({"observation": row}) for row in rows]
    np.testing.assert_array_equal(first, again)
    remembered = file.act({"observation": rows[0]})
    assert np.abs(remembered - first[0]).max() > 1e-3
    file.reset()
    np.testing.assert_array_equal(file.act({"observation": rows[0]}), first[0])


BAD: list[tuple[Any, tuple[str, ...]]] = [
    ({}, ("lacks observation, switched", "float32 [25]", "bool []")),
    ({"observation": np.zeros(25, np.float32)}, ("lacks switched",)),
    ({"observatoin": 1, "switched": True}, ("lacks observation", "unknown observatoin")),
    ([1, 2], ("mapping", "list")),
    (
        {"observation": np.zeros(24, np.float32), "switched": True},
        ("'observation'", "float32 [24]"),
    ),
    ({"observation": np.zeros((1, 25)), "switched": True}, ("float32 [25]", "float64 [1, 25]")),
    ({"observation": np.zeros(25, int), "switched": True}, ("'observation'", "int64 [25]")),
    ({"observation": "hello", "switched": True}, ("'observation'", "<U5 []")),
    ({"observation": [[1.0], [1.0, 2.0]], "switched": True}, ("'observation'", "list")),
    ({"observation": {"a": 1}, "switched": True}, ("'observation'", "object []")),
    ({"observation": np.zeros(25), "switched": 1.0}, ("'switched' must be bool []", "float64 []")),
    ({"observation": np.zeros(25), "switched": [True]}, ("'switched'", "bool [1]")),
    (
        {"observation": np.r_[np.zeros(20), np.nan, np.zeros(4)], "switched": True},
        ("finite", "1 of 25", "observation[20] (right/object_pos_in_base)"),
    ),
    ({"observation": np.full(25, np.inf), "switched": True}, ("25 of 25", "left/joint_pos")),
    ({"observation": np.full(25, 1e300), "switched": True}, ("25 of 25",)),
]


@pytest.mark.parametrize(("observation", "words"), BAD)
def test_what_is_malformed_is_named_and_leaves_the_memory_alone(
    staged: tuple[pathlib.Path, pathlib.Path], observation: Any, words: tuple[str, ...]
) -> None:
    file = OnnxPolicy.load(staged[1])
    rows = draws(2, 25)
    other = file.fork()
    for one in (file, other):
        one.act({"observation": rows[0], "switched": False})
    with pytest.raises(ArtifactError) as caught:
        file.act(observation)
    assert all(word in str(caught.value) for word in words), caught.value
    good = {"observation": rows[1], "switched": False}
    np.testing.assert_array_equal(file.act(good), other.act(good))


def test_values_too_large_for_the_averages_do_not_poison_them(
    pick: tuple[pathlib.Path, pathlib.Path],
) -> None:
    file = OnnxPolicy.load(pick[1])
    large, largest = np.float32(5e18), np.finfo(np.float32).max  # the former has a square
    file.act({"observation": np.full(11, large)})
    other = file.fork()
    other.act({"observation": np.full(11, large)})
    for refused in (largest, -largest, 10 * large):
        with pytest.raises(ArtifactError, match="too large"):
            file.act({"observation": np.full(11, refused, np.float32)})
    second = file.act({"observation": np.full(11, -large)})
    assert np.isfinite(second).all()
    np.testing.assert_array_equal(second, other.act({"observation": np.full(11, -large)}))


def test_other_floats_are_converted(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    file = OnnxPolicy.load(pick[1])
    row = draws(1, 11)[0].astype(np.float16)
    kinds = (np.float16, np.float32, np.float64, ">f8")
    actions = [file.fork().act({"observation": row.astype(kind)}) for kind in kinds]
    actions.append(file.fork().act({"observation": row.tolist()}))
    for one in actions:
        np.testing.assert_array_equal(one, actions[0])


ONE = Input("value", (2, 3), "float32", "m")


@given(
    st.one_of(
        arrays.arrays(
            st.sampled_from(["f2", "f4", "f8", "u1", "i4", "?", "c8", "U3", "M8[s]"]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        ),
        st.none() | st.text() | st.binary() | st.integers() | st.lists(st.lists(st.floats())),
    )
)
def test_reading_gives_the_declared_array_or_an_artifact_error(value: Any) -> None:
    try:
        found = ONE.read(value)
    except ArtifactError as error:
        found, message = None, str(error)
    else:
        message = ""
    if found is None:
        assert "'value'" in message
        return
    assert found.dtype == np.float32
    assert found.shape == (2, 3)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, np.asarray(value).astype(np.float32))


def test_interfaces_that_do_not_fit_are_refused() -> None:
    vector, flag = Input("vector", (3,), "float32"), Input("flag", (), "bool")
    memory = Memory("vector", "features", HistoryConfig())
    assert Interface((vector, flag), (memory,), 2).network_inputs[0].shape == (12,)
    with pytest.raises(ConfigError, match="parts"):
        Input("vector", (3,), "float32", parts=(Part("short", 2, "m"),))
    with pytest.raises(ConfigError, match="dtype"):
        Input("vector", (3,), "float64")
    for inputs, memories, actions in (
        ((), (), 1),
        ((vector, vector), (), 1),
        ((vector,), (), 0),
        ((flag,), (memory,), 1),
        ((vector,), (memory, memory), 1),
        ((flag,), (Memory("flag", "features", HistoryConfig()),), 1),
    ):
        with pytest.raises(ConfigError):
            Interface(inputs, memories, actions)


def test_a_damaged_file_is_refused(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArtifactError, match="could not be read"):
        OnnxPolicy.load(tmp_path / "nowhere.onnx")
    with pytest.raises(ArtifactError, match="could not be read"):
        OnnxPolicy.load(tmp_path)
    content, path = pick[1].read_bytes(), tmp_path / "damaged.onnx"
    draw = np.random.default_rng(0)
    damaged = [
        b"",
        b"\x00",
        content[:-1],
        content[1:],
        content + b"\n",
        content[: len(content) // 2],
    ]
    for place in (*draw.integers(0, len(content), 200), *range(len(content) - 80, len(content))):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(draw.integers(8))
        damaged.append(bytes(flipped))
    for one in damaged:
        path.write_bytes(one)
        with pytest.raises(ArtifactError, match=r"damaged\.onnx"):
            OnnxPolicy.load(path)


def changed(content: bytes, path: pathlib.Path, change: Any) -> pathlib.Path:
    """Writes a file in which someone changed something and sealed it again."""
    model = onnx.load_from_string(container.unseal(content, "it"))
    change(model, {one.key: one for one in model.metadata_props})
    path.write_bytes(container.seal(model.SerializeToString()))
    return path


def test_a_file_that_computes_something_else_fails_its_check(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    content = pick[1].read_bytes()
    kernels = [
        one.name for one in onnx.load_from_string(content).graph.initializer if "/" in one.name
    ]
    assert len(kernels) == 4

    def perturb(name: str) -> Any:
        def change(model: onnx.ModelProto, _: Any) -> None:
            (one,) = (one for one in model.graph.initializer if one.name == name)
            value = onnx.numpy_helper.to_array(one)
            one.CopyFrom(onnx.numpy_helper.from_array(value * np.float32(1.1), name))

        return change

    assert (
        OnnxPolicy.load(changed(content, tmp_path / "same.onnx", lambda *_: None)).verify() < 1e-5
    )
    for name in kernels:
        with pytest.raises(ArtifactError, match="fails its check"):
            OnnxPolicy.load(changed(content, tmp_path / "other.onnx", perturb(name)))


def test_metadata_that_does_not_fit_is_refused(
    pick: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    content = pick[1].read_bytes()

    def edit(key: str, value: Any) -> Any:
        def change(_: onnx.ModelProto, metadata: Any) -> None:
            found = json.loads(metadata["alohas2r"].value)
            found[key] = value
            metadata["alohas2r"].value = json.dumps(found)

        return change

    def replace(key: str, text: str) -> Any:
        def change(_: onnx.ModelProto, metadata: Any) -> None:
            metadata[key].value = text

        return change

    cases = (
        (edit("format_version", 99), "upgrade alohas2r"),
        (edit("interface", {}), "no exported policy"),
        (edit("interface", None), "no exported policy"),
        (replace("alohas2r", "[]"), "no exported policy"),
        (replace("policy.json", "{"), "no exported policy"),
        (replace("policy.json", "{}"), "no exported policy"),
        (replace("check", "AAAA"), "no exported policy"),
        (lambda model, _: model.ClearField("metadata_props"), "no exported policy"),
        (lambda model, _: model.ClearField("graph"), "cannot run"),
        (lambda model, _: model.opset_import[0].__setattr__("version", 9999), "cannot run"),
    )
    for change, words in cases:
        with pytest.raises(ArtifactError, match=words):
            OnnxPolicy.load(changed(content, tmp_path / "edited.onnx", change))


def test_needs_numpy_and_onnxruntime_alone(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    code = (
        "import sys\n"
        "blocked = ('jax', 'jaxlib', 'flax', 'brax', 'optax', 'orbax', 'onnx', 'jax2onnx',\n"
        "           'mujoco', 'scipy', 'typer', 'rich', 'websockets', 'msgpack')\n"
        "sys.modules.update(dict.fromkeys(blocked))\n"  # None: cannot be imported
        "from alohas2r.policies.onnx.runtime import OnnxPolicy\n"
        "policy = OnnxPolicy.load(sys.argv[1])\n"
        "for observation in policy.examples():\n"
        "    assert policy.act(observation).shape == (7,)\n"
        "assert not any(sys.modules[name] for name in blocked)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(pick[1])]
    root = pathlib.Path(onnx_runtime.__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert not done.stderr


def test_the_package_gives_it_without_jax(pick: tuple[pathlib.Path, pathlib.Path]) -> None:
    code = (
        "import sys\n"
        "import alohas2r\n"
        "assert 'onnxruntime' not in sys.modules\n"  # only who asks for it loads it
        "from alohas2r import OnnxPolicy\n"
        "policy = OnnxPolicy.load(sys.argv[1])\n"
        "policy.act(policy.examples()[0])\n"
        "heavy = {'jax', 'jaxlib', 'flax', 'brax', 'optax', 'onnx', 'jax2onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "try:\n"
        "    alohas2r.Horse\n"
        "except AttributeError as error:\n"
        "    assert 'Horse' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(pick[1])]
    root = pathlib.Path(onnx_runtime.__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert onnx_runtime.OnnxPolicy is OnnxPolicy
