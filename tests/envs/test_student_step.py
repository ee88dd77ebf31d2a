from __future__ import annotations

import jax
import numpy as np
import pytest
import student_cases

from alohas2r.embodiment.history import HistoryConfig
from alohas2r.envs import student_step
from alohas2r.envs.env import Env
from alohas2r.envs.repeated_measurement import RepeatedMeasurement
from alohas2r.envs.task import EnvConfig
from alohas2r.envs.vision import IDEAL, Senses
from alohas2r.policies import spec as policies_spec
from alohas2r.rendering.registry import make_renderer
from alohas2r.sim import scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.task import InsertTask

pytestmark = pytest.mark.compiles

COUNT = 3


def make_env(draws: int = 0) -> Env:
    loaded = scene.load_physics("insert")
    task = InsertTask(loaded, InsertConfig(steps=5))
    engine = CpuEngine(loaded, COUNT, threads=1)
    context = np.stack([np.full(COUNT, 0.01), np.zeros(COUNT)], 1)
    config = EnvConfig(history=HistoryConfig((0.5,)))
    if draws:
        return RepeatedMeasurement(draws, task, engine, config, context)
    return Env(task, engine, config, context)


def keys(seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.PRNGKey(seed), COUNT)


def test_a_student_without_senses_observes_what_the_teacher_does() -> None:
    for env in (make_env(), make_env(draws=2)):
        state, _, readout = env.reset(keys())
        drawn = student_step.draw(None, None, readout)
        assert drawn is None
        observed = student_step.observe(env, None, state, readout, None, drawn)
        _, features, _ = env.observe(state, readout)
        np.testing.assert_array_equal(observed.known, features)
        mine = features if features.ndim == 2 else features[:, 0]
        np.testing.assert_array_equal(observed.seen.features, mine)
        size = env.task.observation_size
        np.testing.assert_array_equal(observed.seen.vector, np.asarray(mine)[:, :size])
        assert observed.seen.rgb is None
        assert observed.sense is None
        # The environments' noise has moved on.
        assert (np.asarray(observed.state.key) != np.asarray(state.key)).any()


def test_a_student_with_senses_sees_the_pictures_and_its_own_joints() -> None:
    env = make_env()
    spec = policies_spec.make_spec(
        scene.load("insert"),
        "rgbd",
        policies_spec.StudentNetworkConfig(),
        policies_spec.CameraSpec(),
        HistoryConfig((0.5,)),
        student_cases.staged().switch,
        0.02,
    )
    senses = Senses(spec, IDEAL, np.full(COUNT, 0.01), make_renderer("exact", 32, 1))
    state, _, readout = env.reset(keys())
    sense = senses.reset(keys(1))
    drawn = student_step.draw(senses, sense, readout)
    assert drawn is not None
    frames, _ = drawn
    assert frames is not None
    step = jax.jit(lambda *given: student_step.observe(env, senses, *given))
    observed = step(state, readout, sense, drawn)
    np.testing.assert_array_equal(observed.seen.rgb, frames.rgb)
    np.testing.assert_array_equal(observed.seen.depth, frames.depth)
    joint_pos = np.asarray(observed.signals.qpos).reshape(COUNT, -1)
    np.testing.assert_allclose(observed.seen.vector[:, : joint_pos.shape[1]], joint_pos, atol=1e-6)
    np.testing.assert_array_equal(observed.sense.seen, np.ones(COUNT))
    # What the teacher knows comes beside it, from the same state.
    np.testing.assert_allclose(observed.known, jax.jit(env.observe)(state, readout)[1], atol=1e-6)
