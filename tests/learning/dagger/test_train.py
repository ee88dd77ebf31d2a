from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import student_cases
from brax.training.distribution import NormalTanhDistribution

from alohas2r import config as config_module
from alohas2r.benchmarks import distillation
from alohas2r.cli import app
from alohas2r.embodiment import joints as embodiment_joints
from alohas2r.envs import noise
from alohas2r.envs.vision import IDEAL
from alohas2r.errors import ArtifactError, ConfigError, ModelError
from alohas2r.learning.dagger import config as dagger_config
from alohas2r.learning.dagger import host_buffers, labels
from alohas2r.learning.dagger import train as dagger
from alohas2r.learning.dagger import worlds as dagger_worlds
from alohas2r.learning.dagger.distiller import Distiller, DistillState, make_distiller
from alohas2r.learning.dagger.samples import Samples
from alohas2r.learning.dagger.student_step import StudentStep
from alohas2r.learning.run import log as run_log
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies import state as state_policy
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.state import StatePolicy
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim import scene
from alohas2r.tasks.insert import config, hold_out

ITERATIONS = 12
LONG = (*student_cases.TINY, f"iterations={ITERATIONS}", "checkpoints=6")


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


class Paths:
    def __init__(self, folder: pathlib.Path) -> None:
        self.teacher = student_cases.save_teacher(folder / "teacher")
        self.encoder = student_cases.save_encoder(folder / "encoder")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return Paths(tmp_path_factory.mktemp("parents"))


def arguments(paths: Paths, out: pathlib.Path, *more: str) -> list[str]:
    chosen = [part for setting in LONG for part in ("--set", setting)]
    parents = ["--teacher", str(paths.teacher), "--encoder", str(paths.encoder)]
    start = ["distill", "--preset", "quick", "--out", str(out), "--renderer", "exact"]
    return [*start, *parents, "--threads", "1", "--seed", "3", "--json", *chosen, *more]


