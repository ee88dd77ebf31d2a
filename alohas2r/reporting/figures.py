"""Pages of figures of any shape, as benchmarks give them: numbers, groups of them, rows."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence

from alohas2r.core import machine
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.reporting import charts, page
from alohas2r.reporting.page import Block, Chart, Page, Section

_RATIO = "_over_"  # in names of ratios


def build(result: JsonObject, title: str, lead: str, command: str) -> Page:
    """Returns a page of a benchmark's result.

    Args:
      result: of plain values; mappings become sections, lists of mappings sortable tables.
      title, lead: what was measured. command: that gave it.
    """
    single = {name: value for name, value in result.items() if not _nested(value)}
    sections = [Section("Figures", _flat(single))] if single else []
    for name, value in result.items():
        if isinstance(value, Mapping) and value:
            sections.append(Section(page.words(name), _group(value)))
        elif isinstance(value, list) and _nested(value):
            sections.append(Section(page.words(name), [_rows(value)]))
    here = machine.describe_machine()
    sections.append(
        Section(
            "How to repeat it",
            [page.Commands([command])],
            f"Measured on {here['processor']}, {here['cores']} cores, Python {here['python']}. "
            "Other work on the machine slows what is measured.",
        )
    )
    footer = f"Written by alohas2r {__version__} on {time.strftime('%Y-%m-%d %H:%M')}."
    return Page(title, lead, [], sections, footer)


def write(
    result: JsonObject, folder: pathlib.Path, title: str, lead: str, command: str
) -> pathlib.Path:
    """Writes the page as index.html in a folder; see `build`.

    Raises:
      ArtifactError: the file cannot be written.
    """
    return page.write(build(result, title, lead, command), folder)


def _nested(value: object) -> bool:
    """Returns whether a value has a section of its own."""
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


def _flat(values: Mapping[str, object]) -> list[Block]:
    """Returns single values as facts, and a chart for those of each unit of which there are several."""
    drawn = []
    units: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        bare, unit = page.unit_of(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            kind = "ratio" if _RATIO in name else unit
            if kind:
                units.setdefault(kind, {})[bare.replace("_", " ")] = float(value)
    for unit, numbers in units.items():
        if len(numbers) > 1:
            drawn.append(
                Chart(f"in {unit}" if unit != "ratio" else "ratios", charts.bars(numbers, unit))
            )
    facts: list[Block] = [page.Facts(page.fact_rows(values))]
    return [*([page.Charts(drawn)] if drawn else []), *facts]


def _group(values: Mapping[str, object]) -> list[Block]:
    """Returns a mapping: of mappings as a table with one row each, else as single values."""
    rates = {name: value for name, value in values.items() if page.is_rate(value)}
    inner = {
        name: value
        for name, value in values.items()
        if isinstance(value, Mapping) and name not in rates
    }
    blocks: list[Block] = []
    if rates:
        blocks.append(page.Rates(page.rate_rows(rates)))
    if inner:
        blocks.append(_rows([{"": page.words(name), **value} for name, value in inner.items()]))
    rest = {name: v for name, v in values.items() if name not in inner and name not in rates}
    return [*blocks, *(_flat(rest) if rest else [])]


def _rows(rows: Sequence[Mapping[str, object]]) -> page.Table:
    """Returns mappings as rows of a table; what one lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return page.table_of({name: [row.get(name) for row in rows] for name in names})
