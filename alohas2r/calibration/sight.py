"""What the wrist cameras tell of the joints' zeros: their depth pictures against those of the simulated arms.

A reading that is off looks like an arm that stands right: only what is outside the arm can tell. Each camera sees its
own fingers, which tells how it is mounted and how far they are open, the table, which tells height and tilt, and the
other arm, which tells the waists. Both arms' joints, both grippers and both mounts are fitted together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from scipy.optimize import least_squares

from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG
from alohas2r.embodiment.joints import IS_GRIPPER, JOINTS, PER_ARM, SIDES
from alohas2r.errors import RobotFault
from alohas2r.rendering.protocol import CAMERAS, GROUPS
from alohas2r.sim import scene
from alohas2r.sim.kinematics import rotation_matrix

MOUNT = 6  # numbers of a camera's mount: place (m) and turn (rad)
DEPTH_M = (
    0.001  # a depth that is off by this counts as much as what is known beforehand of one parameter
)
OUTLIERS = 3.0  # times that, from where on a pixel counts less: edges, and things that the scene does not know
GRAZING = 0.1  # cosine between ray and surface below which depth says too little
# How far parameters are off before anything is seen: zeros (rad), travel (m), its scale, mounts (m, rad).
ZERO_RAD, TRAVEL_M, SCALE, MOUNT_M, MOUNT_RAD = 0.05, 0.004, 0.1, 0.03, 0.15
LEAST_VIEWS = 4
LOOKED_AT = 32  # pixels a side of a picture that count; those of a finer one are spread over it
EVALUATIONS = 30

_ARM = np.flatnonzero(~IS_GRIPPER)
_GRIPPER = np.flatnonzero(IS_GRIPPER)
COUNT = len(JOINTS)
# Parameters, in order: 12 zeros, 2 offsets and 2 scales of travel, 2 mounts.
SIZES = len(_ARM), len(SIDES), len(SIDES), len(SIDES) * MOUNT
PRIOR = np.concatenate(
    [
        np.full(SIZES[0], ZERO_RAD),
        np.full(SIZES[1], TRAVEL_M),
        np.full(SIZES[2], SCALE),
        np.tile(np.repeat([MOUNT_M, MOUNT_RAD], 3), len(SIDES)),
    ]
)


class View(NamedTuple):
    """What both cameras showed while the arms stood.

    Attributes:
      reading: [14] of the joints (rad; m).
      depth: [2, S, S] of the left and the right camera (m); 0 where unknown.
    """

    reading: np.ndarray
    depth: np.ndarray


class Seen(NamedTuple):
    """What was found.

    Attributes:
      offset: [14] by how much each reading is too large (rad; m); scale: [14], 1 but for the grippers. A reading is
        scale * what is + offset.
      offset_half, scale_half: [14] half widths of their 95% intervals; inf where nothing was seen.
      mount: [2, 6] by how much each camera sits elsewhere (m) and is turned about its own axes (rad).
      before_mm, after_mm: median difference of depth, of the nominal arms and of those that were found.
      views: in how many poses.
    """

    offset: np.ndarray
    scale: np.ndarray
    offset_half: np.ndarray
    scale_half: np.ndarray
    mount: np.ndarray
    before_mm: float
    after_mm: float
    views: int


class Eye:
    """Predicts the depth that a wrist camera shows, and how it changes with every joint and with the mount.

    Args:
      side: "left" or "right". size: side of the pictures (pixels). every: which pixels of a row, and which rows, are
        looked at: every one, every second ... fovy_deg: field of view.
    """

    def __init__(self, side: str, size: int, every: int = 1, fovy_deg: float = FOVY_DEG) -> None:
        whole = scene.load("insert")
        self._model, self._data = whole.model, mujoco.MjData(whole.model)
        self._home = whole.home_qpos.copy()
        for arm in whole.arms:  # nobody knows where the objects are
            self._home[arm.object_qpos[:3]] = (0.0, 0.0, -10.0)
        self._arms = [arm.qpos for arm in whole.arms]
        model = self._model
        self._camera = int(model.camera(CAMERAS[SIDES.index(side)]).id)
        self._carrier = int(model.cam_bodyid[self._camera])
        # Joints: 14, and the second fingers, which move as the first ones do.
        addresses = [
            *(q for arm in self._arms for q in arm[:PER_ARM]),
            *(arm[PER_ARM] for arm in self._arms),
        ]
        self._joints = [
            int(np.flatnonzero(model.jnt_qposadr == address)[0]) for address in addresses
        ]
        self._column = [*range(COUNT), *_GRIPPER]
        moved = np.zeros((model.nbody, len(self._joints)), bool)
        for body in range(1, model.nbody):
            moved[body] = moved[model.body_parentid[body]]
            moved[body] |= model.jnt_bodyid[self._joints] == body
        self._moved = moved
        focal = size / 2 / math.tan(math.radians(fovy_deg) / 2)
        across = (np.arange(size) + 0.5 - size / 2) / focal
        right, down = np.meshgrid(across[::every], across[::every])
        ahead = np.stack([right, -down, -np.ones_like(right)], axis=-1).reshape(-1, 3)
        length = np.linalg.norm(ahead, axis=1)
        self._rays, self._cosine = ahead / length[:, None], 1 / length
        self._groups = np.array([group in GROUPS for group in range(6)], np.uint8)

    def look(self, joints: np.ndarray, mount: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicts a depth picture of P pixels.

        Args:
          joints: [14] where they are. mount: [6].

        Returns:
          depth [P] (m; 0 beyond the cut-off), and its derivatives [P, 14 + 6] by joints and mount; those are NaN where
          a surface is grazed.
        """
        model, data = self._model, self._data
        data.qpos[:] = self._home
        for qpos, arm in zip(self._arms, joints.reshape(len(SIDES), PER_ARM), strict=True):
            data.qpos[qpos[:PER_ARM]] = arm
            data.qpos[qpos[PER_ARM:]] = arm[-1]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        carrier = data.xmat[self._carrier].reshape(3, 3)
        place = data.cam_xpos[self._camera] + carrier @ mount[:3]
        turn = data.cam_xmat[self._camera].reshape(3, 3) @ rotation_matrix(mount[3:])
        rays = self._rays @ turn.T
        count = len(rays)
        hit, distance, normal = (
            np.zeros((count, 1), np.int32),
            np.zeros((count, 1)),
            np.zeros((3 * count, 1)),
        )
        flat = np.ascontiguousarray(rays.reshape(-1, 1))
        mujoco.mj_multiRay(
            model, data, place[:, None], flat, self._groups[:, None], 1, -1, hit, distance, normal, count, 2.0
        )  # fmt: skip
        depth = distance[:, 0] * self._cosine
        seen = np.flatnonzero((distance[:, 0] > 0) & (depth <= DEPTH_CUTOFF))
        shown = np.zeros(count)
        shown[seen] = depth[seen]
        slopes = np.zeros((count, COUNT + MOUNT))
        normals = normal.reshape(-1, 3)[seen]
        facing = (normals * rays[seen]).sum(1)
        facing[np.abs(facing) < GRAZING] = np.nan
        along = rays[seen] * distance[seen]  # from the camera to what it sees
        bodies = model.geom_bodyid[hit[seen, 0]]
        per_metre = self._cosine[seen] / facing

        def depth_by(velocity: np.ndarray) -> np.ndarray:
            return (normals * velocity).sum(1) * per_metre

        for joint, column, moved in zip(self._joints, self._column, self._moved.T, strict=True):
            # What moves with the camera stays where it is seen.
            relative = moved[bodies].astype(float) - float(moved[self._carrier])
            if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE:
                velocity = np.cross(data.xaxis[joint], place + along - data.xanchor[joint])
            else:
                velocity = np.broadcast_to(data.xaxis[joint], along.shape)
            slopes[seen, column] += depth_by(velocity) * relative
        for axis in range(3):
            slopes[seen, COUNT + axis] = depth_by(np.broadcast_to(-carrier[:, axis], along.shape))
            slopes[seen, COUNT + 3 + axis] = depth_by(-np.cross(turn[:, axis], along))
        return shown, slopes


