"""A person helps a policy that learns: takes over from where the arm is, gives back, and says what succeeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np

from alohas2r.deployment.online.deciders import Looking, Seen, Source, Verdict
from alohas2r.deployment.online.hands import Hand
from alohas2r.deployment.online.keyboard import GRIP, Keyboard
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import find_online_task

TAKE, SUCCESS, FAILURE, UNDO = "c", "y", "n", "u"
GRACE_S = 1.0  # in which a mark can be taken back; the arm stands meanwhile
_SHUT_M = 0.02  # below which fingers count as closed: space opens them
_MARKS = {SUCCESS: Verdict.SUCCESS, FAILURE: Verdict.FAILURE}


class Coach(Keyboard):
    """Keys of a person who takes over now and then; what is pressed before a takeover moves nothing.

    Args:
      say: shows a line to the person. stream: where keys come from; None: the terminal.
      hand: what the person moves beside the keys, once they have taken over; None: nothing.

    Attributes:
      takes: whether `c` takes over.
      leads: whether the person leads the arm.
      shut: whether the fingers are closed, of which the person's first space is the opposite.

    Raises:
      ConfigError: there is no terminal.
    """

    lines = (
        "c takes over and gives back; y success, n failure, u takes that back within a second; while you lead: w s"
        " reach, a d waist, r f height, t g pitch, space opens and closes. Ctrl-C ends."
    )
    option, buttons = "--coach {}", (GRIP, TAKE)

    def __init__(
        self, say: Callable[[str], None], stream: TextIO | None = None, hand: Hand | None = None
    ) -> None:
        super().__init__(say, stream, hand)
        self.takes = True
        self.leads = self.shut = False
        self._moves = ""
        self._mark, self._since = Verdict.NONE, 0

    def begin(self, seed: Sequence[int]) -> None:
        """Starts an episode, which the policy leads; what was pressed before it does not count."""
        super().begin(seed)
        self.leads, self._moves = False, ""
        self._mark, self._since = Verdict.NONE, 0

    def judge(self) -> Verdict:
        """Takes the keys of a control step; returns what the person says of the episode by now."""
        keys = self._pressed() + self._polled()
        if self._lost and self.leads:
            self.leads, self._moves, self._mark = False, "", Verdict.NONE
            return Verdict.FAILURE
        for key in keys:
            if key == TAKE:
                if self.takes:
                    self._take()
            elif key in _MARKS:
                self._mark, self._since = _MARKS[key], 0
                self._say(f"{self._mark.value}; u takes it back")
            elif key == UNDO and self._mark is not Verdict.NONE:
                self._mark, self._moves = Verdict.NONE, ""
                self._say("taken back")
            elif self.leads:
                self._moves += key
        if self._mark is Verdict.NONE:
            return Verdict.NONE
        self._since += 1
        return self._mark if self._since > GRACE_S / CONTROL_PERIOD_S else Verdict.WAIT

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [5] of what `judge` took; the fingers stay as they are until the first space."""
        moves, self._moves = self._moves, ""
        if GRIP in moves and self._closed is None:
            self._closed = self.shut
        return self._led(moves, proprioception)

    def _without_hand(self) -> str:
        """Returns what becomes of the episode when the hand is gone."""
        if self.leads:
            return "The arm holds, the episode failed, and the policy leads again."
        return "The policy leads on; c looks for it again."

    def _take(self) -> None:
        """Takes over, if what leads is there, or gives back."""
        if not self.leads and self._lost and not self._found(now=True):
            return
        self.leads, self._moves, self._closed = not self.leads, "", None
        if self._hand is not None:
            self._hand.begin()
        self._say("You lead." if self.leads else "The policy leads.")


class Judge(Coach):
    """Keys of a person who says what succeeded, and nothing else; see `Coach`."""

    lines = "y success, n failure, u takes that back within a second. Ctrl-C ends."
    option, buttons = "--judge", ()

    def _take(self) -> None:
        """Leaves the arms to who acts."""


class Aided:
    """Who acts, or the person who has taken over: `Source`.

    The policy has as long for an episode as without a person; evaluations are unaided.

    Args:
      source: who acts. coach: the person. limit: control steps that it has.
      judged: whether the person says what succeeded in evaluations as well, where nobody else knows.
    """

    def __init__(self, source: Source, coach: Coach, limit: int, judged: bool = False) -> None:
        self._acting, self._coach = source, coach
        self._limit, self._judged = limit, judged
        self._aided, self._led = False, 0

    @property
    def source(self) -> str:
        """Who leads."""
        return "human" if self._coach.leads else self._acting.source

    @property
    def version(self) -> int:
        """Of the policy's weights."""
        return self._acting.version

    @property
    def gave_up(self) -> bool:
        """Whether the policy's time is over."""
        return self._led >= self._limit and not self._coach.leads

    def begin(self, seed: Sequence[int], explores: bool) -> None:
        """Starts an episode; one in which nothing is explored is an evaluation."""
        self._acting.begin(seed, explores)
        self._coach.begin(seed)
        self._coach.takes = explores
        self._aided, self._led = explores or self._judged, 0

    def judge(self) -> Verdict:
        """Takes the person's keys, in evaluations none but marks."""
        verdict = self._coach.judge() if self._aided else Verdict.NONE
        self._led += not self._coach.leads and verdict is Verdict.NONE
        return verdict


class Coached(Aided):
    """Decides by a policy that learns, or by the person who has taken over: `Decider`.

    Args:
      spec: the policy. learned: its weights at work. coach: the person.
    """

    def __init__(self, spec: OnlineSpec, learned: Looking, coach: Coach) -> None:
        super().__init__(learned, coach, find_online_task(spec.task).steps)
        self._spec, self._learned = spec, learned
        coach.use(spec)

    def decide(self, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
        """Looks and decides; the base is the policy's own, whoever leads."""
        base, wanted = self._learned.decide(seen)
        if self._coach.leads:
            self._coach.shut = bool(self._spec.targets(seen.proprioception)[-1] < _SHUT_M)
            wanted = self._coach.act(seen.proprioception)
        return base, wanted
