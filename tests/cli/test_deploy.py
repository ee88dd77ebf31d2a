"""The commands around arms, from the command line down to the emulated wires."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import robot_cases
import typer.main

pytest.importorskip("dynamixel_sdk")

from alohas2r.cli import app
from alohas2r.deployment import config as deploy_config
from alohas2r.deployment import rig
from alohas2r.deployment.log import read_run
from alohas2r.robots.dynamixel.arm import DynamixelConfig
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.realsense import config as realsense_config
from alohas2r.robots.realsense.camera import RealSenseCamera
from alohas2r.safety.config import SafetyConfig
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles
COMMANDS = (
    *("deploy", "emulate-robot", "record-camera", "replay", "doctor", "torque-off"),
    *("setup-arms", "setup-robot", "monitor", "measure-delay", "check-cameras"),
)
INSERT = scene.load("insert")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def stepped() -> Iterator[Emulator]:
    with Emulator(EmulatorConfig(realtime=False, set_up=True)) as emulator:
        yield emulator


@pytest.fixture
def emu(stepped: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    # The commands reckon with servos, which answer sooner than an emulator on a busy machine.
    patient = functools.partial(DynamixelConfig, reply_timeout_s=0.5)
    patient.ports = DynamixelConfig.ports  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(rig, "DynamixelConfig", patient)
    monkeypatch.setattr("alohas2r.robots.dynamixel.arm.DynamixelConfig", patient)
    stepped.reset()
    return stepped


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_option_is_for(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    rows = [line.split("│") for line in out.splitlines() if "--" in line and "│" in line]
    assert rows
    for _, row, _ in rows:
        assert len(row.split()) >= 3


@pytest.mark.parametrize("page", ["deploy.md", "safety.md"])
def test_every_command_of_the_documentation_exists_as_written(page: str) -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / page).read_text()
    written = re.findall(r"(?:^ *|`)alohas2r ([a-z][^`#\n]*)", text.replace("\n--", " --"), re.M)
    assert written
    group: Any = typer.main.get_command(app.app)
    for line in written:
        name, *arguments = shlex.split(line)
        # Parses, and complains about what is missing or unknown, but runs nothing.
        group.commands[name].make_context(name, arguments)
    # What reads like an option is one.
    options = [one.opts for command in group.commands.values() for one in command.params]
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= {name for names in options for name in names}


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["deploy"], 2, ["'--robot'"]),
        (["deploy", "--robot", "aloah"], 2, ["'aloah'", "'aloha'"]),
        (["deploy", "--robot", "sim"], 1, ["--policy FILE", "--server URL"]),
        (["deploy", "--robot", "sim", "--policy", "x", "--server", "y"], 1, ["one of"]),
        (["deploy", "--robot", "sim", "--policy", "none.onnx"], 1, ["none.onnx", "export"]),
        (["deploy", "--robot", "sim", "--server", "127.0.0.1:9"], 1, ["127.0.0.1:9"]),
        (["deploy", "--robot", "aloha", "--policy", "x"], 1, ["serial numbers", "doctor"]),
        (
            ["deploy", "--robot", "sim", "--ports", "a", "b", "--policy", "x"],
            1,
            ["--ports belongs to --robot aloha"],
        ),
        (
            ["deploy", "--robot", "aloha", "--seed", "7", "--policy", "x"],
            1,
            ["--seed belongs to simulated"],
        ),
        (
            ["deploy", "--robot", "sim", "--cameras", "1", "2", "--policy", "x"],
            1,
            ["draws its own pictures"],
        ),
        (
            ["deploy", "--robot", "aloha", "--cameras", "1", "2", "--stepped", "--policy", "x"],
            1,
            ["cannot be stepped"],
        ),
        (
            ["deploy", "--robot", "sim", "--reset-seconds", "5", "--policy", "x"],
            1,
            ["--reset-seconds belongs to real arms"],
        ),
        (["deploy", "--robot", "sim", "--mode", "fast", "--policy", "x"], 2, ["'dry-run'"]),
        (["record-camera", "out.bag"], 1, ["must end in .db3"]),
        (["record-camera", "out.db3", "--simulated", "left", "--serial", "1"], 1, ["--serial"]),
        (["torque-off", "--reboot", "left4"], 1, ["left:ID"]),
        (["torque-off", "--reboot", "left:10"], 1, ["1..9"]),
        (["torque-off"], 1, ["/dev/ttyDXL_follower_left", "Plug in"]),
        (["torque-off", "--ports", "x", "x"], 1, ["same port"]),
        (["replay", "none.run"], 1, ["none.run"]),
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


def test_missing_arms_and_cameras_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = str(robot_cases.student(tmp_path_factory))
    monkeypatch.chdir(tmp_path)
    aloha = ["deploy", "--robot", "aloha", "--policy", file]
    monkeypatch.setattr(rig, "find_cameras", lambda: [])
    code, _, err = run(capsys, *aloha, "--cameras", "1", "2")
    assert (code, "1 or 2. Plugged in: none" in err) == (1, True)
    code, _, err = run(capsys, *aloha, "--recordings", "left.db3", "right.db3")
    assert (code, "no recording left.db3" in err) == (1, True)
    code, _, err = run(capsys, "deploy", "--robot", "aloha-ros", "--policy", file, *CAMERAS)
    assert code == 1
    assert not (tmp_path / "runs").exists()  # nothing ran, nothing is logged


CAMERAS = ("--cameras", "1", "2")


def test_a_missing_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = str(robot_cases.student(tmp_path_factory))
    for module in ("client", "messages"):
        monkeypatch.delitem(sys.modules, f"alohas2r.policies.remote.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    code, _, err = run(capsys, "deploy", "--robot", "sim", "--server", "127.0.0.1:9")
    assert (code, "pip install 'alohas2r[robot]'" in err) == (1, True)
    monkeypatch.setitem(sys.modules, "dynamixel_sdk", None)
    code, _, err = run(capsys, "deploy", "--robot", "emulated", "--policy", file, "--stepped")
    assert (code, "pip install 'alohas2r[robot]'" in err) == (1, True)


def test_two_stepped_episodes_through_the_bus_begin_like_those_of_evaluate(
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from alohas2r.embodiment.history import HistoryConfig
    from alohas2r.evaluation import episodes
    from alohas2r.tasks.protocol import EVAL_V1, modified
    from alohas2r.tasks.registry import find_task

    short = modified(EVAL_V1, seconds=0.5)
    file = robot_cases.student(tmp_path_factory)
    log = tmp_path / "emulated.run"
    code, out, _ = run(
        capsys,
        "deploy",
        "--robot",
        "emulated",
        "--policy",
        str(file),
        "--episodes",
        "2",
        "--stepped",
        "--seed",
        "7",
        "--seconds",
        "0.5",
        "--log",
        str(log),
        "--json",
    )
    assert code == 0
    result = json.loads(out)
    assert (result["episodes"], result["aborted"], result["ended"]) == (2, 0, "run")
    assert (result["protocol"], result["protocol_hash"]) == (short.name, short.hash)
    assert result["timing"]["steps"] == 20
    assert result["success"]["rate"] == 0.0  # untrained, and half a second is short
    assert [len(column) for column in result["table"].values()] == [2] * len(result["table"])
    found = read_run(log)
    keys = episodes.episode_keys(7, 0, 2)
    env = episodes.set_up(find_task("insert"), EVAL_V1, HistoryConfig(()), keys, threads=1).env
    starts = np.asarray(env.reset(keys)[2].qpos)
    joints = np.concatenate([arm.qpos[:7] for arm in INSERT.arms])
    first = [step for step in found.steps if step.values["episode_start"]]
    assert len(first) == 2
    for step, start in zip(first, starts, strict=True):
        np.testing.assert_allclose(step.arrays["position"], start[joints], atol=1e-3)
    assert np.abs(starts[0] - starts[1]).max() > 0.01
    pictures = [step.arrays["observation/left_rgb"] for step in first]
    assert pictures[0].std() > 5
    assert not np.array_equal(pictures[0], pictures[1])  # another object in another place
    code, out, _ = run(capsys, "replay", str(log), "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    assert json.loads(out)["policy"]["difference"] == 0.0


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Recordings of both simulated wrist cameras, made by the command."""
    folder = tmp_path_factory.mktemp("recordings")
    files = (str(folder / "left.db3"), str(folder / "right.db3"))
    for side, file in zip(("left", "right"), files, strict=True):
        flags = ("--simulated", side, "--seconds", "1", "--size", "48")
        assert app.main(["record-camera", file, *flags]) == 0
    return files


