"""A run can be looked at afterwards, and its policy gives the logged actions again."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import robot_cases

pytest.importorskip("jax")

from alohas2r.cli import app
from alohas2r.deployment import replay
from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.deploy import deploy
from alohas2r.deployment.log import LogWriter, Run, read_run
from alohas2r.deployment.rig import RigConfig
from alohas2r.errors import ArtifactError


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two short episodes of an exported student on simulated arms."""
    path = tmp_path_factory.mktemp("run") / "one.run"
    rig = RigConfig("sim", stepped=True, stub_cameras=True, seed=3)
    config = DeployConfig(mode="full", episodes=2, episode_s=0.6)
    result = deploy(rig, config, robot_cases.student(tmp_path_factory), log=path)
    assert result["episodes"] == 2
    assert result["timing"]["steps"] == 24
    return path


def rewrite(run: Run, path: pathlib.Path, shift: float = 0.0, **header: object) -> pathlib.Path:
    """Writes a run again, with its actions moved or its header changed."""
    with LogWriter(path, {**run.header, **header}) as log:
        for step in run.steps:
            arrays = dict(step.arrays)
            arrays["action"] = arrays["action"] + shift
            log.write("step", step.values, arrays)
    return path


def test_the_policy_gives_the_logged_actions_to_the_bit(log: pathlib.Path) -> None:
    run = read_run(log)
    file = run.header["policy"]
    found = replay.reproduce(run, file)
    assert found == replay.Reproduction(file, True, 0.0, True)


def test_other_actions_and_other_policies_are_told(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = read_run(log)
    moved = read_run(rewrite(run, tmp_path / "moved.run", shift=0.01))
    found = replay.reproduce(moved, run.header["policy"])
    assert found.difference == pytest.approx(0.01, rel=1e-3)
    assert not found.reproduced
    other = read_run(rewrite(run, tmp_path / "other.run", policy_hash="0"))
    assert not replay.reproduce(other, run.header["policy"]).same_policy


def test_everything_is_drawn(log: pathlib.Path, tmp_path: pathlib.Path) -> None:
    import av

    result = replay.replay(log, tmp_path)
    assert result["written"] == [str(tmp_path / "plots.png"), str(tmp_path / "video.mp4")]
    assert result["skipped"] == []
    assert result["policy"]["reproduced"]
    assert result["steps"] == 24
    assert "rate_hz" not in result  # a stepped run has no pace
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")
    with av.open(str(tmp_path / "video.mp4")) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(pictures) == 24
    assert pictures[0].shape == (512, 512, 3)
    assert np.std(pictures[0]) > 10


def test_what_cannot_be_done_is_said(
    log: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(log)
    moved_away = rewrite(run, tmp_path / "moved.run", policy="ws://there:8000")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "av", None)
    result = replay.replay(moved_away)
    assert result["policy"] is None
    assert result["written"] == []
    plots, video, policy = result["skipped"]
    assert "alohas2r[train]" in plots
    assert video.startswith("video: ")
    assert "ws://there:8000" in policy
    with LogWriter(tmp_path / "empty.run", run.header):
        pass
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="no control steps"):
        replay.plot(read_run(tmp_path / "empty.run"), tmp_path / "plots.png")


def test_a_run_that_was_cut_off_is_replayed_up_to_there(
    log: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = log.read_bytes()
    cut = tmp_path / "cut.run"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    run = read_run(cut)
    assert 0 < len(run.steps) < 24
    assert replay.reproduce(run, run.header["policy"]).difference == 0.0


def test_the_command_exits_by_whether_the_actions_come_out(
    log: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert app.main(["replay", str(log), *out, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"]["difference"] == 0.0
    assert result["complete"] is True
    moved = rewrite(read_run(log), tmp_path / "moved.run", shift=0.01)
    assert app.main(["replay", str(moved), *out]) == 1
    captured = capsys.readouterr()
    assert "differ from the logged ones by 0.01" in captured.err
    assert "milliseconds" in captured.out
    assert app.main(["replay", str(tmp_path / "none.run")]) == 1
    assert "none.run" in capsys.readouterr().err


def test_a_page_shows_the_run(
    log: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    out, page = str(tmp_path / "out"), tmp_path / "page"
    assert app.main(["replay", str(log), "--out", out, "--report", str(page)]) == 0
    assert "index.html" in capsys.readouterr().err
    text = (page / "index.html").read_text()
    for part in (
        "24 control steps",
        "left/waist",
        "right/gripper",
        "data:video/mp4",
        "alohas2r replay",
    ):
        assert part in text
    assert text.count("<svg") == 15  # the joints, and the timing
