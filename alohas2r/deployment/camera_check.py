"""Where a wrist camera really sits: its depth pictures against the simulated ones at the same joint angles.

What a camera is sure to see are its own gripper, the table and the other arm. The mount is what makes the simulated
depth agree with the measured one; parts and whatever else lies on the table count as outliers.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from alohas2r.deployment.log import Run
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.embodiment.camera import DEPTH_CUTOFF, FOVY_DEG
from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.errors import ConfigError, RobotFault
from alohas2r.rendering.protocol import CAMERAS, GROUPS
from alohas2r.rendering.video import write_png
from alohas2r.rendering.visual_randomization import TABLE
from alohas2r.sim import scene
from alohas2r.sim.kinematics import rotation_matrix

PARTS = ("socket", "peg")
VIEWS = 4  # of a run, spread over it
SIZE = 64  # pixels a side, where the pictures are taken for this
ITERATIONS = 12
NUDGE = 1e-3, 2e-3  # of a position (m) and an angle (rad), to see what follows
OUTLIER_M = 0.01  # a depth that is further off belongs to something else
REACH = 0.03, 0.15  # within which a mount is searched for (m, rad)
STARTS, DESCENTS = 200, 4  # of the search: how many are tried, and followed
UNEXPLAINED = 0.6  # a mount that leaves more of the picture unexplained is none
COARSE_M = 0.05  # with this a search begins
OWN_M = 0.16  # nearer than this a camera sees its own gripper
LEAST_PIXELS = 100  # that two pictures must have in common
LEAST_SHARE = 0.1  # of the pixels, that both pictures must know
STRETCH = 6  # pixels of the overlay for one of the picture


class View(NamedTuple):
    """What a camera showed.

    Attributes:
      joints: [14] both arms' joints at the time (rad; m).
      rgb: [S, S, 3] uint8; depth: [S, S] m, 0 where unknown.
    """

    joints: np.ndarray
    rgb: np.ndarray
    depth: np.ndarray


class Mount(NamedTuple):
    """How a camera differs from the simulated one.

    Attributes:
      offset_m: [3] by how much it sits elsewhere, in the frame of the link that carries it.
      turn_rad: [3] about which of its own axes it is turned: x right, y up, z backwards.
    """

    offset_m: np.ndarray
    turn_rad: np.ndarray

    @property
    def angle_deg(self) -> float:
        """By how much it is turned."""
        return math.degrees(float(np.linalg.norm(self.turn_rad)))


class CameraCheck(NamedTuple):
    """What was found about one camera.

    Attributes:
      side: "left" or "right".
      mount: where it sits.
      before_mm, after_mm: median difference of depth, with the simulated mount and with this one.
      inside: whether the policy was trained with such mounts.
      upside_down: whether it fits better when the pictures are turned by 180 degrees.
      overlay: [H, W, 3] uint8 real picture, and over it the outlines of the simulated one: red where the simulation
        has them, green with the mount that was found.
    """

    side: str
    mount: Mount
    before_mm: float
    after_mm: float
    inside: bool
    upside_down: bool
    overlay: np.ndarray


class _Eye:
    """Draws the depth that a wrist camera would show, by rays: without OpenGL, and without JAX."""

    def __init__(self, side: str, size: int, fovy_deg: float) -> None:
        insert = scene.load("insert")
        self._model, self._data = insert.model, mujoco.MjData(insert.model)
        self._home = insert.home_qpos.copy()
        for part in PARTS:  # nobody knows where they are
            first = int(self._model.jnt_qposadr[int(self._model.body(part).jntadr[0])])
            self._home[first : first + 3] = (0.0, 0.0, -10.0)
        self._arms = [arm.qpos for arm in insert.arms]
        self._camera = int(self._model.camera(CAMERAS[SIDES.index(side)]).id)
        self._size = size
        focal = size / 2 / math.tan(math.radians(fovy_deg) / 2)
        across = (np.arange(size) + 0.5 - size / 2) / focal
        right, down = np.meshgrid(across, across)
        ahead = np.stack([right, -down, -np.ones_like(right)], axis=-1).reshape(-1, 3)
        length = np.linalg.norm(ahead, axis=1)
        self._rays, self._cosine = ahead / length[:, None], 1 / length
        self._groups = np.array([group in GROUPS for group in range(6)], np.uint8)

    def depth(self, joints: np.ndarray, mount: Mount | None = None) -> np.ndarray:
        """Returns depth [S, S] (m) at joints [14]; 0 beyond the cut-off."""
        model, data = self._model, self._data
        data.qpos[:] = self._home
        for qpos, arm in zip(self._arms, joints.reshape(len(SIDES), PER_ARM), strict=True):
            data.qpos[qpos[:PER_ARM]] = arm
            data.qpos[qpos[PER_ARM:]] = arm[-1]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        place = data.cam_xpos[self._camera].copy()
        turn = data.cam_xmat[self._camera].reshape(3, 3).copy()
        if mount is not None:
            carrier = data.xmat[int(model.cam_bodyid[self._camera])].reshape(3, 3)
            place += carrier @ mount.offset_m
            turn = turn @ rotation_matrix(mount.turn_rad)
        rays = np.ascontiguousarray((self._rays @ turn.T).reshape(-1, 1))
        count = len(self._rays)
        hit, distance = np.zeros((count, 1), np.int32), np.zeros((count, 1))
        mujoco.mj_multiRay(
            model, data, place[:, None], rays, self._groups[:, None], 1, -1, hit, distance, None, count, 2.0
        )  # fmt: skip
        depth = np.where(distance[:, 0] > 0, distance[:, 0] * self._cosine, 0.0)
        return np.where(depth > DEPTH_CUTOFF, 0.0, depth).reshape(self._size, self._size)


def check_camera(side: str, views: Sequence[View], fovy_deg: float = FOVY_DEG) -> CameraCheck:
    """Finds where a wrist camera sits.

    Args:
      side: "left" or "right".
      views: what it showed, in one or more poses.
      fovy_deg: field of view of the pictures.

    Raises:
      RobotFault: too little is seen that both pictures know.
    """
    eye = _Eye(side, len(views[0].depth), fovy_deg)
    straight = _difference(eye, views, None)
    turned = _difference(eye, [_turned(one) for one in views], None)
    upside_down = turned < 0.5 * straight
    if upside_down:
        views = [_turned(one) for one in views]
    mount = _solve(eye, side, views)
    before, after = _difference(eye, views, None), _difference(eye, views, mount)
    return CameraCheck(
        side,
        mount,
        1000 * before,
        1000 * after,
        _inside(mount),
        upside_down,
        _overlay(eye, views[0], mount),
    )


def views_of(run: Run, side: str, count: int = VIEWS) -> list[View]:
    """Returns what a camera showed in a run, at moments spread over it, in different poses.

    Raises:
      ConfigError: the run has no pictures.
    """
    steps = [one for one in run.steps if f"observation/{side}_depth" in one.arrays]
    if not steps:
        raise ConfigError("The log has no pictures: the policy never acted in it.")
    chosen = np.unique(np.linspace(0, len(steps) - 1, count).astype(int))
    return [
        View(
            steps[index].arrays["position"],
            steps[index].arrays[f"observation/{side}_rgb"],
            steps[index].arrays[f"observation/{side}_depth"],
        )
        for index in chosen
    ]


def views_now(rig: RigConfig) -> dict[str, list[View]]:
    """Returns what both cameras show now, at the arms' present pose; only reads.

    Raises:
      RobotFault: arms or cameras are missing.
    """
    with open_rig(rig, passive=True) as arms:
        joints = arms.robot.read().position
        frames = {camera.name: camera.read(0.5) for camera in arms.cameras}
    return {side: [View(joints, frames[side].rgb, frames[side].depth)] for side in SIDES}


def save_overlay(
    checks: Sequence[CameraCheck], folder: str | pathlib.Path
) -> dict[str, pathlib.Path]:
    """Writes SIDE.png for each camera into a folder; returns where.

    Raises:
      ArtifactError: one cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {one.side: write_png(folder / f"{one.side}.png", one.overlay) for one in checks}


