"""Lines of text above and below pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, FAINT, WHITE = (24, 26, 30), (110, 114, 122), (235, 235, 235)
_SHARE = 0.68  # of a line's height that letters take
_GAP = 1.1  # between two words of a line, in heights of letters


class Word(NamedTuple):
    """A part of a line."""

    text: str
    colour: tuple[int, int, int] = WHITE
    left: int | None = None  # where it begins (pixels); None to follow the part before


def line(width: int, height: int, words: Sequence[Word]) -> np.ndarray:
    """Returns a line of text as a picture [height, width, 3] uint8; what does not fit is cut off.

    Args:
      width: in pixels.
      height: likewise; letters take most of it.
      words: from left to right.
    """
    return _line(width, height, tuple(words)).copy()


@functools.lru_cache(maxsize=256)  # the same line stands above many pictures
def _line(width: int, height: int, words: tuple[Word, ...]) -> np.ndarray:
    size = max(6, round(_SHARE * height))
    font = ImageFont.load_default(size)
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    left = size // 2
    for word in words:
        left = left if word.left is None else word.left
        draw.text((left, height / 2), word.text, word.colour, font, anchor="lm")
        left += round(draw.textlength(word.text, font) + _GAP * size)
    return np.asarray(picture)
