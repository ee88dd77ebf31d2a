"""A policy that sees pairs of pictures, on simulated arms and in front of recordings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types
from typing import Any

import numpy as np
import onnx_cases
import pytest

pytest.importorskip("jax2onnx")

from alohas2r.cli import app
from alohas2r.deployment import log as drive_log
from alohas2r.deployment import rig, terms
from alohas2r.deployment.observation import observe
from alohas2r.errors import ConfigError
from alohas2r.evaluation import served
from alohas2r.rendering import registry as renderers
from alohas2r.rendering import stereo
from alohas2r.robots import wrist_camera
from alohas2r.robots.base import Frame, Proprio
from alohas2r.safety.monitor import Level, Monitor

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return onnx_cases.exported("stereo", tmp_path_factory)[1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make = renderers.make

    def exact(name: str, source: Any, **options: Any) -> Any:
        """Draws by the caster that starts at once."""
        return make(name, source, **options, caster="mujoco")

    monkeypatch.setattr(renderers, "make", exact)


def deploy(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = app.main(["deploy", "--stepped", "--seconds", "0.3", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("robot", ["sim", "emulated"])
def test_simulated_cameras_draw_what_both_imagers_see(
    robot: str, file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "sim.run"
    code, out, err = deploy(
        capsys, "--robot", robot, "--policy", str(file), "--log", str(log), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["ended"] == "run"
    run = drive_log.read_run(log)
    assert len(run.steps) == 6
    for side in ("left", "right"):
        arrays = run.steps[-1].arrays
        grey = arrays[f"observation/{side}_grey"]
        left = stereo.luma(arrays[f"observation/{side}_rgb"])
        assert (grey.shape, grey.dtype) == ((16, 16), np.uint8)
        assert grey.std() > 5
        # What is near is seen further left by the right imager.
        assert (grey != left).mean() > 0.05
    code = app.main(["replay", str(log), "--out", str(tmp_path / "out"), "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["policy"]["difference"] == 0.0


@pytest.mark.long
def test_recordings_of_pairs_are_played_to_the_policy(
    file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyrealsense2")
    files = []
    for side in ("left", "right"):
        path = str(tmp_path / f"{side}.db3")
        flags = ("--simulated", side, "--seconds", "0.3", "--size", "32", "--stereo")
        assert app.main(["record-camera", path, *flags]) == 0
        files.append(path)
    capsys.readouterr()
    log = tmp_path / "played.run"
    code, _, err = deploy(
        capsys,
        "--robot",
        "sim",
        "--policy",
        str(file),
        "--recordings",
        *files,
        "--log",
        str(log),
    )
    assert code == 0, err
    arrays = drive_log.read_run(log).steps[0].arrays
    assert (arrays["observation/left_grey"] != arrays["observation/right_grey"]).any()


def test_a_policy_of_pairs_says_so(file: pathlib.Path) -> None:
    policy = terms.load_policy(file)
    wants = terms.terms(policy)
    assert wants.paired
    assert wants.size == 16

    said = {
        "policy": policy.hash,
        "actions": dict(policy.action),
        "switch": policy.description["switch"],
        "cameras": policy.description["cameras"],
    }
    client: Any = types.SimpleNamespace(url="ws://here", interface=policy.interface, metadata=said)
    spec = served.OwnDialect(client).spec
    assert spec.paired
    assert spec.cameras.size == 16


def test_what_pairs_cannot_be_taken_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="upside down"):
        rig.RigConfig("aloha", serials=("1", "2"), upside_down=(False, True), stereo=True)
    with pytest.raises(ConfigError, match="foreign world"):
        rig.RigConfig("sim", world="gym-aloha", stereo=True)


def test_a_right_imager_that_goes_dark_stops_the_arms() -> None:
    draw, found = np.random.default_rng(0), []
    monitor = Monitor()
    for step in range(2 * monitor.config.black_steps):
        depth = np.full((8, 8), 0.2, np.float32)
        rgb = draw.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
        frames = {
            side: wrist_camera.drawn_frame(rgb, np.stack([depth] * 4), index, step)
            for index, side in enumerate(("left", "right"))
        }
        left = frames["left"]
        assert left.grey is not None
        frames["left"] = dataclasses.replace(left, grey=np.zeros_like(left.grey))
        found += monitor.frames(frames, np.zeros(14), frames["left"].time_s)
    assert {(one.kind, one.level) for one in found} == {("black camera", Level.HOLD)}
    assert all("left camera's grey is black" in one.text for one in found)


def test_an_observation_holds_grey_where_a_camera_gives_it() -> None:
    zero = np.zeros(14)
    reading = Proprio(0.0, zero, zero, zero, zero, zero, zero, zero)
    pair = Frame(
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((8, 8), np.float32),
        0.0,
        0,
        grey=np.eye(8, dtype=np.uint8),
    )
    both = observe(reading, {"left": pair, "right": pair}, zero, False)
    np.testing.assert_array_equal(both["right_grey"], np.eye(8))
    plain = dataclasses.replace(pair, grey=None)
    assert "left_grey" not in observe(reading, {"left": plain, "right": pair}, zero, False)
