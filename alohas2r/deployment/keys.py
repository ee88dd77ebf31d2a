"""Single keys from a terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import TextIO

from alohas2r.errors import ConfigError


class Keys:
    """Takes keys one by one, without Enter, between `begin` and `end`; never waits for one.

    Args:
      complaint: what to say where there is no terminal.
      stream: where keys come from; None: the terminal.

    Raises:
      ConfigError: there is no terminal.
    """

    def __init__(self, complaint: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdin
        if not self._stream.isatty():
            raise ConfigError(complaint)
        self._before: list[object] = []

    def begin(self) -> None:
        """Takes keys one by one from now on."""
        number = self._stream.fileno()
        self._before = termios.tcgetattr(number)
        tty.setcbreak(number)

    def read(self, most: int = 1) -> str | None:
        """Returns keys that were pressed, at most so many, in lower case; None: none; "": the terminal is closed."""
        if not select.select([self._stream], [], [], 0)[0]:
            return None
        # Past Python's buffer, which `select` does not see.
        return os.read(self._stream.fileno(), most).decode("ascii", "replace").lower()

    def end(self) -> None:
        """Gives the terminal back."""
        if self._before:
            termios.tcsetattr(self._stream.fileno(), termios.TCSADRAIN, self._before)  # pyright: ignore[reportArgumentType]
            self._before = []
