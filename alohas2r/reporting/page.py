"""One HTML page that holds all it shows: no file beside it, no network.

A page is sections of blocks; page.html in this folder says how each kind of block looks. What is put in is text and is
escaped; only charts and clips are markup and data of our own.
"""

from __future__ import annotations

import base64
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeAlias, TypeGuard

import jinja2
import numpy as np
from markupsafe import Markup

from alohas2r.core import files
from alohas2r.core.types import JsonObject
from alohas2r.reporting.charts import short

NAME = "index.html"
MOST_ROWS = 2000  # of a table; a browser takes its time over more


class RateRow(NamedTuple):
    """A rate and its 95% interval."""

    name: str
    rate: float | None
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates, each as a bar with its interval."""

    rows: Sequence[RateRow]
    kind: ClassVar[str] = "rates"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


class Chart(NamedTuple):
    """A drawing of `reporting.charts` under a title."""

    title: str
    svg: Markup
    note: str = ""
    wide: bool = False  # across the page


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: Sequence[Chart]
    kind: ClassVar[str] = "charts"


class Clip(NamedTuple):
    """A looping film; `good` gives its colour: success, failure, or None for neither."""

    title: str
    caption: str
    good: bool | None
    data: bytes  # MP4, H.264
    anchor: str  # that links lead to


@dataclasses.dataclass(frozen=True)
class Clips:
    """Films side by side."""

    clips: Sequence[Clip]
    kind: ClassVar[str] = "clips"


class Cell(NamedTuple):
    """What stands in a table, and by what it is sorted."""

    text: str
    order: float | str
    style: str = ""  # "good" or "bad"
    link: str = ""  # an anchor of this page


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that a click on a column's head sorts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: Sequence[str]
    kind: ClassVar[str] = "commands"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


Block: TypeAlias = Rates | Facts | Charts | Clips | Table | Commands | Text


class Section(NamedTuple):
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


class Headline(NamedTuple):
    """A figure that is read first."""

    figure: str
    name: str
    note: str = ""


class Page(NamedTuple):
    """A whole page."""

    title: str
    lead: str  # a sentence under the title
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    footer: str


def render(page: Page) -> str:
    """Returns the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["anchor"] = lambda title: "-".join(title.lower().split())
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("page.html").render(page=page)


def write(page: Page, folder: pathlib.Path) -> pathlib.Path:
    """Writes the page as index.html in a folder, whole or not at all.

    Raises:
      ArtifactError: the file cannot be written.
    """
    return files.write_atomic(folder / NAME, render(page).encode())


def is_rate(value: object) -> TypeGuard[JsonObject]:
    """Returns whether a value of a result is a rate with its interval."""
    return isinstance(value, Mapping) and value.keys() == {"rate", "low", "high"}


# Ends of names that are units, and how these are written.
UNITS = {
    "_rad_s": "rad/s",
    "_per_s": "per s",
    "_mm": "mm",
    "_ms": "ms",
    "_deg": "°",
    "_hz": "Hz",
    "_mb": "MB",
    "_s": "s",
    "_n": "N",
    "_g": "g",
}


def unit_of(name: str) -> tuple[str, str]:
    """Returns a name without its unit, and the unit: "arm_distance_mm" -> "arm_distance", "mm"."""
    for end, unit in UNITS.items():
        if name.endswith(end):
            return name.removesuffix(end), unit
    return name, ""


def words(name: str) -> str:
    """Returns a name of a result in words: "arm_distance_mm" -> "arm distance (mm)"."""
    bare, unit = unit_of(name)
    return bare.replace("_", " ") + (f" ({unit})" if unit else "")


def rate_rows(rates: Mapping[str, JsonObject]) -> list[RateRow]:
    """Returns rates of a result as rows."""
    return [
        RateRow(words(name), rate["rate"], rate["low"], rate["high"])
        for name, rate in rates.items()
    ]


def told(value: object) -> str:
    """Returns a value of a result as text."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return short(float(value))
    if isinstance(value, list | tuple):
        return ", ".join(told(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(name))} {told(item)}" for name, item in value.items())
    return str(value)


def fact_rows(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Returns values of a result as rows, one for each that is no mapping of mappings."""
    return [(words(name), told(value)) for name, value in values.items()]


def table_of(columns: Mapping[str, Sequence[object] | np.ndarray]) -> Table:
    """Returns columns [N] as a table, at most MOST_ROWS of it."""
    rows = zip(*(list(values)[:MOST_ROWS] for values in columns.values()), strict=True)
    return Table(
        [words(name) for name in columns], [[cell(value) for value in row] for row in rows]
    )


def cell(value: object, style: str = "", link: str = "") -> Cell:
    """Returns a cell that is sorted by the value itself."""
    if value is None:
        return Cell("-", "", style, link)
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "·", int(value), style, link)
    if isinstance(value, int | float | np.integer | np.floating):
        number = float(value)
        return Cell(told(value), number if np.isfinite(number) else "", style, link)
    return Cell(told(value), str(value), style, link)
