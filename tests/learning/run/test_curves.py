"""Curves of runs as text; those of matplotlib are drawn by the tests of the command."""

from __future__ import annotations

import json
import pathlib

from alohas2r.learning.run import curves
from alohas2r.learning.run.log import METRICS


def write_run(folder: pathlib.Path, values: list[float | None]) -> pathlib.Path:
    rows = [{"step": 100 * (1 + i), "train/reward": value} for i, value in enumerate(values)]
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_rising_figure_rises(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path, [float(value) for value in range(16)])
    lines = curves.text_curve(run, width=16, height=2)
    assert len(lines) == 3
    assert lines[0].strip().startswith("15 |")
    assert lines[1].strip().startswith("0 |")
    upper, lower = (line.split("| ")[1] for line in lines[:2])
    assert upper == " " * 8 + "▁▂▃▄▅▆▇█"
    assert lower == "▁▂▃▄▅▆▇█" + "█" * 8
    assert lines[2].split() == ["100", "1,600", "steps"]


def test_a_long_run_is_averaged_and_a_short_one_has_no_curve(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path, [0.0, 2.0] * 50)
    lines = curves.text_curve(run, width=10, height=3)
    assert lines[0].strip().startswith("1 |")
    assert {len(line.split("| ")[1]) for line in lines[:3]} == {10}
    assert curves.text_curve(write_run(tmp_path, [1.0, None]), height=2) == []
    assert curves.text_curve(tmp_path / "nowhere") == []
