"""What only a simulation knows: where the object is, and whether a task is truly done. Nothing learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import mujoco
import numpy as np

from alohas2r.deployment.rig import Simulation
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import START
from alohas2r.sim import changed, scene
from alohas2r.sim.changed import NOMINAL, WorldParams
from alohas2r.sim.kinematics import quaternion_matrix, tip_midpoints
from alohas2r.sim.objects import HALF_LENGTH, SOCKET_HALF, TABLE_HEIGHT

if TYPE_CHECKING:
    from alohas2r.deployment.trials import Trials

_SPARE_M = (
    0.004  # beside the object, where the middle between the fingertips still counts as within it
)
_LIFTED_M = 0.05  # above where it lay
_TILTED = (
    0.3  # sine of the angle of an object's long axis above the table beyond which it does not lie
)


class Start(NamedTuple):
    """Where an episode begins: joint positions [nq] and targets [14]."""

    qpos: np.ndarray
    targets: np.ndarray


def present(simulation: Simulation) -> Start:
    """Returns the present state of a world."""
    qpos, _, targets = simulation.state()
    return Start(np.array(qpos, float), np.array(targets, float))


class Knowing(Protocol):
    """What knows the world of simulated arms."""

    def begin(self) -> None:
        """Takes note of where an episode begins."""
        ...

    def state(self) -> Start:
        """Returns the world's present state."""
        ...

    def done(self) -> bool:
        """Returns whether the task is done, as nobody on a robot can tell; asked once in each control step."""
        ...

    def in_region(self) -> bool:
        """Returns whether the robot can take up its task where everything is."""
        ...

    def draw(self, draw: np.random.Generator, evaluation: bool = False) -> Start:
        """Draws where an episode begins, in an evaluation or not."""
        ...


