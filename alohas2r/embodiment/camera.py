"""What a wrist camera shows a policy: field of view, depth cut-off, the one crop."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from alohas2r.config import check

DEPTH_CUTOFF = 0.4  # m; farther things are not seen. Source: recipe, section 6.
FOVY_DEG = 58.0  # of the simulated wrist cameras, square. Source: recipe, section 6.

_ZERO_ONE_BYTE = np.float32(1 / 255)


class Crop(NamedTuple):
    """A rectangle of a picture in pixels; it may reach beyond the picture, where nothing is seen."""

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """How pictures become network inputs.

    Attributes:
      height, width: of the inputs, in pixels.
      depth_cutoff: depth beyond it becomes 0; depth is divided by it (m).
    """

    height: int = 32
    width: int = 32
    depth_cutoff: float = DEPTH_CUTOFF

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ConfigError: a value out of range.
        """
        for name in ("height", "width"):
            size = getattr(self, name)
            check(1 <= size <= 4096, f"{name} = {size} must lie in 1..4096 pixels.")
        check(
            0.05 <= self.depth_cutoff <= 10,
            f"depth_cutoff = {self.depth_cutoff} must lie in 0.05..10 m.",
        )


def simulated_crop(
    fx: float, fy: float, cx: float, cy: float, fovy_deg: float = FOVY_DEG, aspect: float = 1.0
) -> Crop:
    """Returns the part of a real camera's picture that the simulated camera would show.

    Args:
      fx, fy: focal lengths in pixels; cx, cy: principal point in pixels (0 is the outer edge of the first
        pixel): intrinsics that the device reports.
      fovy_deg: the simulated camera's vertical field of view; aspect: its width over its height.

    Raises:
      ConfigError: intrinsics that no camera has.
    """
    check(fx > 0 and fy > 0, f"The focal lengths {fx} and {fy} must be positive.")
    check(1 <= fovy_deg < 180, f"fovy_deg = {fovy_deg} must lie in 1..180 degrees.")
    half = math.tan(math.radians(fovy_deg) / 2)
    top, bottom = round(cy - fy * half), round(cy + fy * half)
    left, right = round(cx - fx * half * aspect), round(cx + fx * half * aspect)
    return Crop(top, left, bottom - top, right - left)


def preprocess(
    rgb: Any, depth: Any, config: PreprocessConfig | None = None, crop: Crop | None = None
) -> tuple[Any, Any]:
    """Turns pictures into network inputs: crop, resize by area, cut off depth, normalize.

    Depth is averaged over the part of a cell where something is seen within the cut-off; a cell less than
    half of which is seen becomes 0, so that edges leave no points in the air. Sizes are changed in
    whole numbers, so that NumPy and JAX round alike.

    Args:
      rgb: [..., H, W, 3] uint8.
      depth: [..., H, W] float32, metres along the optical axis; 0 where nothing is seen.
      config: size and cut-off.
      crop: what to cut out first; None for the whole picture.

    Returns:
      rgb [..., height, width, 3] and depth [..., height, width], float32 in [0, 1], of the arrays' kind.
    """
    config = config or PreprocessConfig()
    xp = _namespace(depth)
    depth = xp.where(depth > np.float32(config.depth_cutoff), np.float32(0), depth)
    depth = xp.where(depth > 0, depth, np.float32(0))  # and what is no number
    if crop is not None:
        rgb, depth = _cut(rgb, crop, 3), _cut(depth, crop, 2)
    height, width = depth.shape[-2:]
    size = (config.height, config.width)
    scale = np.float32(1 / config.depth_cutoff)
    if (height, width) != size:
        rgb = xp.moveaxis(_resize_colour(xp.moveaxis(rgb, -1, 0), size, xp), 0, -1)
        # Depth in whole units of 0.1 mm, or coarser where sums would not fit into 31 bits.
        most = (2**31 - 1) // (height * width)
        units = min(10_000.0, most / config.depth_cutoff)
        depth = _resize_depth(depth, size, np.float32(units), xp)
        scale = np.float32(1 / (units * config.depth_cutoff))
    return rgb.astype(np.float32) * _ZERO_ONE_BYTE, xp.minimum(depth * scale, np.float32(1))


def _namespace(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp


def _cut(picture: Any, crop: Crop, axes: int) -> Any:
    """Cuts out a rectangle of the axes -axes, -axes + 1; beyond the picture there is 0."""
    xp = _namespace(picture)
    pads = [(0, 0)] * picture.ndim
    first = picture.ndim - axes
    index: list[Any] = [slice(None)] * picture.ndim
    for axis, start, size in ((first, crop.top, crop.height), (first + 1, crop.left, crop.width)):
        length = picture.shape[axis]
        low, high = min(max(start, 0), length), min(max(start + size, 0), length)
        before = min(max(-start, 0), size)
        pads[axis] = (before, size - before - (high - low))
        index[axis] = slice(low, high)
    return xp.pad(picture[tuple(index)], pads)


@functools.lru_cache(maxsize=64)
def _overlaps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which source pixels a target pixel covers [target, K] and how much of each, int32.

    The shares of a target pixel add up to `source`.
    """
    edges = np.arange(target + 1, dtype=np.int64) * source
    first = edges[:-1] // target
    taps = int((-(-edges[1:] // target) - first).max())
    pixels = first[:, None] + np.arange(taps)
    low = np.maximum(pixels * target, edges[:-1, None])
    high = np.minimum((pixels + 1) * target, edges[1:, None])
    shares = np.maximum(high - low, 0)
    return np.minimum(pixels, source - 1).astype(np.int32), shares.astype(np.int32)


def _area_sums(picture: Any, size: tuple[int, int]) -> Any:
    """Returns sums over areas of whole numbers [..., H, W], [..., height, width], times H * W."""
    for axis, target in ((-1, size[1]), (-2, size[0])):
        pixels, shares = _overlaps(picture.shape[axis], target)
        total = 0
        for tap in range(pixels.shape[1]):
            share = shares[:, tap] if axis == -1 else shares[:, tap, None]
            part = picture[..., pixels[:, tap]] if axis == -1 else picture[..., pixels[:, tap], :]
            total = total + part * share
        picture = total
    return picture


def _resize_colour(picture: Any, size: tuple[int, int], xp: Any) -> Any:
    area = picture.shape[-1] * picture.shape[-2]
    sums = _area_sums(picture.astype(np.uint32), size)
    return (sums + np.uint32(area // 2)) // np.uint32(area)


def _resize_depth(depth: Any, size: tuple[int, int], units: np.float32, xp: Any) -> Any:
    area = depth.shape[-1] * depth.shape[-2]
    whole = xp.floor(depth * units).astype(np.int32)
    sums = _area_sums(whole, size)
    seen = _area_sums((whole > 0).astype(np.int32), size)
    mean = (sums // xp.maximum(seen, 1)).astype(np.float32)
    return xp.where(seen * 2 >= area, mean, np.float32(0))
