"""Networks that compare pairs of pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ConfigError
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks import cpu_encoder, stereo
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import CameraSpec, StereoNetworkConfig, StereoSpec, StudentNetworkConfig
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles


def make_spec(size: int = 16, places: int = 4, **network: Any) -> StereoSpec:
    found = policies_spec.make_spec(
        scene.load("insert"),
        "stereo",
        StudentNetworkConfig(places=places),
        CameraSpec(size=size),
        HistoryConfig(),
        Switch(),
        0.02,
        stereo=dataclasses.replace(StereoNetworkConfig(), **network),
    )
    assert isinstance(found, StereoSpec)
    return found


def pairs(count: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 2, size, size, 4), np.uint8)


@pytest.mark.parametrize("shift", [0, 3, 6])
def test_the_comparison_finds_by_how_much_the_right_picture_is_moved(shift: int) -> None:
    wide = np.random.default_rng(shift).normal(size=(2, 5, 40, 16)).astype(np.float32)
    left, right = wide[:, :, :32], wide[:, :, shift : 32 + shift]  # what is seen lies further left
    cost = np.asarray(stereo.correlation(jnp.asarray(left), jnp.asarray(right), 8))
    assert cost.shape == (2, 5, 32, 8)
    assert (cost[:, :, 8:].argmax(-1) == shift).mean() > 0.95
    assert not cost[:, :, 0, 1:].any()  # beyond the border there is nothing


def test_a_strip_holds_four_rows_and_five_columns() -> None:
    grey = np.arange(8 * 16, dtype=np.float32).reshape(1, 8, 16, 1)
    found = np.asarray(stereo.strips(jnp.asarray(grey)))
    assert found.shape == (1, 2, 16, 20)
    inner = grey[0, 4:8, 3:8, 0]  # around column 5 of the second strip
    np.testing.assert_array_equal(found[0, 1, 5].reshape(5, 4).T, inner)


def test_inverse_depth_is_a_mean_over_cells_of_what_is_seen() -> None:
    depth = np.full((1, 16, 16), 0.2, np.float32)
    depth[0, 0, 0], depth[0, 15, 15] = 0.0, 0.01
    found = np.asarray(stereo.inverse_depth(depth))[0]
    assert found.shape == (8, 8)
    assert found[3, 4] == pytest.approx(0.5)
    assert found[0, 0] == pytest.approx(0.5 * 3 / 4)  # nothing is infinitely far
    assert found[7, 7] == pytest.approx((0.5 * 3 + 3) / 4)  # and what is near has a limit


@pytest.mark.parametrize("network", policies_spec.STEREO_NETWORKS)
def test_each_network_reacts_to_each_part_of_a_pair(network: str) -> None:
    spec = make_spec(network=network)
    encoder = vision_network.init(spec, jax.random.PRNGKey(0))["encoder"]
    encode = jax.jit(lambda rgb: vision_network.encode(spec, encoder, rgb))
    seen = pairs()
    code = np.asarray(encode(seen))
    assert code.shape == (3, 2, 2, 2, spec.stereo.filters[1])
    for channel in range(4):
        other = seen.copy()
        other[1, 0, ..., channel] = 255 - other[1, 0, ..., channel]
        changed = np.asarray(encode(other))
        assert np.abs(changed[1, 0] - code[1, 0]).max() > 1e-3
        np.testing.assert_allclose(changed[[0, 2]], code[[0, 2]], atol=1e-6)
    inside = jax.jit(lambda rgb: cpu_encoder.encode_in_products(spec, encoder, rgb))(seen)
    np.testing.assert_allclose(inside, code, atol=1e-5)


def test_brightness_and_contrast_of_one_imager_do_not_matter_for_the_comparison() -> None:
    spec = make_spec()
    encoder = vision_network.init(spec, jax.random.PRNGKey(0))["encoder"]
    seen = pairs() // 2
    dim = seen.copy()
    dim[..., 3] = dim[..., 3] // 2 + 20
    both = [np.asarray(vision_network.encode(spec, encoder, one)) for one in (seen, dim)]
    black = seen * np.array([1, 1, 1, 0], np.uint8)
    without = np.asarray(vision_network.encode(spec, encoder, black))
    assert np.abs(both[1] - both[0]).max() < 0.2 * np.abs(without - both[0]).max()


@pytest.mark.parametrize("right", ["left", "black"])
def test_controls_do_not_look_at_the_right_picture(right: str) -> None:
    spec, control = make_spec(), make_spec(right=right)
    encoder = vision_network.init(spec, jax.random.PRNGKey(0))["encoder"]
    seen = pairs()
    other = seen.copy()
    other[..., 3] = 0
    first, second = (
        np.asarray(vision_network.encode(control, encoder, one)) for one in (seen, other)
    )
    np.testing.assert_array_equal(first, second)
    if right == "black":
        wanted = vision_network.encode(spec, encoder, other)
        np.testing.assert_allclose(first, wanted, atol=1e-5)


def test_without_places_a_picture_is_a_mean_and_tells_no_depth() -> None:
    spec = make_spec(places=0)
    params = vision_network.init(spec, jax.random.PRNGKey(0), auxiliary=True)
    assert "inverse" not in params
    code = vision_network.encode(spec, params["encoder"], pairs())
    assert code.shape == (3, 2, spec.stereo.filters[1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"network": "late"}, "network must be one of cost, early, attention"),
        ({"right": "up"}, "right must be one of seen, left, black"),
        ({"shifts": 0}, "shifts must be in 1..64"),
        ({"stem": 0}, "must be numbers >= 1"),
        ({"heads": 7}, "multiple of heads"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_spec(**wrong)


def test_pairs_belong_to_stereo_students_alone() -> None:
    spec = make_spec()
    assert spec.switches
    assert spec.has_rgb
    assert not spec.has_depth
    with pytest.raises(ConfigError, match="multiple of 8"):
        make_spec(size=20)
    with pytest.raises(ConfigError, match="kind 'stereo' alone"):
        dataclasses.replace(spec, kind="student")
    with pytest.raises(ConfigError, match="kind 'stereo' alone"):
        dataclasses.replace(spec, observation="rgb")
