"""Episodes in foreign worlds: the same starts, stages and figures as at home."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import robot_cases
from stop_cases import StopAfter
from world_cases import write_foreign

from alohas2r.cli import app
from alohas2r.core.assets import data_path
from alohas2r.deployment.worlds import REACHABLE, WorldTrials, evaluate_world
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.errors import ArtifactError, ConfigError, Interrupted
from alohas2r.policies.artifact import load
from alohas2r.robots.worlds.world import World
from alohas2r.tasks.protocol import EVAL_V1

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_foreign(tmp_path_factory.mktemp("world"))


def test_the_teacher_does_elsewhere_what_it_does_at_home(foreign: pathlib.Path) -> None:
    teacher = data_path("params") / "teacher"
    home = evaluate_world(teacher, "own-contact", 1, seed=7)
    with pytest.raises(Interrupted, match="1 of 3 episodes") as caught:
        evaluate_world(teacher, foreign, 3, seed=7, stop=StopAfter(1))
    abroad = caught.value.result
    assert abroad is not None
    assert abroad["of"] == 3
    assert (home["world"], abroad["world"]) == ("own-contact", "foreign")
    assert home["world_hash"] != abroad["world_hash"]
    for result in (home, abroad):
        assert result["protocol"] == "eval-v1+half"
        assert result["protocol_hash"] == REACHABLE.hash != EVAL_V1.hash
        assert result["success"]["rate"] == 1
        assert result["deep"]["rate"] == 0
        stages = {name: rate["rate"] for name, rate in result["stages"].items()}
        assert stages["grasped_both"] == stages["lifted_both"] == stages["switched"] == 1
        assert 15 < result["depth_mm"]["median"] < 28
        assert result["hand_on_other_n"]["median"] > 1
        assert len(result["table"]["success"]) == result["episodes"] == 1
    assert home["depth_mm"]["median"] == pytest.approx(abroad["depth_mm"]["median"], abs=2)
    assert home["table"]["time_to_success_s"] == pytest.approx(
        abroad["table"]["time_to_success_s"], abs=0.2
    )


def test_a_teacher_acts_at_its_own_scale() -> None:
    teacher = data_path("params") / "transfer" / "teacher"
    result = evaluate_world(teacher, "own-contact", 1, seed=7)
    scale = load(teacher).spec.action.scale
    assert scale < EVAL_V1.control.scale
    fastest = result["peak_joint_speed_rad_s"]["median"]
    assert 0.8 * scale < fastest * CONTROL_PERIOD_S < 1.3 * scale


def test_episodes_begin_where_evaluate_begins_them(foreign: pathlib.Path) -> None:
    world = World(foreign)
    trials = WorldTrials(world, 3, seed=5)
    for episode in (2, 0):
        targets = trials.begin(episode)
        np.testing.assert_allclose(world.position(), targets, atol=1e-6)
        poses, _ = world.objects()
        own = trials.reporter.scene
        for row, arm in enumerate(own.arms):
            start = trials.starts[episode][arm.object_qpos]
            np.testing.assert_allclose(poses[row, :3], start[:3], atol=1e-6)
        # What is measured there is what the own scene says of it.
        signals = np.asarray(trials.readout.qpos)
        np.testing.assert_allclose(signals, trials.starts[episode], atol=1e-5)


def test_what_is_no_policy_for_a_world_is_refused(foreign: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="no policy for the insertion"):
        evaluate_world(data_path("params") / "pick", foreign, 1)
    with pytest.raises(ConfigError, match="There is no world"):
        evaluate_world(data_path("params") / "teacher", "nowhere", 1)


def test_deploy_and_check_run_in_a_world(
    foreign: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = robot_cases.student(tmp_path_factory)
    run = ["deploy", "--robot", "sim", "--stepped", "--stub-cameras", "--policy", str(student)]
    options = ["--episodes", "1", "--seconds", "0.5", "--json", "--world", str(foreign)]
    assert app.main([*run, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["world"] == "foreign"
    assert result["episodes"] == 1
    assert app.main([*run[:2], "emulated", *run[3:], *options]) == 1
    assert "a world needs --robot sim" in capsys.readouterr().err


def test_a_world_takes_no_engine_or_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "params/teacher", "--world", "own", "--sweep", "latency"]
    assert app.main(arguments) == 1
    assert "--world has physics and pictures of its own" in capsys.readouterr().err
