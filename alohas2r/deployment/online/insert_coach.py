"""A person helps an insertion: takes over an arm once the student inserts, and says what succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np

from alohas2r.deployment.online.coach import Aided, Coach, Judge
from alohas2r.deployment.online.deciders import Chooser
from alohas2r.deployment.online.hands import Hand
from alohas2r.deployment.online.insert_way import arms_of
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import SIDES
from alohas2r.policies.online.insertion import InsertSpec, joints_of
from alohas2r.policies.online.spec import OnlineSpec

# How far a key moves a gripper in a control step, as part of what it does elsewhere: 2 mm.
FINE = 0.25
_ARMS = ("1", "2")  # keys, left first


class InsertCoach(Coach):
    """Keys of a person who leads one of both arms; see `Coach`. Fingers stay as the student has them.

    Args:
      say, stream: as of `Coach`. hands: what the person moves beside the keys, for each arm, left first; None: nothing.
    """

    lines = (
        "c takes over and gives back; y success, n failure, u takes that back within a second; while you lead: 1 the"
        " left arm, 2 the right, w s reach, a d waist, r f height, t g pitch; the other arm stands. Ctrl-C ends."
    )

    def __init__(
        self,
        say: Callable[[str], None],
        stream: TextIO | None = None,
        hands: Sequence[Hand | None] = (None, None),
    ) -> None:
        super().__init__(say, stream, hands[0])
        self._hands = hands
        self._arms: tuple[OnlineSpec, ...] = ()
        self._scale = ACTION_SCALE

    def use_both(self, spec: InsertSpec) -> None:
        """Says whose arms are led; the left one at first."""
        self._arms = arms_of(spec)
        self._scale = spec.student.action.scale
        self.use(self._arms[0])

    def lead(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [12] of both arms' joints of what `judge` took, for what is felt [32]."""
        for key in self._moves:
            if key in _ARMS:
                self._choose(_ARMS.index(key))
        action = self.act(proprioception)
        assert self._spec is not None
        moves = self._spec.move(proprioception, action) * ACTION_SCALE / self._scale
        return np.clip(joints_of(moves), -1, 1).astype(np.float32)

    def _choose(self, side: int) -> None:
        """Leads another arm from where it is."""
        if self._spec is self._arms[side]:
            return
        if self._hand is not None:
            self._hand.close()
        self._hand, self._spec = self._hands[side], self._arms[side]
        if self._hand is not None:
            self._connected(self._hand)
        self._say(f"You lead the {SIDES[side]} arm.")

    def _moved(self, keys: str) -> np.ndarray:
        return FINE * super()._moved(keys)


class CoachedInsertion(Aided):
    """Corrects an insertion by a residual that learns, or by the person who has taken over: `Chooser`.

    Args:
      spec: what learns. chooser: its weights at work, or a student alone. coach: the person.
      limit, judged: as of `Aided`.
    """

    def __init__(
        self,
        spec: InsertSpec,
        chooser: Chooser,
        coach: InsertCoach | Judge,
        limit: int,
        judged: bool = False,
    ) -> None:
        super().__init__(chooser, coach, limit, judged)
        self._chooser, self._person = chooser, coach
        if isinstance(coach, InsertCoach):
            coach.use_both(spec)

    def choose(self, features: np.ndarray, felt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decides; the base is the student's own, whoever leads."""
        base, wanted = self._chooser.choose(features, felt)
        if isinstance(self._person, InsertCoach) and self._person.leads:
            wanted = self._person.lead(felt)
        return base, wanted
