"""Emulated arms that differ do what their variation says, and nothing says how."""

import dataclasses

import numpy as np
import pytest

from alohas2r.errors import ConfigError
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.dynamixel.registers import CENTRE_TICK, RAD_PER_TICK
from alohas2r.robots.emulator.hidden import HiddenConfig, draw
from alohas2r.robots.emulator.world import World
from alohas2r.sim import scene
from alohas2r.sim.variation import NEUTRAL

ZEROS = dataclasses.replace(NEUTRAL, zero_deg=1.5, travel_m=0.002, travel_scale=(0.95, 1.05))


def powered(config: HiddenConfig) -> World:
    """Returns arms at home that hold."""
    world = World(None, config)
    world.set_up()
    for servos in world.servos.values():
        for servo in servos:
            servo["Torque_Enable"] = 1
    return world


def master(world: World, joint: int):
    """Returns the servo of a joint of the left arm that is commanded."""
    return next(
        s for s in world.servos["left"] if s.kind.joint == joint and s.kind.shadow_of is None
    )


def test_readings_are_off_as_drawn() -> None:
    config = HiddenConfig(ZEROS, 4)
    held, world = draw(config).held, World(None, config)
    world.set_up()
    qpos = world.data.qpos
    for joint in range(6):
        tick = master(world, joint).position()
        reading = (tick - CENTRE_TICK) * RAD_PER_TICK
        actual = qpos[world.joints[joint]]
        assert reading == pytest.approx(actual + held.offset[0, joint], abs=RAD_PER_TICK)
    angle = (master(world, 6).position() - CENTRE_TICK) * RAD_PER_TICK
    travel = float(held.scale[0, 6] * qpos[world.joints[6]] + held.offset[0, 6])
    assert GripperLinkage().travel(angle) == pytest.approx(travel, abs=1e-4)


def test_a_goal_is_reached_as_it_is_read() -> None:
    world = powered(HiddenConfig(ZEROS, 4))
    servo = master(world, 3)
    goal = servo.position() + 40
    for one in world.servos["left"]:
        if one.kind.joint == 3:
            one["Goal_Position"] = goal
    world.step(400)
    assert servo.position() == pytest.approx(goal, abs=3)


@pytest.mark.parametrize(("delay_s", "steps"), [(0.0, 0), (0.06, 12)])
def test_commands_arrive_late(delay_s: float, steps: int) -> None:
    world = powered(HiddenConfig(command_delay_s=delay_s))
    world.step(100)
    servo, before = master(world, 0), world.data.qpos.copy()
    servo["Goal_Position"] = servo.position() + 100
    moved = []
    for _ in range(30):
        world.step()
        moved.append(abs(world.data.ctrl[world.actuators[0]] - before[world.joints[0]]) > 0.005)
    assert moved.index(True) == steps


def test_servos_differ_as_drawn_and_play_does_not_push() -> None:
    weak = dataclasses.replace(NEUTRAL, gain=(0.5, 0.5), backlash_deg=(1.0, 1.0))
    nominal, loose = World(None), powered(HiddenConfig(weak))
    gain = loose.model.actuator_gainprm[loose.actuators[:6], 0]
    loose.step()
    assert gain == pytest.approx(0.5 * nominal.model.actuator_gainprm[nominal.actuators[:6], 0])
    loose.step(200)
    error = loose.data.ctrl[loose.actuators] - loose.data.qpos[loose.joints]
    assert (
        np.abs(error[[0, 7]]).max() < 1e-3
    )  # no gravity at the waists: they rest within their play


def test_what_pictures_would_not_show_is_refused() -> None:
    with pytest.raises(ConfigError, match="table_m of an emulated robot must stay"):
        HiddenConfig(dataclasses.replace(NEUTRAL, table_m=(0.0, 0.02)))
    with pytest.raises(ConfigError, match="command_delay_s = 2"):
        HiddenConfig(command_delay_s=2.0)


def test_what_servos_strive_for_comes_along_so_that_they_hold_what_they_held() -> None:
    insert = scene.load("insert")
    key = insert.model.key("preinsert")
    told = key.ctrl[np.concatenate([arm.ctrl for arm in insert.arms])]
    heights = [arm.object_qpos[2] for arm in insert.arms]
    for goals, holds in ((told, True), (None, False)):
        world = powered(HiddenConfig())
        world.place(np.array(key.qpos), goals=goals)
        if goals is not None:
            np.testing.assert_allclose(world.goals(), told, atol=2e-3)  # a servo's ticks
        world.step(60)
        assert ((world.data.qpos[heights] > 0.09) == holds).all()
