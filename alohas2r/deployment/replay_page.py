"""The page of a run on arms: what it was, joints and commands, timing, what the guard did, and what the wrists saw."""

from __future__ import annotations

import itertools
import pathlib
import time

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.deployment import log as drive_log
from alohas2r.embodiment.joints import JOINTS, PER_ARM
from alohas2r.errors import ArtifactError
from alohas2r.rendering import video
from alohas2r.reporting import charts, page
from alohas2r.reporting.page import Chart, Clip, Headline, Page, Section
from alohas2r.safety.reactions import Mode

EVERY = 2  # control steps per picture of the film
MOST_S = 120.0  # of a run that is shown as film
_OWN = ("milliseconds", "modes", "interventions", "findings", "events", "end", "policy")


def write(
    run: drive_log.Run, result: JsonObject, folder: pathlib.Path, command: str
) -> pathlib.Path:
    """Writes the page of a run as index.html in a folder.

    Args:
      run: as logged. result: of `replay.replay`. folder: of the page. command: that shows it again.

    Raises:
      ArtifactError: the run has no steps, or the file cannot be written.
      BackendUnavailable: films cannot be encoded here.
    """
    return page.write(build(run, result, command), folder)


def build(run: drive_log.Run, result: JsonObject, command: str) -> Page:
    """Returns the page of a run; see `write`."""
    if not run.steps:
        raise ArtifactError("The run has no control steps; there is nothing to show.")
    header = run.header
    seconds = seconds_of(run)
    facts = {name: value for name, value in result.items() if name not in _OWN}
    again = result["policy"]
    sections = [
        Section("The run", [page.Facts(page.fact_rows(facts))]),
        *_events(result),
        *_film(run),
        _joints(run, seconds),
        _timing(run, seconds, result),
        _counts(result),
        Section(
            "The policy asked again",
            [page.Facts(page.fact_rows(again))] if again else [page.Text("It was not asked.")],
            "The policy acts again on the very observations of the log; its actions must be the logged ones.",
        ),
        Section("How to repeat it", [page.Commands([command])]),
    ]
    return Page(
        f"Run of {header.get('policy') or 'no policy'} on {header.get('robot')}",
        f"{result['run']}, {header.get('started')}",
        _headlines(run, seconds, result),
        sections,
        f"Written by alohas2r {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.",
    )


def seconds_of(run: drive_log.Run) -> np.ndarray:
    """Returns the time [T] (s) of each step since the first one; steps of a run without a pace are a period apart."""
    times = run.stack("time_s")
    if run.header.get("stepped"):
        return float(run.header["period_s"]) * np.arange(len(times))
    return times - times[0]


def _headlines(run: drive_log.Run, seconds: np.ndarray, result: JsonObject) -> list[Headline]:
    changed = sum(bool(step.values["interventions"]) for step in run.steps)
    heads = [
        Headline(f"{seconds[-1]:.1f} s", "length", f"{len(run.steps):,} control steps"),
        Headline(f"{changed:,}", "steps that the guard changed"),
    ]
    if result.get("late_steps") is not None:
        rate = f"{result['rate_hz']:.1f} Hz" if result["rate_hz"] else ""
        heads.append(Headline(f"{result['late_steps']:,}", "late steps", rate))
    again = result["policy"]
    if again is not None:
        differs = f"largest difference {again['difference']:.1g}"
        heads.append(Headline("yes" if again["reproduced"] else "no", "actions repeated", differs))
    return heads


def _events(result: JsonObject) -> list[Section]:
    lines = [text for text in result["events"] if text]
    return [Section("What happened", [page.Text(text) for text in lines])] if lines else []


def _film(run: drive_log.Run) -> list[Section]:
    """Returns what both wrist cameras showed the policy; nothing if it saw nothing."""
    period_s = float(run.header["period_s"])
    most = round(MOST_S / period_s)
    views = itertools.islice(drive_log.views(run, scale=4), 0, most, EVERY)
    frames = list(views)
    if not frames:
        return []
    data = video.clip(frames, round(1 / (EVERY * period_s)))
    what = f"the first {MOST_S:g} s" if len(run.steps) > most else "the whole run"
    clip = Clip("Both wrists", f"left and right, colour above depth; {what}", None, data, "film")
    return [Section("What the policy saw", [page.Clips([clip])])]


def stretches(run: drive_log.Run, seconds: np.ndarray) -> list[tuple[float, float, str]]:
    """Returns start, end and mode of each stretch of time in which the arms did not follow the policy."""
    spans, start = [], 0.0
    for mode, steps in itertools.groupby(enumerate(run.steps), lambda pair: pair[1].values["mode"]):
        last = [number for number, _ in steps][-1]
        end = float(seconds[min(last + 1, len(seconds) - 1)])
        if mode != Mode.RUN.value:
            spans.append((start, end, mode))
        start = end
    return spans


def _joints(run: drive_log.Run, seconds: np.ndarray) -> Section:
    position = run.stack("position")
    command = np.full_like(position, np.nan)
    for index, step in enumerate(run.steps):
        if "command" in step.arrays:
            command[index] = step.arrays["command"]
    spans = stretches(run, seconds)
    shown = []
    for index, joint in enumerate(JOINTS):
        gripper = index % PER_ARM == PER_ARM - 1
        scale, unit = (1000.0, "mm") if gripper else (1.0, "rad")
        series = {"measured": scale * position[:, index], "command": scale * command[:, index]}
        shown.append(Chart(joint, charts.curves(seconds, series, unit, spans=spans)))
    note = "Shaded: the arms did not follow the policy (approach, hold, retreat)."
    return Section("Joints", [page.Charts(shown)], note)


def _timing(run: drive_log.Run, seconds: np.ndarray, result: JsonObject) -> Section:
    parts = {name: 1000 * run.stack(f"{name}_s") for name in ("total", "infer", "read", "look")}
    kept = {name: values for name, values in parts.items() if len(values) == len(seconds)}
    period_ms = 1000 * float(run.header["period_s"])
    chart = Chart("Time of each step", charts.curves(seconds, kept, "ms", level=period_ms))
    rows = [{"part": name, **values} for name, values in result["milliseconds"].items()]
    table = page.table_of({name: [row[name] for row in rows] for name in rows[0]})
    note = f"In milliseconds; a step may take {period_ms:g}."
    return Section("Timing", [page.Charts([chart]), table], note)


def _counts(result: JsonObject) -> Section:
    facts = {
        "control steps by mode": result["modes"],
        "guard: steps changed by kind": result["interventions"] or "none",
        "monitor: findings": result["findings"] or "none",
        "end": result["end"] or "the log was cut off",
    }
    return Section("Guard and monitor", [page.Facts(page.fact_rows(facts))])
