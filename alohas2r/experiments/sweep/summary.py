"""What a sweep came to: interquartile means over seeds, by configuration and by value, as figures and as a page."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence

from alohas2r.core import machine, stats
from alohas2r.core.types import JsonObject
from alohas2r.core.version import __version__
from alohas2r.experiments.sweep.space import Choices, Range, varied
from alohas2r.experiments.sweep.state import SweepState, Trial
from alohas2r.reporting import charts, page
from alohas2r.reporting.page import Chart, Headline, Page, RateRow, Section


def summarize(begun: SweepState, finished: bool) -> JsonObject:
    """Returns the figures of a sweep.

    Returns:
      "command", "metric", "better" ("higher" or "lower"), "out", "finished"; "runs": how many are done, failed,
      stopped early and open; "best": the configuration with the best interquartile mean of all whose runs are done:
      its number, "settings", "command"; "configurations": "configuration" (number), "settings", "state", "seeds" (how
      many runs have finished), "iqm", "low", "high" (None where there are none), "scores" by seed, "steps", "wall_s";
      "values": key -> rows of "value", "configurations", "seeds", "iqm", "low", "high", over the configurations that
      have this value; "failures": "run" and "reason".
    """
    plan = begun.plan
    rows = [_row(number, trial) for number, trial in enumerate(begun.trials)]
    done = [row for row in rows if row["state"] == "done"]
    best = None
    if done:
        chosen = (max if plan.maximize else min)(done, key=lambda row: row["iqm"])
        words = begun.command(begun.trials[chosen["configuration"]].values, plan.seeds[0])
        best = {
            "configuration": chosen["configuration"],
            "settings": chosen["settings"],
            "iqm": chosen["iqm"],
            "command": shlex.join(["alohas2r", *words]),
        }
    return {
        "command": plan.command,
        "metric": plan.metric,
        "better": "higher" if plan.maximize else "lower",
        "out": str(begun.folder),
        "finished": finished,
        "runs": _counted(begun),
        "best": best,
        "configurations": rows,
        "values": _by_value(begun),
        "failures": [
            {"run": str(begun.run_folder(number, seed)), "reason": run.reason}
            for number, trial in enumerate(begun.trials)
            for seed, run in trial.runs.items()
            if run.status == "failed"
        ],
    }


def write(begun: SweepState, finished: bool) -> JsonObject:
    """Writes the page of a sweep, index.html in its folder, and returns the figures with its path, "report".

    Raises:
      ArtifactError: the page cannot be written.
    """
    result = summarize(begun, finished)
    return result | {"report": str(page.write(build(result, begun), begun.folder))}


def headline(begun: SweepState) -> dict[str, float]:
    """Returns the figure that the progress shows: the best score so far."""
    scores = [score for trial in begun.trials for score in trial.scores().values()]
    return {"best": (max if begun.plan.maximize else min)(scores)} if scores else {}


def _row(number: int, trial: Trial) -> JsonObject:
    """Returns what a configuration came to."""
    scores = trial.scores()
    runs = trial.runs.values()
    return {
        "configuration": number,
        "settings": dict(trial.values),
        "state": trial.state,
        "seeds": len(scores),
        **_middle([list(scores.values())]),
        "scores": {str(seed): score for seed, score in scores.items()},
        "steps": sum(run.steps or 0 for run in runs),
        "wall_s": round(sum(run.wall_s or 0.0 for run in runs), 1),
    }


def _middle(groups: Sequence[Sequence[float]]) -> JsonObject:
    """Returns the interquartile mean of scores by group; None of none."""
    if not any(groups):
        return {"iqm": None, "low": None, "high": None}
    return {**stats.interquartile(groups)}


def _counted(begun: SweepState) -> dict[str, int]:
    """Returns how many runs there are of each kind."""
    plan = begun.plan
    count = {"done": 0, "failed": 0, "stopped": 0, "open": 0}
    for trial in begun.trials:
        for run in trial.runs.values():
            out = run.status == "open" and trial.stopped is not None
            count["stopped" if out else run.status] += 1
    if plan.draws:
        count["open"] += (plan.trials - len(begun.trials)) * len(plan.seeds)
    return count


def _by_value(begun: SweepState) -> dict[str, list[JsonObject]]:
    """Returns what the configurations with each value of a key came to together.

    Seeds are resampled within their configuration. Configurations that were stopped early, or that have a run to come,
    are left out. Where one key was changed at a time, the others have their first values.
    """
    plan, table = begun.plan, {}
    first = {key: one.values[0] for key, one in plan.space.items() if isinstance(one, Choices)}
    for key in varied(plan.space):
        one = plan.space[key]
        if not isinstance(one, Choices):
            continue
        rows = []
        for value in one.values:
            trials = [
                trial
                for trial in begun.trials
                if trial.state == "done"
                and trial.values[key] == value
                and (plan.sampler != "each" or trial.values == first | {key: value})
            ]
            groups = [list(trial.scores().values()) for trial in trials]
            rows.append(
                {
                    "value": value,
                    "configurations": len(trials),
                    "seeds": sum(map(len, groups)),
                    **_middle(groups),
                }
            )
        table[key] = rows
    return table


def build(result: JsonObject, begun: SweepState) -> Page:
    """Returns the page of a sweep."""
    plan, runs = begun.plan, result["runs"]
    metric = plan.metric
    heads = [Headline(str(runs["done"]), "runs done", f"of {sum(runs.values())}")]
    if result["best"] is not None:
        heads.append(
            Headline(charts.short(result["best"]["iqm"]), f"best {metric}", "interquartile mean")
        )
    sections = [_parallel(result, begun), *_means(result, metric)]
    words = ["alohas2r", "sweep", plan.command, *plan.arguments]
    commands = [result["best"]["command"]] if result["best"] else []
    sections.append(Section("All configurations", [_table(result["configurations"])]))
    if result["failures"]:
        rows = [(one["run"], one["reason"]) for one in result["failures"]]
        sections.append(Section("What failed", [page.Facts(rows)]))
    here = machine.describe_machine()
    sections.append(
        Section(
            "How to train the best again",
            [page.Commands(commands)],
            f"Swept on {here['processor']}, {here['cores']} cores, Python {here['python']}.",
        )
    )
    lead = (
        f"{shlex.join(words)}: {len(begun.trials)} configurations, seeds"
        f" {', '.join(map(str, plan.seeds))}, compared by {metric}"
        f" ({result['better']} is better)." + ("" if result["finished"] else " Not finished yet.")
    )
    footer = f"Written by alohas2r {__version__} on {time.strftime('%Y-%m-%d %H:%M')}."
    return Page(f"Sweep of {plan.command}", lead, heads, sections, footer)


def _parallel(result: JsonObject, begun: SweepState) -> Section:
    """Returns the section with parallel coordinates."""
    keys = varied(begun.plan.space)
    lines = [
        charts.Line(
            [row["settings"][key] for key in keys],
            row["iqm"],
            f"configuration {row['configuration']}: "
            + ", ".join(f"{key} {row['settings'][key]}" for key in keys),
        )
        for row in result["configurations"]
        if row["iqm"] is not None and row["state"] == "done"
    ]
    if not lines or not keys:
        return Section("Configurations", [page.Text("Nothing has finished yet to draw.")])
    logs = [isinstance(one, Range) and one.log for one in map(begun.plan.space.get, keys)]
    svg = charts.parallel_coordinates(keys, lines, begun.plan.metric, logs, begun.plan.maximize)
    return Section(
        "Configurations",
        [
            page.Charts(
                [Chart("Each line is a configuration, the right end its result", svg, wide=True)]
            )
        ],
    )


def _means(result: JsonObject, metric: str) -> list[Section]:
    """Returns the sections with interquartile means; as bars where they are shares."""
    note = (
        f"Interquartile mean of {metric} with its 95% interval (percentiles of a bootstrap that resamples seeds within"
        " each configuration). Of fewer than four scores the interquartile mean is the mean."
    )
    sections = []
    for key, rows in result["values"].items():
        known = [row for row in rows if row["iqm"] is not None]
        if known:
            sections.append(
                Section(key, [_bars({row["value"]: row for row in known}, metric)], note)
            )
            note = ""
    return sections


def _bars(rows: Mapping[str, JsonObject], metric: str) -> page.Rates | page.Table:
    """Returns means as bars where they are shares, else as a table."""
    share = metric.startswith("eval/") or metric.endswith("accuracy")
    if share and all(0 <= row["iqm"] <= 1 for row in rows.values()):
        bars = []
        for name, row in rows.items():
            known = row["low"] is not None
            low, high = (row["low"], row["high"]) if known else (row["iqm"], row["iqm"])
            bars.append(RateRow(name, row["iqm"], low, high))
        return page.Rates(bars)
    names = ("seeds", "iqm", "low", "high")
    columns = {"value": list(rows)} | {name: [row[name] for row in rows.values()] for name in names}
    return page.table_of(columns)


def _table(rows: Sequence[JsonObject]) -> page.Table:
    """Returns the configurations as a table."""
    if not rows:
        return page.Table(["configuration"], [])
    names = ("state", "seeds", "iqm", "low", "high", "steps", "wall_s")
    columns: dict[str, list[object]] = {
        "configuration": [row["configuration"] for row in rows],
        **{key: [_number(row["settings"][key]) for row in rows] for key in rows[0]["settings"]},
        **{name: [row[name] for row in rows] for name in names},
    }
    return page.table_of(columns)


def _number(text: str) -> float | str:
    """Returns a value as a number where it is one, so that it is sorted as such."""
    try:
        return float(text)
    except ValueError:
        return text
