"""Rotations and frames as pure functions; quaternions are (w, x, y, z), matrices map local to reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def quat_to_mat(quat: jax.Array) -> jax.Array:
    """Converts unit quaternions [..., 4] to rotation matrices [..., 3, 3].

    Source: Diebel, Representing Attitude (2006), eq. 125.
    """
    w, x, y, z = jnp.moveaxis(quat, -1, 0)
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def quat_multiply(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the Hamilton product of quaternions [..., 4]."""
    w1, x1, y1, z1 = jnp.moveaxis(first, -1, 0)
    w2, x2, y2, z2 = jnp.moveaxis(second, -1, 0)
    return jnp.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        -1,
    )


def yaw_quat(angle: jax.Array) -> jax.Array:
    """Returns the quaternion [..., 4] of a turn about z by an angle in radians."""
    zero = jnp.zeros_like(angle)
    return jnp.stack([jnp.cos(angle / 2), zero, zero, jnp.sin(angle / 2)], -1)


def axis_angle_to_mat(axis: jax.Array, angle: jax.Array) -> jax.Array:
    """Returns the rotation matrix [..., 3, 3] about a unit axis [..., 3] by an angle [...] (rad)."""
    half = angle[..., None] / 2
    return quat_to_mat(jnp.concatenate([jnp.cos(half), jnp.sin(half) * axis], -1))


def unit_vector(gauss: jax.Array) -> jax.Array:
    """Normalizes standard normal draws [..., 3]: the result is uniform on the sphere."""
    return gauss / (jnp.linalg.norm(gauss, axis=-1, keepdims=True) + 1e-9)


def rotation_angle(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the geodesic angle (rad) between rotation matrices [..., 3, 3].

    Uses the sine for small angles and the cosine for large ones, so that it is accurate everywhere.
    """
    relative = jnp.swapaxes(first, -1, -2) @ second
    sine, cosine = jnp.linalg.norm(_doubled_sine(relative), axis=-1), _doubled_cosine(relative)
    return jnp.arctan2(sine, cosine)


def rotation_vector(mat: jax.Array) -> jax.Array:
    """Returns vectors [..., 3] along the axes of rotations [..., 3, 3], as long as their angles (rad), below pi."""
    along = _doubled_sine(mat)
    sine = jnp.linalg.norm(along, axis=-1, keepdims=True)
    return along * jnp.arctan2(sine, _doubled_cosine(mat)[..., None]) / (sine + 1e-9)


def _doubled_sine(mat: jax.Array) -> jax.Array:
    """Returns the vectors [..., 3] along the axes of rotations [..., 3, 3], of twice the sine of their angles."""
    return jnp.stack(
        [
            mat[..., 2, 1] - mat[..., 1, 2],
            mat[..., 0, 2] - mat[..., 2, 0],
            mat[..., 1, 0] - mat[..., 0, 1],
        ],
        -1,
    )


def _doubled_cosine(mat: jax.Array) -> jax.Array:
    """Returns twice the cosine [...] of the angles of rotations [..., 3, 3]."""
    return jnp.trace(mat, axis1=-2, axis2=-1) - 1


def segment_distance(
    start: jax.Array, end: jax.Array, other_start: jax.Array, other_end: jax.Array
) -> jax.Array:
    """Returns the least distance between two line segments [...] (JAX), from their ends [..., 3].

    Source: Ericson, Real-Time Collision Detection (2005), section 5.1.9.
    """
    along, other = end - start, other_end - other_start
    apart = start - other_start
    a = jnp.maximum((along * along).sum(-1), 1e-12)
    e = jnp.maximum((other * other).sum(-1), 1e-12)
    b, c, f = (along * other).sum(-1), (along * apart).sum(-1), (other * apart).sum(-1)
    steep = a * e - b * b
    parallel = steep < 1e-6 * a * e
    s = jnp.where(parallel, 0.0, (b * f - c * e) / jnp.where(parallel, 1.0, steep)).clip(0, 1)
    t = ((b * s + f) / e).clip(0, 1)
    s = ((b * t - c) / a).clip(0, 1)
    nearest = apart + s[..., None] * along - t[..., None] * other
    return jnp.linalg.norm(nearest, axis=-1)


def upright_quarter(mat: jax.Array) -> jax.Array:
    """Turns rotations [..., 3, 3] about their own x axis by the quarter turns that bring z nearest to upwards."""
    side, top = mat[..., 1], mat[..., 2]
    ways = jnp.stack([top[..., 2], -side[..., 2], -top[..., 2], side[..., 2]], -1)
    way = jnp.argmax(ways, -1)[..., None]
    new_side = jnp.select([way == 0, way == 1, way == 2], [side, top, -side], -top)
    new_top = jnp.select([way == 0, way == 1, way == 2], [top, -side, -top], side)
    return jnp.stack([mat[..., 0], new_side, new_top], -1)


def shortened(vector: jax.Array, longest: float) -> jax.Array:
    """Returns a vector [n] of the same direction that is no longer than that."""
    return vector * jnp.minimum(1.0, longest / (jnp.linalg.norm(vector) + 1e-9))
