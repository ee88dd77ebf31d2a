"""A world at work: its arms as a `Robot`, its wrist cameras as `Camera`s, its state in the project's own terms."""

from __future__ import annotations

import os
import time
from typing import NamedTuple, Self

import mujoco
import numpy as np

from alohas2r.embodiment import camera as embodiment_camera
from alohas2r.embodiment.camera import FOVY_DEG
from alohas2r.embodiment.joints import GRIPPERS, IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.rendering.opengl import DepthView
from alohas2r.robots.base import Frame
from alohas2r.robots.simulated_arms import SimulatedArms
from alohas2r.robots.worlds import build as building
from alohas2r.robots.worlds.table import CamerasTable, GripperTable, read_table
from alohas2r.robots.wrist_camera import WristCamera, wrist_cameras
from alohas2r.sim import scene
from alohas2r.sim.kinematics import quaternion_matrix
from alohas2r.sim.objects import PEG_HALF, SOCKET_HALF, TABLE_HEIGHT

_SETTLE_S = 0.5  # for which a world must hold still when it is opened
_FAST = 50.0  # rad/s or m/s; what is faster meanwhile has exploded


class Contacts(NamedTuple):
    """What touches what in a world, forces in the world's frame of the project's own scene.

    Attributes:
      finger_force: [2, 2, 3] net force (N) that the left, right finger of each arm exerts.
      on_table: [2] whether a hand touches what does not move.
      hand_on_other: [2] largest force (N) between a hand and the other hand's object.
    """

    finger_force: np.ndarray
    on_table: np.ndarray
    hand_on_other: np.ndarray


