from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.cli import app
from alohas2r.embodiment import history
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ArtifactError
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.spec import ObservationPart
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.switch import Switch


def draw_policy(
    phase: str, parts: tuple[int, ...], joints: int, seed: int, activation: str = "swish"
) -> StatePolicy:
    """A small policy with random weights; its history has two averages."""
    draw = np.random.default_rng(seed)
    names = tuple(f"joint{index}" for index in range(joints))
    spec = policies_spec.PolicySpec(
        kind="state",
        phase=phase,
        observation=tuple(ObservationPart(f"part{i}", size, "m") for i, size in enumerate(parts)),
        history=HistoryConfig((0.3, 0.1)),
        action=policies_spec.ActionSpec(names, 0.02, (-1.0,) * joints, (1.0,) * joints, 0.05),
        hidden=(6, 5),
        activation=activation,
    )
    sizes = (spec.history.size(sum(parts)), 6, 5, 2 * joints)
    weights = {"mean": draw.normal(size=sizes[0]), "std": draw.uniform(0.5, 2, sizes[0])}
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        weights[f"layer{layer}/kernel"] = draw.normal(0, 0.5, shape)
        weights[f"layer{layer}/bias"] = draw.normal(0, 0.5, shape[1])
    return StatePolicy(spec, weights, {"seed": seed})


@pytest.fixture
def state_policy() -> StatePolicy:
    return draw_policy("pick", (3, 2), 3, 0)


@pytest.fixture
def staged_policy() -> StagedPolicy:
    pick, insert = draw_policy("pick", (3, 2), 3, 0), draw_policy("insert", (5, 5, 1), 6, 1)
    return StagedPolicy(pick, insert, Switch(on_height=0.2), {"who": "test"})


def observations(size: int, steps: int = 6) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(steps, size)).astype(np.float32)


@pytest.fixture
def saved(state_policy: StatePolicy, tmp_path: pathlib.Path) -> pathlib.Path:
    return artifact.save(state_policy, tmp_path / "policy", {"observations": observations(5)})


