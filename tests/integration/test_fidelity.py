"""The scenes move like the published model: kinematics, gravity, step responses, masses, names."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import mujoco
import numpy as np
import pytest

from alohas2r.sim import scene

DATA = pathlib.Path(__file__).parents[1] / "data"
FACTS = json.loads((DATA / "aloha_facts.json").read_text())
REFERENCE = json.loads((DATA / "aloha_fidelity.json").read_text())
DESCRIBED = (
    "pick",
    "insert",
    "pick_contact",
    "insert_contact",
)  # the scenes that the published model is held against

# Tolerances of the recipe.
POSITION_M, ROTATION = 1e-4, 1e-4
TORQUE_RELATIVE, TORQUE_ABSOLUTE = 0.01, 0.02
STEP_RAD, STEP_M = 2e-3, 2e-4


def at_home(name: str) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Returns a fresh model of a scene and its state at keyframe home."""
    model = scene.spec(name).compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    return model, data


def of_scene(model: mujoco.MjModel, kind: str, names: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries whose names the scene has: all of them in the two-arm scene."""
    objtype = getattr(mujoco.mjtObj, f"mjOBJ_{kind}")
    return {
        name: value for name, value in names.items() if mujoco.mj_name2id(model, objtype, name) >= 0
    }


@pytest.fixture(scope="module", params=DESCRIBED)
def home(request: pytest.FixtureRequest) -> tuple[mujoco.MjModel, mujoco.MjData]:
    return at_home(request.param)


def poses_of(case: dict[str, Any], model: mujoco.MjModel) -> dict[str, dict[str, Any]]:
    """The sites, cameras and torques of one reference case that this scene has."""
    found = {
        "SITE": of_scene(model, "SITE", case["sites"]),
        "CAMERA": of_scene(model, "CAMERA", case["cameras"]),
        "JOINT": of_scene(model, "JOINT", case["gravity_torque"]),
    }
    arms = model.nu // 7
    assert [len(found[kind]) for kind in ("SITE", "CAMERA", "JOINT")] == [5 * arms, arms, 8 * arms]
    return found


@pytest.mark.parametrize("index", range(len(REFERENCE["fk"])))
def test_kinematics_and_gravity(home: tuple[mujoco.MjModel, mujoco.MjData], index: int) -> None:
    model, data = home
    case = REFERENCE["fk"][index]
    for joint, value in of_scene(model, "JOINT", case["qpos"]).items():
        data.joint(joint).qpos = value
    data.qvel[:] = 0
    mujoco.mj_forward(model, data)
    found = poses_of(case, model)
    for kind, accessor in (("SITE", data.site), ("CAMERA", data.cam)):
        for name, pose in found[kind].items():
            measured = accessor(name)
            np.testing.assert_allclose(measured.xpos, pose["pos"], atol=POSITION_M, err_msg=name)
            np.testing.assert_allclose(measured.xmat, pose["mat"], atol=ROTATION, err_msg=name)
    for joint, torque in found["JOINT"].items():
        measured = data.joint(joint).qfrc_bias[0]
        assert abs(measured - torque) <= max(TORQUE_ABSOLUTE, TORQUE_RELATIVE * abs(torque)), joint


@pytest.mark.parametrize("name", DESCRIBED)
@pytest.mark.parametrize("index", range(len(REFERENCE["step_response"])))
def test_step_responses(name: str, index: int) -> None:
    model, data = at_home(name)
    case = REFERENCE["step_response"][index]
    for actuator, target in of_scene(model, "ACTUATOR", case["ctrl"]).items():
        data.actuator(actuator).ctrl = target
    joints = [joint for joint in REFERENCE["joint_order"] if joint.split("/")[0] in arms_of(name)]
    columns = [REFERENCE["joint_order"].index(joint) for joint in joints]
    tolerance = np.array([STEP_M if "finger" in joint else STEP_RAD for joint in joints])
    assert model.opt.timestep == 0.005
    for expected in case["qpos_every_50ms"]:
        mujoco.mj_step(model, data, nstep=10)
        measured = np.array([data.joint(joint).qpos[0] for joint in joints])
        error = np.abs(measured - np.asarray(expected)[columns])
        assert (error <= tolerance).all(), dict(zip(joints, error, strict=True))
    if len(arms_of(name)) == 2:
        assert data.ncon == case["contacts"]


def arms_of(name: str) -> tuple[str, ...]:
    return tuple(arm.name for arm in scene.load(name).arms)


def test_two_arm_scene_has_every_named_part_of_the_facts() -> None:
    model, _ = at_home("insert")
    for body in FACTS["bodies"]:
        made = model.body(body["name"])
        np.testing.assert_allclose(made.mass, body["mass"], rtol=1e-6, err_msg=body["name"])
        if body["mass"]:
            np.testing.assert_allclose(made.inertia, body["diaginertia"], rtol=1e-6)
            np.testing.assert_allclose(made.ipos, body["inertial_pos"], atol=1e-7)
        parent = model.body(made.parentid[0]).name
        assert parent == body["parent"], body["name"]
        for site in body["sites"]:
            assert model.site(site["name"]).bodyid[0] == made.id
        for camera in body["cameras"]:
            assert model.cam(camera["name"]).fovy[0] == pytest.approx(camera["fovy_deg"])
        for geom in body["collision_geoms"]:
            one = model.geom(geom["name"])
            assert one.bodyid[0] == made.id
            np.testing.assert_allclose(one.size[: len(geom["size"])], geom["size"], atol=1e-7)
            np.testing.assert_allclose(one.friction, geom["friction"])
            assert (one.contype[0], one.conaffinity[0], one.condim[0]) == (
                geom["contype"],
                geom["conaffinity"],
                geom["condim"],
            )
        for joint in body["joints"]:
            if joint["type"] == "free":
                continue
            one = model.joint(joint["name"])
            np.testing.assert_allclose(one.axis, joint["axis"])
            np.testing.assert_allclose(one.range, joint["range"])
            np.testing.assert_allclose(one.damping, joint["damping"])
            np.testing.assert_allclose(one.armature, joint["armature"])
            np.testing.assert_allclose(one.frictionloss, joint["frictionloss"])
    for camera in FACTS["world"]["cameras"]:
        np.testing.assert_allclose(model.cam(camera["name"]).pos, camera["pos"], atol=1e-6)
    assert [model.actuator(i).name for i in range(model.nu)] == [
        actuator["name"] for actuator in FACTS["actuators"]
    ]
    for actuator in FACTS["actuators"]:
        one = model.actuator(actuator["name"])
        assert model.joint(one.trnid[0]).name == actuator["joint"]
        np.testing.assert_allclose(one.gainprm[0], actuator["kp"])
        np.testing.assert_allclose(one.biasprm[:3], actuator["bias"])
        np.testing.assert_allclose(one.ctrlrange, actuator["ctrlrange"])
    for name, key in FACTS["keyframes"].items():
        np.testing.assert_allclose(model.key(name).qpos, key["qpos"], atol=1e-6)
        np.testing.assert_allclose(model.key(name).ctrl, key["ctrl"], atol=1e-6)


@pytest.mark.parametrize("name", ["pick", "insert"])
def test_only_the_listed_geoms_collide(name: str) -> None:
    model, _ = at_home(name)
    arms = arms_of(name)
    listed = {"table"} | ({"box"} if name == "pick" else set())
    for body in FACTS["bodies"]:
        here = body["name"].split("/")[0] in arms or (name == "insert" and "/" not in body["name"])
        if here:
            listed |= {geom["name"] for geom in body["collision_geoms"]}
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    assert {model.geom(i).name for i in np.flatnonzero(collides)} == listed


def test_both_scenes_share_the_arm() -> None:
    """The left arm alone has the same dynamics as in the two-arm scene."""
    one, one_data = at_home("pick")
    two, two_data = at_home("insert")
    random = np.random.default_rng(3)
    joints = [joint for joint in REFERENCE["joint_order"] if joint.startswith("left/")]
    for _ in range(5):
        for joint in joints:
            low, high = one.joint(joint).range
            one_data.joint(joint).qpos = two_data.joint(joint).qpos = random.uniform(low, high)
            one_data.joint(joint).qvel = two_data.joint(joint).qvel = random.normal()
        mass = []
        for model, data in ((one, one_data), (two, two_data)):
            mujoco.mj_forward(model, data)
            full = np.zeros((model.nv, model.nv))
            mujoco.mj_fullM(model, data, full)
            rows = [model.joint(joint).dofadr[0] for joint in joints]
            mass.append((full[np.ix_(rows, rows)], data.qfrc_bias[rows]))
        for first, second in zip(*mass, strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)
