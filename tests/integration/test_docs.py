"""What the documents say works: commands parse, settings exist, Python imports what it names, files are there."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import itertools
import pathlib
import re
import tomllib
from collections.abc import Mapping

import docs_cases
import pytest
import typer
from docs_cases import Block, Command

from alohas2r import config
from alohas2r.cli.app import app
from alohas2r.core.types import Untyped

ROOT = docs_cases.ROOT
# Packages of which the documents show how they work with this one; they need not be installed.
OTHERS = {"lerobot", "openpi_client", "stable_baselines3", "my_package"}
COMMANDS = docs_cases.commands()


@functools.cache
def program() -> Untyped:
    """The whole command line; building it takes a second."""
    return typer.main.get_command(app)


def parse(words: tuple[str, ...]) -> Mapping[str, object]:
    """Parses a command line as the program does, without carrying it out; returns the values of its parameters.

    Raises:
      typer's own error of usage.
    """
    command = program()
    context = command.make_context("alohas2r", list(words), resilient_parsing=True)
    left = list(words)
    if left and left[0] in {option for one in command.params for option in one.opts}:
        return {}  # such as --install-completion, which acts at once
    while hasattr(command, "commands"):
        subcommand = command.get_command(context, left[0])
        assert subcommand is not None, f"There is no command '{left[0]}'."
        command, left = subcommand, left[1:]
    return command.make_context(str(command.name), left, parent=context).params


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 100
    assert len(docs_cases.all_blocks("python")) > 10


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: f"{command.where} {' '.join(command.arguments)[:50]}"
)
def test_every_command_parses(command: Command) -> None:
    words = command.arguments
    try:
        parse(words)
    except typer.exceptions.TyperException as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if command.whole or not message.startswith("Missing"):  # sentences leave out what is clear
            pytest.fail(f"{command.where}: alohas2r {' '.join(words)}: {message}")


def test_every_setting_exists() -> None:
    pytest.importorskip("jax")
    from alohas2r.deployment.online.tempo import TempoConfig
    from alohas2r.learning.dagger import config as dagger
    from alohas2r.learning.encoder import config as encoder
    from alohas2r.learning.pixels import config as pixels
    from alohas2r.learning.ppo import presets
    from alohas2r.policies.online import config as online

    seen = 0
    for command in COMMANDS:
        name, changes = command.arguments[:1], _settings(command.arguments)
        if not changes:
            continue
        seen += 1
        if name == ("sweep",):
            check_sweep(command)
            continue
        values = parse(command.arguments)
        if name == ("learn",) and values["arm"] == "tempo":
            config.override(TempoConfig("student.onnx"), changes)
            continue
        if name == ("learn",):
            online.find_arm(str(values["arm"]), tuple(changes), str(values["task"]))
            continue
        preset = str(values["preset"])
        if name == ("train-teacher",):
            settings = presets.find_preset(str(values["phase"]), preset)
        elif name == ("train-pixels",):
            settings = pixels.find_preset(str(values["phase"]), preset)
        elif name == ("distill",):
            settings = dagger.find_preset(preset, str(values["observation"]))
        else:
            assert name == ("pretrain-encoder",), command
            settings = encoder.find_preset(preset, str(values["data"]), str(values["method"]))
        config.override(settings, changes)
    assert seen > 2


def check_sweep(command: Command) -> None:
    """Tries every value of a sweep."""
    from alohas2r.cli.sweep import read_options
    from alohas2r.experiments.sweep import space, trainings

    context = program().commands["sweep"].make_context("sweep", list(command.arguments[1:]))
    training = trainings.find_training(context.params["training"])
    settings = training.settings(read_options(training.name, context.args))
    swept = space.typed(space.parse_space(context.params["settings"]), settings)
    for values in space.corners(swept):
        config.override(settings, space.assignments(values))


def _settings(words: tuple[str, ...]) -> list[str]:
    return [value for word, value in itertools.pairwise(words) if word == "--set"]


@pytest.mark.parametrize("block", docs_cases.all_blocks("python"), ids=lambda block: block.where)
def test_every_python_block_compiles_and_imports_what_it_names(block: Block) -> None:
    tree = ast.parse(block.code, block.where)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _import(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = _import(str(node.module))
            for alias in node.names if module else ():
                if not hasattr(module, alias.name):
                    _import(f"{node.module}.{alias.name}")
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "alohas2r"
        ):
            assert hasattr(importlib.import_module("alohas2r"), node.attr), block.where


def _import(name: str) -> object:
    """Imports a module; None if it belongs to a package that need not be there."""
    package = name.split(".")[0]
    if package in OTHERS and importlib.util.find_spec(package) is None:
        return None
    if package not in ("alohas2r", *OTHERS):
        pytest.importorskip(package)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:  # what works with another package imports it
        if error.name in OTHERS:
            return None
        raise


@pytest.mark.parametrize("block", docs_cases.all_blocks("toml"), ids=lambda block: block.where)
def test_every_table_is_toml(block: Block) -> None:
    assert tomllib.loads(block.code)


@pytest.mark.parametrize("page", docs_cases.PAGES, ids=lambda page: page.name)
def test_files_modules_links_and_targets_that_are_named_exist(page: pathlib.Path) -> None:
    missing = []
    for span in docs_cases.spans(page):
        path = re.fullmatch(r"((?:alohas2r|xmls|params|tests|tools|benchmarks)/[\w./-]+)", span)
        names = path and ("NAME" in path[1] or re.search(r"-v\d$", path[1]))  # of a task
        if path and not names and not (ROOT / path[1]).exists():
            missing.append(span)
        if re.fullmatch(r"alohas2r(\.\w+)+", span) and not _named(span):
            missing.append(span)
    text = docs_cases.prose(page)
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        if target and "://" not in target and not (page.parent / target).exists():
            missing.append(target)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing += [
        f"make {name}" for name in re.findall(r"`make ([\w-]+)`", text) if name not in targets
    ]
    assert missing == []


def _named(name: str) -> bool:
    """Whether a dotted name is a module, something in one, or a group of entry points."""
    if name in ("alohas2r.tasks", "alohas2r.loggers"):
        return True
    module, _, member = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        try:
            return hasattr(importlib.import_module(module), member)
        except ModuleNotFoundError:
            return False
    return True