def _turned(view: View) -> View:
    return View(view.joints, view.rgb[::-1, ::-1], view.depth[::-1, ::-1])


def _residuals(eye: _Eye, views: Sequence[View], mount: Mount | None) -> np.ndarray:
    """Returns measured minus simulated depth [V * S * S] (m); NaN where one of them is not known."""
    rows = []
    for one in views:
        drawn = eye.depth(one.joints, mount)
        real = np.where((one.depth > 0) & (one.depth <= DEPTH_CUTOFF), one.depth, np.nan)
        rows.append(np.where(drawn > 0, real - drawn, np.nan).reshape(-1))
    return np.concatenate(rows)


def _difference(eye: _Eye, views: Sequence[View], mount: Mount | None) -> float:
    """Returns the median difference of depth (m)."""
    residuals = _residuals(eye, views, mount)
    known = np.isfinite(residuals)
    if known.mean() < LEAST_SHARE:
        raise RobotFault(
            f"Depth is known in {known.mean():.0%} of the pictures, in which the simulated camera sees something. Bring"
            " the arms into a pose in which their cameras see table and gripper, such as the start pose."
        )
    return float(np.median(np.abs(residuals[known])))


def _solve(eye: _Eye, side: str, views: Sequence[View]) -> Mount:
    """Returns the mount that makes simulated depth agree with measured depth, of the best of some starts."""
    draw = np.random.default_rng(0)
    reach = np.repeat(REACH, 3)
    starts = [np.zeros(6), *draw.uniform(-reach, reach, (STARTS, 6))]
    starts.sort(key=lambda values: _cost(eye, views, values, COARSE_M))
    found = [_descend(eye, views, start) for start in [np.zeros(6), *starts[:DESCENTS]]]
    best = min(found, key=lambda values: _cost(eye, views, values))
    if _cost(eye, views, best) > UNEXPLAINED:
        raise RobotFault(
            f"The {side} camera's depth has nothing in common with the simulated one's: is it the other arm's camera,"
            " or do the joints read wrongly?"
        )
    return _mount(best)


