from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.deployment import observation
from alohas2r.embodiment import history
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.embodiment.observation import proprioception
from alohas2r.envs.vision import IDEAL, Senses, SensesConfig, SensesState
from alohas2r.errors import ConfigError
from alohas2r.policies import spec
from alohas2r.policies.spec import CameraSpec, StudentNetworkConfig, StudentSpec
from alohas2r.policies.switch import Switch
from alohas2r.rendering import registry as renderers
from alohas2r.rendering import stereo
from alohas2r.rendering.protocol import Frames
from alohas2r.robots.base import Frame, Proprio
from alohas2r.sim import changed, scene, signals
from alohas2r.sim.changed import WorldParams
from alohas2r.sim.signals import Readout, Signals
from alohas2r.tasks.insert import hold_out
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.insert.hold_out import HoldOutConfig, HoldOutTask
from alohas2r.tasks.insert.task import InsertTask

pytestmark = pytest.mark.compiles
SIZE = 8  # of synthetic pictures


def pairs_of(count: int, step: int) -> Frames:
    """Pictures of pairs: two left imagers, then two right ones, whose depth is of no use."""
    draw = np.random.default_rng(step)
    rgb = np.repeat(draw.integers(20, 90, (count, 4, SIZE, SIZE, 1)), 3, -1).astype(np.uint8)
    depth = np.full(rgb.shape[:-1], 0.1 * (step + 1), np.float32)
    depth[:, 2:] = np.nan
    return Frames(rgb, depth)


def make_spec(size: int = SIZE, rates: tuple[float, ...] = (), kind: str = "rgbd") -> StudentSpec:
    return spec.make_spec(
        scene.load("insert"),
        kind,
        StudentNetworkConfig(),
        CameraSpec(size=size),
        HistoryConfig(rates),
        Switch(),
        0.02,
    )


def make_senses(count: int, config: SensesConfig, rates: tuple[float, ...] = ()) -> Senses:
    """Senses without a renderer: tests hand in the pictures."""
    return Senses(make_spec(rates=rates), config, np.full(count, 0.01), None)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.PRNGKey(seed), count)


def signals_at(qpos: np.ndarray, ctrl: np.ndarray) -> Signals:
    """Signals [N] of a state of the joints; what the student does not observe is zero."""
    insert = scene.load("insert")
    readout = Readout(
        qpos=jnp.asarray(qpos, jnp.float32),
        qvel=jnp.zeros((len(qpos), insert.model.nv)),
        ctrl=jnp.asarray(ctrl, jnp.float32),
        sensordata=jnp.zeros((len(qpos), insert.model.nsensordata)),
    )
    return signals.extractor(insert)(readout)


def home(count: int, step: float = 0.0) -> Signals:
    """The home pose; targets are `step` m or rad beside the positions."""
    insert = scene.load("insert")
    ctrl = np.repeat(insert.home_ctrl[None], count, 0) + step
    return signals_at(np.repeat(insert.home_qpos[None], count, 0), ctrl)


def frames_of(count: int, step: int) -> Frames:
    """Pictures that say when they were taken."""
    rgb = np.full((count, 2, SIZE, SIZE, 3), 10 * step, np.uint8)
    return Frames(rgb, np.full(rgb.shape[:-1], 0.01 * (step + 1), np.float32))


def test_simulation_and_robot_observe_the_same() -> None:
    insert = scene.load("insert")
    draw = np.random.default_rng(0)
    ctrl = insert.home_ctrl + draw.uniform(-0.2, 0.2, 14)
    position = insert.home_ctrl + draw.uniform(-0.2, 0.2, 14)
    qpos = insert.home_qpos.copy()
    for index, arm in enumerate(insert.arms):
        mine = position[7 * index : 7 * index + 7]
        qpos[arm.qpos] = [*mine, mine[6]]
    signal = signals_at(qpos[None], ctrl[None])
    found = proprioception(signal.qpos, signal.ctrl, jnp)[0]
    blank = np.zeros(14)
    reading = Proprio(0.0, position, blank, blank, blank, blank, blank, blank)
    frame = Frame(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), 0.0, 0)
    robot = observation.observe(reading, {"left": frame, "right": frame}, ctrl, False)
    np.testing.assert_allclose(found, robot["proprioception"], atol=1e-6)
    assert found.shape == (make_spec().vector_size,)


