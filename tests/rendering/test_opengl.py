"""OpenGL's pictures of batches: depth and silhouettes agree with the ray caster."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import gallery
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.opengl import OpenGLBatchRenderer
from alohas2r.sim import scene

pytest.importorskip("jax")
SIZE = 48


@pytest.fixture(scope="module")
def drawn() -> Iterator[OpenGLBatchRenderer]:
    try:
        with OpenGLBatchRenderer(scene.load("insert"), SIZE, SIZE) as renderer:
            yield renderer
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_depth_alone_is_the_depth_of_colour_and_depth(drawn: OpenGLBatchRenderer) -> None:
    poses = gallery.random_poses(scene.load("insert"), 3, seed=5)
    both = drawn.render(poses)
    with OpenGLBatchRenderer(drawn.prepared, SIZE, SIZE, outputs=("depth",)) as renderer:
        alone = renderer.render(poses)
    assert alone.rgb is None
    assert (alone.depth > 0).any()
    assert np.array_equal(alone.depth, both.depth)


def test_depth_agrees_within_the_precision_of_the_buffer(drawn: OpenGLBatchRenderer) -> None:
    poses = gallery.random_poses(scene.load("insert"), 12, seed=2)
    theirs = drawn.render(poses)
    ours = renderers.make("raycast", drawn.prepared, width=SIZE, height=SIZE, shadows=False).render(
        poses
    )
    both = (ours.depth > 0) & (theirs.depth > 0)
    # A 24-bit buffer, linear in 1 / depth between the planes; and 0.1 mm where its pixel's centre differs.
    model = drawn.prepared.model
    step = ours.depth**2 / (model.vis.map.znear * model.stat.extent) / 2**23
    equal = np.abs(ours.depth - theirs.depth) <= step + 2e-4
    assert (equal | ~both)[both].mean() > 0.98
    assert ((ours.depth > 0) == (theirs.depth > 0)).mean() > 0.98
    assert both.mean() > 0.5


def test_looks_and_empty_batches(drawn: OpenGLBatchRenderer) -> None:
    poses = gallery.random_poses(scene.load("insert"), 2)[[0, 0]]
    model = scene.load("insert").model
    rgba = np.repeat(model.geom_rgba[None], 2, 0)
    rgba[0, :, :3], rgba[1, :, :3] = [0.9, 0, 0], [0, 0.9, 0]
    red, green = drawn.render(poses, {"geom_rgba": rgba}).rgb.astype(int).sum((1, 2, 3))
    assert red[0] > 3 * red[1]
    assert green[1] > 3 * green[0]
    again = drawn.render(poses)
    np.testing.assert_array_equal(again.rgb[0], again.rgb[1])  # and no look stays behind
    assert drawn.render(poses[:0]).depth.shape == (0, 2, SIZE, SIZE)
    unknown = drawn.render(np.full_like(poses[:1], np.nan))
    assert not unknown.depth.any()


def test_absurd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="out of range"):
        OpenGLBatchRenderer(scene.load("insert"), 0, 5)


def test_without_opengl_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", None)  # as if it were not installed
    with pytest.raises(BackendUnavailable, match=r"osmesa: .*apt-get install"):
        OpenGLBatchRenderer(scene.load("insert"), 8, 8)
    picture = renderers.for_pictures(scene.load("insert"), width=8, height=8)
    assert picture.name == "raycast"
