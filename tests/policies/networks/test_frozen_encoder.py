"""The encoder that onnxruntime runs while samples are collected."""

from __future__ import annotations

import concurrent.futures

import jax
import numpy as np
import pytest

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.networks.frozen_encoder import FrozenEncoder
from alohas2r.policies.spec import StudentNetworkConfig
from alohas2r.policies.switch import Switch
from alohas2r.sim import scene


def make_spec(places: int, side: int = 32) -> policies_spec.StudentSpec:
    network = StudentNetworkConfig(hidden=(16,), filters=(4, 4, 8), embedding=8, places=places)
    cameras = policies_spec.CameraSpec(size=side)
    model = scene.load("insert")
    return policies_spec.make_spec(
        model, "rgbd", network, cameras, HistoryConfig(), Switch(0.17, 0.12, 0.01), 0.02
    )


def pictures(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 2, side, side, 3), np.uint8)


@pytest.mark.parametrize(("places", "side"), [(0, 32), (3, 32), (3, 64), (3, 50)])
def test_it_is_the_networks_own_encoder(places: int, side: int) -> None:
    spec = make_spec(places, side)
    encoder = vision_network.init(spec, jax.random.PRNGKey(0))["encoder"]
    rgb = pictures(5, side)
    expected = np.asarray(vision_network.encode(spec, encoder, rgb))
    found = FrozenEncoder(spec, encoder)(rgb)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_code_depends_on_its_picture_alone() -> None:
    spec = make_spec(places=3)
    encode = FrozenEncoder(spec, vision_network.init(spec, jax.random.PRNGKey(0))["encoder"])
    rgb = pictures(24)
    together = encode(rgb)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        apart = list(pool.map(lambda index: encode(rgb[index : index + 1]), range(len(rgb))))
    np.testing.assert_array_equal(together, np.concatenate(apart))