class World:
    """Two arms, socket and peg in somebody else's simulation.

    Everything that goes in or comes out is in the project's own terms: joints in rad, fingers in metres of travel,
    poses in the world frame of the project's own scene, whose left base stands where the world's left base does.

    Attributes:
      table: the names. name: the world's. digest: identifies every number of it.
      model, data: the physics. built: where everything is in them.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """Opens a world and lets it stand for a moment.

        Args:
          name: a table's path, or the name of one that comes with this package.

        Raises:
          ConfigError: something is missing or of the wrong kind, or the scene explodes.
          BackendUnavailable: the package that has its files is not installed.
        """
        self.table, path = read_table(name)
        self.name = self.table.name
        self.built = building.build(self.table, path)
        self.digest, self.model = self.built.digest, self.built.model
        self.data = mujoco.MjData(self.model)
        self._own = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in self._own.arms])
        self.low, self.high = self._own.ctrl_low[order], self._own.ctrl_high[order]
        mujoco.mj_forward(self.model, self.data)
        self._bases = [
            (self.data.xmat[arm.base].reshape(3, 3).copy(), self.data.xpos[arm.base].copy())
            for arm in self.built.arms
        ]
        self._own_bases = [
            (quaternion_matrix(arm.base_quat), arm.base_pos) for arm in self._own.arms
        ]
        # own = turn @ (world - origin), so that the left bases coincide.
        self._turn = self._own_bases[0][0] @ self._bases[0][0].T
        self._origin = self._bases[0][1] - self._turn.T @ self._own_bases[0][1]
        self.place(self._own.home_qpos)
        self._fingers = [self._sorted_fingers(side) for side in range(len(SIDES))]
        self._settle()

    def _sorted_fingers(self, side: int) -> tuple[int, ...]:
        """Returns the bodies of an arm's fingers, first the one that stands where left_finger does at home."""
        own, data = self._own.model, mujoco.MjData(self._own.model)
        data.qpos[:] = self._own.home_qpos
        mujoco.mj_kinematics(own, data)
        tips = [data.site(f"{SIDES[side]}/{finger}_fingertip").xpos for finger in SIDES]
        across = self._turn.T @ (tips[1] - tips[0])
        fingers = self.built.arms[side].fingers
        return tuple(sorted(fingers, key=lambda body: float(across @ self.data.xipos[body])))

    def right_base(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns position [3] (m) and quaternion [4] of the right base in the own scene's world frame."""
        turn, pos = self._bases[1]
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, (self._turn @ turn).ravel())
        return self._turn @ (pos - self._origin), quat

    def _settle(self) -> None:
        """Makes sure that the arms hold still at home."""
        before = self.position()
        try:
            mujoco.mj_step(self.model, self.data, nstep=round(_SETTLE_S / self.model.opt.timestep))
        except mujoco.FatalError as error:
            raise ConfigError(
                f"World '{self.name}' explodes, held at the home pose: {_first_line(error)}"
            ) from None
        speed = np.abs(self.data.qvel)
        if not np.isfinite(self.data.qpos).all() or speed.max(initial=0) > _FAST:
            bad = int(np.argmax(np.where(np.isfinite(speed), speed, np.inf)))
            joint = self.model.joint(self.model.dof_jntid[bad]).name
            raise ConfigError(
                f"World '{self.name}' explodes: held at the home pose, joint '{joint}' flies away within"
                f" {_SETTLE_S} s. Check the time step, gains and overlapping shapes."
            )
        moved = np.abs(self.position() - before)[~IS_GRIPPER].max()
        if moved > 1.0:
            raise ConfigError(
                f"World '{self.name}' does not hold the home pose: a joint moves by {moved:.1f} rad within"
                f" {_SETTLE_S} s."
                " Check joints, signs and offsets of the table."
            )
        self.place(self._own.home_qpos)

    def grips(self) -> tuple[GripperTable, GripperTable]:
        """Returns the tables of both grippers."""
        return self.table.left.gripper, self.table.right.gripper

    def place(self, qpos: np.ndarray, ctrl: np.ndarray | None = None) -> None:
        """Puts everything somewhere, at rest; the arms hold there.

        Objects go where they are relative to their arm's base, as high as the world's table is there.

        Args:
          qpos: [nq] of the project's insertion scene.
          ctrl: [14] targets; None: the arms' positions.
        """
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        values = np.concatenate([qpos[arm.qpos[:PER_ARM]] for arm in self._own.arms])
        for side, arm in enumerate(self.built.arms):
            hinges, gripper = self._to_world(side, values[PER_ARM * side : PER_ARM * (side + 1)])
            data.qpos[arm.qpos] = hinges
            signs = np.array(self.grips()[side].signs or (1.0,) * len(arm.grip_qpos))
            data.qpos[arm.grip_qpos] = signs * gripper
        self.drive(np.clip(values if ctrl is None else ctrl, self.low, self.high))
        mujoco.mj_kinematics(model, data)
        halves = (SOCKET_HALF, PEG_HALF)
        for side, where in enumerate(self.built.object_qpos):
            pose = qpos[self._own.arms[side].object_qpos]
            turn, base = self._bases[side]
            own_turn, own_base = self._own_bases[side]
            local = turn @ own_turn.T
            spot = base + local @ (pose[:3] - own_base)
            quat = np.zeros(4)
            mujoco.mju_mat2Quat(quat, local.ravel())
            turned = np.zeros(4)
            mujoco.mju_mulQuat(turned, quat, pose[3:])
            if abs(pose[2] - halves[side] - TABLE_HEIGHT) < 0.005:  # it lies on the table
                spot[2] = building.table_height(model, data, spot[:2]) + halves[side]
            data.qpos[where] = [*spot, *turned]
        mujoco.mj_forward(model, data)

    def _to_world(self, side: int, values: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the world's hinges [6] and first gripper joint for one arm's joints [7]."""
        arm = (self.table.left, self.table.right)[side]
        hinges = np.array(arm.signs) * values[:6] + np.array(arm.offsets)
        return hinges, _joint_of(arm.gripper, float(values[6]))

    def drive(self, target: np.ndarray) -> None:
        """Sets the actuators to targets [14]."""
        for side, arm in enumerate(self.built.arms):
            hinges, gripper = self._to_world(side, target[PER_ARM * side : PER_ARM * (side + 1)])
            self.data.ctrl[arm.ctrl] = hinges
            self.data.ctrl[arm.grip_ctrl] = arm.grip_signs * gripper

    def advance(self, steps: int = 1) -> None:
        """Lets whole control periods pass.

        Raises:
          RobotFault: the simulation diverges.
        """
        try:
            mujoco.mj_step(self.model, self.data, nstep=steps * self.built.substeps)
        except mujoco.FatalError as error:  # such as more contacts than there is memory for
            raise RobotFault(f"World '{self.name}' has diverged: {_first_line(error)}") from None
        if not np.isfinite(self.data.qpos).all():
            raise RobotFault(f"World '{self.name}' has diverged.")

    def position(self) -> np.ndarray:
        """Returns the joints [14]: rad; metres of finger travel."""
        return self._joints(self.data.qpos, False)

    def velocity(self) -> np.ndarray:
        """Returns the joints' velocities [14]."""
        return self._joints(self.data.qvel, True)

    def _joints(self, values: np.ndarray, rate: bool) -> np.ndarray:
        result = np.zeros(len(JOINTS))
        for side, (arm, table) in enumerate(
            zip(self.built.arms, (self.table.left, self.table.right), strict=True)
        ):
            first = PER_ARM * side
            hinges = values[arm.qvel if rate else arm.qpos]
            offsets = 0.0 if rate else np.array(table.offsets)
            result[first : first + 6] = np.array(table.signs) * (hinges - offsets)
            grip = float(self.data.qpos[arm.grip_qpos[0]])
            if rate:
                ahead = 1e-3 * float(values[arm.grip_qvel[0]])
                slope = _travel_of(table.gripper, grip + ahead) - _travel_of(table.gripper, grip)
                result[GRIPPERS[side]] = slope / 1e-3
            else:
                result[GRIPPERS[side]] = _travel_of(table.gripper, grip)
        return result

    def force(self) -> np.ndarray:
        """Returns what the actuators exert [14] (N m; N)."""
        parts = []
        for arm, table in zip(self.built.arms, (self.table.left, self.table.right), strict=True):
            parts.append(np.array(table.signs) * self.data.actuator_force[arm.ctrl])
            parts.append(arm.grip_signs[:1] * self.data.actuator_force[arm.grip_ctrl[:1]])
        return np.concatenate(parts)

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns poses [2, 7] and velocities [2, 6] of socket and peg, as free joints of the own scene."""
        poses, velocities = np.zeros((2, 7)), np.zeros((2, 6))
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, self._turn.ravel())
        for index, (where, rate) in enumerate(
            zip(self.built.object_qpos, self.built.object_qvel, strict=True)
        ):
            pose = self.data.qpos[where]
            poses[index, :3] = self._turn @ (pose[:3] - self._origin)
            mujoco.mju_mulQuat(poses[index, 3:], quat, pose[3:])
            velocities[index, :3] = self._turn @ self.data.qvel[rate[:3]]
            velocities[index, 3:] = self.data.qvel[rate[3:]]  # in the body's own frame
        return poses, velocities

    def contacts(self) -> Contacts:
        """Returns what touches what now."""
        model, data = self.model, self.data
        forces, table = np.zeros((2, 2, 3)), np.zeros(2, bool)
        other = np.zeros(2)
        wrench = np.zeros(6)
        hands = [
            _subtree(model, int(model.body_parentid[arm.fingers[0]])) for arm in self.built.arms
        ]
        for index in range(data.ncon):
            contact = data.contact[index]
            bodies = [int(model.geom_bodyid[geom]) for geom in contact.geom]
            mujoco.mj_contactForce(model, data, index, wrench)
            # From the first geom on the second, in the world.
            force = self._turn @ (contact.frame.reshape(3, 3).T @ wrench[:3])
            for sign, body, partner in ((1, *bodies), (-1, *bodies[::-1])):
                for side, fingers in enumerate(self._fingers):
                    if body in fingers:
                        finger = min(fingers.index(body), 1)
                        forces[side, finger] += sign * force
                    if body in hands[side]:
                        table[side] |= model.body_weldid[partner] == 0
                        if partner == self.built.object_bodies[1 - side]:
                            other[side] = max(other[side], float(np.linalg.norm(force)))
        return Contacts(forces, table, other)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _subtree(model: mujoco.MjModel, body: int) -> set[int]:
    """Returns a body and all that hang on it."""
    bodies = {body}
    for child in range(body + 1, model.nbody):
        if int(model.body_parentid[child]) in bodies:
            bodies.add(child)
    return bodies


def _pairs(gripper: GripperTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns joint values, which grow, and the travel (m) there."""
    joint, travel = np.array(gripper.travel).T
    return (joint, travel) if joint[0] < joint[-1] else (joint[::-1], travel[::-1])


def _line(at: float, x: np.ndarray, y: np.ndarray) -> float:
    """Interpolates; beyond the ends, as the last piece goes on. x grows."""
    piece = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    slope = (y[piece + 1] - y[piece]) / (x[piece + 1] - x[piece])
    return float(y[piece] + slope * (at - x[piece]))


def _travel_of(gripper: GripperTable, joint: float) -> float:
    return _line(joint, *_pairs(gripper))


def _joint_of(gripper: GripperTable, travel: float) -> float:
    joint, metres = _pairs(gripper)
    order = np.argsort(metres)
    return _line(travel, metres[order], joint[order])


class WorldRobot(SimulatedArms[World]):
    """Both arms of a world."""


def intrinsics(
    model: mujoco.MjModel, camera: str, cameras: CamerasTable
) -> embodiment_camera.Intrinsics:
    """Returns the pinhole of a camera's pictures."""
    fovy = np.radians(float(model.cam_fovy[model.camera(camera).id]))
    focal = cameras.height / 2 / np.tan(fovy / 2)
    middle = (cameras.width - 1) / 2, (cameras.height - 1) / 2
    return embodiment_camera.Intrinsics(cameras.width, cameras.height, focal, focal, *middle)


class WorldView:
    """Draws both wrist cameras at camera size by OpenGL, and one state but once; use it in one thread."""

    def __init__(self, world: World, size: int, fovy_deg: float = FOVY_DEG) -> None:
        """Creates the OpenGL context.

        Args:
          world: what is drawn.
          size: side of the pictures that the policy takes (pixels); fovy_deg: their field of view.

        Raises:
          BackendUnavailable: OpenGL is not to be had on this machine.
        """
        self._world, self._size, self._fovy = world, size, fovy_deg
        cameras = world.table.cameras
        self._view = DepthView(world.model, cameras.height, cameras.width)
        self._lenses = [intrinsics(world.model, name, cameras) for name in world.built.cameras]
        self._shown: np.ndarray | None = None
        self._frames: list[Frame] = []
        self._number = 0

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees the context."""
        self._view.close()

    def raw(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns colour [H, W, 3] uint8 and depth [H, W] (m) of both cameras, at camera size."""
        data = self._world.data
        return [self._view.both(data, name, sky=True) for name in self._world.built.cameras]

    def frame(self, index: int) -> Frame:
        """Returns the picture of camera 0 (left) or 1 (right), cropped and scaled as a D405's is."""
        qpos = self._world.data.qpos
        if self._shown is None or not np.array_equal(qpos, self._shown):
            self._shown = qpos.copy()
            self._number += 1
            now_s = time.monotonic()
            self._frames = [
                Frame(
                    embodiment_camera.crop_color(rgb, lens, self._size, self._fovy),
                    embodiment_camera.crop_depth(depth, lens, self._size, self._fovy),
                    now_s,
                    self._number,
                )
                for (rgb, depth), lens in zip(self.raw(), self._lenses, strict=True)
            ]
        old = self._frames[index]
        return Frame(old.rgb, old.depth, time.monotonic(), old.number)

    def cameras(self) -> tuple[WristCamera, WristCamera]:
        """Returns the left and the right camera."""
        return wrist_cameras(self)
