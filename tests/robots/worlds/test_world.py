"""Foreign worlds: the project's own terms in and out, whatever the world's are."""

from __future__ import annotations

import pathlib

import mujoco
import numpy as np
import pip_cases
import pytest
from opengl_cases import skip_without_opengl
from world_cases import PLACE, SHIFT_RAD, write_foreign

from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import BackendUnavailable, ConfigError, RobotFault
from alohas2r.robots.base import Camera, Robot
from alohas2r.robots.worlds.table import read_table, shipped
from alohas2r.robots.worlds.world import World, WorldRobot, WorldView
from alohas2r.sim import scene
from alohas2r.sim.objects import SOCKET_HALF, TABLE_HEIGHT


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_foreign(tmp_path_factory.mktemp("world"))


@pytest.fixture
def foreign(table: pathlib.Path) -> World:
    return World(table)


def random_state(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions of the own insertion scene near home, objects in the air, and targets."""
    own, draw = scene.load("insert"), np.random.default_rng(seed)
    qpos = own.home_qpos.copy()
    for arm in own.arms:
        qpos[arm.qpos[:6]] += draw.uniform(-0.2, 0.2, 6)
        qpos[arm.qpos[6:]] = draw.uniform(0.01, 0.03)
        qpos[arm.object_qpos[:3]] += draw.uniform([-0.05, -0.05, 0.15], [0.05, 0.05, 0.25])
        qpos[arm.object_qpos[3:]] = (q := draw.normal(size=4)) / np.linalg.norm(q)
    joints = np.concatenate([arm.qpos[:7] for arm in own.arms])
    return qpos, qpos[joints] + draw.uniform(-0.05, 0.05, 14)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_placed_is_read_in_our_own_terms(foreign: World, seed: int) -> None:
    qpos, _ = random_state(seed)
    foreign.place(qpos)
    own = scene.load("insert")
    joints = np.concatenate([arm.qpos[:7] for arm in own.arms])
    np.testing.assert_allclose(foreign.position(), qpos[joints], atol=1e-9)
    poses, velocities = foreign.objects()
    for row, arm in enumerate(own.arms):
        expected = qpos[arm.object_qpos]
        np.testing.assert_allclose(poses[row, :3], expected[:3], atol=1e-9)
        assert abs(poses[row, 3:] @ expected[3:]) == pytest.approx(1)
    assert not velocities.any()
    # The world's own numbers are others: it is turned, shifted, and counts otherwise.
    elbow = foreign.data.joint("their_left/elbow").qpos[0]
    assert elbow == pytest.approx(qpos[own.arms[0].qpos[2]] + SHIFT_RAD)
    roll = foreign.data.joint("their_left/forearm_roll").qpos[0]
    assert roll == pytest.approx(-qpos[own.arms[0].qpos[3]])
    base = foreign.data.body("their_left/base_link").xpos
    assert base[1] == pytest.approx(PLACE[1] + own.arms[0].base_pos[0])
    np.testing.assert_allclose(foreign.right_base()[0], own.arms[1].base_pos, atol=1e-9)


def test_a_foreign_copy_of_our_scene_moves_as_ours_does(foreign: World) -> None:
    """Positions, velocities and objects over a second of commands, contacts included."""
    loaded = scene.load("insert_contact")
    data = mujoco.MjData(loaded.model)
    qpos, targets = random_state(5)
    order = np.concatenate([arm.ctrl for arm in loaded.arms])
    joints = np.concatenate([arm.qpos[:7] for arm in loaded.arms])
    speeds = np.concatenate([arm.qvel[:7] for arm in loaded.arms])
    data.qpos[:] = qpos
    data.ctrl[order] = qpos[joints]
    mujoco.mj_forward(loaded.model, data)
    foreign.place(qpos)
    robot = WorldRobot(foreign)
    robot.enable()
    sent = robot.command(targets)
    np.testing.assert_allclose(sent, np.clip(targets, foreign.low, foreign.high))
    data.ctrl[order] = sent
    for _ in range(20):
        mujoco.mj_step(loaded.model, data, nstep=scene.SUBSTEPS)
        foreign.advance()
        reading = robot.read()
        np.testing.assert_allclose(reading.position, data.qpos[joints], atol=1e-5)
        np.testing.assert_allclose(reading.velocity, data.qvel[speeds], atol=1e-3)
        poses, rates = foreign.objects()
        for row, arm in enumerate(loaded.arms):
            np.testing.assert_allclose(poses[row, :3], data.qpos[arm.object_qpos[:3]], atol=1e-3)
            np.testing.assert_allclose(rates[row], data.qvel[arm.object_qvel], atol=0.1)
    assert foreign.data.time == pytest.approx(20 * CONTROL_PERIOD_S)


def test_objects_lie_on_the_worlds_table(foreign: World) -> None:
    foreign.place(scene.load("insert").home_qpos)
    poses, _ = foreign.objects()
    assert poses[0, 2] == pytest.approx(TABLE_HEIGHT + SOCKET_HALF, abs=1e-6)
    assert foreign.data.body("their_socket").xpos[2] == pytest.approx(poses[0, 2] + PLACE[2])


def test_contacts_are_told_by_hand_and_finger(foreign: World) -> None:
    qpos = scene.load("insert").home_qpos.copy()
    foreign.place(qpos)
    assert not foreign.contacts().finger_force.any()
    # The socket between the left fingers, which close on it; then the peg instead.
    data, own = foreign.data, scene.load("insert")
    for index, arm in enumerate(own.arms):
        foreign.place(qpos)
        tips = [
            foreign.data.site(f"their_left/{finger}_fingertip").xpos for finger in ("left", "right")
        ]
        spot = np.mean(tips, 0)
        where = foreign.built.object_qpos[index]
        data.qpos[where[:3]] = spot
        data.qpos[where[3:]] = [1, 0, 0, 0]
        data.qpos[foreign.built.arms[0].grip_qpos] = 0.012
        mujoco.mj_forward(foreign.model, data)
        touched = foreign.contacts()
        assert touched.finger_force[0].any(1).all(), arm.object_name
        assert not touched.finger_force[1].any()
        assert (touched.hand_on_other > 0).tolist() == [index == 1, False]
        # Both press towards each other.
        left, right = touched.finger_force[0]
        assert left @ right < 0


def test_the_robot_refuses_what_robots_refuse(foreign: World) -> None:
    robot = WorldRobot(foreign)
    assert isinstance(robot, Robot)
    with pytest.raises(RobotFault, match="Torque is off"):
        robot.command(foreign.position())
    robot.enable()
    with pytest.raises(RobotFault, match="must be finite"):
        robot.command(np.full(14, np.nan))
    before = foreign.position()
    robot.command(before + 0.3)
    foreign.advance()
    robot.stop()
    foreign.advance(40)
    assert np.abs(foreign.position() - before)[:6].max() < 0.3
    robot.disable()
    torque = robot.read().torque
    assert torque is not None
    assert not torque.any()


def test_pictures_are_those_of_the_own_scene(foreign: World) -> None:
    """The same scene elsewhere looks the same to its wrists, colour by colour and to 1 mm."""
    skip_without_opengl()
    with WorldView(World("own-contact"), 32) as view:
        ours = [view.frame(side) for side in range(2)]
    with WorldView(foreign, 32) as view:
        theirs = [view.frame(side) for side in range(2)]
        left, right = view.cameras()
        assert isinstance(left, Camera)
        assert right.name == "right"
        assert left.read(0.1).number == 1
        foreign.advance()
        assert left.read(0.1).number == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one.rgb.shape == (32, 32, 3)
        # Their pictures are smaller, and their lights are the same. Beyond the cut-off there is no depth.
        both = (one.depth > 0) & (other.depth > 0)
        assert both.mean() > 0.5
        assert ((one.depth > 0) == (other.depth > 0)).mean() > 0.98
        near = both & (one.depth < 0.4)
        assert np.median(np.abs(one.depth - other.depth)[near]) < 0.001
        assert np.median(np.abs(one.rgb.astype(int) - other.rgb)) < 12


def test_looks_change_no_physics(table: pathlib.Path) -> None:
    worlds = []
    for number, look in enumerate(
        ("", '[look]\ntable = "wood"\nclutter = 6\nlight = 0.5', "[look]\ntable_rgb = [1, 1, 1]")
    ):
        path = table.parent / f"look{number}.toml"
        path.write_text(f'extends = "foreign.toml"\nname = "look{number}"\n{look}\n')
        worlds.append(World(path))
    plain, wooden, white = worlds
    assert len({world.digest for world in worlds}) == 3
    assert wooden.model.ngeom == plain.model.ngeom + 7
    assert white.model.ngeom == plain.model.ngeom + 1
    for world in worlds:
        world.place(scene.load("insert").home_qpos)
        world.advance(10)
    np.testing.assert_array_equal(wooden.data.qpos, plain.data.qpos)
    np.testing.assert_array_equal(white.data.qpos, plain.data.qpos)


def test_clutter_keeps_away_from_the_objects_and_follows_its_seed(table: pathlib.Path) -> None:
    spots = []
    for seed in (1, 1, 2):
        path = table.parent / "clutter.toml"
        path.write_text(f'extends = "foreign.toml"\n[look]\nclutter = 8\nclutter_seed = {seed}\n')
        world = World(path)
        litter = [i for i in range(world.model.ngeom) if "clutter" in world.model.geom(i).name]
        assert len(litter) == 8
        spots.append(world.model.geom_pos[litter])
        for arm in world.built.arms:
            base = world.data.xpos[arm.base][:2]
            turn = world.data.xmat[arm.base].reshape(3, 3)
            for spot in spots[-1]:
                local = turn.T @ np.array([*(spot[:2] - base), 0.0])
                angle = np.arctan2(local[1], local[0]) - 0.25
                assert abs(angle) > 0.6 or not 0.18 < np.hypot(*local[:2]) < 0.5
    np.testing.assert_array_equal(spots[0], spots[1])
    assert not np.array_equal(spots[0], spots[2])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"left_joints": 'joints = ["their_left/waste"]'}, "left: joints must be 6 values"),
        (
            {
                "left_joints": 'joints = ["their_left/waste", "their_left/shoulder", "their_left/elbow",'
                ' "their_left/forearm_roll", "their_left/wrist_angle", "their_left/wrist_rotate"]'
            },
            "no joint 'their_left/waste'.*left.joints.*Did you mean 'their_left/waist'",
        ),
        ({"right": "[tight]"}, "Unknown configuration key 'tight'"),
        (
            dict.fromkeys(("right", "right_joints", "right_signs", "right_gripper"), ""),
            "lacks the key 'right'",
        ),
        (
            {"cameras": '[cameras]\nleft = { camera = "nose" }\nright = { camera = "nose" }'},
            "no camera 'nose'.*cameras.left.camera",
        ),
        (
            {"cameras": '[cameras]\nleft = { body = "a" }\nright = { body = "b" }'},
            "fovy_deg must be given",
        ),
        (
            {"objects": '[objects]\nsocket = "their_sock"\npeg = "their_peg"'},
            "no body 'their_sock'",
        ),
        ({"objects": '[objects]\nremove = ["box"]'}, "no body 'box'.*objects.remove"),
        ({"left": '[left]\nbase = "their_base"'}, "no body 'their_base'.*base"),
        ({"head": 'name = "x"\nmodel = "nothing.xml"'}, "no MJCF file .*nothing.xml"),
        ({"head": "name = "}, "no readable TOML"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line_that_names_what_is_missing(
    tmp_path: pathlib.Path, changes: dict[str, str], text: str
) -> None:
    path = write_foreign(tmp_path, **changes)
    with pytest.raises(ConfigError, match=text) as caught:
        World(path)
    assert "\n" not in str(caught.value)


def test_actuators_of_another_kind_and_missing_ones_are_named(tmp_path: pathlib.Path) -> None:
    path = write_foreign(tmp_path)
    file = tmp_path / "foreign.xml"
    original = file.read_text()
    spec = mujoco.MjSpec.from_string(original)
    spec.actuator("their_left/elbow").set_to_motor()
    file.write_text(spec.to_xml())
    with pytest.raises(ConfigError, match=r"'their_left/elbow' is a motor.*position servos"):
        World(path)
    spec = mujoco.MjSpec.from_string(original)
    spec.delete(spec.actuator("their_right/waist"))
    file.write_text(spec.to_xml())
    with pytest.raises(ConfigError, match="nothing drives joint 'their_right/waist'"):
        World(path)


def test_a_scene_that_explodes_is_told_from_one_that_holds(tmp_path: pathlib.Path) -> None:
    path = write_foreign(tmp_path)
    file = tmp_path / "foreign.xml"
    spec = mujoco.MjSpec.from_string(file.read_text())
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
    for joint in spec.joints:
        joint.actfrclimited, joint.damping, joint.armature = 0, np.zeros(3), 0.0
    for actuator in spec.actuators:
        actuator.set_to_position(kp=1e7)
    file.write_text(spec.to_xml())
    with pytest.raises(ConfigError, match="World 'foreign' explodes"):
        World(path)


def test_a_period_that_is_no_whole_number_of_steps_is_refused(tmp_path: pathlib.Path) -> None:
    path = write_foreign(tmp_path)
    file = tmp_path / "foreign.xml"
    spec = mujoco.MjSpec.from_string(file.read_text())
    spec.option.timestep = 0.003
    file.write_text(spec.to_xml())
    with pytest.raises(ConfigError, match="no whole number of its time steps"):
        World(path)


def test_shipped_tables_are_read_and_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"own", "own-contact", "gym-aloha", "menagerie-aloha"} <= set(shipped())
    assert read_table("own")[1].name == "scene_insert.xml"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"gym_aloha.*pip install --no-deps gym-aloha"):
        read_table("gym-aloha")
    monkeypatch.setitem(__import__("sys").modules, "mujoco_menagerie", None)
    with pytest.raises(BackendUnavailable, match=r"alohas2r\[worlds\]"):
        read_table("menagerie-aloha")
    with pytest.raises(ConfigError, match="Did you mean 'gym-aloha'"):
        read_table("gym-alohas")


def test_gym_aloha_stands_in(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files alone, as docs/worlds.md says: its requirements pin an old MuJoCo.
    pip_cases.install("gym-aloha==0.1.5", "--no-deps", "--target", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    world = World("gym-aloha")
    assert world.built.substeps == 25
    np.testing.assert_allclose(world.position()[:6], scene.load("insert").home_qpos[:6], atol=1e-9)
    world.place(scene.load("insert").home_qpos)
    assert world.objects()[0][0, 2] == pytest.approx(0.020 + SOCKET_HALF, abs=1e-3)
