from __future__ import annotations

import pathlib

import mujoco
import numpy as np
import pytest

from alohas2r.core import assets
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.errors import ModelError
from alohas2r.sim import scene, signals


@pytest.fixture(params=scene.names())
def loaded(request: pytest.FixtureRequest) -> scene.Scene:
    return scene.load(request.param)


def at_home(found: scene.Scene) -> mujoco.MjData:
    data = mujoco.MjData(found.model)
    data.qpos[:], data.ctrl[:] = found.home_qpos, found.home_ctrl
    mujoco.mj_forward(found.model, data)
    return data


def test_addresses_lead_to_the_quantities_of_that_name(loaded: scene.Scene) -> None:
    data = at_home(loaded)
    data.qpos[:] = np.arange(loaded.model.nq)
    data.qvel[:] = np.arange(loaded.model.nv)
    data.ctrl[:] = np.arange(loaded.model.nu)
    for arm in loaded.arms:
        joints = (*embodiment_joints.ARM_JOINTS, *embodiment_joints.FINGER_JOINTS)
        for place, joint in enumerate(joints):
            named = data.joint(f"{arm.name}/{joint}")
            assert data.qpos[arm.qpos[place]] == named.qpos[0]
            assert data.qvel[arm.qvel[place]] == named.qvel[0]
        for place, actuator in enumerate(embodiment_joints.ACTUATORS):
            assert data.ctrl[arm.ctrl[place]] == data.actuator(f"{arm.name}/{actuator}").ctrl[0]
        thing = data.joint(arm.object_name)
        np.testing.assert_array_equal(data.qpos[arm.object_qpos], thing.qpos)
        np.testing.assert_array_equal(data.qvel[arm.object_qvel], thing.qvel)
    # Two arms may handle the same object.
    used = {*np.concatenate([np.concatenate([arm.qpos, arm.object_qpos]) for arm in loaded.arms])}
    assert sorted(used) == list(range(loaded.model.nq))
    assert sorted(np.concatenate([arm.ctrl for arm in loaded.arms])) == list(range(loaded.model.nu))


def test_home_is_a_state_that_its_own_targets_hold(loaded: scene.Scene) -> None:
    assert (loaded.ctrl_low <= loaded.home_ctrl).all()
    assert (loaded.home_ctrl <= loaded.ctrl_high).all()
    data = at_home(loaded)
    for arm in loaded.arms:
        np.testing.assert_array_equal(loaded.home_qpos[arm.qpos[:7]], loaded.home_ctrl[arm.ctrl])
        base = data.body(f"{arm.name}/base_link")
        np.testing.assert_allclose(base.xpos, arm.base_pos, atol=1e-12)
        np.testing.assert_allclose(base.xquat, arm.base_quat, atol=1e-12)
    for _ in range(40):
        mujoco.mj_step(loaded.model, data)
    for arm in loaded.arms:
        assert np.abs(data.qpos[arm.qpos] - loaded.home_qpos[arm.qpos]).max() < 0.02


@pytest.mark.parametrize("name", scene.names())
def test_physics_without_looks_is_the_same_physics(name: str) -> None:
    full, bare = scene.load(name), scene.load_physics(name)
    assert bare.model.ngeom < full.model.ngeom
    assert bare.sensors == full.sensors
    draw = np.random.default_rng(0)
    first, second = at_home(full), at_home(bare)
    for _ in range(40):
        ctrl = full.home_ctrl + draw.normal(0, 0.3, full.model.nu)
        first.ctrl[:] = second.ctrl[:] = ctrl
        for _ in range(scene.SUBSTEPS):
            mujoco.mj_step(full.model, first)
            mujoco.mj_step(bare.model, second)
    np.testing.assert_allclose(first.qpos, second.qpos, atol=1e-9)
    np.testing.assert_allclose(first.sensordata, second.sensordata, atol=1e-6)


def test_a_control_step_is_whole_physics_steps(loaded: scene.Scene) -> None:
    period = scene.SUBSTEPS * loaded.model.opt.timestep
    assert period == pytest.approx(embodiment_joints.CONTROL_PERIOD_S)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    pick = scene.load("pick")
    with pytest.raises(ModelError, match=r"'pik'.*Did you mean 'pick'"):
        scene.spec("pik")
    with pytest.raises(ModelError, match=r"'box_poss'.*Did you mean 'box_pos'"):
        pick.sensor("box_poss", 3)
    with pytest.raises(ModelError, match=r"'box_pos' has 3 values; 4 are needed"):
        pick.sensor("box_pos", 4)
    with pytest.raises(ModelError, match=r"no body 'peg'"):
        pick.id("body", "peg")


def test_missing_and_damaged_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALOHAS2R_DATA", str(tmp_path))
    with pytest.raises(ModelError, match="xmls/ was not found"):
        assets.data_path("xmls")
    (tmp_path / "xmls").mkdir()
    path = tmp_path / "xmls" / "scene_pick.xml"
    with pytest.raises(ModelError, match=r"Unknown scene 'pick'.*holds none"):
        scene.spec("pick")
    for content in (
        "",
        "<mujoco",
        "<mujoco><worldbody><geom type='cube'/></worldbody></mujoco>",
    ):
        path.write_text(content)
        with pytest.raises(ModelError, match=r"scene_pick\.xml could not be read") as caught:
            scene.spec("pick")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("actuator", "left/elbow"), ("key", "home"), ("sensor", "peg_pos")],
)
def test_what_the_code_relies_on_is_checked_when_a_scene_is_resolved(kind: str, name: str) -> None:
    edited = scene.spec("insert")
    getattr(edited, kind)(name).name = "other"
    with pytest.raises(ModelError, match=f"no {kind} '{name}'"):
        scene.resolve("insert", edited.compile())


def test_each_arm_must_handle_an_object_that_moves_freely() -> None:
    edited = scene.spec("insert")
    edited.delete(edited.sensor("peg_grip_pos"))
    with pytest.raises(
        ModelError, match=r"no sensor '\.\.\._grip_pos' whose reference is right/base"
    ):
        scene.resolve("insert", edited.compile())
    edited = scene.spec("pick")
    edited.sensor("box_pos").objname = "left/gripper_link"
    with pytest.raises(ModelError, match="'left/gripper_link' has no free joint"):
        scene.resolve("pick", edited.compile())


def test_a_scene_from_elsewhere_is_registered(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "_registered", {})
    path = tmp_path / "mine.xml"
    path.write_text(scene.spec("pick").to_xml())
    shipped = scene.names()
    scene.register_scene("mine", path)
    scene.register_scene("mine", path)
    assert scene.names() == tuple(sorted((*shipped, "mine")))
    assert scene._path("mine") == path
    for name in ("mine", "pick"):
        with pytest.raises(ModelError, match="choose another name"):
            scene.register_scene(name, tmp_path / "other.xml")


def test_missing_sensors_are_named_when_signals_are_set_up() -> None:
    edited = scene.spec("pick")
    edited.delete(edited.sensor("left/right_finger_force"))
    with pytest.raises(ModelError, match="left/right_finger_force"):
        signals.extractor(scene.resolve("pick", edited.compile()))
