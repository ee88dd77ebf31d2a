from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from opengl_cases import skip_without_opengl
from rich.console import Console

import alohas2r
from alohas2r.cli import app
from alohas2r.cli import display as cli_display
from alohas2r.core import assets
from alohas2r.core.progress import Report

pytestmark = pytest.mark.compiles
COMMANDS = ("train-teacher", "evaluate", "bench-sim", "render", "view")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_and_every_option_is_for(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"alohas2r {command}" in out
    rows = [line.split("│") for line in out.splitlines() if "--" in line and "│" in line]
    assert rows
    for _, row, _ in rows:
        # Some words stand behind the option and its type.
        assert len(row.split()) >= 3


def test_version_and_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"alohas2r {alohas2r.__version__}\n", "")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["train-techer"], 2, ["'train-techer'", "Did you mean 'train-teacher'"]),
        (["train-teacher"], 2, ["'--phase'", "insert, pick", "train-teacher --help"]),
        (["train-teacher", "--phase", "pik"], 2, ["'--phase': 'pik' is", "'insert', 'pick'"]),
        (["train-teacher", "--phas", "pick"], 2, ["--phas", "--phase"]),
        (["evaluate", "x", "--episodes", "0"], 2, ["--episodes", "greater than or equal to 1"]),
        (["evaluate", "x", "--seed", "one"], 2, ["--seed", "integer"]),
        (["evaluate", "x", "--seed", str(2**32)], 2, ["--seed", "4294967295"]),
        (["view", "params/pick", "--scene", "pick"], 1, ["either a policy"]),
        (["evaluate", "nowhere"], 1, ["nowhere"]),
        (["evaluate", "../../etc"], 1, ["../../etc"]),
        (["evaluate", "x", "--video", "x.gif"], 1, ["must end in .mp4"]),
        (["evaluate", "x", "--csv", "/dev/null/x.csv"], 1, ["/dev/null"]),
        (["train-teacher", "--phase", "pick", "--out", "/dev/null/x"], 1, ["/dev/null/x"]),
        (
            ["train-teacher", "--phase", "pick", "--set", "ppo.discont=1"],
            1,
            ["'ppo.discont'", "Did you mean 'ppo.discount'?"],
        ),
        (
            ["train-teacher", "--phase", "pick", "--set", "ppo.discount=1.5"],
            1,
            ["ppo.discount=1.5", "[0, 1]"],
        ),
        (["train-teacher", "--phase", "pick", "--set", "seed"], 1, ["'seed'", "key=value"]),
        (["render", "--out", "x.png"], 1, ["--scene", "--policy"]),
        (["render", "--out", "x.bmp", "--scene", "pick"], 1, [".png or .mp4"]),
        (
            ["render", "--out", "x.png", "--scene", "pick", "--camera", "overhead"],
            1,
            ["overhead_cam"],
        ),
        (["render", "--out", "x.png", "--scene", "pick", "--width", "9999"], 1, ["1..1280"]),
    ],
)
def test_bad_input_gets_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    arguments: list[str],
    code: int,
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, *arguments)
    assert found == code
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_missing_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("alohas2r.learning.ppo.train", "alohas2r.evaluation.evaluate"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jax", None)
    for arguments in (["train-teacher", "--phase", "pick"], ["evaluate", "params/pick"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1
        assert "pip install 'alohas2r[train]'" in err


def test_other_missing_modules_are_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alohas2r.rendering.video", None)
    with pytest.raises(ImportError):
        app.main(["render", "--out", "x.png", "--scene", "pick"])


def test_interrupt_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, "data_path", interrupted)
    code, out, _ = run(capsys, "evaluate", "pick")
    assert (code, out) == (130, "")


def test_view_without_a_display_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    code, _, err = run(capsys, "view", "--scene", "insert")
    assert code == 1
    assert "needs a display" in err
    assert "alohas2r render --scene insert" in err


def test_render_draws_a_scene(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    skip_without_opengl()
    path = tmp_path / "new" / "scene.png"
    size = ("--width", "80", "--height", "60")
    code, out, err = run(capsys, "render", "--out", str(path), "--scene", "insert", *size)
    assert (code, out) == (0, "")
    assert str(path) in err.replace("\n", "")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_evaluate_prints_one_json_object_and_writes_one_line_per_episode(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, random_policy: pathlib.Path
) -> None:
    table = tmp_path / "episodes.csv"
    code, out, err = run(
        capsys,
        "evaluate",
        str(random_policy),
        "--episodes",
        "3",
        "--seed",
        "7",
        "--json",
        "--csv",
        str(table),
    )
    assert code == 0
    result = json.loads(out)
    assert result["protocol"] == "eval-v1"
    assert (result["episodes"], result["seed"]) == (3, 7)
    for name in ("success", "precise"):
        rate = result[name]
        assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
    assert "episodes" in err  # progress
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["episode"] for row in rows] == ["0", "1", "2"]
    assert sum(int(row["success"]) for row in rows) == round(3 * result["success"]["rate"])


def test_results_are_strict_json_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "steps": np.int64(3),
        "loss": float("nan"),
        "out": pathlib.Path("runs/a[b]"),
        "nested": {"speed": np.float32(0.5), "all": np.arange(2), "none": None},
        "success": {"rate": 0.5, "low": 0.25, "high": 0.75},
        "unknown": {"rate": None, "low": 0.0, "high": 1.0},
        "table": {"position": np.zeros(5)},
    }
    cli_display.show(result, "Title", True)
    captured = capsys.readouterr().out
    assert captured.count("\n") == 1
    assert json.loads(captured, parse_constant=pytest.fail) == {
        "steps": 3,
        "loss": None,
        "out": "runs/a[b]",
        "nested": {"speed": 0.5, "all": [0, 1], "none": None},
        "success": {"rate": 0.5, "low": 0.25, "high": 0.75},
        "unknown": {"rate": None, "low": 0.0, "high": 1.0},
    }
    cli_display.show(result, "Title", False)
    text = capsys.readouterr().out
    for part in ("Title", "nested: speed", "50.0%", "25.0% .. 75.0%", "runs/a[b]"):
        assert part in text
    assert "position" not in text


def report(done: int, **figures: float) -> Report:
    return Report("train", done, 1000, "steps", 20.0, (1000 - done) / 20, figures)


def test_progress_is_a_line_now_and_then_and_keeps_the_last_evaluation() -> None:
    stream = io.StringIO()
    display = cli_display.ProgressDisplay(Console(file=stream, width=200), every_s=1e9)
    display(report(100, **{"eval/success": 0.5, "train/reward": 1.0, "loss/value": 3.0}))
    display(report(500, **{"train/reward": 2.0}))  # too soon after the first
    display(report(1000, **{"train/reward": 4.0}))
    display.close()
    first, last = stream.getvalue().splitlines()
    assert first == "train: 100 / 1k steps, 20/s, 45 s left, train reward 1, eval success 0.5"
    assert last == "train: 1k / 1k steps, 20/s, train reward 4, eval success 0.5"


def test_progress_is_a_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, _environ={"TERM": "xterm"})
    display = cli_display.ProgressDisplay(console)
    display(report(500, loss=0.125))
    display.close()
    assert "500 / 1k steps, 20/s, 25 s left, loss 0.125" in stream.getvalue()
    assert "━" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (725, "12 min"), (11_100, "3 h 05 min"), (7_199, "2 h 00 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert cli_display.duration_text(seconds) == text


def test_shipped_policies_are_found_by_name_and_given_paths_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params" / "pick").mkdir(parents=True)
    (tmp_path / "elsewhere" / "params" / "pick").mkdir(parents=True)
    monkeypatch.setenv("ALOHAS2R_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert app.policy_folder("pick") == tmp_path / "params" / "pick"
    assert app.policy_folder("params/pick") == pathlib.Path("params/pick")  # a folder here
    assert app.policy_folder("params/insert") == pathlib.Path("params/insert")
    monkeypatch.chdir(tmp_path / "params")
    assert app.policy_folder("params/pick") == tmp_path / "params" / "pick"
    assert app.policy_folder("params") == pathlib.Path("params")


def test_a_home_folder_after_an_equals_sign_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert app.expanded("--out=~/run") == "--out=/home/somebody/run"
    assert app.expanded("--set=ppo.x=~1") == "--set=ppo.x=~1"
    assert app.expanded("a=~/b") == "a=~/b"


def test_a_shipped_file_is_found_in_any_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = app.policy_folder("params/student/policy.onnx")
    assert file == assets.data_path("params") / "student" / "policy.onnx"
    assert file.is_file()


@pytest.mark.parametrize(
    ("variable", "value", "command", "words"),
    [
        ("MUJOCO_GL", "nonsense", ["render", "--scene", "pick", "--out", "x.png"], "egl, osmesa"),
        (
            "DISPLAY",
            "",
            ["view", "params/student"],
            "render --policy params/student --out film.mp4",
        ),
        ("JAX_PLATFORMS", "cuda", ["evaluate", "params/pick", "--episodes", "1"], "JAX_PLATFORMS"),
    ],
)
def test_settings_of_the_environment_that_cannot_be_met_get_one_line(
    variable: str, value: str, command: list[str], words: str, tmp_path: pathlib.Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "alohas2r.cli", *command],
        env=os.environ | {variable: value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_names_that_a_terminal_cannot_show_are_written_otherwise(tmp_path: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "alohas2r.cli", "evaluate", "params/\u2713"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 1
    assert b"\\u2713" in run.stderr
    assert b"Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("shell", "script"),
    [
        (
            "bash",
            'eval "$(alohas2r --show-completion)"; COMP_WORDS=(alohas2r train-teacher --phase p); COMP_CWORD=3;'
            ' _alohas2r_completion alohas2r; echo "${COMPREPLY[@]}"',
        ),
        (
            "fish",
            'alohas2r --show-completion | source; complete -C "alohas2r train-teacher --phase p"',
        ),
        (
            "zsh",
            'eval "$(alohas2r --show-completion | sed /^compdef/d)";'
            " words=(alohas2r train-teacher --phase p); CURRENT=4; _arguments() { echo $* };"
            " _alohas2r_completion",
        ),
    ],
)
def test_shells_complete(shell: str, script: str, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "alohas2r"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m alohas2r.cli "$@"\n')
    program.chmod(0o755)
    places = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(pathlib.Path(alohas2r.__file__).parents[1]),
    }
    command = [shell, "-c", script]
    if shutil.which(shell) is None:  # without the shell, what its script asks of the program
        command = [str(program)]
        places |= {
            "_ALOHAS2R_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": "alohas2r train-teacher --phase p",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
    run = subprocess.run(
        command,
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "pick" in run.stdout, run.stderr
    assert "insert" not in run.stdout


def test_memory_that_does_not_suffice_gets_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(assets, "data_path", exhausted)
    code, out, err = run(capsys, "evaluate", "pick")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "memory of this machine" in err


def test_a_gpus_memory_is_not_taken_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.delenv(name, raising=False)
    run(capsys, "--version")
    assert os.environ[name] == "false"
    monkeypatch.setenv(name, "true")  # who wants it otherwise
    run(capsys, "--version")
    assert os.environ[name] == "true"


THREADS = """
import pathlib, sys
from alohas2r.cli import app

assert app.main(["evaluate", "nowhere", "--threads", sys.argv[1]]) == 1
import jax, jax.numpy as jnp

jnp.dot(jnp.ones((512, 512)), jnp.ones((512, 512))).block_until_ready()
names = [(task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
print(sum("XLAEigen" in name for name in names))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_bounds_xla() -> None:
    """To more than there are cores as well, so that it tells on any machine."""
    clean = {name: value for name, value in os.environ.items() if name != "NPROC"}
    counted = [
        int(subprocess.check_output([sys.executable, "-c", THREADS, count], env=clean, text=True))
        for count in ("1", "7")
    ]
    assert counted == [1, 7]


def test_h_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "evaluate", "-h") == run(capsys, "evaluate", "--help")
