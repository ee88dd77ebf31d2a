from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r import config
from alohas2r.cli import app
from alohas2r.core import assets
from alohas2r.embodiment import joints
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.ppo import algorithm as ppo_algorithm
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import policy as ppo_policy
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo import train as teacher
from alohas2r.learning.ppo.learner import Ppo, Rollout
from alohas2r.learning.ppo.start import first_policy
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.log import read_metrics
from alohas2r.policies import artifact
from alohas2r.policies.staged import StagedPolicy
from alohas2r.policies.state import StatePolicy
from alohas2r.sim import scene
from alohas2r.sim.engines.cpu import Physics
from alohas2r.tasks.registry import find_task, task_names

pytestmark = pytest.mark.compiles

NETWORK = ("ppo.network.policy=8", "ppo.network.value=8")
TINY = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1", *NETWORK),
    *("evaluations=0", "task.steps=5"),
)
UPDATES = 60
CHAIN = (*TINY, f"total_steps={8 * UPDATES}", "checkpoints=12")


def arguments(out: pathlib.Path, *more: str, settings: tuple[str, ...] = CHAIN) -> list[str]:
    chosen = [part for setting in settings for part in ("--set", setting)]
    start = ["train-teacher", "--phase", "pick", "--preset", "quick", "--out", str(out)]
    return [*start, "--threads", "1", "--seed", "3", "--json", *chosen, *more]


class Trained:
    """An unbroken run, by the command line."""

    def __init__(self, out: pathlib.Path) -> None:
        self.out = out
        assert app.main(arguments(out)) == 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs") / "unbroken")


def start_process(out: pathlib.Path, cache: pathlib.Path, *more: str) -> subprocess.Popen[str]:
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "alohas2r.cli", *arguments(out, *more)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], out: pathlib.Path, lines: int) -> None:
    """Waits until the run has written so many entries."""
    path = out / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.005)
    pytest.fail(f"The run ended early: {process.communicate()[1]}")


def leaves(out: pathlib.Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(out / "checkpoint" / "arrays")
    return {name: np.asarray(value) for name, value in found.items()}


def test_interrupted_and_killed_runs_end_with_the_bits_of_an_unbroken_one(
    unbroken: Trained, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cache = tmp_path / "broken", tmp_path / "cache"
    # Ctrl-C: a clean stop with a checkpoint, exit code 0.
    process = start_process(out, cache)
    wait_for(process, out, 7)
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=300)
    assert process.returncode == 0, complaints
    result = json.loads(printed)
    assert result["finished"] is False
    assert result["policy"] is None
    done = result["steps"] // 8
    assert 7 <= done < UPDATES
    assert len(read_metrics(out / "metrics.jsonl")) == done
    assert Checkpoint(out / "checkpoint").exists()

    # SIGKILL at a random time, maybe in the middle of a checkpoint.
    process = start_process(out, cache, "--resume")
    wait_for(process, out, random.randint(done + 3, UPDATES - 15))
    time.sleep(random.uniform(0, 0.1))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not (out / "policy").exists()

    capsys.readouterr()
    assert app.main(arguments(out, "--resume")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"] is True
    assert result["steps"] == 8 * UPDATES

    first, second = leaves(unbroken.out), leaves(out)
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    weights = [artifact.load(path / "policy").hash for path in (unbroken.out, out)]
    assert weights[0] == weights[1]
    # Every update is in the metrics once, with the same figures but for the time.
    rows = [read_metrics(path / "metrics.jsonl") for path in (unbroken.out, out)]
    for row in (*rows[0], *rows[1]):
        row.pop("wall_s")
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(8, 8 * UPDATES + 1, 8))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        path.name for path in unbroken.out.iterdir()
    )


