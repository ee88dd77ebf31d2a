"""The two arms alone, many pairs at once, with other servos and other delays than the nominal ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import mujoco.batch
import numpy as np

from alohas2r.embodiment.joints import JOINTS, PER_ARM, SIDES
from alohas2r.sim import scene
from alohas2r.sim.scene import Arm

COUNT = len(JOINTS)


class Servos(NamedTuple):
    """E pairs of arms; joints [14], left arm first.

    Attributes:
      gain, damping, friction: [E, 14] factors on the nominal position gain, damping and dry friction.
      play: [E, 14] within which a joint is not driven towards its target (rad; m).
      delay: [E, 2] of the left and the right arm's commands (s).
    """

    gain: np.ndarray
    damping: np.ndarray
    friction: np.ndarray
    play: np.ndarray
    delay: np.ndarray


class Moves(NamedTuple):
    """What a stretch of a run shows of the arms, in terms of where they are rather than of what is read.

    Attributes:
      times_s: [T] of the readings.
      command: [T, 14] sent right after each.
      position: [T, 14] where the joints were.
    """

    times_s: np.ndarray
    command: np.ndarray
    position: np.ndarray


class Response(NamedTuple):
    """How E pairs of arms move.

    Attributes:
      position: [E, T, 14] at the times of the readings (rad; m).
      force: [E, T, 14] of the actuators (N m; N).
    """

    position: np.ndarray
    force: np.ndarray


class _Model(NamedTuple):
    """The compiled arms, and where their joints are."""

    model: mujoco.MjModel
    qpos: np.ndarray  # [14]; fingers: [2] those that follow
    fingers: np.ndarray
    dofs: tuple[np.ndarray, ...]  # of each joint: a gripper moves two
    actuators: np.ndarray  # [14]


@functools.cache
def _load() -> _Model:
    """Compiles the arms of the insertion scene without anything that they could touch."""
    whole, specification = scene.load("insert"), scene.spec("insert")
    for group in (
        specification.sensors,
        specification.keys,
        specification.excludes,
        specification.geoms,
        specification.meshes,
    ):
        for one in list(group):
            specification.delete(one)
    for arm in whole.arms:
        specification.delete(specification.body(arm.object_name))
    model = specification.compile()
    # Solved to the end, so that small changes of parameters have small effects.
    model.opt.iterations, model.opt.ls_iterations, model.opt.tolerance = 50, 50, 1e-12

    def joint(index: int, finger: int = 0) -> int:
        arm = whole.arms[index // PER_ARM]
        return model.joint(_joint_name(arm, index % PER_ARM + finger)).id

    ids = np.array([joint(index) for index in range(COUNT)])
    grippers = [PER_ARM - 1 + PER_ARM * side for side in range(len(SIDES))]
    followers = {index: joint(index, 1) for index in grippers}
    dofs = [
        model.jnt_dofadr[[one, *([followers[i]] if i in followers else [])]]
        for i, one in enumerate(ids)
    ]
    names = [
        mujoco.mj_id2name(whole.model, mujoco.mjtObj.mjOBJ_ACTUATOR, int(i))
        for arm in whole.arms
        for i in arm.ctrl
    ]
    return _Model(
        model,
        model.jnt_qposadr[ids],
        model.jnt_qposadr[[followers[index] for index in grippers]],
        tuple(dofs),
        np.array([model.actuator(name).id for name in names]),
    )


def _joint_name(arm: Arm, number: int) -> str:
    model = scene.load("insert").model
    address = int(arm.qpos[number])
    return model.joint(int(np.flatnonzero(model.jnt_qposadr == address)[0])).name


def dry() -> np.ndarray:
    """Returns [14] whether the nominal joint has dry friction."""
    arms = _load()
    return np.array([float(arms.model.dof_frictionloss[dofs].max()) > 0 for dofs in arms.dofs])


def simulate(moves: Moves, servos: Servos, threads: int = 1) -> Response:
    """Moves E pairs of arms by the commands of a run.

    Args:
      moves: the commands, and where the arms begin, at rest. servos: the arms. threads: for the simulation.

    Returns:
      How they move.
    """
    arms, count = _load(), len(servos.gain)
    batch = mujoco.batch.Batch(arms.model, count, nthread=threads)
    _set(batch, arms, servos)
    tick_s = float(arms.model.opt.timestep)
    steps = int(np.ceil((moves.times_s[-1] - moves.times_s[0]) / tick_s)) + 1
    grid_s = moves.times_s[0] + tick_s * np.arange(steps + 1)
    targets = _arrive(moves, servos.delay, grid_s)  # [steps, E, 14]
    qpos, ctrl, force = (batch.bind(name) for name in ("qpos", "ctrl", "actuator_force"))
    qpos[:, arms.qpos] = moves.position[0]
    qpos[:, arms.fingers] = moves.position[0][PER_ARM - 1 :: PER_ARM]
    half = servos.play / 2
    path = np.empty((steps, count, COUNT))
    forces = np.empty((steps, count, COUNT))
    for step in range(steps):
        position = qpos[:, arms.qpos]
        path[step] = position
        error = targets[step] - position
        ctrl[:, arms.actuators] = targets[step] - np.minimum(np.maximum(error, -half), half)
        batch.step(nstep=1)
        forces[step] = force[:, arms.actuators]
    at = (moves.times_s - grid_s[0]) / tick_s
    before = np.minimum(at.astype(int), steps - 2)
    share = np.minimum(at - before, 1.0)[:, None, None]
    position = path[before] * (1 - share) + path[before + 1] * share
    last = np.maximum(
        np.ceil(at - 1e-6).astype(int) - 1, 0
    )  # of the last whole step before the reading
    return Response(position.swapaxes(0, 1), forces[last].swapaxes(0, 1))


def _set(batch: mujoco.batch.Batch, arms: _Model, servos: Servos) -> None:
    """Gives each pair of arms its own servos."""
    gains, biases = batch.expand("actuator_gainprm"), batch.expand("actuator_biasprm")
    damping, dry_friction = batch.expand("dof_damping"), batch.expand("dof_frictionloss")
    model = arms.model
    for joint in range(COUNT):
        actuator = arms.actuators[joint]
        gain = model.actuator_gainprm[actuator, 0] * servos.gain[:, joint]
        gains[:, actuator, 0], biases[:, actuator, 1] = gain, -gain
        for dof in arms.dofs[joint]:
            damping[:, dof] = np.ravel(model.dof_damping)[dof] * servos.damping[:, joint]
            dry_friction[:, dof] = model.dof_frictionloss[dof] * servos.friction[:, joint]


def _arrive(moves: Moves, delay: np.ndarray, grid_s: np.ndarray) -> np.ndarray:
    """Returns the mean targets [S, E, 14] between the times [S + 1], of commands that hold until the next arrives."""
    edges = np.append(moves.times_s, grid_s[-1] + 1.0)
    held = np.vstack([np.zeros(COUNT), np.cumsum(moves.command * np.diff(edges)[:, None], 0)])
    # Before the first command arrives, it holds as well.
    edges, held = np.insert(edges, 0, edges[0] - 1.0), np.vstack([-moves.command[0], held])
    targets = np.empty((len(grid_s) - 1, len(delay), COUNT))
    for env in range(len(delay)):
        for joint in range(COUNT):
            late = np.interp(grid_s - delay[env, joint // PER_ARM], edges, held[:, joint])
            targets[:, env, joint] = np.diff(late) / np.diff(grid_s)
    return targets
