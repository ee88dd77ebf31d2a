from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs import actuation, noise
from alohas2r.envs.env import Env
from alohas2r.envs.task import EnvConfig
from alohas2r.errors import ModelError
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import BlockConfig
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.pick.task import PickTask

pytestmark = pytest.mark.compiles

COUNT, STEPS = 8, 5


def make_env(config: EnvConfig, threads: int = 1, steps: int = STEPS) -> Env:
    loaded = scene.load_physics("pick")
    draws = np.random.default_rng(0).random((COUNT, 2))
    fields, context = physics_randomization.sample_block(loaded, BlockConfig(), draws)
    engine = CpuEngine(loaded, COUNT, threads, fields)
    return Env(PickTask(loaded, PickConfig(steps=steps)), engine, config, context)


class Compiled:
    """An environment whose JAX parts are compiled once for all tests."""

    def __init__(self, config: EnvConfig, steps: int = STEPS) -> None:
        self.env = make_env(config, steps=steps)
        self.observe = jax.jit(self.env.observe)
        self.control = jax.jit(self.env.control)

    def reset(self, seed: int = 0, stagger: bool = False) -> tuple[Any, Any, Any]:
        keys = jax.random.split(jax.random.PRNGKey(seed), COUNT)
        return self.env.reset(keys, stagger)

    def roll(self, steps: int, seed: int = 0) -> dict[str, np.ndarray]:
        """Waves the arms for some steps; returns what came out, [T, ...] each."""
        state, physics, readout = self.reset(seed)
        found: dict[str, list[Any]] = {}
        for step in range(steps):
            state, features, privileged = self.observe(state, readout)
            state, ctrl = self.control(state, readout, wave(step))
            state, physics, readout, scored = self.env.advance(state, physics, ctrl)
            kept = {
                "features": features,
                "privileged": privileged,
                "ctrl": ctrl,
                "reward": scored.reward,
                "done": scored.done,
                "qpos": readout.qpos,
                "sensordata": readout.sensordata,
            }
            for name, value in kept.items():
                found.setdefault(name, []).append(np.asarray(value))
        return {name: np.stack(values) for name, values in found.items()}


def wave(step: int) -> jax.Array:
    phase = jnp.arange(COUNT)[:, None] * 0.7 + jnp.arange(7)[None] * 1.3
    return jnp.sin(0.5 * step + phase)


@pytest.fixture(scope="module")
def noisy() -> Compiled:
    return Compiled(EnvConfig())


@pytest.fixture(scope="module")
def ideal() -> Compiled:
    return Compiled(EnvConfig(actuation.IDEAL, noise.NONE, HistoryConfig(())), steps=40)


def test_the_same_seed_gives_the_same_bits_with_any_threads(noisy: Compiled) -> None:
    first = noisy.roll(8)
    engine = noisy.env.engine
    noisy.env.engine = make_env(EnvConfig(), threads=2).engine
    second = noisy.roll(8)
    noisy.env.engine = engine
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    other = noisy.roll(8, seed=1)
    for name in ("features", "ctrl", "reward", "qpos"):
        assert not np.array_equal(first[name], other[name])


def test_every_environment_has_its_own_stream(noisy: Compiled) -> None:
    features = noisy.roll(1)["features"][0]
    assert len(np.unique(features[:, 0])) == COUNT  # the waist, with noise


