"""Where things lie about: rails around the table, and clutter on it, away from the objects (JAX)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks.config import (
    CLUTTER_KINDS,
    OUT_OF_SIGHT,
    TRAIN,
    ClutterRanges,
)
from alohas2r.rendering.looks.random import Draws
from alohas2r.sim.objects import HALF_LENGTH

_TRIES = 6  # places that are tried for a thing before it is left out


def rails(
    half: Array, some: Array, width: Array, height: Array, table_height: float
) -> tuple[Array, Array]:
    """Returns places and half sizes [4, 3] of rails around a table.

    Args:
      half: [2] half sizes of the table (m). some: whether there are any. width, height: half of them (m).
      table_height: of the table's surface (m).
    """
    up = table_height + height
    beside = [half[0] + width, half[1] + width]
    places, sizes = [], []
    for sign in (-1, 1):
        places.append(jnp.stack([0 * up, sign * beside[1], up]))
        sizes.append(jnp.stack([half[0] + 2 * width, width, height]))
    for sign in (-1, 1):
        places.append(jnp.stack([sign * beside[0], 0 * up, up]))
        sizes.append(jnp.stack([width, half[1], height]))
    where = jnp.where(some, jnp.stack(places), jnp.asarray(OUT_OF_SIGHT))
    return where, jnp.stack(sizes)


def place(
    draws: Draws, ranges: ClutterRanges, family: str, start: Array, table_height: float
) -> dict[str, Array]:
    """Lays things on the table.

    Things of the family "train" lie alone. Those of "held_out" are put together from two: crossed bars of two boxes, a
    stump on a plate of a cylinder and a box, and crossed cables.

    Args:
      draws: random numbers. ranges: sizes and places. family: of generators.
      start: [2, 2] where the objects are (m).
      table_height: of the table's surface (m).

    Returns:
      extra_pos, extra_quat, extra_size of the CLUTTER_KINDS; count of things, and nearest, the least distance of a
      thing's edge from an object's edge (m).
    """
    number = len(CLUTTER_KINDS)
    low, high = ranges.count
    count = jnp.floor(low + draws.one() * (high + 1 - low))
    order = jnp.argsort(draws.take(number))  # which of the kinds there are
    wanted = order < count
    size, turn, height, reach = _things(draws, ranges)
    places, shown, apart = _spread(draws, ranges, start, reach)
    where = jnp.concatenate([places, (table_height + height)[:, None]], 1)
    if family != TRAIN:
        # Each second thing of a kind lies across the one before it, as high as it has to.
        first, second = np.arange(0, number, 2), np.arange(1, number, 2)
        wanted = wanted.at[second].set(wanted[first] & wanted[second])
        along = jnp.concatenate(
            [places[first], (table_height + 2 * height[first] + height[second])[:, None]], 1
        )
        where = where.at[second].set(along)
        shown = shown.at[second].set(shown[first] & (reach[second] <= reach[first] + 0.03))
        apart = apart.at[second].set(apart[first])
    there = wanted & shown
    where = jnp.where(there[:, None], where, jnp.asarray(OUT_OF_SIGHT))
    return {
        "extra_pos": where,
        "extra_quat": turn,
        "extra_size": size,
        "count": there.sum().astype(jnp.float32),
        "nearest": jnp.where(there, apart, 1.0).min(),
    }


def _things(draws: Draws, ranges: ClutterRanges) -> tuple[Array, Array, Array, Array]:
    """Draws the CLUTTER_KINDS.

    Returns:
      Half sizes [K, 3], orientations [K, 4], heights [K] of the centres, and how far they reach sideways [K] (m).
    """
    count = len(CLUTTER_KINDS)
    limits = {
        "box": (ranges.box, ranges.box, ranges.box_height),
        "cylinder": (ranges.radius, ranges.length, (0.0, 0.0)),
        "capsule": (ranges.cable_radius, ranges.cable_length, (0.0, 0.0)),
    }
    bounds = np.array([limits[kind] for kind in CLUTTER_KINDS], np.float32)  # [K, 3, 2]
    drawn = draws.take(count * 3).reshape(count, 3)
    size = bounds[..., 0] + drawn * (bounds[..., 1] - bounds[..., 0])
    box, cylinder = (
        np.array([kind == name for kind in CLUTTER_KINDS]) for name in ("box", "cylinder")
    )
    upright = cylinder & (draws.take(count) < ranges.upright)
    half = 0.5 * np.pi * draws.take(count)
    cosine, sine, zero = jnp.cos(half), jnp.sin(half), jnp.zeros(count)
    turned = jnp.stack([cosine, zero, zero, sine], 1)
    # The axis z of a cylinder laid along x, then turned about the vertical.
    lying = np.float32(np.sqrt(0.5)) * jnp.stack([cosine, -sine, cosine, sine], 1)
    turn = jnp.where((box | upright)[:, None], turned, lying)
    height = jnp.where(box, size[:, 2], jnp.where(upright, size[:, 1], size[:, 0]))
    across = jnp.hypot(size[:, 0], size[:, 1])
    reach = jnp.where(
        upright, size[:, 0], jnp.where(box | cylinder, across, size[:, 0] + size[:, 1])
    )
    return size, turn, height, reach


def _spread(
    draws: Draws, ranges: ClutterRanges, start: Array, reach: Array
) -> tuple[Array, Array, Array]:
    """Returns places [K, 2] for things, whether there is one, and distances of edges from the objects' (m)."""
    count = reach.shape[0]
    beside = draws.take(count * _TRIES * 5).reshape(count, _TRIES, 5)
    area = jnp.asarray(ranges.area)
    anywhere = (2 * beside[..., :2] - 1) * area
    object_ = jnp.where(beside[..., 2:3] < 0.5, start[0], start[1])
    least = ranges.clearance + HALF_LENGTH + 0.01 + reach[:, None]
    angle = 2 * np.pi * beside[..., 0]
    away = least + ranges.reach * beside[..., 1]
    around = object_ + away[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    place = jnp.where((beside[..., 3] < ranges.near)[..., None], around, anywhere)
    place = jnp.where((jnp.abs(place) > 2 * area).any(-1, keepdims=True), anywhere, place)
    # An object reaches half its length to all sides at most, and a little across.
    edge = HALF_LENGTH + 0.01 + reach[:, None, None]
    gap = (jnp.linalg.norm(place[:, :, None] - start, axis=-1) - edge).min(-1)  # [K, tries]
    good = gap >= ranges.clearance
    chosen = jnp.argmax(good, 1)
    row = jnp.arange(count)
    return place[row, chosen], good.any(1), gap[row, chosen]
