from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alohas2r.embodiment import control
from alohas2r.envs import actuation
from alohas2r.envs.actuation import ControlConfig
from alohas2r.errors import ConfigError
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles

DRAWS, STEPS = 20_000, 6


def push(config: ControlConfig, arms: int) -> np.ndarray:
    """Pushes action t + 1 (in all places) at step t; returns what takes effect, [T, N, A, 7]."""

    def step(state: actuation.ControlState, inputs: tuple[jax.Array, jax.Array]):
        key, number = inputs
        return actuation.delayed(config, state, key, jnp.full(7 * arms, number))

    def run(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, STEPS)
        numbers = jnp.arange(1.0, STEPS + 1)
        return jax.lax.scan(step, actuation.init(config, 7 * arms), (keys, numbers))[1]

    keys = jax.random.split(jax.random.PRNGKey(0), DRAWS)
    found = np.asarray(jax.jit(jax.vmap(run))(keys))
    return found.reshape(DRAWS, STEPS, arms, 7).swapaxes(0, 1)


@pytest.fixture(scope="module")
def pushed() -> np.ndarray:
    return push(ControlConfig(), 2)


def share(values: np.ndarray, choices: int) -> np.ndarray:
    return np.array([(values == choice).mean() for choice in range(choices)])


def test_all_joints_of_both_arms_share_one_delay_of_the_given_frequencies(
    pushed: np.ndarray,
) -> None:
    joints = pushed[..., :6]
    assert (joints == joints[..., :1, :1]).all()
    expected = np.array(control.DELAY_WEIGHTS) / sum(control.DELAY_WEIGHTS)
    for step in (3, 4, 5):
        delay = step + 1 - joints[step, :, 0, 0]
        np.testing.assert_allclose(share(delay, 4), expected, atol=0.012)
    # Drawn anew in each step.
    late = (5 - joints[4, :, 0, 0] > 0).mean(), (6 - joints[5, :, 0, 0] > 0).mean()
    both = ((5 - joints[4, :, 0, 0] > 0) & (6 - joints[5, :, 0, 0] > 0)).mean()
    assert both == pytest.approx(late[0] * late[1], abs=0.006)


def test_grippers_have_uniform_delays_of_their_own(pushed: np.ndarray) -> None:
    delay = 6 - pushed[5, :, :, 6]
    for arm in range(2):
        np.testing.assert_allclose(share(delay[:, arm], 4), 0.25, atol=0.02)
    assert abs(np.corrcoef(delay[:, 0], delay[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(delay[:, 0], 6 - pushed[5, :, 0, 0])[0, 1]) < 0.03


def test_what_is_older_than_the_episode_is_no_action(pushed: np.ndarray) -> None:
    first = pushed[0]
    assert set(np.unique(first)) == {0, 1}
    assert (first[:, 0, 0] == 0).mean() == pytest.approx(
        1 - control.DELAY_WEIGHTS[0] / sum(control.DELAY_WEIGHTS), abs=0.012
    )
    assert (first[:, 0, 6] == 0).mean() == pytest.approx(0.75, abs=0.02)
    assert set(np.unique(pushed[1])) == {0, 1, 2}


@pytest.mark.parametrize("extra", [0, 2])
def test_a_constant_delay_on_top_of_an_ideal_one_is_exact(extra: int) -> None:
    config = ControlConfig(delay_weights=(1.0,), gripper_delay_steps=0, extra_delay_steps=extra)
    assert config.history == 1 + extra
    found = push(config, 1)
    for step in range(STEPS):
        assert (found[step] == max(step + 1 - extra, 0)).all()


numbers = st.floats(-1e3, 1e3, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=7, max_size=7))
def test_targets_move_by_the_scale_and_stay_in_range(pairs: list[tuple[float, float]]) -> None:
    pick = scene.load_physics("pick")
    low, high = pick.ctrl_low, pick.ctrl_high
    target, action = (np.array(values) for values in zip(*pairs, strict=True))
    target = target.clip(low, high)
    moved = control.next_target(target, action, low, high)
    assert ((low <= moved) & (moved <= high)).all()
    assert (np.abs(moved - target) <= control.ACTION_SCALE + 1e-12).all()
    free = (target + 0.02 > low) & (target - 0.02 > low) & (target + 0.02 < high)
    expected = target + 0.02 * np.clip(action, -1, 1)
    np.testing.assert_allclose(moved[free], expected[free], atol=1e-12)


def test_targets_in_numpy_and_jax_agree() -> None:
    draw = np.random.default_rng(0)
    target, action = draw.normal(size=(2, 5, 7)).astype(np.float32)
    low, high = np.full(7, -0.5, np.float32), np.full(7, 0.5, np.float32)
    plain = control.next_target(target, action, low, high, 0.05)
    assert isinstance(plain, np.ndarray)
    arrays = [jnp.asarray(x) for x in (target, action, low, high)]
    traced = control.next_target(arrays[0], arrays[1], arrays[2], arrays[3], 0.05)
    np.testing.assert_allclose(plain, traced, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 0.0},
        {"scale": 1.0},
        {"delay_weights": ()},
        {"delay_weights": (0.0, 0.0)},
        {"delay_weights": (1.0, -0.1)},
        {"gripper_delay_steps": -1},
        {"extra_delay_steps": 21},
    ],
)
def test_values_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ControlConfig(**wrong)
