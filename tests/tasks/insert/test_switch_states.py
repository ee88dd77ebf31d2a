from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from alohas2r.embodiment import history
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.state import StatePolicy
from alohas2r.sim import kinematics, physics_randomization, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.tasks.insert import config, switch_states
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.switch_states import CollectConfig, SwitchStates
from alohas2r.tasks.insert.task import InsertTask, Pool

pytestmark = pytest.mark.compiles

SETTINGS = CollectConfig(variants=3, rounds=2, steps=60)


def lifting_policy(random_policy: pathlib.Path) -> StatePolicy:
    """A pick policy that raises its empty arm, whatever it sees."""
    found = artifact.load(random_policy, StatePolicy)
    weights = {name: np.zeros_like(value) for name, value in found.weights.items()}
    weights["std"] += 1
    weights["layer1/bias"][1] = -3.0  # the shoulder
    return StatePolicy(found.spec, weights, {})


@pytest.fixture(scope="module")
def pick(random_policy: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("policies") / "lifting"
    return artifact.save(lifting_policy(random_policy), folder, {"observations": np.zeros((2, 53))})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("states") / "switch_states.npz"


@pytest.fixture(scope="module")
def states(pick: pathlib.Path, path: pathlib.Path) -> SwitchStates:
    """Collected and written, since there is no file yet."""
    assert not path.exists()
    return switch_states.ensure(path, pick, SETTINGS, seed=4, threads=1)


@pytest.fixture(scope="module")
def env(states: SwitchStates) -> Env:
    """Training environments that start from the states."""
    loaded = scene.load_physics("insert")
    fields, half = physics_randomization.sample_insert(loaded, states.physics, states.draws)
    task = InsertTask(loaded, InsertConfig(), jax.tree.map(jax.numpy.asarray, states.pool))
    engine = CpuEngine(loaded, SETTINGS.variants, 1, fields)
    context = np.stack([half, np.arange(SETTINGS.variants)], 1)
    return Env(task, engine, EnvConfig(noise=config.INSERT_NOISE), context)


def test_states_are_where_both_grippers_have_just_been_raised(states: SwitchStates) -> None:
    insert = scene.load_physics("insert")
    pool = states.pool
    assert states.rate == 1
    assert len(jax.tree.leaves(pool)) == len(pool)
    assert all(leaf.shape[:2] == (3, 2) for leaf in jax.tree.leaves(pool))
    joints = np.stack([pool.qpos[..., arm.qpos] for arm in insert.arms], -2)
    heights = kinematics.tip_heights(joints)
    assert (heights > 0.17).all()
    assert (heights.min(-1) < 0.19).all()  # one control step ago it was not so
    # Nothing was in the grippers; the objects lie where they lay, each in another place.
    for arm, low in zip(insert.arms, (0.022, 0.010), strict=True):
        height = pool.qpos[..., arm.object_qpos[2]]
        assert ((low < height) & (height < low + 0.01)).all()
    assert len(np.unique(pool.qpos.reshape(6, -1), axis=0)) == 6
    assert np.abs(pool.qvel).max() > 0.1
    # What the policy did and saw belongs to the state: the shoulders were driven up.
    assert pool.actions[..., 1].min() < -0.9
    assert pool.seen is not None
    assert (pool.seen > 5).all()
    np.testing.assert_array_equal(pool.seen, pool.delay_count)


def test_an_episode_starts_from_a_state_of_its_variant_bit_for_bit(
    env: Env, states: SwitchStates
) -> None:
    used = set()
    for seed in range(10):
        state, _, _ = env.reset(jax.random.split(jax.random.PRNGKey(seed), 3))
        assert np.asarray(state.task.switched).all()
        assert isinstance(env.engine, CpuEngine)
        batch = env.engine.batch
        for variant in range(3):
            rows = [np.array_equal(batch.qpos[variant], row) for row in states.pool.qpos[variant]]
            assert sum(rows) == 1
            index = rows.index(True)
            used.add((variant, index))
            row = jax.tree.map(lambda x, v=variant, i=index: x[v, i], states.pool)
            np.testing.assert_array_equal(batch.qvel[variant], row.qvel)
            np.testing.assert_array_equal(batch.ctrl[variant], row.ctrl)
            np.testing.assert_array_equal(state.control.actions[variant], row.actions)
            np.testing.assert_array_equal(state.delay.observations[variant], row.delay)
            assert int(state.delay.seen[variant]) == row.delay_count
            np.testing.assert_array_equal(state.history.averages[variant], row.averages)
            assert int(state.history.seen[variant]) == row.seen
    assert len(used) == 6  # all of them are used


def test_the_averages_run_on_through_the_start(env: Env) -> None:
    state, _, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), 3))
    memory = jax.tree.map(np.asarray, state.history)
    after, features, _ = jax.jit(env.observe)(state, readout)
    newest = np.asarray(features)[:, : env.task.observation_size]
    expected_state, expected = history.update(env.config.history, memory, newest, np)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_array_equal(after.history.seen, expected_state.seen)
    # An average over the past is not the newest observation.
    slow = np.asarray(features)[:, -env.task.observation_size :]
    assert np.abs(slow - newest).max() > 0.05


