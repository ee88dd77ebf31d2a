"""What a camera shows a policy: the crop of a real camera, and the scaling of every picture."""

import subprocess
import sys

import numpy as np
import pytest

from alohas2r.embodiment import camera as camera_contract
from alohas2r.embodiment.camera import DEPTH_CUTOFF, Intrinsics, area_sums, crop_color, crop_depth

CUTOFF = DEPTH_CUTOFF


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = random.uniform(0, 1.5 * CUTOFF, (height, width)).astype(np.float32)
    depth[random.random((height, width)) < 0.2] = 0
    return rgb, depth


def test_importing_needs_no_jax() -> None:
    code = "import sys; sys.modules['jax'] = None; import numpy as np; from alohas2r.embodiment import camera; "
    code += "camera.preprocess(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.float32))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_that_fit_change_nothing_but_the_scale() -> None:
    rgb, depth = pictures(32, 32)
    seen, near = camera_contract.preprocess(rgb, depth)
    np.testing.assert_allclose(seen, rgb / 255, atol=1e-6)
    np.testing.assert_allclose(near, np.where(depth > CUTOFF, 0, depth) / CUTOFF, atol=1e-6)
    assert (seen.dtype, near.dtype) == (np.float32, np.float32)
    assert near.max() <= 1


def test_what_is_no_number_is_not_seen() -> None:
    depth = np.full((32, 32), 0.2, np.float32)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, np.inf, -1
    near = camera_contract.preprocess(np.zeros((32, 32, 3), np.uint8), depth)[1]
    np.testing.assert_array_equal(near[0, :4] > 0, [False, False, False, True])


def test_sums_respect_fractions_and_edges():
    rows = np.array([1.0, 10.0, 100.0])
    np.testing.assert_allclose(area_sums(rows, -0.5, 2.5, 3), rows)
    np.testing.assert_allclose(area_sums(rows, -0.5, 2.5, 1), [111])
    np.testing.assert_allclose(area_sums(rows, -0.5, 2.5, 2), [6, 105])
    np.testing.assert_allclose(area_sums(rows, 0.25, 1.25, 1), [0.25 + 7.5])
    np.testing.assert_allclose(area_sums(rows, -2.5, 5.5, 4), [0, 11, 100, 0])
    two = np.stack([rows, 2 * rows], axis=1)
    np.testing.assert_allclose(area_sums(two, -0.5, 2.5, 2), [[6, 12], [105, 210]])


@pytest.mark.parametrize("shape", [(64, 64), (270, 480), (480, 848)])
def test_cropping_keeps_a_constant_picture(shape):
    height, width = shape
    camera = Intrinsics(width, height, height * 0.85, height * 0.85, width / 2 - 1, height / 2 + 1)
    rgb = np.full((height, width, 3), (10, 100, 200), np.uint8)
    np.testing.assert_array_equal(
        crop_color(rgb, camera), np.full((32, 32, 3), (10, 100, 200), np.uint8)
    )
    depth = np.full((height, width), 0.25)
    np.testing.assert_allclose(crop_depth(depth, camera), 0.25, rtol=1e-6)


def test_a_crop_of_the_simulated_view_is_a_plain_average():
    rng = np.random.default_rng(0)
    fovy = 58.0
    focal = 32 / np.tan(np.radians(fovy) / 2)
    camera = Intrinsics(64, 64, focal, focal, 31.5, 31.5)
    rgb = rng.integers(0, 255, (64, 64, 3), np.uint8)
    expected = rgb.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(crop_color(rgb, camera, 32, fovy) - expected).max() <= 0.5
    depth = rng.uniform(0.1, 0.4, (64, 64))
    np.testing.assert_allclose(
        crop_depth(depth, camera, 32, fovy),
        depth.reshape(32, 2, 32, 2).mean(axis=(1, 3)),
        rtol=1e-5,
    )


def test_a_point_lands_where_the_simulated_camera_would_see_it():
    """Whatever the device's intrinsics are, a ray goes to the pixel of the simulated camera."""
    rng = np.random.default_rng(1)
    simulated_focal = 16 / np.tan(np.radians(29))
    for _ in range(8):
        fx, fy = rng.uniform(235, 250, 2)
        ppx, ppy = 240 + rng.uniform(-8, 8), 135 + rng.uniform(-4, 4)
        camera = Intrinsics(480, 270, fx, fy, ppx, ppy)
        x, y = rng.uniform(-0.45, 0.45, 2)  # the ray (x, y, 1)
        column, row = camera.ppx + x * camera.fx, camera.ppy + y * camera.fy
        rows, columns = np.mgrid[:270, :480]
        blob = np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / (2 * 6.0**2))
        seen = crop_depth(0.3 * blob + 1e-3, camera)
        weight = seen - seen.min()
        weight /= weight.sum()
        found = [(weight.sum(axis=axis) * np.arange(32)).sum() for axis in (0, 1)]
        expected = [15.5 + x * simulated_focal, 15.5 + y * simulated_focal]
        np.testing.assert_allclose(found, expected, atol=0.15)


def test_unknown_depth_does_not_dilute_the_rest():
    camera = Intrinsics(
        64, 64, 32 / np.tan(np.radians(29)), 32 / np.tan(np.radians(29)), 31.5, 31.5
    )
    depth = np.full((64, 64), 0.2)
    depth[::2, ::2] = 0  # a quarter of every cell is unknown
    np.testing.assert_allclose(crop_depth(depth, camera), 0.2, rtol=1e-6)
    depth[:, ::2] = 0
    depth[::2] = 0  # three quarters are
    assert not crop_depth(depth, camera).any()


def test_an_edge_leaves_no_points_in_the_air() -> None:
    """Of a near and a far surface in one cell, the near one is seen, or nothing; never a depth between the two."""
    focal = 160 / np.tan(np.radians(29))
    camera = Intrinsics(320, 320, focal, focal, 159.5, 159.5)  # ten pixels to a cell
    depth = np.full((320, 320), 0.2)
    depth[:, 163:] = 0.6  # behind the cut-off; the edge cuts a cell 3 to 7
    seen = crop_depth(depth, camera)
    np.testing.assert_allclose(seen[:, :16], 0.2, rtol=1e-6)
    assert not seen[:, 16:].any()
    depth[:, 160:167] = 0.2
    assert seen[0, 16] == 0
    np.testing.assert_allclose(crop_depth(depth, camera)[:, 16], 0.2, rtol=1e-6)
    np.testing.assert_allclose(crop_depth(depth, camera, cutoff=0.7)[:, 16], 0.32, rtol=1e-6)


def test_numpy_and_jax_give_the_same_bits() -> None:
    jax = pytest.importorskip("jax")
    rgb, depth = pictures(48, 40)
    alone = camera_contract.preprocess(rgb, depth)
    batch = jax.jit(camera_contract.preprocess)(
        np.stack([rgb, rgb[::-1]]), np.stack([depth, depth[::-1]])
    )
    for ours, theirs in zip(alone, batch, strict=True):
        np.testing.assert_array_equal(np.asarray(theirs)[0], ours)
