"""The page of an evaluation: rates, what failures reached, causes, times, films, every episode, how to repeat it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from alohas2r.core import files, machine
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ArtifactError
from alohas2r.evaluation import causes, report
from alohas2r.evaluation.report_gallery import anchor, furthest, stages
from alohas2r.policies import artifact
from alohas2r.reporting import charts, page
from alohas2r.reporting.page import Chart, Clip, Headline, Page, Section
from alohas2r.tasks.scoring import Table

# Units of columns that do not end with theirs.
_UNITS = {"peak_joint_speed": "rad/s", "peak_contact_force": "N"}
_HORIZON_S = 10.0  # of times where an evaluation does not say how long its episodes are
# What says under which conditions a result was measured.
_IDENTITY = (
    *("phase", "protocol", "protocol_hash", "world", "world_hash", "engine", "seed", "episodes"),
    *("draws", "policy"),
)


@dataclasses.dataclass(frozen=True)
class About:
    """What a page says beside the result.

    Attributes:
      policy: as it was named; path: where it lies.
      commands: lines that give the same result again.
      clips: films; why_no_clips: if there are none.
    """

    policy: str
    path: str | os.PathLike[str]
    commands: tuple[str, ...]
    clips: tuple[Clip, ...] = ()
    why_no_clips: str = ""


def write(result: JsonObject, folder: str | os.PathLike[str], about: About) -> list[pathlib.Path]:
    """Writes the page of a result of `evaluate`, and beside it the figures for programs.

    Returns:
      index.html, result.json and episodes.csv.

    Raises:
      ArtifactError: a file cannot be written.
    """
    folder = files.make_folder(folder)
    figures = {name: value for name, value in result.items() if name != "table"}
    text = json.dumps(figures, default=_plain, indent=2)
    return [
        page.write(build(result, about), folder),
        files.write_atomic(folder / "result.json", text.encode() + b"\n"),
        report.write_csv(result, folder / "episodes.csv"),
    ]


def _plain(value: object) -> object:
    """Returns a number or array of NumPy as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


def build(result: JsonObject, about: About) -> Page:
    """Returns the page of a result of `evaluate`."""
    table: Table = {name: np.asarray(values) for name, values in result["table"].items()}
    success = result["success"]
    where = f" in {result['world']}" if "world" in result else ""
    sections = [
        _rates(result),
        _stages(result, table),
        _times(result, table),
        *_causes(table, success["rate"]),
        *_films(about),
        _episodes(table, about),
        _identity(result, about),
        Section(
            "How to repeat it",
            [page.Commands(about.commands)],
            f"alohas2r {__version__} gives the same episodes where the protocol's hash and its draws are those above. "
            "Another processor may round otherwise, and single episodes then end otherwise.",
        ),
    ]
    return Page(
        f"{about.policy} under {result['protocol']}{where}",
        f"{result['episodes']:,} episodes of {result['phase']}, seed {result['seed']}",
        _headlines(result, table),
        sections,
        f"Written by alohas2r {__version__} on {time.strftime('%Y-%m-%d %H:%M')}. Rates have 95% Wilson intervals.",
    )


def _headlines(result: JsonObject, table: Table) -> list[Headline]:
    heads = []
    for name in ("success", "held_at_end", "precise", "dropped"):
        if page.is_rate(result.get(name)):
            rate = result[name]
            spread = f"95%: {rate['low']:.1%} .. {rate['high']:.1%}"
            heads.append(Headline(f"{rate['rate']:.1%}", page.words(name), spread))
    times = table["time_to_success_s"]
    if np.isfinite(times).any():
        slowest = f"99 of 100 by {np.nanquantile(times, 0.99):.2f} s"
        heads.append(Headline(f"{np.nanmedian(times):.2f} s", "median time to success", slowest))
    failed = int((~table["success"].astype(bool)).sum())
    heads.append(Headline(f"{failed}", "episodes failed", f"of {len(table['success']):,}"))
    return heads


def _rates(result: JsonObject) -> Section:
    rates = {name: value for name, value in result.items() if page.is_rate(value)}
    within = {
        f"success within {limit} s": rate
        for limit, rate in result.get("success_within_s", {}).items()
    }
    return Section(
        "Result",
        [page.Rates(page.rate_rows({**rates, **within}))],
        "The bar is the rate, the dark line its interval.",
    )


def _stages(result: JsonObject, table: Table) -> Section:
    """Returns the stages of the task, and how far the episodes that failed came."""
    named: Mapping[str, JsonObject] = result["stages"]
    order = stages(table, named)
    blocks: list[page.Block] = [page.Rates(page.rate_rows(named))]
    failed = ~table["success"].astype(bool)
    if failed.any():
        reached = furthest(table, order)[failed]
        names = ["reached nothing", *(f"{page.words(name)}, no further" for name in order)]
        counts = {name: float((reached == number).sum()) for number, name in enumerate(names)}
        shown = {name: count for name, count in counts.items() if count}
        chart = Chart("How far the failed episodes came", charts.bars(shown, "episodes"))
        blocks.append(page.Charts([chart]))
    return Section("Stages", blocks, "Episodes in which a stage was reached at some time.")


