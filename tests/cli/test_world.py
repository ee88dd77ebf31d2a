"""`alohas2r world check`: what a table maps, and how a world differs from ours."""

from __future__ import annotations

import json
import pathlib

import pytest
from opengl_cases import skip_without_opengl
from world_cases import write_foreign

from alohas2r.cli import app
from alohas2r.core.types import JsonObject


@pytest.fixture(autouse=True)
def opengl() -> None:
    skip_without_opengl()


def check(capsys: pytest.CaptureFixture[str], path: pathlib.Path, *more: str) -> JsonObject:
    assert app.main(["world", "check", str(path), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_copy_of_our_scene_differs_in_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "views.png"
    result = check(capsys, write_foreign(tmp_path), "--out", str(picture))
    assert result["mapped"]["left/elbow"] == "their_left/elbow"
    assert result["kinematics"]["most_beyond_that_mm"] < 0.01
    assert result["kinematics"]["most_beyond_that_deg"] < 0.01
    assert abs(result["table_above_own_mm"]) < 0.1
    for side in ("left", "right"):
        assert result["cameras"][side]["apart_mm"] < 0.1
        assert result["cameras"][side]["fovy_deg"] == 58
        assert abs(result["gripper"][side]["world_travel_reads_too_little_by_mm"]) < 0.01
    for response in result["step_responses"].values():
        assert response["own_63_s"] == pytest.approx(response["world_63_s"], abs=2e-3)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_wrong_signs_and_travel_are_found(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        'gripper = { joints = ["their_left/left_finger", "their_left/right_finger"],'
        " travel = [[0.0, -0.0014], [0.041, 0.0396]] }"
    )
    signs = "signs = [1, 1, 1, 1, -1, 1]\noffsets = [0, 0, 0.3, 0, 0, 0]"  # roll is flipped there
    path = write_foreign(tmp_path, left_gripper=wrong, left_signs=signs)
    result = check(capsys, path)
    assert result["kinematics"]["most_beyond_that_deg"] > 5
    assert result["gripper"]["left"]["world_travel_reads_too_little_by_mm"] == pytest.approx(
        1.4, abs=0.05
    )
    assert result["gripper"]["right"]["world_travel_reads_too_little_by_mm"] == pytest.approx(
        0, abs=0.05
    )


def test_shipped_worlds_are_listed_and_bad_names_answered(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["world", "list"]) == 0
    assert "gym-aloha\n" in capsys.readouterr().out
    assert app.main(["world", "check", "gym-alohas"]) == 1
    error = capsys.readouterr().err
    assert "Did you mean 'gym-aloha'" in " ".join(error.split())