def test_a_run_leaves_what_it_promises(unbroken: Trained) -> None:
    names = {path.name for path in unbroken.out.iterdir()}
    assert names >= {"checkpoint", "config.json", "metrics.jsonl", "policy", "tensorboard"}
    plan = json.loads((unbroken.out / "config.json").read_text())
    assert plan["seed"] == 3
    assert plan["config"]["ppo"]["num_envs"] == 4
    trained = artifact.describe(unbroken.out / "policy")["trained"]
    assert trained["config"] == plan["config"]
    assert trained["steps"] == 8 * UPDATES
    assert trained["command"].startswith("alohas2r train-teacher --phase pick --preset quick")
    assert trained["machine"]["cores"] == len(os.sched_getaffinity(0))
    for row in read_metrics(unbroken.out / "metrics.jsonl"):
        assert {"loss/value", "loss/kl", "train/reward", "train/stage"} <= row.keys()
        assert None not in row.values()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--resume", "--set", "ppo.discount=0.9"], ["ppo.discount", "0.97 -> 0.9"]),
        (["--resume", "--set", "task.start.radius=0.2,0.3"], ["task.start.radius"]),
        (["--resume", "--seed", "4"], ["seed: 3 -> 4"]),
        ([], ["holds a run already", "--resume"]),
    ],
)
def test_another_configuration_does_not_continue_a_run(
    unbroken: Trained, capsys: pytest.CaptureFixture[str], more: list[str], parts: list[str]
) -> None:
    before = leaves(unbroken.out)
    capsys.readouterr()
    assert app.main(arguments(unbroken.out, *more)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
    after = leaves(unbroken.out)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


def test_resuming_nothing_or_rubble_is_an_error_of_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments(tmp_path / "new", "--resume")) == 1
    assert "holds no run to resume" in capsys.readouterr().err
    for content in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(content)
        assert app.main(arguments(tmp_path, "--resume")) == 1
        error = capsys.readouterr().err
        assert str(tmp_path) in error
        assert error.count("\n") == 1


def test_a_guide_that_has_faded_does_not_come_back_in_the_second_stage() -> None:
    settings = ("ppo.guide=1,0.2", "refine.steps=32")
    first, second = config.override(presets.find_preset("insert", "quick"), settings).stages()
    assert first.ppo.guide == (1.0, 0.2)
    assert second.ppo.guide == (0.2, 0.2)


def test_a_guide_where_there_is_none_is_an_error_of_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train-teacher", "--phase", "handover", "--out", str(tmp_path / "run")]
    assert app.main([*command, "--set", "ppo.guide=1,0"]) == 1
    error = capsys.readouterr().err
    assert "ppo.guide needs a task that has a guide" in error
    assert error.count("\n") == 1


class Small:
    """A learner that has not learnt, and one unroll of it."""

    def __init__(self) -> None:
        self.settings = config.override(presets.find_preset("pick", "quick"), TINY)
        self.env = ppo_envs.make_env(self.settings, 0, threads=1)
        self.ppo = Ppo(self.settings.ppo, self.env)
        self.learner = self.ppo.init(jax.random.PRNGKey(0))
        self.begin = self.env.reset(jax.random.split(jax.random.PRNGKey(1), 4))


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def test_the_artifact_acts_as_the_learner_does_without_chance(small: Small) -> None:
    draw = np.random.default_rng(0)
    size = small.env.features
    stats = small.learner.policy_stats.replace(
        mean=jnp.asarray(draw.normal(size=size), jnp.float32),
        std=jnp.asarray(draw.uniform(0.5, 2, size), jnp.float32),
    )
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(draw.normal(0, 0.3, leaf.shape), jnp.float32),
        small.learner.params,
    )
    learner = small.learner._replace(params=params, policy_stats=stats)
    found = ppo_policy.to_policy(small.settings, small.env, learner, {})
    features = jnp.asarray(draw.normal(size=(50, size)), jnp.float32)
    expected = small.ppo.distribution.mode(small.ppo.logits(params, stats, features))
    np.testing.assert_allclose(found.apply(np.asarray(features), np), expected, atol=1e-5)
    pick = scene.load("pick")
    assert found.spec.action.joints == joints.ACTUATORS
    np.testing.assert_allclose(found.spec.action.low, pick.ctrl_low)
    assert found.spec.observation_size == 53


def test_training_can_start_from_an_artifact(small: Small, tmp_path: pathlib.Path) -> None:
    other = small.ppo.init(jax.random.PRNGKey(9))
    found = ppo_policy.to_policy(small.settings, small.env, other, {})
    path = artifact.save(found, tmp_path / "policy", {"observations": np.zeros((1, 53))})
    learner = ppo_policy.with_policy(small.learner, path)
    jax.tree.map(np.testing.assert_array_equal, learner.params["policy"], other.params["policy"])
    assert learner.params["value"] is small.learner.params["value"]
    wider = config.override(small.settings, ["ppo.network.policy=9"])
    with pytest.raises(ArtifactError, match="other shapes"):
        ppo_policy.with_policy(Ppo(wider.ppo, small.env).init(jax.random.PRNGKey(0)), path)


