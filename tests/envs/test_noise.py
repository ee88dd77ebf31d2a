from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from alohas2r.embodiment.control import DELAY_WEIGHTS
from alohas2r.envs import noise
from alohas2r.envs.noise import Measured, NoiseConfig
from alohas2r.errors import ConfigError
from alohas2r.sim.signals import Signals

DRAWS = 20_000
CONFIG = NoiseConfig(object_angle_deg=7.5)


def some_signals(arms: int = 2) -> Signals:
    """A state in which every number is different."""
    draw = np.random.default_rng(0)

    def numbers(*shape: int) -> jax.Array:
        return jnp.asarray(draw.normal(size=(arms, *shape)), jnp.float32)

    def turns(seed: int) -> jax.Array:
        return jnp.asarray(
            Rotation.from_quat(np.random.default_rng(seed).normal(size=(arms, 4))).as_matrix(),
            jnp.float32,
        )

    return Signals(
        qpos=numbers(8),
        qvel=numbers(8),
        ctrl=numbers(7),
        tip_pos=numbers(3),
        finger_axis=numbers(3),
        gripper_mat=turns(1),
        finger_force=numbers(2, 3),
        on_table=jnp.zeros(arms, bool),
        object_pos=numbers(3),
        object_mat=turns(2),
        object_linvel=numbers(3),
        object_angvel=numbers(3),
        grip_pos=numbers(3),
        peg_end_in_socket=numbers(3)[0],
    )


@pytest.fixture(scope="module")
def errors() -> dict[str, np.ndarray]:
    """Measured minus exact, [N, A, ...] each; rotations as rotation vectors."""
    signals = some_signals()
    keys = jax.random.split(jax.random.PRNGKey(0), DRAWS)
    measured = jax.jit(jax.vmap(lambda key: noise.measure(CONFIG, key, signals)))(keys)
    exact = noise.exact(signals)
    found = {}
    for name in Measured._fields:
        value, truth = np.asarray(getattr(measured, name)), np.asarray(getattr(exact, name))
        if name.endswith("mat"):
            turn = (value.astype(float) @ np.swapaxes(truth, -1, -2)).reshape(-1, 3, 3)
            found[name] = Rotation.from_matrix(turn).as_rotvec().reshape(DRAWS, 2, 3)
        else:
            found[name] = value - truth
    return found


@pytest.mark.parametrize(
    ("name", "entries", "half_width"),
    [
        ("qpos", slice(0, 6), 0.1),
        ("qvel", slice(0, 6), 0.1),
        ("object_pos", slice(None), 0.015),
        ("object_linvel", slice(None), 0.015),
        ("object_angvel", slice(None), 0.2),
    ],
)
def test_uniform_entries(
    errors: dict[str, np.ndarray], name: str, entries: slice, half_width: float
) -> None:
    error = errors[name][..., entries]
    assert np.abs(error).max() <= half_width * 1.0001
    flat = error.reshape(DRAWS, -1)
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.03 * half_width)
    np.testing.assert_allclose(flat.var(0), half_width**2 / 3, rtol=0.05)
    for column in flat.T:
        uniform = stats.uniform(-half_width, 2 * half_width)
        assert stats.kstest(column, uniform.cdf).pvalue > 1e-4


def test_fingers_and_targets_are_exact(errors: dict[str, np.ndarray]) -> None:
    assert (errors["qpos"][..., 6:] == 0).all()
    assert (errors["qvel"][..., 6:] == 0).all()
    assert (errors["ctrl"] == 0).all()


@pytest.mark.parametrize("name", ["tip_to_grip", "socket_minus_peg"])
def test_differences_of_two_uniforms(errors: dict[str, np.ndarray], name: str) -> None:
    flat = errors[name].reshape(DRAWS, -1)
    assert 0.015 < np.abs(flat).max() <= 0.030 * 1.0001
    np.testing.assert_allclose(flat.mean(0), 0, atol=0.0005)
    np.testing.assert_allclose(flat.var(0), 2 * 0.015**2 / 3, rtol=0.05)
    for column in flat.T:
        triangle = stats.triang(0.5, loc=-0.03, scale=0.06)
        assert stats.kstest(column, triangle.cdf).pvalue > 1e-4