def _descend(eye: _Eye, views: Sequence[View], values: np.ndarray) -> np.ndarray:
    """Returns the parameters [6] of the mount to which the differences lead from a start.

    Source: Gauss-Newton with Tukey's biweight, damped as in Levenberg (1944).
    """
    nudges = np.repeat(NUDGE, 3)
    scale = COARSE_M
    for _ in range(ITERATIONS):
        now = _residuals(eye, views, _mount(values))
        slopes = np.stack(
            [
                (
                    _residuals(eye, views, _mount(values + nudge))
                    - _residuals(eye, views, _mount(values - nudge))
                )
                / (2 * nudge.sum())
                for nudge in np.diag(nudges)
            ],
            axis=1,
        )
        # Across an edge depth jumps, and the slope means nothing.
        good = np.isfinite(now) & np.isfinite(slopes).all(axis=1) & (np.abs(slopes).max(axis=1) < 5)
        weight = np.where(np.abs(now) < scale, (1 - (now / scale) ** 2) ** 2, 0.0)
        weight = (weight * _importance(eye, views, _mount(values)))[good]
        if (weight > 0).sum() < LEAST_PIXELS:
            break
        slope, rest = slopes[good], now[good]
        square = slope.T @ (weight[:, None] * slope)
        step = np.linalg.solve(
            square + 1e-6 * np.trace(square) * np.eye(6), -slope.T @ (weight * rest)
        )
        values = values + np.clip(step, -10 * nudges, 10 * nudges)
        scale = max(OUTLIER_M, 0.7 * scale)
        if np.abs(step / nudges).max() < 0.02 and scale == OUTLIER_M:
            break
    return values


def _importance(eye: _Eye, views: Sequence[View], mount: Mount) -> np.ndarray:
    """Returns how much each pixel counts [V * S * S]: the gripper in all as much as the rest.

    The table alone leaves open where along it a camera sits.
    """
    drawn = np.concatenate([eye.depth(one.joints, mount).reshape(-1) for one in views])
    own = (drawn > 0) & (drawn < OWN_M)
    share = float(own.sum()) / max(1, int((drawn > 0).sum()))
    return np.where(own, 0.5 / max(share, 0.02), 0.5 / max(1 - share, 0.02))


def _cost(eye: _Eye, views: Sequence[View], values: np.ndarray, scale: float = OUTLIER_M) -> float:
    """Returns how badly a mount explains what is seen: 0 perfectly, 1 not at all."""
    residuals = _residuals(eye, views, _mount(values))
    known = np.isfinite(residuals)
    if known.sum() < LEAST_PIXELS:
        return math.inf
    weight = _importance(eye, views, _mount(values))[known]
    off = np.minimum(np.abs(residuals[known]) / scale, 1.0) ** 2
    return float((weight * off).sum() / weight.sum())


def _mount(values: np.ndarray) -> Mount:
    return Mount(values[:3], values[3:])


def _inside(mount: Mount) -> bool:
    """Returns whether a mount is one of those that looks are drawn from in training."""
    offset = next(one for one in TABLE if one.field == "cam_pos")
    turn = next(one for one in TABLE if one.field == "cam_quat")
    low, high = np.array(offset.low), np.array(offset.high)
    near = bool(((mount.offset_m >= low) & (mount.offset_m <= high)).all())
    return near and mount.angle_deg <= turn.high[0]


def _overlay(eye: _Eye, view: View, mount: Mount) -> np.ndarray:
    """Returns the picture with the outlines of the simulated one, enlarged."""
    picture = np.kron(view.rgb, np.ones((STRETCH, STRETCH, 1), np.uint8))
    for place, colour in ((None, (255, 0, 0)), (mount, (0, 255, 0))):
        depth = np.kron(eye.depth(view.joints, place), np.ones((STRETCH, STRETCH)))
        edge = np.zeros(depth.shape, bool)
        edge[1:] |= np.abs(np.diff(depth, axis=0)) > OUTLIER_M
        edge[:, 1:] |= np.abs(np.diff(depth, axis=1)) > OUTLIER_M
        picture[edge] = colour
    return picture
