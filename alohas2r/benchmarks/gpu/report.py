"""Turns the JSON file of `bench_gpu` into Markdown tables and pictures; see docs/gpu.md for what the figures mean."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from alohas2r.benchmarks.gpu.job import FORMAT, VERSION
from alohas2r.core import figures
from alohas2r.core import files as core_files
from alohas2r.core.types import JsonObject
from alohas2r.errors import ArtifactError

MARKDOWN, THROUGHPUT, WALL = "gpu.md", "gpu_throughput.png", "gpu_wall.png"
NOT_MEASURED = "not measured"
LABELS = {
    "device": "device",
    "smoke": "checks",
    "physics_pick": "physics, pick",
    "physics_insert": "physics, two arms",
    "rendering": "rendering",
    "train_pick": "train pick",
    "train_insert": "train insert",
    "pretrain": "pretrain encoder",
    "distill": "distil",
    "export": "export",
}
STAGES = ("encoder", "pick", "switch_states", "insert", "distill")

Result = JsonObject


def bench_report(
    path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> JsonObject:
    """Reads a result and makes tables of it; with a folder, pictures as well.

    Args:
      path: the JSON file.
      out: folder of gpu.md, gpu_throughput.png and gpu_wall.png; nothing is written if None.

    Returns:
      "markdown": the tables; "files": what was written.

    Raises:
      ArtifactError: the file is missing, damaged, none of `bench_gpu`, or of another version; or `out` cannot be
        written.
    """
    result = load(path)
    try:
        text = markdown(result)
        files = []
        if out is not None:
            folder = core_files.make_folder(out)
            files.append(core_files.write_atomic(folder / MARKDOWN, text.encode()))
            files.append(plot_throughput(result, folder / THROUGHPUT))
            files.append(plot_wall(result, folder / WALL))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}); run alohas2r bench-gpu again."
        ) from error
    return {"markdown": text, "files": [str(file) for file in files]}


def load(path: str | os.PathLike[str]) -> JsonObject:
    """Reads the JSON file of `bench_gpu`.

    Raises:
      ArtifactError: it is missing, no JSON, something else, or of another version.
    """
    try:
        result = json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"There is no {path}; alohas2r bench-gpu writes one.") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON file: {error}.") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no result of alohas2r bench-gpu.")
    if result.get("version") != VERSION:
        raise ArtifactError(
            f"{path} has version {result.get('version')} of the format, this alohas2r reads version {VERSION}: run"
            " alohas2r bench-gpu again, or take the alohas2r that wrote it."
        )
    return result


def on_gpu(result: Result) -> bool:
    """Returns whether the figures are those of a GPU."""
    return result["device"].get("platform") == "gpu" and not result["tiny"]


def markdown(result: Result) -> str:
    """Returns all tables as Markdown; what is missing is "not measured"."""
    device = result["device"]
    versions = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    name = device.get("name", "unknown device")
    driver = f", driver {device['driver']}" if device.get("driver") else ""
    parts = [
        f"**{name}**{driver}, {device.get('cores', 'unknown')} cores of {device.get('cpu', 'an unknown processor')};"
        f" alohas2r {result['alohas2r']}, {versions or 'packages unknown'}; {result['date'][:10]},"
        f" {_number(result['wall_s'])} s in all.",
    ]
    if not on_gpu(result):
        parts.append(
            "**No GPU figures: everything ran at a tiny size on a CPU, to see that it works. The speeds below say"
            " nothing about a GPU.**"
        )
    if not result["finished"]:
        parts.append("**The run was broken off; the phases that are missing were not measured.**")
    sections = {
        "Phases": _phases,
        "Checks": _checks,
        "Physics, control steps per second": _physics,
        "Pictures of both wrist cameras, 32 x 32 colour and depth": _rendering,
        "Training": _training,
        "The whole pipeline, projected": _projection,
    }
    # A table may be copied without the others.
    parts += [
        f"### {title}{_warning(result)}\n\n{table(result)}" for title, table in sections.items()
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> str:
    """Returns a Markdown table; all columns but the first stand at the right unless they are text."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [head, ["---", *["---:" if right else "---"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _figures(result: Result, phase: str) -> JsonObject:
    return result["phases"].get(phase, {}).get("figures", {})


def _rows(result: Result, phase: str) -> list[JsonObject]:
    return _figures(result, phase).get("rows", [])


