"""A residual of the insertion: shown by the student, learnt from the log; robot and artifact do the same."""

import dataclasses
import json
import pathlib

import numpy as np
import online_cases
import onnx_cases
import pytest

from alohas2r.core.records import RecordReader
from alohas2r.deployment.log import read_run
from alohas2r.deployment.online import opened
from alohas2r.deployment.online.coach import Coach
from alohas2r.deployment.online.deciders import Learned
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.insert_coach import InsertCoach
from alohas2r.deployment.online.inserter import Inserter
from alohas2r.deployment.online.learn import learn
from alohas2r.deployment.online.link import remote_learner
from alohas2r.deployment.online.runs import LearnConfig, plan_run
from alohas2r.deployment.rig import RigConfig
from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.errors import ConfigError
from alohas2r.learning.online import worker
from alohas2r.learning.online.experience import Chains, Closed, Row
from alohas2r.policies import artifact
from alohas2r.policies.online import networks, published
from alohas2r.policies.online.config import (
    SETTINGS,
    InsertRun,
    find_arm,
    parse_online_run,
    read_online_run,
)
from alohas2r.policies.onnx import exported
from alohas2r.policies.onnx.base import insert_spec, read_base
from alohas2r.policies.spec import ResidualSpec
from alohas2r.policies.vision import ResidualPolicy

pytestmark = pytest.mark.compiles
SMALL = ("minutes=0.016", "chunk=10", "warmup=5", "batch=16", "hidden=(16, 16)", "scale=0.5")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("insert") / "demos"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opened, "STARTS", 2)
        rig = RigConfig("sim", stepped=True)
        result = demonstrate(DemoConfig("insert", "student", episodes=1), rig, folder)
    assert result["episodes"] == result["tries"] == result["true_successes"] == 1
    return folder


def config(demos: pathlib.Path, **changes) -> LearnConfig:
    usual = {"overrides": SMALL, "stepped": True, "reward": "truth"}
    return LearnConfig("insert", "residual", (str(demos),), **{**usual, **changes})


