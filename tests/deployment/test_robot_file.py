"""The robot file says once what all commands around real arms need."""

import dataclasses

import pytest

from alohas2r.deployment import doctor, robot_file
from alohas2r.deployment.rig import RigConfig
from alohas2r.deployment.robot_file import ArmFile, CameraFile, RobotFile
from alohas2r.errors import ConfigError

FULL = RobotFile(
    ArmFile("/dev/one", -0.55),
    ArmFile("/dev/two", -0.5),
    CameraFile("111", upside_down=True),
    CameraFile("222"),
    base_distance_m=0.938,
    table_height_m=-0.02,
    exposure_us=900.0,
    stream_size=(848, 480),
)


def test_what_is_written_is_read(tmp_path):
    for robot in (FULL, RobotFile()):
        path = robot_file.save(robot, tmp_path / "robot.toml")
        assert robot_file.load(path) == robot


def test_options_come_before_the_file(tmp_path):
    settings = robot_file.rig_settings(FULL)
    rig = RigConfig("aloha", **settings)
    assert (rig.ports, rig.serials) == (("/dev/one", "/dev/two"), ("111", "222"))
    assert (rig.upside_down, rig.stream_size) == ((True, False), (848, 480))
    assert [one.travel(angle) for one, angle in zip(rig.linkages, (-0.55, -0.5), strict=True)] == (
        pytest.approx([0.0079, 0.0079])
    )
    given = robot_file.rig_settings(FULL, ports=("a", "b"), serials=("1", "2"), exposure_us=50.0)
    assert (given["ports"], given["serials"], given["exposure_us"]) == (
        ("a", "b"),
        ("1", "2"),
        50.0,
    )
    assert robot_file.rig_settings(FULL, cameras=False)["serials"] is None
    assert robot_file.rig_settings(None)["ports"] == RobotFile().ports


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("left = 3", "left"),
        ('[left]\nport = ""', "port"),
        ("[left]\nport = 'x'\ngripper_closed_rad = 148.5", r"-0\.55 rad"),
        ("base_distance_m = 938", "0.3..2.0 m"),
        ("table_height_m = 20.0", "m"),
        ("exposure_us = 0.5", "µs"),
        ("stream_size = [500, 300]", "480 x 270"),
        ("tabel_height_m = 0.0", "Did you mean 'table_height_m'"),
        ("left = [", "cannot be read"),
        ("[left]\nport='x'\n[right]\nport='x'", "same port"),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(tmp_path, text, words):
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        robot_file.load(path)
    assert str(path) in str(refused.value)


def test_a_file_that_was_asked_for_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert robot_file.load() is None
    with pytest.raises(ConfigError, match="setup-robot"):
        robot_file.load("none.toml")
    monkeypatch.setenv("ALOHAS2R_ROBOT", str(tmp_path / "other.toml"))
    with pytest.raises(ConfigError, match=r"other\.toml"):
        robot_file.load()


def test_the_doctor_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "gl", lambda: iter(()))
    monkeypatch.setattr(
        doctor, "wrist_cameras", lambda serials: iter([doctor.Line("asked", "pass", str(serials))])
    )
    path = robot_file.save(dataclasses.replace(FULL, base_distance_m=0.8), tmp_path / "robot.toml")
    lines = {line.name: line for line in doctor.examine(robot_file=path)}
    assert lines["robot file"].status == "pass"
    assert lines["base distance"].status == "warn"
    assert lines["table height"].status == "pass"
    assert lines["asked"].text == "('111', '222')"
    assert (lines["left port"].status, "/dev/one" in lines["left port"].text) == ("fail", True)
    path.write_text("oops")
    (line,) = [one for one in doctor.examine(robot_file=path) if one.name == "robot file"]
    assert line.status == "fail"
