"""Where rays meet geoms: closed forms on whole arrays of rays, in a geom's frame (JAX).

Every function takes a ray's origin and direction as three arrays each (any shapes that broadcast) and
returns the ray parameter at which the ray enters the geom: `FAR` for rays that miss, start
inside, or meet the geom behind their origin. The direction need not have unit length. Functions of
bodies with several flat faces also say which one is entered: for a box the axis of its normal,
for a cylinder 0 for the round side and 1 for an end, for a convex body the number of the face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from alohas2r.core.types import Array

Vec = Sequence[Array]  # three arrays

FAR = np.float32(1e30)
_TINY = np.float32(1e-12)


def _away_from_zero(value: Array) -> Array:
    return jnp.where(jnp.abs(value) < _TINY, _TINY, value)


def _accept(condition: Array, t: Array) -> Array:
    return jnp.where(condition & (t > 0), t, FAR)


def plane(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """The upper side of a plane, limited to half sizes size[0], size[1] where these are positive."""
    t = -origin[2] / jnp.where(direction[2] < 0, direction[2], -_TINY)
    inside = direction[2] < 0
    for axis in range(2):
        across = jnp.abs(origin[axis] + t * direction[axis])
        inside &= (size[axis] <= 0) | (across <= size[axis])
    return _accept(inside, t), 0


def box(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """A box of half sizes `size`, as the common part of three slabs."""
    enter: Array = -FAR
    leave: Array = FAR
    axis: Array = 0
    for index in range(3):
        inverse = 1 / _away_from_zero(direction[index])
        middle, half = -origin[index] * inverse, jnp.abs(size[index] * inverse)
        axis = jnp.where(middle - half > enter, index, axis)
        enter, leave = jnp.maximum(enter, middle - half), jnp.minimum(leave, middle + half)
    return _accept(enter <= leave, enter), axis


def ellipsoid(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """An ellipsoid of half axes `size`: the unit sphere in scaled space."""
    point = [origin[axis] / size[axis] for axis in range(3)]
    step = [direction[axis] / size[axis] for axis in range(3)]
    a = step[0] ** 2 + step[1] ** 2 + step[2] ** 2
    b = point[0] * step[0] + point[1] * step[1] + point[2] * step[2]
    c = point[0] ** 2 + point[1] ** 2 + point[2] ** 2 - 1
    discriminant = b * b - a * c
    t = (-b - jnp.sqrt(jnp.maximum(discriminant, 0))) / a
    return _accept(discriminant >= 0, t), 0


def sphere(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """A sphere of radius size[0]."""
    return ellipsoid(origin, direction, (size[0], size[0], size[0]))


def _round_side(origin: Vec, direction: Vec, radius: Array) -> tuple[Array, Array, Array]:
    """Entry, exit and discriminant of an endless cylinder about z."""
    a = jnp.maximum(direction[0] ** 2 + direction[1] ** 2, _TINY)
    b = direction[0] * origin[0] + direction[1] * origin[1]
    c = origin[0] ** 2 + origin[1] ** 2 - radius**2
    discriminant = b * b - a * c
    root = jnp.sqrt(jnp.maximum(discriminant, 0))
    return (-b - root) / a, (-b + root) / a, discriminant


def cylinder(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """A cylinder about z of radius size[0] and half length size[1]."""
    side, side_leave, discriminant = _round_side(origin, direction, size[0])
    inverse = 1 / _away_from_zero(direction[2])
    middle, half = -origin[2] * inverse, jnp.abs(size[1] * inverse)
    t, leave = jnp.maximum(side, middle - half), jnp.minimum(side_leave, middle + half)
    flat = jnp.where(middle - half > side, 1, 0)
    return _accept((discriminant >= 0) & (t <= leave), t), flat


def capsule(origin: Vec, direction: Vec, size: Vec) -> tuple[Array, Array]:
    """A capsule about z of radius size[0] and half length size[1] without its caps.

    A capsule is convex, so a line enters it once: through the round side, or, where the line enters
    the endless cylinder beyond an end, through that end's sphere.
    """
    radius, half = size[0], size[1]
    side, _, discriminant = _round_side(origin, direction, radius)
    height = origin[2] + side * direction[2]
    along = origin[2] - jnp.clip(height, -half, half)
    a = direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2
    b = direction[0] * origin[0] + direction[1] * origin[1] + direction[2] * along
    c = origin[0] ** 2 + origin[1] ** 2 + along**2 - radius**2
    cap_discriminant = b * b - a * c
    cap = (-b - jnp.sqrt(jnp.maximum(cap_discriminant, 0))) / a
    on_side = jnp.abs(height) <= half
    hit = (discriminant >= 0) & (on_side | (cap_discriminant >= 0))
    return _accept(hit, jnp.where(on_side, side, cap)), 0


PRIMITIVES: dict[str, Callable[[Vec, Vec, Vec], tuple[Array, Array]]] = {
    "plane": plane,
    "sphere": sphere,
    "capsule": capsule,
    "ellipsoid": ellipsoid,
    "cylinder": cylinder,
    "box": box,
}


def convex(slopes: Sequence[Array], gaps: Sequence[Array], bits: int) -> Array:
    """A convex body as the common part of half spaces normal . x <= offset.

    Args:
      slopes: per face, normal . direction.
      gaps: per face, offset - normal . origin (negative outside).
      bits: so many low bits of the result hold the number of the face.

    Returns:
      The ray parameter of the entry, marked with the face as by `mark`.
    """
    enter: Array = mark(-FAR, 0, bits)
    leave: Array = FAR
    for face, (slope, gap) in enumerate(zip(slopes, gaps, strict=True)):
        slope = _away_from_zero(slope)
        crossing = gap / slope
        entering = mark(jnp.where(slope < 0, crossing, -FAR), face, bits)
        leaving = jnp.where(slope < 0, FAR, crossing)
        enter, leave = jnp.maximum(enter, entering), jnp.minimum(leave, leaving)
    return _accept(enter <= leave, enter)


def mark(value: Array, code: Array, bits: int) -> Array:
    """Replaces the low bits of float32 numbers by a code; costs a relative error of 2^(bits - 23).

    One array of marked numbers, rather than one of numbers and one of codes, lets the compiler work
    through a geom in one pass.
    """
    raw = _bits(value) & np.int32(-(1 << bits))
    return _floats(raw | code)


def unmark(value: Array, bits: int) -> tuple[Array, Array]:
    """Returns the numbers, rounded to the middle of what the mark took, and the codes."""
    raw = _bits(value)
    number = _floats((raw & np.int32(-(1 << bits))) | np.int32(1 << bits >> 1))
    return number, raw & np.int32((1 << bits) - 1)


def _bits(value: Array) -> Array:
    return lax.bitcast_convert_type(value, jnp.int32)


def _floats(raw: Array) -> Array:
    return lax.bitcast_convert_type(raw, jnp.float32)


def round_normal(kind: str, point: Vec, size: Vec) -> tuple[Array, Array, Array]:
    """Returns the outward unit normal of a round surface at a point on it, in the geom's frame.

    Args:
      kind: "sphere", "capsule", "ellipsoid", or "cylinder" (its side).
      point: three arrays; size: likewise.
    """
    if kind == "capsule":
        rest = point[2] - jnp.clip(point[2], -size[1], size[1])
        normal = (point[0], point[1], rest)
    elif kind == "cylinder":
        normal = (point[0], point[1], jnp.zeros_like(point[0]))
    elif kind == "sphere":
        normal = (point[0], point[1], point[2])
    else:
        normal = tuple(point[axis] / size[axis] ** 2 for axis in range(3))
    square = normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2
    scale = lax.rsqrt(jnp.maximum(square, np.float32(1e-20)))
    return normal[0] * scale, normal[1] * scale, normal[2] * scale


def half_spaces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """Returns the half spaces [F, 4] (outward unit normal, offset) whose common part a mesh is.

    Args:
      vertices: [V, 3]; faces: [T, 3] vertex numbers, counter-clockwise from outside.

    Returns:
      One row per plane (coplanar triangles are merged), or None if the mesh is not convex and closed.
    """
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    scale = max(float(np.ptp(vertices, axis=0).max()), 1e-9)
    solid = lengths > 1e-9 * scale**2
    normals = normals[solid] / lengths[solid, None]
    offsets = (normals * corners[solid, 0]).sum(1)
    edges = {(int(face[i]), int(face[(i + 1) % 3])) for face in faces for i in range(3)}
    closed = all((end, start) in edges for start, end in edges)
    if not len(normals) or not closed:
        return None
    if ((vertices @ normals.T).max(0) > offsets + 1e-4 * scale).any():
        return None
    planes: list[np.ndarray] = []
    for plane_ in np.column_stack([normals, offsets]):
        if not any(
            kept[:3] @ plane_[:3] > 1 - 1e-6 and abs(kept[3] - plane_[3]) < 1e-4 * scale
            for kept in planes
        ):
            planes.append(plane_)
    return np.array(planes)