def test_without_noise_everything_arrives_as_it_is_and_at_once() -> None:
    eyes = make_senses(3, IDEAL, rates=(0.5,))
    state, remembered = eyes.reset(keys(3)), history.init(HistoryConfig((0.5,)), 32, np, (3,))
    for step in range(3):
        signal = home(3, 0.1 * step)
        state, seen = eyes.perceive(state, frames_of(3, step), np.ones(3), signal)
        np.testing.assert_array_equal(seen.rgb, frames_of(3, step).rgb)
        np.testing.assert_array_equal(seen.depth, frames_of(3, step).depth)
        exact = np.asarray(proprioception(signal.qpos, signal.ctrl, jnp))
        np.testing.assert_array_equal(seen.vector, exact)
        remembered, features = history.update(HistoryConfig((0.5,)), remembered, exact, np)
        np.testing.assert_allclose(seen.features, features, atol=1e-6)


@pytest.fixture(scope="module")
def delayed() -> tuple[Senses, list[SensesState], np.ndarray, np.ndarray]:
    """Many environments with delays: the states, and the age of each step's pictures and vectors."""
    count, steps = 600, 6
    config = dataclasses.replace(IDEAL, delay_weights=(0.5, 0.3, 0.2))
    eyes = make_senses(count, config)
    perceive = jax.jit(eyes.perceive)
    state, states, pictures, vectors = eyes.reset(keys(count)), [], [], []
    for step in range(steps):
        state, seen = perceive(state, frames_of(count, step), np.ones(count), home(count, step))
        states.append(state)
        assert seen.rgb is not None
        assert seen.depth is not None
        age = step - np.asarray(seen.rgb)[:, 0, 0, 0, 0] // 10
        np.testing.assert_allclose(seen.depth[:, 1, 3, 3], 0.01 * (step - age + 1), atol=1e-6)
        pictures.append(age)
        vectors.append(step + np.round(np.asarray(seen.vector[:, 16])).astype(int))
    return eyes, states, np.stack(pictures), np.stack(vectors)


def test_pictures_and_proprioception_arrive_with_one_common_delay(
    delayed: tuple[Senses, list[SensesState], np.ndarray, np.ndarray],
) -> None:
    _, _, pictures, vectors = delayed
    np.testing.assert_array_equal(pictures, vectors)
    # Nothing is older than the episode.
    assert (pictures <= np.arange(len(pictures))[:, None]).all()
    late = pictures[2:]
    shares = [(late == age).mean() for age in range(3)]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.04)
    # Drawn anew in each step and environment.
    assert len({tuple(row) for row in late.T}) > 30


def test_a_new_episode_remembers_nothing(
    delayed: tuple[Senses, list[SensesState], np.ndarray, np.ndarray],
) -> None:
    eyes, states, _, _ = delayed
    count = eyes.num_envs
    done = np.arange(count) % 2 == 0
    state = eyes.restart(states[-1], jnp.asarray(done))
    np.testing.assert_array_equal(state.episode, done.astype(int))
    state, seen = eyes.perceive(state, frames_of(count, 20), np.ones(count), home(count, 20))
    newest = np.asarray(seen.rgb)[:, 0, 0, 0, 0] == 200
    assert newest[done].all()
    assert not newest[~done].all()
    np.testing.assert_array_equal(state.seen, np.where(done, 1, len(states) + 1))


