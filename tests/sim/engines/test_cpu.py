from __future__ import annotations

import os
import pathlib

import mujoco
import numpy as np
import pytest
from scene_cases import random_fields

from alohas2r.errors import ModelError
from alohas2r.sim import scene
from alohas2r.sim.engines.base import snapshot
from alohas2r.sim.engines.cpu import CpuEngine, Physics
from alohas2r.sim.signals import Readout

COUNT, STEPS = 6, 12
EVERYONE = np.ones(COUNT, bool)


class Run:
    """Random actions on different blocks, some of which are pushed about."""

    def __init__(self, name: str = "pick", rows: slice = slice(None), threads: int = 1) -> None:
        self.scene = scene.load_physics(name)
        draw = np.random.default_rng(0)
        fields = random_fields(self.scene, COUNT, draw)
        self.qpos = np.tile(self.scene.home_qpos, (COUNT, 1))
        for arm in self.scene.arms:
            self.qpos[:, arm.qpos[:6]] += draw.normal(0, 0.1, (COUNT, 6))
            self.qpos[:, arm.object_qpos[:3]] += draw.uniform([-0.05, 0, 0], 0.05, (COUNT, 3))
        # In the last one an object is between the fingers, so that forces are felt.
        held, data = self.scene.arms[0], mujoco.MjData(self.scene.model)
        data.qpos[:] = self.qpos[-1]
        mujoco.mj_kinematics(self.scene.model, data)
        tips = [data.site(f"{held.name}/{finger}_fingertip").xpos for finger in ("left", "right")]
        self.qpos[-1, held.object_qpos[:3]] = np.mean(tips, 0)
        self.ctrl = self.scene.home_ctrl + draw.normal(0, 0.3, (STEPS, COUNT, self.scene.model.nu))
        self.qpos, self.ctrl = self.qpos[rows], self.ctrl[:, rows]
        self.count = len(self.qpos)
        self.engine = CpuEngine(
            self.scene, self.count, threads, {name: value[rows] for name, value in fields.items()}
        )
        self.start = self.scene.home_ctrl * np.ones((self.count, 1))

    def reset(self) -> tuple[Physics, Readout]:
        return self.engine.reset(None, np.ones(self.count, bool), self.qpos, self.start)

    def roll(self, physics: Physics, first: int = 0, last: int = STEPS) -> list[np.ndarray]:
        """Steps; returns all that the states and readouts hold, as bits."""
        found = []
        for ctrl in self.ctrl[first:last]:
            physics, report = self.engine.step(physics, ctrl)
            kept = snapshot(physics)
            found.append(np.concatenate([kept.rows, kept.sensordata, *report], 1))
        return found


@pytest.fixture(scope="module")
def reference() -> list[np.ndarray]:
    run = Run()
    return run.roll(run.reset()[0])


@pytest.mark.parametrize("name", scene.names())
def test_threads_change_no_bit(name: str, reference: list[np.ndarray]) -> None:
    if name != "pick":
        run = Run(name)
        reference = run.roll(run.reset()[0])
    for threads in (2, 3):
        run = Run(name, threads=threads)
        np.testing.assert_array_equal(run.roll(run.reset()[0]), reference)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(2, 5)])
def test_neighbours_change_no_bit(rows: slice, reference: list[np.ndarray]) -> None:
    run = Run(rows=rows)
    np.testing.assert_array_equal(run.roll(run.reset()[0]), [step[rows] for step in reference])


@pytest.mark.parametrize("name", scene.names())
def test_a_step_is_ten_times_mj_step_and_frames_describe_the_new_state(name: str) -> None:
    run = Run(name)
    physics, report = run.reset()
    force = np.zeros(run.scene.model.nsensordata, bool)
    for sensor, where in run.scene.sensors.items():
        stage = run.scene.model.sensor_needstage[run.scene.id("sensor", sensor)]
        force[where] = stage == mujoco.mjtStage.mjSTAGE_ACC
        assert force[where.start] == sensor.endswith("_force")
    models = [run.engine.batch.get_model(row) for row in range(run.count)]
    datas = [mujoco.MjData(model) for model in models]
    for row, (model, data) in enumerate(zip(models, datas, strict=True)):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.ctrl[:] = run.qpos[row], run.start[row]
        mujoco.mj_forward(model, data)
        np.testing.assert_array_equal(physics.sensordata[row], data.sensordata)
    touched = False
    for ctrl in run.ctrl:
        physics, report = run.engine.step(physics, ctrl)
        for row, (model, data) in enumerate(zip(models, datas, strict=True)):
            data.ctrl[:] = ctrl[row]
            for _ in range(scene.SUBSTEPS):
                mujoco.mj_step(model, data)
            np.testing.assert_array_equal(run.engine.batch.qpos[row], data.qpos)
            np.testing.assert_array_equal(run.engine.batch.qvel[row], data.qvel)
            # Forces are those of the last substep, one physics step old.
            np.testing.assert_array_equal(physics.sensordata[row, force], data.sensordata[force])
            lagging = data.sensordata[~force].copy()
            fresh = mujoco.MjData(model)
            fresh.qpos[:], fresh.qvel[:], fresh.ctrl[:] = data.qpos, data.qvel, data.ctrl
            mujoco.mj_forward(model, fresh)
            frames = physics.sensordata[row, ~force]
            np.testing.assert_array_equal(frames, fresh.sensordata[~force])
            assert not np.array_equal(frames, lagging)
            np.testing.assert_array_equal(report.qpos[row], data.qpos.astype(np.float32))
            np.testing.assert_array_equal(report.ctrl[row], ctrl[row].astype(np.float32))
            touched |= bool(data.sensordata[force].any())
    assert touched  # or the force sensors have not been tested
    assert {np.asarray(value).dtype for value in report} == {np.dtype(np.float32)}


