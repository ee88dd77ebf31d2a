"""What only the simulation knows: where starts are drawn, and whether the arm can take the object from there."""

import mujoco
import numpy as np
import online_cases

from alohas2r.deployment.online.truth import Start, Truth
from alohas2r.deployment.rig import Simulation
from alohas2r.policies.online.tasks import START
from alohas2r.sim import scene

OBJECT = scene.load("insert").arms[0].object_qpos


def turned(quaternion, axis, angle):
    half, result = np.zeros(4), np.zeros(4)
    mujoco.mju_axisAngle2Quat(half, np.array(axis, float), angle)
    mujoco.mju_mulQuat(result, quaternion, half)
    return result


def test_starts_and_what_became_of_them():
    state: list[Start] = []
    simulation = Simulation(
        lambda qpos, targets: None, None, lambda: (state[-1].qpos, np.zeros(0), state[-1].targets)
    )
    truth, draw = Truth(online_cases.spec("pick"), simulation), np.random.default_rng(0)
    for _ in range(50):
        start = truth.draw(draw)
        state.append(start)
        truth.begin()
        assert truth.in_region()
        assert not truth.done()
        waist, reach, _ = truth.grip()
        assert abs(waist - 0.25) < START.direction + 0.05
        assert START.reach[0] - 0.03 < reach < START.reach[1]
        for change, takes in (
            (("turn", (1, 0, 0), np.pi / 2), True),  # it rolled onto another side
            (("turn", (0, 1, 0), np.pi / 2), False),  # it stands
            (("turn", (0, 0, 1), 1.0), False),  # across
            (("move", 0, 0.2), False),  # out of reach
            (("move", 2, 0.1), False),  # it hangs
        ):
            qpos = start.qpos.copy()
            if change[0] == "turn":
                qpos[OBJECT[3:]] = turned(qpos[OBJECT[3:]], *change[1:])
            else:
                qpos[OBJECT[change[1]]] += change[2]
            state.append(Start(qpos, start.targets))
            assert truth.in_region() == takes
        assert truth.done()  # it hangs: it was lifted