def _times(result: JsonObject, table: Table) -> Section:
    success = table["success"].astype(bool)
    times = table["time_to_success_s"]
    longest = result.get("success_within_s", {})
    horizon = max([_HORIZON_S, *(float(limit) for limit in longest)])
    shown = [
        Chart("Success by time", charts.cumulative(times, horizon), "share of all episodes"),
    ]
    for name, values in table.items():
        numeric = values.dtype != bool and not name.startswith(causes.PREFIX)
        if not numeric or name in causes.SIZES:
            continue
        groups = {"good": values[success], "bad": values[~success]}
        drawn = charts.histogram(groups, page.unit_of(name)[1] or _UNITS.get(name, ""))
        if drawn is not None:
            shown.append(Chart(page.words(name), drawn))
    quantiles = {
        name: {part: number for part, number in value.items() if not isinstance(number, Mapping)}
        for name, value in result.items()
        if isinstance(value, Mapping) and "median" in value
    }
    facts = page.Facts(page.fact_rows(quantiles))
    return Section(
        "Times, distances, forces",
        [page.Charts(shown), facts],
        "Green: episodes that succeeded; red: that failed.",
    )


def _causes(table: Table, overall: float) -> list[Section]:
    """Returns the rates by cause, those that tell most first; nothing where nothing differs."""
    if not causes.columns(table):
        return []
    groups = causes.by_quantile(table)

    def spread(name: str) -> float:
        rates = [group["rate"] for group in groups[name]]
        return max(rates) - min(rates)

    shown = [
        Chart(
            page.words(name),
            charts.rates_by_group(groups[name], overall),
            f"from {min(g['rate'] for g in groups[name]):.0%} to {max(g['rate'] for g in groups[name]):.0%}",
        )
        for name in sorted(groups, key=spread, reverse=True)
    ]
    note = (
        "Success by range of each cause that the protocol draws, the widest spread first. The dotted line is "
        f"the rate of all episodes ({overall:.1%}); red: the interval lies below it, as about one bar in forty does by "
        "chance alone."
    )
    return [Section("Causes", [page.Charts(shown)], note)]


def _films(about: About) -> list[Section]:
    if not about.clips:
        why = f"No films: {about.why_no_clips}" if about.why_no_clips else ""
        return [Section("Episodes on film", [page.Text(why)])] if why else []
    note = (
        "Failures first, of as many kinds as there are. Beside the scene is what the policy saw, if it has cameras: "
        "the left wrist above the right one, colour and then depth, as noisy and late as it arrived."
    )
    return [Section("Episodes on film", [page.Clips(about.clips)], note)]


def _episodes(table: Table, about: About) -> Section:
    filmed = {clip.anchor for clip in about.clips}
    rows = []
    count = min(len(table["success"]), page.MOST_ROWS)
    for index in range(count):
        link = anchor(index) if anchor(index) in filmed else ""
        good = bool(table["success"][index])
        cells = [page.cell(index, link=link)]
        cells.append(page.Cell("yes" if good else "no", int(good), "good" if good else "bad"))
        cells += [page.cell(values[index]) for name, values in table.items() if name != "success"]
        rows.append(cells)
    names = [page.words(name) for name in table if name != "success"]
    whole = "" if count == len(table["success"]) else f" The first {count:,}; all are in the CSV."
    return Section(
        "All episodes",
        [page.Table(["episode", "success", *names], rows)],
        f"A click on a column's head sorts.{whole}",
    )


def _identity(result: JsonObject, about: About) -> Section:
    known = [(page.words(name), page.told(result[name])) for name in _IDENTITY if name in result]
    rows = [("policy file", str(about.policy)), *known, *_training(about.path)]
    packages = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "mujoco", "numpy")
    )
    here = machine.describe_machine()
    rows += [
        ("alohas2r", __version__),
        ("packages", f"Python {here['python']}, {packages}"),
        ("machine", f"{here['processor']}, {here['cores']} cores"),
        ("control period", f"{CONTROL_PERIOD_S:g} s"),
        ("took", f"{result['wall_s']:g} s"),
    ]
    return Section("What was measured", [page.Facts(rows)])


def _training(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Returns what an artifact says of its training; nothing of a file."""
    try:
        trained = artifact.describe(path)["trained"]
    except (ArtifactError, KeyError):
        return []
    shown = ("command", "steps", "wall_s", "date", "alohas2r")
    return [
        (f"trained: {page.words(name)}", page.told(trained[name]))
        for name in shown
        if name in trained
    ]
