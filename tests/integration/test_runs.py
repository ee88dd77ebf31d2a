"""Real commands whose terminal goes, whose disk is full, that are interrupted, killed, or started twice."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import student_cases

from alohas2r.cli import app
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.log import read_metrics

PYTHON = [sys.executable, "-m", "alohas2r.cli"]
PICK = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1"),
    *("ppo.network.policy=8", "ppo.network.value=8", "evaluations=0", "task.steps=5"),
)
UPDATES = 40


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with student_cases.compiled_once(tmp_path_factory):
        yield


def chosen(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def pick(out: pathlib.Path, *more: str, updates: int = UPDATES) -> list[str]:
    start = ["train-teacher", "--phase", "pick", "--preset", "quick", "--threads", "1"]
    settings = chosen(*PICK, f"total_steps={8 * updates}", "checkpoints=2")
    return [*start, "--out", str(out), *settings, *more]


def encoder(out: pathlib.Path, *more: str) -> list[str]:
    start = ["pretrain-encoder", "--preset", "quick", "--renderer", "exact", "--threads", "1"]
    settings = chosen(*student_cases.TINY_ENCODER, "checkpoints=1", "rounds=4")
    return [*start, "--out", str(out), *settings, *more]


def student(out: pathlib.Path, *more: str) -> list[str]:
    start = ["distill", "--preset", "quick", "--renderer", "exact", "--threads", "1"]
    settings = chosen(*student_cases.TINY, "checkpoints=1")
    return [*start, "--out", str(out), *settings, *more]


COMMANDS = {
    "pick": (pick, "policy"),
    "encoder": (encoder, "encoder"),
    "student": (student, "student"),
}
Command = tuple[Callable[..., list[str]], str]


PICK_AND_LONG = pytest.mark.parametrize(
    "command",
    ["pick", *(pytest.param(name, marks=pytest.mark.long) for name in ("encoder", "student"))],
    indirect=True,
)


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> Command:
    return COMMANDS[request.param]


def environment() -> dict[str, str]:
    return {**os.environ, **student_cases.compile_environment()}


def lines(out: pathlib.Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def handling(number: signal.Signals, how: str, *command: str) -> list[str]:
    """Returns the command that runs another with a signal left to the system ("SIG_DFL") or ignored ("SIG_IGN").

    In a process of its own: Python code between fork and exec may deadlock beside JAX's threads.
    """
    code = f"import os, signal, sys; signal.signal({int(number)}, signal.{how}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code, *command]


def wait_for(process: subprocess.Popen[bytes], out: pathlib.Path, count: int) -> None:
    while lines(out) < count:
        assert process.poll() is None, "ended early"
        time.sleep(0.01)


def described(out: pathlib.Path, name: str) -> str:
    (path,) = (out / name).glob("*.json")
    return json.loads(path.read_text())["hash"]


def test_there_is_nothing_to_resume(
    command: Command, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, _ = command
    assert app.main(arguments(tmp_path / "new", "--resume")) == 1
    error = capsys.readouterr().err
    assert "holds no run to resume; leave out --resume" in error
    assert error.count("\n") == 1


@PICK_AND_LONG
def test_a_command_killed_before_its_first_checkpoint_resumes(
    command: Command, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, name = command
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [*PYTHON, *arguments(out)], env=environment(), stdout=subprocess.DEVNULL
    )
    wait_for(process, out, 1)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    if not Checkpoint(out / "checkpoint").exists():  # else it was faster than this test
        assert not (out / name).exists()
    assert app.main(arguments(out, "--resume")) == 0
    assert app.main(arguments(tmp_path / "whole")) == 0
    assert described(out, name) == described(tmp_path / "whole", name)
    capsys.readouterr()
    assert app.main(arguments(out)) == 1
    assert "add --resume" in capsys.readouterr().err


@PICK_AND_LONG
def test_a_stopped_command_is_finished_where_it_is(
    command: Command, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, name = command
    out = tmp_path / "run"
    assert app.main(arguments(out, "--finish")) == 1
    assert "add --resume" in capsys.readouterr().err
    assert app.main(arguments(out, "--minutes", "0")) == 0
    assert "with --finish it writes what has been learnt" in capsys.readouterr().err
    assert not (out / name).exists()
    assert app.main(arguments(out, "--resume", "--finish", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"]
    assert result[name] == str(out / name)
    (description,) = (out / name).glob("*.json")
    trained = json.loads(description.read_text())["trained"]
    assert result["steps"] == trained["steps"] < trained["of_steps"]


@pytest.mark.parametrize("arguments", [encoder, pytest.param(student, marks=pytest.mark.long)])
def test_a_resume_does_not_switch_the_renderer_unseen(
    arguments: Callable[..., list[str]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert app.main(arguments(out, "--minutes", "0")) == 0
    capsys.readouterr()
    assert app.main(arguments(out, "--resume", "--renderer", "raycast")) == 1
    assert "renderer: exact -> raycast" in capsys.readouterr().err
    # Without a name it is the run's own.
    plain = [word for word in arguments(out, "--resume") if word not in ("--renderer", "exact")]
    assert app.main([*plain, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]


def test_two_commands_in_a_folder(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = subprocess.Popen(
        [*PYTHON, *pick(out, updates=3000)], env=environment(), stdout=subprocess.DEVNULL
    )
    wait_for(first, out, 3)
    for more in ([], ["--resume"]):
        assert app.main(pick(out, *more, updates=3000)) == 1
        error = capsys.readouterr().err
        assert f"in use by the running process {first.pid};" in error
        assert error.count("\n") == 1
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl")]
    assert steps == list(range(8, 8 * len(steps) + 1, 8))


def test_ctrl_c_with_a_pipe_that_is_interrupted_as_well(tmp_path: pathlib.Path) -> None:
    """`alohas2r ... 2>&1 | tee log`: the terminal interrupts tee too."""
    out = tmp_path / "run"
    words = " ".join(f"'{word}'" for word in [*PYTHON, *pick(out, updates=5000)])
    process = subprocess.Popen(
        handling(signal.SIGINT, "SIG_DFL", "/bin/bash", "-c", f"{words} 2>&1 | tee {tmp_path}/log"),
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    wait_for(process, out, 4)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    deadline = time.monotonic() + 60
    while not Checkpoint(out / "checkpoint").exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    done = json.loads((out / "checkpoint" / "extra.json").read_text())["values"]["iterations"]
    assert 4 <= done < 5000
    assert lines(out) == done


def test_a_terminal_that_is_gone(tmp_path: pathlib.Path) -> None:
    """As after logging out of a machine where it runs in the background."""
    out = tmp_path / "run"
    keeper, terminal = pty.openpty()
    process = subprocess.Popen(
        handling(signal.SIGHUP, "SIG_IGN", *PYTHON, *pick(out)),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(keeper, False)
    while lines(out) < 3:
        assert process.poll() is None
        try:
            os.read(keeper, 65536)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(keeper)
    process.wait(120)
    assert lines(out) == UPDATES
    assert (out / "policy" / "policy.json").exists()


def test_nothing_can_be_shown_at_all(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    with open("/dev/full", "w") as full:
        subprocess.run([*PYTHON, *pick(out)], env=environment(), stdout=full, stderr=full)
    assert lines(out) == UPDATES
    assert (out / "policy" / "policy.json").exists()


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_other_signals_stop_a_command_cleanly(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        handling(signal.SIGHUP, "SIG_DFL", *PYTHON, *pick(out, "--json", updates=5000)),
        env=environment(),
        stdout=subprocess.PIPE,
    )
    wait_for(process, out, 3)
    for _ in range(2):
        process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    result = json.loads(printed)
    assert not result["finished"]
    assert result["steps"] == 8 * lines(out)
    assert Checkpoint(out / "checkpoint").exists()
