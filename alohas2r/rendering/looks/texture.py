"""Procedural textures, evaluated where a ray hits (JAX).

A texture is a row of numbers, `COLUMNS`; a pattern is a function of two coordinates on a surface, whose value in 0..1
says how much of a second colour there is. Patterns are averaged over what a pixel covers: bars in closed form, noise
by fading out, so that fine patterns turn into their mean instead of flickering.

Arrays are [T, P]: P pixels of T tiles; columns of a row are [T, 1] or [T, P].
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from alohas2r.core.types import Array
from alohas2r.rendering.looks.config import (
    COLUMNS,
    TEXTURES,
    TRAIN,
    ClutterRanges,
    ObjectLookRanges,
    SurfaceRanges,
)
from alohas2r.rendering.looks.random import colour

SEAM_WIDTH = 0.003  # m
_FAR = np.float32(4096)  # periods; more than there are from any point to the origin

# Frequencies of the two noises along and across a pattern, in periods, for each texture: columns of a row.
NOISES = {
    "plain": (1, 1, 2, 2),
    "checks": (1, 1, 2, 2),
    "stripes": (1, 1, 2, 2),
    "wood": (0.25, 0.7, 1, 9),
    "cloth": (2, 2, 1, 1),
    "metal": (0.3, 16, 0.3, 0.3),
    "print": (1, 1, 2.1, 2.1),
    "bricks": (3, 3, 2, 2),
    "dots": (1, 1, 2, 2),
    "marble": (1, 1, 2.3, 2.3),
    "plaid": (1, 1, 2, 2),
    "terrazzo": (2, 2, 1, 1),
    "zigzag": (1, 1, 2, 2),
}


def fract(value: Array) -> Array:
    """Returns the fractional parts."""
    return value - jnp.floor(value)


def once(value: Array) -> Array:
    """Returns numbers that are not negative as they are.

    What has a root in it XLA computes once, and not again for each of the arrays that follow from it.
    """
    return jnp.sqrt(value * value + np.float32(1e-12))


def bars(t: Array, width: Array, duty: float = 0.5) -> Array:
    """Returns bars of period 1, 1 in the first `duty` of it, averaged over a width (in periods)."""
    width = jnp.maximum(width, np.float32(1e-3))

    def integral(t: Array) -> Array:
        whole = jnp.floor(t)
        return whole * np.float32(duty) + jnp.minimum(t - whole, np.float32(duty))

    half = width * np.float32(0.5)
    return (integral(t + half) - integral(t - half)) / width


_ALONG, _ACROSS = np.uint32(1664525), np.uint32(22695477 * 1664525 % 2**32)
_SHIFT = np.uint32(1013904223 * 1664525 % 2**32)


def _cell(x: Array, y: Array, seed: Array) -> Array:
    """Returns a number (uint32) for whole numbers x and y (int32); a step along or across adds _ALONG or _ACROSS."""
    return x.astype(jnp.uint32) * _ALONG + y.astype(jnp.uint32) * _ACROSS + (seed + _SHIFT)


def _scrambled(cell: Array) -> Array:
    """Returns a random number in 0..1 for numbers from `_cell`.

    Source: after pcg2d of Jarzynski and Olano, Hash Functions for GPU Rendering (2020).
    """
    mixed = (cell ^ (cell >> 16)) * np.uint32(2246822519)
    mixed = mixed ^ (mixed >> 13)
    return (mixed >> 8).astype(jnp.int32).astype(jnp.float32) * np.float32(2**-24)


def noise(u: Array, w: Array, seed: Array, width: Array) -> Array:
    """Returns smooth noise of period 1 in 0..1 that fades to its mean as `width` (periods) grows."""
    low_u, low_w = jnp.floor(u), jnp.floor(w)
    x, y = low_u.astype(jnp.int32), low_w.astype(jnp.int32)
    part_u, part_w = u - low_u, w - low_w
    part_u, part_w = part_u * part_u * (3 - 2 * part_u), part_w * part_w * (3 - 2 * part_w)
    here = _cell(x, y, seed)
    beside = here + _ALONG
    low, low_next = _scrambled(here), _scrambled(here + _ACROSS)
    high, high_next = _scrambled(beside), _scrambled(beside + _ACROSS)
    low, high = low + (low_next - low) * part_w, high + (high_next - high) * part_w
    value = low + (high - low) * part_u
    return once(0.5 + (value - 0.5) * _fade(width))


def _fade(width: Array) -> Array:
    """Returns how much is left of a smooth pattern of period 1, averaged over a width."""
    return jnp.clip(np.float32(1.4) - width, 0, 1)


def _smooth(value: Array, soft: Array) -> Array:
    """Returns a step from 0 to 1 at 0 that is `soft` wide on each side."""
    t = jnp.clip(0.5 + 0.5 * value / soft, 0, 1)
    return t * t * (3 - 2 * t)


def pattern(
    family: str,
    kind: Array,
    u: Array,
    w: Array,
    width: Array,
    first: Array,
    second: Array,
    seed: Array,
) -> Array:
    """Returns how much of the second colour there is, in 0..1; of other families' textures nothing.

    Args:
      family: one of FAMILIES.
      kind: numbers of TEXTURES (int32).
      u, w: coordinates in periods.
      width: of a pixel, in periods.
      first, second: noises.
      seed: of the cells' shades (uint32).
    """
    draw = _train_patterns if family == TRAIN else _held_out_patterns
    values = draw(kind, u, w, width, first, second, seed)
    result = jnp.zeros_like(first)
    for name, value in values.items():
        result = jnp.where(kind == TEXTURES.index(name), value, result)
    return jnp.clip(result, 0, 1)


def _train_patterns(
    kind: Array, u: Array, w: Array, width: Array, first: Array, second: Array, seed: Array
) -> dict[str, Array]:
    left, up = once(bars(u, width)), bars(w, width)
    wood, metal = kind == TEXTURES.index("wood"), kind == TEXTURES.index("metal")
    # One sine for all: the rings of wood, the threads of cloth, the sheen of metal.
    phase = jnp.where(wood, 1.5 * w + 2 * first, jnp.where(metal, 0.22 * u + 0.11 * w, 4 * u))
    rate = jnp.where(wood, np.float32(1.5), jnp.where(metal, np.float32(0.22), np.float32(4)))
    wave = jnp.sin(np.float32(2 * math.pi) * phase) * _fade(rate * width)
    return {
        "checks": left * up + (1 - left) * (1 - up),
        "stripes": left,
        "wood": 0.375 + 0.375 * wave + 0.25 * second,
        "cloth": 0.2 + 0.3 * wave + 0.6 * first,
        "metal": 0.3 + 0.35 * wave + 0.4 * first,
        "print": _smooth(0.65 * first + 0.35 * second - 0.5, 0.04 + 0.25 * width),
    }


def _held_out_patterns(
    kind: Array, u: Array, w: Array, width: Array, first: Array, second: Array, seed: Array
) -> dict[str, Array]:
    stones = kind == TEXTURES.index("terrazzo")
    row = jnp.floor(2 * w)
    shifted = u + 0.5 * (row - 2 * jnp.floor(row / 2))
    cell_u = jnp.floor(jnp.where(stones, 2 * u, shifted)).astype(jnp.int32)
    cell = once(_scrambled(_cell(cell_u, row.astype(jnp.int32), seed)))
    brick = bars(shifted, width, 0.9) * bars(2 * w, 2 * width, 0.82)
    scale = jnp.where(stones, np.float32(2), np.float32(1))
    from_dot = jnp.sqrt((fract(scale * u) - 0.5) ** 2 + (fract(scale * w) - 0.5) ** 2)
    edge = jnp.maximum(width, np.float32(0.05))
    veins = jnp.abs(jnp.sin(np.float32(math.pi) * (u + 2.2 * first + 0.9 * second)))
    thin = 0.2 * (bars(3 * u, 3 * width, 0.2) + bars(3 * w, 3 * width, 0.2))
    return {
        "bricks": brick * (0.6 + 0.4 * cell),
        "dots": _smooth(0.3 - from_dot, edge),
        "marble": 0.64 + (veins - 0.64) * _fade(width),
        "plaid": 0.4 * (bars(u, width) + bars(w, width)) + thin,
        "terrazzo": cell * _smooth(0.28 + 0.2 * first - from_dot, 2 * edge),
        "zigzag": bars(u + jnp.abs(2 * fract(w) - 1), 1.5 * width),
    }


def textured(
    family: str, row: dict[str, Array], base: list[Array], point: list[Array], width: Array
) -> list[Array]:
    """Returns the albedo of points on textured surfaces, three arrays.

    Args:
      family: whose textures they are.
      row: COLUMNS of each point's surface.
      base: its first colour, three arrays.
      point: where it is on the surface, three arrays (m).
      width: of a pixel there (m).
    """
    # Through the third axis the pattern goes on askew, so that all sides of a body have it.
    one = point[0] + np.float32(0.31) * point[2]
    two = point[1] + np.float32(0.67) * point[2]
    along = row["cosine"] * one + row["sine"] * two
    across = row["cosine"] * two - row["sine"] * one
    u = once(along * row["frequency"] + row["along"] + _FAR) - _FAR
    w = once(across * row["frequency"] + row["across"] + _FAR) - _FAR
    kind = row["kind"].astype(jnp.int32)
    seed = row["seed"].astype(jnp.int32).astype(jnp.uint32)
    periods = once(width * row["frequency"])

    def noise_of(name: str, seed: Array) -> Array:
        along, across = row[f"{name}_along"], row[f"{name}_across"]
        return noise(u * along, w * across, seed, periods * jnp.maximum(along, across))

    first, second = noise_of("first", seed), noise_of("second", seed + 1)
    share = pattern(family, kind, u, w, periods, first, second, seed + 2) * row["strength"]
    factor = 1 + row["grain"] * (2 * first - 1)
    thin = jnp.minimum(SEAM_WIDTH * row["frequency"] * row["seam"], np.float32(0.5))
    period = jnp.maximum(periods * row["seam"], np.float32(1e-3))
    near = jnp.abs(fract(u * row["seam"] + 0.5) - 0.5)
    covered = jnp.clip((0.5 * (thin + period) - near) / period, 0, jnp.minimum(thin / period, 1))
    factor = factor * (1 - jnp.where(row["seam"] > 0, covered * row["seam_dark"], 0))
    share, factor = once(share), once(jnp.maximum(factor, 0))
    other = [row[name] for name in ("red", "green", "blue")]
    return [
        jnp.clip((a + (b - a) * share) * factor, 0, 1) for a, b in zip(base, other, strict=True)
    ]


def columns(paint: Array) -> dict[str, Array]:
    """Returns the columns of textures [..., S, COLUMNS] by name, [..., S]."""
    return {name: paint[..., index] for index, name in enumerate(COLUMNS)}


DRAWS = 22  # random numbers of a texture


def limits(ranges: SurfaceRanges | ObjectLookRanges | ClutterRanges) -> np.ndarray:
    """Returns what `draw` needs of ranges, [15]."""
    seams = (0.0, (1.0, 1.0), (0.0, 0.0))
    if isinstance(ranges, SurfaceRanges):
        seams = ranges.seams, ranges.seam_spacing, ranges.seam_dark
    period = math.log(ranges.period[0]), math.log(ranges.period[1])
    pairs = [period, ranges.contrast, ranges.specular, ranges.shininess, *seams[1:]]
    shares = [ranges.textured, ranges.glossy, seams[0]]
    return np.array([*shares, *np.ravel(pairs)], np.float32)


def draw(numbers: Array, base: Array, limits: Array, kinds: np.ndarray) -> Array:
    """Draws textures, one row of COLUMNS each.

    Args:
      numbers: [K, DRAWS] random, in [0, 1).
      base: [K, 3] first colours.
      limits: [K, 15] from `limits`.
      kinds: numbers of TEXTURES to choose from.
    """
    part = [numbers[:, index] for index in range(DRAWS)]

    def within(pair: int, number: Array) -> Array:
        low, high = limits[:, 3 + 2 * pair], limits[:, 4 + 2 * pair]
        return low + number * (high - low)

    shown, glossy, seamed = (part[k] < limits[:, k] for k in range(3))
    kind = jnp.asarray(kinds)[(part[3] * len(kinds)).astype(jnp.int32)]
    turn = part[4] * np.float32(2 * math.pi)
    # The second colour: mostly another shade of the first, sometimes any.
    shade = jnp.clip(base * (0.3 + 1.6 * part[5][:, None]) + 0.2 * (part[6][:, None] - 0.5), 0, 1)
    other = colour(part[7], part[8], part[9])
    second = jnp.where((part[10] < 0.4)[:, None], other, shade)
    noises = jnp.asarray([NOISES[name] for name in TEXTURES], jnp.float32)[kind]
    row = {
        "kind": jnp.where(shown, kind, 0),
        "frequency": jnp.exp(-within(0, part[11])),
        "cosine": jnp.cos(turn),
        "sine": jnp.sin(turn),
        "along": part[12] * 64,
        "across": part[13] * 64,
        **{name: second[:, k] for k, name in enumerate(("red", "green", "blue"))},
        "strength": jnp.where(shown, within(1, part[14]), 0),
        "grain": jnp.where(shown, 0.15 * part[15], 0),
        "seed": jnp.floor(part[16] * (1 << 20)),
        "seam": jnp.where(seamed, jnp.exp(within(0, part[11])) / within(4, part[17]), 0),
        "seam_dark": within(5, part[18]),
        "specular": jnp.where(glossy, within(2, part[19]), 0),
        "shininess": within(3, part[20]) * 128,
    }
    names = "first_along", "first_across", "second_along", "second_across"
    row |= {name: noises[:, k] for k, name in enumerate(names)}
    return jnp.stack([jnp.asarray(row[name], jnp.float32) for name in COLUMNS], -1)
