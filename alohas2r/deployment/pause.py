"""What happens between two episodes on real arms: a person puts the parts back."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol, TextIO

from alohas2r.deployment.keys import Keys


class Next(enum.Enum):
    """What comes after the pause."""

    NEXT = "next"  # the next episode
    AGAIN = "again"  # the last episode once more
    STOP = "stop"  # the end of the run


class Pause(Protocol):
    """Waits between episodes, while the arms rest without torque."""

    def begin(self, now_s: float) -> None:
        """Starts the pause. `now_s`: the run's time."""
        ...

    def poll(self, now_s: float) -> Next | None:
        """Returns what comes next, or None while the pause goes on; never waits."""
        ...

    def end(self) -> None:
        """Ends the pause, however it came."""
        ...


class TimedPause:
    """Goes on by itself after some time."""

    def __init__(self, seconds: float) -> None:
        """Keeps how long to wait (s)."""
        self._seconds = seconds
        self._due_s = 0.0

    def begin(self, now_s: float) -> None:
        """Starts the clock."""
        self._due_s = now_s + self._seconds

    def poll(self, now_s: float) -> Next | None:
        """Returns NEXT once the time is over."""
        return Next.NEXT if now_s >= self._due_s else None

    def end(self) -> None:
        """Needs nothing."""


class KeyPause:
    """Waits for a key: n or Enter for the next episode, a for the same again, s for the end."""

    KEYS = {"n": Next.NEXT, "\n": Next.NEXT, "a": Next.AGAIN, "s": Next.STOP}  # noqa: RUF012

    def __init__(
        self, say: Callable[[str], None], stream: TextIO | None = None, again: bool = True
    ) -> None:
        """Prepares.

        Args:
          say: shows a line to the person.
          stream: where the keys come from; None: the terminal.
          again: whether the last episode can be run once more.

        Raises:
          ConfigError: there is no terminal to press a key on.
        """
        self._keys = Keys(
            "Between episodes a person puts the parts back and presses a key, which needs a terminal. Say how"
            " long that takes with --reset-seconds, or run one episode.",
            stream,
        )
        self._say, self._again = say, again

    def begin(self, now_s: float) -> None:
        """Says which keys there are, and takes them one by one from now on."""
        self._keys.begin()
        choices = (
            "n (next episode), a (again) or s (stop)" if self._again else "n (next) or s (stop)"
        )
        self._say(f"Torque is off. Put the parts back, then press {choices}.")

    def poll(self, now_s: float) -> Next | None:
        """Returns what the key that was pressed means; other keys mean nothing. A closed terminal ends the run."""
        key = self._keys.read()
        if key is None:
            return None
        then = self.KEYS.get(key) if key else Next.STOP
        return None if then is Next.AGAIN and not self._again else then

    def end(self) -> None:
        """Gives the terminal back."""
        self._keys.end()