@pytest.fixture(scope="module")
def unbroken(paths: Paths, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An unbroken run by the command line."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    assert app.main(arguments(paths, out)) == 0
    return out


def leaves(out: pathlib.Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(out / "checkpoint" / "arrays")
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.long
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(
    paths: Paths,
    unbroken: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "broken"
    environment = {**os.environ, **student_cases.compile_environment()}
    process = subprocess.Popen(
        [sys.executable, "-m", "alohas2r.cli", *arguments(paths, out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") >= 4
    ):
        time.sleep(0.005)
    process.kill()
    complaints = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, complaints
    assert not (out / "student").exists()

    capsys.readouterr()
    assert app.main(arguments(paths, out, "--resume")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"] is True
    assert result["steps"] == 8 * ITERATIONS
    first, second = leaves(unbroken), leaves(out)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    hashes = [artifact.load(path / "student", StudentPolicy).hash for path in (unbroken, out)]
    assert hashes[0] == hashes[1]
    rows = [run_log.read_metrics(path / "metrics.jsonl") for path in (unbroken, out)]
    for row in (*rows[0], *rows[1]):
        row.pop("wall_s")
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(8, 8 * ITERATIONS + 1, 8))


def test_a_run_leaves_what_it_promises(paths: Paths, unbroken: pathlib.Path) -> None:
    described = artifact.describe(unbroken / "student")
    assert described["kind"] == "student"
    assert described["observation"] == "rgbd"
    trained = described["trained"]
    assert trained["seed"] == 3
    assert trained["steps"] == 8 * ITERATIONS
    assert trained["command"].startswith("alohas2r distill --preset quick --observation rgbd")
    teacher = dagger.load_teacher(paths.teacher)
    assert trained["parents"]["teacher"] == teacher.hash
    assert trained["parents"]["encoder"] == student_cases.encoder().hash
    found = artifact.load(unbroken / "student", StudentPolicy)
    # The frozen encoder is the one that was given; the memory does not grow with the run.
    expected = student_cases.encoder().weights
    for name, value in expected.items():
        np.testing.assert_array_equal(found.weights[f"encoder/{name}"], value)
    for row in run_log.read_metrics(unbroken / "metrics.jsonl"):
        assert {"loss/imitation", "loss/first", "train/switched"} <= row.keys()
        assert None not in row.values()


def test_the_artifact_is_the_student_that_was_evaluated_best(
    paths: Paths, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def rate(self: Distiller, state: DistillState) -> dict[str, float]:
        seen.append(self.learner.to_policy(state.learner, {}).hash)
        return {"eval/success": (0.2, 0.9, 0.4, 0.1)[len(seen) - 1]}

    monkeypatch.setattr(Distiller, "evaluate", rate)
    settings = ("iterations=4", "evaluations=4", "checkpoints=1")
    chosen = [part for setting in settings for part in ("--set", setting)]
    assert app.main(arguments(paths, tmp_path / "run", *chosen)) == 0
    found = artifact.load(tmp_path / "run" / "student", StudentPolicy)
    assert len(set(seen)) == 4
    assert found.hash == seen[1]
    assert found.trained["steps"] == 16


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--resume", "--set", "batch=8"], ["batch", "4 -> 8"]),
        (["--resume", "--seed", "4"], ["seed: 3 -> 4"]),
        ([], ["holds a run already", "--resume"]),
        (["--set", "batch=5"], ["batch = 5 must divide"]),
        (["--set", "shifts=9"], ["shifts"]),
    ],
)
def test_another_configuration_does_not_continue_a_run(
    paths: Paths,
    unbroken: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    parts: list[str],
) -> None:
    capsys.readouterr()
    assert app.main(arguments(paths, unbroken, *more)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_what_cannot_be_distilled_is_said_in_a_line(
    paths: Paths, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, part in (
        (["--teacher", "params/pick"], "is no staged teacher"),
        (["--encoder", str(tmp_path)], "pretrain-encoder"),
        (["--teacher", str(tmp_path / "nowhere")], "nowhere"),
    ):
        assert app.main([*arguments(paths, tmp_path / "run"), *more]) == 1
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1


def start_arguments(paths: Paths, out: pathlib.Path, start: pathlib.Path, *more: str) -> list[str]:
    """As `arguments`, from a student instead of an encoder."""
    plain = arguments(paths, out, *more)
    at = plain.index("--encoder")
    return [*plain[:at], "--start-from", str(start), *plain[at + 2 :]]


def test_a_student_learns_on_from_what_it_was(
    paths: Paths, unbroken: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    start = unbroken / "student"
    more = ("--set", "iterations=2", "--set", "average=0", "--set", "noise.object_pos=0.03")
    assert app.main(start_arguments(paths, tmp_path / "on", start, *more)) == 0
    before, after = (
        artifact.load(folder, StudentPolicy) for folder in (start, tmp_path / "on" / "student")
    )
    assert after.trained["parents"]["start_from"] == before.hash
    assert "--start-from" in after.trained["command"]
    assert before.weights.keys() == after.weights.keys()
    for name, value in before.weights.items():
        change = np.abs(after.weights[name] - value).max()
        if name in ("mean", "std") or name.startswith("encoder/"):
            assert change == 0, name
        else:  # four steps of Adam at most, and the last layer began at almost 0
            assert 0 < change < 0.01, name

    settings = student_cases.settings()
    started = make_distiller(
        settings, student_cases.staged(), student_cases.encoder(), 3, 1, "exact", begun=before
    )
    policy = started.learner.to_policy(started.init().learner, {})
    for name, value in before.weights.items():
        np.testing.assert_array_equal(policy.weights[name], value, err_msg=name)


def test_a_student_that_learning_cannot_go_on_with_is_said_in_a_line(
    paths: Paths,
    unbroken: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = unbroken / "student"
    for more, part in (
        (("--encoder", "none"), "leave --encoder out"),
        (("--set", "network.hidden=8,8"), "network.hidden: "),
        (("--set", "control.scale=0.01"), "action.scale: 0.02 -> 0.01"),
        (("--set", "ahead=1"), "ahead"),
    ):
        assert app.main(start_arguments(paths, tmp_path / "run", start, *more)) == 1
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
    assert app.main(start_arguments(paths, tmp_path / "run", paths.teacher)) == 1
    assert "student" in capsys.readouterr().err


def copied(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


class Small:
    """A distillation that has collected once."""

    def __init__(self) -> None:
        self.settings = student_cases.settings()
        self.teacher = student_cases.staged()
        self.encoder = student_cases.encoder()
        self.distiller = make_distiller(self.settings, self.teacher, self.encoder, 3, 1, "exact")
        self.begin = self.distiller.init()
        self.learner = self.begin.learner
        self.state, data = self.distiller.collect(self.begin)
        # The next collection uses the samples' memory again.
        self.samples = jax.tree.map(jnp.asarray, copied(data.samples))


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def test_an_update_leaves_teacher_and_encoder_alone(small: Small) -> None:
    distiller = small.distiller
    teacher_before = copied({**small.teacher.pick.weights, **small.teacher.insert.weights})
    encoder_before = copied(distiller.frozen)
    samples_before = copied(small.samples)
    learner, figures = distiller.learner.update(small.learner, small.samples)
    teacher_after = {**small.teacher.pick.weights, **small.teacher.insert.weights}
    jax.tree.map(np.testing.assert_array_equal, teacher_before, teacher_after)
    jax.tree.map(np.testing.assert_array_equal, encoder_before, copied(distiller.frozen))
    jax.tree.map(np.testing.assert_array_equal, samples_before, copied(small.samples))
    assert "encoder" not in learner.params
    # Everything else learns.
    before, after = small.learner.params["head"], learner.params["head"]
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before, after)
    assert all(jax.tree.leaves(changed))
    assert int(learner.iteration) == 1
    assert figures["loss/imitation"] > 0
    again, _ = distiller.learner.update(small.learner, small.samples)
    jax.tree.map(np.testing.assert_array_equal, copied(again), copied(learner))


def test_the_teacher_acts_first_and_the_student_afterwards(small: Small) -> None:
    distiller = small.distiller
    label = np.asarray(small.samples.label).reshape(2, 4, 14)
    # The newest action that the environments' delay lines hold; none had ended.
    acted = np.asarray(small.state.world.env.control.actions[:, 0])
    np.testing.assert_allclose(acted, label[-1], atol=1e-6)
    later = small.learner._replace(iteration=jnp.int32(1))
    state, data = distiller.collect(distiller.init()._replace(learner=later))
    samples = data.samples
    acted = np.asarray(state.world.env.control.actions[:, 0])
    assert np.abs(acted - np.asarray(samples.label).reshape(2, 4, 14)[-1]).max() > 0.01
    found = distiller.learner.to_policy(later, {})
    inputs: dict[str, Any] = {"features": samples.features[-4:], "switched": samples.switched[-4:]}
    for camera, side in enumerate(embodiment_joints.SIDES):
        inputs[f"{side}_rgb"] = samples.rgb[-4:, camera]
        inputs[f"{side}_depth"] = samples.depth[-4:, camera]
    np.testing.assert_allclose(acted, found.apply(inputs), atol=1e-5)


def restored_from(distiller: Distiller, state: DistillState) -> DistillState:
    """A copy of a state, of the same kinds of arrays."""
    kept = distiller.checkpointed(state)
    world = kept.world
    env_state, sense = jax.tree.map(jnp.asarray, copied((world.env, world.sense)))
    readout = type(world.readout)(*copied(tuple(world.readout)))
    return kept._replace(world=world._replace(env=env_state, readout=readout, sense=sense))


def test_a_state_outlives_the_next_collection_and_samples_the_update(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several worlds' states lie in two buffers that take turns; what a collection begins from is never overwritten."""
    monkeypatch.setattr(dagger_worlds, "WORLD_SIZE", 2)
    distiller = make_distiller(small.settings, small.teacher, small.encoder, 3, 2, "exact")
    state = distiller.init()
    for _ in range(3):
        before = copied(state)
        after, data = distiller.collect(state)
        jax.tree.map(np.testing.assert_array_equal, before, copied(state))
        # Twice from the same state is twice the same, though it lies in a buffer.
        first = copied((after, data))
        second = copied(distiller.collect(state))
        jax.tree.map(np.testing.assert_array_equal, first, second)
        jax.tree.map(np.testing.assert_array_equal, before, copied(state))
        state, data = distiller.collect(state)
        samples = copied(data.samples)
        state, _ = distiller.update(state, data)
        jax.tree.map(np.testing.assert_array_equal, samples, copied(data.samples))


@pytest.mark.long
def test_several_threads_collect_what_one_does(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagger_worlds, "WORLD_SIZE", 2)
    settings = dataclasses.replace(small.settings, ahead=1, precision=1.0)
    found = []
    for threads in (1, 2):
        distiller = make_distiller(settings, small.teacher, small.encoder, 3, threads, "exact")
        parts = [world.where for world in distiller.setup.worlds]
        assert parts == [slice(0, 2), slice(2, 4)]
        begun = distiller.init()
        state, data = distiller.collect(begun)
        first = copied((state, data))
        # From copies, as from a checkpoint.
        restored = restored_from(distiller, state)
        later = begun.learner._replace(iteration=jnp.int32(1))
        second = copied(distiller.collect(restored._replace(learner=later)))
        found.append((first, second))
        (after, (samples, scores)) = first
        label = samples.label.reshape(settings.steps, 4, 14)
        going_on = ~scores[-1].done
        assert going_on.any()
        acted = after.world.env.control.actions[going_on, 0]
        np.testing.assert_allclose(acted, label[-1][going_on], atol=1e-6)
        assert len(scores) == settings.steps
        assert scores[-1].done.shape == (4,)
        assert samples.weight.mean() == pytest.approx(1, abs=1e-5)
        # What follows a sample is its own environment's next step.
        known = samples.known.reshape(settings.steps, 4)
        future = samples.future.reshape(settings.steps, 4, 14)
        assert known[0].any()
        assert not known[-1].any()
        np.testing.assert_array_equal(future[0][known[0]], label[1][known[0]])
        recorded = distiller.record(restored)
        assert len(recorded["switched"]) == 2
    one, two = (jax.tree.leaves(copied(result)) for result in found)
    for mine, other in zip(one, two, strict=True):
        np.testing.assert_array_equal(mine, other)


class Stateful:
    """A state student's first samples; in every episode one object is missing, and all options are on."""

    def __init__(self) -> None:
        settings = student_cases.settings("state", "steps=4", "ahead=2", "precision=1")
        settings = dataclasses.replace(settings, hold_out=hold_out.HoldOutConfig(one=True))
        self.teacher = student_cases.staged()
        distiller = make_distiller(settings, self.teacher, None, 3, 1, "exact")
        state = distiller.init()
        self.held_out = np.asarray(state.world.env.task.held_out)
        _, data = distiller.collect(state)
        self.samples = data.samples
        self.done = np.stack([np.asarray(scored.done) for scored in data.scores])  # [T, N]


@pytest.fixture(scope="module")
def stateful() -> Stateful:
    return Stateful()


def test_labels_are_the_staged_teachers_and_an_arm_without_object_opens_its_gripper(
    stateful: Stateful,
) -> None:
    samples = stateful.samples
    present = np.asarray(samples.present)
    np.testing.assert_array_equal(present[:4], ~stateful.held_out)
    assert (present.sum(1) == 1).all()
    # A state student gets the teacher's own features.
    expected = stateful.teacher.apply(samples.features, samples.switched, jnp)
    shown = present[:, :, None].repeat(7, 2).reshape(16, 14)
    arms = [slice(0, 6), slice(7, 13)]
    for joints in arms:
        wanted = np.where(shown, expected, 0)[:, joints]
        np.testing.assert_allclose(samples.label[:, joints], wanted, atol=1e-5)
    for grip in (6, 13):  # open at first, then led back where the arm had been told to close
        kept = shown[:, grip]
        np.testing.assert_allclose(samples.label[kept, grip], expected[kept, grip], atol=1e-5)
        led = np.asarray(samples.label)[~kept, grip]
        assert (led >= -1e-5).all()
        assert (led <= 0.2 * 0.035 / 0.02 + 1e-5).all()
    assert (np.abs(samples.label).reshape(16, 2, 7).max(-1) > 1e-3).sum() == 16


def test_a_label_is_the_mean_over_independent_measurements(small: Small) -> None:
    env = small.distiller.setup.env
    state, readout = small.begin.world.env, small.begin.world.readout
    _, known, _ = jax.jit(env.observe)(state, readout)
    assert known.shape[:2] == (4, small.settings.draws) == (4, 4)
    for measured in np.asarray(known):
        assert len(np.unique(measured, axis=0)) == 4
    flags = jnp.repeat(state.task.switched[:, None], 4, 1)
    actions = np.asarray(small.teacher.apply(known, flags, jnp))
    assert actions.std(1).max() > 0.01
    held_out = np.repeat(np.asarray(state.task.held_out), 7, -1)
    expected = np.where(held_out, 0, actions.mean(1))  # at the start grippers are open
    np.testing.assert_allclose(small.samples.label[:4], expected, atol=1e-5)


@pytest.mark.parametrize(("guide", "count"), [("insertion", 2), ("all", 4)])
def test_a_guide_takes_the_teachers_place(guide: str, count: int) -> None:
    settings = dataclasses.replace(student_cases.settings("state"), guide=guide)
    teacher = student_cases.staged()
    distiller = make_distiller(settings, teacher, None, 3, 1, "exact")
    world = distiller.init().world
    switched = jnp.arange(4) < 2
    held_out = jnp.zeros((4, 2), bool)
    state = world.env._replace(task=world.env.task._replace(switched=switched, held_out=held_out))
    step = StudentStep(distiller.setup, lambda params, pictures: pictures)
    samples = jax.jit(step.note)(state, world.readout, None, None).samples
    guided = distiller.setup.env.guided(state, world.readout)
    np.testing.assert_allclose(samples.label[:count], guided[:count], atol=1e-5)
    expected = teacher.apply(samples.features, switched, jnp)
    np.testing.assert_allclose(samples.label[count:], expected[count:], atol=1e-5)
    assert (np.abs(guided - expected).max(-1) > 0.1).all()


def test_clocks_are_scattered_at_the_start(small: Small) -> None:
    settings = dataclasses.replace(
        small.settings,
        num_envs=64,
        batch=128,
        observation="state",
        draws=1,
        task=config.InsertConfig(),
    )
    distiller = make_distiller(settings, small.teacher, None, 0, 1, "exact")
    clocks = np.asarray(distiller.init().world.env.task.step)
    assert clocks.min() < 10
    assert clocks.max() > 85
    assert len(np.unique(clocks)) > 30


def test_the_action_changes_with_each_input(unbroken: pathlib.Path) -> None:
    found = artifact.load(unbroken / "student", StudentPolicy)
    with np.load(unbroken / "student" / "check.npz") as recorded:
        rows = {name: recorded[name][:3] for name in found.spec.inputs}
    assert len(rows) == 6
    vector = rows.pop("proprioception")
    # In the first step each average is the vector itself.
    features = np.tile(vector, (1, found.spec.features // vector.shape[1]))
    base = {**rows, "features": features}
    actions = np.asarray(found.apply(base))
    for name, value in base.items():
        if value.dtype == bool:
            changes = [~value]
        elif value.dtype == np.uint8:
            changes = [np.uint8(255) - value]
        elif name.endswith("depth"):
            changes = [np.full_like(value, 0.2)]
        else:
            changes = list(value + 0.3 * np.eye(value.shape[1], dtype=np.float32)[:, None])
        for change in changes:
            difference = np.abs(np.asarray(found.apply({**base, name: change})) - actions)
            assert (difference.max(1) > 1e-7).all(), name


def draw_samples(spec: policies_spec.StudentSpec, count: int, ahead: int = 0) -> Samples:
    """Samples of noise."""
    draw, side = np.random.default_rng(0), spec.cameras.size
    return Samples(
        rgb=jnp.asarray(draw.integers(0, 255, (count, 2, side, side, 3)), jnp.uint8)
        if spec.has_rgb
        else None,
        depth=jnp.asarray(draw.uniform(0, 0.5, (count, 2, side, side)), jnp.float32)
        if spec.has_depth
        else None,
        features=jnp.asarray(draw.normal(size=(count, spec.features)), jnp.float32),
        switched=jnp.asarray(draw.random(count) < 0.5),
        label=jnp.asarray(draw.uniform(-1, 1, (count, 14)), jnp.float32),
        future=jnp.asarray(draw.uniform(-1, 1, (count, ahead, 14)), jnp.float32),
        known=jnp.asarray(draw.random((count, ahead)) < 0.7),
        weight=jnp.ones((count, 14)),
        objects=jnp.asarray(draw.normal(0, 0.1, (count, 2, 3)), jnp.float32),
        present=jnp.asarray(draw.random((count, 2)) < 0.7),
    )


@pytest.mark.parametrize(
    ("observation", "finetune", "auxiliary", "ahead"),
    [("rgb", True, 0.5, 1), ("depth", False, 0.0, 0)],
)
def test_other_students_learn_all_that_they_should(
    small: Small, observation: str, finetune: bool, auxiliary: float, ahead: int
) -> None:
    settings = student_cases.settings(
        observation,
        f"finetune={finetune}",
        f"auxiliary={auxiliary}",
        "cameras.size=32",
        f"ahead={ahead}",
        "average=0.9",
    )
    encoder = small.encoder if observation == "rgb" else None
    distiller = make_distiller(settings, small.teacher, encoder, 3, 1, "exact")
    learner = distiller.learner.init(3)
    assert not distiller.frozen
    assert ("encoder" in learner.params) == (observation == "rgb")
    samples = draw_samples(distiller.setup.spec, settings.samples, ahead)
    new, figures = distiller.learner.update(learner, samples)
    changed = jax.tree.map(
        lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), learner.params, new.params
    )
    assert all(jax.tree.leaves(changed))
    assert ("loss/objects" in figures) == (auxiliary > 0)
    assert ("loss/ahead" in figures) == (ahead > 0)
    # What only training needs is not in the policy, which is the average.
    found = distiller.learner.to_policy(new, {}).weights
    assert not [name for name in found if "objects" in name]
    last = np.asarray(new.averaged["head"]["layer1"]["kernel"])
    assert last.shape == (16, 14 * (1 + ahead))
    np.testing.assert_array_equal(found["head/layer1/kernel"], last[:, :14])
    start, end = (
        np.asarray(tree["head"]["layer1"]["kernel"]) for tree in (learner.params, new.params)
    )
    # Two passes of two batches: between the start and the end, nearer to the start.
    assert 0 < np.abs(last - start).max() < np.abs(end - start).max()


def test_the_depth_only_student_is_as_large_as_published() -> None:
    settings = dagger_config.find_preset("default", "depth")
    assert settings.cameras.size == 64
    spec = policies_spec.make_spec(
        scene.load("insert"),
        "depth",
        settings.network,
        settings.cameras,
        settings.history,
        student_cases.staged().switch,
        0.02,
    )
    shapes = jax.eval_shape(lambda: vision_network.init(spec, jax.random.PRNGKey(0)))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert 300_000 < count < 500_000


def test_a_state_student_learns_its_teacher_to_the_last_bit_of_variance() -> None:
    """Fed with what the teacher knows, without noise, nothing is left to explain."""
    settings = dataclasses.replace(
        dagger_config.find_preset("quick", "state"),
        iterations=100,
        num_envs=32,
        steps=4,
        batch=64,
        epochs=24,
        shifts=1,
        learning_rate=(3e-3, 2e-4),
        noise=noise.NONE,
        senses=IDEAL,
        hold_out=hold_out.HoldOutConfig((0.0, 0.0)),
        network=policies_spec.StudentNetworkConfig(hidden=(128, 128)),
        task=config.InsertConfig(steps=40),
    )
    distiller = make_distiller(settings, student_cases.staged(), None, 0, 0, "exact")
    state = distiller.init()
    ratios = []
    for _ in range(settings.iterations):
        state, data = distiller.collect(state)
        state, figures = distiller.update(state, data)
        ratios.append(figures["loss/imitation"] / figures["loss/label_variance"])
        if len(ratios) >= 5 and max(ratios[-5:]) < 0.02:
            break
    assert ratios[0] > 0.05
    assert max(ratios[-5:]) < 0.02


def test_uncertainty_is_that_of_the_trained_distribution() -> None:
    teacher = student_cases.staged()
    draw = np.random.default_rng(0)
    features = jnp.asarray(draw.normal(size=(20, teacher.spec.history.size(109))), jnp.float32)
    for switched in (False, True):
        flags = jnp.full(20, switched)
        found = np.asarray(labels.staged_std(teacher, features, flags))
        assert found.shape == (20, 14)
        assert (found >= 0).all()  # none where tanh is saturated
        assert (found > 0).mean() > 0.9
    # Drawn from the distribution, actions spread so much (to first order).
    insert = teacher.insert
    weights = dict(insert.weights)
    weights["layer1/bias"] = weights["layer1/bias"].copy()
    weights["layer1/bias"][14:] = -3.0
    sharp = StatePolicy(insert.spec, weights, {})
    values = np.clip((features - sharp.weights["mean"]) / sharp.weights["std"], -10, 10)
    values = state_policy.activate(
        "swish", values @ sharp.weights["layer0/kernel"] + sharp.weights["layer0/bias"], np
    )
    logits = values @ sharp.weights["layer1/kernel"] + sharp.weights["layer1/bias"]
    distribution = NormalTanhDistribution(event_size=14)
    samples = distribution.sample(
        jnp.repeat(jnp.asarray(logits)[None], 4000, 0), jax.random.PRNGKey(0)
    )
    np.testing.assert_allclose(
        labels.teacher_std(sharp, features), np.asarray(samples).std(0), rtol=0.1
    )


def test_weights_follow_the_teachers_precision(stateful: Stateful) -> None:
    samples = stateful.samples
    assert float(samples.weight.mean()) == pytest.approx(1, abs=1e-5)
    std = labels.staged_std(stateful.teacher, samples.features, samples.switched)
    product = np.asarray(samples.weight) * np.maximum(std, labels.LEAST_STD)
    np.testing.assert_allclose(product, product[0, 0], rtol=1e-4)


def test_what_follows_a_sample_is_the_label_of_a_later_step_of_its_episode(
    stateful: Stateful,
) -> None:
    samples, done = stateful.samples, stateful.done
    label = np.asarray(samples.label).reshape(4, 4, 14)
    future = np.asarray(samples.future).reshape(4, 4, 2, 14)
    known = np.asarray(samples.known).reshape(4, 4, 2)
    assert done.any()
    for step in range(4):
        for env in range(4):
            for number in (1, 2):
                expected = step + number < 4 and not done[step : step + number, env].any()
                assert known[step, env, number - 1] == expected
                if expected:
                    np.testing.assert_array_equal(
                        future[step, env, number - 1], label[step + number, env]
                    )


def test_one_run_measures_collection_beside_physics_and_rendering(paths: Paths) -> None:
    result = distillation.bench_distill(
        None,
        0.2,
        1,
        None,
        str(paths.teacher),
        str(paths.encoder),
        overrides=student_cases.TINY,
        renderer="exact",
    )
    assert (result["phase"], result["renderer"]) == ("distill", "raycast")
    assert (result["envs"], result["threads"]) == (4, 1)
    assert result["turns"] >= 3
    physics, rendering, collection, training, limit = (
        result[f"{name}_steps_per_s"]
        for name in ("physics", "rendering", "collection", "training", "limit")
    )
    assert 0 < training < collection
    assert 1 / limit == pytest.approx(1 / physics + 1 / rendering, rel=1e-2)
    # The median of each turn's ratio, which is not quite the ratio of the medians.
    assert result["collection_over_limit"] == pytest.approx(collection / limit, rel=0.4)
    minutes = 4 * 8 / training / 60
    assert result["full_scale_minutes"] == pytest.approx(minutes, abs=0.06)


@pytest.mark.parametrize("name", dagger_config.PRESETS)
@pytest.mark.parametrize("observation", policies_spec.OBSERVATIONS)
def test_presets_are_configurations(name: str, observation: str) -> None:
    preset = dagger_config.find_preset(name, observation)
    assert preset.observation == observation
    plain = json.loads(json.dumps(config_module.to_dict(preset)))
    assert config_module.from_dict(type(preset), plain) == preset


def test_full_scale_is_the_recipes() -> None:
    preset = dagger_config.find_preset("default")
    assert preset.iterations * preset.samples == 2_457_600
    assert (preset.batch, preset.epochs) == (256, 4)
    assert preset.senses.shadows >= 0.25
    assert preset.hold_out.probability == (0.07, 0.18)
    with pytest.raises(ConfigError, match="Did you mean 'quick'"):
        dagger_config.find_preset("quik")
    with pytest.raises(ConfigError, match="Unknown observation 'rgdb'"):
        dagger_config.find_preset("quick", "rgdb")


def test_a_loss_that_is_not_finite_ends_the_run(paths: Paths, tmp_path: pathlib.Path) -> None:
    # The largest there is: two such weights added overflow, on whatever machine.
    overrides = (*student_cases.TINY, "learning_rate=3e38,3e38")
    with pytest.raises(ArtifactError, match="not finite in iteration"):
        dagger.distill(
            "quick", overrides, paths.teacher, paths.encoder, "state", tmp_path, renderer="exact"
        )


def test_threads_take_turns_and_each_generator_is_in_one_at_a_time() -> None:
    done: list[int] = []
    running = [threading.Lock() for _ in range(4)]

    def one(number: int) -> Iterator[None]:
        for _ in range(20):
            assert running[number].acquire(blocking=False), "in two threads at once"
            time.sleep(0.0005)
            done.append(number)
            running[number].release()
            yield

    host_buffers.advance_all([one(number) for number in range(4)], 2)
    assert sorted(done) == sorted(list(range(4)) * 20)
    halfway = [done[:40].count(number) for number in range(4)]
    assert max(halfway) - min(halfway) <= 4, halfway  # one after the other it would be 20


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    def bad() -> Iterator[None]:
        yield
        raise ArtifactError("broken")

    with pytest.raises(ArtifactError, match="broken"):
        host_buffers.advance_all([bad(), iter([None] * 3)], 2)


def test_buffers_are_allocated_once_and_taken_over_without_a_copy() -> None:
    buffers = host_buffers.HostBuffers(4, steps=2)
    places = []
    for value in (1, 2):
        tree = {"a": jnp.full((2, 3), value, jnp.float32), "b": np.full(2, value)}
        for step in (0, 1):
            for where in (slice(0, 2), slice(2, 4)):
                buffers.put(where, tree, step)
        whole = buffers.whole()
        assert isinstance(whole["a"], jax.Array)
        assert isinstance(whole["b"], np.ndarray)
        np.testing.assert_array_equal(whole["a"], np.full((8, 3), value))
        np.testing.assert_array_equal(whole["b"], np.full(8, value))
        assert buffers.holds(whole["b"])
        assert buffers.holds(np.asarray(whole["a"]))
        assert not buffers.holds(np.zeros(8))
        places.append((np.asarray(whole["a"]).ctypes.data, whole["b"].ctypes.data))
    assert places[0] == places[1]
    with pytest.raises(ModelError, match="structure"):
        buffers.put(slice(0, 2), {"a": np.zeros((2, 3), np.float32)}, 0)
