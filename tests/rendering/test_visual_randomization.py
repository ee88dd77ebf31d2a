"""The declared table of randomized looks: ranges, independence, and what it leaves alone."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from alohas2r.errors import ConfigError, ModelError
from alohas2r.rendering import visual_randomization
from alohas2r.sim import scene

jax = pytest.importorskip("jax")
COUNT = 500


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    found = visual_randomization.sample_looks(jax.random.key(0), COUNT, scene.load("insert"))
    return {name: np.asarray(value) for name, value in found.items()}


def ids(*names: str) -> list[int]:
    return [scene.load("insert").id("geom", name) for name in names]


def spread(values: np.ndarray, low: float, high: float) -> None:
    """Checks that values fill a range evenly and never leave it."""
    width = high - low
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    assert values.mean() == pytest.approx((low + high) / 2, abs=0.1 * width)
    assert values.std() == pytest.approx(width / np.sqrt(12), rel=0.15)


def test_colours_have_their_ranges(drawn: dict[str, np.ndarray]) -> None:
    rgba, model = drawn["geom_rgba"], scene.load("insert").model
    blue, red = ids("socket-B", "socket-T", "socket-L", "socket-R"), ids("socket-W", "red_peg")
    for part in blue:
        spread(rgba[:, part, 2], 0.5, 1)
        for channel in (0, 1):
            nominal = model.geom_rgba[part, channel]
            spread(rgba[:, part, channel] - nominal, 0, 0.12)
    for part in red:
        spread(rgba[:, part, 0], 0, 1)
        spread(rgba[:, part, 1] - model.geom_rgba[part, 1], 0, 0.07)
    table = rgba[:, ids("table")[0]]
    spread(table[:, 0], 0, 0.1)
    np.testing.assert_array_equal(table[:, 0], table[:, 1])
    np.testing.assert_array_equal(table[:, 0], table[:, 2])
    assert (rgba[..., 3] == visual_randomization.nominal(model)["geom_rgba"][:, 3]).all()


def test_parts_are_drawn_independently(drawn: dict[str, np.ndarray]) -> None:
    blue = drawn["geom_rgba"][:, ids("socket-B", "socket-T", "red_peg")][..., [2, 2, 0]]
    values = np.stack([blue[:, 0, 0], blue[:, 1, 0], blue[:, 2, 2]])
    correlation = np.corrcoef(values) - np.eye(3)
    assert np.abs(correlation).max() < 0.15


def test_what_the_table_does_not_name_stays(drawn: dict[str, np.ndarray]) -> None:
    model = scene.load("insert").model
    nominal = visual_randomization.nominal(model)
    named = set(ids("table", "socket-B", "socket-T", "socket-L", "socket-R", "socket-W", "red_peg"))
    others = [geom for geom in range(model.ngeom) if geom not in named]
    expected = np.broadcast_to(nominal["geom_rgba"][others], (COUNT, len(others), 4))
    np.testing.assert_allclose(drawn["geom_rgba"][:, others], expected)
    cameras = [
        c
        for c in range(model.ncam)
        if model.camera(c).name not in visual_randomization.WRIST_CAMERAS
    ]
    np.testing.assert_allclose(drawn["cam_pos"][0, cameras], nominal["cam_pos"][cameras], atol=1e-6)


def test_cameras_move_and_turn_a_little(drawn: dict[str, np.ndarray]) -> None:
    model = scene.load("insert").model
    for name in visual_randomization.WRIST_CAMERAS:
        camera = scene.load("insert").id("camera", name)
        offset = drawn["cam_pos"][:, camera] - model.cam_pos[camera]
        for axis, reach in enumerate((0.0125, 0.005, 0.005)):
            spread(offset[:, axis], -reach, reach)
        quat = drawn["cam_quat"][:, camera]
        np.testing.assert_allclose(np.linalg.norm(quat, axis=1), 1, atol=1e-5)
        cosine = np.abs(quat @ model.cam_quat[camera])
        angle = np.degrees(2 * np.arccos(np.clip(cosine, 0, 1)))
        assert angle.max() <= 5.1
        assert angle.mean() == pytest.approx(2.5, abs=0.3)


def test_lights_move_turn_and_cast_shadows(drawn: dict[str, np.ndarray]) -> None:
    nominal = visual_randomization.nominal(scene.load("insert").model)
    spread((drawn["light_pos"] - nominal["light_pos"]).ravel(), -1, 1)
    cosine = (drawn["light_dir"] * nominal["light_dir"]).sum(-1)
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() <= 10.1
    np.testing.assert_allclose(np.linalg.norm(drawn["light_dir"], axis=-1), 1, atol=1e-5)
    assert drawn["light_castshadow"].dtype == bool
    assert drawn["light_castshadow"].mean() == pytest.approx(0.75, abs=0.05)


def test_brightness_is_one_number_per_environment(drawn: dict[str, np.ndarray]) -> None:
    assert drawn["brightness"].shape == (COUNT,)
    spread(drawn["brightness"], 0.5, 2.5)


def test_environments_depend_on_key_and_number_alone(drawn: dict[str, np.ndarray]) -> None:
    few = visual_randomization.sample_looks(jax.random.key(0), 3, scene.load("insert"))
    for name, value in few.items():
        np.testing.assert_array_equal(np.asarray(value), drawn[name][:3])
    other = visual_randomization.sample_looks(jax.random.key(1), 3, scene.load("insert"))
    assert all((np.asarray(value) != drawn[name][:3]).any() for name, value in other.items())


def test_every_scene_has_looks() -> None:
    for name in scene.names():
        loaded = scene.load(name)
        found = visual_randomization.sample_looks(jax.random.key(0), 2, loaded)
        assert found["geom_rgba"].shape == (2, loaded.model.ngeom, 4)
        assert (np.asarray(found["brightness"]) > 0).all()


def test_lights_that_follow_are_fixed_where_they_are_at_home() -> None:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light name='a' pos='0 0 2' mode='targetbody' target='b'/>"
        "<body name='b' pos='1 0 1'><joint type='slide'/><geom size='0.1'/></body></worldbody>"
        "<keyframe><key name='home' qpos='0.5'/></keyframe></mujoco>"
    )
    at_home, moved = (
        visual_randomization.nominal(model),
        visual_randomization.nominal(model, np.array([1.0])),
    )
    np.testing.assert_allclose(at_home["light_pos"][0], [0, 0, 2])
    np.testing.assert_allclose(
        at_home["light_dir"][0], np.array([1, 0, -0.5]) / np.sqrt(1.25), atol=1e-6
    )
    np.testing.assert_allclose(moved["light_dir"][0], [np.sqrt(0.5), 0, 0], atol=1)
    assert (at_home["light_dir"] != moved["light_dir"]).any()


def test_the_table_is_checked() -> None:
    with pytest.raises(ConfigError, match="scale"):
        visual_randomization.Look("geom_rgba", "scaled", (0,), (1,))
    with pytest.raises(ConfigError, match="range"):
        visual_randomization.Look("geom_rgba", "scale", (1,), (0,))
    bad = (visual_randomization.Look("geom_rgb", "scale", (0,), (1,), ("*",)),)
    with pytest.raises(ModelError, match="geom_rgba"):
        visual_randomization.sample_looks(jax.random.key(0), 1, scene.load("pick"), bad)