def test_the_physics_of_each_variant_goes_with_its_states(states: SwitchStates) -> None:
    assert states.physics == SETTINGS.physics
    assert states.draws.shape == (3, physics_randomization.INSERT_DRAWS)
    again = np.random.default_rng([4, 1]).random((3, physics_randomization.INSERT_DRAWS))
    np.testing.assert_array_equal(states.draws, again)


def test_what_is_written_is_what_is_read(states: SwitchStates, path: pathlib.Path) -> None:
    found = switch_states.load(path)
    for name in Pool._fields:
        np.testing.assert_array_equal(getattr(found.pool, name), getattr(states.pool, name))
        assert getattr(found.pool, name).dtype == getattr(states.pool, name).dtype
    np.testing.assert_array_equal(found.draws, states.draws)
    assert (found.physics, found.pick, found.rate) == (states.physics, states.pick, states.rate)


def test_states_are_collected_again_only_for_another_policy(
    states: SwitchStates,
    path: pathlib.Path,
    pick: pathlib.Path,
    random_policy: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    before = path.stat().st_mtime_ns
    found = switch_states.ensure(path, pick, SETTINGS, seed=4, threads=1)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(found.pool.qpos, states.pool.qpos)
    assert found.pick == lifting_policy(random_policy).hash
    # Another policy: the file is of no use, and this one cannot give states.
    copy = tmp_path / "states.npz"
    copy.write_bytes(path.read_bytes())
    brief = dataclasses.replace(SETTINGS, variants=1, rounds=1, steps=1)
    with pytest.raises(ConfigError, match="never raised both grippers"):
        switch_states.ensure(copy, random_policy, brief, threads=1)
    assert copy.read_bytes() == path.read_bytes()


def test_files_that_are_none_are_refused(
    states: SwitchStates, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    content = path.read_bytes()
    broken = tmp_path / "broken.npz"
    for length in (0, 10, len(content) // 2, len(content) - 10):
        broken.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="collect the switch states again"):
            switch_states.load(broken)
    with pytest.raises(ArtifactError, match="missing"):
        switch_states.load(tmp_path / "nowhere.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"header": {**header, "format_version": switch_states.FORMAT_VERSION + 1}}, "format"),
        ({"header": {"format_version": 1}}, "damaged"),
    ]
    for change, part in changes:
        text = json.dumps(change["header"]).encode()
        np.savez(broken, **(arrays | {"header": np.frombuffer(text, np.uint8)}))  # pyright: ignore[reportArgumentType]
        with pytest.raises(ArtifactError, match=part):
            switch_states.load(broken)
    np.savez(broken, **{name: value for name, value in arrays.items() if name != "pool/qvel"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArtifactError, match="damaged"):
        switch_states.load(broken)


@pytest.mark.parametrize("name", ["variants", "rounds", "steps"])
def test_values_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(CollectConfig(), **{name: 0})