@pytest.fixture(scope="module", params=["", "tempo=true"])
def learnt(
    demos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> pathlib.Path:
    """A run whose robot did what the student showed, of a residual alone and of one that sets the tempo."""
    folder = tmp_path_factory.mktemp("insert") / "run"
    (folder / "log").mkdir(parents=True)
    (folder / "log" / "0000.run").write_bytes((demos / "log" / "0000.run").read_bytes())
    more = (request.param,) if request.param else ()
    plan_run(config(demos, overrides=(*SMALL, *more))).write(folder)
    assert worker.learn(folder, False)["finished"]
    return folder


def test_what_the_student_shows_is_learnt_from_once_it_inserts(demos, learnt):
    steps = read_run(demos / "log" / "0000.run").steps
    switched = [bool(one.values["switched"]) for one in steps]
    sources = [one.values["learning"]["source"] for one in steps]
    assert sources == ["demo" if one else "base" for one in switched]
    spec = read_online_run(learnt).spec
    chains = Chains(spec)
    records = RecordReader(demos / "log" / "0000.run", strict=True).poll()
    rows = [one for record in records for one in chains.take(record)]
    closed = [one for one in rows if isinstance(one, Closed)]
    assert len(closed) == sum(isinstance(one, Row) for one in rows) == sum(switched) - 1
    assert [one.reward for one in closed] == [0.0] * (len(closed) - 1) + [1.0]
    asked = [one.arrays["action"] for one, on in zip(steps, switched, strict=True) if on][:-1]
    executed = np.array([one.action for one in closed])
    away = np.abs(executed - np.array(asked)[:, ~IS_GRIPPER])
    assert np.median(away) < 1e-4  # the guard lets nearly all of it through
    assert np.abs(executed).max() <= 1


def test_a_run_from_before_exploration_could_be_steady_is_read(learnt):
    described = json.loads((learnt / SETTINGS).read_text())
    assert described["config"].pop("steady") == 1
    earlier = parse_online_run(json.dumps(described).encode(), "earlier")
    now = read_online_run(learnt)
    assert earlier == dataclasses.replace(now, config=dataclasses.replace(now.config, steady=0.0))


def test_the_policy_learns_and_its_base_does_not(demos, learnt):
    run = read_online_run(learnt)
    assert isinstance(run, InsertRun)
    assert "--reward truth" in worker.command_of(run)
    first, last = (published.read_version(learnt / "published", run.spec, n) for n in (0, 1))
    changed = {name for name in first.weights if (first.weights[name] != last.weights[name]).any()}
    assert changed == {name for name in first.weights if name.startswith("policy/")}
    base = slice(-run.spec.actions, None)
    assert (first.weights["mean"][base] == 0).all()
    assert (first.weights["std"][base] == 1).all()
    policy = artifact.load(learnt / "policy", ResidualPolicy)
    student = read_base(run.student)
    for name, value in student.weights.items():
        np.testing.assert_array_equal(policy.weights[name], value)
    assert isinstance(policy.spec, ResidualSpec)
    assert policy.spec.kind == ("paced" if run.config.tempo else "residual")
    assert run.spec.outputs == run.spec.actions + run.config.tempo == 12 + run.config.tempo
    assert policy.spec.student == student.spec
    trained = dict(policy.trained)
    assert "learn insert --arm residual" in trained.pop("corrections")["command"]
    assert trained == student.policy.description["trained"]


def test_actor_and_artifact_do_the_same(learnt):
    """With other weights for the residual, so that it does much: in NumPy beside the file, and in JAX as one."""
    run = read_online_run(learnt)
    assert isinstance(run, InsertRun)
    policy = artifact.load(learnt / "policy", ResidualPolicy)
    draw = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in policy.weights.items() if "/policy/" in name}
    other = {name: draw.normal(0, 0.2, shape) for name, shape in shapes.items()}
    both = ResidualPolicy(policy.spec, {**policy.weights, **other}, {})
    names = published.read_version(learnt / "published", run.spec, 1).weights
    weights = {name: both.weights[f"residual/{name}"] for name in names}
    learned, base = Learned(run.spec), read_base(run.student)
    learned.use(published.Published(1, weights))
    actor = Inserter(run.spec, learned, base, lambda: False)
    actor.begin((0,), False, True)
    alone = base.policy.fork()
    apart = []
    for seen in base.policy.examples():
        wanted, mine = both.act(seen), actor.act(seen)
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
        student = alone.act(seen)
        np.testing.assert_allclose(mine[IS_GRIPPER], student[IS_GRIPPER], atol=1e-5)
        if not seen["switched"]:
            np.testing.assert_allclose(mine, student, atol=1e-5)
        else:
            apart.append(np.abs(mine - student).max())
    most = run.spec.scale + 0.6 * run.config.tempo
    assert 0.1 < max(apart) <= most + 1e-5


def test_the_exported_file_does_the_same(learnt, tmp_path):
    run = read_online_run(learnt)
    policy = artifact.load(learnt / "policy", ResidualPolicy)
    draw = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in policy.weights.items() if "/policy/" in name}
    other = {name: draw.normal(0, 0.2, shape) for name, shape in shapes.items()}
    both = ResidualPolicy(policy.spec, {**policy.weights, **other}, {})
    examples = read_base(run.student).policy.examples()
    rows = {name: np.stack([one[name] for one in examples]) for name in policy.spec.inputs}
    artifact.save(both, tmp_path / "policy", rows)
    onnx_cases.export(tmp_path / "policy", tmp_path / "policy.onnx", 16)
    read = exported.load(tmp_path / "policy.onnx")
    assert read.kind == both.spec.kind
    for seen in examples:
        np.testing.assert_allclose(read.file.act(seen), both.act(seen), atol=1e-5)


