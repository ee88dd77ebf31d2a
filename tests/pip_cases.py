"""Other people's packages that conflict with ours, installed beside the environment of the tests."""

from __future__ import annotations

import subprocess
import sys

import pytest


def install(package: str, *more: str, python: str = sys.executable) -> None:
    """Installs a package; skips the test only where no package index can be reached that has it.

    Args:
      package: its name, or with its version. more: further arguments of pip install.
      python: the interpreter of the environment that it goes into.
    """
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    options = ["--quiet", "--no-compile", "--retries", "1", "--timeout", "20"]
    done = subprocess.run(
        [*pip, "install", *options, package, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "from versions: none" in done.stderr:
        pytest.skip(f"no package index can be reached that has {package}")
    assert done.returncode == 0, done.stderr
