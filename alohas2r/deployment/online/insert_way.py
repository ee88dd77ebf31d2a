"""A robot's way back from an insertion: backwards as it came, then to another start, with both arms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from alohas2r.deployment.online.scripts import Way, way_back
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import JOINTS, SIDES
from alohas2r.embodiment.polar import Box
from alohas2r.policies.online.classifier import holds
from alohas2r.policies.online.insertion import InsertSpec
from alohas2r.policies.online.spec import HOLD, OnlineSpec
from alohas2r.policies.online.tasks import START, find_online_task, make_spec
from alohas2r.sim import scene

# By how much starts differ from where insertions begin, half ranges: to all sides (m), in pitch (rad). Source: chosen.
ELSEWHERE_M, ELSEWHERE_RAD = 0.02, np.deg2rad(5.0)
_HIGHER_M = 0.06  # than the keyframe "preinsert": high enough for the student's switch, wherever it is drawn
# Where the grippers may be led on the way, about the waist's home (rad): an insertion leaves the box of picking.
_WAIST = 1.2
_BOX = ((0.15, -0.002, -0.6, 0.002), (0.60, 0.45, 1.4, 0.037))
_ROLLS = [
    index
    for index, joint in enumerate(JOINTS)
    if joint.endswith(("/forearm_roll", "/wrist_rotate"))
]
_REGRASP = 3  # episodes after which objects are set down and picked up anew
_LONGEST = 3  # times as long as an episode at most may a part of the way take
_PATIENCE = 10  # control steps in which nothing moves, because the guard lets it not, after which it goes on otherwise


@functools.cache
def arms_of(spec: InsertSpec) -> tuple[OnlineSpec, ...]:
    """Returns both arms, left first, as they are led in places of their grippers."""
    insert = scene.load("insert")
    made = []
    for side, arm in zip(SIDES, insert.arms, strict=True):
        one = make_spec("pick", spec.cameras, spec.student.network, side)
        waist = float(insert.home_ctrl[arm.ctrl[0]])
        low, high = _BOX
        box = Box((waist - _WAIST, *low), (waist + _WAIST, *high))
        made.append(dataclasses.replace(one, box=box))
    return tuple(made)


class InsertBack:
    """Goes back from an insertion by what is felt alone.

    First the executed commands backwards to where the student switched, so that the peg comes out as it went in. If
    both grippers hold something by then, they are led near to where insertions begin, from where the student inserts
    anew. After a failure, after every few episodes, and where a gripper holds nothing any more, each arm sets down what
    it holds at a random place, opens, and goes home, from where the student picks up: what was inserted several times
    has slipped in the fingers.

    Args:
      spec: what learns. seed: of the places.

    Attributes:
      number: of the episode.
    """

    def __init__(self, spec: InsertSpec, seed: Sequence[int]) -> None:
        self._seed, self._arms = tuple(seed), arms_of(spec)
        self._scale = spec.student.action.scale
        home = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in home.arms])
        self._home = home.home_ctrl[order]
        self._before = home.model.key("preinsert").ctrl[order]
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """Starts an episode."""
        self._told: list[np.ndarray] = []  # targets [14] since the switch, the oldest first
        self._ways: list[Way] | None = None
        self._lowers = self._regrasps = False
        self._turned = self._home
        self._moves = np.zeros(len(JOINTS))
        self._steps = self._stood = 0
        self._last = np.zeros(len(JOINTS))  # targets in the step before

    def note(self, felt: np.ndarray, switched: bool) -> None:
        """Takes what is felt [32] in a control step of the episode, and whether the student has switched."""
        if switched:
            self._told.append(self._targets(felt))
        else:  # it picks, perhaps again: what was before leads nowhere
            self._told = []

    def start(self, success: bool) -> None:
        """Begins the way after an episode that succeeded or not."""
        self._regrasps = not success or self.number % _REGRASP == _REGRASP - 1

    def act(self, felt: np.ndarray) -> np.ndarray | None:
        """Returns the actions [14] in [-1, 1] for what is felt [32]; None at the way's end."""
        self._steps += 1
        if self._steps > _LONGEST * find_online_task("insert").steps:
            return None
        targets = self._targets(felt)
        moved = np.abs(targets - self._last).max() > 0.1 * self._scale
        self._last, self._stood = targets, 0 if moved else self._stood + 1
        if self._told and self._stood > _PATIENCE:
            self._told = []
        if self._told:
            return np.clip((self._earlier(targets) - targets) / self._scale, -1, 1)
        held = holds(felt)
        if self._ways is None:
            self._ways = self._apart(felt) if held.all() else self._down(felt, held)
        actions = self._lead(felt, targets)
        if actions is None and not self._lowers and (self._regrasps or not held.all()):
            self._ways = self._down(felt, held)
            actions = self._lead(felt, targets)
        return actions

    def _targets(self, felt: np.ndarray) -> np.ndarray:
        return np.concatenate([arm.targets(felt) for arm in self._arms])

    def _earlier(self, targets: np.ndarray) -> np.ndarray:
        """Returns the earliest targets that are a control step away, and forgets what came after them."""
        apart = np.abs(np.array(self._told) - targets).max(1)
        near = np.flatnonzero(apart <= self._scale)
        if not near.size:
            return self._told[-1]
        wanted = self._told[near[0]]
        del self._told[near[0] :]
        return wanted

    def _apart(self, felt: np.ndarray) -> list[Way]:
        """Returns the ways of both arms to where insertions begin."""
        self._steps, self._turned = 1, self._before
        draw = np.random.default_rng([*self._seed, self.number, 3])
        ways = []
        for arm, joints in zip(self._arms, np.split(self._before, len(SIDES)), strict=True):
            now, end = arm.arm.polar(arm.targets(felt)), arm.arm.polar(joints)
            half = [ELSEWHERE_M / end[1], ELSEWHERE_M, ELSEWHERE_M, ELSEWHERE_RAD]
            end[:-1] += draw.uniform(-1, 1, len(half)) * half
            end[2] += _HIGHER_M
            end[-1] = now[-1]
            ways.append(Way(arm, [end]))
        return ways

    def _down(self, felt: np.ndarray, held: np.ndarray) -> list[Way]:
        """Returns the ways of both arms home, over where they set down what they hold."""
        self._steps, self._turned, self._lowers = 1, self._home, True
        draw = np.random.default_rng([*self._seed, self.number, 4])
        ways = []
        for arm, joints, own in zip(
            self._arms, np.split(self._home, len(SIDES)), held, strict=True
        ):
            now, home = arm.arm.polar(arm.targets(felt)), arm.arm.polar(joints)
            ways.append(way_back(arm, home, now, bool(own), draw, START))
        return ways

    def _lead(self, felt: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
        """Leads both arms on their ways, HOLD steps a decision, and turns the grippers about their other axes."""
        assert self._ways is not None
        if (self._steps - 1) % HOLD == 0:
            wanted = [way.act(felt) for way in self._ways]
            if all(one is None for one in wanted):
                return None
            moves = [
                arm.move(felt, one)
                for arm, one in zip(self._arms, wanted, strict=True)
                if one is not None
            ]
            self._moves = np.sum(moves, 0) * ACTION_SCALE
        moves = self._moves.copy()
        moves[_ROLLS] = np.clip((self._turned - targets)[_ROLLS], -self._scale, self._scale)
        return moves / max(self._scale, float(np.abs(moves).max()))