def test_a_tempo_slows_all_arm_joints_alike():
    base = read_base(opened.shipped_base())
    spec = insert_spec(base, (8,), tempo=True)
    wanted, actions = np.full(12, 0.5, np.float32), np.zeros((5, 13), np.float32)
    actions[:, -1] = (-1, -0.5, 0, 0.5, 1)
    joined = networks.joined(spec, wanted, actions)
    np.testing.assert_allclose(
        joined, 0.5 * np.array([[0.4], [0.7], [1], [1.1], [1.2]]) + np.zeros(12)
    )
    assert networks.joined(spec, np.ones(12), actions).max() == 1
    with pytest.raises(ConfigError, match="only a policy of insert sets its tempo"):
        find_arm("residual", ("tempo=true",), "reach")


def test_another_machine_learns_the_same(demos, learnt, tmp_path):
    robot, run = tmp_path / "robot", read_online_run(learnt)
    (robot / "log").mkdir(parents=True)
    for name in ("online.json", "log/0000.run"):
        (robot / name).write_bytes((learnt / name).read_bytes())
    with (
        online_cases.LearnerServer(tmp_path / "there") as server,
        remote_learner(robot, run, server.url, "") as alive,
    ):
        online_cases.wait_for(lambda: not alive())
    there, here = (artifact.describe(one / "policy") for one in (robot, learnt))
    assert there["hash"] == here["hash"]
    commands = [one["trained"]["corrections"]["command"] for one in (there, here)]
    assert commands[0] == commands[1]
    assert ("--set tempo=true" in commands[0]) == run.config.tempo
    assert "--set 'hidden=(16,16)'" in commands[0]


def test_who_helps_must_fit_the_task(demos, tmp_path, terminal):
    _, stream = terminal
    real_time = config(demos, stepped=False)
    with pytest.raises(ConfigError, match="who helps with insert is an InsertCoach"):
        learn(real_time, tmp_path / "run", coach=Coach(print, stream))
    with pytest.raises(ConfigError, match="while time stands still"):
        learn(config(demos), tmp_path / "run", coach=InsertCoach(print, stream))
    with pytest.raises(ConfigError, match="--reward person needs --coach"):
        learn(config(demos, stepped=False, reward="person"), tmp_path / "run")


def test_odd_settings_are_refused(demos, tmp_path):
    with pytest.raises(ConfigError, match="needs --reward"):
        config(demos, reward="")
    with pytest.raises(ConfigError, match="only a simulation knows the truth"):
        config(demos, robot="aloha", stepped=False)
    with pytest.raises(ConfigError, match="no arm 'rlpd' of insert"):
        plan_run(dataclasses.replace(config(demos), arm="rlpd"))
    with pytest.raises(ConfigError, match="nothing is cloned"):
        plan_run(config(demos, overrides=("clone_steps=50",)))
    about = (demos / "demonstrations.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "demonstrations.json").write_text(
        about.replace('"student_hash": "', '"student_hash": "0')
    )
    with pytest.raises(ConfigError, match="is of another student"):
        plan_run(config(other))


@pytest.mark.parametrize("steady", [0.0, 0.9])
def test_exploration_is_as_steady_as_said_and_forgets_between_episodes(steady):
    spec = insert_spec(read_base(opened.shipped_base()), (8,))
    learned, features = Learned(spec, steady), np.zeros(spec.features, np.float32)
    shapes = networks.shapes(spec)
    learned.use(
        published.Published(
            0, {name: np.full(one, float(name == "std")) for name, one in shapes.items()}
        )
    )

    def wanted(seed: int, steps: int) -> np.ndarray:
        learned.begin((seed,), explores=True)
        return np.array([learned.choose(features, np.zeros(32))[1] for _ in range(steps)])

    noise = np.arctanh(np.clip(wanted(3, 2000) / spec.scale, -1 + 1e-6, 1 - 1e-6))
    after = np.mean([np.corrcoef(one[:-1], one[1:])[0, 1] for one in noise.T])
    assert after == pytest.approx(steady, abs=0.05)
    np.testing.assert_allclose(noise.std(0), noise.std(), rtol=0.25)  # spread as without
    np.testing.assert_array_equal(wanted(3, 5), wanted(3, 2000)[:5])
    first = np.array([wanted(seed, 1)[0, 0] for seed in range(50)])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.35
    learned.begin((3,), explores=False)
    np.testing.assert_array_equal(learned.choose(features, np.zeros(32))[1], np.zeros(12))
