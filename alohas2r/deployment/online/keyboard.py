"""A person at the keyboard shows a task: each key moves the gripper a little from where it is; it never jumps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

import numpy as np

from alohas2r.deployment.keys import Keys
from alohas2r.embodiment import polar

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
HELP = (
    "w s reach, a d waist, r f height, t g pitch, space opens and closes, x gives the episode up;"
    " Ctrl-C ends."
)


class Keyboard:
    """Keys as actions; a rule for `deciders.Scripted`.

    A terminal repeats a key that is held down; what was pressed since the last decision counts once.

    Args:
      say: shows a line to the person. stream: where keys come from; None: the terminal.

    Attributes:
      gave_up: whether the person gave the episode up.

    Raises:
      ConfigError: there is no terminal.
    """

    lines, complaint = HELP, "--by keyboard needs a terminal to press keys in."

    def __init__(self, say: Callable[[str], None], stream: TextIO | None = None) -> None:
        self._keys = Keys(self.complaint, stream)
        self._say = say
        self._closed: bool | None = False  # None: the fingers stay as they are
        self.gave_up = False

    def __enter__(self) -> Self:
        """Takes keys one by one from now on."""
        self._keys.begin()
        self._say(self.lines)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the terminal back."""
        self._keys.end()

    def begin(self, seed: Sequence[int]) -> None:
        """Starts an episode with open fingers; what was pressed before it does not count."""
        self._pressed()
        self._closed = self.gave_up = False

    def act(self, proprioception: np.ndarray) -> np.ndarray:
        """Returns the action [5] of the keys that were pressed since the last one."""
        keys = self._pressed()
        self.gave_up = self.gave_up or GIVE_UP in keys
        return self._moved(keys)

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
