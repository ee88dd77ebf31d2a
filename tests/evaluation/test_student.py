from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import student_cases
from opengl_cases import skip_without_opengl
from stop_cases import StopAfter

from alohas2r.cli import app
from alohas2r.core import stats
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs.vision import Seen
from alohas2r.errors import ArtifactError, ConfigError, Interrupted
from alohas2r.evaluation import episodes, evaluate, hold_out, paired, video
from alohas2r.evaluation.video import FilmConfig
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim import scene
from alohas2r.tasks import protocol
from alohas2r.tasks.protocol import EVAL_V1

EPISODES = 2
STEPS = 8
SHORT = protocol.modified(EVAL_V1, seconds=STEPS * 0.05)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


def draw_student(gripper: float | None = None) -> StudentPolicy:
    """An untrained student, or one that only moves both grippers: closing below 0, opening above."""
    network = StudentNetworkConfig(hidden=(16,), filters=(4, 4, 8), embedding=8)
    spec = policies_spec.make_spec(
        scene.load("insert"),
        "rgbd",
        network,
        CameraSpec(),
        HistoryConfig((0.3,)),
        student_cases.staged().switch,
        0.02,
    )
    params = vision_network.init(spec, jax.random.PRNGKey(0))
    weights = vision_network.flatten(params, np.zeros(spec.features), np.ones(spec.features))
    draw = np.random.default_rng(0)
    kernel = "head/layer1/kernel"
    weights[kernel] = draw.normal(0, 0.3 if gripper is None else 0.0, weights[kernel].shape)
    bias = np.zeros(14)
    bias[[6, 13]] = 0.0 if gripper is None else gripper
    weights["head/layer1/bias"] = bias
    return StudentPolicy(spec, weights, {})