@pytest.mark.parametrize(("name", "limit_deg"), [("gripper_mat", 5.0), ("object_mat", 7.5)])
def test_rotations_are_about_uniform_axes_by_uniform_angles(
    errors: dict[str, np.ndarray], name: str, limit_deg: float
) -> None:
    for arm in range(2):
        vector = errors[name][:, arm]
        angle = np.linalg.norm(vector, axis=1)
        assert np.rad2deg(angle).max() <= limit_deg * 1.001
        uniform = stats.uniform(0, limit_deg)
        assert stats.kstest(np.rad2deg(angle), uniform.cdf).pvalue > 1e-4
        axis = vector[angle > np.deg2rad(0.2)]
        axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        for column in axis.T:
            assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_no_two_errors_go_together(errors: dict[str, np.ndarray]) -> None:
    columns = np.concatenate([value.reshape(DRAWS, -1) for value in errors.values()], 1)
    columns = columns[:, columns.std(0) > 0]
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.035  # 5 sigma of chance


def test_exact_is_what_the_signals_say_and_no_noise_adds_none() -> None:
    for arms in (1, 2):
        signals = some_signals(arms)
        exact = noise.exact(signals)
        np.testing.assert_allclose(exact.tip_to_grip, signals.tip_pos - signals.grip_pos, atol=1e-7)
        # The peg's end in the socket's frame, turned into the left base frame, points from
        # the socket to the peg.
        expected = -np.asarray(signals.object_mat[0]) @ np.asarray(signals.peg_end_in_socket)
        np.testing.assert_allclose(exact.socket_minus_peg, expected, atol=1e-6)
        measured = noise.measure(noise.NONE, jax.random.PRNGKey(0), signals)
        for name, value in zip(Measured._fields, measured, strict=True):
            np.testing.assert_allclose(value, getattr(exact, name), atol=1e-6, err_msg=name)


def test_one_arm_alone_has_no_peg_and_no_noise_on_it() -> None:
    signals = some_signals(1)._replace(peg_end_in_socket=jnp.zeros(3))
    measured = noise.measure(CONFIG, jax.random.PRNGKey(0), signals)
    assert (np.asarray(measured.socket_minus_peg) == 0).all()


def test_observations_arrive_late_with_the_given_frequencies() -> None:
    steps = 6

    def step(state: noise.DelayState, inputs: tuple[jax.Array, jax.Array]):
        key, number = inputs
        return noise.delay(CONFIG, state, key, jnp.full(2, number))

    def run(key: jax.Array) -> jax.Array:
        numbers = jnp.arange(1.0, steps + 1)
        start = noise.init_delay(CONFIG, 2)
        return jax.lax.scan(step, start, (jax.random.split(key, steps), numbers))[1]

    keys = jax.random.split(jax.random.PRNGKey(1), DRAWS)
    arrived = np.asarray(jax.jit(jax.vmap(run))(keys))  # [N, T, 2]
    assert (arrived[..., 0] == arrived[..., 1]).all()  # one draw for the whole observation
    # The first observation stands for those before it: nothing of an earlier episode arrives.
    assert (arrived[:, 0] == 1).all()
    assert set(np.unique(arrived[:, 1])) == {1, 2}
    expected = np.array(DELAY_WEIGHTS) / sum(DELAY_WEIGHTS)
    for time in (3, 5):
        late = time + 1 - arrived[:, time, 0]
        share = [(late == steps_late).mean() for steps_late in range(4)]
        np.testing.assert_allclose(share, expected, atol=0.012)


@pytest.mark.parametrize("name", ["joint_pos", "object_angle_deg", "delay_weights"])
def test_values_out_of_range(name: str) -> None:
    wrong: dict[str, Any] = {"delay_weights": (0.0,)} if name == "delay_weights" else {name: -0.1}
    with pytest.raises(ConfigError, match=name):
        NoiseConfig(**wrong)
