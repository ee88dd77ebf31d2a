"""What tests with a person share."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """A person's end of a terminal, and the stream that is read at the other."""
    person, end = pty.openpty()
    with open(end, closefd=False) as stream:
        yield person, stream
    os.close(person)
    os.close(end)
