"""The looks "transfer": what is drawn, what it looks like, what sensors make of it."""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
import pytest

from alohas2r.core.types import Untyped
from alohas2r.errors import ConfigError
from alohas2r.rendering import gallery
from alohas2r.rendering import protocol as rendering_protocol
from alohas2r.rendering import registry as renderers
from alohas2r.rendering.looks import draw, nominal, sensor, texture
from alohas2r.rendering.looks.config import (
    CAUSES,
    CLUTTER_KINDS,
    FAMILY_TEXTURES,
    HELD_OUT,
    LOOKS,
    TEXTURES,
    TRAIN,
    CameraRanges,
    ClutterRanges,
    GripperRanges,
    SurfaceRanges,
    TransferConfig,
    find_looks,
)
from alohas2r.rendering.protocol import Frames
from alohas2r.sim import scene
from alohas2r.sim.objects import HALF_LENGTH

pytestmark = pytest.mark.compiles
jax = pytest.importorskip("jax")

COUNT = 256
START = np.array([[-0.2, 0.05], [0.2, -0.05]], np.float32)
Sample = dict[str, np.ndarray]


def sample_of(config: TransferConfig, seed: int = 0) -> Sample:
    start = np.broadcast_to(START, (COUNT, 2, 2))
    key = jax.random.key(seed)
    return draw.sample_looks(key, COUNT, scene.load("insert").model, config, start)


@pytest.fixture(scope="module")
def train() -> Sample:
    return sample_of(TransferConfig())


@pytest.fixture(scope="module")
def held_out() -> Sample:
    return sample_of(TransferConfig(family=HELD_OUT))


def test_the_families_share_no_texture_no_arrangement_and_no_number(
    train: Sample, held_out: Sample
) -> None:
    seen = [{int(kind) for kind in np.unique(s["paint"][..., 0])} - {0} for s in (train, held_out)]
    assert not seen[0] & seen[1]
    for family, kinds in zip((TRAIN, HELD_OUT), seen, strict=True):
        assert {TEXTURES[kind] for kind in kinds} == set(FAMILY_TEXTURES[family])
    # The same key draws other worlds.
    for name in ("cause_table_albedo", "cause_light", "cause_exposure", "cause_fov"):
        assert abs(np.corrcoef(train[name], held_out[name])[0, 1]) < 0.2, name
        assert not np.isin(train[name], held_out[name]).any(), name
    # Things put together of two lie on each other; those of the train family lie on the table.
    resting = [stacked(one) for one in (train, held_out)]
    assert not resting[0].any()
    assert resting[1].any()


def stacked(sample: Sample) -> np.ndarray:
    """Whether the second of each pair of things lies higher than it would on the table."""
    kinds = len(CLUTTER_KINDS)
    place, size = sample["extra_pos"][:, -kinds:], sample["extra_size"][:, -kinds:]
    lowest = np.array(
        [2, 2, 2, 2, 0, 0, 0, 0]
    )  # of a box its half height, of round things the radius
    least = np.take_along_axis(size, lowest[None, :, None], 2)[..., 0]
    most = np.where(np.arange(kinds) < 4, least, size[..., :2].max(-1))
    there = place[..., 2] < 1
    return there & (place[..., 2] > 0.0008 + most + 1e-5)


