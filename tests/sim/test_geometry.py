from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from alohas2r.sim import geometry


def wxyz(rotation: Rotation) -> np.ndarray:
    return np.roll(rotation.as_quat(), 1, axis=-1)


def random_turns(count: int, seed: int) -> Rotation:
    """Uniform: four normal numbers have no preferred direction."""
    return Rotation.from_quat(np.random.default_rng(seed).normal(size=(count, 4)))


@pytest.fixture(scope="module")
def rotations() -> tuple[Rotation, Rotation]:
    return random_turns(200, 10), random_turns(200, 11)


def test_quaternions_become_the_matrices_of_scipy_and_come_back(
    rotations: tuple[Rotation, Rotation],
) -> None:
    first, _ = rotations
    quats = wxyz(first)
    matrices = np.asarray(geometry.quat_to_mat(jnp.asarray(quats)))
    np.testing.assert_allclose(matrices, first.as_matrix(), atol=1e-6)
    back = wxyz(Rotation.from_matrix(matrices.astype(float)))
    same = np.abs((back * quats).sum(-1))  # a quaternion and its negative are one rotation
    np.testing.assert_allclose(same, 1, atol=1e-6)


def test_product_of_quaternions_turns_by_the_second_first(
    rotations: tuple[Rotation, Rotation],
) -> None:
    first, second = rotations
    product = geometry.quat_multiply(jnp.asarray(wxyz(first)), jnp.asarray(wxyz(second)))
    matrices = np.asarray(geometry.quat_to_mat(product))
    np.testing.assert_allclose(matrices, (first * second).as_matrix(), atol=1e-6)


def test_yaw_turns_about_z() -> None:
    angles = np.linspace(-3, 3, 13)
    found = np.asarray(geometry.quat_to_mat(geometry.yaw_quat(jnp.asarray(angles))))
    expected = Rotation.from_rotvec(angles[:, None] * [0, 0, 1]).as_matrix()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_axis_and_angle() -> None:
    draw = np.random.default_rng(2)
    axes = draw.normal(size=(50, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = draw.uniform(-np.pi, np.pi, 50)
    found = np.asarray(geometry.axis_angle_to_mat(jnp.asarray(axes), jnp.asarray(angles)))
    expected = Rotation.from_rotvec(axes * angles[:, None]).as_matrix()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_directions_are_uniform_on_the_sphere() -> None:
    draws = np.random.default_rng(3).normal(size=(20_000, 3))
    found = np.asarray(geometry.unit_vector(jnp.asarray(draws)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for axis in np.random.default_rng(4).normal(size=(5, 3)):
        # On the sphere the share along any direction is uniform on -1..1 (Archimedes).
        along = found @ (axis / np.linalg.norm(axis))
        assert stats.kstest(along, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.1, 1.0, 3.0, np.pi - 1e-3, np.pi])
def test_rotation_angle_agrees_with_scipy_at_every_size(scale: float) -> None:
    first = random_turns(100, 5)
    axes = np.random.default_rng(6).normal(size=(100, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    second = first * Rotation.from_rotvec(axes * scale)
    found = np.asarray(
        geometry.rotation_angle(
            jnp.asarray(first.as_matrix(), jnp.float32),
            jnp.asarray(second.as_matrix(), jnp.float32),
        )
    )
    # Single precision matrices hold an angle to about 1e-6; near a half turn the cosine is flat.
    np.testing.assert_allclose(found, scale, atol=3e-6)


def test_rotation_angle_is_a_distance(rotations: tuple[Rotation, Rotation]) -> None:
    first, second = (jnp.asarray(r.as_matrix(), jnp.float32) for r in rotations)
    turn = jnp.asarray(random_turns(1, 7).as_matrix()[0], jnp.float32)
    angle = geometry.rotation_angle(first, second)
    np.testing.assert_allclose(angle, geometry.rotation_angle(second, first), atol=3e-6)
    np.testing.assert_allclose(
        angle, geometry.rotation_angle(turn @ first, turn @ second), atol=1e-5
    )
    np.testing.assert_allclose(geometry.rotation_angle(first, first), 0, atol=1e-6)
    assert (np.asarray(angle) >= 0).all()


def test_segment_distance_is_the_least_of_all_points() -> None:
    random = np.random.default_rng(12)
    ends = random.normal(size=(4, 300, 3))
    ends[3, :40] = ends[2, :40] + 2 * (ends[1, :40] - ends[0, :40])  # parallel
    ends[3, 40:50] = ends[2, 40:50]  # points
    found = geometry.segment_distance(*(jnp.asarray(part) for part in ends))
    share = np.linspace(0, 1, 201)[:, None, None]
    one = ends[0] + share * (ends[1] - ends[0])
    other = ends[2] + share * (ends[3] - ends[2])
    for index in range(300):
        apart = np.linalg.norm(one[:, None, index] - other[None, :, index], axis=-1).min()
        assert found[index] <= apart + 1e-4
        assert found[index] >= apart - 0.03


def test_of_four_quarter_turns_about_the_long_axis_the_upright_one_stands_for_all(
    rotations: tuple[Rotation, Rotation],
) -> None:
    first, _ = rotations
    turned = [first * Rotation.from_euler("x", 90 * turns, degrees=True) for turns in range(4)]
    four = np.stack([rotation.as_matrix() for rotation in turned])  # [4, N, 3, 3]
    upright = np.asarray(geometry.upright_quarter(jnp.asarray(four)))
    for one in upright[1:]:
        np.testing.assert_allclose(one, upright[0], atol=1e-6)
    # One of the four, that whose z axis points highest.
    differences = np.abs(four - upright[:1]).max((-1, -2))
    assert (differences.min(0) < 1e-6).all()
    np.testing.assert_allclose(upright[0][:, 2, 2], four[..., 2, 2].max(0), atol=1e-6)


def test_a_rotation_vector_is_that_of_scipy() -> None:
    axes = np.random.default_rng(0).normal(size=(50, 3))
    angles = np.linspace(0.01, 3.0, 50)[:, None]
    turns = angles * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    mats = Rotation.from_rotvec(turns).as_matrix()
    found = geometry.rotation_vector(jnp.asarray(mats))
    np.testing.assert_allclose(found, turns, atol=1e-3)
    np.testing.assert_allclose(geometry.rotation_vector(jnp.eye(3)), 0, atol=1e-9)
