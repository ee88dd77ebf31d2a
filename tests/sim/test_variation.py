"""Robots that differ: what is drawn reaches the physics, and what is held stands between arms and policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.envs.actuation import IDEAL
from alohas2r.envs.env import Env
from alohas2r.envs.noise import NONE
from alohas2r.envs.task import EnvConfig, EnvState
from alohas2r.errors import ConfigError
from alohas2r.sim import geometry, physics_randomization, scene, signals, variation
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.objects import SOCKET_HALF, TABLE_HEIGHT
from alohas2r.sim.physics_randomization import ObjectRanges
from alohas2r.sim.signals import Readout
from alohas2r.sim.variation import NEUTRAL, ROBOTS, VARIATION_DRAWS, VariationConfig
from alohas2r.tasks.building import build, count_draws
from alohas2r.tasks.insert.appearance import pictured_geometry
from alohas2r.tasks.registry import find_task

pytestmark = pytest.mark.compiles

COUNT = 6


def uniform(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, VARIATION_DRAWS))


def environments(config: VariationConfig, count: int = COUNT, task: str = "insert"):
    """Environments without noise or jitter, whose robots vary."""
    entry = find_task(task)
    env = EnvConfig(control=IDEAL, noise=NONE, contacts=True, variation=config)
    draws = np.random.default_rng(0).random((count, count_draws(entry, env)))
    settings = entry.conditions(entry.protocol).task
    return build(entry, settings, env, draws, 1)


def test_nothing_varies_by_default() -> None:
    assert not NEUTRAL.varies
    assert environments(NEUTRAL).robots is None
    assert EnvConfig().variation == NEUTRAL


@pytest.mark.parametrize("name", ["insert_contact", "pick_contact", "handover"])
def test_neutral_ranges_leave_the_fields_as_they_are(name: str) -> None:
    loaded = scene.load_physics(name)
    robots = variation.sample(loaded, NEUTRAL, uniform())
    for field, value in variation.apply(loaded, {}, robots.drawn).items():
        nominal = np.asarray(getattr(loaded.model, field))
        expected = np.broadcast_to(nominal, (COUNT, *nominal.shape))
        np.testing.assert_allclose(value, expected, atol=1e-12, err_msg=field)
    joints = np.random.default_rng(1).normal(size=(COUNT, 7 * len(loaded.arms)))
    np.testing.assert_array_equal(variation.read(robots.held, joints), joints)


def test_draws_fill_their_ranges_and_causes_are_independent() -> None:
    loaded = scene.load_physics("insert_contact")
    robots = variation.sample(loaded, ROBOTS, uniform(4000))
    gain, held = robots.drawn["gain"].reshape(-1, 2, 7), robots.held
    assert ROBOTS.gain[0] <= gain[..., :6].min() < 0.45
    assert 1.8 < gain[..., :6].max() <= ROBOTS.gain[1]
    assert np.median(gain[..., :6]) == pytest.approx(np.sqrt(0.4 * 2.0), rel=0.05)
    assert 4 < gain[..., 6].max() <= ROBOTS.gripper_gain[1]
    offset = held.offset.reshape(-1, 2, 7)
    assert np.deg2rad(1.4) < np.abs(offset[..., :6]).max() <= np.deg2rad(1.5) + 1e-6
    assert 0.0018 < np.abs(offset[..., 6]).max() <= 0.002 + 1e-6
    assert set(held.action_delay) == {0, 1, 2, 3} == set(held.view_delay)
    assert set(held.reading_delay) == {0, 1}
    turned = np.linalg.norm(robots.drawn["rotation"], axis=-1)
    assert turned.max() <= np.deg2rad(1.5) + 1e-9
    values = np.stack(list(robots.causes.values()))
    correlation = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(correlation).max() < 0.08, robots.causes.keys()


def of_servos(**changes: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns by what factors gains and damping [N, 2, 7] change; all else that is drawn must stay as it is."""
    loaded = scene.load_physics("insert_contact")
    others = VariationConfig(gain=(0.5, 2.0), gripper_gain=(0.5, 6.0), damping=(0.5, 2.0))
    before = variation.sample(loaded, others, uniform(500)).drawn
    changed = dataclasses.replace(others, **changes)
    after = variation.sample(loaded, changed, uniform(500)).drawn
    for name in ("joint_friction", "force", "place", "table"):
        np.testing.assert_array_equal(after[name], before[name])
    gain, damping = after["gain"] / before["gain"], after["damping"] / before["damping"]
    return gain.reshape(-1, 2, 7), damping.reshape(-1, 2, 7)


