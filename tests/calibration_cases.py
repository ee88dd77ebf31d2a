"""Emulated arms that hide how they differ: the emulator's servos and physics without buses, its own pictures."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.calibration import excite, motion
from alohas2r.calibration.sight import MOUNT, Eye
from alohas2r.deployment.log import Run, Step
from alohas2r.deployment.motion import EnteredArms
from alohas2r.deployment.rig import RigConfig
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, PER_ARM, SIDES
from alohas2r.robots.base import Frame
from alohas2r.robots.dynamixel.arm import GripperLinkage, joint_to_ticks, ticks_to_joint
from alohas2r.robots.dynamixel.registers import CURRENT_UNIT_A
from alohas2r.robots.emulator.hidden import HiddenConfig
from alohas2r.robots.emulator.servo import Servo
from alohas2r.robots.emulator.world import World
from alohas2r.robots.simulated_arms import SimulatedArms
from alohas2r.robots.wrist_camera import wrist_cameras
from alohas2r.safety.config import FULL
from alohas2r.sim import scene

LINKAGE = GripperLinkage()


class Servos:
    """What `SimulatedArms` needs of a simulation: servos that are read and written past their buses."""

    def __init__(self, config: HiddenConfig) -> None:
        self.world = World(LINKAGE, config)
        self.world.set_up()
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        self.low, self.high = insert.ctrl_low[order], insert.ctrl_high[order]
        self.home = insert.home_ctrl[order]
        self.joints = np.concatenate([arm.qpos[:PER_ARM] for arm in insert.arms])
        self.steps = 0
        self.place()

    def place(self) -> None:
        """Puts both arms home, the objects out of the way, and lets the servos hold there."""
        self.world.place(excite.home())
        for side in SIDES:
            for servo in self.world.servos[side]:
                servo["Torque_Enable"] = 1

    def _masters(self, side: str) -> list[Servo]:
        return [one for one in self.world.servos[side] if one.kind.shadow_of is None]

    def position(self) -> np.ndarray:
        ticks = [[servo.position() for servo in self._masters(side)] for side in SIDES]
        return ticks_to_joint(np.array(ticks), LINKAGE).reshape(-1)

    def velocity(self) -> np.ndarray:
        return np.zeros(len(self.low))

    def force(self) -> np.ndarray:
        """Returns currents [14] (A), as the servos say them; the grippers' alone."""
        current = np.zeros((len(SIDES), PER_ARM))
        for row, side in zip(current, SIDES, strict=True):
            gripper = self._masters(side)[-1]
            self.world.refresh(side, gripper)
            row[-1] = gripper["Present_Current"] * CURRENT_UNIT_A
        return current.reshape(-1)

    def drive(self, target: np.ndarray) -> None:
        for side, arm in zip(SIDES, target.reshape(len(SIDES), PER_ARM), strict=True):
            ticks = joint_to_ticks(arm, LINKAGE)
            for servo in self.world.servos[side]:
                servo["Goal_Position"] = int(ticks[servo.kind.joint])

    # Hooks and Pacer of a run.
    realtime = False

    def wait(self) -> None:
        self.steps += 1
        self.world.step(scene.SUBSTEPS)

    def now_s(self) -> float:
        return self.steps * CONTROL_PERIOD_S

    def begin(self, episode: int) -> np.ndarray:
        self.place()
        return self.home.copy()

    def over(self) -> bool:
        return False


class Pictures:
    """Draws the depth of both wrist cameras by rays where the arms stand; else noise, which no camera is blamed for."""

    def __init__(self, servos: Servos, size: int) -> None:
        self._servos, self._size = servos, size
        self._eyes = [Eye(side, size) for side in SIDES]
        self._random = np.random.default_rng(0)
        self._number, self._step = 0, -1
        self._last = np.zeros(0)
        self._rgb = self._depth = np.zeros(0)

    def depth(self) -> np.ndarray:
        """Returns what both cameras see now [2, S, S] (m)."""
        joints = self._servos.world.data.qpos[self._servos.joints]
        drawn = [eye.look(joints, np.zeros(MOUNT))[0] for eye in self._eyes]
        return np.array(drawn, np.float32).reshape(len(SIDES), self._size, self._size)

    def frame(self, index: int) -> Frame:
        world = self._servos.world
        if self._step != self._servos.steps:
            self._step = self._servos.steps
            goals = world.goals()
            shape = len(SIDES), self._size, self._size
            self._rgb = np.full((*shape, 3), 100 + self._number % 2, np.uint8)
            self._depth = np.full(shape, 0.2 + 0.001 * (self._number % 2), np.float32)
            if np.array_equal(goals, self._last):
                self._depth = self.depth()
            self._last = goals
            self._number += 1
        return Frame(self._rgb[index], self._depth[index], time.monotonic(), self._number)


@contextlib.contextmanager
def opened(config: RigConfig, seconds: float, hidden: HiddenConfig | None) -> Iterator[EnteredArms]:
    """Opens emulated arms as `excite.open_arms` does, without buses."""
    servos = Servos(hidden or HiddenConfig())
    cameras = wrist_cameras(Pictures(servos, config.size))
    yield EnteredArms(SimulatedArms(servos), cameras, servos)


def logged(path: pathlib.Path, config: HiddenConfig) -> Run:
    """Lets hidden arms make their moves, and returns what was logged into a new file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(excite, "open_arms", opened)
        return excite.excite(
            RigConfig("emulated", stepped=True, size=excite.SIZE), path, True, hidden=config
        )


def played(config: HiddenConfig) -> Run:
    """Returns what hidden arms do on the moves of `excite`, without the loop and the guard, which change nothing."""
    servos = Servos(config)
    servos.place()
    pictures = Pictures(servos, excite.SIZE)
    goals, steps = motion.trajectory(FULL), []
    ends = np.append(
        np.abs(np.diff(goals, axis=0)).max(1) > 0, True
    )  # where the arms begin to move again
    for index, goal in enumerate(goals):
        arrays = {"position": servos.position(), "current": servos.force(), "command": goal}
        if ends[index] and not ends[index - 1]:
            arrays |= {
                f"observation/{side}_depth": one
                for side, one in zip(SIDES, pictures.depth(), strict=True)
            }
        steps.append(Step({"episode": 0}, arrays))
        servos.drive(goal)
        servos.wait()
    header = {"robot": "emulated", "period_s": CONTROL_PERIOD_S, "stepped": True}
    return Run(header, steps, [], None)
