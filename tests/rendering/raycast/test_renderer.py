"""The ray caster: laws of optics by hand, agreement of both casters, and robustness."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from alohas2r.errors import BackendUnavailable, ConfigError
from alohas2r.rendering import gallery, visual_randomization
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.protocol import GROUPS
from alohas2r.rendering.raycast import intersect, tiles
from alohas2r.rendering.raycast.renderer import RaycastRenderer
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles
jax = pytest.importorskip("jax")

# A camera at the origin that looks along -z at a wall, an occluder that slides, and one lamp.
WALL = """
<mujoco>
  <visual><headlight ambient="0.1 0.1 0.1" diffuse="0.2 0.2 0.2" specular="0 0 0"/></visual>
  <asset><material name="dull" specular="0" shininess="0" rgba="0.5 0.4 0.3 1"/></asset>
  <worldbody>
    <camera name="eye" pos="0 0 0" fovy="60"/>
    <light name="lamp" type="directional" pos="0 0 1" dir="0 0 -1" diffuse="0.4 0.4 0.4"
      ambient="0 0 0" specular="0 0 0"/>
    <geom name="wall" type="plane" pos="0 0 -2" size="0 0 1" material="dull"/>
    <body name="slider">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="z" type="slide" axis="0 0 1"/>
      <geom name="block" type="box" size="0.1 0.1 0.1" rgba="0.5 0.4 0.3 1" material="dull"/>
    </body>
  </worldbody>
