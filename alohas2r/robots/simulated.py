"""Arms and cameras in the MuJoCo insertion scene, without a bus in between: `--robot sim`.

The same deployment runs on it as on real arms; only time stands still until `World.advance`.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import mujoco
import numpy as np

from alohas2r.embodiment.joints import PER_ARM, SIDES
from alohas2r.robots.base import Frame
from alohas2r.robots.simulated_arms import SimulatedArms
from alohas2r.robots.wrist_camera import Renderer, WristCamera, drawn_frame, wrist_cameras
from alohas2r.sim import changed, scene
from alohas2r.sim.changed import WorldParams

# How far the arm joints sway in `film` (rad), and how long a sway takes (s).
_SWAY = np.array([0.15, 0.05, 0.05, 0.1, 0.1, 0.2])
_SWAY_S = 4.0


class SimulatedWorld:
    """The insertion scene, stepped by whole control periods.

    Args:
      params: what is otherwise in it than in the nominal one.

    Attributes:
      model, data: the physics.
      told: [14] the newest targets, which may still be under way.
    """

    def __init__(self, params: WorldParams = changed.NOMINAL) -> None:
        """Starts at the keyframe home."""
        insert = scene.load("insert")
        self.model = changed.physics(params, insert)
        self.data = mujoco.MjData(self.model)
        self._home = changed.home_qpos(params, insert)
        self.joints = np.concatenate([arm.qpos[:PER_ARM] for arm in insert.arms])
        self.dofs = np.concatenate([arm.qvel[:PER_ARM] for arm in insert.arms])
        self.actuators = np.concatenate([arm.ctrl for arm in insert.arms])
        self.low, self.high = insert.ctrl_low[self.actuators], insert.ctrl_high[self.actuators]
        self._delay, self._steps = params.delay, 0
        self._under_way: collections.deque[tuple[int, np.ndarray]] = collections.deque()
        self.place(self._home)

    def place(self, qpos: np.ndarray, ctrl: np.ndarray | None = None) -> None:
        """Puts everything somewhere, at rest; the arms hold there.

        Args:
          qpos: [nq] joint positions.
          ctrl: [14] targets; None: the arms' positions.
        """
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = qpos
        targets = self.data.qpos[self.joints] if ctrl is None else ctrl
        self.told = np.clip(targets, self.low, self.high)
        self.data.ctrl[self.actuators] = self.told
        self._under_way.clear()
        mujoco.mj_forward(self.model, self.data)

    def position(self) -> np.ndarray:
        """Returns where the joints are [14]: rad; metres of finger travel."""
        return self.data.qpos[self.joints].copy()

    def velocity(self) -> np.ndarray:
        """Returns the joints' velocities [14]."""
        return self.data.qvel[self.dofs].copy()

    def force(self) -> np.ndarray:
        """Returns the actuators' forces [14] (N m; N)."""
        return self.data.actuator_force[self.actuators].copy()

    def drive(self, target: np.ndarray) -> None:
        """Sets the actuators to targets [14], as late as commands are here."""
        self.told = np.array(target, float)
        self._under_way.append((self._steps + self._delay, self.told))
        self._arrive()

    def advance(self, steps: int = 1) -> None:
        """Lets whole control periods pass."""
        for _ in range(steps):
            self._arrive()
            mujoco.mj_step(self.model, self.data, nstep=scene.SUBSTEPS)
            self._steps += 1

    def _arrive(self) -> None:
        """Takes the targets whose time has come."""
        while self._under_way and self._under_way[0][0] <= self._steps:
            self.data.ctrl[self.actuators] = self._under_way.popleft()[1]


class SimulatedRobot(SimulatedArms[SimulatedWorld]):
    """Both arms of a simulated world."""

    def targets(self) -> np.ndarray:
        """Returns the newest targets [14], whoever set them."""
        return self._world.told.copy()


def cameras(world: SimulatedWorld, renderer: Renderer) -> tuple[WristCamera, WristCamera]:
    """Returns the left and the right wrist camera of a world.

    Args:
      world: what they show.
      renderer: draws the wrist cameras, left first; their right imagers may follow.
    """
    return wrist_cameras(_View(world, renderer))


def film(
    side: str, seconds: float, fps: int = 30, size: int = 96, paired: bool = False
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields what a simulated wrist camera sees while its arm looks around.

    Args:
      side: "left" or "right".
      seconds: for how long.
      fps: pictures per second.
      size: side of the pictures (pixels).
      paired: whether the right imager's pictures are drawn as well.

    Yields:
      rgb [size, size, 3] uint8, depth [size, size] float32 (m) and, if paired, grey [size, size] uint8.
    """
    from alohas2r.rendering import protocol as rendering_protocol
    from alohas2r.rendering import registry as renderers
    from alohas2r.rendering import stereo

    insert = scene.load("insert")
    camera = rendering_protocol.CAMERAS[SIDES.index(side)]
    cameras = stereo.cameras([camera]) if paired else (camera,)
    renderer = renderers.make("raycast", insert, width=size, height=size, cameras=cameras)
    qpos = insert.home_qpos.copy()
    joints = insert.arms[SIDES.index(side)].qpos[: len(_SWAY)]
    for number in range(round(seconds * fps)):
        turn = 2 * np.pi * number / fps / _SWAY_S
        qpos[joints] = insert.home_qpos[joints] + _SWAY * np.sin(turn + np.arange(len(_SWAY)))
        pictures = renderer.render(qpos[None])
        rgb = np.asarray(pictures.rgb)[0]
        greys = [stereo.luma(one) for one in rgb[1:]]
        yield rgb[0], np.asarray(pictures.depth)[0, 0], *greys


class StubCamera:
    """A camera whose pictures cost nothing: noise, another one each time, the same on both sides.

    They serve to time a control loop without the pictures; nothing can be seen on them.

    Attributes:
      name: "left" or "right".
    """

    PICTURES = 8
    FAR_M = 0.35

    def __init__(self, name: str, size: int = 32, seed: int = 0, paired: bool = False) -> None:
        """Draws its pictures.

        Args:
          name: "left" or "right".
          size: side of the pictures (pixels).
          seed: of the noise.
          paired: whether it has a right imager.
        """
        self.name = name
        random = np.random.default_rng(seed)
        shape = (self.PICTURES, size, size)
        self._rgb = random.integers(20, 236, (*shape, 3), dtype=np.uint8)
        self._depth = random.uniform(0.1, self.FAR_M, shape).astype(np.float32)
        self._grey = random.integers(20, 236, shape, dtype=np.uint8) if paired else None
        self._number = 0

    def __enter__(self) -> Self:
        """Needs nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing."""

    def read(self, max_age_s: float) -> Frame:
        """Returns the next picture; it is always new enough."""
        self._number += 1
        index = self._number % self.PICTURES
        grey = None if self._grey is None else self._grey[index]
        return Frame(
            self._rgb[index], self._depth[index], time.monotonic(), self._number, grey=grey
        )


class _View:
    """Draws both cameras with one call, and one state but once."""

    def __init__(self, world: SimulatedWorld, renderer: Renderer) -> None:
        self._world = world
        self._renderer = renderer
        self._shown: np.ndarray | None = None
        self._number = 0
        self._pictures: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))

    def frame(self, index: int) -> Frame:
        qpos = self._world.data.qpos
        if self._shown is None or not np.array_equal(qpos, self._shown):
            self._shown = qpos.copy()
            rgb, depth = self._renderer.render(qpos[None].copy())
            self._pictures = np.asarray(rgb)[0], np.asarray(depth)[0]
            self._number += 1
        return drawn_frame(*self._pictures, index, self._number)
