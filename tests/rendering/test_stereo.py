"""Right imagers: a rigid pair whose disparity is that of the depth, in every renderer."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from opengl_cases import skip_without_opengl

from alohas2r.embodiment.camera import BASELINE_M
from alohas2r.errors import ConfigError
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.rendering import stereo, visual_randomization
from alohas2r.rendering.raycast.renderer import RaycastRenderer
from alohas2r.sim import scene

jax = pytest.importorskip("jax")

pytestmark = pytest.mark.compiles
COUNT, SIDE = 3, 16
# A turned camera above the edge of a step, which lies across its picture.
STEP = """
<mujoco>
  <worldbody>
    <camera name="eye" pos="0.3 0.1 0" quat="0.9238795 0 0 0.3826834" fovy="58"/>
    <geom name="far" type="plane" pos="0 0 -0.4" size="0 0 1" rgba="1 0 0 1"/>
    <body pos="0.3 0.1 -0.2" quat="0.9238795 0 0 0.3826834">
      <geom name="near" type="box" pos="-0.5 0 -0.1" size="0.5 1 0.1" rgba="0 0 1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def drawn_looks(name: str) -> dict[str, np.ndarray]:
    """Looks of a scene with errors of the rig."""
    loaded = scene.load(name)
    drawn = visual_randomization.sample_looks(jax.random.key(5), COUNT, loaded)
    keys = jax.random.split(jax.random.key(6), COUNT)
    rig = jax.vmap(lambda key: stereo.sample_rig(key, len(loaded.arms)))(keys)
    return {name: np.asarray(value) for name, value in (drawn | rig).items()}


@pytest.fixture(scope="module")
def picking() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    loaded = scene.load("pick")
    draw = np.random.default_rng(0)
    poses = np.repeat(loaded.home_qpos[None], COUNT, 0)
    poses[:, loaded.arms[0].qpos[:6]] += draw.uniform(-0.2, 0.2, (COUNT, 6))
    return poses, drawn_looks("pick")


@pytest.fixture(scope="module")
def paired() -> renderers.Renderer:
    return renderers.make_renderer("raycast", SIDE, threads=1, drawn="pick", paired=True)


def test_the_disparity_of_an_edge_is_focal_length_times_baseline_over_depth() -> None:
    spec, side = mujoco.MjSpec.from_string(STEP), 240
    drawn = RaycastRenderer(spec, side, side, stereo.cameras(["eye"]), caster="mujoco", threads=1)
    depth = drawn.render(np.zeros((1, 0))).depth[0]
    # The step's edge lies at the left picture's centre; what is left of it is nearer.
    edge = [(picture < 0.2001).sum(1).mean() for picture in depth]
    assert edge[0] == pytest.approx(side / 2, abs=1)
    focal = side / 2 / np.tan(np.radians(29))
    assert edge[0] - edge[1] == pytest.approx(focal * BASELINE_M / 0.2, abs=0.6)
    assert np.abs(np.diff(depth, axis=1)).max() < 1e-6  # and not the least bit up or down


def test_a_pair_is_rigid_however_its_mount_is_off() -> None:
    looks = drawn_looks("insert")
    prepared = rendering_protocol.prepare(
        scene.load("insert"), stereo.cameras(rendering_protocol.CAMERAS)
    )
    assert prepared.cameras == tuple(
        f"wrist_cam_{name}" for name in ("left", "right", "left_r", "right_r")
    )
    values = rendering_protocol.check_looks(prepared, looks, COUNT)
    ids = prepared.camera_ids
    for left, right in ((ids[0], ids[2]), (ids[1], ids[3])):
        for row in range(COUNT):
            pos, quat = values["cam_pos"][row], values["cam_quat"][row].astype(float)
            turn, back, between = np.zeros(9), np.zeros(4), np.zeros(4)
            mujoco.mju_quat2Mat(turn, quat[left])
            inside = turn.reshape(3, 3).T @ (pos[right] - pos[left])
            off = np.abs(inside - [BASELINE_M, 0, 0])
            assert 1e-6 < off.max() <= stereo.PLACE_M * 1.001
            mujoco.mju_negQuat(back, quat[left])
            mujoco.mju_mulQuat(between, back, quat[right])
            angle = np.degrees(2 * np.linalg.norm(between[1:]))
            assert 1e-4 < angle <= stereo.TURN_DEG * 1.01
    # The scene's own cameras are where they were given.
    assert prepared.rig is not None
    own = values["cam_pos"][:, prepared.rig.scene_cameras]
    np.testing.assert_array_equal(own, looks["cam_pos"])


def test_left_pictures_do_not_change_and_both_casters_agree(paired, picking) -> None:
    poses, looks = picking
    both, alone = (
        renderers.make_renderer("exact", SIDE, threads=1, drawn="pick", paired=paired)
        for paired in (True, False)
    )
    exact, left = both.render(poses, looks), alone.render(poses, looks)
    np.testing.assert_array_equal(exact.rgb[:, :1], left.rgb)
    np.testing.assert_array_equal(exact.depth[:, :1], left.depth)
    assert (exact.rgb[:, 1:] != exact.rgb[:, :1]).any(-1).mean() > 0.2
    same = paired.render(poses, looks)
    assert (np.abs(same.depth - exact.depth) <= 1e-4).mean() > 0.99
    assert (np.abs(same.rgb.astype(int) - exact.rgb) <= 2).mean() > 0.99


@pytest.mark.parametrize("name", [pytest.param("warp", marks=pytest.mark.slow), "opengl"])
def test_other_renderers_draw_the_same_pair(name: str, paired, picking) -> None:
    poses, looks = picking
    if name == "warp":
        pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    else:
        skip_without_opengl()
    drawn = renderers.make_renderer(name, SIDE, drawn="pick", paired=True).render(poses, looks)
    near = np.abs(paired.render(poses, looks).depth - drawn.depth) <= 1e-3
    assert near[:, 1:].mean() > 0.97


def test_luma_is_that_of_the_standard_with_numpy_and_jax() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8)
    wanted = np.rint(rgb @ [0.299, 0.587, 0.114])
    assert np.abs(stereo.luma(rgb) - wanted).max() <= 1e-9 + (wanted % 1 == 0.5).any()
    np.testing.assert_array_equal(stereo.luma(rgb), stereo.luma(jax.numpy.asarray(rgb)))
    assert stereo.luma(np.full((1, 3), 255, np.uint8))[0] == 255


def test_what_is_wrong_is_said(paired, picking) -> None:
    poses, looks = picking
    with pytest.raises(ConfigError, match=r"rig_pos.*must be \(3, 1, 3\)"):
        paired.render(poses, looks | {stereo.PLACE: np.zeros((COUNT, 2, 3))})
    with pytest.raises(ConfigError, match="cam_pos"):
        paired.render(poses, looks | {"cam_pos": looks["cam_pos"][:, :0]})
    with pytest.raises(ConfigError, match="no camera 'nothing_r'"):
        rendering_protocol.prepare(scene.load("pick"), ["nothing_r"])
    with pytest.raises(ConfigError, match="left imagers alone"):
        renderers.make_renderer("exact", SIDE, looks="transfer", paired=True)
