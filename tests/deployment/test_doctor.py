"""The doctor finds what is wrong, says what to do, and does no harm."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

import pytest
import robot_cases

from alohas2r.cli import app
from alohas2r.deployment import doctor
from alohas2r.errors import BackendUnavailable, RobotFault
from alohas2r.robots.dynamixel.bus import Bus
from alohas2r.robots.emulator.bus import Faults
from alohas2r.robots.emulator.client import Emulator
from alohas2r.robots.emulator.server import EmulatorConfig
from alohas2r.robots.realsense import config as realsense_config
from alohas2r.robots.realsense.config import FoundCamera

pytest.importorskip("dynamixel_sdk")


@pytest.fixture(scope="module")
def stepped() -> Iterator[Emulator]:
    with Emulator(EmulatorConfig(realtime=False)) as emulator:
        yield emulator


@pytest.fixture
def emu(stepped: Emulator) -> Emulator:
    stepped.reset()
    return stepped


def by_name(lines: list[doctor.Line] | Iterator[doctor.Line]) -> dict[str, doctor.Line]:
    return {line.name: line for line in lines}


def test_a_machine_with_nothing_attached_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: [])
    lines = doctor.examine()
    assert [line for line in lines if line.status == "fail"] == []
    found = by_name(lines)
    for name in ("system", "cores", "packages", "packages [train]", "OpenGL", "GPU", "policy"):
        assert found[name].text
    for name in ("left port", "right port", "cameras"):
        assert found[name].status == "warn"
    for line in lines:
        assert line.remedy or line.status == "pass"


def test_what_was_asked_for_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: [])
    ports = (str(tmp_path / "left"), str(tmp_path / "right"))
    lines = doctor.examine(ports, tmp_path / "none.onnx", ("1", "2"))
    failed = {line.name for line in lines if line.status == "fail"}
    assert failed == {"left port", "right port", "cameras", "policy"}
    assert all(line.remedy for line in lines if line.status == "fail")


def test_healthy_arms_pass_and_nothing_is_written(emu: Emulator) -> None:
    found = by_name(doctor.arms(emu.ports))
    assert found["left port"].status == "pass"
    for side in ("left", "right"):
        servos = found[f"{side} servos"]
        assert servos.status == "pass"
        assert servos.text == "9 of 9, XM430-W350 and XM540-W270, firmware [46]"
        assert found[f"{side} health"] == doctor.Line(f"{side} health", "pass", "at most 35 C")
        assert set(emu.instructions(side)) <= {1, 2, 0x82, 0x92}  # reads alone


def test_sick_arms_are_told_apart(emu: Emulator) -> None:
    emu.poke("left", 4, "Model_Number", 1060)
    emu.overload("right", 7)
    emu.poke("right", 2, "Firmware_Version", 45)
    found = by_name(doctor.arms(emu.ports))
    assert found["left servos"].status == "fail"
    assert "servo 4 (elbow) is model 1060" in found["left servos"].text
    assert found["right firmware"].status == "warn"
    assert found["right health"].status == "fail"
    assert found["right health"].text == "servo 7: overload"
    assert "torque-off --reboot right:7" in found["right health"].remedy
    emu.reset()
    emu.heat("left", 3, 65)
    emu.poke("right", 8, "Firmware_Version", 37)
    found = by_name(doctor.arms(emu.ports))
    assert (found["left health"].status, found["left health"].text) == ("warn", "at most 65 C")
    assert found["right servos"].status == "fail"
    assert "firmware" in found["right servos"].remedy
    emu.reset()
    emu.set_faults("left", Faults(silent=(5,)))
    assert "5 (elbow_shadow)" in by_name(doctor.arms(emu.ports))["left servos"].text


def test_ports_in_use_or_forbidden(emu: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bus(emu.ports[0]):
        line = by_name(doctor.arms(emu.ports))["left servos"]
        assert (line.status, "in use" in line.text) == ("fail", True)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    line = by_name(doctor.arms(emu.ports))["right port"]
    assert line.status == "fail"
    assert "dialout" in line.remedy


@pytest.mark.parametrize(("timer", "status"), [("1\n", "pass"), ("16\n", "fail"), (None, "warn")])
def test_the_latency_timer_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, timer: str | None, status: str
) -> None:
    monkeypatch.setattr(doctor, "ADAPTERS", tmp_path / "sys")
    (tmp_path / "ttyUSB3").touch()
    (tmp_path / "ttyDXL_follower_left").symlink_to(tmp_path / "ttyUSB3")
    if timer is not None:
        (tmp_path / "sys/ttyUSB3").mkdir(parents=True)
        (tmp_path / "sys/ttyUSB3/latency_timer").write_text(timer)
    (line,) = doctor.latency("left", tmp_path / "ttyDXL_follower_left")
    assert line.status == status


GOOD = FoundCamera("111", "Intel RealSense D405", "5.15.1.0", "3.2")


@pytest.mark.parametrize(
    ("cameras", "asked", "statuses"),
    [
        ([GOOD, GOOD._replace(serial="222")], ("111", "222"), ["pass", "pass"]),
        ([GOOD, GOOD._replace(serial="222", usb="2.1")], ("111", "222"), ["pass", "fail"]),
        ([GOOD._replace(name="Intel RealSense D435")], None, ["warn", "warn"]),
        ([GOOD], ("111", "222"), ["pass", "fail", "warn"]),
    ],
)
def test_cameras_are_judged(
    monkeypatch: pytest.MonkeyPatch,
    cameras: list[FoundCamera],
    asked: tuple[str, str] | None,
    statuses: list[str],
) -> None:
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: cameras)
    assert [line.status for line in doctor.wrist_cameras(asked)] == statuses


def test_the_distance_of_a_cameras_imagers_must_be_that_of_the_simulated_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serials = ("111", "222", "333", "444")
    cameras = [GOOD._replace(serial=serial) for serial in serials]
    said = dict(zip(serials, (0.0181, 0.0195, 0.0499, None), strict=True))
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: cameras)
    monkeypatch.setattr(realsense_config, "baselines", lambda: said)
    found = by_name(doctor.wrist_cameras(None))
    lines = [found[f"camera {serial} baseline"] for serial in serials]
    assert [line.status for line in lines] == ["pass", "fail", "fail", "warn"]
    assert lines[0].text == "18.1 mm"
    assert "49.9 mm; the simulated pair's is 18.0 mm" in lines[2].text

    def fails() -> dict[str, float | None]:
        raise RobotFault("Librealsense cannot read the cameras' calibrations (no).")

    monkeypatch.setattr(realsense_config, "baselines", fails)
    line = by_name(doctor.wrist_cameras(None))["baselines"]
    assert (line.status, "cannot read" in line.text) == ("warn", True)


def test_missing_packages_and_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[FoundCamera]:
        raise BackendUnavailable("RealSense cameras need pyrealsense2.")

    monkeypatch.setattr(realsense_config, "find_cameras", missing)
    (line,) = doctor.wrist_cameras(None)
    assert (line.status, "pyrealsense2" in line.text) == ("warn", True)
    monkeypatch.setattr(doctor, "PACKAGES", {"": ("numpy",), "robot": ("no_such_package",)})
    found = by_name(doctor.packages())
    assert found["packages"].status == "pass"
    assert found["packages [robot]"].status == "warn"
    assert found["packages [robot]"].remedy == "pip install 'alohas2r[robot]'"
    monkeypatch.setenv("MUJOCO_GL", "none")
    (line,) = doctor.gl()
    assert line.status in ("pass", "warn")


def test_a_policy_is_loaded_and_verified(
    tmp_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = robot_cases.student(tmp_path_factory)
    (line,) = doctor.artifact(file)
    assert line.status == "pass"
    assert "pictures of 32 x 32" in line.text
    spoiled = tmp_path / "spoiled.onnx"
    spoiled.write_bytes(file.read_bytes()[:-1])
    (line,) = doctor.artifact(spoiled)
    assert line.status == "fail"


@pytest.mark.parametrize("as_json", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_command_exits_by_what_it_finds(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    as_json: bool,
) -> None:
    monkeypatch.setattr(realsense_config, "find_cameras", lambda: [])
    monkeypatch.setattr(doctor, "gl", lambda: iter(()))
    flags = ["--json"] if as_json else []
    assert app.main(["doctor", *flags]) == 0
    out = capsys.readouterr().out
    if as_json:
        report = json.loads(out)
        assert report["healthy"] is True
        assert {"name", "status", "text", "remedy"} == report["lines"][0].keys()
    else:
        assert "pass" in out
    assert app.main(["doctor", "--policy", str(tmp_path / "none.onnx"), *flags]) == 1
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["healthy"] is False
    else:
        assert "fail" in out