def test_an_episode_ends_and_starts_anew_with_nothing_left_but_the_stage(noisy: Compiled) -> None:
    state, physics, readout = noisy.reset()
    state = state._replace(task=state.task._replace(stage=jnp.arange(COUNT, dtype=jnp.int32) % 5))
    first_keys = np.asarray(state.key)
    for step in range(STEPS):
        state, _, _ = noisy.observe(state, readout)
        state, ctrl = noisy.control(state, readout, wave(step))
        state, physics, readout, scored = noisy.env.advance(state, physics, ctrl)
        assert bool(np.asarray(scored.done).all()) == (step == STEPS - 1)
    fresh, _, _ = noisy.reset(seed=3)
    # The random keys run on; the starts are new ones.
    assert not np.array_equal(state.key, first_keys)
    for name in ("start_height", "best", "reached", "step"):
        kept, new = getattr(state.task, name), getattr(fresh.task, name)
        np.testing.assert_allclose(kept, new, atol=1e-8)
    np.testing.assert_array_equal(state.task.stage, np.arange(COUNT) % 5)
    for kept, new in zip(state[2:], fresh[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, kept, new)
    # At rest, the block on the table, no force left over, targets where the joints are.
    assert (np.asarray(readout.qvel) == 0).all()
    arm = scene.load_physics("pick").arms[0]
    np.testing.assert_allclose(
        readout.qpos[:, arm.object_qpos[2]], 0.0008 + noisy.env.context[:, 0], atol=1e-6
    )
    signal = noisy.env.extract(readout)
    assert (np.asarray(signal.finger_force) == 0).all()
    np.testing.assert_allclose(signal.ctrl[:, 0], signal.qpos[:, 0, :7], atol=1e-6)
    # The first observation fills every average.
    state, features, _ = noisy.observe(state, readout)
    bank = np.asarray(features).reshape(COUNT, 4, -1)
    np.testing.assert_allclose(bank, np.repeat(bank[:, :1], 4, 1), atol=1e-6)


def test_staggered_clocks_are_spread_over_the_episode(noisy: Compiled) -> None:
    state, _, _ = noisy.reset(stagger=True)
    clocks = np.asarray(state.task.step)
    assert clocks.min() >= 0
    assert clocks.max() < STEPS
    assert len(np.unique(clocks)) > 2
    plain, _, _ = noisy.reset()
    assert (np.asarray(plain.task.step) == 0).all()


def test_without_noise_and_delays_policy_and_critic_see_the_same_state(ideal: Compiled) -> None:
    found = ideal.roll(6)
    np.testing.assert_allclose(found["features"], found["privileged"][..., :53], atol=1e-5)
    # The target moves by a fiftieth of the action at once.
    home = scene.load_physics("pick").home_ctrl
    expected = np.asarray(found["ctrl"][0] + 0.02 * wave(1))
    limits = scene.load_physics("pick")
    np.testing.assert_allclose(
        found["ctrl"][1], np.clip(expected, limits.ctrl_low, limits.ctrl_high), atol=1e-6
    )
    assert np.abs(found["ctrl"][0][:, 1:] - home[1:]).max() <= 0.02 + 1e-6


def test_the_critic_sees_the_exact_state_and_the_policy_a_noisy_one(noisy: Compiled) -> None:
    state, _, readout = noisy.reset()
    _, features, privileged = noisy.observe(state, readout)
    signal = noisy.env.extract(readout)
    exact = jax.vmap(lambda s, t: noisy.env.task.observation(noise.exact(s), t))(signal, state.task)
    np.testing.assert_allclose(privileged[:, :53], exact, atol=1e-6)
    error = np.abs(np.asarray(features[:, :53] - exact))
    assert 0.01 < error[:, :6].max() <= 0.1 + 1e-6  # joint positions
    assert (error[:, 6:8] < 1e-6).all()  # fingers


def test_divergence_ends_the_episode_of_that_environment_alone(
    ideal: Compiled, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file here
    outcomes = []
    for broken in (False, True):
        state, physics, readout = ideal.reset()
        if broken:
            physics.rows[3] = np.nan
        state, _, _ = ideal.observe(state, readout)
        state, ctrl = ideal.control(state, readout, wave(0))
        state, physics, readout, scored = ideal.env.advance(state, physics, ctrl)
        outcomes.append((scored, readout, state))
    (healthy, report, _), (scored, broken_report, state) = outcomes
    expected = np.arange(COUNT) != 3
    np.testing.assert_array_equal(scored.finite, expected)
    np.testing.assert_array_equal(scored.done, ~expected)
    assert not np.asarray(scored.truncated).any()
    assert float(scored.reward[3]) == 0
    np.testing.assert_array_equal(scored.reward[expected], healthy.reward[expected])
    for before, after in zip(report, broken_report, strict=True):
        np.testing.assert_array_equal(after[expected], before[expected])
        assert np.isfinite(after).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_a_context_of_another_shape_is_refused(ideal: Compiled) -> None:
    with pytest.raises(ModelError, match=r"context must be \[8, 2\]"):
        Env(ideal.env.task, ideal.env.engine, EnvConfig(), np.zeros((COUNT, 3)))


# Mean and standard deviation of what a fixed rollout shows the policy, by part of the observation.
GOLDEN: dict[str, tuple[float, float]] = {
    "joint_pos": (0.0700, 0.6097),
    "joint_vel": (0.0001, 0.1548),
    "object_linvel_in_base": (0.0001, 0.0006),
    "object_angvel_in_base": (0.0000, 0.0000),
    "gripper_rotation_rows_2_3_in_base": (0.2705, 0.5101),
    "object_rotation_rows_2_3_in_base": (0.3339, 0.4710),
    "fingertips_minus_grip_point_in_base": (0.0256, 0.0816),
    "target_minus_object_in_base": (0.1037, 0.1414),
    "target_minus_object_rotation_rows_1_2_in_base": (0.0132, 0.1620),
    "target_ctrl_minus_joint_pos": (-0.0057, 0.0185),
}


def test_golden_rollout(ideal: Compiled) -> None:
    found = ideal.roll(20, seed=7)["features"]
    start, statistics = 0, {}
    for name, size, _ in ideal.env.task.observation_spec:
        part = found[..., start : start + size].astype(float)
        statistics[name] = (part.mean(), part.std())
        start += size
    assert GOLDEN.keys() == statistics.keys(), statistics
    for name, values in statistics.items():
        assert values == pytest.approx(GOLDEN[name], abs=0.003, rel=0.03), name
