"""Worlds that differ in a few numbers: what is spelt, what physics and pictures make of it, when commands arrive."""

import mujoco
import numpy as np
import pytest

from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.errors import ConfigError
from alohas2r.robots.emulator.hidden import HiddenConfig
from alohas2r.robots.emulator.world import World
from alohas2r.robots.simulated import SimulatedRobot, SimulatedWorld
from alohas2r.sim import changed, scene
from alohas2r.sim.changed import NOMINAL, WorldParams, parse
from alohas2r.sim.objects import TABLE_HEIGHT

INSERT = scene.load("insert")
PEG = INSERT.arms[1].object_qpos


def test_what_is_spelt_is_read_and_said_alike():
    assert parse("") == NOMINAL
    assert str(NOMINAL) == ""
    params = parse("peg=33, delay=3,camera=30:12")
    assert params == WorldParams(33.0, 3, (30.0, 12.0))
    for text in ("peg=33,delay=3,camera=30:12,sensor=1", "camera=-5:0", "delay=10", "peg=12.5"):
        assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("robot.toml", "must be spelt peg=MM"),
        ("pegs=33", "knows no 'pegs'. Did you mean 'peg'"),
        ("peg=33,peg=34", "has 'peg' twice"),
        ("peg=wide", "peg=wide must be a number"),
        ("delay=1.5", "of whole steps"),
        ("camera=30", "camera=30 must be a number as in"),
        ("peg=36", "must lie in 10..35 mm"),
        ("peg=nan", "must lie in 10..35 mm"),
        ("delay=11", "must lie in 0..10 control steps"),
        ("delay=-1", "must lie in 0..10 control steps"),
        ("camera=60:0", "must lie within 50 mm and 30 degrees"),
        ("camera=0:-40", "must lie within 50 mm and 30 degrees"),
        ("sensor=2", "sensor = 2 must be 0 or 1"),
        ("sensor=on", "sensor=on must be a number as in"),
    ],
)
def test_bad_worlds_are_refused_in_a_line(text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


def test_real_arms_and_foreign_worlds_cannot_be_changed():
    late = WorldParams(delay=1)
    with pytest.raises(ConfigError, match="they need --robot sim or emulated"):
        RigConfig("aloha", serials=("1", "2"), params=late)
    with pytest.raises(ConfigError, match="they need --robot sim or emulated"):
        RigConfig("sim", world="gym-aloha", params=late)
    with pytest.raises(ConfigError, match=r"must lie in 10\.\.35 mm"):
        HiddenConfig(peg_mm=40.0)


def test_a_thicker_peg_lies_on_the_table_and_weighs_more():
    params = WorldParams(peg=33.0)
    world, nominal = SimulatedWorld(params), SimulatedWorld()
    assert nominal.model is INSERT.model
    assert changed.physics(WorldParams(delay=2), INSERT) is INSERT.model
    body, geom = INSERT.id("body", "peg"), INSERT.id("geom", "red_peg")
    np.testing.assert_allclose(world.model.geom_size[geom, 1:], 0.0165)
    ratio = world.model.body_mass[body] / nominal.model.body_mass[body]
    assert ratio == pytest.approx((33 / 20) ** 2)
    assert INSERT.model.geom_size[geom, 1] == pytest.approx(0.010)  # the shared one is as it was
    start = world.data.qpos[PEG].copy()
    assert start[2] == pytest.approx(TABLE_HEIGHT + 0.0165, abs=2e-3)
    world.advance(10)
    np.testing.assert_allclose(world.data.qpos[PEG], start, atol=2e-3)


def test_an_emulated_world_has_the_same_peg():
    emulated, simulated = World(None, HiddenConfig(peg_mm=30.0)), SimulatedWorld(WorldParams(30.0))
    for name in ("geom_size", "geom_rbound", "body_mass", "body_inertia"):
        mine, theirs = getattr(emulated.model, name), getattr(simulated.model, name)
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    np.testing.assert_array_equal(emulated.home, changed.home_qpos(WorldParams(30.0), INSERT))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_commands_arrive_so_many_steps_later(delay):
    world = SimulatedWorld(WorldParams(delay=delay))
    robot = SimulatedRobot(world)
    robot.enable()
    held = world.data.ctrl[world.actuators].copy()
    seen = []
    for step in range(6):
        told = held + 0.001 * (step + 1)
        np.testing.assert_array_equal(robot.command(told), robot.targets())
        world.advance()
        seen.append(round(1000 * float(world.data.ctrl[world.actuators][0] - held[0])))
    assert seen == [max(0, step + 1 - delay) for step in range(6)]
    world.place(INSERT.home_qpos)
    before = world.data.ctrl.copy()
    world.advance(4)
    np.testing.assert_array_equal(world.data.ctrl, before)  # nothing was under way any more


def test_cameras_are_moved_to_their_right_and_turned_to_their_left():
    assert changed.looks(WorldParams(delay=2), INSERT) is None
    looks = changed.looks(WorldParams(camera=(30.0, 12.0)), INSERT)
    assert looks is not None
    for name in ("left", "right"):
        camera = INSERT.id("camera", f"wrist_cam_{name}")
        before, after = np.zeros(9), np.zeros(9)
        mujoco.mju_quat2Mat(before, INSERT.model.cam_quat[camera])
        mujoco.mju_quat2Mat(after, looks["cam_quat"][0, camera])
        before, after = before.reshape(3, 3), after.reshape(3, 3)
        moved = before.T @ (looks["cam_pos"][0, camera] - INSERT.model.cam_pos[camera])
        np.testing.assert_allclose(moved, [0.03, 0, 0], atol=1e-9)
        ahead = before.T @ after @ [0, 0, -1]  # where it looks, in the frame of the nominal one
        angle = np.radians(12)
        np.testing.assert_allclose(ahead, [-np.sin(angle), 0, -np.cos(angle)], atol=1e-9)


def test_a_sensor_loses_depth_and_adds_noise_that_follows_from_where_everything_is():
    homes = [INSERT.home_qpos.copy() for _ in range(3)]
    homes[1][0] += 1e-9
    drawn = {}
    for sensor in (0, 1):
        config = RigConfig("sim", stepped=True, params=WorldParams(sensor=sensor))
        with open_rig(config, judged=False) as rig:
            assert rig.simulation is not None
            drawn[sensor] = []
            for qpos in homes:
                rig.simulation.place(qpos, INSERT.home_ctrl)
                frame = rig.cameras[0].read(1.0)
                drawn[sensor].append((frame.rgb, frame.depth))
    for exact, noisy in zip(drawn[0], drawn[1], strict=True):
        assert [one.shape for one in noisy] == [one.shape for one in exact]
        assert [one.dtype for one in noisy] == [one.dtype for one in exact]
        # Noise of pixels is light that is added, up to 0.03 of full scale.
        brighter = noisy[0].astype(int) - exact[0]
        assert -1 <= brighter.min() <= brighter.max() <= 8
        assert 3 < brighter[exact[0] < 240].mean() < 4.5
        seen, still = exact[1] > 0, noisy[1] > 0
        assert 0.005 < (seen & ~still).sum() / seen.sum() < 0.6
        both = seen & still
        assert 1e-4 < np.median(np.abs(noisy[1] - exact[1])[both]) < 0.01
    for part in (0, 1):
        np.testing.assert_array_equal(drawn[1][0][part], drawn[1][2][part])
        assert (drawn[1][0][part] != drawn[1][1][part]).mean() > 0.1
