"""What only Linux has is asked for nowhere without a way around it."""

from __future__ import annotations

import ast
import os
import pathlib
import resource
import sys

import numpy as np
import pytest
import run_cases

import alohas2r
from alohas2r.core import machine, threads
from alohas2r.core.lock import FolderLock

pytestmark = pytest.mark.compiles

PACKAGE = pathlib.Path(alohas2r.__file__).parent
LINUX_ONLY = {"sched_getaffinity", "sched_setaffinity", "pidfd_open", "memfd_create", "eventfd"}
# Which ask for it behind hasattr.
GUARDED = {"core/threads.py", "benchmarks/timing.py", "experiments/sweep/fleet.py"}


def test_calls_of_linux_stand_where_they_are_guarded() -> None:
    using = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in LINUX_ONLY
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert using == GUARDED


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without Linux's calls and without /proc, such as macOS."""
    for name in LINUX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    read, write, glob = pathlib.Path.read_text, pathlib.Path.write_text, pathlib.Path.glob

    def gone(path: pathlib.Path) -> bool:
        return path.parts[:2] == ("/", "proc")

    def read_text(self: pathlib.Path, *arguments: str | None, **named: str | None) -> str:
        if gone(self):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self, *arguments, **named)

    def write_text(self: pathlib.Path, data: str, **named: str | None) -> int:
        if gone(self):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return write(self, data, **named)

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    monkeypatch.setattr(pathlib.Path, "write_text", write_text)
    monkeypatch.setattr(
        pathlib.Path, "glob", lambda self, *rest: iter(()) if gone(self) else glob(self, *rest)
    )


def test_a_machine_is_described_elsewhere(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    assert machine.describe_machine()["cores"] == os.cpu_count()
    assert machine.processor()
    machine.forget_peak()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert machine.peak_memory_gb() == pytest.approx(used * 1024 / 1e9, rel=0.01)
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts in bytes
    assert machine.peak_memory_gb() == pytest.approx(used / 1e9, rel=0.01)
    assert machine.peak_mb() == pytest.approx(used / 1e6, rel=0.01)
    with FolderLock(tmp_path):
        pass


def test_policies_are_evaluated_and_trained_elsewhere(
    elsewhere: None, random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from alohas2r.core.progress import Report
    from alohas2r.evaluation.evaluate import evaluate
    from alohas2r.learning.ppo import train

    shown: list[Report] = []
    result = evaluate(random_policy, 1, seed=7, progress=shown.append)
    assert result["table"]["success"].shape == (1,)
    with threads.spread():  # as collection does
        assert run_cases.count(tmp_path / "count")["finished"]
    settings = (
        *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1", "task.steps=5"),
        *("ppo.network.policy=8", "ppo.network.value=8", "total_steps=8", "evaluations=0"),
    )
    made = train.train("pick", "quick", tmp_path / "pick", overrides=settings)
    assert made["finished"]
    assert np.load(pathlib.Path(made["policy"]) / "weights.npz").files