def test_a_policy_of_one_arm_drives_the_first_of_two() -> None:
    pick = artifact.load(assets.data_path("params") / "pick", StatePolicy)
    entry = find_task("handover")
    task = entry.task(scene.load_physics("handover"), entry.config)
    both = ppo_policy.for_first_arm(pick, "handover", task)
    assert (both.spec.phase, both.action_size) == ("handover", 14)
    assert [part.name for part in both.spec.observation] == [
        name for name, *_ in task.observation_spec
    ]
    mean, std = (pick.weights[name].reshape(4, 1, 53) for name in ("mean", "std"))
    features = mean + std * np.random.default_rng(0).normal(size=(20, 4, 2, 53)).clip(-1, 1)
    actions = both.apply(features.reshape(20, -1), np)
    expected = pick.apply(features[:, :, 0].reshape(20, -1), np)
    np.testing.assert_allclose(actions[:, :7], expected, atol=1e-5)
    np.testing.assert_array_equal(actions[:, 7:], 0)
    # Insertion observes the same, arm by arm, and more behind it; a task of one arm has no first of two.
    insert, alone = (
        one.task(scene.load_physics(one.scene), one.config)
        for one in map(find_task, ("insert", "pick"))
    )
    assert ppo_policy.for_first_arm(pick, "insert", insert).action_size == 14
    with pytest.raises(ArtifactError, match="cannot drive an arm of 'pick'"):
        ppo_policy.for_first_arm(pick, "pick", alone)


