"""Distillation in compiled JAX on one device does what the loop on the host does; here on Warp's CPU device."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import student_cases

from alohas2r.benchmarks import distillation
from alohas2r.cli import app
from alohas2r.embodiment import history
from alohas2r.envs import noise
from alohas2r.envs.vision import IDEAL, Senses, SensesConfig, SensesState
from alohas2r.errors import ConfigError
from alohas2r.learning.dagger import config as dagger_config
from alohas2r.learning.dagger import learner as dagger_learner
from alohas2r.learning.dagger.collect_device import DeviceCollector
from alohas2r.learning.dagger.collect_host import Collected, HostCollector
from alohas2r.learning.dagger.distiller import DistillState, make_distiller
from alohas2r.learning.dagger.learner import Learner
from alohas2r.learning.dagger.samples import Samples
from alohas2r.learning.run import log as run_log
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import visual_randomization
from alohas2r.rendering.warp import WarpRenderer
from alohas2r.sim import scene
from alohas2r.tasks.insert import hold_out

jax = pytest.importorskip("jax")
pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
jnp = jax.numpy
COUNT, STEPS = 4, 3


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with student_cases.compiled_once(tmp_path_factory):
        yield


def copied(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


class Small:
    """A distillation on Warp with two iterations of samples: the teacher acts, then the student."""

    def __init__(self) -> None:
        settings = student_cases.settings("rgbd", f"steps={STEPS}", "ahead=1", "senses.shadows=0.5")
        self.teacher = student_cases.staged()
        self.distiller = make_distiller(
            settings, self.teacher, student_cases.encoder(), 3, 1, engine="warp"
        )
        assert isinstance(self.distiller.collector, DeviceCollector)
        self.begin = self.distiller.init()
        self.learner = self.begin.learner
        self.first = self.distiller.collect(self.begin)
        self.later = self.learner._replace(iteration=self.learner.iteration + 1)
        self.second = self.distiller.collect(self.first[0]._replace(learner=self.later))


def episodes(sense: SensesState | None) -> np.ndarray:
    assert sense is not None
    return np.asarray(sense.episode)


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


def test_collection_is_what_the_loop_on_the_host_collects(small: Small) -> None:
    distiller = small.distiller
    host = HostCollector(distiller.setup, distiller.host_step, distiller.frozen)

    def collect(state: DistillState) -> tuple[DistillState, Collected]:
        world, collected = host.collect(state.learner, state.world)
        samples = jax.tree.map(jnp.asarray, copied(collected.samples))
        return state._replace(world=world), collected._replace(samples=samples)

    first = collect(small.begin)
    second = collect(first[0]._replace(learner=small.later))
    for ours, theirs in ((small.first, first), (small.second, second)):
        for name, mine, other in zip(
            Samples._fields, ours[1].samples, theirs[1].samples, strict=True
        ):
            if name == "near":  # of students that see pairs alone
                assert mine is other is None
                continue
            mine, other = (np.asarray(value, np.float64) for value in (mine, other))
            assert mine.shape == other.shape
            assert mine.shape[0] == STEPS * COUNT
            # A pixel at an edge may fall on either side.
            close = np.isclose(mine, other, atol=2 if name == "rgb" else 1e-4)
            assert close.mean() > (0.99 if name in ("rgb", "depth") else 0.9999), name
        (mine, *ours_after), (other, *theirs_after) = (
            (world.env.task, world.env.control, world.physics.qpos, world.readout.sensordata)
            for world in (ours[0].world, theirs[0].world)
        )
        jax.tree.map(np.testing.assert_array_equal, mine, other)
        jax.tree.map(
            lambda mine, other: np.testing.assert_allclose(mine, other, atol=1e-4, rtol=1e-4),
            ours_after,
            theirs_after,
        )
        last, scores = ours[1].scores[0], theirs[1].scores
        np.testing.assert_array_equal(last.done, [scored.done for scored in scores])
        np.testing.assert_array_equal(last.finite, [scored.finite for scored in scores])
        np.testing.assert_array_equal(
            episodes(ours[0].world.sense), episodes(theirs[0].world.sense)
        )
    # Episodes ended and began within, and the pictures show something.
    assert episodes(small.second[0].world.sense).sum() >= COUNT
    assert np.asarray(small.first[1].samples.rgb).std() > 10
    assert (np.asarray(small.first[1].samples.depth) > 0).mean() > 0.3


def test_the_teacher_acts_first_and_the_student_afterwards(small: Small) -> None:
    for (state, data), teacher_acts in ((small.first, True), (small.second, False)):
        label = np.asarray(data.samples.label).reshape(STEPS, COUNT, 14)[-1]
        going_on = ~np.asarray(data.scores[0].done)[-1]
        assert going_on.any()
        acted = np.asarray(state.world.env.control.actions[:, 0])[going_on]
        assert (np.abs(acted - label[going_on]).max() < 1e-5) == teacher_acts


def test_nothing_but_the_learner_learns(small: Small) -> None:
    distiller = small.distiller
    teacher = {**small.teacher.pick.weights, **small.teacher.insert.weights}
    before = copied((teacher, distiller.frozen, small.learner, small.first[1].samples))
    assert before[1]
    distiller.collect(small.begin)
    learner, figures = distiller.learner.update(small.learner, small.first[1].samples)
    after = copied((teacher, distiller.frozen, small.learner, small.first[1].samples))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    changed = jax.tree.map(
        lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()),
        *(state.params["head"] for state in (small.learner, learner)),
    )
    assert all(jax.tree.leaves(changed))
    assert int(learner.iteration) == 1
    assert figures["loss/imitation"] > 0


def test_nothing_is_fetched_or_sent_within_an_iteration(small: Small) -> None:
    # What has been compiled needs no constants any more.
    distiller = small.distiller
    distiller.learner.update(small.learner, small.first[1].samples)
    with jax.transfer_guard("disallow"):
        _, data = distiller.collect(small.begin)
        distiller.learner.update(small.learner, data.samples)  # its figures are asked for


def test_an_update_at_once_is_that_of_its_parts(small: Small) -> None:
    distiller = small.distiller
    parts = Learner(
        distiller.settings,
        distiller.setup.spec,
        distiller.setup.auxiliary,
        distiller.encoding,
        None,
        distiller.frozen,
        False,
    )
    # Few samples have features that hardly vary, whose normalization would make much of rounding.
    samples = small.second[1].samples
    shape = samples.features.shape
    samples = samples._replace(features=jax.random.normal(jax.random.PRNGKey(0), shape))
    learner, figures = distiller.learner.update(small.later, samples)
    again, same = parts.update(small.later, samples)
    assert figures.keys() == same.keys()
    assert figures["loss/first"] == pytest.approx(same["loss/first"], rel=1e-5)
    for name, value in figures.items():
        assert value == pytest.approx(same[name], rel=1e-3), name
    # Adam makes much of rounding where a gradient is nearly zero.
    first, second, start = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
        for state in (learner, again, small.later)
    )
    assert np.linalg.norm(first - second) < 0.02 * np.linalg.norm(first - start)
    assert int(learner.iteration) == int(again.iteration) == 2


def test_convolutions_are_learnt_in_a_compiled_loop_only_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = student_cases.settings("depth", "cameras.size=32")
    distiller = make_distiller(settings, student_cases.staged(), None, 3, 1, "exact", "cpu")
    for backend, expected in (("cpu", False), ("gpu", True)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert distiller.learner.compiles_passes == expected


def test_matrices_are_multiplied_in_full_on_a_gpu_only_while_distilling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dagger_learner.full_precision()
    def precision() -> str | None:
        return jax.config.values["jax_default_matmul_precision"]

    outside = jax.config.values["jax_default_matmul_precision"]
    for backend, expected in (("cpu", outside), ("gpu", "highest")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert precision() == expected
        assert jax.config.values["jax_default_matmul_precision"] == outside


def test_looks_in_compiled_code_are_those_of_the_host() -> None:
    spec = policies_spec.make_spec(
        scene.load("insert"),
        "rgbd",
        policies_spec.StudentNetworkConfig(),
        policies_spec.CameraSpec(),
        history.HistoryConfig(),
        student_cases.staged().switch,
        0.02,
    )
    half = np.array([0.010, 0.012, 0.014, 0.016])
    peg = scene.load("insert").id("geom", "red_peg")
    for config in (SensesConfig(shadows=0.5), dataclasses.replace(SensesConfig(), looks=False)):
        eyes = Senses(spec, config, half, None)
        state = eyes.reset(jax.random.split(jax.random.PRNGKey(5), COUNT))
        traced = jax.jit(eyes.looks_traced)
        for done in (np.zeros(COUNT, bool), np.array([False, True, False, True])):
            state = eyes.restart(state, jnp.asarray(done))
            expected, found = eyes.looks(state), traced(state)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(found["geom_size"][:, peg, 1], half)
        if config.looks:
            assert len(np.unique(found[visual_randomization.BRIGHTNESS])) == COUNT
            assert np.asarray(found["light_castshadow"])[:2].any()
        assert not np.asarray(found["light_castshadow"])[2:].any()


def test_compiled_code_draws_as_many_environments_as_there_is_capacity_for() -> None:
    drawer = WarpRenderer(scene.load("insert"), 8, 8, capacity=2)
    poses = np.repeat(scene.load("insert").home_qpos[None], 3, 0)
    with pytest.raises(ConfigError, match="2, not 3"):
        jax.jit(drawer.draw)(poses)
    with pytest.raises(ConfigError, match="0, not 3"):
        WarpRenderer(drawer.prepared).draw(jnp.asarray(poses))


@pytest.mark.parametrize(
    ("engine", "renderer", "sees", "cuda", "expected"),
    [
        ("auto", "auto", True, False, ("cpu", "auto")),
        ("auto", "auto", True, True, ("warp", "warp")),
        ("auto", "warp", True, True, ("warp", "warp")),
        ("auto", "exact", True, True, ("cpu", "exact")),
        ("cpu", "warp", True, True, ("cpu", "warp")),
        ("warp", "auto", True, False, ("warp", "warp")),
        ("warp", "raycast", False, False, ("warp", "raycast")),
    ],
)
def test_engine_and_renderer_go_together(
    engine: str,
    renderer: str,
    sees: bool,
    cuda: bool,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warp = pytest.importorskip("warp")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if cuda else "cpu")
    monkeypatch.setattr(warp, "get_cuda_device_count", lambda: int(cuda))
    assert dagger_config.choose_engine(engine, renderer, sees) == expected


def arguments(folder: pathlib.Path, out: str, *more: str) -> list[str]:
    chosen = [part for setting in student_cases.TINY for part in ("--set", setting)]
    parents = ["--teacher", str(folder / "teacher"), "--encoder", str(folder / "encoder")]
    start = ["distill", "--preset", "quick", "--out", str(folder / out), *parents, "--seed", "3"]
    return [*start, "--threads", "1", "--json", *chosen, *more]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    student_cases.save_teacher(tmp_path / "teacher")
    student_cases.save_encoder(tmp_path / "encoder")
    return tmp_path


def test_another_renderer_is_refused_in_a_line(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for renderer in ("raycast", "exact", "opengl"):
        more = ("--engine", "warp", "--renderer", renderer)
        assert app.main(arguments(folder, "run", *more)) == 1
        error = capsys.readouterr().err
        assert f"cannot be combined with the renderer '{renderer}'" in error
        assert error.count("\n") == 1
    with pytest.raises(ConfigError, match="Did you mean 'warp'"):
        dagger_config.choose_engine("wrap", "auto", True)


@pytest.mark.long
@pytest.mark.parametrize("observation", ["rgbd", "state"])
def test_a_run_stops_resumes_and_says_what_it_ran_on(
    observation: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(out: str, *more: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = app.main(arguments(folder, out, "--observation", observation, *more))
        captured = capsys.readouterr()
        return code, json.loads(captured.out or "null"), captured.err

    code, whole, _ = command("whole", "--engine", "warp")
    assert code == 0
    assert whole["finished"]
    assert whole["engine"] == "warp"
    code, broken, _ = command("broken", "--engine", "warp", "--minutes", "0")
    assert code == 0
    assert not broken["finished"]
    assert json.loads((folder / "broken" / "config.json").read_text())["engine"] == "warp"
    # Another engine does not continue it; the run's own is taken if none is named.
    code, _, error = command("broken", "--resume", "--engine", "cpu")
    assert code == 1
    assert "engine: warp -> cpu" in error
    code, resumed, _ = command("broken", "--resume")
    assert code == 0
    assert resumed["engine"] == "warp"
    first, second = (artifact.load(result["student"], StudentPolicy) for result in (whole, resumed))
    for name, value in first.weights.items():
        np.testing.assert_array_equal(value, second.weights[name], err_msg=name)
    trained = artifact.describe(whole["student"])["trained"]
    assert trained["engine"] == "warp"
    assert "--engine warp" in trained["command"]
    rows = [run_log.read_metrics(folder / out / "metrics.jsonl") for out in ("whole", "broken")]
    for row in (*rows[0], *rows[1]):
        row.pop("wall_s")
        assert None not in row.values()
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


def test_a_buffer_that_is_too_small_is_said_in_a_line(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--observation", "state", "--engine", "warp", "--set", "engine.constraints=12")
    assert app.main(arguments(folder, "run", *more)) == 1
    error = capsys.readouterr().err
    assert "set engine.constraints=" in error
    assert error.count("\n") == 1


@pytest.mark.long
def test_a_state_student_learns_on_the_device() -> None:
    settings = dataclasses.replace(
        dagger_config.find_preset("quick", "state"),
        iterations=6,
        num_envs=8,
        steps=4,
        batch=16,
        epochs=16,
        shifts=1,
        learning_rate=(3e-3, 3e-4),
        noise=noise.NONE,
        senses=IDEAL,
        hold_out=hold_out.HoldOutConfig((0.0, 0.0)),
        network=policies_spec.StudentNetworkConfig(hidden=(64,)),
    )
    distiller = make_distiller(settings, student_cases.staged(), None, 0, 1, engine="warp")
    assert distiller.setup.env.engine.name == "warp"
    state = distiller.init()
    losses = []
    for _ in range(settings.iterations):
        state, data = distiller.collect(state)
        state, figures = distiller.update(state, data)
        # On samples before they are learnt from, and at the end of learning from them.
        losses.append((figures["loss/first"], figures["loss/imitation"]))
    assert np.mean([new for new, _ in losses[-3:]]) < 0.5 * losses[0][0]
    assert max(learnt for _, learnt in losses) < 0.2 * losses[0][0]


@pytest.mark.long
def test_one_run_measures_collection_on_the_device_beside_physics_and_rendering(
    folder: pathlib.Path,
) -> None:
    parents = (str(folder / "teacher"), str(folder / "encoder"))
    result = distillation.bench_distill(
        None, 0.2, 1, None, *parents, overrides=student_cases.TINY, engine="warp"
    )
    assert (result["engine"], result["renderer"]) == ("warp", "warp")
    assert result["turns"] >= 3
    physics, rendering, collection, training, limit = (
        result[f"{name}_steps_per_s"]
        for name in ("physics", "rendering", "collection", "training", "limit")
    )
    # Rounded to 0.1, where there are a few steps per second.
    assert 0 < training <= collection
    assert 1 / limit == pytest.approx(1 / physics + 1 / rendering, rel=0.1)