def test_a_simulated_recording_shows_what_its_camera_sees(recordings: tuple[str, str]) -> None:
    pictures = []
    for side, file in zip(("left", "right"), recordings, strict=True):
        with RealSenseCamera(side, recording=file, realtime=False) as camera:
            frames = [camera.read(1.0) for _ in range(10)]
        assert frames[0].rgb.shape == (32, 32, 3)
        assert 0.03 < frames[0].depth[frames[0].depth > 0].min() < 0.4
        assert not np.array_equal(frames[0].rgb, frames[9].rgb)  # the arm sways
        pictures.append(frames[0].rgb)
    assert not np.array_equal(pictures[0], pictures[1])


def test_shadow_mode_on_serial_ports_and_recordings_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    emu: Emulator,
    recordings: tuple[str, str],
    tmp_path: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.chdir(tmp_path)
    busy = SafetyConfig(
        missed_deadlines=1000, patience_s=60, proprio_age_s=30, silent_s=60, frame_age_s=60
    )
    monkeypatch.setitem(deploy_config.LIMITS, "shadow", busy)  # the machine may be
    code, out, err = run(
        capsys,
        "deploy",
        "--robot",
        "aloha",
        "--mode",
        "shadow",
        "--seconds",
        "0.3",
        "--json",
        "--policy",
        str(robot_cases.student(tmp_path_factory)),
        "--ports",
        *emu.ports,
        "--recordings",
        *recordings,
    )
    assert code == 0, err
    result = json.loads(out)
    assert (result["robot"], result["mode"], "protocol" in result) == ("aloha", "shadow", False)
    for side in ("left", "right"):
        assert set(emu.instructions(side)) <= {1, 2, 0x82}  # reads alone
    assert not emu.state().torque.any()
    (log,) = (tmp_path / "runs/deploy").iterdir()  # real arms always log
    assert len(read_run(log).steps) == 6