def test_a_training_starts_from_a_policy_of_one_arm(
    small: Small, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untrained = ppo_policy.to_policy(small.settings, small.env, small.learner, {})
    first = artifact.save(untrained, tmp_path / "pick", {"observations": np.zeros((1, 53))})
    out = tmp_path / "run"
    start = ["train-teacher", "--phase", "handover", "--preset", "quick", "--out", str(out)]
    chosen = (*TINY, "total_steps=8", "evaluations=0", "task.steps=5")
    settings = [part for setting in chosen for part in ("--set", setting)]
    assert app.main([*start, "--start-from", str(first), *settings]) == 0
    trained = artifact.load(out / "policy", StatePolicy)
    assert trained.spec.phase == "handover"
    assert trained.trained["parents"]["start_from"] == untrained.hash
    capsys.readouterr()
    again = [*start[:-1], str(tmp_path / "other"), "--start-from", str(out / "policy")]
    again[2] = "pick"
    assert app.main([*again, *settings]) == 1
    assert "has no policy for 'pick' to start from" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("field", ["features", "privileged", "reward", "log_prob"])
def test_the_guard_names_the_environment_and_keeps_its_state(
    small: Small, tmp_path: pathlib.Path, field: str
) -> None:
    shape = (2, 4)
    draw = np.random.default_rng(0)
    sizes = {"features": (212,), "privileged": (65,), "raw_action": (7,), "logits": (14,)}
    values: dict[str, Any] = {
        name: draw.normal(size=(*shape, *sizes.get(name, ()))) for name in Rollout._fields
    }
    physics = Physics(draw.normal(size=(4, 11)), draw.normal(size=(4, 5)))
    ppo_algorithm.check_finite(Rollout(**values), physics, tmp_path)
    assert not list(tmp_path.iterdir())
    values[field][1, 2, ...] = np.nan if field != "reward" else np.inf
    with pytest.raises(ArtifactError, match=r"Environment 2 .* step 1 ") as caught:
        ppo_algorithm.check_finite(Rollout(**values), physics, tmp_path)
    assert "nonfinite.npz" in str(caught.value)
    with np.load(tmp_path / "nonfinite.npz") as dump:
        np.testing.assert_array_equal(dump["state_before_unroll"], physics.rows[2])
        if field in dump:
            np.testing.assert_array_equal(dump[field], values[field][:, 2])


@pytest.mark.parametrize(
    ("phase", "name"), [(p, n) for p in task_names() for n in find_task(p).presets]
)
def test_presets_are_configurations_of_their_phase(phase: str, name: str) -> None:
    preset = presets.find_preset(phase, name)
    assert preset.phase == phase
    assert preset.updates * preset.ppo.steps_per_update >= preset.total_steps
    assert config.from_dict(type(preset), json.loads(json.dumps(config.to_dict(preset)))) == preset


def test_unknown_phases_and_presets() -> None:
    with pytest.raises(ConfigError, match=r"'pik'.*Did you mean 'pick'"):
        presets.find_preset("pik", "quick")
    with pytest.raises(ConfigError, match=r"'quik'.*Did you mean 'quick'"):
        presets.find_preset("pick", "quik")


def test_every_environment_of_a_training_has_its_own_block_by_the_seed(small: Small) -> None:
    blocks = np.asarray(small.env.context)
    assert len(np.unique(blocks[:, 0])) == 4
    again = ppo_envs.make_env(small.settings, 0, threads=2)
    np.testing.assert_array_equal(again.context, blocks)
    other = ppo_envs.make_env(small.settings, 1, threads=1)
    assert not np.array_equal(other.context, blocks)


def test_the_artifact_is_the_policy_that_was_evaluated_best(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def rate(self: teacher.Teacher, state: ppo_algorithm.PpoState) -> dict[str, float]:
        seen.append(ppo_policy.to_policy(self.settings, self.env, state.learner, {}).hash)
        return {"eval/success": (0.2, 0.9, 0.4, 0.1)[len(seen) - 1]}

    monkeypatch.setattr(teacher.Teacher, "evaluate", rate)
    settings = (*TINY, "total_steps=32", "evaluations=4", "checkpoints=1")
    assert app.main(arguments(tmp_path / "run", settings=settings)) == 0
    found = artifact.load(tmp_path / "run" / "policy", StatePolicy)
    assert len(set(seen)) == 4
    assert found.hash == seen[1]
    assert (found.trained["steps"], found.trained["eval/success"]) == (16, 0.9)


def test_insertion_is_trained_after_a_pick_policy_and_gives_a_teacher(
    random_policy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The whole way at the smallest scale, with a pick policy that raises its empty arm."""
    found = artifact.load(random_policy, StatePolicy)
    weights: dict[str, Any] = {name: np.zeros_like(value) for name, value in found.weights.items()}
    weights["std"] += 1
    weights["layer1/bias"][1] = -3.0
    lifting = StatePolicy(found.spec, weights, {})
    pick = artifact.save(lifting, tmp_path / "pick", {"observations": np.zeros((2, 53))})
    settings = (
        *TINY,
        "collect.variants=4",
        "collect.rounds=1",
        "collect.steps=40",
        "total_steps=16",
    )
    result = teacher.train(
        phase="insert",
        preset="quick",
        out=tmp_path / "run",
        overrides=settings,
        threads=1,
        pick=pick,
    )
    assert result["finished"]
    assert (tmp_path / "run" / "switch_states.npz").exists()
    staged = artifact.load(result["teacher"], StagedPolicy)
    assert staged.pick.hash == lifting.hash
    alone = artifact.load(result["policy"])
    assert alone.hash == staged.insert.hash
    assert alone.trained["parents"] == {"pick": lifting.hash}
    assert alone.spec.action.joints[0] == "left/waist"
    assert len(alone.spec.action.joints) == 14
    newest = max((tmp_path / "run").glob("checkpoint-0*"))  # what an unfinished run is started from
    weights = first_policy(newest, "insert").weights
    for name, value in artifact.load(result["policy"], StatePolicy).weights.items():
        np.testing.assert_array_equal(weights[name], value)
    with pytest.raises(ConfigError, match="pick: "):
        teacher.train("insert", "quick", tmp_path / "run", True, settings, pick=random_policy)
    with pytest.raises(ArtifactError, match="no pick policy"):
        teacher.train(
            "insert", "quick", tmp_path / "other", overrides=settings, pick=result["policy"]
        )


def test_a_training_starts_from_a_run_or_a_checkpoint_of_one(
    unbroken: Trained, tmp_path: pathlib.Path
) -> None:
    whole = artifact.load(unbroken.out / "policy", StatePolicy)
    assert first_policy(unbroken.out, "pick").hash == whole.hash
    newest = max(unbroken.out.glob("checkpoint-0*"))
    weights = first_policy(newest, "pick").weights
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(weights[name], value)
    # One that has not finished has no policy yet: the newest state, as nothing was evaluated.
    under_way = tmp_path / "under_way"
    shutil.copytree(unbroken.out, under_way, ignore=shutil.ignore_patterns("policy"))
    assert first_policy(under_way, "pick").hash == first_policy(newest, "pick").hash
    earlier = min(unbroken.out.glob("checkpoint-0*"))
    assert first_policy(earlier, "pick").hash != whole.hash
    with pytest.raises(ArtifactError, match="trains 'pick', not 'handover'"):
        first_policy(under_way, "handover")
    (under_way / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no run of train-teacher to start from"):
        first_policy(under_way, "pick")
    shutil.copy(unbroken.out / "config.json", under_way)
    shutil.rmtree(under_way / "checkpoint")
    with pytest.raises(ArtifactError, match="holds no checkpoint yet"):
        first_policy(under_way, "pick")