</mujoco>
"""
FAR_AWAY, NEAR = [50.0, 0.0], [0.0, -1.0]  # the block's x and z


@pytest.fixture(scope="module")
def wall() -> RaycastRenderer:
    return RaycastRenderer(mujoco.MjSpec.from_string(WALL), 16, 16, threads=1)


@pytest.fixture(scope="module")
def wrists() -> RaycastRenderer:
    return RaycastRenderer(scene.load("insert"), threads=2)


def sample(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    loaded = scene.load("insert")
    drawn = visual_randomization.sample_looks(jax.random.key(3), count, loaded)
    return gallery.random_poses(loaded, count), {k: np.asarray(v) for k, v in drawn.items()}


def alike(a: rendering_protocol.Frames, b: rendering_protocol.Frames) -> tuple[float, float]:
    """Returns shares of pixels with equal depth (0.1 mm) and colour (2 of 255)."""
    colour = np.abs(a.rgb.astype(int) - b.rgb).max(-1)
    return float((np.abs(a.depth - b.depth) <= 1e-4).mean()), float((colour <= 2).mean())


def test_wall_has_planar_depth_and_lambert_colour(wall: RaycastRenderer) -> None:
    rgb, depth = wall.render(np.array([FAR_AWAY]))
    np.testing.assert_allclose(depth, 2, rtol=1e-5)
    x, y = tiles.pinhole(wall.prepared.model, 0, 16, 16)
    cosine = 1 / np.sqrt(x[None] ** 2 + y[:, None] ** 2 + 1)
    np.testing.assert_allclose(x, -x[::-1], atol=1e-12)
    # The headlight and the lamp shine along the optical axis, at right angles to the wall.
    assert cosine.min() < 0.8
    light = 0.1 + 0.2 + 0.4
    expected = np.floor(np.array([0.5, 0.4, 0.3]) * light * 255)
    np.testing.assert_array_equal(rgb[0, 0], np.broadcast_to(expected, (16, 16, 3)))


def test_block_is_seen_where_it_stands(wall: RaycastRenderer) -> None:
    _, depth = wall.render(np.array([NEAR, FAR_AWAY]))
    x, y = tiles.pinhole(wall.prepared.model, 0, 16, 16)
    front = 0.9  # of the block's near face
    inside = (np.abs(x[None]) * front < 0.1) & (np.abs(y[:, None]) * front < 0.1)
    np.testing.assert_allclose(depth[0, 0][inside], front, rtol=1e-5)
    np.testing.assert_allclose(depth[0, 0][~inside & (depth[0, 0] > 1.5)], 2, rtol=1e-5)
    assert inside.sum() == (depth[0, 0] < 1.5).sum() > 0
    np.testing.assert_allclose(depth[1], 2, rtol=1e-5)


def test_rows_go_down_and_columns_right(wall: RaycastRenderer) -> None:
    _, depth = wall.render(np.array([[0.4, -1.0]]))
    rows, columns = np.nonzero(depth[0, 0] < 1.5)
    assert columns.min() > 8
    assert abs(rows.mean() - 7.5) < 0.6


def test_shadow_leaves_three_tenths_of_the_lamp(wall: RaycastRenderer) -> None:
    # The lamp shines along (1, 0, -1): the block at x = -0.9, z = -1 throws its shadow to x = 0.1.
    aim = np.array([[[1, 0, -1]]]) / np.sqrt(2)
    pose = np.array([[-0.9, -1.0]])
    lit = wall.render(pose, {"light_dir": aim, "light_castshadow": np.zeros((1, 1), bool)})
    dark = wall.render(pose, {"light_dir": aim, "light_castshadow": np.ones((1, 1), bool)})
    base, slope = np.array([0.5, 0.4, 0.3]), np.sqrt(0.5)
    x, y = tiles.pinhole(wall.prepared.model, 0, 16, 16)
    spot = np.argmin(np.abs(y)), np.argmin(np.abs(x * 2 - 0.1))
    full, left = 0.3 + 0.4 * slope, 0.3 + 0.4 * slope * 0.3
    np.testing.assert_array_equal(lit.rgb[0, 0][spot], np.floor(base * full * 255))
    np.testing.assert_array_equal(dark.rgb[0, 0][spot], np.floor(base * left * 255))
    np.testing.assert_array_equal(lit.depth, dark.depth)
    assert (dark.rgb <= lit.rgb).all()
    changed = (dark.rgb != lit.rgb).any(-1)[0, 0]
    wall_only = dark.depth[0, 0] > 1.5
    assert 0 < (changed & wall_only).sum() < 10  # a 0.2 m square at 2 m


def test_camera_inside_a_geom_sees_through_it(wall: RaycastRenderer) -> None:
    _, depth = wall.render(np.array([[0.0, 0.0]]))
    np.testing.assert_allclose(depth, 2, rtol=1e-5)


def test_what_is_behind_the_camera_is_not_seen(wall: RaycastRenderer) -> None:
    behind, away = wall.render(np.array([[0.0, 1.0], [50.0, 1.0]]), no_shadow(2)).depth
    np.testing.assert_array_equal(behind, away)


def no_shadow(count: int) -> dict[str, np.ndarray]:
    return {"light_castshadow": np.zeros((count, 1), bool)}


def test_not_a_number_is_black_and_stays_alone(wall: RaycastRenderer) -> None:
    rgb, depth = wall.render(np.array([NEAR, [np.nan, 0.0], NEAR]))
    np.testing.assert_array_equal(depth[0], depth[2])
    seen = depth[1, 0] > 0  # the wall does not depend on the pose
    np.testing.assert_allclose(depth[1, 0][seen], 2, rtol=1e-5)
    assert np.isfinite(depth).all()
    np.testing.assert_array_equal(rgb[0], rgb[2])


def test_looks_change_their_own_geom_only(wall: RaycastRenderer) -> None:
    rgba = np.repeat(wall.prepared.nominal["geom_rgba"][None], 2, 0)
    rgba[1, 1] = [1, 0, 0, 1]
    (plain, red), depth = wall.render(np.array([NEAR, NEAR]), {"geom_rgba": rgba})
    block = depth[0, 0] < 1.5
    np.testing.assert_array_equal(plain[0][~block], red[0][~block])
    assert (red[0][block][:, 1:] == 0).all()
    assert (red[0][block][:, 0] > plain[0][block][:, 0]).all()


def test_moving_the_camera_is_moving_the_world(wall: RaycastRenderer) -> None:
    still = wall.render(np.array([[0.25, -1.0]]), no_shadow(1))
    moved = wall.render(
        np.array([[0.0, -1.0]]), {**no_shadow(1), "cam_pos": np.array([[[-0.25, 0, 0]]])}
    )
    np.testing.assert_allclose(still.depth, moved.depth, atol=1e-5)


def test_size_of_a_geom_is_a_look(wall: RaycastRenderer) -> None:
    size = np.repeat(wall.prepared.model.geom_size[None], 2, 0)
    size[1, 1] = [0.1, 0.1, 0.3]
    _, depth = wall.render(np.array([NEAR, NEAR]), {"geom_size": size})
    assert depth[0].min() == pytest.approx(0.9, abs=1e-5)
    assert depth[1].min() == pytest.approx(0.7, abs=1e-5)


def test_zero_environments(wall: RaycastRenderer) -> None:
    rgb, depth = wall.render(np.zeros((0, 2)))
    assert rgb.shape == (0, 1, 16, 16, 3)
    assert depth.shape == (0, 1, 16, 16)


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (10**6, 8)])
def test_absurd_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        RaycastRenderer(mujoco.MjSpec.from_string(WALL), *size)


def test_too_many_pictures_are_refused(wall: RaycastRenderer) -> None:
    with pytest.raises(ConfigError, match="at a time"):
        wall.render(np.broadcast_to(np.zeros(2), (10**8, 2)))


@pytest.mark.parametrize(
    ("poses", "looks_", "message"),
    [
        (np.zeros(2), None, "poses must be"),
        (np.zeros((1, 3)), None, "poses must be"),
        (np.zeros((2, 2)), {"geom_rgba": np.zeros((1, 2, 4))}, "geom_rgba"),
        (np.zeros((1, 2)), {"light_dir": np.zeros((1, 2, 3))}, "light_dir"),
    ],
)
def test_wrong_shapes_are_refused(
    wall: RaycastRenderer, poses: np.ndarray, looks_: dict[str, np.ndarray] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        wall.render(poses, looks_)


def test_unknown_names_are_refused() -> None:
    spec = mujoco.MjSpec.from_string(WALL)
    with pytest.raises(ConfigError, match="eye"):
        rendering_protocol.prepare(spec, ["eyes"])
    with pytest.raises(ConfigError, match="vector"):
        RaycastRenderer(spec, caster="vectr")
    with pytest.raises(ConfigError, match="raycast"):
        renderers.make("raycasting", spec)
    with pytest.raises(ConfigError, match="nothing to draw"):
        rendering_protocol.prepare(spec, groups=[5])


# Every kind of geom, on bodies that fly about; spots, a point light and a sun.
ZOO = """
<mujoco>
  <visual><headlight ambient="0.1 0.1 0.1" diffuse="0.1 0.2 0.3" specular="0.2 0.2 0.2"/></visual>
  <asset>
    <material name="shiny" specular="0.9" shininess="0.7" emission="0.1" rgba="0.3 0.6 0.2 1"/>
    <mesh name="wedge" vertex="-0.2 -0.1 -0.1  0.2 -0.1 -0.1  -0.2 0.1 -0.1  0.2 0.1 -0.1  0 -0.1 0.2  0 0.1 0.15"/>
  </asset>
  <worldbody>
    <camera name="wide" pos="0 -1.2 0.5" xyaxes="1 0 0 0 0.4 1" fovy="50" resolution="24 20"/>
    <camera name="lens" pos="0.2 -1 0.8" xyaxes="1 0.1 0 0 0.7 1" sensorsize="0.002 0.002"
      focal="0.002 0.0021" principal="0.0001 0.0002" resolution="24 20"/>
    <light name="sun" type="directional" pos="0 0 2" dir="0.3 0.2 -1" diffuse="0.4 0.3 0.3" specular="0.3 0.3 0.3"/>
    <light name="spot" type="spot" pos="0.5 -0.5 1.5" dir="-0.3 0.3 -1" cutoff="35" exponent="3"
      attenuation="0.5 0.2 0.3" diffuse="0.6 0.6 0.5" specular="0.4 0.4 0.4" ambient="0.05 0 0"/>
    <light name="bulb" type="point" pos="-0.6 0.3 0.9" diffuse="0.3 0.3 0.5" specular="0.1 0.1 0.1"/>
    <geom name="floor" type="plane" size="1 1 0.1" rgba="0.4 0.4 0.5 1"/>
    <body><freejoint/><geom type="box" size="0.1 0.15 0.05" rgba="0.8 0.2 0.1 1"/></body>
    <body><freejoint/><geom type="sphere" size="0.12" material="shiny"/></body>
    <body><freejoint/><geom type="capsule" size="0.05 0.15" rgba="0.1 0.4 0.9 1"/></body>
    <body><freejoint/><geom type="cylinder" size="0.08 0.12" material="shiny"/></body>
    <body><freejoint/><geom type="ellipsoid" size="0.15 0.08 0.05" rgba="0.9 0.9 0.2 1"/></body>
    <body><freejoint/><geom type="mesh" mesh="wedge" rgba="0.7 0.3 0.8 1"/></body>
  </worldbody>
