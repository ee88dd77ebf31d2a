"""The Warp engine, on Warp's CPU device, does what the CPU engine does."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from scene_cases import has_peg, random_fields

from alohas2r import config
from alohas2r.cli import app
from alohas2r.core import assets, stats
from alohas2r.envs.env import Env
from alohas2r.errors import BackendUnavailable, ConfigError, ModelError
from alohas2r.evaluation import evaluate
from alohas2r.learning.ppo import envs as ppo_envs
from alohas2r.learning.ppo import presets
from alohas2r.learning.ppo import train as teacher
from alohas2r.learning.ppo.learner import Ppo
from alohas2r.learning.run.checkpoint import Checkpoint
from alohas2r.learning.run.log import read_metrics
from alohas2r.policies import artifact, staged
from alohas2r.sim import scene
from alohas2r.sim.engines import registry as engines
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.engines.buffers import BufferConfig
from alohas2r.sim.engines.cpu import CpuEngine

jax = pytest.importorskip("jax")
jnp = jax.numpy
pytestmark = pytest.mark.compiles
COUNT = 6
EVERYONE = np.ones(COUNT, bool)


def fields_of(name: str, count: int = COUNT) -> dict[str, np.ndarray]:
    return random_fields(scene.load_physics(name), count, np.random.default_rng(0))


class Pair:
    """Both engines on the same randomized simulations."""

    def __init__(self, name: str) -> None:
        pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
        from alohas2r.sim.engines.warp import WarpEngine

        self.scene = scene.load_physics(name)
        self.fields = fields_of(name)
        self.cpu = CpuEngine(self.scene, COUNT, 1, self.fields)
        self.warp = WarpEngine(self.scene, COUNT, 1, self.fields)
        self.home = np.tile(self.scene.home_qpos, (COUNT, 1))
        self.ctrl = np.tile(self.scene.home_ctrl, (COUNT, 1))
        needed = self.scene.model.sensor_needstage == 3  # mjSTAGE_ACC
        self.forces = np.repeat(needed, self.scene.model.sensor_dim)

    def pressed(self) -> tuple[np.ndarray, np.ndarray]:
        """Poses and targets with the fingers of all arms in the table."""
        qpos, ctrl = self.home.copy(), self.ctrl.copy()
        for arm in self.scene.arms:
            qpos[:, arm.qpos[1]] = ctrl[:, arm.ctrl[1]] = 0.1
        return qpos, ctrl


@pytest.fixture(scope="module")
def pick() -> Pair:
    return Pair("pick")


def test_without_warp_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "warp", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'mujoco-mjx\[warp\]"):
        engines.make("warp", scene.load_physics("pick"), 2)
    assert engines.choose("auto") == "cpu"


def test_auto_takes_warp_where_cuda_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    warp = pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    cuda = jax.default_backend() == "gpu" and warp.get_cuda_device_count() > 0
    assert engines.choose("auto") == ("warp" if cuda else "cpu")
    # JAX and Warp must both have the device.
    for backend, devices, expected in (("gpu", 1, "warp"), ("cpu", 1, "cpu"), ("gpu", 0, "cpu")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(warp, "get_cuda_device_count", lambda devices=devices: devices)
        assert engines.choose("auto") == expected
        assert engines.choose("cpu") == "cpu"
        assert engines.choose("warp") == "warp"
    with pytest.raises(ConfigError, match=r"'wrap'.*Did you mean 'warp'"):
        engines.choose("wrap")


@pytest.mark.parametrize("name", scene.names())
def test_the_fields_of_each_simulation_and_their_constants_arrive(name: str) -> None:
    pair = Pair(name)
    carried = pair.warp._fields
    assert {"body_mass", "body_inertia", "geom_size", "geom_aabb", "geom_rbound"} <= carried.keys()
    assert {"body_invweight0", "dof_invweight0", "body_subtreemass"} <= carried.keys()
    if has_peg(pair.scene):
        assert {"geom_friction", "actuator_gainprm", "actuator_biasprm", "dof_damping"} <= (
            carried.keys()
        )
    compared = 0
    for row in range(COUNT):
        expected = pair.cpu.batch.get_model(row)
        for field, values in carried.items():
            native = getattr(expected, field)
            np.testing.assert_allclose(
                np.asarray(values)[row].ravel(), native.ravel(), rtol=1e-6, err_msg=field
            )
            compared += not np.array_equal(native, getattr(pair.scene.model, field))
    assert compared > 8 * COUNT


def test_fields_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    loaded = scene.load_physics("pick")
    for fields, part in (
        ({"geom_sise": np.zeros((2, 3))}, "'geom_sise'"),
        ({"body_mass": np.zeros((2, 3))}, "'body_mass'"),
        ({"opt.timestep": np.full(2, 0.001)}, "'opt.timestep' only once"),
    ):
        with pytest.raises(ModelError, match=part):
            engines.make("warp", loaded, 2, 1, fields)


def test_frames_describe_the_new_state_and_forces_the_last_substep(pick: Pair) -> None:
    qpos, ctrl = pick.pressed()
    theirs, native = pick.cpu.reset(None, EVERYONE, qpos, ctrl)
    ours, report = pick.warp.reset(None, EVERYONE, qpos, ctrl)
    # A reset runs the whole forward pass, contacts included.
    size = np.abs(np.asarray(native.sensordata)[:, pick.forces]).max()
    assert size > 10
    np.testing.assert_allclose(report.sensordata, native.sensordata, atol=1e-2 * size)
    theirs, native = pick.cpu.step(theirs, ctrl)
    ours, report = pick.warp.step(ours, ctrl)
    for name, tolerance in (("qpos", 1e-3), ("qvel", 5e-2), ("ctrl", 1e-6)):
        np.testing.assert_allclose(getattr(report, name), getattr(native, name), atol=tolerance)
    forces = np.asarray(report.sensordata)[:, pick.forces]
    np.testing.assert_allclose(
        forces, native.sensordata[:, pick.forces], atol=2e-2 * np.abs(forces).max()
    )
    # Frames are those of a forward pass at the state that is reported.
    again, _ = pick.warp.reset(None, EVERYONE, report.qpos, report.ctrl, report.qvel)
    frames = np.asarray(again.sensordata)[:, ~pick.forces]
    np.testing.assert_allclose(np.asarray(report.sensordata)[:, ~pick.forces], frames, atol=1e-5)
    assert np.abs(np.asarray(again.sensordata)[:, pick.forces] - forces).max() > 1e-3


def test_a_reset_shows_no_contact_of_the_last_episode_and_leaves_others_alone(pick: Pair) -> None:
    qpos, ctrl = pick.pressed()
    physics, _ = pick.warp.reset(None, EVERYONE, qpos, ctrl)
    physics, report = pick.warp.step(physics, ctrl)
    assert (np.abs(np.asarray(report.sensordata)[:, pick.forces]).sum(1) > 0).all()
    mask = np.array([True, False, True, False, False, True])
    home = pick.home.copy()
    home[:, pick.scene.arms[0].object_qpos[2]] = 0.3  # in the air
    after, report = pick.warp.reset(physics, mask, home, pick.ctrl)
    assert (np.asarray(report.sensordata)[np.ix_(mask, pick.forces)] == 0).all()
    fresh, _ = pick.warp.reset(None, EVERYONE, home, pick.ctrl)
    for name in ("qpos", "qvel", "ctrl", "warmstart", "sensordata"):
        new, old = np.asarray(getattr(after, name)), np.asarray(getattr(physics, name))
        np.testing.assert_array_equal(new[~mask], old[~mask])
        np.testing.assert_array_equal(new[mask], np.asarray(getattr(fresh, name))[mask])
    # Nobody restarts, nothing changes.
    same, _ = pick.warp.reset(after, np.zeros(COUNT, bool), home, pick.ctrl)
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_a_state_continues_bit_for_bit(pick: Pair) -> None:
    physics, report = pick.warp.reset(None, EVERYONE, pick.home, pick.ctrl)
    assert (np.asarray(report.qvel) == 0).all()
    physics, _ = pick.warp.step(physics, pick.ctrl + 0.05)
    kept = snapshot(physics)
    first, _ = pick.warp.step(physics, pick.ctrl - 0.05)
    second, _ = pick.warp.step(kept, pick.ctrl - 0.05)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert physics.rows.shape == (COUNT, 15 + 14 + 7 + 14)
    velocity = np.random.default_rng(1).normal(size=(COUNT, 14))
    _, report = pick.warp.reset(physics, EVERYONE, pick.home, pick.ctrl, velocity)
    np.testing.assert_array_equal(report.qvel, velocity.astype(np.float32))


def test_divergence_is_seen_and_cured_by_a_reset(pick: Pair) -> None:
    start, healthy = pick.warp.reset(None, EVERYONE, pick.home, pick.ctrl)
    report = healthy
    broken = start._replace(qpos=start.qpos.at[1].set(np.nan), qvel=start.qvel.at[4].set(1e12))
    for _ in range(2):
        start, healthy = pick.warp.step(start, pick.ctrl)
        broken, report = pick.warp.step(broken, pick.ctrl)
    finite = np.isfinite(np.concatenate([report.qpos, report.qvel], 1)).all(1)
    expected = np.array([True, False, True, True, False, True])
    np.testing.assert_array_equal(finite, expected)
    for ours, theirs in zip(report, healthy, strict=True):
        np.testing.assert_allclose(ours[expected], theirs[expected], atol=1e-5)
    cured, report = pick.warp.reset(broken, ~expected, pick.home, pick.ctrl)
    cured, report = pick.warp.step(cured, pick.ctrl)
    assert all(np.isfinite(np.asarray(value)).all() for value in report)


@pytest.mark.parametrize(
    "buffer", ["constraints", pytest.param("contacts", marks=pytest.mark.long)]
)
def test_what_does_not_fit_is_an_error_that_names_the_number_to_set(
    pick: Pair, buffer: str
) -> None:
    qpos, ctrl = pick.pressed()
    loaded = pick.scene

    def start(value: int) -> Any:
        buffers = BufferConfig(**{buffer: value})
        return engines.make("warp", loaded, COUNT, 1, pick.fields, buffers)

    small = start({"contacts": 2, "constraints": 20}[buffer])
    with pytest.raises(ModelError, match=rf"engine\.{buffer}=\d+") as caught:
        small.reset(None, EVERYONE, qpos, ctrl)
    wanted = int(str(caught.value).split(f"engine.{buffer}=")[1].split()[0].rstrip("."))
    large = start(wanted)
    physics, _ = large.reset(None, EVERYONE, qpos, ctrl)
    large.check(physics)
    # Compiled code cannot raise: it goes on, and whoever asks is told, also after many good steps.
    physics, _ = jax.jit(lambda: small.reset(None, EVERYONE, qpos, ctrl))()
    physics, _ = jax.jit(small.reset)(physics, EVERYONE, pick.home, pick.ctrl)
    with pytest.raises(ModelError, match=rf"engine\.{buffer}=\d+"):
        small.check(physics)
    # Once it has happened it is not forgotten.
    with pytest.raises(ModelError, match=rf"engine\.{buffer}=\d+"):
        small.step(physics, pick.ctrl)


def pair_of_envs(phase: str, count: int) -> list[Env]:
    chosen = [f"ppo.num_envs={count}", "ppo.unroll=4", "ppo.minibatches=1"]
    chosen += [f"collect.variants={count}"] * (phase == "insert")
    chosen += ["ppo.network.policy=8", "ppo.network.value=8"]
    settings = config.override(presets.find_preset(phase, "quick"), chosen)
    return [ppo_envs.make_env(settings, 0, 1, engine=name) for name in engines.ENGINES]


@pytest.mark.parametrize("phase", ["pick", pytest.param("insert", marks=pytest.mark.long)])
def test_observations_and_rewards_agree_without_contact_of_the_arms(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    # In the scene's ten iterations C MuJoCo does not always solve the joints' dry friction to the end, and is then
    # off by up to 4e-3 rad/s in a physics step; Warp is not. Given more iterations, it agrees with Warp.
    options = scene.load_physics(phase).model.opt
    monkeypatch.setattr(options, "iterations", 100)
    monkeypatch.setattr(options, "ls_iterations", 50)
    both = pair_of_envs(phase, COUNT)
    keys = jax.random.split(jax.random.PRNGKey(1), COUNT)
    found: list[dict[str, np.ndarray]] = []
    for env in both:
        state, physics, readout = env.reset(keys)
        observe, control = jax.jit(env.observe), jax.jit(env.control)
        rows: dict[str, list[Any]] = {}
        for step in range(20):
            state, features, privileged = observe(state, readout)
            wave = jnp.arange(COUNT)[:, None] * 0.7 + jnp.arange(env.task.action_size)[None] * 1.3
            state, ctrl = control(state, readout, jnp.sin(0.3 * step + wave))
            state, physics, readout, scored = env.advance(state, physics, ctrl)
            assert not np.asarray(scored.done).any()
            signal = env.extract(readout)
            assert (np.asarray(signal.finger_force) == 0).all()
            row = {"features": features, "privileged": privileged, "reward": scored.reward}
            for name, value in {**row, "qpos": readout.qpos}.items():
                rows.setdefault(name, []).append(np.asarray(value))
        found.append({name: np.stack(values) for name, values in rows.items()})
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, atol=1e-2, err_msg=name)
    assert np.ptp(found[0]["qpos"], axis=0).max() > 0.1
    assert np.abs(found[0]["reward"]).max() > 0.01


def test_a_compiled_unroll_is_what_the_loop_over_the_cpu_engine_is() -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    both = pair_of_envs("pick", 4)
    settings = config.override(
        presets.find_preset("pick", "quick"),
        ["ppo.num_envs=4", "ppo.unroll=4", "ppo.network.policy=8", "ppo.network.value=8"],
    )
    keys = jax.random.split(jax.random.PRNGKey(1), 4)
    results = []
    for env in both:
        ppo = Ppo(settings.ppo, env)
        learner = ppo.init(jax.random.PRNGKey(0))
        state, physics, readout = env.reset(keys)
        # One episode is over in the second step: it starts anew within the unroll.
        last = env.task.config.steps - 2
        state = state._replace(task=state.task._replace(step=state.task.step.at[1].set(last)))
        rollout, final, state, physics, readout, scores = ppo.rollout(
            learner, state, physics, readout
        )
        finite = np.stack([np.asarray(scored.finite) for scored in scores]).reshape(4, 4)
        results.append((rollout, final, state, readout, scores[-1].measures, finite))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-2, rtol=1e-2),
        results[1],
        results[0],
    )
    assert np.asarray(results[1][0].done)[:, 1].tolist() == [False, True, False, False]
    assert results[1][5].all()


TINY = (
    *("ppo.num_envs=4", "ppo.unroll=2", "ppo.minibatches=2", "ppo.epochs=1"),
    *("ppo.network.policy=8", "ppo.network.value=8", "task.steps=5", "evaluations=0"),
)


def arguments(out: pathlib.Path, *more: str, phase: str = "pick") -> list[str]:
    chosen = [part for setting in (*TINY, "total_steps=32") for part in ("--set", setting)]
    start = ["train-teacher", "--phase", phase, "--preset", "quick", "--out", str(out)]
    return [*start, "--threads", "1", "--seed", "3", "--json", *chosen, *more]


@pytest.mark.long
def test_training_on_warp_stops_resumes_and_says_what_it_ran_on(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert app.main(arguments(whole, "--engine", "warp")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"]
    assert result["engine"] == "warp"
    assert app.main(arguments(broken, "--engine", "warp", "--minutes", "0")) == 0
    assert not json.loads(capsys.readouterr().out)["finished"]
    assert json.loads((broken / "config.json").read_text())["engine"] == "warp"
    # Another engine does not continue it; the run's own is taken if none is named.
    assert app.main(arguments(broken, "--resume", "--engine", "cpu")) == 1
    assert "engine: warp -> cpu" in capsys.readouterr().err
    assert app.main(arguments(broken, "--resume")) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "warp"
    first, second = (artifact.load(out / "policy") for out in (whole, broken))
    assert first.hash == second.hash
    trained = artifact.describe(whole / "policy")["trained"]
    assert trained["engine"] == "warp"
    assert "--engine warp" in trained["command"]
    rows = [read_metrics(out / "metrics.jsonl") for out in (whole, broken)]
    for row in (*rows[0], *rows[1]):
        row.pop("wall_s")
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4
    assert Checkpoint(whole / "checkpoint").exists()


def test_a_run_stops_where_a_buffer_is_too_small(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    small = ("--engine", "warp", "--set", "engine.constraints=12")
    assert app.main(arguments(tmp_path / "run", *small)) == 1
    error = capsys.readouterr().err
    assert "set engine.constraints=" in error
    assert error.count("\n") == 1


@pytest.mark.long
def test_insertion_is_trained_on_warp_from_switch_states(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    settings = (*TINY, "total_steps=16", "collect.variants=4", "collect.rounds=1")
    result = teacher.train(
        "insert", "quick", tmp_path / "run", overrides=settings, threads=1, engine="warp"
    )
    assert result["finished"]
    assert result["engine"] == "warp"
    assert np.isfinite(list(result["metrics"].values())).all()
    assert isinstance(artifact.load(result["teacher"]), staged.StagedPolicy)


STAGES = ("grasped_both", "lifted_both", "switched", "entered", "inserted")


def compare_rates(policy_path: pathlib.Path, episodes: int) -> None:
    """Fails unless the Wilson intervals of both engines overlap for each stage."""
    found = {
        name: evaluate.evaluate(policy_path, episodes, engine=name, threads=1)
        for name in engines.ENGINES
    }
    for name in STAGES:
        ours, theirs = (
            stats.rate(int(found[engine]["table"][name].sum()), episodes)
            for engine in engines.ENGINES
        )
        assert ours["low"] <= theirs["high"], (name, ours, theirs)
        assert theirs["low"] <= ours["high"], (name, ours, theirs)
    assert found["warp"]["engine"] == "warp"
    assert not found["warp"]["table"]["unstable"].any()


@pytest.mark.long
def test_the_shipped_teacher_does_as_well_on_both_engines() -> None:
    pytest.importorskip("warp", reason="MuJoCo Warp is not installed")
    compare_rates(assets.data_path("params") / "teacher", 512)
