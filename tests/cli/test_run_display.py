"""What a run shows while it goes."""

from __future__ import annotations

import contextlib
import os

import numpy as np
from rich.console import Console

from alohas2r.cli import run_display
from alohas2r.deployment.report import Report
from alohas2r.robots.base import Frame
from alohas2r.safety.monitor import Finding, Level
from alohas2r.safety.reactions import Mode


def report(frames: dict[str, Frame]) -> Report:
    laps = {"read": 0.002, "infer": 0.001}
    finding = Finding("hot servo", Level.NOTE, "left/elbow is at 61 C")
    clamped = ("speed", "collision")
    return Report(1, 17, Mode.RUN, True, 0.0123, laps, True, clamped, (finding,), frames)


def test_the_display_shows_stage_latency_clamps_and_findings() -> None:
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with contextlib.closing(console.file):
        display = run_display.Display(3, view=False)
        console.print(display)
        display(report({}))
        display(report({}))
        console.print(display)
        text = console.export_text()
    for part in (
        "Checking arms",
        "2 of 3, step 17",
        "run, insert",
        "12.3 ms",
        "speed 2, collision 2",
        "left/elbow is at 61 C",
        "Hz",
    ):
        assert part in text


def test_both_wrist_views_are_drawn_in_characters() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[0, 0], rgb[1, 0] = (255, 0, 0), (0, 0, 255)
    depth = np.full((4, 4), 0.2, np.float32)
    depth[0, 0] = 0
    frame = Frame(rgb, depth, 0.0, 1)
    lines = run_display.views({"left": frame, "right": frame})
    assert len(lines) == 2  # two pixels to a character
    assert all(len(line.plain) == 4 * 4 for line in lines)  # colour and depth of both
    styles = [str(span.style) for span in lines[0].spans]
    assert styles[0] == "#ff0000 on #0000ff"
    assert styles[4] == "#000000 on #7f7f7f"  # depth: unknown is black, 0.2 m is grey
    display = run_display.Display(1, view=True)
    display(report({"left": frame, "right": frame}))
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with contextlib.closing(console.file):
        console.print(display)
        assert console.export_text().count("▀") == 2 * 16
