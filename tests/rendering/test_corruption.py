"""Sensor corruption and preprocessing: laws of the noise, and one preprocessing for NumPy and JAX."""

from __future__ import annotations

import numpy as np
import pytest

from alohas2r.embodiment import camera as camera_contract
from alohas2r.errors import ConfigError
from alohas2r.rendering import augmentation, corruption

pytestmark = pytest.mark.compiles
CUTOFF = camera_contract.DEPTH_CUTOFF


def pictures(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = random.uniform(0, 1.5 * CUTOFF, (height, width)).astype(np.float32)
    depth[random.random((height, width)) < 0.2] = 0
    return rgb, depth


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 1.5), ("shift", -1.0), ("disparity", 0.0), ("lines", -1), ("line_length", (3, 2))],
)
def test_corrupt_config_is_checked(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        corruption.CorruptConfig(**{name: value})  # pyright: ignore[reportArgumentType]


# ---- corruption ----

FLAT = 351.3 / 1171.5  # m: between two steps of disparity


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour and depth of 400 grey walls, and their brightness."""
    jax = pytest.importorskip("jax")
    count = 400
    rgb = np.full((count, 1, 32, 32, 3), 80, np.uint8)
    depth = np.full((count, 1, 32, 32), FLAT, np.float32)
    brightness = np.linspace(0.5, 2.5, count, dtype=np.float32)
    bank = corruption.line_bank()
    seen, near = jax.jit(corruption.corrupt)(jax.random.key(0), rgb, depth, brightness, bank)
    assert (seen.dtype, near.dtype) == (np.uint8, np.float32)
    return np.asarray(seen), np.asarray(near), brightness


def test_colour_noise_adds_light_then_scales(noisy: tuple[np.ndarray, ...]) -> None:
    seen, _, brightness = noisy
    expected = (80 + 255 * 0.03 / 2) * brightness
    np.testing.assert_allclose(seen.mean((1, 2, 3, 4)), expected, rtol=0.01)
    assert (seen[0] >= 40).all()
    assert (seen[0] <= np.ceil((80 + 255 * 0.03) * 0.5)).all()
    assert len(np.unique(seen[-1])) > 10


def test_depth_steps_are_those_of_disparity(noisy: tuple[np.ndarray, ...]) -> None:
    _, near, _ = noisy
    values = near[np.abs(near - FLAT) < 5e-3].astype(np.float64)
    steps = 351.3 / values
    whole = np.abs(steps - np.round(steps)) < 2e-3
    assert whole.mean() > 0.995  # the others are pixels of lines
    # On a wall only the disparity's own noise (1/6) and its steps are left: 1171 or 1172, even chances.
    steps = np.round(steps[whole])
    assert steps.mean() == pytest.approx(1171.5, abs=0.03)
    assert np.isin(steps, [1171, 1172]).mean() > 0.99


def test_pixels_and_pictures_are_lost_at_their_rates(noisy: tuple[np.ndarray, ...]) -> None:
    _, near, _ = noisy
    black = (near == 0).all((1, 2, 3))
    assert 0 < black.mean() < 0.05  # 2% of 400
    assert (near[~black] == 0).mean() == pytest.approx(0.006, abs=0.001)


def test_lines_are_short_and_within_their_depths() -> None:
    bank = corruption.line_bank()
    assert bank.shape == (16384, 32, 32)
    drawn = bank[bank > 0].astype(float)
    assert drawn.min() >= 0.079
    assert drawn.max() <= 0.341
    share = (bank > 0).reshape(len(bank), -1).sum(1)
    assert share.max() <= 16 * 6
    assert 10 < share.mean() < 40  # 8.5 lines of 4.5 pixels, less what lies outside or over another
    np.testing.assert_array_equal(corruption.line_bank(seed=0), bank)
    small = corruption.CorruptConfig(line_bank=4)
    assert (corruption.line_bank(8, 8, small, 0) != corruption.line_bank(8, 8, small, 1)).any()


def test_edges_lose_pixels_and_walls_do_not() -> None:
    jax = pytest.importorskip("jax")
    depth = np.full((2000, 8, 8), 0.2, np.float32)
    depth[:, :, 4:] = 0.4
    config = corruption.CorruptConfig()
    lost = np.asarray(corruption.edge_dropout(jax.random.key(1), depth, config)) == 0
    # The gradient at the two columns beside the edge is half of the step.
    np.testing.assert_allclose(lost.mean((0, 1))[3:5], np.arctan(10 * 0.1), atol=0.02)
    assert not lost[:, :, [0, 1, 2, 5, 6, 7]].any()


def test_disparity_errors_are_noise_and_rounding() -> None:
    jax = pytest.importorskip("jax")
    config = corruption.CorruptConfig(shift=0.0)
    # Between two steps rounding adds its uniform error to the noise; on a step it swallows the noise.
    for steps, expected in (
        (np.random.default_rng(0).uniform(900, 3000, (40, 32, 32)), np.sqrt(1 / 36 + 1 / 12)),
        (np.full((40, 32, 32), 1200.0), np.sqrt(2 * 0.00135)),  # a normal error beyond 3 sigma
    ):
        depth = (351.3 / steps).astype(np.float32)
        seen = np.asarray(corruption.disparity_noise(jax.random.key(7), depth, config))
        error = 351.3 / seen.astype(np.float64) - steps
        assert abs(error.mean()) < 0.01
        assert error.std() == pytest.approx(expected, rel=0.1)
        found = 351.3 / seen.astype(np.float64)
        np.testing.assert_allclose(found, np.round(found), atol=1e-3)  # float32 of 3000


def test_noise_leaves_no_depth_in_the_air_at_edges() -> None:
    jax = pytest.importorskip("jax")
    near, far = 351.3 / 1757, 351.3 / 878  # 0.2 m and 0.4 m, on steps
    depth = np.full((300, 12, 12), near, np.float32)
    depth[:, :, 6:] = far
    config = corruption.CorruptConfig(disparity_noise=0.0)
    seen = np.asarray(corruption.disparity_noise(jax.random.key(8), depth, config))
    on_near, on_far = np.abs(seen - near) < 1e-6, np.abs(seen - far) < 1e-6
    assert (on_near | on_far).all()
    # Nearest is the other side where the shift exceeds half a pixel: beyond one sigma, on one side.
    swapped = np.stack([on_far[:, :, 5], on_near[:, :, 6]])
    assert swapped.mean() == pytest.approx(0.1587, abs=0.02)
    assert on_near[:, :, :5].all()
    assert on_far[:, :, 7:].all()


def test_random_words_are_even_and_independent() -> None:
    import jax

    keys = jax.random.split(jax.random.key(3), 512)
    words = jax.jit(jax.vmap(lambda key: corruption.random_words(key, (2, 16, 32))))(keys)
    alone = corruption.random_words(keys[17], (2, 16, 32))
    for part, single in zip(words, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(part[17]), np.asarray(single))
    drawn = np.stack([np.asarray(part) for part in words]).reshape(3, 512, 1024)
    bits = np.unpackbits(drawn.view(np.uint8)).reshape(-1, 32).mean(0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(drawn.size)  # five standard errors
    even = drawn / 2**32
    for counts in (np.histogram(even, 64)[0], np.histogram(even * 256 % 1, 64)[0]):
        expected = even.size / 64
        chi = ((counts - expected) ** 2 / expected).sum()
        assert chi < 63 + 5 * np.sqrt(2 * 63)
    centred = (even - 0.5) * np.sqrt(12)
    pairs = {
        "next pixel": (centred[:, :, :-1], centred[:, :, 1:]),
        "next row": (centred[:, :, :-32], centred[:, :, 32:]),
        "next key": (centred[:, :-1], centred[:, 1:]),
        "next word": (centred[:-1], centred[1:]),
    }
    for name, (one, other) in pairs.items():
        correlation = (one * other).mean()
        assert abs(correlation) < 5 / np.sqrt(one.size), name


def test_noise_is_normal() -> None:
    import jax
    from scipy import stats

    words = corruption.random_words(jax.random.key(5), (300_000,))
    drawn = np.concatenate([np.asarray(corruption.normal(part)) for part in words])
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert (np.abs(drawn) > 3).mean() == pytest.approx(0.0027, rel=0.1)


def test_slanted_surfaces_are_interpolated() -> None:
    jax = pytest.importorskip("jax")
    column = np.arange(32, dtype=np.float32)
    depth = np.broadcast_to(0.2 + 0.004 * column, (60, 32, 32))
    config = corruption.CorruptConfig(disparity_noise=0.0)
    seen = np.asarray(corruption.disparity_noise(jax.random.key(9), depth, config))[:, :, 1:-1]
    # Errors of position, standard deviation 0.5 pixels cut off at 1, times the slope.
    error = (seen - depth[:, :, 1:-1]) / 0.004
    assert error.std() == pytest.approx(0.48, abs=0.02)
    assert abs(error.mean()) < 0.02
    assert len(np.unique(seen)) > 200  # between the pixels too


def test_position_noise_stays_within_what_is_near() -> None:
    jax = pytest.importorskip("jax")
    depth = np.zeros((200, 9, 9), np.float32)
    depth[:, :, :5] = 0.25
    config = corruption.CorruptConfig(disparity_noise=0.0)
    moved = np.asarray(corruption.disparity_noise(jax.random.key(2), depth, config))
    assert (moved[:, :, 6:] == 0).all()
    seen = moved[moved > 0]
    np.testing.assert_allclose(seen, 0.25, atol=2e-4)  # nothing between wall and nowhere
    assert 0 < (moved[:, :, 4] == 0).mean() < 0.3
    assert 0 < (moved[:, :, 5] > 0).mean() < 0.3


def test_environments_do_not_depend_on_the_batch() -> None:
    jax = pytest.importorskip("jax")
    corrupt, (rgb, depth) = jax.jit(corruption.corrupt), pictures(32, 32)
    rgb, depth = np.stack([rgb] * 4)[:, None], np.stack([depth] * 4)[:, None]
    bank, bright = corruption.line_bank(), np.ones(4, np.float32)
    whole = corrupt(jax.random.key(3), rgb, depth, bright, bank)
    part = corrupt(jax.random.key(3), rgb[:2], depth[:2], bright[:2], bank)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[:2], b)
    assert (np.asarray(whole[0])[0] != np.asarray(whole[0])[1]).any()
    # One key per environment, as environments have them.
    keys = jax.random.split(jax.random.key(4), 4)
    each = corrupt(keys, rgb, depth, bright, bank)
    alone = corrupt(keys[2:3], rgb[2:3], depth[2:3], bright[2:3], bank)
    np.testing.assert_array_equal(np.asarray(each[1])[2], np.asarray(alone[1])[0])


def test_random_shift_moves_whole_pictures() -> None:
    jax = pytest.importorskip("jax")
    picture = np.arange(64, dtype=np.float32).reshape(8, 8)
    moved = np.asarray(augmentation.random_shift(jax.random.key(5), np.stack([picture] * 300)))
    padded = np.pad(picture, 2, mode="edge")
    windows = {padded[y : y + 8, x : x + 8].tobytes(): (y, x) for y in range(5) for x in range(5)}
    places = {windows[one.tobytes()] for one in moved}
    assert len(places) == 25
    colour = np.stack([picture, picture + 64, picture], -1)[None]
    assert np.asarray(augmentation.random_shift(jax.random.key(6), colour)).shape == (1, 8, 8, 3)
