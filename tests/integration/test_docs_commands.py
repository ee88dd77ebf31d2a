"""What the documents tell a reader to run is run, at a size that takes seconds to minutes: make test-long."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import docs_cases
import pytest
from docs_cases import ROOT, Command

# What keeps a command from being run here, by its first word or by a sign in it; anything else is run.
ELSEWHERE = {
    "a robot": (
        *(
            "setup-arms",
            "setup-robot",
            "monitor",
            "measure-delay",
            "check-cameras",
            "record-camera",
        ),
        *("torque-off", "excite", "calibrate"),
    ),
    "a display": ("view",),
    "somebody who ends it": ("serve", "learner", "emulate-robot"),
    "a run of the reader's": ("replay",),
    "the reader's shell": ("--install-completion",),
    "minutes, and has a long test of its own": ("pipeline", "sweep", "bench-gpu", "contamination"),
}
SIGNS = {
    "a robot": ("--robot aloha", "/dev/tty", "--soak-hours", "--fuzz-runs"),
    "a server": ("--server",),
    "as many worlds as workers, which no quick training has": ("--fleet",),
    "demonstrations": ("--demos",),
    "a policy that was learnt on a robot": (
        *("online-reach", "online-robot", "reach.onnx", "residual", "runs/tempo"),
    ),
    "logs of insertions": ("train-reward", "--tries"),
    "an evaluation that was interrupted": ("runs/long --resume",),
    "a file of the reader's": (
        *(
            "POLICY",
            "FILE",
            "student.onnx",
            "--policy pick.onnx",
            "runs/handover/policy",
            "--world-params",
            "gpu.json",
        ),
    ),
    "files of another package": ("gym-aloha", "menagerie", "cifar10"),
}
# Options that make a command small.
SMALL = {
    "train-teacher": {"--preset": "quick", "--minutes": "0"},
    "train-pixels": {"--preset": "quick", "--minutes": "0"},
    "distill": {"--preset": "quick", "--minutes": "0"},
    "pretrain-encoder": {"--preset": "quick", "--minutes": "0"},
    "evaluate": {"--episodes": "2"},
    "record": {"--episodes": "2"},
    "demonstrate": {"--episodes": "1"},
    "deploy": {"--episodes": "1", "--seconds": "2"},
    "bench-sim": {"--seconds": "1"},
    "bench-policy": {"--seconds": "1"},
    "bench-render": {"--envs": "16", "--seconds": "0.2", "--no-ratios": "", "--no-physics": ""},
}
WRITES = ("--out", "--report")  # options that name what is written
# What a reader has trained, by a part of its path, and the shipped policy for it; the first part found counts.
TRAINED = {
    "pixels-pick": "pixels-pick",
    "pick": "pick",
    "insert": "teacher",
    "TEACHER": "teacher",
    "student": "student",
    "encoder": "encoder",
}


def where_else(words: tuple[str, ...]) -> str | None:
    """Returns what a command needs that is not here; None if nothing."""
    line = " ".join(words)
    for need, names in ELSEWHERE.items():
        if words[0] in names:
            return need
    return next((need for need, signs in SIGNS.items() if any(s in line for s in signs)), None)


def stand_in(path: str, words: tuple[str, ...]) -> str:
    """Returns the shipped policy for one that a reader has trained; commands of the preset transfer get its own."""
    name = next(TRAINED[kind] for kind in TRAINED if kind in path)
    other = f"params/transfer/{name}"
    return other if "transfer" in words and (ROOT / other).exists() else f"params/{name}"


def small(words: tuple[str, ...]) -> list[str]:
    """Returns a command with the options that make it small, and shipped policies for what a reader has trained."""
    options = dict(SMALL.get(words[0], {}))
    if "--start-from" in words and "--preset" in words:
        del options[
            "--preset"
        ]  # the network of the policy to start from is the documented preset's
    kept, left = [words[0]], list(words[1:])
    while left:
        word = left.pop(0)
        if word in options:
            if options[word]:
                left.pop(0)
        elif word == "--grid":
            kept += [word, "1x1"]
            left.pop(0)
        elif (word.startswith("runs/") or word == "TEACHER") and kept[-1] not in WRITES:
            kept.append(stand_in(word, words))
        else:
            kept.append(word)
    return kept + [word for option in options.items() for word in option if word]


def runnable() -> list[Command]:
    """Returns the commands that can be run here, each once."""
    seen: dict[tuple[str, ...], Command] = {}
    for command in docs_cases.commands():
        if command.whole and where_else(command.arguments) is None:
            seen.setdefault(command.arguments, command)
    return list(seen.values())


def test_most_commands_are_run() -> None:
    assert len(runnable()) > 30


def test_what_stands_in_for_a_policy_is_here() -> None:
    words = [word for command in runnable() for word in small(command.arguments)]
    policies = {word for word in words if word.startswith("params/")}
    assert len(policies) > 5
    assert not [one for one in policies if not (ROOT / one).exists()]
    assert not {"TEACHER", "POLICY", "FILE"} & {*words}


@pytest.mark.long
@pytest.mark.parametrize("command", runnable(), ids=lambda c: f"{c.where} {' '.join(c.arguments)}")
def test_a_documented_command_runs(command: Command, tmp_path: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "alohas2r.cli", *small(command.arguments)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
