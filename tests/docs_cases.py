"""What the documents show: blocks of code, commands, names of files."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = ("sh", "console", "")


class Block(NamedTuple):
    """A fenced block."""

    page: pathlib.Path
    line: int  # of its first line of code
    language: str
    code: str

    @property
    def where(self) -> str:
        """The place for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """A command of this package as a document shows it."""

    where: str
    arguments: tuple[str, ...]  # without the program's name
    whole: bool  # a line of a block, not a fragment in a sentence


def blocks(page: pathlib.Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page."""
    language, first, code = None, 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence and language is None:
            language, first, code = fence[1], number + 1, []
        elif fence:
            yield Block(page, first, language or "", "\n".join(code) + "\n")
            language = None
        else:
            code.append(line)
    assert language is None, f"{page} ends within a block."


def all_blocks(*languages: str) -> list[Block]:
    """Returns the blocks of all pages in these languages."""
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def prose(page: pathlib.Path) -> str:
    """Returns a page without its blocks."""
    return re.sub(r"^\s*```.*?^\s*```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: pathlib.Path) -> Iterator[str]:
    """Yields what sentences and tables show as code."""
    for found in re.findall(r"`([^`]+)`", prose(page)):
        yield " ".join(found.split()).replace("\\|", "|")


def commands() -> list[Command]:
    """Returns all commands that the documents show."""
    shown = []
    for block in all_blocks(*SHELL):
        for number, line in lines(block):
            where = f"{block.page.relative_to(ROOT)}:{number}"
            shown += [Command(where, words, True) for words in calls(line)]
    for page in PAGES:
        where = str(page.relative_to(ROOT))
        for span in spans(page):
            if span.startswith("alohas2r ") and "..." not in span:
                shown += [Command(where, words, False) for words in calls(span)]
    return shown


def lines(block: Block) -> Iterator[tuple[int, str]]:
    """Yields the commands of a shell block with their line numbers; lines that go on are joined."""
    begun = ""
    for number, line in enumerate(block.code.splitlines(), start=block.line):
        text = begun + line.strip().removeprefix("$ ")
        if text.endswith("\\"):
            begun = text[:-1]
            continue
        begun = ""
        yield number, text


def calls(line: str) -> Iterator[tuple[str, ...]]:
    """Yields what a shell line calls of this package: the arguments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    words = list[str]()
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()<>"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words[:1] == ["alohas2r"]:
                yield tuple(word for word in words[1:] if word != "...")
            words = []
        else:
            words.append(word)
