"""What all commands share: the app, errors, progress, and how results are shown."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

import typer.exceptions
from rich.console import Console
from rich.markup import escape

from alohas2r.core import assets
from alohas2r.core.types import Untyped
from alohas2r.core.version import __version__
from alohas2r.errors import Alohas2rError
from alohas2r.sim import scene
from alohas2r.tasks.registry import task_names

# Which extra brings an optional package.
EXTRAS = {
    "PIL": "train",
    "av": "train",
    "brax": "train",
    "flax": "train",
    "gymnasium": "gymnasium",
    "h5py": "datasets",
    "jinja2": "train",
    "jax": "train",
    "jaxlib": "train",
    "markupsafe": "train",
    "matplotlib": "train",
    "mlflow": "loggers",
    "onnx": "train",
    "optax": "train",
    "optuna": "sweep",
    "pyarrow": "datasets",
    "ray": "sweep",
    "orbax": "train",
    "scipy": "train",
    "tensorboardX": "train",
    "wandb": "loggers",
    "warp": "warp",
    "jax2onnx": "export",
    "dynamixel_sdk": "robot",
    "msgpack": "robot",
    "pyrealsense2": "robot",
    "websockets": "robot",
}

app = typer.Typer(
    name="alohas2r",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Teaches a bimanual ALOHA to insert a peg, in simulation only.\n\n"
    "A teacher learns from the exact state by reinforcement learning, first to pick up a block "
    "with one arm ([bold]train-teacher --phase pick[/bold]); [bold]evaluate[/bold] says how good "
    "a policy is.",
)

Function = TypeVar("Function", bound=Callable[..., object])
if TYPE_CHECKING:
    Task: TypeAlias = str
    Scene: TypeAlias = str
    Benchmark: TypeAlias = str
else:  # choices that are known when the program runs
    Task, Scene = Literal[task_names()], Literal[scene.names()]
    Benchmark = Literal[(*task_names(), "distill")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, help="Random seed; the same seed gives the same result."),
]


def _bound_xla(threads: int) -> int:
    """Keeps XLA to so many threads as well, which it reads when it first computes; 0 leaves it as it is."""
    if threads:
        os.environ["NPROC"] = str(threads)
    return threads


Threads = Annotated[
    int,
    typer.Option(
        min=0,
        callback=_bound_xla,
        help="CPU threads of physics, ray caster and XLA, each; 0 takes all cores.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
      arguments: without the program's name; those of the process if None.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # XLA would take three quarters of a GPU's memory for itself, beside which MuJoCo Warp has to live.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    console = Console(stderr=True)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        chosen = [expanded(argument) for argument in given]
        return app(chosen, prog_name="alohas2r", standalone_mode=False) or 0
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
    except (AssertionError, MemoryError, RuntimeError, ValueError) as error:
        if (reason := _ambient(error)) is None:
            raise
        _complain(console, reason)
        return 1
    except KeyboardInterrupt:
        _complain(console, "Interrupted.")
        return 130
    except BrokenPipeError:  # the reader of stdout, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def expanded(argument: str) -> str:
    """Returns an argument with the home folder for "~" in --option=~/path, which shells leave as it is."""
    option, equals, value = argument.partition("=")
    if option.startswith("--") and equals and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"
    return argument


def _ambient(error: Exception) -> str | None:
    """Returns what about this machine or its settings an error says; None for any other error."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "The memory of this machine does not suffice; fewer or smaller environments need less."
        )
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not _has_device():
        return (
            f"JAX finds no device as JAX_PLATFORMS={platforms} wants it; unset it, set it to cpu, or install "
            "what it needs (jax[cuda13] for NVIDIA GPUs)."
        )
    return None


def _has_device() -> bool:
    """Returns whether JAX has anything to compute on."""
    import jax

    try:
        return bool(jax.devices())
    except (AssertionError, RuntimeError):  # the first where the platform's plugin is not installed
        return False


def command(
    name: str, panel: str = "Teach", passes_on: bool = False
) -> Callable[[Function], Function]:
    """Registers a function as a command; its docstring is the help, a paragraph to a line.

    Args:
      name: of the command.
      panel: heading under which the list of commands shows it.
      passes_on: whether options that it does not know are left in its context, for another command.
    """
    settings = {"ignore_unknown_options": True, "allow_extra_args": True} if passes_on else None

    def register(function: Function) -> Function:
        paragraphs = (inspect.getdoc(function) or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        registered = app.command(name, help=text, rich_help_panel=panel, context_settings=settings)
        return registered(function)

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
    """Returns the folder or file of a policy; see `core.assets.policy_path`."""
    return assets.policy_path(name)


def library(name: str) -> Untyped:
    """Imports a module of this package; what other packages print meanwhile is dropped.

    MuJoCo XLA, for one, tells stdout that Warp is not installed, which nobody asked.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module(f"alohas2r.{name}")


def loggers_of(names: Sequence[str] | None) -> list[Untyped]:
    """Returns the loggers that --log names."""
    return [library("learning.run.loggers.registry").make(name) for name in names or ()]


def _complain(console: Console, message: str) -> None:
    console.print(f"[red]Error:[/red] {escape(message)}", soft_wrap=True, highlight=False)
