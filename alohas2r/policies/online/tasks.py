"""The tasks that are learnt on a robot, with rewards that it can compute itself."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, cast

import numpy as np

from alohas2r.config import check
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, SIDES
from alohas2r.embodiment.polar import Box
from alohas2r.errors import ConfigError, did_you_mean
from alohas2r.policies.online.spec import (
    EncoderSpec,
    OnlineSpec,
    SeeingSpec,
    TaskName,
    planar_arm,
)
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig
from alohas2r.sim import scene

# Where the gripper may be led: waist (rad), reach and height from the base (m), pitch (rad), opening (m). The waist's
# range is about the pose in which episodes start; the height keeps the fingers 2 cm above the table's top.
WAIST = 0.6
BOX = ((0.20, -0.002, 0.2, 0.002), (0.46, 0.30, 0.9, 0.037))


@dataclasses.dataclass(frozen=True)
class OnlineTask:
    """A task.

    Attributes:
      name: of it.
      seconds: how long an episode lasts at most (s).
      hold_s: for how long the reward's condition must hold (s).
      scale: how much of a policy's action is added to a base's.
    """

    name: str
    seconds: float
    hold_s: float
    scale: float

    @property
    def steps(self) -> int:
        """Control steps of an episode."""
        return round(self.seconds / CONTROL_PERIOD_S)


@dataclasses.dataclass(frozen=True)
class OnlineStart:
    """Where episodes start.

    Attributes:
      reach: of objects, range (m). direction: of objects about the waist's home, half range (rad).
      yaw: how far an object is turned from its direction, half range (rad). waist: about its home, half range (rad).
    """

    reach: tuple[float, float] = (0.31, 0.40)
    direction: float = 0.25
    yaw: float = 0.09
    waist: float = 0.15


START = OnlineStart()
TASKS = {
    "reach": OnlineTask("reach", 6.0, 0.25, 0.4),
    "pick": OnlineTask("pick", 10.0, 0.4, 0.4),
    "insert": OnlineTask("insert", 10.0, CONTROL_PERIOD_S, 0.15),
}
# reach: what lies between the fingertips is as near as they are. The window lies between them in a picture of 32 x 32:
# rows and columns; the tips are 0.126 to 0.134 m away along the camera's axis. Fingers that are less apart than what
# they could hold are themselves in it.
_ROWS, _COLUMNS, _SIZE = (20, 23), (13, 19), 32
_BETWEEN_M = 0.132
_LOW_M = 0.03  # m above the base: higher up nothing lies between the fingers
# pick: the fingers are told to close beyond what they hold, which keeps them apart, above the table.
_CLOSING_M, _APART_M, _RAISED_M = 0.012, 0.014, 0.12


def find_online_task(name: str) -> OnlineTask:
    """Returns a task.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in TASKS:
        raise ConfigError(
            f"There is no task '{name}' to learn on a robot.{did_you_mean(name, TASKS)}"
        )
    return TASKS[name]


def make_spec(
    task: str,
    cameras: CameraSpec,
    network: StudentNetworkConfig,
    side: Literal["left", "right"] = "left",
    hidden: tuple[int, ...] = (256, 256),
    base: bool = True,
    policy: bool = True,
    scale: float | None = None,
    tempo: float = 1.0,
    loudest: float = -1.0,
    encoder: EncoderSpec | None = None,
) -> OnlineSpec:
    """Returns what a policy for a task is.

    Args:
      task: its name. cameras, network: of the student whose eyes it has.
      side: the arm that learns. hidden: layers. base, policy, scale, tempo, loudest: see OnlineSpec;
        None: the task's scale. encoder: eyes of its own; None: the student's.

    Raises:
      ConfigError: no such task, or a number out of range.
    """
    chosen = find_online_task(task)
    check(side in SIDES, f"side must be one of {', '.join(SIDES)}, not '{side}'")
    insert = scene.load("insert")
    arm = insert.arms[SIDES.index(side)]
    home = float(insert.home_ctrl[arm.ctrl[0]])
    low, high = BOX
    make = OnlineSpec if encoder is None else functools.partial(SeeingSpec, encoder=encoder)
    return make(
        task=cast(TaskName, chosen.name),
        side=side,
        arm=planar_arm(side),
        box=Box((home - WAIST, *low), (home + WAIST, *high)),
        low=tuple(float(value) for value in insert.ctrl_low[arm.ctrl]),
        high=tuple(float(value) for value in insert.ctrl_high[arm.ctrl]),
        cameras=cameras,
        network=network,
        hidden=hidden,
        base=base,
        policy=policy,
        scale=(chosen.scale if base else 1.0) if scale is None else scale,
        tempo=tempo,
        loudest=loudest,
    )


class Held:
    """Whether a task's condition has held for long enough.

    Args:
      task: its name.
      steps: for how many control steps it must hold; None: as long as the task says.

    Attributes:
      holds: whether the condition holds at present.
    """

    def __init__(self, task: str, steps: int | None = None) -> None:
        own = round(find_online_task(task).hold_s / CONTROL_PERIOD_S)
        self._needed = own if steps is None else steps
        self._held = 0
        self.holds = False

    def reset(self) -> None:
        """Starts an episode."""
        self._held, self.holds = 0, False

    def take(self, holds: bool) -> bool:
        """Takes whether the condition holds in a control step, and returns whether the task is done."""
        self.holds = holds
        self._held = self._held + 1 if holds else 0
        return self._held >= self._needed


class Reward(Held):
    """The reward of an episode, from the arm's own joints and its wrist's depth.

    Args:
      spec: what learns.
    """

    def __init__(self, spec: OnlineSpec) -> None:
        super().__init__(spec.task)
        self._spec = spec

    def update(self, proprioception: np.ndarray, depth: np.ndarray) -> bool:
        """Takes a control step and returns whether the task is done.

        Args:
          proprioception: [32] of both arms.
          depth: [H, W] of the arm's wrist camera (m).
        """
        judge = _reached if self._spec.task == "reach" else _picked
        return self.take(judge(self._spec, proprioception, depth))


def _reached(spec: OnlineSpec, proprioception: np.ndarray, depth: np.ndarray) -> bool:
    scale = depth.shape[0] / _SIZE
    rows, columns = (slice(*(round(scale * end) for end in ends)) for ends in (_ROWS, _COLUMNS))
    window = depth[rows, columns]
    seen = window[window > 0]
    own = spec.own(proprioception)
    low, opened = spec.arm.polar(own)[2] < _LOW_M, own[6] > _APART_M
    return bool(low and opened and seen.size * 2 > window.size and np.median(seen) < _BETWEEN_M)


def _picked(spec: OnlineSpec, proprioception: np.ndarray, depth: np.ndarray) -> bool:
    own = spec.own(proprioception)
    arm = scene.load("insert").arms[SIDES.index(spec.side)]
    height = spec.arm.polar(own)[2] + arm.base_pos[2]
    closing = spec.targets(proprioception)[-1] < _CLOSING_M
    return bool(closing and own[6] > _APART_M and height > _RAISED_M)