def test_stiffness_is_one_factor_for_the_whole_robot_and_keeps_the_damping_ratio() -> None:
    gain, damping = of_servos(stiffness=(0.5, 7.0))
    stiffness = gain[:, 0, 0]
    assert 0.5 <= stiffness.min() < 0.6
    assert 6 < stiffness.max() <= 7
    np.testing.assert_allclose(gain[..., :6] / stiffness[:, None, None], 1)
    np.testing.assert_allclose(damping[..., :6] ** 2 / stiffness[:, None, None], 1)
    np.testing.assert_allclose(gain[..., 6], 1)
    np.testing.assert_allclose(damping[..., 6], 1)


def test_rigid_joints_follow_as_slowly_and_hang_less() -> None:
    gain, damping = of_servos(rigidity=(0.2, 8.0))
    assert 0.2 <= gain[:, 0, 0].min() < 0.25
    assert 7 < gain[:, 0, 0].max() <= 8
    np.testing.assert_allclose(gain, damping)
    joints = np.log(gain[..., :6].reshape(len(gain), -1))
    assert np.abs(np.corrcoef(joints.T) - np.eye(joints.shape[1])).max() < 0.3  # each for itself
    np.testing.assert_allclose(gain[..., 6], 1)


def test_readings_turn_back() -> None:
    robots = variation.sample(scene.load_physics("insert"), ROBOTS, uniform())
    joints = np.random.default_rng(1).normal(size=(COUNT, 14))
    read = variation.read(robots.held, joints)
    assert np.abs(read - joints).max() > 1e-3
    np.testing.assert_allclose(variation.undo(robots.held, read), joints, atol=1e-6)


def test_episodes_begin_where_the_readings_are_those_of_home() -> None:
    config = VariationConfig(
        zero_deg=1.5, travel_m=0.002, travel_scale=(0.95, 1.05), table_m=(0, 0.03)
    )
    env, _, robots = environments(config)
    assert robots is not None
    state, physics, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), COUNT))
    extract, control = jax.jit(env.extract), jax.jit(env.control)
    felt = jax.jit(env.felt)(state, extract(readout))
    home = np.stack([env.task.scene.home_qpos[arm.qpos] for arm in env.task.scene.arms])
    np.testing.assert_allclose(
        np.asarray(felt.qpos)[..., 1:], home[:, 1:] + np.zeros((COUNT, 2, 7)), atol=1e-5
    )
    exact = np.asarray(extract(readout).qpos)
    assert np.abs(exact[..., 1:6] - home[:, 1:6]).max() > 0.01
    height = np.asarray(readout.qpos)[:, env.task.scene.arms[0].object_qpos[2]]
    np.testing.assert_allclose(height, TABLE_HEIGHT + SOCKET_HALF + robots.held.table, atol=1e-6)
    for _ in range(10):
        state, ctrl = control(state, readout, jnp.zeros((COUNT, 14)))
        state, physics, readout, _ = env.advance(state, physics, ctrl)
    settled = np.asarray(readout.qpos)[:, env.task.scene.arms[0].object_qpos[2]]
    np.testing.assert_allclose(settled, height, atol=5e-4)  # the table is where the object lies


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_commands_arrive_late_by_the_delay_and_the_policy_knows_its_targets(steps: int) -> None:
    seconds = 0.05 * steps
    env, *_ = environments(VariationConfig(action_delay_s=(seconds, seconds), gain=(1.0, 1.001)))
    state, physics, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), COUNT))
    start = np.asarray(readout.ctrl)
    joint = int(env.task.scene.arms[0].ctrl[1])
    action = jnp.zeros((COUNT, 14)).at[:, 1].set(1.0)
    for step in range(5):
        state, ctrl = env.control(state, readout, action)
        moved = np.asarray(ctrl)[:, joint] - start[:, joint]
        np.testing.assert_allclose(moved, ACTION_SCALE * max(0, step + 1 - steps), atol=1e-6)
        told = np.asarray(env.felt(state, env.extract(readout)).ctrl)[:, 0, 1]
        np.testing.assert_allclose(told - start[:, joint], ACTION_SCALE * (step + 1), atol=1e-6)
        state, physics, readout, _ = env.advance(state, physics, ctrl)


def act_in(env: Env) -> Callable[..., tuple[jax.Array, jax.Array, EnvState, jax.Array]]:
    """Returns a compiled step up to the physics: its targets, features, new state and commands."""

    @jax.jit
    def act(
        state: EnvState, readout: Readout, action: jax.Array
    ) -> tuple[jax.Array, jax.Array, EnvState, jax.Array]:
        known = env.felt(state, env.extract(readout)).ctrl
        state, features, _ = env.observe(state, readout)
        state, ctrl = env.control(state, readout, action)
        return known, features, state, ctrl

    return act