def _phases(result: Result) -> str:
    rows = []
    for name, label in LABELS.items():
        entry = result["phases"].get(name)
        if entry is None:
            rows.append((label, NOT_MEASURED, "", ""))
            continue
        note = entry.get("error") or entry.get("reason") or ""
        rows.append((label, entry["status"], _number(entry["wall_s"]), note))
    return _table(("phase", "status", "wall time (s)", "note"), rows, right=False)


def _checks(result: Result) -> str:
    checks = {row["name"]: row for row in _rows(result, "smoke")}

    def verdict(name: str, text: str) -> tuple[str, str, str]:
        row = checks.get(name)
        if row is None or "skipped" in row:
            return (name, NOT_MEASURED, "")
        if "error" in row:
            return (name, "failed", row["error"])
        return (name, "passed", text.format(**row))

    rows = [
        verdict(
            "engine",
            "joints within {difference:.1e} rad or m of C MuJoCo's ({tolerance:g} is allowed)",
        ),
        verdict(
            "renderer",
            "{depth_alike:.2%} of depths, {colour_alike:.2%} of colours as the ray caster's",
        ),
        verdict(
            "evaluation",
            "shipped teacher, {protocol}: {success[rate]:.1%} of {episodes} episodes, on the CPU "
            "{success_cpu[rate]:.1%}",
        ),
    ]
    export = _figures(result, "export")
    status = result["phases"].get("export", {}).get("status")
    if status == "ok":
        text = f"ONNX file within {export['max_difference']:.1e} of JAX ({export['tolerance']:g} is allowed)"
        rows.append(("export", "passed", text))
    else:
        rows.append(("export", "failed" if status == "failed" else NOT_MEASURED, ""))
    return _table(("check", "outcome", "figures"), rows, right=False)


def _cell(rows: list[JsonObject], key: str, **which: object) -> str:
    """Returns a figure of the row that is meant, or why there is none."""
    for row in rows:
        if all(row.get(name) == value for name, value in which.items()):
            if "error" in row:
                return "failed"
            if "skipped" in row:
                return f"{NOT_MEASURED} ({row['skipped']})"
            return _number(row[key])
    return NOT_MEASURED


def _sizes(*tables: list[JsonObject]) -> list[int]:
    return sorted({row["environments"] for rows in tables for row in rows})


def _physics(result: Result) -> str:
    pick, insert = _rows(result, "physics_pick"), _rows(result, "physics_insert")
    head = (
        *("environments", "one arm and a block (pick)", "start-up (s)"),
        *("two arms (insert)", "start-up (s)"),
    )
    body = [
        (
            f"{size:,}",
            *(
                _cell(rows, key, environments=size)
                for rows in (pick, insert)
                for key in ("control_steps_per_s", "jit_s")
            ),
        )
        for size in _sizes(pick, insert)
    ]
    return _table(head, body or [(NOT_MEASURED, *[""] * 4)])


def _rendering(result: Result) -> str:
    rows = _rows(result, "rendering")
    head = ("environments", "environments/s", "with shadows", "with shadows, copied to the host")
    body = [
        (
            f"{size:,}",
            _cell(rows, "environments_per_s", environments=size, shadows=False),
            _cell(rows, "environments_per_s", environments=size, shadows=True),
            _cell(rows, "environments_per_s_copied", environments=size, shadows=True),
        )
        for size in _sizes(rows)
    ]
    return _table(head, body or [(NOT_MEASURED, *[""] * 3)])


def _training(result: Result) -> str:
    rows = []
    for name in ("train_pick", "train_insert", "pretrain", "distill"):
        measured = _figures(result, name)
        unit = "pictures" if name == "pretrain" else "control steps"
        speed = measured.get("steps_per_s")
        rows.append(
            (
                LABELS[name],
                f"{measured['environments']:,}" if "environments" in measured else "",
                f"{_number(speed)} {unit}" if speed else NOT_MEASURED,
                _number(measured.get("jit_s")),
                str(measured.get("updates", "")),
            )
        )
    return _table(("training", "environments", "per second", "start-up (s)", "updates timed"), rows)