def force_places(run: Run) -> np.ndarray:
    names = [name for name in run.scene.sensors if name.endswith(("_force", "_on_table"))]
    return np.concatenate(
        [np.arange(run.scene.model.nsensordata)[run.scene.sensors[n]] for n in names]
    )


def test_a_reset_shows_no_contact_of_the_last_episode_and_leaves_others_alone() -> None:
    run = Run()
    arm = run.scene.arms[0]
    pressed = np.tile(run.scene.home_qpos, (COUNT, 1))
    down = run.start.copy()
    pressed[:, arm.qpos[1]] = down[:, arm.ctrl[1]] = 0.1  # the fingers are in the table
    physics, report = run.engine.reset(None, EVERYONE, pressed, down)
    physics, report = run.engine.step(physics, down)
    places = force_places(run)
    assert (np.abs(np.asarray(report.sensordata)[:, places]).sum(1) > 0).all()
    before = snapshot(physics)
    mask = np.array([True, False, True, False, False, True])
    home = np.tile(run.scene.home_qpos, (COUNT, 1))
    home[:, arm.object_qpos[2]] = 0.3  # in the air
    physics, report = run.engine.reset(physics, mask, home, run.start)
    assert (np.asarray(report.sensordata)[np.ix_(mask, places)] == 0).all()
    np.testing.assert_array_equal(physics.rows[~mask], before.rows[~mask])
    np.testing.assert_array_equal(physics.sensordata[~mask], before.sensordata[~mask])
    # What was reset is as in an engine that never saw another episode.
    other = Run()
    fresh, fresh_report = other.engine.reset(None, EVERYONE, home, run.start)
    np.testing.assert_array_equal(physics.rows[mask], fresh.rows[mask])
    np.testing.assert_array_equal(
        np.asarray(report.sensordata)[mask], np.asarray(fresh_report.sensordata)[mask]
    )
    for _ in range(3):
        physics, report = run.engine.step(physics, run.start)
        fresh, fresh_report = other.engine.step(fresh, run.start)
    np.testing.assert_array_equal(physics.rows[mask], fresh.rows[mask])


def test_velocities_can_be_given_and_are_zero_otherwise() -> None:
    run = Run()
    physics, report = run.reset()
    assert (np.asarray(report.qvel) == 0).all()
    physics, _ = run.engine.step(physics, run.ctrl[0])
    velocity = np.random.default_rng(1).normal(size=(COUNT, run.scene.model.nv))
    physics, report = run.engine.reset(physics, EVERYONE, run.qpos, run.start, velocity)
    np.testing.assert_array_equal(report.qvel, velocity.astype(np.float32))
    physics, report = run.engine.reset(physics, EVERYONE, run.qpos, run.start)
    assert (np.asarray(report.qvel) == 0).all()


def test_a_snapshot_continues_bit_for_bit_here_and_elsewhere(reference: list[np.ndarray]) -> None:
    run = Run()
    physics, _ = run.reset()
    run.roll(physics, 0, 5)
    kept = snapshot(physics)
    untouched = kept.rows.copy()
    rest = run.roll(physics, 5)
    np.testing.assert_array_equal(rest, reference[5:])
    np.testing.assert_array_equal(kept.rows, untouched)
    np.testing.assert_array_equal(run.roll(kept, 5), reference[5:])
    other = Run(threads=2)
    np.testing.assert_array_equal(other.roll(kept, 5), reference[5:])
    report = np.concatenate(other.engine.readout(kept), 1)
    width = report.shape[1]
    np.testing.assert_array_equal(report, reference[4][:, -width:])


def test_divergence_is_seen_and_cured_by_a_reset(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reference: list[np.ndarray]
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file here
    run = Run()
    physics, _ = run.reset()
    physics.rows[1] = np.nan
    run.engine.batch.bind("qvel")[4] = 1e12
    found = []
    for ctrl in run.ctrl[:3]:
        physics, report = run.engine.step(physics, ctrl)
        found.append(np.isfinite(np.concatenate([report.qpos, report.qvel], 1)).all(1))
    healthy = np.array([True, False, True, True, False, True])
    np.testing.assert_array_equal(found[-1], healthy)
    np.testing.assert_array_equal(
        physics.rows[healthy], reference[2][healthy, : physics.rows.shape[1]]
    )
    physics, report = run.engine.reset(physics, ~healthy, run.qpos, run.start)
    rest = np.stack(run.roll(physics, 0, 3))
    assert np.isfinite(rest).all()
    np.testing.assert_array_equal(rest[:, ~healthy], np.stack(reference[:3])[:, ~healthy])


def test_fields_that_do_not_fit_are_refused() -> None:
    loaded = scene.load_physics("pick")
    with pytest.raises(ModelError, match="'geom_sise'"):
        CpuEngine(loaded, 2, 1, {"geom_sise": np.zeros((2, 3))})
    with pytest.raises(ModelError, match="'body_mass'"):
        CpuEngine(loaded, 2, 1, {"body_mass": np.zeros((2, 3))})
    assert CpuEngine(loaded, 2).threads == len(os.sched_getaffinity(0))


def test_the_scene_itself_is_left_alone() -> None:
    loaded = scene.load_physics("pick")
    mass, flags = loaded.model.body_mass.copy(), loaded.model.opt.disableflags
    run = Run()
    run.roll(run.reset()[0], 0, 1)
    np.testing.assert_array_equal(loaded.model.body_mass, mass)
    assert loaded.model.opt.disableflags == flags