def test_what_is_seen_is_late_by_the_delay_but_not_the_policys_own_targets() -> None:
    late = VariationConfig(view_delay_s=(0.1, 0.1), gain=(1, 1.0001))
    prompt = dataclasses.replace(late, view_delay_s=(0, 0))
    envs = [environments(config)[0] for config in (late, prompt)]
    acting = [act_in(env) for env in envs]
    states = [env.reset(jax.random.split(jax.random.PRNGKey(0), COUNT)) for env in envs]
    seen: list[list[np.ndarray]] = [[], []]
    targets: list[list[np.ndarray]] = [[], []]
    for step in range(6):
        for index, env in enumerate(envs):
            state, physics, readout = states[index]
            action = jnp.full((COUNT, 14), 0.5 * np.sin(step))
            known, features, state, ctrl = acting[index](state, readout, action)
            targets[index].append(np.asarray(known).reshape(COUNT, 14))
            seen[index].append(np.asarray(features)[:, : env.task.observation_size])
            states[index] = env.advance(state, physics, ctrl)[:3]
    # A target is seen as what is left of the way from where the joint was seen last.
    sizes = [size for _, size, _ in envs[0].task.observation_spec]
    names = [name for name, _, _ in envs[0].task.observation_spec]
    of_target = [name.endswith("target_ctrl_minus_joint_pos") for name in names]
    where = np.repeat(of_target, sizes)
    for step in range(2, 6):
        # Gains differ by a ten-thousandth, so that the other one varies as well.
        expected = seen[1][step - 2].copy()
        expected[:, where] += targets[0][step] - targets[1][step - 2]
        np.testing.assert_allclose(seen[0][step], expected, atol=2e-3)
    assert np.abs(seen[0][3] - seen[1][3])[:, ~where].max() > 0.01
    assert np.abs(targets[0][5] - targets[1][3]).max() > 0.005


def test_backlash_leaves_a_joint_where_it_is_within_the_play() -> None:
    env, _, robots = environments(VariationConfig(backlash_deg=(1.0, 1.0)))
    assert robots is not None
    state, _, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), COUNT))
    small = jnp.zeros((COUNT, 14)).at[:, 0].set(0.2)  # 0.004 rad; the play is 0.0087 to each side
    joint, place = int(env.task.scene.arms[0].ctrl[0]), int(env.task.scene.arms[0].qpos[0])
    _, ctrl = env.control(state, readout, small)
    np.testing.assert_allclose(
        np.asarray(ctrl)[:, joint], np.asarray(readout.qpos)[:, place], atol=1e-6
    )
    large = jnp.zeros((COUNT, 14)).at[:, 0].set(1.0)
    _, ctrl = env.control(state, readout, large)
    moved = np.asarray(ctrl)[:, joint] - np.asarray(readout.qpos)[:, place]
    np.testing.assert_allclose(moved, ACTION_SCALE - np.deg2rad(0.5), atol=1e-5)


def test_a_base_that_stands_elsewhere_takes_its_arm_along() -> None:
    loaded = scene.load_physics("insert_contact")
    robots = variation.sample(loaded, VariationConfig(base_m=0.015, base_deg=1.5), uniform(2))
    fields = variation.moved(loaded, robots.drawn)
    nominal = mujoco.MjData(loaded.model)
    nominal.qpos[:] = loaded.home_qpos
    mujoco.mj_forward(loaded.model, nominal)
    model = scene.load_physics.__wrapped__("insert_contact").model
    model.body_pos[:], model.body_quat[:] = fields["body_pos"][1], fields["body_quat"][1]
    data = mujoco.MjData(model)
    data.qpos[:] = loaded.home_qpos
    mujoco.mj_forward(model, data)
    for side in ("left", "right"):
        moved = data.body(f"{side}/gripper_link").xpos - nominal.body(f"{side}/gripper_link").xpos
        assert 0.002 < np.linalg.norm(moved) < 0.06
        # In its own base's frame the gripper is where it was.
        sensor = loaded.sensor(f"{side}/left_fingertip_pos", 3)
        np.testing.assert_allclose(data.sensordata[sensor], nominal.sensordata[sensor], atol=1e-9)


