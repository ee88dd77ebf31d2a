"""Hooks of mkdocs: adds the pages that are not kept in docs/, and lets links between them meet.

README, CHANGELOG and CONTRIBUTING become pages; each command gets one, made of its own help; pages of docs/ that the
navigation of mkdocs.yml does not name yet come under "More".
"""

from __future__ import annotations

import pathlib
import posixpath
import re
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from alohas2r.cli.app import app

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
COMMANDS = "commands"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Names the commands' pages, and those that nobody named, in the navigation."""
    pages = command_pages()
    nav: list[Any] = list(config.nav or [])
    for entry in nav:
        if isinstance(entry, dict) and entry.get("Commands") == COMMANDS:
            entry["Commands"] = [
                f"{COMMANDS}/index.md",
                *(name for name in pages if "index" not in name),
            ]
    named = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    rest = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - set(named))
    if rest:
        nav.insert(-2, {"More": rest})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for name, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    for place, text in command_pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Lets a page's links lead to where other pages are in the site."""
    source = str(page.file.src_uri)
    outside = {place: name for name, place in OUTSIDE.items()}.get(source)
    folder = "" if outside else posixpath.join("docs", posixpath.dirname(source))

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or "://" in target or source.startswith(COMMANDS):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in OUTSIDE:
            path = posixpath.join("docs", OUTSIDE[path])
        if not path.startswith("docs/"):  # a file of the repository, which the site has not
            return match[0] if match[1].startswith("!") else match[1][1:-1]
        link = posixpath.relpath(path, posixpath.join("docs", posixpath.dirname(source)))
        return f"{match[1]}({link}{'#' if anchor else ''}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", moved, markdown)


def command_pages() -> dict[str, str]:
    """Returns the page of each command, made of its help, and one that lists them: place -> Markdown."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("alohas2r", [], resilient_parsing=True)
    pages, panels = {}, dict[str, list[str]]()
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        place = f"{COMMANDS}/{name}.md"
        text = get_docs_for_click(obj=command, ctx=context, name=name, call_prefix="alohas2r")
        pages[place] = text.replace(f"# `alohas2r {name}`", f"# {name}", 1)
        first = str(command.get_short_help_str(200)).strip()
        panel = str(getattr(command, "rich_help_panel", None) or "Commands")
        panels.setdefault(panel, []).append(f"| [{name}]({name}.md) | {first} |")
    lines = ["# Commands", "", "Each takes `--help` (or `-h`); these pages are made of it.", ""]
    for panel, rows in panels.items():
        lines += [f"## {panel}", "", "| command | what it does |", "| --- | --- |", *rows, ""]
    pages[f"{COMMANDS}/index.md"] = "\n".join(lines)
    return dict(sorted(pages.items()))
