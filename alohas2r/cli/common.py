"""What all commands share: the app, errors, progress, and how results are shown."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import typer
import typer.exceptions
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from alohas2r import __version__
from alohas2r.errors import Alohas2rError
from alohas2r.runlog import Report

# Which extra brings an optional package.
EXTRAS = {
    "av": "train",
    "brax": "train",
    "flax": "train",
    "jax": "train",
    "jaxlib": "train",
    "matplotlib": "train",
    "onnx": "train",
    "optax": "train",
    "orbax": "train",
    "tensorboardX": "train",
    "warp": "warp",
    "jax2onnx": "export",
    "dynamixel_sdk": "robot",
    "msgpack": "robot",
    "pyrealsense2": "robot",
    "websockets": "robot",
}

# Figures that the progress shows, of all that a run writes to its metrics.
HEADLINES = ("train/reward", "train/success", "eval/success", "eval/precise")

app = typer.Typer(
    name="alohas2r",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Teaches a bimanual ALOHA to insert a peg, in simulation only.\n\n"
    "A teacher learns from the exact state by reinforcement learning, first to pick up a block "
    "with one arm ([bold]train-teacher --phase pick[/bold]); [bold]evaluate[/bold] says how good "
    "a policy is.",
)

Function = TypeVar("Function", bound=Callable[..., Any])
Phase = Literal["pick", "insert"]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same result.")]
Threads = Annotated[
    int, typer.Option(min=0, help="CPU threads for the simulation; 0 takes all cores.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
      arguments: without the program's name; those of the process if None.
    """
    console = Console(stderr=True)
    try:
        return app(arguments, prog_name="alohas2r", standalone_mode=False) or 0
    except typer.exceptions.TyperException as error:
        context = getattr(error, "ctx", None)
        message = " ".join(error.format_message().split()).replace(": Value error, ", ": ")
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help text
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return error.exit_code
        if message[-1:] not in (".", "?"):
            message += "."
        _complain(
            console, f"{message} See {context.command_path if context else 'alohas2r'} --help."
        )
        return error.exit_code
    except Alohas2rError as error:
        _complain(console, " ".join(str(error).split()))
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        if extra == "train" and (arguments or sys.argv[1:])[:1] == ["export"]:
            extra = "export"  # which brings what training needs, and more
        _complain(
            console,
            f"This command needs the package {package}, which is not installed: "
            f"pip install 'alohas2r[{extra}]'",
        )
        return 1
    except KeyboardInterrupt:
        _complain(console, "Interrupted.")
        return 130
    except BrokenPipeError:  # the reader of stdout, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def command(name: str, panel: str = "Teach") -> Callable[[Function], Function]:
    """Registers a function as a command; its docstring is the help, a paragraph to a line.

    Args:
      name: of the command.
      panel: heading under which the list of commands shows it.
    """

    def register(function: Function) -> Function:
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return app.command(name, help=text, rich_help_panel=panel)(function)

    return register


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alohas2r {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def policy_folder(name: str) -> pathlib.Path:
    """Returns the folder of a policy: the path as given or, if there is none, the shipped one.

    So "params/pick" and "pick" work in any directory, also from an installed package.
    """
    path = pathlib.Path(name)
    if not path.exists():
        from alohas2r.errors import ModelError
        from alohas2r.scene import data_path

        relative = pathlib.Path(*path.parts[1:]) if path.parts[:1] == ("params",) else path
        with contextlib.suppress(ModelError):
            shipped = data_path("params") / relative
            if relative.parts and not relative.is_absolute() and shipped.is_dir():
                return shipped
    return path


def library(name: str) -> Any:
    """Imports a module of this package; what other packages print meanwhile is dropped.

    MuJoCo XLA, for one, tells stdout that Warp is not installed, which nobody asked.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(f"alohas2r.{name}")


def _complain(console: Console, message: str) -> None:
    console.print(f"[red]Error:[/red] {escape(message)}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows on a terminal that something is going on; keeps stdout for the result."""
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # stdout is for the result
        if console.is_terminal:
            stack.enter_context(console.status(what))
        yield


@contextlib.contextmanager
def progress_display() -> Iterator[ProgressDisplay]:
    """Gives a display for reports on stderr; keeps stdout for the result."""
    display = ProgressDisplay(Console(stderr=True))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            yield display
    finally:
        display.close()


class ProgressDisplay:
    """Draws reports on stderr: bars on a terminal, else a line now and then."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        """Keeps the console; without a terminal there is a line every `every_s` seconds."""
        self._console, self._every_s = console, every_s
        self._tasks: dict[str, Any] = {}
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


def show(result: Mapping[str, Any], title: str, as_json: bool) -> None:
    """Prints a result on stdout: as JSON, or as a table."""
    figures = plain({name: value for name, value in result.items() if name != "table"})
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
        return
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(figures, ""):
        table.add_row(name, escape(text))
    Console().print(table)


def _rows(figures: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping) and value.keys() == {"rate", "low", "high"}:
            share = "-" if value["rate"] is None else f"{value['rate']:.1%}"
            yield label, f"{share}  (95%: {value['low']:.1%} .. {value['high']:.1%})"
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{label}: ")
        elif value is None:
            yield label, "-"
        elif isinstance(value, float):
            yield label, f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        else:
            yield label, str(value)


def plain(value: Any) -> Any:
    """Turns what the library may report into what JSON has; a number that is not finite is null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and jax
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