@pytest.mark.parametrize(("hole", "touches"), [(0.017, True), (0.020, False)])
def test_a_peg_of_35_mm_fits_into_a_wide_hole_only(hole: float, touches: bool) -> None:
    loaded = scene.load_physics("insert_contact")
    half = np.array([0.0175])
    fields, _ = physics_randomization.sample_insert(
        loaded,
        physics_randomization.InsertRandomization((0.0175, 0.0175), (1, 1), (1, 1), (1, 1), (1, 1)),
        np.full((1, physics_randomization.INSERT_DRAWS), 0.5),
    )
    fields = physics_randomization.resize_objects(
        loaded, fields, np.array([0.065]), np.array([hole])
    )
    model = scene.load_physics.__wrapped__("insert_contact").model
    for name, value in fields.items():
        target = getattr(model, name)
        target[: len(value[0])] = np.asarray(value[0]).reshape(target[: len(value[0])].shape)
    data = mujoco.MjData(model)
    data.qpos[:] = loaded.home_qpos
    socket, peg = (arm.object_qpos for arm in loaded.arms)
    data.qpos[socket] = [0, 0, 0.5, 1, 0, 0, 0]
    # 30 mm inside, along the axis.
    data.qpos[peg] = [0.048 - 0.030 + 0.065, 0, 0.5, 0, 0, 0, 1]
    mujoco.mj_forward(model, data)
    bodies = {loaded.id("body", "socket"), loaded.id("body", "peg")}
    pairs = [{int(model.geom_bodyid[geom]) for geom in contact.geom} for contact in data.contact]
    assert (bodies in pairs) == touches
    end = data.sensordata[loaded.sensor("peg_end_in_socket", 3)]
    np.testing.assert_allclose(end, [0.018, 0, 0], atol=1e-6)
    assert half[0] < 0.018


def test_sizes_of_objects_stay_in_their_ranges_with_play() -> None:
    config = ObjectRanges((0.040, 0.065), (0.017, 0.020))
    half = np.linspace(0.009, 0.0175, 200)
    draws = np.random.default_rng(0).random((200, physics_randomization.INSERT_DRAWS))
    length, hole = physics_randomization.sample_objects(config, half, draws)
    assert 0.040 <= length.min() < 0.042
    assert 0.063 < length.max() <= 0.065
    assert (hole >= half + 0.001 - 1e-12).all()
    assert hole.max() <= 0.020


def test_pictures_have_the_geometry_of_the_physics() -> None:
    entry = find_task("insert")
    rules = entry.find_protocol("eval-v2")
    conditions = entry.conditions(rules)
    env = conditions.env(EnvConfig().history)
    draws = np.random.default_rng(0).random((4, count_draws(entry, env)))
    built = build(entry, conditions.task, env, draws, 1)
    pictured = pictured_geometry(built.context, built.robots)
    drawn, physics = scene.load("insert"), built.env.task.scene
    engine = built.env.engine
    assert isinstance(engine, CpuEngine)
    for name in ("red_peg", "socket-B", "socket-L", "table"):
        ours, theirs = drawn.id("geom", name), physics.id("geom", name)
        for field in ("geom_size", "geom_pos"):
            expected = np.asarray(engine.batch.expand(field))[:, theirs]
            np.testing.assert_allclose(pictured[field][:, ours], expected, atol=1e-9)
    for side in ("left", "right"):
        base = f"{side}/base_link"
        expected = np.asarray(engine.batch.expand("body_pos"))[:, physics.id("body", base)]
        np.testing.assert_allclose(pictured["body_pos"][:, drawn.id("body", base)], expected)


@pytest.mark.parametrize(
    "wrong",
    [{"gain": (2.0, 1.0)}, {"zero_deg": -1.0}, {"action_delay_s": (0.0, 9.0)}, {"table_m": (0, 1)}],
)
def test_ranges_are_checked(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        VariationConfig(**wrong)


def test_objects_that_rolled_over_look_as_before_where_they_can_be_pushed_about() -> None:
    built = environments(NEUTRAL)
    env, arms = built.env, built.env.task.scene.arms
    state, _, readout = env.reset(jax.random.split(jax.random.PRNGKey(0), COUNT))
    rolled = np.array(readout.qpos)
    quarter = jnp.array([[np.cos(np.pi / 4), np.sin(np.pi / 4), 0, 0]])
    for arm in arms:
        quats = jnp.asarray(rolled[:, arm.object_qpos[3:]])
        rolled[:, arm.object_qpos[3:]] = geometry.quat_multiply(quats, quarter)
    mask = np.ones(COUNT, bool)
    _, after = env.engine.reset(None, mask, rolled, np.asarray(readout.ctrl), None)
    before = env.extract(readout)
    seen, told_apart = env.extract(after), signals.extractor(env.task.scene)(after)
    np.testing.assert_allclose(seen.object_mat, before.object_mat, atol=1e-5)
    assert np.abs(told_apart.object_mat - before.object_mat).max((-1, -2)).min() > 0.9
    views = [env.observe(state, one)[1] for one in (readout, after)]
    np.testing.assert_allclose(views[0], views[1], atol=1e-3)