def _split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns offsets [14], scales [14] and mounts [2, 6] of the parameters."""
    zeros, travel, scales, mounts = np.split(values, np.cumsum(SIZES)[:-1])
    offset, scale = np.zeros(COUNT), np.ones(COUNT)
    offset[_ARM], offset[_GRIPPER] = zeros, travel
    scale[_GRIPPER] = 1 + scales
    return offset, scale, mounts.reshape(len(SIDES), MOUNT)


class _Fit:
    """Residuals and their derivatives by the parameters, of all pictures together; in units of DEPTH_M."""

    def __init__(self, views: Sequence[View]) -> None:
        size = views[0].depth.shape[-1]
        self._views = views
        self._every = max(1, size // LOOKED_AT)
        self._eyes = [Eye(side, size, self._every) for side in SIDES]
        self._known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.pixels = len(SIDES) * len(range(0, size, self._every)) ** 2

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """Returns [V * 2 * P + parameters]."""
        return self._at(values)[0]

    def slopes(self, values: np.ndarray) -> np.ndarray:
        """Returns [V * 2 * P + parameters, parameters]."""
        return self._at(values)[1]

    def median_m(self, values: np.ndarray) -> float:
        """Returns the median difference of depth (m) where both pictures know it."""
        rows = np.abs(self.residuals(values)[: -len(PRIOR)])
        known = (rows > 0) & (rows < _MISSED)
        if known.mean() < 0.1:
            raise RobotFault(
                "The pictures hardly know any depth where the simulated cameras see something: bring table, grippers"
                " and the other arm into view, as alohas2r excite does."
            )
        return float(np.median(rows[known])) * DEPTH_M

    def _at(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._known is not None and np.array_equal(self._known[0], values):
            return self._known[1], self._known[2]
        offset, scale, mounts = _split(values)
        rows, slopes = [], []
        for view in self._views:
            joints = (view.reading - offset) / scale
            for side, eye in enumerate(self._eyes):
                drawn, by = eye.look(joints, mounts[side])
                real = view.depth[side, :: self._every, :: self._every].reshape(-1)
                real = np.where((real > 0) & (real <= DEPTH_CUTOFF), real, 0.0)
                both = (drawn > 0) & (real > 0) & np.isfinite(by).all(1)
                rest = np.where(both, (drawn - real) / DEPTH_M, 0.0)
                rest[(drawn > 0) != (real > 0)] = _MISSED
                rows.append(rest)
                slope = np.zeros((len(rest), len(values)))
                slope[:, : SIZES[0]] = -by[:, _ARM]
                grip = -by[:, _GRIPPER] / scale[_GRIPPER]
                slope[:, SIZES[0] : SIZES[0] + 2] = grip
                slope[:, SIZES[0] + 2 : SIZES[0] + 4] = grip * joints[_GRIPPER]
                first = SIZES[0] + 4 + side * MOUNT
                slope[:, first : first + MOUNT] = by[:, COUNT:]
                slopes.append(np.where(both[:, None], slope / DEPTH_M, 0.0))
        whole = np.concatenate([*rows, values / PRIOR])
        by_all = np.concatenate([*slopes, np.diag(1 / PRIOR)])
        self._known = values.copy(), whole, by_all
        return whole, by_all


_MISSED = 10.0  # residual of a pixel in which only one of both pictures knows a depth


def fit(views: Sequence[View]) -> Seen:
    """Finds what the readings are off, from what both cameras showed in several poses.

    Raises:
      RobotFault: too few poses, or too little is seen.
    """
    if len(views) < LEAST_VIEWS:
        raise RobotFault(
            f"The arms stood still in {len(views)} poses with pictures; {LEAST_VIEWS} are needed. alohas2r excite makes"
            " enough of them."
        )
    problem = _Fit(views)
    start = np.zeros(len(PRIOR))
    before = problem.median_m(start)
    solution = least_squares(
        problem.residuals,
        start,
        problem.slopes,  # pyright: ignore[reportArgumentType]  (a function, says SciPy's manual)
        x_scale=PRIOR,
        loss="cauchy",
        f_scale=OUTLIERS,
        max_nfev=EVALUATIONS,
        xtol=1e-5,
        ftol=1e-5,
    )
    half = _half_widths(problem, solution.x)
    offset, scale, mount = _split(solution.x)
    offset_half, scale_half, _ = _split(half)
    scale_half -= 1.0
    return Seen(
        offset,
        scale,
        offset_half,
        scale_half,
        mount,
        1000 * before,
        1000 * problem.median_m(solution.x),
        len(views),
    )


def _half_widths(problem: _Fit, values: np.ndarray) -> np.ndarray:
    """Returns half widths of the parameters' 95% intervals; a pose with all its pixels counts as one observation.

    Source: the jackknife, one step of Gauss-Newton without each pose, as in Cameron and Miller (2015).
    """
    rest, slopes = problem.residuals(values), problem.slopes(values)
    weight = 1 / (1 + (rest / OUTLIERS) ** 2)  # of Cauchy's loss
    count = (len(rest) - len(values)) // problem.pixels
    square = slopes.T @ (weight[:, None] * slopes)
    spread = np.zeros((len(values), len(values)))
    for view in range(count):
        own = slice(view * problem.pixels, (view + 1) * problem.pixels)
        weighted = slopes[own] * weight[own, None]
        change = np.linalg.solve(square - weighted.T @ slopes[own], weighted.T @ rest[own])
        spread += np.outer(change, change)
    return 1.96 * np.sqrt((count - 1) / count * np.diag(spread))
