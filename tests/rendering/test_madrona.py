"""The adapter for Madrona-MJX, against a stand-in with the interface that Madrona publishes."""

from __future__ import annotations

import sys
import types
from typing import Any

import mujoco
import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import registry as renderers
from alohas2r.rendering import visual_randomization

jax = pytest.importorskip("jax")

# Two cameras that ride on a slider, and a coloured ball that stays.
RIDE = """
<mujoco>
  <worldbody>
    <light name="lamp" pos="0 0 2"/>
    <geom name="ball" size="0.1" rgba="0.2 0.4 0.6 1"/>
    <geom name="hidden" size="0.1" group="4"/>
    <body><joint type="slide" axis="0 0 1"/><geom size="0.1" mass="1"/>
      <camera name="low"/><camera name="high" pos="0 0 1"/></body>
  </worldbody>
</mujoco>
"""


def ride() -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(RIDE)


class BatchRenderer:
    """Madrona's interface as published; its pictures show what arrived at it."""

    made: dict[str, Any]

    def __init__(
        self,
        m: Any,
        gpu_id: int,
        num_worlds: int,
        batch_render_view_width: int,
        batch_render_view_height: int,
        enabled_geom_groups: Any = None,
        enabled_cameras: Any = None,
        add_cam_debug_geo: bool = False,
        use_rasterizer: bool = False,
        viz_gpu_hdls: Any = None,
    ):
        type(self).made = dict(locals())
        self.shape = (len(enabled_cameras), batch_render_view_height, batch_render_view_width)
        self.cameras = np.asarray(enabled_cameras)

    def init(self, state: Any, model: Any) -> tuple[Any, Any, Any]:
        self.red = model.geom_rgba[0, 0]
        return jax.numpy.zeros((), bool), *self._pictures(state, model.geom_rgba[0, 0])

    def render(self, token: Any, state: Any) -> tuple[Any, Any, Any]:
        return token, *self._pictures(state, 0.0)

    def _pictures(self, state: Any, red: Any) -> tuple[Any, Any]:
        height = state.cam_xpos[self.cameras, 2]
        depth = jax.numpy.broadcast_to(height[:, None, None, None], (*self.shape, 1))
        colour = jax.numpy.full((*self.shape, 4), 255 * red).astype(np.uint8)
        return colour, depth


@pytest.fixture
def madrona(monkeypatch: pytest.MonkeyPatch) -> type[BatchRenderer]:
    package, module = types.ModuleType("madrona_mjx"), types.ModuleType("madrona_mjx.renderer")
    module.BatchRenderer = BatchRenderer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "madrona_mjx", package)
    monkeypatch.setitem(sys.modules, "madrona_mjx.renderer", module)
    return BatchRenderer


def test_absent_madrona_is_explained() -> None:
    if "madrona_mjx" in sys.modules:
        pytest.skip("Madrona-MJX is installed")
    with pytest.raises(BackendUnavailable, match=r"git clone .*madrona_mjx.*CMake"):
        renderers.make("madrona", ride())


def test_other_interfaces_are_refused(
    madrona: type[BatchRenderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: Any, gpu_id: int) -> None: ...

    monkeypatch.setattr(sys.modules["madrona_mjx.renderer"], "BatchRenderer", other)
    with pytest.raises(BackendUnavailable, match=r"not known.* m, num_worlds"):
        renderers.make("madrona", ride())


def test_poses_and_looks_arrive(madrona: type[BatchRenderer]) -> None:
    renderer = renderers.make("madrona", ride(), width=6, height=4)
    poses = np.array([[0.1], [0.2], [0.3]])
    table = (visual_randomization.Look("geom_rgba", "scale", (0,), (1,), ("ball",), (0,)),)
    drawn = visual_randomization.sample_looks(jax.random.key(0), 3, ride().compile(), table)
    sample = {name: np.asarray(value) for name, value in drawn.items()}
    rgb, depth = renderer.render(poses, sample)
    assert rgb.shape == (3, 2, 4, 6, 3)
    assert (rgb.dtype, depth.dtype) == (np.uint8, np.float32)
    assert madrona.made["num_worlds"] == 3
    assert (madrona.made["batch_render_view_width"], madrona.made["batch_render_view_height"]) == (
        6,
        4,
    )
    np.testing.assert_array_equal(madrona.made["enabled_cameras"], renderer.prepared.camera_ids)
    # Every environment has its own colours and its own cameras.
    red = np.floor(np.float32(sample["geom_rgba"][:, 0, 0]) * np.float32(255))
    np.testing.assert_array_equal(rgb[:, 0, 0, 0, 0], red)
    np.testing.assert_allclose(depth[:, :, 0, 0], np.add(poses, [[0, 1]]), atol=1e-6)
    # New poses alone do not start Madrona anew; new looks do.
    again = renderer.render(poses[::-1], sample)
    assert (again.rgb == 0).all()
    sample["geom_rgba"] = sample["geom_rgba"][::-1]
    np.testing.assert_array_equal(renderer.render(poses, sample).rgb[:, 0, 0, 0, 0], red[::-1])
    with pytest.raises(ConfigError, match="3 environments at a time"):
        renderer.render(poses[:2])
