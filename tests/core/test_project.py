"""`alohas2r init`: every file of the new project works."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from alohas2r.cli import app
from alohas2r.config import override
from alohas2r.core import project
from alohas2r.deployment import robot_file
from alohas2r.robots.worlds import table


def test_a_project_is_written_once_and_whole(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "pegs"
    assert app.main(["init", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(project.NAMES)
    assert "PROJECT" not in "".join(path.read_text() for path in folder.iterdir())
    capsys.readouterr()
    for taken in (folder, folder / "README.md"):
        assert app.main(["init", str(taken)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "name a new folder" in error
    (tmp_path / "empty").mkdir()
    assert app.main(["init", str(tmp_path / "empty")]) == 0


def test_its_robot_file_its_world_and_its_settings_are_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.create(tmp_path / "pegs")
    monkeypatch.chdir(tmp_path / "pegs")
    robot = robot_file.load()
    assert robot is not None
    assert robot.left.port.endswith("_left")
    read, model = table.read_table("world.toml")
    assert (read.name, read.look.table) == ("pegs", "wood")
    assert model.is_file()
    settings = tomllib.loads(pathlib.Path("project.toml").read_text())
    assert settings["world"] == "world.toml"
    pytest.importorskip("jax")
    from alohas2r.learning.dagger import config as dagger
    from alohas2r.learning.ppo import presets

    begun = {
        "train-teacher": presets.find_preset("insert", "default"),
        "distill": dagger.find_preset("default", "rgbd"),
    }
    shown = pathlib.Path("README.md").read_text().replace("\\\n", "")
    for name, preset in begun.items():
        (line,) = (line for line in shown.splitlines() if line.startswith(f"alohas2r {name}"))
        changes = [part.split('"')[1] for part in line.split("--set ")[1:]]
        assert override(preset, changes) != preset


@pytest.mark.long
def test_its_script_and_its_commands_run(tmp_path: pathlib.Path) -> None:
    project.create(tmp_path / "pegs")
    cli = [sys.executable, "-m", "alohas2r.cli"]
    outputs = [
        subprocess.run(
            command,
            cwd=tmp_path / "pegs",
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(project.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )
        for command in (
            [sys.executable, "measure.py", "--episodes", "2"],
            [*cli, "world", "check", "world.toml"],
            [*cli, "evaluate", "params/teacher", "--world", "world.toml", "--episodes", "1"],
            [*cli, "doctor"],
        )
    ]
    script, check, evaluated, doctor = outputs
    assert script.returncode == 0, script.stderr
    assert script.stdout.count("inserted ") == 4
    assert check.returncode == evaluated.returncode == 0, check.stderr + evaluated.stderr
    assert "fail  robot file" not in doctor.stdout
    assert "ttyDXL_follower_left" in doctor.stdout