def test_joint_noise_is_symmetric_uniform_and_spares_the_fingers() -> None:
    count = 800
    eyes = make_senses(count, dataclasses.replace(IDEAL, joint_pos=0.1))
    signal = home(count)
    _, seen = eyes.perceive(eyes.reset(keys(count)), frames_of(count, 0), np.ones(count), signal)
    error = np.asarray(seen.vector - proprioception(signal.qpos, signal.ctrl, jnp))
    joints, fingers = error.reshape(count, 4, 8)[..., :6], error.reshape(count, 4, 8)[..., 6:]
    assert not fingers.any()
    assert np.abs(joints).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(joints.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(joints.std(0), 0.1 / np.sqrt(3), rtol=0.1)
    # A target is known exactly: the same error is in the position and in its distance from the target.
    np.testing.assert_allclose(joints[:, :2], joints[:, 2:], atol=1e-6)


def test_looks_stay_for_an_episode_and_do_not_depend_on_the_others() -> None:
    config = dataclasses.replace(SensesConfig(), shadows=0.5)
    half = np.array([0.010, 0.012, 0.014, 0.016])
    eyes = Senses(make_spec(), config, half, None)
    state = eyes.reset(keys(4))
    first = {name: value.copy() for name, value in eyes.looks(state).items()}
    for name, value in eyes.looks(state).items():
        np.testing.assert_array_equal(value, first[name])
    alone = Senses(make_spec(), config, half[:1], None)
    lone = alone.looks(alone.reset(keys(4)[:1]))
    np.testing.assert_array_equal(lone["geom_rgba"][0], first["geom_rgba"][0])
    again = eyes.looks(eyes.restart(state, jnp.array([False, True, False, False])))
    same = (again["geom_rgba"] == first["geom_rgba"]).all((1, 2))
    np.testing.assert_array_equal(same, [True, False, True, True])
    peg = scene.load("insert").id("geom", "red_peg")
    np.testing.assert_allclose(again["geom_size"][:, peg, 1], half)
    # Lights cast shadows in the first half of the environments only.
    assert not again["light_castshadow"][2:].any()
    assert len(np.unique(first["brightness"])) == 4
    assert (first["brightness"] >= 0.5).all()
    assert (first["brightness"] <= 2.5).all()


@pytest.mark.parametrize("looks", [True, "transfer"])
def test_an_episode_gets_other_looks_as_often_as_it_is_told(looks: bool | str) -> None:
    half = np.full(3, 0.012)
    config = dataclasses.replace(SensesConfig(), looks=looks, looks_steps=2)
    stay = dataclasses.replace(config, looks_steps=0)
    eyes, stays = (Senses(make_spec(), given, half, None) for given in (config, stay))
    state = eyes.reset(keys(3))

    def colours(senses: Senses, steps: list[int]) -> np.ndarray:
        seen = state._replace(seen=jnp.array(steps, jnp.int32))
        traced = jax.jit(senses.looks_traced)(seen)["geom_rgba"]
        drawn = senses.looks(seen)["geom_rgba"].copy()
        np.testing.assert_allclose(traced, drawn, atol=1e-6)
        return drawn

    first = colours(eyes, [0, 0, 0])
    np.testing.assert_array_equal(first, colours(stays, [0, 0, 0]))
    np.testing.assert_array_equal(first, colours(stays, [9, 9, 9]))
    later = colours(eyes, [1, 2, 5])
    np.testing.assert_array_equal((later == first).all((1, 2)), [True, False, False])
    np.testing.assert_array_equal(later, colours(eyes, [1, 3, 4]))
    assert not (later[1] == colours(eyes, [1, 4, 4])[1]).all()


@pytest.mark.parametrize("looks", [False, True, "transfer"])
def test_cameras_are_mounted_as_on_a_robot_that_has_them_elsewhere(looks: bool | str) -> None:
    insert, half = scene.load("insert"), np.full(3, 0.010)
    plain = dataclasses.replace(SensesConfig(), looks=looks)
    moved = dataclasses.replace(plain, camera=(30.0, 12.0))
    eyes, before = (Senses(make_spec(), given, half, None) for given in (moved, plain))
    state = eyes.reset(keys(3))
    found, nominal = eyes.looks(state), before.looks(state)
    if not looks:
        # What the robot in a changed world shows.
        world = changed.looks(WorldParams(camera=(30.0, 12.0)), insert)
        assert world is not None
        for name in ("cam_pos", "cam_quat"):
            np.testing.assert_allclose(found[name][1], world[name][0], atol=1e-6)
    wrists = [insert.id("camera", f"wrist_cam_{side}") for side in ("left", "right")]
    for name in ("cam_pos", "cam_quat"):
        traced = jax.jit(eyes.looks_traced)(state)[name]
        np.testing.assert_allclose(traced, found[name], atol=1e-6)
        differ = (found[name] != nominal[name]).any((0, 2))
        np.testing.assert_array_equal(np.flatnonzero(differ), wrists)
    apart = found["cam_pos"] - nominal["cam_pos"]
    np.testing.assert_allclose(np.linalg.norm(apart[:, wrists], axis=-1), 0.030, atol=1e-6)
    between = np.abs((found["cam_quat"] * nominal["cam_quat"]).sum(-1))[:, wrists]
    np.testing.assert_allclose(np.degrees(2 * np.arccos(between)), 12.0, atol=0.1)
    with pytest.raises(ConfigError, match="must lie within 50 mm and 30 degrees"):
        dataclasses.replace(plain, camera=(60.0, 0.0))


def test_what_is_held_out_is_out_of_sight_and_its_arm_stands_still() -> None:
    insert = scene.load_physics("insert")
    task = HoldOutTask(insert, InsertConfig(), HoldOutConfig(one=True))
    plain = InsertTask(insert, InsertConfig())
    context, stage = jnp.array([0.010, 0.0]), jnp.zeros((), jnp.int32)
    starts = {}
    for seed in range(20):
        key = jax.random.PRNGKey(seed)
        state, start = task.reset(key, context, stage)
        side = int(np.argmax(state.held_out))
        starts.setdefault(side, (start, plain.reset(key, context, stage)[1]))
        assert np.asarray(state.held_out).sum() == 1
    assert starts.keys() == {0, 1}
    drawer = renderers.make_renderer("exact", 32, 1)
    for side, (held, nominal) in starts.items():
        away, kept = insert.arms[side], insert.arms[1 - side]
        changed = np.flatnonzero(np.asarray(held.qpos != nominal.qpos))
        assert set(changed) <= set(away.object_qpos.tolist())
        np.testing.assert_array_equal(held.qpos[kept.object_qpos], nominal.qpos[kept.object_qpos])
        # On the table, behind the arm's base as the arm looks.
        place = np.asarray(held.qpos[away.object_qpos[:3]]) - away.base_pos
        assert np.linalg.norm(place[:2]) > 0.3
        assert place[0] * away.base_pos[0] > 0
        # Gone for both cameras: as if it were far below the table.
        gone = np.array(held.qpos)
        gone[away.object_qpos[:3]] = (0, 0, -5)
        frames = drawer.render(np.stack([held.qpos, gone, nominal.qpos]))
        np.testing.assert_array_equal(frames.depth[0], frames.depth[1])
        assert (frames.depth[2, side] != frames.depth[1, side]).any()
    actions = np.random.default_rng(0).normal(size=(2, 14))
    held_out = np.array([[True, False], [False, True]])
    grips = np.array([[0.037, 0.010], [0.020, 0.002]])
    found = hold_out.still(actions, held_out, grips, np.full(2, 0.037), 0.02, np)
    assert not found[0, :7].any()  # it is open
    assert not found[1, 7:13].any()
    assert found[1, 13] == pytest.approx(0.2 * 0.035 / 0.02)  # a fifth of the way back
    np.testing.assert_array_equal(found[0, 7:], actions[0, 7:])
    np.testing.assert_array_equal(found[1, :7], actions[1, :7])


def test_objects_are_missing_as_often_as_told() -> None:
    task = HoldOutTask(scene.load_physics("insert"), InsertConfig(), HoldOutConfig((0.1, 0.3)))
    reset = jax.vmap(lambda key: task.reset(key, jnp.array([0.01, 0]), jnp.int32(0))[0].held_out)
    flags = np.asarray(reset(keys(3000)))
    np.testing.assert_allclose(flags.mean(0), [0.1, 0.3], atol=0.03)
    np.testing.assert_allclose(flags.all(1).mean(), 0.03, atol=0.015)


def test_closing_on_air_is_being_told_to_close_and_finding_nothing() -> None:
    signal = home(4)
    ctrl = signal.ctrl.at[:, :, 6].set(jnp.array([0.002, 0.002, 0.037, 0.002])[:, None])
    qpos = signal.qpos.at[:, :, 6].set(jnp.array([0.003, 0.018, 0.003, 0.037])[:, None])
    found = hold_out.closed_on_air(signal._replace(ctrl=ctrl, qpos=qpos), 0.014)
    np.testing.assert_array_equal(found[:, 0], [True, False, False, False])


@pytest.mark.parametrize(
    "change",
    [{"joint_pos": -1}, {"delay_weights": ()}, {"delay_weights": (0.0,)}, {"shadows": 1.5}],
)
def test_senses_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(SensesConfig(), **change)
    with pytest.raises(ConfigError, match="Unknown renderer 'raycats'"):
        renderers.make_renderer("raycats", 8)


def test_pairs_arrive_together_as_colour_and_grey_with_their_inverse_depth() -> None:
    late = dataclasses.replace(IDEAL, delay_weights=(0.0, 1.0))
    eyes = Senses(make_spec(kind="stereo"), late, np.full(2, 0.01), None)
    state = eyes.reset(keys(2))
    for step in range(3):
        state, seen = eyes.perceive(state, pairs_of(2, step), np.ones(2), home(2))
        then = pairs_of(2, max(step - 1, 0))
        assert seen.rgb is not None
        np.testing.assert_array_equal(seen.rgb[..., :3], then.rgb[:, :2])
        np.testing.assert_array_equal(seen.rgb[..., 3], then.rgb[:, 2:, ..., 0])
        np.testing.assert_allclose(np.asarray(seen.near), 0.1 / then.depth[0, 0, 0, 0], rtol=1e-6)
        assert seen.depth is None


def test_imagers_of_a_pair_share_the_brightness_and_no_noise() -> None:
    spec, count = make_spec(kind="stereo"), 16
    config = SensesConfig(delay_weights=(1.0,), looks=False)
    eyes, frames = Senses(spec, config, np.full(count, 0.01), None), pairs_of(count, 0)
    rgb = np.concatenate([frames.rgb[:, :2]] * 2, 1)  # both imagers are shown the same
    told = np.linspace(0.5, 2.0, count).astype(np.float32)
    _, seen = eyes.perceive(eyes.reset(keys(count)), frames._replace(rgb=rgb), told, home(count))
    found = np.asarray(seen.rgb, float)
    left, right = found[..., 0], found[..., 3]
    clear = rgb[:, :2, ..., 0].astype(float)
    bright = told[:, None, None, None]
    noise = [one / bright - clear for one in (left, right)]
    for one in noise:  # up to 3% of full scale more light, and half a step of rounding
        assert -1.01 <= one.min() <= 0.1
        assert 7.0 < one.max() <= 255 * 0.03 + 1.01
        np.testing.assert_allclose(one.mean((1, 2, 3)), 255 * 0.03 / 2, atol=1.0)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.06
    # The left imager's noise is that of a student that sees colour alone.
    alone = Senses(make_spec(kind="rgb"), config, np.full(count, 0.01), None)
    only = Frames(rgb[:, :2], frames.depth[:, :2])
    _, single = alone.perceive(alone.reset(keys(count)), only, told, home(count))
    np.testing.assert_array_equal(found[..., :3], np.asarray(single.rgb))


def test_the_rig_is_drawn_for_an_episode_and_changes_no_other_look() -> None:
    pair, alone = (
        Senses(make_spec(kind=kind), SensesConfig(), np.full(3, 0.01), None)
        for kind in ("stereo", "rgb")
    )
    state = pair.reset(keys(3))
    first = {name: np.array(value) for name, value in pair.looks(state).items()}
    for name, value in alone.looks(alone.reset(keys(3))).items():
        np.testing.assert_array_equal(first[name], value)
    assert first[stereo.PLACE].shape == (3, 2, 3)
    assert 0 < np.abs(first[stereo.PLACE]).max() <= stereo.PLACE_M
    later = pair.looks(Senses.restart(state, jnp.array([True, False, False])))[stereo.TURN]
    changed = (later != first[stereo.TURN]).any((1, 2))
    np.testing.assert_array_equal(changed, [True, False, False])
