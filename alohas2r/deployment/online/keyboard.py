"""A person at the keyboard shows a task: each key moves the gripper a little from where it is; it never jumps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

import numpy as np

from alohas2r.deployment.keys import Keys
from alohas2r.deployment.online.deciders import Scripted, Verdict
from alohas2r.deployment.online.hands import Hand
from alohas2r.embodiment import polar
from alohas2r.errors import RobotFault
from alohas2r.policies.online.spec import OnlineSpec

# Key -> which of `polar.NAMES` it moves, and which way.
KEYS = {
    "a": (0, 1.0),
    "d": (0, -1.0),
    "w": (1, 1.0),
    "s": (1, -1.0),
    "r": (2, 1.0),
    "f": (2, -1.0),
    "t": (3, -1.0),
    "g": (3, 1.0),
}
GRIP, GIVE_UP = " ", "x"
_AGAIN_S = 1.0  # after which a hand that is gone is looked for again
HELP = (
    "w s reach, a d waist, r f height, t g pitch, space opens and closes, x gives the episode up;"
    " Ctrl-C ends."
)


class Keyboard:
    """Keys, and what a hand moves beside them, as actions; a rule for `Shown`.

    A terminal repeats a key that is held down; what was pressed since the last decision counts once.

    Args:
      say: shows a line to the person. stream: where keys come from; None: the terminal.
      hand: what the person moves beside the keys; None: nothing.

    Attributes:
      gave_up: whether the person gave the episode up.

    Raises:
      ConfigError: there is no terminal.
    """

    lines, option = HELP, "--by {}"
    buttons = (GRIP, GIVE_UP)  # the keys that a hand's buttons are

    def __init__(
        self, say: Callable[[str], None], stream: TextIO | None = None, hand: Hand | None = None
    ) -> None:
        name = "keyboard" if hand is None else hand.name
        self._keys = Keys(f"{self.option.format(name)} needs a terminal to press keys in.", stream)
        self._say, self._hand = say, hand
        self._spec: OnlineSpec | None = None
        self._lost, self._tries_s = False, 0.0
        self._closed: bool | None = False  # None: the fingers stay as they are
        self._buttons = ""  # of the hand, since the last decision
        self.gave_up = False

    def __enter__(self) -> Self:
        """Takes keys one by one from now on.

        Raises:
          RobotFault: what the hand is to move is not there.
        """
        if self._hand is not None:
            self._hand.open()
        self._keys.begin()
        self._say(self.lines)
        if self._hand is not None:
            self._say(self._hand.lines)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the terminal back."""
        self._keys.end()
        if self._hand is not None:
            self._hand.close()

    def use(self, spec: OnlineSpec) -> None:
        """Says which arm is led."""
        self._spec = spec

    def begin(self, seed: Sequence[int]) -> None:
        """Starts an episode with open fingers; what was pressed before it does not count."""
        self._pressed()
        self._buttons = ""
        self._closed = self.gave_up = False
        if self._hand is not None:
            self._polled()
            self._hand.begin()

    def judge(self) -> Verdict:
        """Takes, in each control step, what the hand does: of one that is gone the arm waits, in the next episode."""
        if self._lost:
            if not self._found():
                return Verdict.WAIT
            self._say("It is there again.")
        self._buttons += self._polled()
        return Verdict.FAILURE if self._lost else Verdict.NONE

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [5] of the keys that were pressed, and of what the hand did, since the last one."""
        keys = self._pressed() + self._buttons
        self._buttons = ""
        self.gave_up = self.gave_up or GIVE_UP in keys
        return self._led(keys, proprioception)

    def _led(self, keys: str, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [5] of keys and hand."""
        action = self._moved(keys)
        if self._hand is None:
            return action
        assert self._spec is not None
        return self._hand.act(self._spec, proprioception, action)

    def _moved(self, keys: str) -> np.ndarray:
        """Returns the action [5] of keys."""
        action = np.zeros(polar.SIZE, np.float32)
        for key in dict.fromkeys(keys):
            if key in KEYS:
                which, way = KEYS[key]
                action[which] += way
        if keys.count(GRIP) % 2:
            self._closed = not self._closed
        if self._closed is not None:
            action[-1] = -1.0 if self._closed else 1.0
        return action

    def _pressed(self) -> str:
        """Returns the keys that were pressed since the last call; never waits."""
        keys = ""
        while more := self._keys.read(256):
            keys += more
        return keys

    def _polled(self) -> str:
        """Returns the keys that the hand's buttons are; of one that is gone, says so once."""
        if self._hand is None or self._lost:
            return ""
        try:
            buttons = self._hand.poll()
        except RobotFault as fault:
            self._lost = True
            self._hand.close()
            self._say(f"{fault} {self._without_hand()}")
            return ""
        return "".join(self.buttons[one] for one in buttons if one < len(self.buttons))

    def _without_hand(self) -> str:
        """Returns what becomes of the episode when the hand is gone."""
        return (
            "The arm holds; an episode that had begun failed. The next waits for it; Ctrl-C ends."
        )

    def _found(self, now: bool = False) -> bool:
        """Looks, once in a while or now, whether the hand is there again."""
        if self._hand is None or not (now or time.monotonic() >= self._tries_s):
            return not self._lost
        return self._connected(self._hand, says=now)

    def _connected(self, hand: Hand, says: bool = True) -> bool:
        """Connects a hand, which leads from where it is; returns whether it is there, or says why not."""
        self._tries_s = time.monotonic() + _AGAIN_S
        try:
            hand.open()
        except RobotFault as fault:
            self._lost = True
            if says:
                self._say(str(fault))
            return False
        self._lost = False
        hand.begin()
        return True


class Shown(Scripted):
    """Decides by a person: `Decider`.

    Args:
      spec: which arm is led. person: who leads it.
    """

    def __init__(self, spec: OnlineSpec, person: Keyboard) -> None:
        super().__init__(person, "human")
        person.use(spec)
        self._person = person

    def judge(self) -> Verdict:
        """Takes what the person's hand does; of the episode the reward judges."""
        return self._person.judge()
