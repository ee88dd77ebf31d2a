"""What commands that measure do when they are interrupted: they show what they have."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import typer
from rich.console import Console

from alohas2r.cli.app import library
from alohas2r.cli.display import show as show_result
from alohas2r.core.types import JsonObject
from alohas2r.errors import Interrupted

ASKED, FAILED = 130, 1  # exit codes


@contextlib.contextmanager
def shown_if_interrupted(
    title: str,
    as_json: bool,
    csv: pathlib.Path | None = None,
    hint: str = "",
    show: Callable[[JsonObject, str, bool], None] = show_result,
) -> Iterator[None]:
    """Shows the result of what had ended where the work within is interrupted, and ends the program.

    Args:
      title: of the result. as_json: how it is shown.
      csv: a file for its episodes.
      hint: how to go on.
      show: prints a result under a title.
    """
    try:
        yield
    except Interrupted as error:
        if error.result is not None and csv is not None:
            library("evaluation.report").write_csv(error.result, csv)
        if error.result is not None:
            show(error.result, f"{title}, {error.done} of {error.total} {error.unit}", as_json)
        message = f"{error} {hint[:1].upper()}{hint[1:]}." if hint else str(error)
        Console(stderr=True).print(message, soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(FAILED if error.why else ASKED) from None
