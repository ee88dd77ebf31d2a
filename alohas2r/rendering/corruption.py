"""What a sensor does to pictures, between the simulated camera and the network.

Nothing here needs JAX until a random key comes in. `corrupt` and the functions that it is made of are pure
functions of a random key; pictures whose depth is 0 show nothing there, as with a real sensor.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from alohas2r.config import check
from alohas2r.core.types import Array

_GREY = 0x62E4  # stream of the noise of right imagers' pixels
_SURFACE_STEP = 0.1  # of the depth; neighbours that differ by more belong to two surfaces


@dataclasses.dataclass(frozen=True)
class CorruptConfig:
    """What a sensor does to pictures. Source of all values: the published report.

    Attributes:
      pixel_noise: each colour of each pixel gets up to this much more light (of full scale).
      edge_gain: a pixel at a depth edge is lost with probability arctan(edge_gain * gradient in m per
        pixel), where that exceeds edge_threshold.
      edge_threshold: see edge_gain.
      shift: standard deviation of where a stereo sensor thinks a pixel is (pixels).
      disparity_noise: standard deviation of the disparity (in its own steps, eighths of a pixel).
      disparity: disparity, in its steps, times depth (m).
      dropout: probability that a pixel is lost.
      lines: most random lines in a picture; line_length: shortest and longest (pixels); line_depth: range
        of their depths (m); line_bank: number of pictures of lines to choose from.
      blackout: probability that a whole depth picture is lost.
    """

    pixel_noise: float = 0.03
    edge_gain: float = 10.0
    edge_threshold: float = 0.05
    shift: float = 0.5
    disparity_noise: float = 1 / 6
    disparity: float = 351.3
    dropout: float = 0.006
    lines: int = 16
    line_length: tuple[int, int] = (2, 5)
    line_depth: tuple[float, float] = (0.08, 0.34)
    line_bank: int = 16384
    blackout: float = 0.02

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ConfigError: a value out of range.
        """
        for name in ("pixel_noise", "dropout", "blackout"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} = {value} must lie in 0..1.")
        for name in ("edge_gain", "edge_threshold", "shift", "disparity_noise"):
            value = getattr(self, name)
            check(value >= 0, f"{name} = {value} must not be negative.")
        check(self.disparity > 0, f"disparity = {self.disparity} must be positive.")
        check(0 <= self.lines <= 256, f"lines = {self.lines} must lie in 0..256.")
        check(self.line_bank >= 1, f"line_bank = {self.line_bank} must be at least 1.")
        check(
            1 <= self.line_length[0] <= self.line_length[1],
            f"line_length = {self.line_length} must be a range from 1.",
        )
        check(
            0 < self.line_depth[0] <= self.line_depth[1],
            f"line_depth = {self.line_depth} must be a positive range.",
        )


@functools.lru_cache(maxsize=8)
def line_bank(
    height: int = 32, width: int = 32, config: CorruptConfig | None = None, seed: int = 0
) -> np.ndarray:
    """Returns pictures of short random lines [line_bank, height, width], float16 m; 0 beside them.

    Source: lines ("sticks") as depth noise: the published report; T. Lum et al., DextrAH-G (2024).
    """
    config = config or CorruptConfig()
    random = np.random.default_rng(seed)
    count, most = config.line_bank, max(config.lines, 1)
    shape = (count, most)
    number = random.integers(1, most + 1, count)
    x, y = random.integers(0, width, shape), random.integers(0, height, shape)
    angle = random.uniform(0, 2 * np.pi, shape)
    length = random.integers(config.line_length[0], config.line_length[1] + 1, shape)
    depth = random.uniform(*config.line_depth, shape)
    bank = np.zeros((count, height, width), np.float16)
    picture = np.arange(count)
    for line in range(config.lines):
        for step in range(config.line_length[1] + 1):
            column = np.round(x[:, line] + step * np.cos(angle[:, line])).astype(int)
            row = np.round(y[:, line] + step * np.sin(angle[:, line])).astype(int)
            drawn = (line < number) & (step <= length[:, line])
            drawn &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
            bank[picture[drawn], row[drawn], column[drawn]] = depth[drawn, line]
    return bank


def corrupt(
    key: Array,
    rgb: Array,
    depth: Array,
    brightness: Array,
    bank: Array,
    config: CorruptConfig | None = None,
) -> tuple[Array, Array]:
    """Makes rendered pictures look like a sensor's (JAX, traceable).

    Environment i depends on key and i alone, not on N. Depth is corrupted before it is cut off, as in a
    real camera.

    Args:
      key: one random key, or one for each environment [N].
      rgb: [N, C, H, W, 3] uint8; None for depth alone.
      depth: [N, C, H, W] float32 (m); 0 where nothing is seen.
      brightness: [N] factor of each environment.
      bank: from `line_bank`, for pictures of this size.
      config: strengths.

    Returns:
      rgb uint8 (None if there was none) and depth float32, of the same shapes.
    """
    import jax
    import jax.numpy as jnp

    config = config or CorruptConfig()
    count = depth.shape[0]
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if not key.ndim:
        key = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))

    def one(key: Array, rgb: Array, depth: Array, brightness: Array) -> tuple[Array, Array]:
        keys = jax.random.split(key, 6)
        depth = edge_dropout(keys[0], depth, config)
        depth = disparity_noise(keys[1], depth, config)
        depth = random_dropout(keys[2], depth, config)
        depth = add_lines(keys[3], depth, bank)
        depth = blackout(keys[4], depth, config)
        return (None if rgb is None else colour_noise(keys[5], rgb, brightness, config)), depth

    return jax.vmap(one)(key, rgb, depth, brightness)