@contextlib.contextmanager
def passing(emu: Emulator) -> Iterator[None]:
    """Lets a stepped emulator's time pass from another thread."""
    done = threading.Event()

    def tick() -> None:
        with Emulator(directory=emu.directory) as clock:
            while not done.wait(0.01):
                clock.step()

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        yield
    finally:
        done.set()
        ticking.join()


def test_torque_goes_off_at_rest_or_by_explicit_wish(
    capsys: pytest.CaptureFixture[str], emu: Emulator
) -> None:
    for side in ("left", "right"):
        for servo in range(1, 10):
            emu.poke(side, servo, "Torque_Enable", 1)
    ports = ("--ports", *emu.ports)
    code, _, err = run(capsys, "torque-off", *ports)
    assert (code, "not in the sleep pose" in err) == (1, True)
    assert emu.state().torque.all()
    emu.overload("left", 4)
    with passing(emu):  # a servo takes its time to come back
        code, _, err = run(capsys, "torque-off", *ports, "--anywhere", "--reboot", "left:4")
    assert (code, err) == (0, "Torque is off on both arms.\n")
    assert not emu.state().torque.any()
    assert emu.peek("left", 4, "Hardware_Error_Status") == 0


def test_emulated_arms_run_until_ctrl_c(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "alohas2r.cli", "emulate-robot", "--dir", str(tmp_path)]
    arms = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert arms.stderr is not None
        assert "Serial ports:" in arms.stderr.readline()
        with Emulator(directory=tmp_path) as emulator:
            first = emulator.state().time_s
            time.sleep(0.2)
            assert emulator.state().time_s > first
        os.kill(arms.pid, signal.SIGINT)
        assert arms.wait(20) == 0
    finally:
        arms.kill()
        arms.wait()
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_where_the_ports_are(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    codes: list[int] = []
    serving = threading.Thread(
        target=lambda: codes.append(app.main(["emulate-robot", "--dir", str(tmp_path)]))
    )
    serving.start()
    patience_s = time.monotonic() + 30
    while not (tmp_path / "control").exists() and time.monotonic() < patience_s:
        time.sleep(0.01)
    with Emulator(directory=tmp_path) as emulator:
        emulator.stop()
    serving.join(20)
    assert codes == [0]
    assert str(tmp_path / "left") in capsys.readouterr().err.replace("\n", "")


def test_a_recording_without_a_camera_says_what_is_plugged_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: [])
    code, _, err = run(capsys, "record-camera", str(tmp_path / "out.db3"))
    assert (code, "Plugged in: none" in err) == (1, True)
    assert not (tmp_path / "out.db3").exists()