</mujoco>
"""


def zoo_poses(count: int) -> np.ndarray:
    random = np.random.default_rng(5)
    poses = np.zeros((count, 6, 7))
    poses[..., :3] = random.uniform([-0.5, -0.4, 0.05], [0.5, 0.5, 0.6], (count, 6, 3))
    turn = random.normal(size=(count, 6, 4))
    poses[..., 3:] = turn / np.linalg.norm(turn, axis=-1, keepdims=True)
    return poses.reshape(count, -1)


@pytest.fixture(scope="module")
def zoo() -> RaycastRenderer:
    return RaycastRenderer(mujoco.MjSpec.from_string(ZOO), 24, 20, threads=1)


def test_every_kind_of_geom_agrees_with_mujoco(zoo: RaycastRenderer) -> None:
    poses = zoo_poses(24)
    exact = RaycastRenderer(zoo.prepared, 24, 20, threads=1, caster="mujoco", batch=8)
    assert (zoo.caster, exact.caster) == ("vector", "mujoco")
    depth, colour = alike(zoo.render(poses), exact.render(poses))
    assert depth > 0.998
    assert colour > 0.99


def test_pictures_do_not_depend_on_batch_and_threads(wrists: RaycastRenderer) -> None:
    poses, drawn = sample(40)  # more than one batch
    whole = wrists.render(poses, drawn)
    again = wrists.render(poses, drawn)
    np.testing.assert_array_equal(whole.rgb, again.rgb)
    for part in (slice(0, 1), slice(7, 12), slice(33, 40)):
        some = wrists.render(poses[part], {name: value[part] for name, value in drawn.items()})
        np.testing.assert_array_equal(some.rgb, whole.rgb[part])
        np.testing.assert_array_equal(some.depth, whole.depth[part])
    wrists._workers.append(wrists._workers.pop(0))
    kept, wrists._workers = wrists._workers, wrists._workers[:1]
    alone = wrists.render(poses, drawn)
    wrists._workers = kept
    np.testing.assert_array_equal(alone.rgb, whole.rgb)
    np.testing.assert_array_equal(alone.depth, whole.depth)


def test_wrist_views_agree_with_mujoco(wrists: RaycastRenderer) -> None:
    poses, drawn = sample(16)
    exact = RaycastRenderer(wrists.prepared, threads=1, caster="mujoco", batch=16)
    depth, colour = alike(wrists.render(poses, drawn), exact.render(poses, drawn))
    assert depth > 0.999
    assert colour > 0.99


@pytest.mark.parametrize(
    ("caster", "side"),
    [
        *(("vector", 32), ("mujoco", 32), ("mujoco", 45)),
        pytest.param("vector", 45, marks=pytest.mark.long),  # takes long to compile
    ],
)
def test_depth_alone_is_the_depth_of_colour_and_depth(caster: str, side: int) -> None:
    prepared, poses, looks = gallery.gallery_scene("twoarm", 5, 4)
    size = {"width": side, "height": side, "caster": caster}
    both = renderers.make("raycast", prepared, **size).render(poses, looks)
    alone = renderers.make("raycast", prepared, **size, outputs=("depth",)).render(poses, looks)
    assert alone.rgb is None
    assert (alone.depth > 0).any()
    assert np.array_equal(alone.depth, both.depth)


def test_unknown_outputs_are_refused() -> None:
    prepared = rendering_protocol.prepare(gallery.cartpole())
    with pytest.raises(ConfigError, match=r"outputs = \('rgb',\) must be .*'depth'"):
        renderers.make("raycast", prepared, outputs=("rgb",))


def test_hidden_and_unseen_geoms_are_left_out(wrists: RaycastRenderer) -> None:
    prepared = wrists.prepared
    model = scene.load("insert").model
    assert prepared.model.ngeom == np.isin(model.geom_group, GROUPS).sum() < model.ngeom
    assert prepared.model.ngeom <= 40
    names = {model.geom(int(geom)).name for geom in prepared.geoms}
    assert {"table", "red_peg", "socket-W"} <= names
    assert prepared.cameras == rendering_protocol.CAMERAS


def test_lights_of_the_prepared_model_are_fixed(wrists: RaycastRenderer) -> None:
    assert (wrists.prepared.model.light_mode == mujoco.mjtCamLight.mjCAMLIGHT_FIXED).all()


@pytest.mark.alone  # to the bit as users compile it, which tests beside those that measure time do not
def test_large_pictures_are_drawn_in_strips(
    zoo: RaycastRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    poses = zoo_poses(2)
    whole = zoo.render(poses)
    monkeypatch.setattr(tiles, "MOST_TILES", 10)  # of 2 cameras x 9 tiles
    strips = RaycastRenderer(zoo.prepared, 24, 20, threads=1)
    assert strips._rays.x.shape[0] == 2
    again = strips.render(poses)
    np.testing.assert_array_equal(again.rgb, whole.rgb)
    np.testing.assert_array_equal(again.depth, whole.depth)


# A tetrahedron with a dent: not convex.
DENTED = """
<mujoco>
  <asset><mesh name="dent" vertex="0 0 0  1 0 0  0 1 0  0 0 1  0.25 0.25 0.25"
    face="0 2 1 0 1 3 0 3 2 1 2 4 2 3 4 3 1 4"/></asset>
  <worldbody>
    <camera name="eye" pos="1 1 1" xyaxes="-1 1 0 -0.5 -0.5 1"/>
    <body><freejoint/><geom type="mesh" mesh="dent" contype="0" conaffinity="0" mass="1"/></body>
  </worldbody>