def refused(folder: pathlib.Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        artifact.load(folder)
    return str(caught.value)


def test_what_is_saved_is_what_is_loaded(state_policy: StatePolicy, saved: pathlib.Path) -> None:
    found = artifact.load(saved, StatePolicy)
    assert found.spec == state_policy.spec
    assert found.trained == state_policy.trained
    assert found.hash == state_policy.hash
    for name, value in state_policy.weights.items():
        np.testing.assert_array_equal(found.weights[name], value)
    for observation in observations(5, 20):
        np.testing.assert_array_equal(found.act(observation), state_policy.act(observation))
    assert sorted(path.name for path in saved.iterdir()) == [
        "check.npz",
        "policy.json",
        "weights.npz",
    ]


def test_a_staged_policy_needs_nothing_but_its_folder(
    staged_policy: StagedPolicy, tmp_path: pathlib.Path
) -> None:
    rows, switched = observations(11), np.array([0, 0, 1, 1, 0, 1], bool)
    folder = artifact.save(
        staged_policy, tmp_path / "a" / "teacher", {"observations": rows, "switched": switched}
    )
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    found = artifact.load(elsewhere, StagedPolicy)
    assert found.hash == staged_policy.hash
    assert found.switch == staged_policy.switch
    assert found.pick.hash == staged_policy.pick.hash
    description = artifact.describe(elsewhere)
    assert description["parts"]["insert"]["hash"] == staged_policy.insert.hash
    for observation, flag in zip(rows, switched, strict=True):
        np.testing.assert_array_equal(
            found.act(observation, bool(flag)), staged_policy.act(observation, bool(flag))
        )


def test_a_staged_policy_drives_each_arm_with_its_own_observation_until_the_switch(
    staged_policy: StagedPolicy,
) -> None:
    rows = observations(11, 8)
    left, right = (draw_policy("pick", (3, 2), 3, 0) for _ in range(2))
    insert = draw_policy("insert", (5, 5, 1), 6, 1)
    for step, row in enumerate(rows):
        # All three remember all the time, whichever of them acts.
        picks = np.concatenate([left.act(row[:5]), right.act(row[5:10])])
        inserts = insert.act(row)
        found = staged_policy.act(row, step >= 4)
        np.testing.assert_allclose(found, inserts if step >= 4 else picks, atol=1e-6)
    staged_policy.reset()
    first = staged_policy.act(rows[0], False)
    fresh = draw_policy("pick", (3, 2), 3, 0).act(rows[0, :5])
    np.testing.assert_allclose(first[:3], fresh, atol=1e-6)


def test_parts_that_do_not_go_together_are_refused(staged_policy: StagedPolicy) -> None:
    pick, insert = staged_policy.pick, staged_policy.insert
    other = StatePolicy(
        dataclasses.replace(pick.spec, history=HistoryConfig((0.2, 0.1))), pick.weights, {}
    )
    for first, second, part in (
        (insert, pick, "pick policy"),
        (other, insert, "averages"),
        (pick, draw_policy("insert", (5, 5), 6, 1), "two pick observations"),
    ):
        with pytest.raises(ArtifactError, match=part):
            StagedPolicy(first, second, Switch(), {})


@pytest.mark.parametrize("activation", ["swish", "relu", "tanh", "elu"])
def test_numpy_and_jax_compute_the_same(activation: str) -> None:
    found = draw_policy("pick", (3, 2), 3, 2, activation)
    features = np.random.default_rng(0).normal(0, 3, (50, 15)).astype(np.float32)
    plain, traced = found.apply(features, np), found.apply(jnp.asarray(features), jnp)
    np.testing.assert_allclose(plain, traced, atol=1e-5)
    assert np.abs(plain).max() <= 1


def test_every_feature_matters_and_far_ones_are_limited() -> None:
    found = draw_policy("pick", (3, 2), 3, 3)
    base = np.zeros(15, np.float32)
    for index in range(15):
        changed = base.copy()
        changed[index] = 1
        assert np.abs(found.apply(changed, np) - found.apply(base, np)).max() > 1e-4
        for far in (1e3, 1e30):
            changed[index] = far
            limit = base.copy()
            limit[index] = found.weights["mean"][index] + 10 * found.weights["std"][index]
            np.testing.assert_allclose(found.apply(changed, np), found.apply(limit, np), atol=1e-5)


def test_act_remembers_as_training_does_and_reset_forgets(state_policy: StatePolicy) -> None:
    rows = observations(5)
    state = history.init(state_policy.spec.history, 5, np)
    actions = []
    for row in rows:
        state, features = history.update(state_policy.spec.history, state, row, np)
        actions.append(state_policy.act(row))
        np.testing.assert_array_equal(actions[-1], state_policy.apply(features, np))
    state_policy.reset()
    np.testing.assert_array_equal(state_policy.act(rows[0]), actions[0])
    assert not np.array_equal(state_policy.act(rows[0]), actions[1])


@pytest.mark.parametrize(
    "wrong", [np.full(5, np.nan), np.full(5, np.inf), np.zeros(4), np.zeros((1, 5))]
)
def test_observations_that_are_none_are_refused_and_not_remembered(
    state_policy: StatePolicy, wrong: np.ndarray
) -> None:
    row = observations(5)[0]
    with pytest.raises(ArtifactError, match="observation"):
        state_policy.act(wrong)
    with_fault = state_policy.act(row)
    state_policy.reset()
    np.testing.assert_array_equal(with_fault, state_policy.act(row))


def test_hash_changes_with_whatever_changes_the_actions(state_policy: StatePolicy) -> None:
    hashes = {state_policy.hash}
    for name, value in state_policy.weights.items():
        weights: dict[str, np.ndarray] = dict(state_policy.weights)
        weights[name] = value + 1e-6 * np.maximum(1, np.abs(value))
        hashes.add(StatePolicy(state_policy.spec, weights, {}).hash)
    spec = state_policy.spec
    for changed in (
        dataclasses.replace(spec, activation="relu"),
        dataclasses.replace(spec, action=dataclasses.replace(spec.action, scale=0.03)),
        dataclasses.replace(spec, history=HistoryConfig((0.3, 0.2))),
    ):
        hashes.add(StatePolicy(changed, state_policy.weights, {}).hash)
    assert len(hashes) == 1 + len(state_policy.weights) + 3
    # How it was trained does not change what it computes.
    assert StatePolicy(spec, state_policy.weights, {"seed": 9}).hash == state_policy.hash


def test_weights_of_wrong_shapes_are_refused(state_policy: StatePolicy) -> None:
    for name in state_policy.weights:
        weights = {**state_policy.weights, name: np.zeros((2, 2))}
        with pytest.raises(ArtifactError, match=f"'{name}'"):
            StatePolicy(state_policy.spec, weights, {})
    with pytest.raises(ArtifactError, match="'extra'"):
        StatePolicy(state_policy.spec, {**state_policy.weights, "extra": np.zeros(1)}, {})


def test_a_missing_file_or_folder_is_named(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "holds no policy" in refused(tmp_path / "nowhere")
    for name in ("weights.npz", "check.npz", "policy.json"):
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        assert name in refused(saved)
        (saved / name).write_bytes(content)
    artifact.load(saved)


def test_a_file_cut_off_anywhere_is_refused(saved: pathlib.Path) -> None:
    for path in sorted(saved.iterdir()):
        content = path.read_bytes()
        for length in {0, 1, 10, len(content) // 3, len(content) // 2, len(content) - 5}:
            path.write_bytes(content[:length])
            assert path.name in refused(saved), (path.name, length)
        path.write_bytes(content)
    artifact.load(saved)


def test_flipped_bits_are_noticed(saved: pathlib.Path, state_policy: StatePolicy) -> None:
    draw = np.random.default_rng(0)
    unnoticed = 0
    for name in ("weights.npz", "check.npz"):
        path = saved / name
        content = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            damaged[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
            path.write_bytes(bytes(damaged))
            try:
                found = artifact.load(saved)
            except ArtifactError:
                continue
            unnoticed += 1  # time stamps and the like
            assert found.hash == state_policy.hash
        path.write_bytes(content)
    assert unnoticed < 60


def rewrite(folder: pathlib.Path, name: str, **changes: np.ndarray) -> None:
    with np.load(folder / name) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(folder / name, **(arrays | changes))  # pyright: ignore[reportArgumentType]


def test_other_weights_do_not_match_the_hash(
    saved: pathlib.Path, state_policy: StatePolicy
) -> None:
    kernel = state_policy.weights["layer1/kernel"].copy()
    kernel[0, 0] += 1e-3
    rewrite(saved, "weights.npz", **{"layer1/kernel": kernel})
    assert "hash" in refused(saved)


def test_the_check_is_computed_again_at_every_load(saved: pathlib.Path) -> None:
    with np.load(saved / "check.npz") as file:
        actions = file["actions"]
    actions[-1, 0] += 1e-3
    rewrite(saved, "check.npz", actions=actions)
    assert "fails its check" in refused(saved)
    for bad in (actions[:, :2], actions[:3], actions.astype("U8"), np.full_like(actions, np.nan)):
        rewrite(saved, "check.npz", actions=bad)
        refused(saved)
    np.savez(saved / "check.npz", observations=np.zeros((1, 5)))
    assert "lacks" in refused(saved)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [path] * bool(path) + [leaf for k, v in items for leaf in leaves(v, (*path, k))]
    return [path]


def test_any_wrong_value_in_the_description_is_refused(saved: pathlib.Path) -> None:
    path = saved / "policy.json"
    good = json.loads(path.read_text())
    places = [place for place in leaves(good) if place[0] != "trained"]
    assert len(places) > 30
    for place in [*places, ("trained",)]:
        for value in (None, "absent", -7, {"a": 1}, [[]]):
            bad = json.loads(path.read_text())
            inner = bad
            for key in place[:-1]:
                inner = inner[key]
            if value == "absent" and isinstance(inner, dict):
                del inner[place[-1]]
                if place == ("trained",):
                    continue  # nothing depends on it
            elif inner[place[-1]] == value:
                continue
            else:
                inner[place[-1]] = value
            if place == ("trained",) and isinstance(value, dict):
                continue
            (path).write_text(json.dumps(bad))
            message = refused(saved)
            assert "\n" not in message
            path.write_text(json.dumps(good))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"policy"', "{}", "{", "\x00\xff"])
def test_a_description_that_is_none_is_refused(saved: pathlib.Path, content: str) -> None:
    (saved / "policy.json").write_text(content, encoding="latin-1")
    assert "policy.json is damaged" in refused(saved)


def test_a_newer_format_asks_for_an_upgrade(
    saved: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved / "policy.json"
    description = json.loads(path.read_text())
    description["format_version"] = policies_spec.FORMAT_VERSION + 1
    del description["action"]  # whatever else may have changed
    path.write_text(json.dumps(description))
    assert "upgrade alohas2r" in refused(saved)
    assert app.main(["evaluate", str(saved)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "upgrade alohas2r" in captured.err


def test_saving_replaces_the_earlier_artifact_whole(
    saved: pathlib.Path, state_policy: StatePolicy
) -> None:
    other = draw_policy("pick", (3, 2), 3, 9)
    artifact.save(other, saved, {"observations": observations(5)})
    assert artifact.load(saved).hash == other.hash
    blocked = saved / "policy.json" / "inside"
    with pytest.raises(ArtifactError, match="could not be written"):
        artifact.save(state_policy, blocked, {"observations": observations(5)})
    assert artifact.load(saved).hash == other.hash
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name]
