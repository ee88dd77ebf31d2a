"""What a wrist camera shows a policy: field of view, depth cut-off, the one crop, the one scaling.

A real camera's picture is cropped to what the simulated camera shows (`crop_color`, `crop_depth`, NumPy, on the robot);
the simulated camera draws that directly. From there on everything is the same: `preprocess` is the first thing
that a network does, in training, in evaluation and on the robot.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from alohas2r.core.types import Array

# m; farther things are not seen. Source: the published report.
DEPTH_CUTOFF = 0.4
# Vertical field of view (degrees) and side (pixels) of the simulated wrist cameras, square. Source: likewise.
FOVY_DEG = 58.0
SIZE = 32
# m; from the left to the right imager of a D405, along the picture's x. Source: its data sheet.
BASELINE_M = 0.018

_ZERO_ONE_BYTE = np.float32(1 / 255)


class Intrinsics(NamedTuple):
    """A pinhole camera (pixels); pixel centres lie at whole numbers."""

    width: int
    height: int
    fx: float
    fy: float
    ppx: float
    ppy: float


def preprocess(rgb: Array, depth: Array, cutoff: float = DEPTH_CUTOFF) -> tuple[Array, Array]:
    """Turns pictures into network inputs: cuts off depth, and scales both to 0..1.

    Args:
      rgb: [..., H, W, 3] uint8, NumPy or JAX.
      depth: [..., H, W] float32, metres along the optical axis; 0 where nothing is seen.
      cutoff: depth beyond it becomes 0 (m).

    Returns:
      rgb [..., H, W, 3] and depth [..., H, W], float32 in [0, 1], of the arrays' kind; the same bits with both.
    """
    xp = _namespace(depth)
    depth = xp.where(depth > np.float32(cutoff), np.float32(0), depth)
    depth = xp.where(depth > 0, depth, np.float32(0))  # and what is no number
    scale = np.float32(1 / cutoff)
    return rgb.astype(np.float32) * _ZERO_ONE_BYTE, xp.minimum(depth * scale, np.float32(1))


def crop_color(
    image: np.ndarray, camera: Intrinsics, size: int = SIZE, fovy_deg: float = FOVY_DEG
) -> np.ndarray:
    """Crops a picture to the simulated field of view and averages it down.

    Args:
      image: [H, W, 3] uint8.
      camera: its intrinsics.
      size: side of the result.
      fovy_deg: field of view of the result; it is square.

    Returns:
      [size, size, 3] uint8; black where the picture does not reach.
    """
    covered = _cell_areas(camera, size, fovy_deg)[..., None]
    total = _crop_sums(image, camera, size, fovy_deg)
    mean = np.divide(total, covered, out=np.zeros_like(total), where=covered > 0)
    return np.rint(mean).astype(np.uint8)


def crop_depth(
    depth: np.ndarray,
    camera: Intrinsics,
    size: int = SIZE,
    fovy_deg: float = FOVY_DEG,
    cutoff: float = DEPTH_CUTOFF,
) -> np.ndarray:
    """Crops a depth picture to the simulated field of view and averages what is seen of it.

    What lies beyond the cut-off counts as not seen before anything is averaged: the mean of a finger and of the table
    far behind it would be a point in the air, at a depth where nothing is.

    Args:
      depth: [H, W] metres along the optical axis; 0 where unknown.
      camera: its intrinsics.
      size: side of the result.
      fovy_deg: field of view of the result; it is square.
      cutoff: depth beyond it is not seen (m).

    Returns:
      [size, size] float32, 0 where less than half of a cell is seen.
    """
    near = np.where((depth > 0) & (depth <= cutoff), depth, 0)
    total = _crop_sums(near, camera, size, fovy_deg)
    seen = _crop_sums(near > 0, camera, size, fovy_deg)
    enough = (seen >= 0.5 * _cell_areas(camera, size, fovy_deg)) & (seen > 0)
    mean = np.divide(total, seen, out=np.zeros_like(total), where=enough)
    return mean.astype(np.float32)


def area_sums(image: np.ndarray, start: float, stop: float, count: int) -> np.ndarray:
    """Sums the rows of a picture into equal cells between two edges.

    A row that lies in two cells counts for each by its share; what lies outside the picture counts
    nowhere.

    Args:
      image: [H, ...].
      start: first edge; row i reaches from i - 0.5 to i + 0.5.
      stop: last edge.
      count: number of cells.

    Returns:
      [count, ...] float64.
    """
    edges = np.clip(np.linspace(start, stop, count + 1) + 0.5, 0, len(image))
    whole = np.minimum(edges.astype(int), len(image) - 1)
    share = (edges - whole).reshape(-1, *[1] * (image.ndim - 1))
    first = whole[0]
    image = image[first : whole[-1] + 1].astype(np.float64)  # what no cell needs is left out
    running = np.cumsum(image, axis=0) - image  # the sum of all rows before each
    return np.diff(running[whole - first] + share * image[whole - first], axis=0)


def _edges(camera: Intrinsics, fovy_deg: float) -> tuple[tuple[float, float], ...]:
    """Returns between which rows, and which columns, the simulated field of view lies."""
    reach = math.tan(math.radians(fovy_deg) / 2)
    high, wide = reach * camera.fy, reach * camera.fx
    return (camera.ppy - high, camera.ppy + high), (camera.ppx - wide, camera.ppx + wide)


def _crop_sums(image: np.ndarray, camera: Intrinsics, size: int, fovy_deg: float) -> np.ndarray:
    """Sums [H, W, ...] into the [size, size, ...] cells of the simulated field of view."""
    high, wide = _edges(camera, fovy_deg)
    rows = area_sums(image, *high, size)
    return area_sums(rows.swapaxes(0, 1), *wide, size).swapaxes(0, 1)


def _cell_areas(camera: Intrinsics, size: int, fovy_deg: float) -> np.ndarray:
    """Returns [size, size] how many pixels of the picture lie in each cell."""
    high, wide = _edges(camera, fovy_deg)
    rows = area_sums(np.ones(camera.height), *high, size)
    return np.outer(rows, area_sums(np.ones(camera.width), *wide, size))


def _namespace(array: Array) -> Array:
    if isinstance(array, np.ndarray):
        return np
    import jax.numpy as jnp

    return jnp
