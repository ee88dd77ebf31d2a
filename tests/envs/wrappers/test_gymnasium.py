"""Environments behind Gymnasium's interfaces."""

from __future__ import annotations

import pathlib

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

import alohas2r
from alohas2r.envs.wrappers.gymnasium import FINAL_ROWS, VectorTaskEnv
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.tasks.registry import task_names

pytestmark = pytest.mark.compiles
IDS = ("alohas2r/BlockPicking-v1", "alohas2r/PegInsertion-v1")


@pytest.fixture(scope="module")
def pick() -> VectorTaskEnv:
    return alohas2r.make_env("pick", 3, threads=1)


def trajectory(env: VectorTaskEnv, seed: int, steps: int = 4) -> list[np.ndarray]:
    observed, _ = env.reset(seed=seed)
    rows, actions = [np.asarray(observed)], np.random.default_rng(0)
    for _ in range(steps):
        action = actions.uniform(-1, 1, (env.num_envs, 7)).astype(np.float32)
        observed, reward, *_ = env.step(action)
        rows += [np.asarray(observed), reward]
    return rows


@pytest.mark.filterwarnings("ignore:.*observation space (minimum|maximum) value")
@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_own_checks_pass(name: str) -> None:
    env = gymnasium.make(name)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_every_task_has_an_id() -> None:
    ids = [spec.kwargs["task"] for spec in gymnasium.registry.values() if "alohas2r/" in spec.id]
    assert set(ids) >= set(task_names())


def test_make_vec_gives_the_vector_environment() -> None:
    env = gymnasium.make_vec(IDS[0], num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(env.unwrapped, VectorTaskEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observed, _ = env.reset(seed=0)
    assert env.observation_space.contains(observed)
    env.close()


def test_the_seed_decides_all(pick: VectorTaskEnv) -> None:
    first, again, other = (trajectory(pick, seed) for seed in (5, 5, 6))
    assert data_equivalence(first, again, exact=True)
    assert not np.array_equal(first[0], other[0])
    # Without a seed the random numbers go on.
    once, _ = pick.reset()
    twice, _ = pick.reset()
    assert not np.array_equal(np.asarray(once), np.asarray(twice))


def test_physics_seed_decides_sizes_and_masses() -> None:
    masses = [
        alohas2r.make_env("pick", 4, physics_seed=seed, threads=1).env.context for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(masses[0], masses[1])
    assert not np.array_equal(masses[0], masses[2])


def test_actions_beyond_the_range_are_clipped(pick: VectorTaskEnv) -> None:
    pick.reset(seed=1)
    first = pick.step(np.full((3, 7), 1.0, np.float32))[0]
    pick.reset(seed=1)
    second = pick.step(np.full((3, 7), 50.0, np.float32))[0]
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_an_episode_ends_by_time_and_begins_anew_in_the_same_step() -> None:
    count = FINAL_ROWS + 2  # more than are measured together
    env = alohas2r.make_env("pick", count)
    env.reset(seed=0)
    still = np.zeros((count, 7), np.float32)
    for _ in range(159):
        _, _, terminated, truncated, info = env.step(still)
        assert not terminated.any()
        assert not truncated.any()
        assert "final_obs" not in info
    observed, _, terminated, truncated, info = env.step(still)
    assert truncated.all()
    assert not terminated.any()
    final = info["final_obs"]
    assert isinstance(final, np.ndarray)
    last = np.stack(list(final))
    assert last.shape == (count, 53)
    # The last observation is of the old episode, the returned one of the new start.
    assert (np.abs(last - np.asarray(observed)).max(1) > 0.01).all()
    assert isinstance(info["success"], np.ndarray)
    _, _, _, truncated, info = env.step(still)
    assert not truncated.any()
    assert "final_obs" not in info


def test_single_environment_asks_for_a_reset_at_the_end() -> None:
    env = gymnasium.make(IDS[0]).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))
    env.reset(seed=0)
    truncated = False
    while not truncated:
        _, _, _, truncated, info = env.step(np.zeros(7, np.float32))
        assert "success" in info
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(7, np.float32))


def test_pictures_and_joints_of_a_student() -> None:
    env = alohas2r.make_env("insert", 2, "rgbd", size=16, renderer="exact", threads=1)
    observed, _ = env.reset(seed=1)
    assert isinstance(observed, dict)
    assert env.observation_space.contains(observed)
    assert observed["rgb"].shape == (2, 2, 16, 16, 3)
    assert observed["depth"].std() > 0
    later, *_ = env.step(np.ones((2, 14), np.float32))
    assert isinstance(later, dict)
    assert not np.array_equal(later["proprioception"], observed["proprioception"])
    depth = alohas2r.make_env("insert", 1, "depth", size=16, renderer="exact", threads=1)
    assert set(depth.reset(seed=0)[0]) == {"depth", "proprioception"}


def test_pictures_of_the_scene() -> None:
    env = gymnasium.make(IDS[1], render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (480, 640, 3)
    assert picture.std() > 10
    env.close()


def test_what_is_wrong_is_said(tmp_path: pathlib.Path, pick: VectorTaskEnv) -> None:
    with pytest.raises(ConfigError, match="insert"):
        alohas2r.make_env("insrt")
    with pytest.raises(ConfigError, match="num_envs"):
        alohas2r.make_env("pick", 0)
    with pytest.raises(ConfigError, match="state, rgbd"):
        alohas2r.make_env("pick", 1, "rbgd")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="scene insert"):
        alohas2r.make_env("pick", 1, "rgbd")
    with pytest.raises(ConfigError, match="render_mode"):
        alohas2r.make_env("pick", 1, render_mode="human")
    with pytest.raises(ConfigError, match="belong to tasks that follow"):
        alohas2r.make_env("pick", 1, switch_states=tmp_path / "x.npz")
    with pytest.raises(ArtifactError):
        alohas2r.make_env("insert", 1, switch_states=tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="one seed"):
        pick.reset(seed=[1, 2, 3])
    with pytest.raises(ConfigError, match="no options"):
        pick.reset(options={"low": 1})
