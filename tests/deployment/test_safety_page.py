"""docs/safety.md names the test of every fault; each of them exists."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs/safety.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) > 40
    named = set(re.findall(r"`(test_\w+)`", page))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in sources} == set()
    # Fault, how it is found, detection time, reaction, test.
    assert {line.count(" | ") for line in rows} == {4}
