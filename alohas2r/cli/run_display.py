"""What a run on arms shows while it goes: a live table with both wrist views, or a line for each change of mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from alohas2r.cli.app import library

if TYPE_CHECKING:
    from alohas2r.deployment.report import Report
    from alohas2r.robots.base import Frame


class Display:
    """A run as it goes: what the arms do, how fast the loop is, and what was changed.

    Reports come at 20 Hz and are only kept; rich draws the newest from a thread of its own.
    """

    def __init__(self, episodes: int, view: bool) -> None:
        """Starts with nothing to show.

        Args:
          episodes: how many there are in all.
          view: whether to show both wrist views.
        """
        self._episodes, self._view = episodes, view
        self._report: Report | None = None
        self._clamps: dict[str, int] = {}
        self._tally = library("deployment.timing").Tally()

    def __call__(self, report: Report) -> None:
        """Takes a control step."""
        for one in report.interventions:
            self._clamps[one] = self._clamps.get(one, 0) + 1
        self._tally(report)
        self._report = report

    def __rich__(self) -> Table | Text | Group:
        """Draws the newest report."""
        report = self._report
        if report is None:
            return Text("Checking arms, cameras and policy ...")
        rate = self._tally.rate_hz
        stage = "insert" if report.switched else "pick"
        clamps = ", ".join(f"{name} {count}" for name, count in self._clamps.items()) or "none"
        noticed = "; ".join(one.text for one in report.findings) or "nothing"
        table = Table(show_header=False, box=None)
        table.add_row("episode", f"{report.episode + 1} of {self._episodes}, step {report.step}")
        table.add_row("arms", f"{report.mode.value}, {stage}" if report.acting else "on their way")
        pace = f"{rate:.1f} Hz, " if rate else ""
        table.add_row("loop", f"{pace}{1000 * report.duration_s:.1f} ms a step")
        table.add_row("clamped", escape(clamps))
        table.add_row("noticed", escape(noticed))
        if not self._view or len(report.frames) < 2:
            return table
        return Group(table, *views(report.frames))


def views(frames: Mapping[str, Frame]) -> list[Text]:
    """Returns both cameras' pictures as text: colour, then depth (nearer is brighter).

    Each character shows two pixels, one above the other.

    Args:
      frames: "left" and "right".
    """
    import numpy as np

    rows = []
    for side in ("left", "right"):
        frame = frames[side]
        near = np.where(frame.depth > 0, 1 - np.clip(frame.depth / 0.4, 0, 1), 0)
        grey = np.repeat((255 * near)[..., None], 3, axis=2).astype(np.uint8)
        rows += [frame.rgb[: len(frame.rgb) // 2 * 2], grey[: len(grey) // 2 * 2]]
    picture = np.concatenate(rows, axis=1)
    lines = []
    for upper, lower in zip(picture[::2], picture[1::2], strict=True):
        line = Text()
        for top, bottom in zip(upper, lower, strict=True):
            colours = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in (top, bottom)]
            line.append("▀", f"{colours[0]} on {colours[1]}")
        lines.append(line)
    return lines


@contextlib.contextmanager
def live(episodes: int, view: bool) -> Iterator[Callable[[Report], None]]:
    """Shows a run on stderr: a live table on a terminal, else a line for each change of mode."""
    console = Console(stderr=True)
    with contextlib.redirect_stdout(console.file):  # stdout is for the result
        if console.is_terminal:
            display = Display(episodes, view)
            with Live(display, console=console, refresh_per_second=8):
                yield display
            return
        last: list[tuple[int, str]] = []

        def note(report: Report) -> None:
            now = (report.episode, report.mode.value)
            if last[-1:] != [now]:
                last[:] = [now]
                text = "; ".join(one.text for one in report.findings)
                console.print(
                    f"episode {now[0] + 1} of {episodes}: {now[1]}{': ' + text if text else ''}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

        yield note
