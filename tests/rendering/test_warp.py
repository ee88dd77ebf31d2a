"""MuJoCo Warp's renderer and the ray caster draw the same pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import gallery, visual_randomization
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.sim import scene

jax = pytest.importorskip("jax")


def test_without_warp_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'mujoco-mjx\[warp\]"):
        renderers.make("warp", scene.load("insert"))
    assert renderers.default_backend() == "raycast"


# All 200 states, or as many as are quick.
@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_parity_with_the_ray_caster(count: int) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    loaded = scene.load("insert")
    prepared = rendering_protocol.prepare(loaded)
    poses = gallery.random_poses(loaded, count, seed=11)
    drawn = visual_randomization.sample_looks(jax.random.key(11), count, loaded)
    sample = {name: np.asarray(value) for name, value in drawn.items()}
    capacity = count // 2
    warp = renderers.make("warp", prepared, capacity=capacity)
    caster = renderers.make("raycast", prepared, threads=1)
    ours = caster.render(poses, sample)
    theirs = warp.render(poses, sample)

    equal_depth = np.abs(ours.depth - theirs.depth) <= 1e-4
    equal_colour = (np.abs(ours.rgb.astype(int) - theirs.rgb) <= 2).all(-1)
    assert equal_depth.mean() >= 0.99
    assert equal_colour.mean() >= 0.99
    # Both draw something: objects and table, light and shadow.
    assert 0.5 < (theirs.depth > 0).mean() < 1
    assert theirs.rgb.std() > 10

    # Shadows come from the same looks, and batches are cut and filled up without a trace.
    off = {**sample, "light_castshadow": np.zeros_like(sample["light_castshadow"])}
    assert (ours.rgb != caster.render(poses, off).rgb).any(-1).mean() > 0.01
    few = capacity - 5
    part = warp.render(poses[:few], {name: value[:few] for name, value in sample.items()})
    np.testing.assert_array_equal(part.rgb, theirs.rgb[:few])
    np.testing.assert_array_equal(part.depth, theirs.depth[:few])
    assert warp.render(poses[:0]).rgb.shape == (0, 2, 32, 32, 3)
    with pytest.raises(ConfigError, match="poses must be"):
        warp.render(poses[0])


def test_depth_alone_is_the_depth_of_colour_and_depth() -> None:
    prepared, poses, looks = gallery.gallery_scene("twoarm", 2, 4)
    both = renderers.make("warp", prepared).render(poses, looks)
    alone = renderers.make("warp", prepared, outputs=("depth",)).render(poses, looks)
    assert alone.rgb is None
    assert (alone.depth > 0).any()
    assert np.array_equal(alone.depth, both.depth)
