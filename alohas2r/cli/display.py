"""How commands show progress and results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import typer.exceptions
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from alohas2r.core.plain import plain
from alohas2r.core.progress import Report

# Figures that the progress shows, of all that a run writes to its metrics.
HEADLINES = ("train/reward", "train/success", "eval/success", "eval/precise")


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows on a terminal that something is going on; keeps stdout for the result."""
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # stdout is for the result
        if console.is_terminal:
            stack.enter_context(console.status(what))
        yield


def announcing(what: str, api_key: str) -> Callable[[str, int], None]:
    """Returns what says on stderr where something listens, given host and port, and who may come in."""
    console = Console(stderr=True)

    def ready(host: str, port: int) -> None:
        where = f"[{host}]" if ":" in host else host
        access = "with an API key" if api_key else "open to all who reach it"
        console.print(
            f"{what} on ws://{where}:{port}, {access}; Ctrl-C ends it.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    return ready


@contextlib.contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Gives a display for reports on stderr; keeps stdout for the result."""
    display = ProgressDisplay(Console(stderr=True))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            yield display
    finally:
        with contextlib.suppress(OSError, ValueError, SystemExit):  # the terminal is gone
            display.close()


class ProgressDisplay:
    """Draws reports on stderr: bars on a terminal, else a line now and then."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        """Keeps the console; without a terminal there is a line every `every_s` seconds."""
        self._console, self._every_s = console, every_s
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._figures: dict[str, dict[str, float]] = {}
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._bars.start()

    def __call__(self, report: Report) -> None:
        """Shows a report; headlines that it lacks keep their last value."""
        figures = self._figures.setdefault(report.label, {})
        figures.update(report.figures)
        text = report_text(dataclasses.replace(report, figures=figures))
        if self._bars is None:
            now = time.monotonic()
            first, last = report.label not in self._last, report.done >= report.total
            if first or last or now - self._last[report.label] >= self._every_s:
                self._last[report.label] = now
                self._console.print(f"{report.label}: {text}", highlight=False, soft_wrap=True)
            return
        if report.label not in self._tasks:
            self._tasks[report.label] = self._bars.add_task(
                report.label, total=report.total, text=""
            )
        self._bars.update(
            self._tasks[report.label],
            completed=report.done,
            total=report.total,
            text=escape(text),
        )

    def close(self) -> None:
        """Leaves the bars as they are."""
        if self._bars is not None:
            self._bars.stop()


def report_text(report: Report) -> str:
    """Returns a report in words: "1.2M / 20M steps, 9.1k/s, 35 min left, eval success 0.61"."""
    parts = [f"{_short(report.done)} / {_short(report.total)} {report.unit}"]
    if report.per_s > 0:
        parts.append(f"{_short(report.per_s)}/s")
    if report.left_s is not None and report.done < report.total:
        parts.append(f"{duration_text(report.left_s)} left")
    shown = [name for name in HEADLINES if name in report.figures] or list(report.figures)[:4]
    # While it explores, a policy that has never succeeded yet says nothing by that.
    shown = [name for name in shown if name != "train/success" or report.figures[name]]
    parts += [f"{name.replace('/', ' ')} {report.figures[name]:.3g}" for name in shown]
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Returns a duration in words: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 10 or (number >= size and number % (size / 10) == 0):
            return f"{number / size:.4g}{suffix}"
    return f"{number:.4g}"


def show(result: Mapping[str, object], title: str, as_json: bool) -> None:
    """Prints a result on stdout: as JSON, or as a table."""
    figures = {name: plain(value) for name, value in result.items() if name != "table"}
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
        return
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(figures, ""):
        table.add_row(name, escape(text))
    Console().print(table)


def _rows(figures: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and value.keys() == {"rate", "low", "high"}:
            share = "-" if value["rate"] is None else f"{value['rate']:.1%}"
            yield label, f"{share}  (95%: {value['low']:.1%} .. {value['high']:.1%})"
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{label}: ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for group in value:  # of a range, with the rate in it
                rate = {key: group[key] for key in ("rate", "low", "high")}
                yield from _rows({f"{group['from']:.3g} .. {group['to']:.3g}": rate}, f"{label}: ")
        elif value is None:
            yield label, "-"
        elif isinstance(value, float):
            yield label, f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        else:
            yield label, str(value)
