"""The documents as a site: built without a warning, a page for every command, nothing asked of the network."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import typer
from docs_cases import ROOT

from alohas2r.cli.app import app
from alohas2r.core.types import Untyped


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("docs") / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


def test_every_command_has_a_page_made_of_its_help(site: pathlib.Path) -> None:
    program: Untyped = typer.main.get_command(app)
    context = program.make_context("alohas2r", [], resilient_parsing=True)
    names = program.list_commands(context)
    assert len(names) > 30
    for name in names:
        page = (site / "commands" / f"{name}.html").read_text()
        command = program.get_command(context, name)
        for parameter in command.params:
            for option in parameter.opts:
                assert option in page or parameter.param_type_name == "argument"
    assert "train-teacher.html" in (site / "commands" / "index.html").read_text()


def test_pages_ask_nothing_of_the_network(site: pathlib.Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe|source)\b[^>]*src=.?(?:https?:)?//", text)
        assert not re.findall(r"<link\b[^>]*rel=.?stylesheet[^>]*href=.?(?:https?:)?//", text)
        assert 'class="mermaid"' not in text  # for which the theme would fetch a program
    for style in site.rglob("*.css"):
        assert not re.findall(r"@import|url\(.?(?:https?:)?//", style.read_text())


def test_no_link_within_the_site_is_broken(site: pathlib.Path) -> None:
    broken = [
        (page.name, link)
        for page in site.rglob("*.html")
        if page.name != "404.html"
        for link in re.findall(r'(?:href|src)="([^":#?]+)(?:[#?][^"]*)?"', page.read_text())
        if not link.startswith("/") and not (page.parent / link).exists()
    ]
    assert broken == []