def corrupt_grey(
    key: Array, grey: Array, brightness: Array, config: CorruptConfig | None = None
) -> Array:
    """Makes the grey pictures of right imagers look like a sensor's, beside `corrupt` of the left ones (traceable).

    The noise of its pixels is another one; the brightness is the same, as both imagers are exposed alike.

    Args:
      key: [N] random keys, those that `corrupt` is given.
      grey: [N, C, H, W] uint8.
      brightness: [N] factor of each environment.
      config: strengths.

    Returns:
      uint8 of the same shape.
    """
    import jax
    import jax.numpy as jnp

    config = config or CorruptConfig()

    def one(key: Array, grey: Array, brightness: Array) -> Array:
        words = random_words(jax.random.fold_in(key, _GREY), grey.shape)[0]
        bright = (grey + uniform(words) * (255 * config.pixel_noise)) * brightness
        return jnp.clip(jnp.round(bright), 0, 255).astype(jnp.uint8)

    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return jax.vmap(one)(key, grey, brightness)


def random_words(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Returns three arrays of random 32-bit words for a random key; element i depends on key and i alone.

    Pictures need some ten thousand numbers each, for which JAX's own generator takes most of the time; noise needs
    no cipher.

    Source: pcg3d of Jarzynski and Olano, Hash Functions for GPU Rendering (2020).
    """
    import jax
    import jax.numpy as jnp

    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    x = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    y, z = jnp.broadcast_to(key[0], shape), jnp.broadcast_to(key[1], shape)
    step, more = np.uint32(1664525), np.uint32(1013904223)
    x, y, z = x * step + more, y * step + more, z * step + more
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = x ^ (x >> 16), y ^ (y >> 16), z ^ (z >> 16)
    x = x + y * z
    y = y + z * x
    z = z + x * y
    return x, y, z


# Coefficients of the inverse error function near 0 and towards its ends.
_INVERSE_ERF = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)


def uniform(words: Array) -> Array:
    """Turns words into float32 numbers in [0, 1)."""
    # Through a signed whole number, for which every processor has an instruction.
    return (words >> 8).astype(np.int32).astype(np.float32) * np.float32(2**-24)


def normal(words: Array) -> Array:
    """Turns words into normally distributed float32 numbers.

    Source: M. Giles, Approximating the erfinv function (2010); `jax.lax.erf_inv` does the same with a slower log1p.
    """
    import jax.numpy as jnp

    # In the middle of one of 2^23 intervals of (-1, 1), so that the ends are never met.
    whole = (words >> np.uint32(8)).astype(np.int32) - 2**23
    even = (whole.astype(jnp.float32) + 0.5) * np.float32(2**-23)
    tail = -jnp.log((1 - even) * (1 + even))
    near, far = jnp.float32(0), jnp.float32(0)
    for one, other in _INVERSE_ERF:
        near = near * (tail - 2.5) + np.float32(one)
        far = far * (jnp.sqrt(tail) - 3) + np.float32(other)
    return np.float32(math.sqrt(2)) * jnp.where(tail < 5, near, far) * even


def colour_noise(key: Array, rgb: Array, brightness: Array, config: CorruptConfig) -> Array:
    """Adds light to each pixel, then scales the brightness; [..., 3] uint8 in and out.

    Source: the published report.
    """
    import jax.numpy as jnp

    # A third of the numbers of a picture from each of three words: as rows they need not be interleaved.
    lead, rest = rgb.shape[:-3], math.prod(rgb.shape[-3:])
    words = random_words(key, (*lead, rest // 3))
    noise = jnp.concatenate([uniform(part) for part in words], -1) * (255 * config.pixel_noise)
    bright = (rgb.reshape(*lead, rest).astype(jnp.float32) + noise) * brightness
    return jnp.clip(jnp.round(bright), 0, 255).astype(jnp.uint8).reshape(rgb.shape)


def edge_dropout(key: Array, depth: Array, config: CorruptConfig) -> Array:
    """Loses pixels where depth changes quickly, [..., H, W] (m).

    Source: the published code: a stereo sensor loses what only one of its imagers sees.
    """
    import jax.numpy as jnp

    square: Array = 0.0
    for axis in (-2, -1):
        length = depth.shape[axis]
        if length > 1:
            pads = [(0, 0)] * depth.ndim
            pads[axis] = (1, 1)
            around = jnp.pad(depth, pads, mode="edge")
            low, high = ([slice(None)] * depth.ndim for _ in range(2))
            low[axis], high[axis] = slice(0, length), slice(2, length + 2)
            scale = np.full(length, 0.5, np.float32)
            scale[[0, -1]] = 1  # at the borders there is one neighbour
            scale = scale if axis == -1 else scale[:, None]
            square = square + ((around[tuple(high)] - around[tuple(low)]) * scale) ** 2
    # u < arctan(x) as tan(u)^2 < x^2, with a Pade approximant of the tangent (1e-7 for u in 0..1): no arctan.
    drawn = uniform(random_words(key, depth.shape)[0])
    even = drawn * drawn
    above, below = 945 + even * (even - 105), 945 + even * (15 * even - 420)
    steep = config.edge_threshold < math.pi / 2
    least = math.tan(config.edge_threshold) ** 2 if steep else math.inf
    slope = config.edge_gain**2 * square
    lost = (above * above * even < slope * below * below) & (slope > least)
    # The root of 0 or 1 changes nothing, but what has a root in it XLA computes once, and not again for each of the
    # neighbours that `disparity_noise` looks at.
    return depth * jnp.sqrt(jnp.where(lost, 0.0, 1.0))


def disparity_noise(key: Array, depth: Array, config: CorruptConfig) -> Array:
    """Looks a little beside each pixel, and adds noise and steps to the disparity, [..., H, W] (m).

    A stereo sensor measures disparity in whole steps; steps times depth is the focal length (pixels) times
    the baseline times the steps per pixel. The published 35130 cm are a Kinect's: 585 pixels x 7.5 cm x 8
    steps per pixel; so `disparity_noise` and the rounding are in eighths of a pixel, and `shift` in
    pixels. The position error is limited to one pixel. Between pixels the depth is interpolated
    on a surface, but not across its edge, where it would lie in the air; what the nearest pixel
    shows counts there.

    Source: Handa et al., A Benchmark for RGB-D Visual Odometry, 3D Reconstruction and SLAM (2014), after
    Barron and Malik, Intrinsic Scene Properties from a Single RGB-D Image (2013).
    """
    import jax.numpy as jnp

    words = random_words(key, depth.shape)
    shift = [jnp.clip(normal(part) * config.shift, -1, 1) for part in words[:2]]
    nearest = [jnp.round(part) for part in shift]

    def shares(shift: Array) -> tuple[Array, Array, Array]:
        return jnp.maximum(-shift, 0), 1 - jnp.abs(shift), jnp.maximum(shift, 0)

    height, width = depth.shape[-2:]
    around = jnp.pad(depth, [(0, 0)] * (depth.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    places = [(row, column) for row in range(3) for column in range(3)]
    values = [around[..., row : row + height, column : column + width] for row, column in places]
    anchor = depth
    for (row, column), value in zip(places, values, strict=True):
        here = (nearest[0] == row - 1) & (nearest[1] == column - 1)
        anchor = jnp.where(here, value, anchor)
    share_y, share_x = shares(shift[0]), shares(shift[1])
    total, weight = jnp.zeros_like(depth), jnp.zeros_like(depth)
    for (row, column), value in zip(places, values, strict=True):
        same = jnp.abs(value - anchor) <= _SURFACE_STEP * anchor
        share = jnp.where(same, share_y[row] * share_x[column], 0)
        total, weight = total + share * value, weight + share
    seen = anchor > 0
    disparity = config.disparity * weight / jnp.where(seen, total, 1)
    noise = normal(words[2]) * config.disparity_noise
    disparity = jnp.maximum(jnp.round(disparity + noise), 1)
    return jnp.where(seen, config.disparity / disparity, 0.0)


def random_dropout(key: Array, depth: Array, config: CorruptConfig) -> Array:
    """Loses random pixels, [..., H, W]. Source: the published report."""
    import jax.numpy as jnp

    lost = uniform(random_words(key, depth.shape)[0]) < config.dropout
    return jnp.where(lost, 0.0, depth)


def add_lines(key: Array, depth: Array, bank: Array) -> Array:
    """Draws random lines over pictures [..., H, W] from a bank [K, H, W] (m). Source: the published report."""
    import jax
    import jax.numpy as jnp

    chosen = jax.random.randint(key, depth.shape[:-2], 0, bank.shape[0])
    lines = jnp.asarray(bank)[chosen].astype(jnp.float32)
    return jnp.where(lines > 0, lines, depth)


def blackout(key: Array, depth: Array, config: CorruptConfig) -> Array:
    """Loses whole pictures [..., H, W]. Source: the published report."""
    import jax
    import jax.numpy as jnp

    lost = jax.random.uniform(key, depth.shape[:-2]) < config.blackout
    return jnp.where(lost[..., None, None], 0.0, depth)