def test_clutter_keeps_away_from_the_objects(train: Sample) -> None:
    kinds = len(CLUTTER_KINDS)
    place, size = train["extra_pos"][:, -kinds:], train["extra_size"][:, -kinds:]
    there = place[..., 2] < 1
    count = there.sum(1)
    np.testing.assert_array_equal(count, train["cause_clutter"])
    assert count.min() == 0
    assert count.max() >= 7
    radius = np.where(
        np.arange(kinds) < 6, np.hypot(size[..., 0], size[..., 1]), size[..., :2].sum(-1)
    )
    upright = (np.arange(kinds) // 2 == 2) & (train["extra_quat"][:, -kinds:, 1:3] == 0).all(-1)
    radius = np.where(upright, size[..., 0], radius)
    apart = np.linalg.norm(place[:, :, None, :2] - START, axis=-1).min(-1)
    gap = apart - radius - HALF_LENGTH
    assert gap[there].min() >= ClutterRanges().clearance
    np.testing.assert_allclose(np.linalg.norm(train["extra_quat"], axis=-1), 1, atol=1e-5)


def test_ranges_are_kept_and_filled(train: Sample) -> None:
    for name, low, high in (
        ("table_albedo", 0, 1),
        ("light", 0.2, 5),
        ("exposure", 0.2, 5),
        ("depth_scale", 0.98, 1.02),
        ("fov", -3, 3),
        ("principal", 0, 2),
        ("clutter", 0, 8),
    ):
        value = train[f"cause_{name}"]
        assert low - 1e-4 <= value.min(), name
        assert value.max() <= high + 1e-4, name
        spread = np.log(high / low) if low > 0.1 and name != "depth_scale" else high - low
        value = np.log(value) if low > 0.1 and name != "depth_scale" else value
        assert np.ptp(value) > 0.5 * spread, name
    without = train["cause_without_colour"]
    assert 0.01 < (without == 1).mean() < 0.2
    assert 0.01 < (without == 2).mean() < 0.2
    assert train["geom_rgba"].min() >= 0
    assert train["geom_rgba"].max() <= 1


def test_each_cause_is_drawn_by_itself(train: Sample) -> None:
    only = sample_of(TransferConfig(causes=("light", "mount")))
    own = nominal.transfer(scene.load("insert").model)
    for name in ("light", "light_diffuse", "cam_pos", "cam_intrinsic"):
        # Another configuration is another compiled function, which may round its last bit otherwise.
        np.testing.assert_allclose(only[name], train[name], rtol=1e-6, err_msg=name)
    for name in ("paint", "extra_pos", "geom_rgba", "exposure", "table_half"):
        np.testing.assert_array_equal(only[name], np.broadcast_to(own[name], only[name].shape))
    names = [name for name in train if name.startswith("cause_")]
    values = np.array([train[name] for name in names if np.ptp(train[name]) > 0])
    one, other = (names.index(f"cause_{name}") for name in ("light", "exposure"))
    assert abs(np.corrcoef(values)[one, other]) < 0.2


def test_names_of_looks() -> None:
    assert find_looks(True) is find_looks(False) is find_looks("today") is None
    assert find_looks("nominal") == TransferConfig(causes=())
    assert find_looks("transfer held out") == LOOKS["transfer held out"]
    with pytest.raises(ConfigError, match="Did you mean 'transfer'"):
        find_looks("transfr")
    with pytest.raises(ConfigError, match="Unknown cause"):
        TransferConfig(causes=("lights",))
    with pytest.raises(ConfigError, match="Unknown family"):
        TransferConfig(family="test")
    with pytest.raises(ConfigError, match="albedo"):
        SurfaceRanges(albedo=(0.5, 0.4))
    assert len(set(CAUSES)) == len(CAUSES)


# --- Textures.


def test_bars_are_averages() -> None:
    t, width = np.random.default_rng(0).uniform(-3, 3, (2, 50))
    width = np.abs(width) + 0.05
    part = (np.arange(4000) + 0.5) / 4000 - 0.5
    for duty in (0.5, 0.2):
        inside = np.mod(t[:, None] + part * width[:, None], 1) < duty
        np.testing.assert_allclose(texture.bars(t, width, duty), inside.mean(1), atol=2e-3)


@pytest.mark.parametrize("family", [TRAIN, HELD_OUT])
def test_patterns_differ_and_fade_to_one_shade(family: str) -> None:
    u, w = (np.float32(part) for part in np.random.default_rng(1).uniform(-20, 20, (2, 4000)))
    names, shades = FAMILY_TEXTURES[family], []

    def pattern(name: str, width: float) -> np.ndarray:
        kind = np.full(4000, TEXTURES.index(name))
        noises = np.array(texture.NOISES[name], np.float32)
        wide = np.full(4000, width, np.float32)
        seed = np.uint32(7)
        first = texture.noise(u * noises[0], w * noises[1], seed, wide * noises[:2].max())
        second = texture.noise(u * noises[2], w * noises[3], seed + 1, wide * noises[2:].max())
        return np.asarray(texture.pattern(family, kind, u, w, wide, first, second, seed + 2))

    for name in names:
        fine, coarse = pattern(name, 0.01), pattern(name, 8.0)
        assert fine.min() >= 0
        assert fine.max() <= 1
        assert fine.std() > 0.08, name
        # From afar a pattern is its mean; cells of stones keep their shades.
        assert coarse.std() < (0.5 if name in ("dots", "terrazzo") else 0.35) * fine.std(), name
        shades.append(fine)
    alike = np.abs(np.corrcoef(shades)[np.triu_indices(len(names), 1)])
    assert alike.max() < 0.8


# --- Renderers.


@pytest.fixture(scope="module")
def drawn() -> tuple[rendering_protocol.Prepared, np.ndarray, Sample, Frames]:
    prepared, poses, looks = gallery.gallery_scene("insert", 6, 5, find_looks("transfer"))
    assert np.ptp(looks["finger_shift"], 0).min() > 0.002
    looks["light_castshadow"][:] = True
    frames = renderers.make("raycast", prepared, threads=1, batch=6).render(poses, looks)
    return prepared, poses, looks, frames


def test_both_casters_draw_alike(
    drawn: tuple[rendering_protocol.Prepared, np.ndarray, Sample, Frames],
) -> None:
    prepared, poses, looks, ours = drawn
    caster = renderers.make("raycast", prepared, threads=1, batch=6, caster="mujoco")
    theirs = caster.render(poses, looks)
    assert (np.abs(ours.depth - theirs.depth) <= 1e-4).mean() >= 0.99
    assert (np.abs(ours.rgb.astype(int) - theirs.rgb).max(-1) <= 2).mean() >= 0.985
    assert theirs.rgb.std() > 10


def test_fingers_that_look_shifted(
    drawn: tuple[rendering_protocol.Prepared, np.ndarray, Sample, Frames],
) -> None:
    insert = scene.load("insert")
    prepared, poses = drawn[0], np.repeat(insert.home_qpos[None], 4, 0)
    looks = draw.sample_looks(jax.random.key(0), 4, insert.model, TransferConfig(causes=()))
    assert not looks["finger_shift"].any()
    looks["finger_shift"][1:] = 0.012 * np.eye(3)
    depth = renderers.make("raycast", prepared, threads=1, batch=4).render(poses, looks).depth
    away = np.abs(depth - depth[:1]) > 1e-4
    assert not away[:, :, :12].any()  # where the table is, nothing else changes
    near = (depth < 0.16) & (np.arange(32)[:, None] >= 12)
    first = [np.flatnonzero(one.any((0, 2))).min() for one in near]  # rows that the tips reach
    assert first[1] < first[0], "along themselves: farther away from the camera"
    assert near[2].sum() < near[0].sum(), "apart: more of them is out of the picture"
    # Likewise in numbers, for each finger: by 12 mm to its tip, away from the other one, to the camera.
    places = rendering_protocol.check_looks(prepared, looks, 4)["geom_pos"]
    data = mujoco.MjData(insert.model)
    data.qpos[:] = insert.home_qpos
    mujoco.mj_forward(insert.model, data)
    model = prepared.model
    for geom in range(model.ngeom):
        name = model.geom(geom).name
        if not name.endswith(("finger_upper", "finger_lower")):
            continue
        arm, side = name.split("/")[0], name.split("/")[1].split("_")[0]
        other = "right" if side == "left" else "left"
        finger = data.body(f"{arm}/{side}_finger_link")
        moved = (places[1:, geom] - places[0, geom]) @ finger.xmat.reshape(3, 3).T / 0.012
        np.testing.assert_allclose(moved @ moved.T, np.eye(3), atol=1e-5)
        for way, to in (
            (0, data.site(f"{arm}/{side}_fingertip").xpos - finger.xpos),
            (1, finger.xpos - data.body(f"{arm}/{other}_finger_link").xpos),
            (2, data.camera(f"wrist_cam_{arm}").xpos - finger.xpos),
        ):
            assert moved[way] @ to / np.linalg.norm(to) > 0.7, (name, way)
    # The frozen protocol's looks have the fingers where they are.
    held_out = find_looks("transfer held out")
    assert held_out is not None
    assert held_out.grippers.fingers == (0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="fingers"):
        GripperRanges(fingers=(0.1, 0.0, 0.0))


def test_other_looks_and_other_renderers_are_refused(
    drawn: tuple[rendering_protocol.Prepared, np.ndarray, Sample, Frames],
) -> None:
    prepared, poses, looks, _ = drawn
    insert = scene.load("insert")
    plain = rendering_protocol.prepare(insert)
    with pytest.raises(ConfigError, match="other looks"):
        rendering_protocol.check_looks(plain, looks, len(poses))
    held_out = rendering_protocol.prepare(insert, transfer=HELD_OUT)
    with pytest.raises(ConfigError, match="family 'held_out'"):
        rendering_protocol.check_looks(held_out, looks, len(poses))
    with pytest.raises(ConfigError, match="cannot draw the looks"):
        rendering_protocol.refuse_transfer(prepared, "opengl")
    with pytest.raises(ConfigError, match="scene insert"):
        rendering_protocol.prepare(scene.load("pick"), transfer=TRAIN)


# --- Sensors.


def fields_of(count: int, **changes: Untyped) -> Sample:
    fields = {k: np.repeat(v[None], count, 0) for k, v in nominal.sensors().items()}
    fields["radiance"] = np.ones(count, np.float32)
    for name, value in changes.items():
        fields[name] = np.broadcast_to(np.asarray(value, np.float32), fields[name].shape)
    return fields


def sensed(
    rgb: np.ndarray | None,
    depth: np.ndarray | None,
    gain: np.ndarray | None = None,
    first: bool = True,
    config: TransferConfig | None = None,
    noise: bool = True,
    **changes: Untyped,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    some = rgb if rgb is not None else depth
    assert some is not None
    count = len(some)
    keys = jax.random.split(jax.random.key(2), count)
    gain = np.zeros((count, 1), np.float32) if gain is None else gain
    begins = np.full(count, first)
    config = config or TransferConfig()
    run = sensor.compiled(config, noise)
    out = run(keys, rgb, depth, fields_of(count, **changes), gain, begins)
    return tuple(None if part is None else np.asarray(part) for part in out)  # pyright: ignore


def ramp(count: int = 1) -> np.ndarray:
    """Pictures [N, 1, 16, 16, 3] of all shades."""
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    return np.broadcast_to(shades, (count, 1, 16, 16, 3)).copy()


def test_a_perfect_camera_shows_radiance_in_proportion() -> None:
    light = nominal.sensors()["light"]
    rgb, _, _ = sensed(ramp(), None)
    expected = np.clip((ramp() / 255.0) ** 2 * light, 0, 1) * 255
    np.testing.assert_allclose(rgb, expected, atol=0.6)


def test_exposure_is_automatic_and_lags() -> None:
    """The light goes down to a quarter: the gain follows by its share of the way each step."""
    automatic: dict[str, Untyped] = {"automatic": 1.0, "target": 0.3, "lag": 0.25}
    dim = np.full((1, 1, 8, 8, 3), 128, np.uint8)
    _, _, gain = sensed(dim, None, light=1.0, **automatic)
    rgb, _, settled = sensed(dim, None, gain, first=False, light=1.0, **automatic)
    assert rgb.mean() == pytest.approx(0.3 * 255, abs=2)
    assert settled[0, 0] == pytest.approx(gain[0, 0], abs=1e-3)
    dark, _, after = sensed(dim, None, gain, first=False, light=0.25, **automatic)
    assert dark.mean() == pytest.approx(0.075 * 255, abs=2)
    assert (after - gain)[0, 0] == pytest.approx(0.25 * np.log(4), abs=1e-3)


def test_grey_dark_mixed_and_clipped_pictures() -> None:
    colours = np.random.default_rng(3).integers(0, 256, (1, 1, 8, 8, 3)).astype(np.uint8)
    grey, _, _ = sensed(colours, None, grey=1.0, light=1.0)
    assert (np.ptp(grey.astype(int), axis=-1) <= 1).all()
    assert grey.std() > 10
    assert not sensed(colours, None, kept=0.0)[0].any()
    plain, _, _ = sensed(colours, None, light=1.0)
    swapped, _, _ = sensed(colours, None, light=1.0, colours=np.eye(3)[[2, 1, 0]])
    np.testing.assert_allclose(swapped[..., ::-1].astype(int), plain, atol=1)
    bright, _, _ = sensed(colours, None, light=1.0, exposure=50.0)
    assert (bright == 255).mean() > 0.5
    blurred, _, _ = sensed(colours, None, light=1.0, blur=0.5)
    assert blurred.std() < 0.8 * plain.std()
    noisy, _, _ = sensed(colours, None, light=1.0, vignetting=0.5)
    assert noisy[0, 0, [0, -1]].mean() < plain[0, 0, [0, -1]].mean()


def wall(count: int, distance: float) -> np.ndarray:
    return np.full((count, 1, 32, 32), distance, np.float32)


def test_depth_comes_in_steps_and_scale() -> None:
    depth = sensed(None, wall(1, 0.3), depth_scale=1.02)[1]
    assert np.ptp(depth) == 0
    assert depth.mean() == pytest.approx(0.306, rel=1e-3)
    noisy = sensed(None, wall(40, 0.3), depth_noise=0.1)[1]
    # Disparity is 480 / 2 / tan(29 deg) * 18 mm / depth pixels.
    focal = 240 / np.tan(np.radians(29))
    assert noisy.std() == pytest.approx(0.1 * 0.3**2 / (focal * 0.018), rel=0.1)
    assert not sensed(None, wall(1, 0.05), nearest=0.07)[1].any()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_stereo_shadow_lies_beside_near_things(side: float) -> None:
    depth = wall(1, 0.3)
    depth[..., 12:20] = 0.1
    seen = sensed(None, depth, side=side)[1][0, 0]
    lost = (seen == 0).sum(1)
    # As wide as the disparities differ: f b (1 / 0.1 - 1 / 0.3) with f of 32 pixels.
    width = 16 / np.tan(np.radians(29)) * 0.018 * (1 / 0.1 - 1 / 0.3)
    np.testing.assert_allclose(lost, width, atol=1)
    where = np.flatnonzero(seen[0] == 0)
    assert (where < 12).all() if side > 0 else (where >= 20).all()


def test_holes_come_as_often_as_asked_for() -> None:
    lost = sensed(None, wall(40, 0.3), dropout=0.03)[1] == 0
    assert lost.mean() == pytest.approx(0.03, abs=0.005)
    patches = sensed(None, wall(40, 0.3), blobs=0.2)[1] == 0
    assert patches.mean() == pytest.approx(0.17, abs=0.03)
    together = (patches[..., 1:] & patches[..., :-1]).mean()
    assert together > 2 * patches.mean() ** 2
    shining = np.zeros((8, 1, 32, 32, 3), np.uint8)
    shining[..., :16, :, 1] = 255
    holes = sensed(shining, wall(8, 0.3), shiny=0.5)[1] == 0
    assert holes[..., :16, :].mean() == pytest.approx(0.5, abs=0.05)
    assert not holes[..., 16:, :].any()
    black = sensed(None, wall(400, 0.3), blackout=0.1)[1].reshape(400, -1) == 0
    assert black.all(1).mean() == pytest.approx(0.1, abs=0.05)
    assert (black.all(1) == black.any(1)).all()


def test_an_environment_depends_on_itself_alone() -> None:
    rgb, depth = ramp(4), wall(4, 0.2)[..., :16, :16]
    changes = {"noise": np.full(4, 0.02), "dropout": np.full(4, 0.1)}
    config = dataclasses.replace(TransferConfig(), camera=CameraRanges())
    all_ = sensor.compiled(config)
    keys = jax.random.split(jax.random.key(0), 4)
    fields = fields_of(4, **changes)
    state = np.zeros((4, 1), np.float32), np.ones(4, bool)
    whole = all_(keys, rgb, depth, fields, *state)
    part = all_(
        keys[2:],
        rgb[2:],
        depth[2:],
        {k: v[2:] for k, v in fields.items()},
        *(one[2:] for one in state),
    )
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[2:], other)
