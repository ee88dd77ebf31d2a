"""The contact scenes: hulls as large as the published parts, and nothing that can touch is left out."""

from __future__ import annotations

import copy
import itertools
import json
import pathlib
import sys

import mujoco
import numpy as np
import pytest

from alohas2r.sim import scene

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import hulls  # noqa: E402  # pyright: ignore[reportMissingImports]

FACTS = json.loads((ROOT / "tests/data/aloha_facts.json").read_text())
BODIES = {body["name"]: body for body in FACTS["bodies"]}
# How far from the published extents a link's hulls may end (m): where hands meet, and where only arms do.
HAND_M, ARM_M = 0.001, 0.015
CONTACT = {"pick": "pick_contact", "insert": "insert_contact"}


@pytest.fixture(scope="module")
def two_arms() -> mujoco.MjModel:
    return scene.load_physics("insert_contact").model


def geoms_of(model: mujoco.MjModel, body: str) -> list[int]:
    """Returns the colliding geoms of a body."""
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return [int(i) for i in np.flatnonzero(collides & (model.geom_bodyid == model.body(body).id))]


def corners(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """Returns points [n, 3] (m), in the body's frame, that reach as far as the geom does along the axes."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    rotation = rotation.reshape(3, 3)
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        local = model.mesh_vert[start : start + count]
    elif model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CYLINDER:
        angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        radius, half = model.geom_size[geom, :2]
        ring = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(64)], 1)
        local = np.concatenate([ring - np.array([0, 0, half]), ring + np.array([0, 0, half])])
    else:
        local = np.array(list(itertools.product(*[(-1, 1)] * 3))) * model.geom_size[geom]
    return local @ rotation.T + model.geom_pos[geom]


@pytest.mark.parametrize("link", [name for name, body in BODIES.items() if body["visual_extent"]])
def test_hulls_reach_as_far_as_the_published_parts(two_arms: mujoco.MjModel, link: str) -> None:
    parts = BODIES[link]["visual_extent"]
    published = np.array(
        [
            np.min([part["box_min"] for part in parts], axis=0),
            np.max([part["box_max"] for part in parts], axis=0),
        ]
    )
    points = np.concatenate([corners(two_arms, geom) for geom in geoms_of(two_arms, link)])
    measured = np.stack([points.min(0), points.max(0)])
    hand = "finger" in link or "gripper" in link
    np.testing.assert_allclose(measured, published, atol=HAND_M if hand else ARM_M)
    beyond = np.maximum(published[0] - measured[0], measured[1] - published[1])
    assert beyond.max() <= HAND_M


@pytest.mark.parametrize("name", CONTACT)
def test_only_what_stands_apart_is_left_out(name: str) -> None:
    """All shapes collide with all others but for pairs of bodies that are listed."""
    model = scene.load(CONTACT[name]).model
    plain = scene.load(name).model
    for index in range(model.ngeom):
        collides = (model.geom_contype[index], model.geom_conaffinity[index])
        look = model.geom(index).name in {plain.geom(i).name for i in range(plain.ngeom)} and (
            plain.geom(model.geom(index).name).contype[0] == 0
            and plain.geom(model.geom(index).name).conaffinity[0] == 0
        )
        assert collides == ((0, 0) if look else (1, 1)), model.geom(index).name
    left_out = set()
    for signature in model.exclude_signature:
        pair = (int(signature) >> 16, int(signature) & 0xFFFF)
        left_out.add(frozenset(model.body(body).name for body in pair))
    expected = {
        frozenset(f"{arm}/{link}" for link in pair)
        for arm in (arm.name for arm in scene.load(name).arms)
        for pair in (*hulls.APART, *hulls.PASS_THROUGH)
    }
    assert left_out == expected
    assert model.npair == 0


@pytest.mark.parametrize("pair", hulls.APART)
def test_pairs_that_are_left_out_never_meet(
    two_arms: mujoco.MjModel, pair: tuple[str, str]
) -> None:
    """Whatever the angles of the joints between two links are, their hulls stay apart."""
    model = two_arms
    first, second = (model.body(f"left/{link}").id for link in pair)
    joints: list[int] = []
    body = second
    while body != first:
        assert body, f"{pair[1]} does not hang on {pair[0]}"
        start, count = model.body_jntadr[body], model.body_jntnum[body]
        joints += list(range(start, start + count))
        body = model.body_parentid[body]
    steps = {1: 201, 2: 61, 3: 25}[len(joints)]
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    near = np.inf
    ends = np.zeros(6)
    low, high = model.jnt_range[joints].T
    for angles in itertools.product(*np.linspace(low, high, steps).T):
        data.qpos[model.jnt_qposadr[joints]] = angles
        mujoco.mj_kinematics(model, data)
        for one in geoms_of(model, f"left/{pair[0]}"):
            for other in geoms_of(model, f"left/{pair[1]}"):
                near = min(near, mujoco.mj_geomDistance(model, data, one, other, 1.0, ends))
    # The base and what turns on it are a millimetre apart at all angles; between two steps of the others' grids
    # nothing moves by more than 20 mm.
    assert near > (0.0005 if pair[0] == "base_link" else 0.02)


def touching(model: mujoco.MjModel, data: mujoco.MjData) -> set[frozenset[str]]:
    """Returns the pairs of bodies in contact."""
    pairs = set()
    for contact in data.contact[: data.ncon]:
        pairs.add(frozenset(model.body(model.geom_bodyid[geom]).name for geom in contact.geom))
    return pairs


@pytest.mark.parametrize(
    ("side", "thing", "sensor"),
    [("left", "peg", "left/hand_on_peg_force"), ("right", "socket", "right/hand_on_socket_force")],
)
def test_a_hand_touches_the_other_hands_object(side: str, thing: str, sensor: str) -> None:
    for name in ("insert", "insert_contact"):
        loaded = scene.load_physics(name)
        data = mujoco.MjData(loaded.model)
        mujoco.mj_resetDataKeyframe(loaded.model, data, loaded.model.key("home").id)
        for finger in ("left", "right"):
            data.joint(f"{side}/{finger}_finger").qpos = 0.012
        mujoco.mj_kinematics(loaded.model, data)
        tips = [data.site(f"{side}/{finger}_fingertip").xpos for finger in ("left", "right")]
        data.joint(thing).qpos[:3] = np.mean(tips, 0)
        mujoco.mj_forward(loaded.model, data)
        pair = frozenset({f"{side}/left_finger_link", thing})
        assert (pair in touching(loaded.model, data)) == (name == "insert_contact")
        if name == "insert_contact":
            values = data.sensordata[loaded.sensor(sensor, 4)]
            assert values[0] > 0
            other = {"peg": "right/hand_on_socket_force", "socket": "left/hand_on_peg_force"}
            assert data.sensordata[loaded.sensor(other[thing], 4)][0] == 0


def test_the_arms_touch_each_other() -> None:
    """Both arms stretched out over the middle of the table meet; at home nothing touches anything."""
    loaded = scene.load_physics("insert_contact")
    model, data = loaded.model, mujoco.MjData(loaded.model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
    for arm in loaded.arms:  # well above the table
        data.qpos[arm.object_qpos[2]] += 0.5
    mujoco.mj_forward(model, data)
    assert data.ncon == 0
    for arm in loaded.arms:
        data.qpos[arm.qpos[:6]] = [0.0, 0.3, 0.5, 0.0, -0.8, 0.0]
    mujoco.mj_forward(model, data)
    pairs = touching(model, data)
    assert any({body.split("/")[0] for body in pair} == {"left", "right"} for pair in pairs)
    assert data.sensordata[loaded.sensor("arm_on_arm_force", 4)][0] > 0


def creep(name: str, side: str, thing: str) -> tuple[float, float]:
    """Returns how far a held object slips (m) and turns (rad) in its hand in five seconds."""
    model = scene.load_physics(name).model
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("preinsert").id)
    poses = []
    for steps in (200, 1000):
        mujoco.mj_step(model, data, nstep=steps)
        hand, held = data.site(f"{side}/gripper"), data.body(thing)
        turned = hand.xmat.reshape(3, 3).T
        poses.append((turned @ (held.xpos - hand.xpos), turned @ held.xmat.reshape(3, 3)))
    (start, before), (end, after) = poses
    angle = np.arccos(np.clip((np.trace(before.T @ after) - 1) / 2, -1, 1))
    return float(np.linalg.norm(end - start)), float(angle)


@pytest.mark.parametrize(("side", "thing"), [("left", "socket"), ("right", "peg")])
def test_fingers_hold_at_least_as_well_as_the_published_capsules(side: str, thing: str) -> None:
    slip, turn = creep("insert_contact", side, thing)
    published_slip, published_turn = creep("insert", side, thing)
    assert slip < 0.003 < published_slip * 1.1
    assert turn < published_turn


def shaken(name: str, rigidity: float) -> np.ndarray:
    """Returns how far socket and peg slip in their hands (m) while arms, so many times as rigid, are shaken for 3 s."""
    model = copy.deepcopy(scene.load_physics(name).model)
    arms = [i for i in range(model.nu) if not model.actuator(i).name.endswith("gripper")]
    model.actuator_gainprm[arms, 0] *= rigidity
    model.actuator_biasprm[arms, 1] *= rigidity
    model.dof_damping[model.jnt_dofadr[model.actuator_trnid[arms, 0]]] *= rigidity
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("preinsert").id)
    resting = data.ctrl[arms].copy()
    mujoco.mj_step(model, data, nstep=200)

    def in_hand() -> np.ndarray:
        return np.stack(
            [
                data.site(f"{side}/gripper").xmat.reshape(3, 3).T
                @ (data.body(thing).xpos - data.site(f"{side}/gripper").xpos)
                for side, thing in (("left", "socket"), ("right", "peg"))
            ]
        )

    start, rng = in_hand(), np.random.default_rng(0)
    for _ in range(60):
        data.ctrl[arms] = resting + rng.uniform(-0.012, 0.012, len(arms))
        mujoco.mj_step(model, data, nstep=10)
    return np.linalg.norm(in_hand() - start, axis=1)


def test_elliptic_cones_hold_what_rigid_arms_grip_where_pyramids_let_it_slip() -> None:
    """The peg weighs 0.9 N and is gripped with 3 N on either side: no shaking of 0.01 rad may take it out."""
    assert shaken("insert_elliptic", 1.0).max() < 0.002
    assert shaken("insert_elliptic", 3.0).max() < 0.003
    assert shaken("insert_contact", 3.0).max() > 0.05


@pytest.mark.parametrize("task", ["pick", "insert"])
def test_elliptic_scenes_differ_from_the_contact_scenes_in_the_solver_alone(task: str) -> None:
    contact, elliptic = (
        scene.load_physics(f"{task}_{kind}").model for kind in ("contact", "elliptic")
    )
    for name in (
        "body_mass",
        "geom_size",
        "geom_pos",
        "dof_damping",
        "actuator_gainprm",
        "key_qpos",
    ):
        np.testing.assert_array_equal(getattr(elliptic, name), getattr(contact, name))
    assert elliptic.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
    assert (elliptic.opt.timestep, elliptic.opt.impratio) == (0.005, contact.opt.impratio)
