"""The MJCF files: generated, complete, and with looks that neither collide nor weigh anything."""

from __future__ import annotations

import pathlib
import sys
import xml.etree.ElementTree as ET

import mujoco
import numpy as np
import pytest

from alohas2r.sim import scene

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import build_xmls  # noqa: E402  # pyright: ignore[reportMissingImports]
import looks  # noqa: E402  # pyright: ignore[reportMissingImports]

# Geom groups: 0 objects and table, 1 set dressing for videos, 2 looks, 3 collision shapes,
# 5 targets. Wrist cameras are shown groups 0 and 2.
WRIST_GROUPS = (0, 2)
LOOK_GROUPS = (1, 2, 5)


@pytest.fixture(scope="module", params=scene.names())
def model(request: pytest.FixtureRequest) -> mujoco.MjModel:
    return scene.load(request.param).model


@pytest.mark.parametrize("file", build_xmls.SCENES)
def test_files_are_what_the_generator_writes(file: str) -> None:
    written = build_xmls.render(build_xmls.SCENES[file]())
    assert (ROOT / "xmls" / file).read_text() == written, "run: python tools/build_xmls.py"


@pytest.mark.parametrize("file", build_xmls.SCENES)
def test_files_stand_alone(file: str) -> None:
    """No CAD mesh, picture or other file is referred to."""
    for node in ET.parse(ROOT / "xmls" / file).iter():
        assert "file" not in node.attrib, node.attrib
        assert node.tag != "include"


def test_looks_neither_collide_nor_weigh(model: mujoco.MjModel) -> None:
    groups = set()
    for index in np.flatnonzero(np.isin(model.geom_group, LOOK_GROUPS)):
        assert model.geom_contype[index] == 0, model.geom(index).name
        assert model.geom_conaffinity[index] == 0, model.geom(index).name
        groups.add(int(model.geom_group[index]))
    assert groups == set(LOOK_GROUPS)
    visible = np.isin(model.geom_group, LOOK_GROUPS)
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    assert not (visible & collides).any()


@pytest.mark.parametrize("name", scene.names())
def test_looks_do_not_change_the_physics(name: str) -> None:
    """Without its looks, a scene has the same masses and moves the same, bit for bit."""
    dressed = scene.load(name).model
    spec = scene.spec(name)
    for geom in list(spec.geoms):
        if dressed.geom(geom.name).group[0] in LOOK_GROUPS:
            spec.delete(geom)
    bare = spec.compile()
    assert bare.ngeom < dressed.ngeom
    np.testing.assert_array_equal(bare.body_mass, dressed.body_mass)
    np.testing.assert_array_equal(bare.body_inertia, dressed.body_inertia)
    np.testing.assert_array_equal(bare.body_ipos, dressed.body_ipos)
    states = []
    for model in (bare, dressed):
        data = mujoco.MjData(model)
        mujoco.mj_resetDataKeyframe(model, data, model.key("home").id)
        data.ctrl[:] += 0.1
        mujoco.mj_step(model, data, nstep=100)
        states.append((data.qpos.copy(), data.ncon))
    np.testing.assert_array_equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_scenes_hold_their_objects() -> None:
    pick, insert = scene.load("pick"), scene.load("insert")
    box = pick.model.geom("box")
    assert box.size[0] == pytest.approx(0.048)
    assert pick.model.body("box").mass[0] == pytest.approx(0.065)
    socket = insert.id("body", "socket")
    walls = [
        index
        for index in range(insert.model.ngeom)
        if insert.model.geom_bodyid[index] == socket and insert.model.geom_contype[index]
    ]
    assert len(walls) == 5
    assert insert.model.geom("red_peg").size == pytest.approx([0.048, 0.01, 0.01])


def test_wrist_cameras_see_few_geoms() -> None:
    model = scene.load("insert").model
    assert np.isin(model.geom_group, WRIST_GROUPS).sum() <= 32


def test_collision_shapes_of_the_arms_are_hidden(model: mujoco.MjModel) -> None:
    for index in range(model.ngeom):
        collides = model.geom_contype[index] or model.geom_conaffinity[index]
        on_an_arm = "/" in model.body(model.geom_bodyid[index]).name
        assert (model.geom_group[index] == 3) == bool(collides and on_an_arm)


def test_meshes_are_small_and_convex() -> None:
    """Every listed vertex is a corner of the convex hull, within the facts' extents."""
    for name, vertices in looks.MESHES.items():
        spec = mujoco.MjSpec()
        flat = np.ravel(vertices)
        spec.add_mesh(name=name, uservert=flat, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name)
        model = spec.compile()
        assert len(vertices) <= 24, name
        assert model.mesh_vertnum[0] == len(vertices), name
        corners = np.unique(model.mesh_face[: model.mesh_facenum[0]])
        assert len(corners) == len(vertices), f"{name} has vertices inside its hull"


def extents(model: mujoco.MjModel, body: int, groups: tuple[int, ...]) -> np.ndarray:
    """[2, 3] least and greatest coordinates (m) of a body's looks in the body's frame."""
    points = []
    for index in np.flatnonzero(model.geom_bodyid == body):
        if model.geom_group[index] not in groups:
            continue
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[index])
        rotation = rotation.reshape(3, 3)
        if model.geom_type[index] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[index]
            start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            local = model.mesh_vert[start : start + count]
        else:  # the corners of the geom's box; a little large for a slanted cylinder
            centre, half = model.geom_aabb[index, :3], model.geom_aabb[index, 3:]
            signs = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
            local = centre + signs * half
        points.append(local @ rotation.T + model.geom_pos[index])
    stacked = np.concatenate(points)
    return np.stack([stacked.min(0), stacked.max(0)])


@pytest.mark.parametrize(
    "link", [body["name"] for body in build_xmls.FACTS["bodies"] if body["visual_extent"]]
)
def test_looks_fill_the_published_extents(link: str) -> None:
    """Each link's looks reach as far as its published parts do, to 15 mm, and no further."""
    facts = next(body for body in build_xmls.FACTS["bodies"] if body["name"] == link)
    model = scene.load("insert").model
    low = np.min([part["box_min"] for part in facts["visual_extent"]], axis=0)
    high = np.max([part["box_max"] for part in facts["visual_extent"]], axis=0)
    measured = extents(model, model.body(link).id, LOOK_GROUPS)
    np.testing.assert_allclose(measured, [low, high], atol=0.015)
    assert (measured[0] >= low - 0.004).all()
    assert (measured[1] <= high + 0.004).all()