def _projection(result: Result) -> str:
    projection = result["projection"]
    stages = projection.get("stages", {})
    rows = []
    for name in STAGES:
        stage = stages.get(name, {})
        published = stage.get("published_s") or result["device"].get("published_s", {}).get(name)
        rows.append(
            (
                name.replace("_", " "),
                f"{stage['steps']:,}" if "steps" in stage else "",
                _number(stage.get("start_s")) if "steps" in stage else "",
                _number(stage.get("evaluation_s")) if name in ("pick", "insert") else "",
                _number(stage.get("total_s")),
                _number(published) if published else "",
            )
        )
    kernels = projection.get("kernels_s")
    rows.append(("Warp's kernels, once", "", "", "", _number(kernels), ""))
    total, published = projection.get("total_s"), projection.get("published_total_s")
    rows.append(
        (
            "**total**",
            *("", "", ""),
            f"**{_number(total)}**" + (f" ({total / 60:.1f} min)" if total else ""),
            f"**{_number(published)}** ({published / 60:.1f} min)" if published else "",
        )
    )
    head = (
        *("stage of the default preset", "steps", "start-up (s)", "evaluations (s)"),
        *("projected (s)", "published, RTX 4090 (s)"),
    )
    return _table(head, rows)


def _warning(result: Result) -> str:
    return "" if on_gpu(result) else " (a CPU at tiny size: no GPU figures)"


def plot_throughput(result: Result, path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws control steps and rendered environments per second against the number of environments.

    Raises:
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    figure.subplots_adjust(wspace=0.25)
    rendered = _rows(result, "rendering")
    curves = (
        (left, "pick: one arm", _rows(result, "physics_pick"), "control_steps_per_s"),
        (left, "insert: two arms", _rows(result, "physics_insert"), "control_steps_per_s"),
        *(
            (
                right,
                f"{'with' if shadows else 'without'} shadows",
                [row for row in rendered if row["shadows"] == shadows],
                "environments_per_s",
            )
            for shadows in (False, True)
        ),
    )
    drawn = set()
    for axes, label, rows, key in curves:
        points = sorted((row["environments"], row[key]) for row in rows if key in row)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, label=label)
            drawn.add(axes)
    for axes, title, unit in (
        (left, "physics", "control steps per second"),
        (right, "two 32 x 32 colour and depth pictures each", "environments per second"),
    ):
        axes.set(title=title, xlabel="environments", ylabel=unit)
        if axes in drawn:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, NOT_MEASURED, ha="center", transform=axes.transAxes)
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(result["device"].get("name", "unknown device") + _warning(result), y=1.03)
    return figures.save(figure, path)


def plot_wall(result: Result, path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws the projected wall time of the pipeline's stages, one after the other, above the published ones.

    Raises:
      ArtifactError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    projection = result["projection"]
    stages = projection.get("stages", {})
    published = result["device"].get("published_s", {})
    name = result["device"].get("name", "unknown device")
    figure, axes = plt.subplots(figsize=(11, 2.6))
    colours = {stage: f"C{index}" for index, stage in enumerate((*STAGES, "kernels"))}
    here = {stage: stages[stage]["total_s"] for stage in STAGES if stage in stages}
    if here and projection.get("kernels_s"):
        here["kernels"] = projection["kernels_s"]
    there = {stage: published[stage] for stage in STAGES if stage in published}
    named: set[str] = set()
    for row, times in ((1, here), (0, there)):
        start = 0.0
        for stage, seconds in times.items():
            label = None if stage in named else stage.replace("_", " ")
            named.add(stage)
            axes.barh(row, seconds / 60, left=start / 60, color=colours[stage], label=label)
            start += seconds
        if times:
            text = f" {start / 60:,.1f} min"
            axes.text(start / 60, row, text, va="center", bbox={"color": "white", "pad": 1})
        else:
            axes.text(0, row, f" {NOT_MEASURED}", va="center")
    total = published.get("total")
    if total:
        axes.axvline(
            total / 60, color="gray", ls="--", lw=1, label=f"published: {total / 60:.1f} min"
        )
    missing = projection.get("missing", [])
    lacking = f"\nwithout {', '.join(missing)}: {NOT_MEASURED}" if here and missing else ""
    axes.set_yticks([1, 0], [f"projected for\n{name}{lacking}", "published,\nRTX 4090"])
    axes.set(xlabel="wall time (min)", ylim=(-0.6, 1.6), title=f"whole pipeline{_warning(result)}")
    axes.margins(x=0.12)
    axes.grid(alpha=0.3, axis="x")
    if named or total:
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return figures.save(figure, path)