</mujoco>
"""


def test_meshes_that_are_not_convex_take_the_other_caster() -> None:
    spec = mujoco.MjSpec.from_string(DENTED)
    renderer = RaycastRenderer(spec, 8, 8, threads=1)
    assert renderer.caster == "mujoco"
    assert (renderer.render(np.array([renderer.prepared.model.qpos0])).depth > 0).any()
    with pytest.raises(ConfigError, match="not convex"):
        RaycastRenderer(spec, 8, 8, caster="vector")


def test_half_spaces_of_a_cube() -> None:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float)
    spec = mujoco.MjSpec()
    spec.add_mesh(name="cube", uservert=corners.ravel())
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="cube")
    model = spec.compile()
    planes = intersect.half_spaces(model.mesh_vert, model.mesh_face)
    assert planes is not None
    assert len(planes) == 6  # two triangles each
    np.testing.assert_allclose(sorted(planes[:, 3]), [0.5, 0.5, 1, 1, 1.5, 1.5], atol=1e-6)
    np.testing.assert_allclose(np.abs(planes[:, :3]).sum(1), 1, atol=1e-6)
    assert intersect.half_spaces(model.mesh_vert, model.mesh_face[:-1]) is None  # a hole


def test_light_at_the_surface_is_finite(wall: RaycastRenderer) -> None:
    # A directional lamp has no place; the zoo's bulb is put on the floor, into a sphere, and onto it.
    spec = mujoco.MjSpec.from_string(
        "<mujoco><worldbody><camera name='eye' pos='0 0 1'/><light name='bulb' type='point' pos='0 0 0'/>"
        "<geom type='plane' size='0 0 1'/><body><freejoint/><geom type='sphere' size='0.2'/></body>"
        "</worldbody></mujoco>"
    )
    renderer = RaycastRenderer(spec, 8, 8, threads=1)
    poses = np.array([[0, 0, 0.2, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 0, 5, 1, 0, 0, 0]], float)
    exact = RaycastRenderer(renderer.prepared, 8, 8, threads=1, caster="mujoco", batch=3)
    ours, theirs = renderer.render(poses), exact.render(poses)
    assert np.isfinite(ours.depth).all()
    assert alike(ours, theirs)[1] > 0.95


def test_pictures_without_opengl_come_from_the_ray_caster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr("alohas2r.rendering.offscreen._context", refuse)
    chosen = renderers.for_pictures(mujoco.MjSpec.from_string(WALL), width=8, height=8)
    assert chosen.name == "raycast"


def refuse(*_: object) -> None:
    raise BackendUnavailable("no OpenGL")