def save(found: StudentPolicy, folder: pathlib.Path) -> pathlib.Path:
    draw = np.random.default_rng(1)
    rows: dict[str, np.ndarray] = {}
    for name, (shape, dtype, _) in found.spec.inputs.items():
        values = draw.random((3, *shape)) * (255 if dtype == "uint8" else 1)
        rows[name] = (values > 0.5) if dtype == "bool" else values.astype(dtype)
    return artifact.save(found, folder / "student", rows)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return save(draw_student(), tmp_path_factory.mktemp("students"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return student_cases.save_teacher(tmp_path_factory.mktemp("teachers") / "teacher")


def test_a_student_gets_the_rows_and_the_starts_of_a_teacher(
    saved: pathlib.Path, teacher: pathlib.Path
) -> None:
    keys = episodes.episode_keys(5, 0, EPISODES)
    recorded: list[Seen] = []
    found = artifact.load(saved, StudentPolicy)
    runner = evaluate.Runner(found, SHORT, keys, 1, "exact", recorded=recorded)
    table, qpos, *_ = runner.run()
    staged = student_cases.staged()
    expected, teacher_qpos, *_ = evaluate.run(staged, SHORT, keys, 1)
    assert table.keys() == expected.keys()
    assert qpos.shape == teacher_qpos.shape == (STEPS, EPISODES, 30)
    np.testing.assert_array_equal(qpos[0], teacher_qpos[0])
    assert (qpos[-1] != teacher_qpos[-1]).any()
    for name, column in table.items():
        assert column.shape == (EPISODES,), name
    np.testing.assert_allclose(table["peg_mm"], 20)
    # Every look of an episode is its own, and both cameras see something.
    assert len(recorded) == STEPS
    first = recorded[0]
    assert first.rgb is not None
    assert first.depth is not None
    assert first.rgb.shape == (EPISODES, 2, 32, 32, 3)
    assert first.rgb.std() > 5
    assert (first.depth > 0).mean() > 0.3
    # The same episodes again, and an episode beside others.
    again = evaluate.run(found, SHORT, keys, 2, "exact").table
    for name, column in table.items():
        np.testing.assert_array_equal(again[name], column, err_msg=name)


@pytest.mark.long
def test_a_gripper_that_closes_where_nothing_is_is_counted() -> None:
    keys = episodes.episode_keys(5, 0, EPISODES)
    closing, still = draw_student(-10.0), draw_student(-10.0)
    second = protocol.modified(EVAL_V1, seconds=1)  # until the fingers are closed
    still.weights["head/layer1/bias"] = np.zeros(14, np.float32)
    tables = [
        evaluate.Runner(
            found,
            second,
            keys,
            1,
            "exact",
            setting=hold_out.set_up_hold_out(found.spec, second, keys, 1),
        )
        .run()
        .table
        for found in (closing, still)
    ]
    assert tables[0]["closed_on_air"].all()
    assert not tables[1]["closed_on_air"].any()
    assert not tables[0]["other_lifted"].any()
    np.testing.assert_array_equal(tables[0]["missing_left"], tables[1]["missing_left"])


def test_evaluation_of_a_student_is_that_of_a_teacher_with_pictures(saved: pathlib.Path) -> None:
    result = evaluate.evaluate(saved, EPISODES, 5, 1, protocol=SHORT, renderer="exact")
    assert (result["protocol"], result["protocol_hash"]) == ("eval-v1+seconds=0.4", SHORT.hash)
    assert result["policy"] == artifact.load(saved, StudentPolicy).hash
    assert result["phase"] == "insert"
    assert result["success"] == stats.rate(0, EPISODES)
    assert result.keys() >= {"held_at_end", "dropped", "stages", "retries", "time_to_success_s"}


def test_paired_evaluation_compares_the_same_episodes(
    saved: pathlib.Path, teacher: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = paired.paired(saved, teacher, EPISODES, 5, 1, protocol=SHORT, renderer="exact")
    assert result["mcnemar"] == {"only_a": 0, "only_b": 0, "p": 1.0}
    assert result["difference"] == {"success": 0, "low": 0, "high": 0}
    assert result["first"]["policy"] == artifact.load(saved, StudentPolicy).hash
    assert result["second"]["policy"] == student_cases.staged().hash
    json.dumps(result)
    assert app.main(["evaluate", str(saved), "--paired", "params/pick"]) == 1
    assert "of the same task" in capsys.readouterr().err
    assert app.main(["evaluate", str(teacher), "--hold-out"]) == 1
    assert "is no student" in capsys.readouterr().err
    assert app.main(["evaluate", str(saved), "--hold-out", "--paired", "x"]) == 1
    assert "leave out" in capsys.readouterr().err


def test_the_interval_of_a_difference_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 episodes of 100 only the first solved, 10 only the second."""
    success = {"a": np.arange(100) < 50, "b": (np.arange(100) >= 30) & (np.arange(100) < 60)}

    policies = {name: student_cases.staged() for name in success}

    def result(policy: object, *_: Any, **named: Any) -> dict[str, Any]:
        del named
        (name,) = (name for name, one in policies.items() if one is policy)
        return {
            "table": {"success": success[name]},
            "protocol": "p",
            "protocol_hash": "h",
            "draws": "d",
        }

    monkeypatch.setattr(evaluate, "evaluate", result)
    monkeypatch.setattr(evaluate, "load_policy", policies.__getitem__)
    found = paired.paired("a", "b", 100)
    assert found["mcnemar"]["only_a"] == 30
    assert found["mcnemar"]["only_b"] == 10
    assert found["difference"]["success"] == pytest.approx(0.2)
    margin = 1.96 * math.sqrt((0.4 - 0.04) / 100)
    assert found["difference"]["high"] - 0.2 == pytest.approx(margin)


def test_hold_out_table(
    saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = save(draw_student(10.0), tmp_path)
    result = hold_out.evaluate_hold_out(opening, EPISODES, 3, 1, protocol=SHORT, renderer="exact")
    assert result["protocol"] == "eval-v1+seconds=0.4+hold-out"
    assert result["closed_on_air"] == stats.rate(0, EPISODES)
    table = result["table"]
    assert result["left"] == stats.rate(0, int(table["missing_left"].sum()))
    monkeypatch.setattr(
        hold_out, "chunks", lambda seed, count: evaluate.chunks(seed, count, EPISODES)
    )
    with pytest.raises(Interrupted, match="2 of 3 episodes") as caught:
        hold_out.evaluate_hold_out(
            opening, EPISODES + 1, 3, 1, protocol=SHORT, renderer="exact", stop=StopAfter(STEPS)
        )
    assert caught.value.result is not None
    assert caught.value.result["left"] == result["left"]
    with pytest.raises(ConfigError, match="episodes"):
        hold_out.evaluate_hold_out(saved, 0)
    with pytest.raises(ArtifactError):
        hold_out.evaluate_hold_out(saved / "nowhere")


def test_the_video_shows_the_scene_both_wrist_views_and_the_time(
    saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    av = pytest.importorskip("av")
    skip_without_opengl()
    short = protocol.modified(EVAL_V1, seconds=0.1)
    path = video.write_video(
        saved,
        tmp_path / "student.mp4",
        1,
        threads=1,
        renderer="exact",
        protocol=short,
        config=FilmConfig(1, height=96, width=128),
    )
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 2
    # In a border of 2 and between two lines of 8: scene, colour, depth; left camera above, right camera below.
    assert frames[0].shape == (96 + 2 * 8 + 2 * 2, 128 + 48 + 48 + 2 * 2, 3)
    shown = frames[0][10:-10, 2:-2]
    for part in (shown[:, :128], shown[:, 128:176], shown[:, 176:]):
        assert part.std() > 5
    # The time goes on: the line above is another one. What was not reached stays as it was.
    differs = [np.abs(frames[1][rows].astype(int) - frames[0][rows]).max() for rows in _LINES]
    assert differs[0] > 60
    assert differs[1] < 45


_LINES = (slice(3, 9), slice(-9, -3))  # of text, above and below
