"""Movements by rule: a demonstrator that knows where the object is, and the robot's own way back to a new start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from alohas2r.embodiment.polar import SCALE
from alohas2r.policies.online.spec import HOLD, OnlineSpec
from alohas2r.policies.online.tasks import OnlineStart

PITCH = 0.6  # rad; of the gripper above an object
_ABOVE_M, _OPEN_M, _CLOSED_M, _LIFT_M = 0.06, 0.036, 0.004, 0.15
_LOW_M = 0.003  # m above the base: fingertips at an object's middle
# How near is there: waist (rad), reach, height (m), pitch (rad), opening (m).
_NEAR = np.array([0.02, 0.006, 0.006, 0.06, 0.004])
_CLOSING = 5  # decisions that closing the fingers takes
_PATIENCE = 40  # decisions after which a way goes on to its next place


def step_to(spec: OnlineSpec, proprioception: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns the action [5] that leads towards a place [5] as `polar.NAMES`."""
    place = spec.arm.polar(spec.targets(proprioception))
    return np.clip((goal - place) / (HOLD * np.array(SCALE)), -1, 1)


class ScriptedExpert:
    """Reaches and picks by rule, with the object's place from the simulation.

    Args:
      spec: what is demonstrated.
      grip: returns waist, reach and height [3] at which the arm grips the object.
      noise: standard deviation of what is added to its actions.

    Attributes:
      gave_up: never.
    """

    def __init__(
        self, spec: OnlineSpec, grip: Callable[[], np.ndarray], noise: float = 0.05
    ) -> None:
        self._spec, self._grip, self._noise = spec, grip, noise
        self._draw = np.random.default_rng(0)
        self._stage, self._closed = 0, 0
        self.gave_up = False

    def begin(self, seed: Sequence[int]) -> None:
        """Starts an episode."""
        self._draw = np.random.default_rng(seed)
        self._stage, self._closed = 0, 0

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [5] for what is felt [32]."""
        goal = self._goal(self._spec.arm.polar(self._spec.targets(proprioception)))
        action = step_to(self._spec, proprioception, goal)
        action[:4] += self._noise * self._draw.normal(size=4)
        return np.clip(action, -1, 1).astype(np.float32)

    def _goal(self, place: np.ndarray) -> np.ndarray:
        waist, reach, _ = self._grip()
        over = np.array([waist, reach - 0.005, _LOW_M + _ABOVE_M, PITCH, _OPEN_M])
        down = np.array([waist, reach, _LOW_M, PITCH, _OPEN_M])
        if self._stage == 0 and (np.abs(over - place) < 2 * _NEAR).all():
            self._stage = 1
        if (
            self._stage == 1
            and self._spec.task == "pick"
            and (np.abs(down - place) < _NEAR * [1, 1.5, 1, 2, 9]).all()
        ):
            self._stage = 2
        if self._stage == 2:
            self._closed += 1
            if self._closed > _CLOSING:
                self._stage = 3
        if self._stage < 2:
            return (over, down)[self._stage]
        height = _LOW_M if self._stage == 2 else _LIFT_M
        return np.array([place[0], place[1], height, PITCH, _CLOSED_M])


class Way:
    """Places [5] as `polar.NAMES` that the arm goes through, one after the other."""

    def __init__(self, spec: OnlineSpec, places: Sequence[np.ndarray]) -> None:
        self._spec, self._places = spec, list(places)
        self._spent = 0

    def act(self, proprioception: np.ndarray) -> np.ndarray | None:
        """Returns the action [5] for what is felt [32]; None at the way's end."""
        place = self._spec.arm.polar(self._spec.targets(proprioception))
        while self._places:
            near = (np.abs(self._places[0] - place) < _NEAR).all()
            if not near and self._spent < _PATIENCE:
                self._spent += 1
                return step_to(self._spec, proprioception, self._places[0])
            self._places.pop(0)
            self._spent = 0
        return None


def way_back(
    spec: OnlineSpec,
    home: np.ndarray,
    now: np.ndarray,
    holds: bool,
    draw: np.random.Generator,
    region: OnlineStart,
) -> Way:
    """Returns the way to a new start: what is held is set down at a random place, then the arm goes home.

    Args:
      spec: what learns.
      home: [5] where episodes start. now: [5] where the arm is.
      holds: whether something is held.
      draw: source of the places. region: where episodes start.
    """
    start = home.copy()
    start[-1] = min(start[-1], _OPEN_M)
    start[0] += draw.uniform(-region.waist, region.waist)
    reach = draw.uniform(*region.reach) - 0.02
    direction = home[0] + draw.uniform(-region.direction, region.direction)
    places = []
    if holds:
        over = np.array([direction, reach, 0.08, PITCH, now[4]])
        places = [over, np.array([direction, reach, _LOW_M + 0.002, PITCH, now[4]])]
        now = places[-1]
    opened = np.array([now[0], now[1], now[2], now[3], _OPEN_M])
    raised = np.array([now[0], max(now[1] - 0.03, spec.box.low[1]), 0.12, now[3], _OPEN_M])
    return Way(spec, [*places, opened, raised, start])