class InsertTruth:
    """Knows whether a peg was inserted, as evaluations of the insertion count it, and their starts: `Knowing`.

    Args:
      trials: starts and judge; every second start is left to evaluations.
      simulation: the world. arms: what each arm's object does, left first.
    """

    def __init__(self, trials: Trials, simulation: Simulation, arms: Sequence[Truth]) -> None:
        self._trials, self._simulation, self._arms = trials, simulation, arms
        self._number = 0

    def begin(self) -> None:
        """Begins to judge an episode that begins where everything is."""
        self._trials.follow(self._number)
        self._number = 0  # until another start is drawn, so that a resumed run judges alike

    def state(self) -> Start:
        """Returns the world's present state."""
        return present(self._simulation)

    def done(self) -> bool:
        """Takes a control step; returns whether the peg was inserted by now, for five steps."""
        self._trials.judge()
        return self._trials.succeeded

    def in_region(self) -> bool:
        """Returns whether both objects are held up, or lie where the arms can take them, apart and not turned."""
        held = [arm.aloft() for arm in self._arms]
        left, right = (arm.object_pos() for arm in self._arms)
        apart = np.linalg.norm(left - right) > 2 * HALF_LENGTH
        lie = not any(held) and all(arm.in_region() and arm.faces() for arm in self._arms)
        taken = all(held) or lie
        return bool(apart and taken)

    def draw(self, draw: np.random.Generator, evaluation: bool = False) -> Start:
        """Draws one of the starts."""
        self._number = 2 * int(draw.integers(len(self._trials.starts) // 2)) + evaluation
        return Start(self._trials.starts[self._number], self._trials.targets[self._number])


class Truth:
    """Measures the world of simulated arms: `Knowing`.

    Args:
      spec: what learns. simulation: the world. params: what is otherwise in it than in the nominal one.
    """

    def __init__(
        self, spec: OnlineSpec, simulation: Simulation, params: WorldParams = NOMINAL
    ) -> None:
        loaded = scene.load_physics("insert")
        self._spec, self._simulation = spec, simulation
        self._scene, self._data = loaded, mujoco.MjData(loaded.model)
        self._arm = arm = loaded.arms[SIDES.index(spec.side)]
        self._grip = loaded.sensor(f"{arm.object_sensors}_grip_pos", 3)
        self._home_qpos = changed.home_qpos(params, loaded)
        self._lain = 0.0
        self._turn = quaternion_matrix(arm.base_quat)
        self._actuators = np.concatenate([one.ctrl for one in loaded.arms])

    def begin(self) -> None:
        """Remembers how high the object lies at the start of an episode."""
        self._lain = float(self.object_pos()[2])

    def state(self) -> Start:
        """Returns the world's present state."""
        return present(self._simulation)

    def grip(self) -> np.ndarray:
        """Returns waist, reach and height [3] at which the arm grips the object (rad, m, m)."""
        data = self._data
        data.qpos[:] = self._simulation.state()[0]
        mujoco.mj_fwdPosition(self._scene.model, data)
        mujoco.mj_sensorPos(self._scene.model, data)
        x, y, z = data.sensordata[self._grip]
        return np.array([np.arctan2(y, x), np.hypot(x, y), z])

    def done(self) -> bool:
        """Returns whether the task is done at present, as nobody on a robot can tell."""
        qpos = self._simulation.state()[0]
        if self._spec.task == "pick":
            return bool(qpos[self._arm.object_qpos[2]] > self._lain + _LIFTED_M)
        arms = qpos[np.array([one.qpos for one in self._scene.arms])]
        tip = tip_midpoints(arms)[SIDES.index(self._spec.side)]
        turn = quaternion_matrix(qpos[self._arm.object_qpos[3:]])
        inside = np.abs(turn.T @ (tip - qpos[self._arm.object_qpos[:3]]))
        return bool((inside < [HALF_LENGTH, SOCKET_HALF + _SPARE_M, SOCKET_HALF + _SPARE_M]).all())

    def aloft(self) -> bool:
        """Returns whether the object is well above the table."""
        return bool(self.object_pos()[2] > TABLE_HEIGHT + SOCKET_HALF + _LIFTED_M)

    def faces(self) -> bool:
        """Returns whether the object's long axis points the way it does in the home pose, not the other."""
        turns = (self._simulation.state()[0], self._home_qpos)
        now, home = (quaternion_matrix(one[self._arm.object_qpos[3:]])[:, 0] for one in turns)
        return bool(now @ home > 0)

    def in_region(self) -> bool:
        """Returns whether the object lies flat, on whichever side, where the arm can take it."""
        qpos = self._simulation.state()[0]
        waist, reach, _ = self.grip()
        quaternion = qpos[self._arm.object_qpos[3:]]
        turn = self._turn.T @ quaternion_matrix(quaternion)
        home = float(self._scene.home_ctrl[self._arm.ctrl[0]])
        along = np.arctan2(turn[1, 0], turn[0, 0]) - waist
        askew = abs((along + np.pi / 2) % np.pi - np.pi / 2)
        near = (
            START.reach[0] - 0.06 < reach < START.reach[1] + 0.02
            and abs(waist - home) < START.direction + 0.15
        )
        lies = abs(self.object_pos()[2] - TABLE_HEIGHT - SOCKET_HALF) < 0.015
        return bool(near and lies and abs(turn[2, 0]) < _TILTED and askew < 0.5)

    def draw(self, draw: np.random.Generator, evaluation: bool = False) -> Start:
        """Draws where an episode begins: the arm in its home pose, the object before it."""
        qpos, arm = self._home_qpos.copy(), self._arm
        targets = self._scene.home_ctrl[self._actuators].copy()
        home = float(self._scene.home_ctrl[arm.ctrl[0]])
        waist = home + draw.uniform(-START.waist, START.waist)
        targets[PER_ARM * SIDES.index(self._spec.side)] = qpos[arm.qpos[0]] = waist
        angle = home + draw.uniform(-START.direction, START.direction)
        reach, yaw = draw.uniform(*START.reach), angle + draw.uniform(-START.yaw, START.yaw)
        height = qpos[arm.object_qpos[2]] - arm.base_pos[2]
        place = np.array([reach * np.cos(angle), reach * np.sin(angle), height])
        qpos[arm.object_qpos[:3]] = arm.base_pos + self._turn @ place
        half = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
        turned = np.zeros(4)
        mujoco.mju_mulQuat(turned, np.asarray(arm.base_quat, float), half)
        qpos[arm.object_qpos[3:]] = turned
        return Start(qpos, targets)

    def object_pos(self) -> np.ndarray:
        """Returns where the object is in the world [3]."""
        return np.asarray(self._simulation.state()[0])[self._arm.object_qpos[:3]]
