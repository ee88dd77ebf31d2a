"""Servos are found again from how simulated arms move."""

import numpy as np
import pytest

from alohas2r.calibration import arms, servos
from alohas2r.calibration.arms import Moves, Servos
from alohas2r.calibration.servos import Moved
from alohas2r.deployment.loop import start_pose
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, IS_GRIPPER

JOINTS = np.arange(14)


def servos_like(**changes: np.ndarray) -> Servos:
    """Returns one pair of nominal arms with some changes."""
    ones = np.ones((1, 14))
    return Servos(ones, ones, ones, np.zeros((1, 14)), np.zeros((1, 2)))._replace(**changes)


def commands(seconds: float) -> np.ndarray:
    """Returns targets [T, 14]: every joint steps to and fro at its own pace."""
    steps = np.arange(round(seconds / CONTROL_PERIOD_S))
    turn = np.sign(np.sin(steps[:, None] * CONTROL_PERIOD_S * (1.0 + 0.13 * JOINTS)))
    wanted = start_pose() - np.where(IS_GRIPPER, 0.012, 0.08) * (1 + turn) / 2
    return np.array(
        [start_pose() + (row - start_pose()) * min(1.0, i / 20) for i, row in enumerate(wanted)]
    )


def moved(truth: Servos, seconds: float = 12.0) -> Moved:
    """Returns what arms do on these commands, as ticks tell it."""
    command = commands(seconds)
    moves = Moves(
        CONTROL_PERIOD_S * np.arange(len(command)),
        command,
        np.tile(start_pose(), (len(command), 1)),
    )
    response = arms.simulate(moves, truth)
    tick = np.where(IS_GRIPPER, servos.TRAVEL_M, servos.POSITION)
    position = np.round(response.position[0] / tick) * tick
    return Moved(moves._replace(position=position), response.force[0][:, IS_GRIPPER])


def test_nominal_arms_move_as_the_scene_does() -> None:
    from alohas2r.robots.simulated import SimulatedWorld

    command, world = commands(3.0), SimulatedWorld()
    seen = []
    for target in command:
        seen.append(world.position())
        world.drive(target)
        world.advance()
    moves = Moves(CONTROL_PERIOD_S * np.arange(len(command)), command, np.array(seen))
    response = arms.simulate(moves, servos_like())
    assert response.position[0] == pytest.approx(np.array(seen), abs=2e-4)


def test_a_delay_is_a_shift_and_play_leaves_a_gap() -> None:
    command = commands(3.0)
    moves = Moves(
        CONTROL_PERIOD_S * np.arange(len(command)),
        command,
        np.tile(start_pose(), (len(command), 1)),
    )
    prompt = arms.simulate(moves, servos_like()).position[0]
    late = arms.simulate(moves, servos_like(delay=np.full((1, 2), 2 * CONTROL_PERIOD_S))).position[
        0
    ]
    assert late[22:] == pytest.approx(prompt[20:-2], abs=3e-3)
    loose = arms.simulate(moves, servos_like(play=np.where(IS_GRIPPER, 0.0, 0.02)[None])).position[
        0
    ]
    assert np.abs(loose - prompt)[-1, ~IS_GRIPPER].max() > 0.004


def test_servos_are_found_again() -> None:
    draw = np.random.default_rng(5)
    gain = np.exp(draw.uniform(np.log(0.5), np.log(1.8), (1, 14)))
    damping = np.exp(draw.uniform(np.log(0.6), np.log(1.6), (1, 14)))
    play = np.where(IS_GRIPPER, 0.0, draw.uniform(0, 0.012, (1, 14)))
    truth = servos_like(gain=gain, damping=damping, play=play, delay=np.array([[0.037, 0.112]]))
    estimate = servos.fit([moved(truth)])
    assert estimate.delay[:, 0] == pytest.approx([0.037, 0.112], abs=0.01)
    gain_error = np.abs(np.log(estimate.gain[:, 0] / gain[0]))
    # A folded arm hardly has any inertia about its waist, by which alone a waist's gain is told.
    assert gain_error[(JOINTS % 7 > 0)].max() < 0.15
    assert (estimate.explained > 0.99).all()
    assert (estimate.gain[:, 1] <= estimate.gain[:, 0]).all()
    assert (estimate.gain[:, 0] <= estimate.gain[:, 2]).all()
    assert np.isnan(estimate.friction[:, 0]).tolist() == (~arms.dry()).tolist()
