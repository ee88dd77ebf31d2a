"""Demonstrations and learning on simulated arms, through the control loop, with the learner beside."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import time

import numpy as np
import online_cases
import pytest

from alohas2r.core.records import MAGIC, RecordReader, pack
from alohas2r.deployment.log import LogWriter, read_run
from alohas2r.deployment.online import learn as online
from alohas2r.deployment.online.deciders import Looking, Scripted, Seen
from alohas2r.deployment.online.demonstrate import DemoConfig, demonstrate
from alohas2r.deployment.online.director import EVALUATIONS
from alohas2r.deployment.online.explorer import Explorer
from alohas2r.deployment.online.learn import learn
from alohas2r.deployment.online.link import Link, remote_learner
from alohas2r.deployment.online.runs import LearnConfig, plan_run
from alohas2r.deployment.online.scripts import ScriptedExpert
from alohas2r.deployment.online.stage import Plan, ResetDraws, Stage
from alohas2r.deployment.online.truth import Truth
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.errors import ArtifactError, BackendUnavailable, ConfigError, RobotFault
from alohas2r.learning.online import losses, worker
from alohas2r.learning.online.experience import Closed, Row, read_all
from alohas2r.learning.online.pretrain import first_encoder
from alohas2r.learning.online.replay import Replay
from alohas2r.learning.online.sources import read_demos, read_earlier
from alohas2r.policies import artifact
from alohas2r.policies.online import learner, networks, published, remote
from alohas2r.policies.online.config import OnlineRun, SeeingRun
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.policy import OnlinePolicy
from alohas2r.policies.remote.connection import Connection
from alohas2r.policies.remote.messages import encode
from alohas2r.sim.changed import NOMINAL, WorldParams

pytestmark = pytest.mark.compiles
SPEC = online_cases.spec(hidden=(16, 16))
SMALL = (
    "minutes=0.1",
    "chunk=10",
    "warmup=5",
    "batch=16",
    "updates=4",
    "hidden=(16, 16)",
    "clone_steps=50",
    "evaluate_minutes=0.04",
    "evaluate_episodes=1",
    "final_episodes=1",
)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("demos") / "reach"
    result = demonstrate(DemoConfig("reach", episodes=2), RigConfig("sim", stepped=True), folder)
    assert result["episodes"] == result["true_successes"] == 2
    return folder


def small(demos: pathlib.Path, settings: tuple[str, ...] = SMALL) -> LearnConfig:
    """Returns a short run in a world in which commands come a step late."""
    late = WorldParams(delay=1)
    return LearnConfig("reach", "residual", (str(demos),), settings, stepped=True, world=late)


@pytest.fixture(scope="module")
def learnt(demos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("learnt") / "run"
    told = []
    result = learn(small(demos), folder, tell=lambda progress, episode: told.append(episode))
    assert result["world_params"] == "delay=1"
    assert result["protocol"] == "learn-v1+modified+world(delay=1)"
    assert read_run(folder / "log" / "0000.run").header["world_params"] == "delay=1"
    assert result["evaluations"][-1]["final"]
    assert result["minutes"] >= 0.09
    assert sum(one.plan.evaluation for one in told) == len(result["evaluations"]) >= 2
    assert not result["aborted"]
    return folder


def test_a_demonstration_is_what_was_commanded(demos):
    run = read_run(demos / "log" / "0000.run")
    records = RecordReader(demos / "log" / "0000.run", strict=True).poll()
    rows = read_all(SPEC, records)
    actions = np.array([one.action for one in rows if isinstance(one, Closed)])
    wanted = [one.arrays["learning/wanted"] for one in run.steps if "learning/wanted" in one.arrays]
    assert len(actions) == len(wanted)
    assert np.abs(actions).max() <= 1
    for before, after in zip(run.steps[:-1], run.steps[1:], strict=True):
        if before.values["episode"] != after.values["episode"]:
            continue
        told = SPEC.targets(after.arrays["observation/proprioception"])
        np.testing.assert_allclose(told, before.arrays["command"][:7], atol=1e-6)
    first, truths = run.steps[0], [one.values["learning"]["truth"] for one in run.steps]
    assert first.values["learning"]["source"] == "demo"
    assert truths.count(True) >= 2
    ends = [one for one in run.steps if one.values["learning"]["terminated"]]
    assert [one.values["learning"]["reward"] for one in ends] == [1.0, 1.0]


def test_another_machine_learns_the_same_from_the_log_alone(learnt, demos, tmp_path, monkeypatch):
    """That machine is killed, then the robot's side, which was within an episode and does it anew."""
    monkeypatch.setenv("ALOHAS2R_API_KEY", "key")
    robot, there = tmp_path / "robot", tmp_path / "there"
    (robot / "log").mkdir(parents=True)
    shutil.copy(learnt / "online.json", robot)
    run = online.read_online_run(robot)
    assert isinstance(run, OnlineRun)
    content = (learnt / "log" / "0000.run").read_bytes()
    start, within = online_cases.an_episode(learnt / "log" / "0000.run", 16)
    (robot / "log" / "0000.run").write_bytes(content[: within + 7])
    with online_cases.LearnerServer(there) as server:
        with pytest.raises(BackendUnavailable, match="HTTP 401"):
            learn(small(demos), tmp_path / "other", learner=server.url, api_key="kez")
        with remote_learner(robot, run, server.url, "key") as alive:
            online_cases.wait_for(lambda: alive() and published.newest(robot / "published") == 1)
            server.kill()
            (there / "published" / "000001.npz").unlink()
            server.start()
            online_cases.wait_for((there / "published" / "000001.npz").exists)
            time.sleep(0.2)  # by now it has read all there is
            header = pack("header", {"continues_at": start})
            (robot / "log" / "0001.run").write_bytes(MAGIC + header + content[start:])
        for name in ("0000.run", "0001.run"):
            assert (there / "log" / name).read_bytes() == (robot / "log" / name).read_bytes()
        _refused(robot, run, server.url, tmp_path / "stranger")
        assert server.stop()["refused"] == 0
    about, ours = (artifact.describe(one / "policy") for one in (robot, learnt))
    assert (about["hash"], about["trained"]["command"]) == (
        ours["hash"],
        ours["trained"]["command"],
    )
    assert published.newest(learnt / "published") == published.newest(robot / "published") == 3
    versions = [
        [published.read_version(folder / "published", run.spec, n).weights for n in range(4)]
        for folder in (learnt, robot)
    ]
    for one, other in zip(*versions, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
    first, last = versions[0][0], versions[0][-1]
    assert any((first[name] != last[name]).any() for name in first if name.startswith("policy"))
    assert all((first[name] == last[name]).all() for name in first if name.startswith("base"))


def _refused(robot: pathlib.Path, run: OnlineRun, url: str, stranger: pathlib.Path) -> None:
    """Whatever is not this run, or no message, is refused in one line."""
    shutil.copytree(robot / "log", stranger / "log")
    log = stranger / "log" / "0000.run"
    log.write_bytes(log.read_bytes()[:-1] + b"?")
    for described, words in (
        (run, "keeps another run (log/0000.run differs)"),
        (dataclasses.replace(run, seed=1), "another configuration: seed: 0 -> 1"),
    ):
        described.write(stranger)
        with pytest.raises(ArtifactError, match=re.escape(words)) as refused:
            Link(stranger, described, url, "key").connect()
        assert "\n" not in str(refused.value)
    hello = {"kind": "hello", "run": (robot / "online.json").read_bytes(), "sizes": b"{}"}
    empty = {"kind": "sync", "name": "", "offset": 0, "data": b"", "version": 3}
    sync = {**empty, "digest": remote.digest(b"")}
    connection = Connection(url, "key", "learner")
    for message, words in (
        (encode(sync), "none said hello"),
        (encode({**hello, "sizes": b'{"../x.run": 1}'}), "files that no run has"),
        (encode(hello), ""),
        (encode(sync)[:-1], "no valid msgpack"),
        (encode({**sync, "digest": remote.digest(b"?")}), "differ from their digest"),
        (encode(empty), "'digest' is missing"),
        (encode({**sync, "name": "../../x.run"}), "has no such file"),
        (encode({**sync, "name": "log/0001.run"}), "byte 0 does not follow"),
        (encode({**sync, "kind": "pickle"}), "no such kind"),
        (encode(sync), ""),
    ):
        with pytest.raises(ArtifactError, match=words) if words else contextlib.nullcontext():
            connection.ask(message, 20.0)
    connection.close()


@pytest.mark.parametrize("arm", [pytest.param("warm", marks=pytest.mark.long), "rlpd"])
def test_the_other_arms_learn_from_the_same_log(arm, learnt, demos, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(learnt / "log", again / "log")
    settings = (*SMALL, "policy_every=4", "critics=3", f"clone_steps={50 * (arm == 'warm')}")
    run = plan_run(LearnConfig("reach", arm, (str(demos),), settings, stepped=True))
    assert (run.spec.base, run.spec.scale, run.config.tuned) == (False, 1.0, arm == "rlpd")
    run.write(again)
    result = worker.learn(again, False)
    assert result["finished"]
    assert result["metrics"]["critic_loss"] > 0
    first, last = (published.read_version(again / "published", run.spec, n).weights for n in (0, 3))
    assert any((first[name] != last[name]).any() for name in first if name.startswith("policy"))
    temperature = result["metrics"]["temperature"]
    assert (temperature != pytest.approx(run.config.temperature, rel=1e-6)) == run.config.tuned


def test_earlier_runs_are_learnt_from_before_anything_is_done(learnt, demos, tmp_path):
    """A policy from nothing that is held close to what was executed there comes to do it, without acting."""
    away = {}
    for updates in (0, 600):
        folder = tmp_path / str(updates)
        shutil.copytree(learnt / "log", folder / "log")
        held = (f"offline_updates={updates}", "offline_weight=100", "policy_rate=1e-3")
        settings = (*SMALL, "policy_every=1", "critics=2", "clone_steps=0", *held)
        plan = LearnConfig(
            "reach", "rlpd", (str(demos),), settings, stepped=True, offline=(str(learnt),)
        )
        run = plan_run(plan)
        assert isinstance(run, OnlineRun)
        assert f"--offline {learnt}" in worker.command_of(run)
        run.write(folder)
        assert worker.learn(folder, False)["finished"]
        weights = published.read_version(folder / "published", run.spec, 0).weights
        replay = Replay(run.spec, read_eyes(run.student, run.spec.side)[0], True)
        replay.add(read_demos(run.demos, run.spec))
        batch = replay.sample(np.random.default_rng(0), 256, 1, 0.9)
        normal = networks.normalize(weights, batch.features, np)
        done = losses.act(run.spec, weights, normal, np.zeros((256, run.spec.outputs))).action
        done = run.spec.possible(batch.features, np.asarray(done))
        away[updates] = float(((done - batch.action) ** 2).mean())
    assert away[600] < 0.3 * away[0]
    with pytest.raises(ConfigError, match="offline_updates = 5 must be a multiple of policy_every"):
        plan_run(LearnConfig("reach", "rlpd", (str(demos),), ("offline_updates=5",)))


def _acts_alike(folder: pathlib.Path, run: SeeingRun, log: pathlib.Path) -> None:
    """Asserts that whoever acts with the newest version does what the artifact does."""
    policy, decider = artifact.load(folder / "policy", OnlinePolicy), Looking(run.spec, {})
    version = published.newest(folder / "published")
    assert version is not None
    decider.use(published.read_version(folder / "published", run.spec, version))
    for step in [one for one in read_run(log).steps if "action" in one.arrays][:9:4]:
        seen = {name: step.arrays[f"observation/{name}"] for name in run.spec.inputs}
        rgb, depth, felt = seen["left_rgb"], seen["left_depth"], seen["proprioception"]
        _, wanted = decider.decide(Seen(rgb, depth, felt, np.zeros((3, 5), np.float32)))
        policy.reset()
        np.testing.assert_allclose(policy.act(seen), run.spec.move(felt, wanted), atol=1e-5)


def test_ferm_learns_its_encoder_and_goes_on_from_a_checkpoint(learnt, demos, tmp_path):
    again, log = tmp_path / "again", learnt / "log" / "0000.run"
    shutil.copytree(learnt / "log", again / "log")
    changed = ("chunk=3", "policy_every=2", "clone_steps=0", "encoder_steps=3")
    config = LearnConfig("reach", "ferm", (str(demos),), (*SMALL, *changed), stepped=True)
    run = plan_run(config)
    assert isinstance(run, SeeingRun)
    assert (run.spec.base, run.spec.encoder.crop, run.config.encoder) == (False, 27, "contrastive")
    run.write(again)
    result = worker.learn(again, False)
    assert result["finished"]
    assert result["metrics"]["critic_loss"] > 0
    several = [published.read_version(again / "published", run.spec, n).weights for n in range(11)]
    for name in ("encoder/layer0/kernel", "encoder/norm/bias", "policy/layer0/kernel"):
        assert (several[0][name] != several[10][name]).any()
    np.testing.assert_array_equal(several[0]["std"], several[10]["std"])
    _acts_alike(again, run, log)
    resumed = tmp_path / "resumed"
    shutil.copytree(again, resumed)
    newest = resumed / "learner" / "checkpoint"
    shutil.rmtree(newest)
    newest.with_name("checkpoint-00005").rename(newest)
    for path in (resumed / "published").glob("*.npz"):
        path.unlink()
    assert worker.learn(resumed, True)["finished"]
    for number in (0, *range(6, 11)):
        weights = published.read_version(resumed / "published", run.spec, number).weights
        for name, value in weights.items():
            np.testing.assert_array_equal(value, several[number][name])


def test_ferm_learns_less_where_time_does_not_wait(demos):
    stepped = LearnConfig("reach", "ferm", (str(demos),), stepped=True)
    assert plan_run(stepped).config.updates == 10
    timed = dataclasses.replace(stepped, stepped=False)
    assert plan_run(timed).config.updates == 2
    assert plan_run(dataclasses.replace(timed, overrides=("updates=4",))).config.updates == 4


def test_a_clone_sees_by_an_encoder_that_learnt_of_the_demonstrations(learnt, demos, tmp_path):
    settings = (*SMALL, "updates=0", "encoder_steps=3")
    config = LearnConfig("reach", "bc", (str(demos),), settings, stepped=True, encoder="supervised")
    run = plan_run(config)
    assert isinstance(run, SeeingRun)
    run.write(tmp_path)
    assert worker.learn(tmp_path, False)["finished"]
    assert "--encoder supervised" in worker.command_of(run)
    weights = published.read_version(tmp_path / "published", run.spec, 0).weights
    rows = read_demos(run.demos, run.spec)
    encoder, _ = first_encoder(run.spec, run.config, rows, run.seed)
    for name, value in encoder.items():
        np.testing.assert_array_equal(weights[name], value)
    _acts_alike(tmp_path, run, learnt / "log" / "0000.run")


def test_the_artifact_acts_as_the_actor_did(learnt):
    """What was decided without noise in the evaluation, the artifact decides again from the log."""
    policy = artifact.load(learnt / "policy", OnlinePolicy)
    paths = sorted((learnt / "log").glob("*.run"))
    steps = [step for path in paths for step in read_run(path).steps]
    last = max(step.values["episode"] for step in steps)
    shown = [one for one in steps if one.values["episode"] == last]
    assert all(one.values["learning"]["evaluation"] for one in shown)
    assert shown[0].values["learning"]["version"] == 3
    for one in shown:
        said = one.values["learning"]
        if said["terminated"] or said["truncated"]:
            continue
        seen = {
            name.removeprefix("observation/"): value
            for name, value in one.arrays.items()
            if name.startswith("observation/")
        }
        np.testing.assert_allclose(policy.act(seen), one.arrays["action"], atol=1e-5)


def test_evaluations_are_written_as_they_come(learnt):
    rows = [json.loads(line) for line in (learnt / EVALUATIONS).read_text().splitlines()]
    assert [row["final"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert all(0 <= row["success"] <= 1 for row in rows)
    assert rows[-1]["version"] == 3


def test_a_finished_run_is_resumed_to_its_result(learnt, demos):
    with pytest.raises(ConfigError, match="final_episodes: 1 -> 2"):
        learn(small(demos, (*SMALL[:-1], "final_episodes=2")), learnt, True)
    with pytest.raises(ConfigError, match="holds a run already"):
        learn(small(demos), learnt)
    elsewhere = dataclasses.replace(small(demos), world=WorldParams(delay=2))
    with pytest.raises(ConfigError, match=r"world\.delay: 1 -> 2") as refused:
        learn(elsewhere, learnt, True)
    assert "\n" not in str(refused.value)


def test_a_run_says_its_world_and_one_without_a_word_of_it_is_nominal(learnt, tmp_path):
    words = worker.command_of(online.read_online_run(learnt))
    assert "--world-params delay=1" in words
    said = json.loads((learnt / "online.json").read_text())
    assert (said["config"].pop("encoder"), said["config"].pop("soft")) == ("student", False)
    del said["world"]
    (tmp_path / "online.json").write_text(json.dumps(said))
    before = online.read_online_run(tmp_path)
    assert before.world == NOMINAL
    assert before.config == online.read_online_run(learnt).config


def _first_motion(run) -> int:
    """Returns the step in which the shoulder is seen to follow what it is told from step 0 on."""
    felt = np.array([one.arrays["observation/proprioception"][1] for one in run.steps[:12]])
    return int((np.abs(felt - felt[0]) > 4e-3).argmax())


def test_a_changed_world_is_acted_in_seen_and_named(demos, tmp_path):
    """Two steps late, the thing is shown as well, from a turned camera; the log says where it was."""
    params = WorldParams(delay=2, camera=(0.0, 1.0))
    rig = RigConfig("sim", stepped=True, params=params)
    result = demonstrate(DemoConfig("reach", episodes=1), rig, tmp_path / "demos")
    assert result["world_params"] == "delay=2,camera=0:1"
    run = read_run(tmp_path / "demos" / "log" / "0000.run")
    assert run.header["world_params"] == "delay=2,camera=0:1"
    other = read_run(demos / "log" / "0000.run")
    assert _first_motion(run) == _first_motion(other) + 2
    first, second = (one.steps[0].arrays["observation/left_rgb"] for one in (run, other))
    assert (first != second).any()


def test_bad_input_is_said_in_a_line(demos, tmp_path):
    def config(task="reach", arm="bc", demo=demos, **changes):
        return LearnConfig(task, arm, (str(demo),), SMALL, stepped=True, **changes)

    with pytest.raises(ConfigError, match="no task 'wave'"):
        plan_run(config("wave"))
    with pytest.raises(ConfigError, match="no arm 'legs'"):
        plan_run(config(arm="legs"))
    with pytest.raises(ConfigError, match="learn needs demonstrations"):
        LearnConfig("reach", "bc", ())
    with pytest.raises(ConfigError, match="cannot be stepped"):
        config(robot="aloha")
    with pytest.raises(ConfigError, match="only a simulation knows the truth"):
        LearnConfig("insert", "residual", (str(demos),), robot="aloha", reward="truth")
    with pytest.raises(ConfigError, match="robot must be one of aloha, aloha-ros, emulated, sim"):
        config(robot="alhoa")
    assert read_earlier(str(demos), SPEC)
    with pytest.raises(ArtifactError, match="no decisions to learn from"):
        read_earlier(str(tmp_path), SPEC)
    with pytest.raises(ArtifactError, match="holds no run to resume"):
        learn(config(), tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match="demonstrates 'reach', not 'pick'"):
        read_demos([str(demos)], online_cases.spec("pick"))
    with pytest.raises(ConfigError, match="is of the left arm"):
        read_demos([str(demos)], online_cases.spec(side="right"))
    with pytest.raises(ArtifactError, match="holds no demonstrations"):
        read_demos([str(tmp_path)], SPEC)
    with pytest.raises(ArtifactError, match="exists already"):
        demonstrate(DemoConfig("reach"), RigConfig("sim", stepped=True), demos)
    copied = tmp_path / "copied"
    shutil.copytree(demos, copied)
    (copied / "demonstrations.json").write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        read_demos([str(copied)], SPEC)
    shutil.copy(demos / "demonstrations.json", copied)
    log = copied / "log" / "0000.run"
    content = bytearray(log.read_bytes())
    log.write_bytes(content[: len(content) // 8])
    with pytest.raises(ArtifactError, match="None of the demonstrations"):
        read_demos([str(copied)], SPEC)
    content[len(content) // 2] ^= 255
    log.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged at byte"):
        read_demos([str(copied)], SPEC)
    rows = read_demos([str(demos)], SPEC)
    assert sum(isinstance(one, Closed) and one.terminated for one in rows) == 2
    closed = sum(isinstance(one, Closed) for one in rows)
    assert sum(isinstance(one, Row) for one in rows) == closed


def test_a_learner_that_refuses_is_heard(demos, tmp_path):
    broken = tmp_path / "demos"
    shutil.copytree(demos, broken)
    log = broken / "log" / "0000.run"
    log.write_bytes(log.read_bytes()[:30_000])
    config = LearnConfig("reach", "bc", (str(broken),), SMALL, stepped=True)
    with pytest.raises(ArtifactError, match="None of the demonstrations"):
        learn(config, tmp_path / "run")
    assert worker.__name__ == learner.WORKER


class Aborting:
    """A director whose episodes never come to their end."""

    def __init__(self) -> None:
        self.aborted: list[bool] = []

    def next(self) -> Plan:
        return Plan(len(self.aborted), (0, len(self.aborted)), False, True, False)

    def ended(self, episode, state) -> None:
        self.aborted.append(episode.aborted)


def test_three_aborted_episodes_in_a_row_stop_it(tmp_path):
    rig = RigConfig("sim", stepped=True, stub_cameras=True)
    with open_rig(rig, judged=False) as arms, LogWriter(tmp_path / "log.run", {}) as log:
        assert arms.simulation is not None
        truth, director = Truth(SPEC, arms.simulation), Aborting()
        expert = Scripted(ScriptedExpert(SPEC, truth.grip))
        explorer = Explorer(SPEC, expert, ResetDraws(SPEC, (0,), True), truth.done)
        stage = Stage(explorer, arms.simulation, truth, director, log, False)

        def play() -> None:
            for episode in range(5):
                assert not stage.ended()
                stage.begin(episode)

        with pytest.raises(RobotFault, match="3 episodes in a row were ended"):
            play()
    assert director.aborted == [True] * 3
