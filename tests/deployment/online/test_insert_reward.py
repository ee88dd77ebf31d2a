"""An insertion that is rewarded by a classifier: the truth is beside it, and evaluations go by the truth."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import online_cases
import pytest

from alohas2r.config import to_dict
from alohas2r.core.records import RecordReader
from alohas2r.deployment.online.deciders import Alone
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.director import Progress
from alohas2r.deployment.online.explorer import Phase
from alohas2r.deployment.online.inserter import Inserter
from alohas2r.deployment.online.learn import learn
from alohas2r.deployment.online.opened import shipped_base
from alohas2r.deployment.online.runs import LearnConfig, plan_run
from alohas2r.deployment.online.stage import Ended
from alohas2r.deployment.rig import RigConfig
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online import worker
from alohas2r.policies.online import published
from alohas2r.policies.online.classifier import (
    InsertReward,
    SuccessClassifier,
)
from alohas2r.policies.online.config import InsertRun, read_online_run
from alohas2r.policies.onnx.base import insert_spec, read_base

GRIPPERS = np.array([6, 7, 14, 15])


@pytest.fixture(scope="module")
def base():
    return read_base(shipped_base())


def observed(base) -> dict[str, np.ndarray]:
    """Returns what is seen while a student inserts and both grippers hold something."""
    seen = next(one for one in base.policy.examples() if one["switched"])
    felt = np.array(seen["proprioception"])
    felt[GRIPPERS], felt[16 + GRIPPERS] = 0.03, 0.02
    return {**seen, "proprioception": felt}


def acted(base, evaluation: bool, truth_from: int, sure: float = 20.0, steps: int = 20):
    """Returns what acted, and what it said in each step, with the peg in from a step on."""
    spec, steps_so_far = insert_spec(base), iter(range(1000))
    reward = InsertReward(online_cases.always(base, sure=sure))
    one = Inserter(spec, Alone(spec), base, lambda: next(steps_so_far) >= truth_from, 0.25, reward)
    one.begin((0,), False, evaluation)
    seen, said = observed(base), []
    while one.phase is not Phase.IDLE and len(said) < steps:
        one.act({**seen, "switched": np.array(len(said) >= 2)})
        said.append(one.notes().values)
    return one, said


def test_acting_ends_by_the_classifier_whatever_is_true(base):
    one, said = acted(base, False, truth_from=99)
    assert [row["proxy"] for row in said[:7]] == [False] * 2 + [True] * 5  # once it inserts
    assert [row["terminated"] for row in said] == [False] * 6 + [True] + [False] * 5
    assert [row["reward"] for row in said] == [float(row["terminated"]) for row in said]
    assert not any(row["truth"] for row in said)
    assert [row["source"] for row in said[7:]] == ["base"] * 5  # of which nothing is learnt
    assert (one.success, one.true_success) == (True, False)
    one, said = acted(base, False, truth_from=8)
    assert said[6]["terminated"]
    assert (one.success, one.true_success) == (True, True)  # in to stay, as is known a little later


def test_what_the_classifier_does_not_tell_is_no_success(base):
    one, said = acted(base, False, truth_from=4, sure=-20.0)
    assert len(said) == 20
    assert said[-1]["truth"]
    assert not any(row["terminated"] or row["reward"] for row in said)
    assert not one.success


def test_evaluations_end_by_the_truth(base):
    one, said = acted(base, True, truth_from=9)
    assert [row["terminated"] for row in said] == [False] * 9 + [True]
    assert (one.success, one.true_success) == (True, True)
    one, said = acted(base, True, truth_from=4)
    assert len(said) == 5
    assert (one.success, one.true_success) == (False, True)  # before it was told


def test_an_example_goes_on_after_success_as_the_student_does(base):
    """Ten steps more, with what a classifier learns from, of which a policy learns nothing."""
    spec, asked = insert_spec(base), iter(range(1000))
    one = Inserter(spec, Alone(spec), base, lambda: next(asked) >= 3, 0.5)
    one.begin((0,), True, False)
    seen, actions, notes = observed(base), [], []
    while one.phase is not Phase.IDLE:
        actions.append(one.act(seen))
        notes.append(one.notes())
    assert [row.values["terminated"] for row in notes] == [False] * 3 + [True] + [False] * 10
    assert [row.values["source"] for row in notes] == ["demo"] * 4 + ["base"] * 10
    assert all(row.values["truth"] for row in notes[3:])
    assert all("features" in row.arrays for row in notes)
    assert np.abs(actions[3]).max() == 0
    assert min(np.abs(action).max() for action in actions[4:]) > 0
    assert (one.steps, one.reset_steps) == (3, 10)


def config(demos, reward, **changes) -> LearnConfig:
    small = ("minutes=0.016", "chunk=10", "warmup=5", "batch=16", "hidden=(16, 16)")
    usual = {"overrides": (*small, "final_episodes=1"), "stepped": True, "reward": str(reward)}
    return LearnConfig("insert", "residual", (str(demos),), **{**usual, **changes})


def test_a_run_says_by_which_classifier_it_is_rewarded(base, tmp_path):
    demos, told, run = tmp_path / "demos", tmp_path / "told", tmp_path / "run"
    demos.mkdir()
    about = {"task": "insert", "spec": to_dict(insert_spec(base))}
    (demos / "demonstrations.json").write_text(json.dumps(about))
    online_cases.written(online_cases.always(base), told)
    plan = plan_run(config(demos, told))
    assert isinstance(plan, InsertRun)
    assert (plan.reward, plan.classifier_hash) == (str(told), online_cases.always(base).hash)
    assert f"--reward {told}" in worker.command_of(plan)
    run.mkdir()
    plan.write(run)
    assert read_online_run(run) == plan
    online_cases.written(online_cases.always(base, hidden=3), told)
    with pytest.raises(ConfigError, match="another configuration: classifier_hash"):
        learn(config(demos, told), run, resume=True)
    with pytest.raises(ConfigError, match="another configuration: reward"):
        learn(config(demos, "truth"), run, resume=True)
    with pytest.raises(ArtifactError, match="holds no classifier"):
        plan_run(config(demos, tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no other task, needs --reward"):
        LearnConfig("reach", "residual", (str(demos),), reward=str(told))
    foreign = online_cases.always(base)
    spec = dataclasses.replace(foreign.spec, student_hash="0" * 64)
    online_cases.written(SuccessClassifier(spec, foreign.weights, {}), told)
    with pytest.raises(ConfigError, match="another student"):
        plan_run(config(demos, told))


def test_a_run_from_before_there_were_classifiers_is_read(base, tmp_path):
    demos = tmp_path / "demos"
    demos.mkdir()
    about = {"task": "insert", "spec": to_dict(insert_spec(base))}
    (demos / "demonstrations.json").write_text(json.dumps(about))
    plan = plan_run(config(demos, "truth"))
    plan.write(tmp_path)
    path = tmp_path / "online.json"
    said = json.loads(path.read_text())
    assert said.pop("classifier_hash") == ""
    path.write_text(json.dumps(said))
    assert read_online_run(tmp_path) == plan


class Stopped(Exception):
    """Ends a run between two episodes."""


@pytest.mark.long
def test_a_stepped_run_comes_to_the_same_bits_also_if_it_is_resumed(base, tmp_path):
    demos, told = tmp_path / "demos", tmp_path / "told"
    rig = RigConfig("sim", stepped=True)
    shown = demonstrate(DemoConfig("insert", "student", tries=1), rig, demos)
    assert (shown["tries"], shown["episodes"]) == (1, 1)
    online_cases.written(online_cases.always(base), told)  # it rewards whatever is held
    whole = learn(config(demos, told), tmp_path / "whole")
    assert whole["successes"] == whole["episodes"] > 1
    assert whole["true_successes"] == 0
    (row,) = whole["evaluations"]
    assert row["rewarded"] == 1

    def stop(progress: Progress, ended: Ended) -> None:
        if progress.episodes == 2:
            raise Stopped

    with pytest.raises(Stopped):
        learn(config(demos, told), tmp_path / "broken", tell=stop)
    resumed = learn(config(demos, told), tmp_path / "broken", resume=True)
    assert resumed["evaluations"] == whole["evaluations"]
    spec = insert_spec(base, hidden=(16, 16))
    last = published.newest(tmp_path / "whole" / "published")
    assert last is not None
    assert last == published.newest(tmp_path / "broken" / "published")
    one, other = (
        published.read_version(tmp_path / name / "published", spec, last).weights
        for name in ("whole", "broken")
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    steps = [
        record.values["learning"]
        for record in RecordReader(tmp_path / "whole" / "log" / "0000.run").poll()
        if record.kind == "step" and record.values.get("learning")
    ]
    assert sum(said["terminated"] for said in steps if not said["evaluation"]) == whole["episodes"]
    (first,) = (tmp_path / "whole" / "policy").glob("policy.json")
    parents = json.loads(first.read_text())["trained"]["corrections"]["parents"]
    assert parents["reward"] == online_cases.always(base).hash
