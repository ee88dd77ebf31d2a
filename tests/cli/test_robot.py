"""The commands that look at real arms and set them up, on emulated ones."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from alohas2r.cli import app
from alohas2r.deployment import arm_setup, delays, monitoring, probe, robot_file
from alohas2r.deployment.delays import Measured, Shift
from alohas2r.embodiment.joints import JOINTS
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig

pytest.importorskip("dynamixel_sdk")

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def stepped() -> Iterator[Emulator]:
    with Emulator(EmulatorConfig(realtime=False, set_up=True)) as emulator:
        yield emulator


@pytest.fixture
def emu(stepped: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Emulator:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(monitoring, "PATIENT_S", 0.5)
    monkeypatch.setattr(arm_setup, "SLOW_REPLY_S", 0.5)
    stepped.reset()
    return stepped


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_setup_arms_shows_each_change_and_writes_only_when_told(capsys, emu, monkeypatch):
    ports = ("--ports", *emu.ports)
    code, out, _ = run(capsys, "setup-arms", *ports)
    assert (code, "as it must be" in out) == (0, True)
    emu.poke("left", 1, "PWM_Limit", 200)
    emu.poke("right", 5, "Shutdown", 0)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, out, err = run(capsys, "setup-arms", *ports)
    assert (code, "Nothing was written" in err) == (1, True)
    for word in ("PWM_Limit", "200", "885", "Shutdown", "elbow_shadow"):
        assert word in out
    assert emu.peek("left", 1, "PWM_Limit") == 200
    code, out, _ = run(capsys, "setup-arms", *ports, "--side", "right", "--yes", "--json")
    assert code == 0
    assert [one["setting"] for one in json.loads(out)["changes"]] == ["Shutdown"]
    assert (emu.peek("left", 1, "PWM_Limit"), emu.peek("right", 5, "Shutdown")) == (200, 52)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    code, _, err = run(capsys, "setup-arms", *ports)
    assert (code, "Wrote and verified 1" in err) == (0, True)
    assert emu.peek("left", 1, "PWM_Limit") == 885
    assert run(capsys, "setup-arms", *ports, "--json")[0] == 1


def test_setup_robot_adds_step_by_step_and_the_others_read_it(capsys, emu):
    code, out, err = run(capsys, "setup-robot", "--ports", *emu.ports)
    assert (code, "--cameras" in err) == (0, True)
    assert run(capsys, "setup-robot", "--cameras", "111", "222", "--upside-down", "left")[0] == 0
    code, _, err = run(capsys, "setup-robot", "--gripper-closed", "148.5", "0")
    assert (code, "-0.55 rad" in err) == (1, True)
    code, out, err = run(
        capsys, "setup-robot", "--gripper-closed", "-0.5", "-0.4", "--base-distance", "0.938"
    )
    assert (code, "gripper_closed_rad = -0.5" in out, "--table-height" in err) == (0, True, True)
    for word in emu.ports[0], '"111"', "upside_down = true", "0.938":
        assert word in out
    code, out, _ = run(capsys, "setup-robot", "--table-height", "-0.02", "--json")
    (last,) = json.loads(out)["next"]
    assert "alohas2r measure-delay" in last
    code, out, _ = run(capsys, "monitor", "--json")  # finds the arms by the file
    assert code == 0


def test_grippers_are_measured(capsys, emu, monkeypatch):
    monkeypatch.setattr(
        monitoring, "gripper_angles", functools.partial(lambda ports: (-0.51, -0.5))
    )
    code, out, _ = run(capsys, "setup-robot", "--ports", *emu.ports, "--measure-grippers")
    assert (code, "-0.51" in out) == (0, True)


def test_the_monitor_shows_every_joint_and_writes_nothing(capsys, emu):
    emu.poke("right", 3, "Homing_Offset", 50)
    emu.overload("left", 4)
    emu.feed("right", 11.0)
    before = emu.state()
    code, out, _ = run(capsys, "monitor", "--ports", *emu.ports, "--json")
    assert code == 0
    report = json.loads(out)
    rows = {one["joint"]: one for one in report["joints"]}
    assert list(rows) == list(JOINTS)
    assert rows["left/elbow"]["words"] == "servo 4: overload"
    assert rows["right/shoulder"]["pair_gap_deg"] == pytest.approx(50 * 360 / 4096, abs=0.2)
    assert rows["right/waist"]["voltage_v"] == pytest.approx(11.0)
    assert rows["left/gripper"]["unit"] == "mm"
    assert rows["left/waist"]["torque"] is False
    assert any("degrees apart" in note for note in report["notes"])
    assert set(emu.instructions("left")) == {0x82}  # reads alone
    assert (emu.state().torque == before.torque).all()
    code, out, _ = run(capsys, "monitor", "--ports", *emu.ports, "--seconds", "0.2")
    assert (code, "overload" in out, "left/elbow" in out) == (0, True, True)


def test_measured_delays_are_written_and_a_robot_that_is_too_late_is_refused(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    times = np.linspace(0, 1, 9)
    sides = [
        Measured(side, Shift(0.021, 0.99), Shift(picture_s, 0.97), *[times] * 5)
        for side, picture_s in (("left", 0.04), ("right", 0.31))
    ]
    asked = []
    monkeypatch.setattr(probe, "probe", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(delays, "measure", lambda _: tuple(sides))
    monkeypatch.setattr(delays, "draw", lambda _, folder: folder / "delays.png")
    code, _, _ = run(capsys, "setup-robot", "--cameras", "111", "222")
    assert code == 0
    code, out, _ = run(capsys, "measure-delay", "--joint", "waist", "--out", "d", "--json")
    assert code == 0
    assert json.loads(out)["right"]["picture_delay_s"] == 0.31
    rig, log, joint, fast = asked[0]
    assert (rig.robot, rig.serials, str(log)) == ("aloha", ("111", "222"), "d/delay.run")
    assert (joint, fast) == ("waist", False)
    known = robot_file.load()
    assert known is not None
    assert (known.serials, known.delays[1]) == (("111", "222"), ("right", 0.021, 0.31))
    student = pathlib.Path(__file__).parents[2] / "params/student/policy.onnx"
    code, _, err = run(capsys, "deploy", "--robot", "aloha", "--policy", str(student))
    assert code == 1
    assert "the right camera shows after 310 ms, beyond the 150 ms of training" in err
    code, _, err = run(
        capsys, "deploy", "--robot", "aloha", "--any-delay", "--policy", str(student)
    )
    assert code == 1
    assert "training" not in err  # it goes on to look for the arms
