"""Sets down what the grippers hold, lets go of it, and backs away."""

from __future__ import annotations

import enum

import mujoco
import numpy as np

from alohas2r.embodiment import joints
from alohas2r.embodiment.joints import ARM_JOINTS, HELD_GAP_M, IS_GRIPPER, PER_ARM, SIDES
from alohas2r.safety.config import SLOW, SafetyConfig
from alohas2r.sim import scene


def holding(command: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Returns [2] which grippers hold something: their fingers cannot follow their target.

    Args:
      command: [14] the last command.
      measured: [14] measured positions.
    """
    return (measured - command)[IS_GRIPPER] > HELD_GAP_M


class _Phase(enum.Enum):
    LOWER = 0
    OPEN = 1
    BACK_OFF = 2
    RISE = 3
    OVER = 4


class Release:
    """Leads both arms while they let go: the parts come to rest on the table first.

    Arms that hold something are lowered together, without turning, so that parts that are joined stay so; each until
    it does not follow any more, because what it holds rests on the table, or is as low as it may get. Then both
    grippers open as far as they go, draw back along themselves and rise. A phase that gets nowhere, because the
    guard keeps an arm from going on, is over as well; so a release always ends.

    Attributes:
      stuck: never; see above.
    """

    stuck = False
    SPEED = 0.05  # of the fingertips (m/s)
    FLOOR_M = (
        0.004  # height of the fingertips' midpoint above the table at which they cannot go lower
    )
    RESTS_M = 0.008  # by how much further than at the start the fingers lag above their target when a part rests
    BACK_M, RISE_M = 0.07, 0.06
    AHEAD_M = 0.01  # the aim waits for an arm that is further behind than this
    PATIENCE_STEPS = 10  # without progress, after which a phase is over
    DAMPING = 0.02  # of the inverse kinematics, against singular poses

    def __init__(self, config: SafetyConfig = SLOW) -> None:
        """Prepares; the first target decides what there is to release."""
        insert = scene.load("insert")
        self._model, self._data = insert.model, mujoco.MjData(insert.model)
        self._table = float(insert.model.geom("table").pos[2])
        self._most = config.max_speed * config.period_s
        self._pace = self.SPEED * config.period_s
        self._open = insert.ctrl_high[np.concatenate([arm.ctrl for arm in insert.arms])][IS_GRIPPER]
        self._arms = [
            _Arm(insert, side, np.asarray(arm.qpos), np.asarray(arm.qvel)[: len(ARM_JOINTS)])
            for side, arm in zip(SIDES, insert.arms, strict=True)
        ]
        self._phase = _Phase.LOWER
        self._aims: list[_Aim] | None = None
        self._waited = 0
        self._way = 0.0  # how far the aims have gone in this phase (m)
        self._travel = np.full(len(SIDES), np.nan)

    def target(self, last: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
        """Returns the next target [14], or None once the arms are clear of what they released.

        Args:
          last: [14] the last command.
          measured: [14] measured positions.
        """
        poses = [self._pose(arm, last) for arm in self._arms]
        if self._aims is None:
            self._begin(poses, last, measured)
        while self._phase is not _Phase.OVER:
            target = self._follow(poses, last, measured)
            if target is not None:
                return target
            self._next_phase(poses, measured)
        return None

    def _begin(self, poses: list[_Pose], last: np.ndarray, measured: np.ndarray) -> None:
        lags = [
            self._pose(arm, measured).tip[2] - pose.tip[2]
            for arm, pose in zip(self._arms, poses, strict=True)
        ]
        self._aims = [
            _Aim(pose, lag, not held)
            for pose, lag, held in zip(poses, lags, holding(last, measured), strict=True)
        ]

    def _next_phase(self, poses: list[_Pose], measured: np.ndarray) -> None:
        self._phase = _Phase(self._phase.value + 1)
        self._waited, self._way = 0, 0.0
        lags = [aim.lag for aim in self._aims or []]
        self._aims = [_Aim(pose, lag) for pose, lag in zip(poses, lags, strict=True)]
        if self._phase is _Phase.OPEN:  # what rests on the table need not be pressed onto it
            for arm, aim in zip(self._arms, self._aims, strict=True):
                aim.tip[2] = max(aim.tip[2], self._pose(arm, measured).tip[2] - aim.lag)

    def _follow(
        self, poses: list[_Pose], last: np.ndarray, measured: np.ndarray
    ) -> np.ndarray | None:
        if self._phase is _Phase.LOWER:
            return self._lower(poses, last, measured)
        if self._phase is _Phase.OPEN:
            return self._let_go(poses, last, measured)
        return self._draw_away(poses, last)

    def _lower(
        self, poses: list[_Pose], last: np.ndarray, measured: np.ndarray
    ) -> np.ndarray | None:
        aims = self._aims or []
        for arm, pose, aim in zip(self._arms, poses, aims, strict=True):
            rests = self._pose(arm, measured).tip[2] - pose.tip[2] > aim.lag + self.RESTS_M
            aim.done |= rests or pose.tip[2] < self._table + self.FLOOR_M
        busy = [not aim.done for aim in aims]
        if not any(busy) or self._waited >= self.PATIENCE_STEPS:
            return None
        down = np.array([0.0, 0.0, -self._pace])
        self._advance(poses, [down * moving for moving in busy])
        return self._solve(poses, last, [not aim.done for aim in aims])

    def _let_go(
        self, poses: list[_Pose], last: np.ndarray, measured: np.ndarray
    ) -> np.ndarray | None:
        target = self._solve(poses, last, [True] * len(SIDES))
        target[IS_GRIPPER] = self._open
        opened = measured[IS_GRIPPER]
        # Before the targets are there, or while the fingers still move, it is not over.
        moving = not np.abs(opened - self._travel).max() < 1e-4
        self._travel = opened.copy()
        arrived = np.abs(last - target)[IS_GRIPPER].max() < 1e-6
        self._waited = 0 if moving or not arrived else self._waited + 1
        self._way += 1
        if self._waited >= 3 or self._way >= 3 * self.PATIENCE_STEPS:
            return None
        return target

    def _draw_away(self, poses: list[_Pose], last: np.ndarray) -> np.ndarray | None:
        back = self._phase is _Phase.BACK_OFF
        length = self.BACK_M if back else self.RISE_M
        if self._way >= length or self._waited >= self.PATIENCE_STEPS:
            return None
        up = np.array([0.0, 0.0, self._pace])
        self._advance(poses, [-self._pace * pose.forwards if back else up for pose in poses])
        return self._solve(poses, last, [True] * len(SIDES))

    def _advance(self, poses: list[_Pose], steps: list[np.ndarray]) -> None:
        """Moves the aims on, unless an arm is behind: then all wait."""
        aims = self._aims or []
        behind = max(
            float(np.linalg.norm(aim.tip - pose.tip)) if step.any() else 0.0
            for aim, pose, step in zip(aims, poses, steps, strict=True)
        )
        if behind > self.AHEAD_M:
            self._waited += 1
            return
        self._waited = 0
        self._way += self._pace
        for aim, step in zip(aims, steps, strict=True):
            aim.tip = aim.tip + step

    def _solve(self, poses: list[_Pose], last: np.ndarray, moving: list[bool]) -> np.ndarray:
        """Returns targets that bring the arms closer to their aims, without turning the grippers.

        Source: damped least squares, Nakamura and Hanafusa, Inverse kinematic solutions with singularity robustness
        for robot manipulator control (1986).
        """
        target = last.copy()
        turn, error = np.zeros(3), np.zeros(6)
        for index, (arm, pose, aim) in enumerate(
            zip(self._arms, poses, self._aims or [], strict=True)
        ):
            if not moving[index]:
                continue
            error[:3] = aim.tip - pose.tip
            mujoco.mju_subQuat(turn, aim.turn, pose.turn)  # in the gripper's frame
            mujoco.mju_rotVecQuat(error[3:], turn, pose.turn)
            self._place(last)
            jacobian = arm.jacobian(self._model, self._data)
            square = jacobian @ jacobian.T + self.DAMPING**2 * np.eye(6)
            step = jacobian.T @ np.linalg.solve(square, error)
            step *= min(1.0, self._most / max(float(np.abs(step).max()), 1e-12))
            target[index * PER_ARM : index * PER_ARM + len(ARM_JOINTS)] += step
        return target

    def _pose(self, arm: _Arm, pose: np.ndarray) -> _Pose:
        self._place(pose)
        return arm.pose(self._data)

    def _place(self, pose: np.ndarray) -> None:
        for arm, angles in zip(self._arms, pose.reshape(len(SIDES), PER_ARM), strict=True):
            self._data.qpos[arm.qpos] = [*angles, angles[-1]]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)


class _Pose:
    """Where a gripper is: the midpoint of its fingertips, its orientation, and where it points."""

    def __init__(self, tip: np.ndarray, turn: np.ndarray, forwards: np.ndarray) -> None:
        self.tip, self.turn, self.forwards = tip, turn, forwards


class _Aim:
    """Where a gripper is to be led, from where it was."""

    def __init__(self, pose: _Pose, lag: float, done: bool = False) -> None:
        self.tip, self.turn, self.lag, self.done = pose.tip.copy(), pose.turn.copy(), lag, done


class _Arm:
    """One arm of the scene."""

    def __init__(self, insert: scene.Scene, side: str, qpos: np.ndarray, dofs: np.ndarray) -> None:
        self.qpos, self._dofs = qpos, dofs
        fingers = joints.FINGER_JOINTS
        self._tips = [insert.id("site", f"{side}/{finger}tip") for finger in fingers]
        finger = int(insert.model.joint(f"{side}/{fingers[0]}").bodyid[0])
        self._palm = int(insert.model.body_parentid[finger])

    def pose(self, data: mujoco.MjData) -> _Pose:
        tip = data.site_xpos[self._tips].mean(axis=0)
        forwards = tip - data.xpos[self._palm]
        return _Pose(tip, data.xquat[self._palm].copy(), forwards / np.linalg.norm(forwards))

    def jacobian(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """Returns [6, 6]: how the fingertips' midpoint moves and the gripper turns with each joint."""
        point = data.site_xpos[self._tips].mean(axis=0)
        along, about = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, along, about, point, self._palm)
        return np.concatenate([along, about])[:, self._dofs]
