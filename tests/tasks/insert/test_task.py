from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from alohas2r.embodiment import history
from alohas2r.envs import noise
from alohas2r.policies import artifact
from alohas2r.policies.state import StatePolicy
from alohas2r.sim import scene, signals
from alohas2r.sim.signals import Readout, Signals
from alohas2r.tasks.insert.config import InsertConfig, InsertReward
from alohas2r.tasks.insert.task import (
    HAND_ON_OTHER,
    OBSERVATION,
    SINGLE,
    InsertMeasures,
    InsertState,
    InsertTask,
    Pool,
    single_arm_features,
)
from alohas2r.tasks.single_arm import SINGLE_ARM_OBSERVATION
from alohas2r.tasks.starts import InsertStart

pytestmark = pytest.mark.compiles

CONTEXT = jnp.array([0.010, 0.0])  # half side of the peg, physics variant
CENTRE_Y = -0.019  # the bases' common y

Outcome = tuple[InsertState, float, bool, bool, InsertMeasures]
Step = Callable[..., Outcome]


def make_step(task: InsertTask) -> Step:
    compiled = jax.jit(task.step)

    def step(case: Signals, state: InsertState) -> Outcome:
        new, reward, done, truncated, measures = compiled(case, state, CONTEXT)
        return new, float(reward), bool(done), bool(truncated), measures

    return step


@pytest.fixture(scope="module")
def task() -> InsertTask:
    return InsertTask(scene.load_physics("insert"), InsertConfig())


@pytest.fixture(scope="module")
def step(task: InsertTask) -> Step:
    """Whole episodes, as in evaluation."""
    return make_step(task)


@pytest.fixture(scope="module")
def training_step() -> Step:
    """Episodes from a pool of switch states, as in training."""
    loaded = scene.load_physics("insert")
    pool = Pool(*(jnp.zeros((1, 1, 1)) for _ in Pool._fields))
    return make_step(InsertTask(loaded, InsertConfig(), pool))


def state(**changes: Any) -> InsertState:
    values = {
        "step": np.int32(0),
        "switched": np.bool_(True),
        "held": np.int32(0),
        "lifted": np.array([True, True]),
        "stage": np.int32(0),
    }
    return InsertState(**{name: jnp.asarray(value) for name, value in (values | changes).items()})


def signals_by_hand(
    end: tuple[float, float, float] = (-0.04, 0.0, 0.0),
    heights: tuple[float, float] = (0.25, 0.25),
    tips: tuple[float, float] | None = None,
    tip_errors: tuple[float, float] = (0.0, 0.0),
    travel: tuple[float, float] = (0.028, 0.018),
    targets: tuple[float, float] = (0.0, 0.0),
    tilt_deg: tuple[float, float] = (0.0, 0.0),
    **changes: Any,
) -> Signals:
    """Both arms hold their objects in the air; heights in the world, left first."""
    insert = scene.load_physics("insert")
    base = 0.020
    position = np.array([[0.37, 0.02, heights[0] - base], [0.37, -0.02, heights[1] - base]])
    turns = Rotation.from_rotvec(np.deg2rad(tilt_deg)[:, None] * [0, 1, 0]).as_matrix()
    grip = position + turns @ np.array([-0.02, 0, 0])
    tip = grip + np.array(tip_errors)[:, None] * [0, 1, 0]
    if tips is not None:
        tip[:, 2] = np.array(tips) - base
        grip[:, 2] = tip[:, 2]
    qpos = np.stack([insert.home_qpos[arm.qpos] for arm in insert.arms])
    ctrl = np.stack([insert.home_ctrl[arm.ctrl] for arm in insert.arms])
    qpos[:, 6:] = np.array(travel)[:, None]
    ctrl[:, 6] = targets
    values: dict[str, Any] = {
        "qpos": qpos,
        "qvel": np.zeros((2, 8)),
        "ctrl": ctrl,
        "tip_pos": tip,
        "finger_axis": np.tile([0, 1.0, 0], (2, 1)),
        "gripper_mat": np.tile(np.eye(3), (2, 1, 1)),
        "finger_force": np.tile([[0, 5.0, 0], [0, -5.0, 0]], (2, 1, 1)),
        "object_pos": position,
        "object_mat": turns,
        "object_linvel": np.zeros((2, 3)),
        "object_angvel": np.zeros((2, 3)),
        "grip_pos": grip,
        "peg_end_in_socket": np.array(end),
    }
    rows = {name: jnp.asarray(value, jnp.float32) for name, value in (values | changes).items()}
    return Signals(**rows, on_table=jnp.zeros(2, bool), extra={})


def test_inserted_after_five_steps_in_a_row(step: Step) -> None:
    inside, outside = signals_by_hand(), signals_by_hand(end=(-0.02, 0, 0))
    now, found = state(), []
    for case in [inside] * 4 + [outside] + [inside] * 6:
        now, _, done, _, measures = step(case, now)
        assert not done  # an insertion does not end an episode
        found.append(bool(measures.inserted))
        assert bool(measures.success) == found[-1]
        assert bool(measures.in_place) == (case is inside)
    assert found == [False] * 9 + [True] * 2


@pytest.mark.parametrize(
    ("changes", "in_place", "entered"),
    [
        ({"end": (-0.0301, 0, 0)}, True, True),
        ({"end": (-0.0299, 0, 0)}, False, True),
        ({"end": (-0.04, 0.0179, -0.0179)}, True, True),
        ({"end": (-0.04, 0.0181, 0)}, False, False),
        ({"end": (-0.04, 0, -0.0181)}, False, False),
        ({"end": (0.0479, 0, 0)}, False, True),
        ({"end": (0.0481, 0, 0)}, False, False),
        ({"tip_errors": (0.0299, 0.0299)}, True, True),
        ({"tip_errors": (0.0301, 0.0)}, False, True),
        ({"tip_errors": (0.0, 0.0301)}, False, True),
    ],
)
def test_where_the_peg_counts_as_entered_and_in_place(
    step: Step, changes: dict, in_place: bool, entered: bool
) -> None:
    measures = step(signals_by_hand(**changes), state())[4]
    assert bool(measures.in_place) == in_place
    assert bool(measures.entered) == entered


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        (False, {"tips": (0.171, 0.171)}, True),
        (False, {"tips": (0.171, 0.169)}, False),
        (True, {"tips": (0.130, 0.121)}, True),
        (True, {"tips": (0.130, 0.119)}, False),
        (True, {"tips": (0.25, 0.25), "travel": (0.028, 0.004)}, False),  # closed on nothing
        (False, {"tips": (0.25, 0.25), "travel": (0.004, 0.018)}, False),
        # An open gripper that is to be open has lost nothing.
        (True, {"tips": (0.25, 0.25), "travel": (0.028, 0.037), "targets": (0.0, 0.037)}, True),
    ],
)
def test_switch_goes_by_the_fingertips(
    step: Step, before: bool, changes: dict, after: bool
) -> None:
    new, _, done, _, measures = step(signals_by_hand(**changes), state(switched=np.bool_(before)))
    assert bool(new.switched) == bool(measures.switched) == after
    assert not done  # a whole episode goes on: the teacher may pick again


def test_lifted_is_five_centimetres_above_where_the_object_lay(step: Step) -> None:
    fresh = state(lifted=np.array([False, False]))
    socket, peg = 0.0008 + 0.022 + 0.05, 0.0008 + 0.010 + 0.05
    for heights, expected in (
        ((socket + 1e-3, peg + 1e-3), [True, True]),
        ((socket - 1e-3, peg + 1e-3), [False, True]),
        ((socket + 1e-3, peg - 1e-3), [True, False]),
    ):
        new, _, _, _, measures = step(signals_by_hand(heights=heights), fresh)
        assert np.asarray(measures.lifted).tolist() == expected
        above = [height >= 0.07 for height in heights]
        assert np.asarray(new.lifted).tolist() == [
            a and b for a, b in zip(expected, above, strict=True)
        ]
    again = step(signals_by_hand(heights=(0.03, 0.02)), state())[0]
    assert np.asarray(again.lifted).all()  # lifted once, for this episode


def test_dropped_is_an_object_that_was_lifted_and_lies_low_again(step: Step) -> None:
    for heights, was_lifted, expected in (
        ((0.069, 0.25), (True, True), [True, False]),
        ((0.25, 0.069), (True, True), [False, True]),
        ((0.071, 0.071), (True, True), [False, False]),
        ((0.023, 0.011), (False, False), [False, False]),  # never lifted
    ):
        case = signals_by_hand(heights=heights)
        measures = step(case, state(lifted=np.array(was_lifted)))[4]
        assert np.asarray(measures.dropped).tolist() == expected


def test_an_object_on_its_way_up_is_not_dropped(step: Step) -> None:
    now = state(lifted=np.array([False, False]), switched=np.bool_(False))
    for height in np.linspace(0.011, 0.2, 190):  # slower than any arm
        now, _, _, _, measures = step(signals_by_hand(heights=(height + 0.012, height)), now)
        assert not np.asarray(measures.dropped).any(), height
    assert np.asarray(now.lifted).all()
    # And on its way down again it is.
    for height in np.linspace(0.2, 0.03, 20):
        now, *_, last = step(signals_by_hand(heights=(height, height)), now)
        dropped = np.asarray(last.dropped)
        assert dropped.all() == (height < 0.07), height


def test_whole_episodes_end_by_time_or_out_of_reach_alone(step: Step) -> None:
    for case, first, done, truncated in (
        (signals_by_hand(), 98, False, False),
        (signals_by_hand(), 99, True, True),
        (signals_by_hand(heights=(0.02, 0.02)), 0, False, False),
        (signals_by_hand(tilt_deg=(100, 0)), 0, False, False),
        (signals_by_hand(heights=(0.25, 1.1)), 0, True, False),
    ):
        new, _, found, cut, _ = step(case, state(step=np.int32(first)))
        assert (found, cut) == (done, truncated)
        assert int(new.step) == first + 1


@pytest.mark.parametrize(
    "loss",
    [
        {"heights": (0.069, 0.25)},
        {"heights": (0.25, 0.069)},
        {"travel": (0.028, 0.003)},  # closed on nothing
        {"tips": (0.11, 0.25)},
        {"tilt_deg": (81.0, 0.0)},
        {"tilt_deg": (0.0, 81.0)},
    ],
)
def test_training_ends_with_a_penalty_when_something_is_lost(
    training_step: Step, step: Step, loss: dict
) -> None:
    case = signals_by_hand(**loss)
    _, reward, done, truncated, _ = training_step(case, state())
    _, without, *_ = step(case, state())
    assert done
    assert not truncated
    assert reward == pytest.approx(without - 10, abs=1e-4)
    # It ends by loss, not by time, if both come together.
    assert not training_step(case, state(step=np.int32(99)))[3]


def test_the_last_step_can_pay_for_a_peg_in_place_whenever_it_got_there(
    training_step: Step,
) -> None:
    pool = Pool(*(jnp.zeros((1, 1, 1)) for _ in Pool._fields))
    config = InsertConfig(reward=InsertReward(finish=40.0))
    rewarded = make_step(InsertTask(scene.load_physics("insert"), config, pool))
    inside, far = signals_by_hand(end=(-0.04, 0, 0)), signals_by_hand(end=(0.22, 0, 0))
    for steps, case, expected in ((98, inside, 0), (99, inside, 40), (99, far, 0)):
        now = state(step=np.int32(steps))
        assert rewarded(case, now)[1] - training_step(case, now)[1] == pytest.approx(
            expected, abs=1e-4
        )
    # What comes after is worth nothing, and the critic sees the time.
    assert rewarded(inside, state(step=np.int32(99)))[2:4] == (True, False)


def test_grippers_that_come_near_each_other_cost(training_step: Step) -> None:
    """Grippers that point down steeply bring their cameras together."""
    found, tips = [], np.array(signals_by_hand().tip_pos)
    tips[:, 0] = 0.44
    for pitch_deg in (0.0, 45.0, 60.0, 70.0):
        turn = Rotation.from_rotvec(np.deg2rad([0, pitch_deg, 0])).as_matrix()
        _, reward, *_, measures = training_step(
            signals_by_hand(gripper_mat=np.tile(turn, (2, 1, 1)), tip_pos=tips), state()
        )
        found.append((float(measures.arm_distance), float(reward)))
    distance, reward = np.array(found).T
    assert (np.diff(distance[1:]) < 0).all()
    assert distance[1] > 0.01
    assert distance[-1] < 0
    cost = InsertReward().near * np.clip(1 - distance / InsertReward().near_distance, 0, 2)
    np.testing.assert_allclose(np.diff(reward), np.diff(cost), atol=1e-4)


def test_training_goes_on_while_all_is_held_and_is_cut_off_by_time(training_step: Step) -> None:
    assert training_step(signals_by_hand(), state())[2:4] == (False, False)
    assert training_step(signals_by_hand(), state(step=np.int32(99)))[2:4] == (True, True)


def test_better_states_pay_more(training_step: Step) -> None:
    def reward(**changes: Any) -> float:
        return training_step(signals_by_hand(**changes), state())[1]

    # Along the axis into the socket, and towards the axis before it.
    inwards = [reward(end=(x, 0, 0)) for x in (0.3, 0.2, 0.1, 0.05, 0.0, -0.029, -0.035)]
    assert (np.diff(inwards) > 0).all()
    sideways = [reward(end=(0.08, y, 0)) for y in (0.2, 0.1, 0.04, 0.02, 0.0)]
    assert (np.diff(sideways) > 0).all()
    assert reward(tip_errors=(0.0, 0.0)) > reward(tip_errors=(0.02, 0.02))
    assert reward() > reward(tilt_deg=(20.0, 0.0))
    assert reward() > reward(qvel=np.full((2, 8), 2.0))
    # Being in place is worth its weight.
    assert reward(end=(-0.0301, 0, 0)) - reward(end=(-0.0299, 0, 0)) == pytest.approx(2, abs=0.01)


def test_observation_is_both_pick_observations_and_the_way_from_peg_to_socket(
    task: InsertTask,
) -> None:
    assert SINGLE == 53
    sizes = [size for _, size, _ in OBSERVATION]
    assert sum(sizes) == task.observation_size == 109
    draw = np.random.default_rng(0)
    case = signals_by_hand(
        tilt_deg=(30, 70),
        tip_errors=(0.01, 0.04),
        qvel=draw.normal(size=(2, 8)),
        object_linvel=draw.normal(size=(2, 3)),
    )
    found = np.asarray(task.observation(noise.exact(case), state()))
    names = [name for name, _, _ in OBSERVATION]
    for arm, side in enumerate(("left", "right")):
        start = arm * SINGLE
        own = jax.tree.map(
            lambda x, arm=arm: np.asarray(x)[arm],
            noise.exact(case)._replace(socket_minus_peg=jnp.zeros(2)),
        )
        for name, size, _ in SINGLE_ARM_OBSERVATION:
            assert f"{side}/{name}" in names
            part = found[start : start + size]
            expected = {
                "joint_pos": own.qpos,
                "joint_vel": own.qvel,
                "object_linvel_in_base": own.object_linvel,
                "fingertips_minus_grip_point_in_base": own.tip_to_grip,
                # Both targets are 0.1 m before the middle, as seen from either base.
                "target_minus_object_in_base": [0.369, 0.019 - 0.038 * arm, 0.23] - own.object_pos,
                "target_ctrl_minus_joint_pos": own.ctrl - own.qpos[:7],
            }
            if name in expected:
                np.testing.assert_allclose(part, expected[name], atol=1e-6, err_msg=name)
            start += size
    np.testing.assert_allclose(found[-3:], noise.exact(case).socket_minus_peg, atol=1e-7)
    view = np.asarray(task.privileged(case, state(), CONTEXT))
    assert view.shape == (task.privileged_size,)
    np.testing.assert_allclose(view[:109], found, atol=1e-6)


def turn_quat(quat: np.ndarray) -> np.ndarray:
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, np.array([0.0, 0, 0, 1]), quat)
    return turned


def turn_point(point: np.ndarray) -> np.ndarray:
    return np.array([-point[0], 2 * CENTRE_Y - point[1], point[2]])


def act(task: InsertTask, pick: StatePolicy, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each arm sees and does [2, n], by the single-arm policy."""
    mujoco.mj_forward(task.scene.model, data)
    report = Readout(
        *(jnp.asarray(x, jnp.float32) for x in (data.qpos, data.qvel, data.ctrl, data.sensordata))
    )
    measured = noise.exact(signals.extractor(task.scene)(report))
    observation = np.asarray(task.observation(measured, state()))
    memory = history.init(pick.spec.history, 109, np)
    _, features = history.update(pick.spec.history, memory, observation, np)
    rates = len(pick.spec.history.rates)
    actions = [pick.apply(single_arm_features(features, arm, rates), np) for arm in (0, 1)]
    return observation[:106].reshape(2, 53), np.stack(actions)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_turning_the_scene_and_its_targets_exchanges_the_arms(
    seed: int, random_policy: pathlib.Path
) -> None:
    """By 180 degrees about z through the middle between the bases; the arms exchange their actions."""
    pick = artifact.load(random_policy, StatePolicy)
    insert = scene.load_physics("insert")
    left, right = insert.arms
    np.testing.assert_allclose(turn_point(left.base_pos), right.base_pos, atol=1e-12)
    draw = np.random.default_rng(seed)
    targets = draw.uniform([-0.2, -0.1, 0.15], [0.2, 0.1, 0.3], (2, 3))
    turned_targets = [turn_point(targets[1]), turn_point(targets[0])]

    def make(where: Any) -> InsertTask:
        places = tuple(tuple(float(x) for x in row) for row in where)
        return InsertTask(insert, InsertConfig(start=InsertStart(targets=places)))  # pyright: ignore[reportArgumentType]

    first, second = mujoco.MjData(insert.model), mujoco.MjData(insert.model)
    first.qpos[:] = insert.home_qpos
    first.ctrl[:] = draw.uniform(insert.ctrl_low, insert.ctrl_high)
    first.qvel[:] = draw.normal(size=insert.model.nv)
    for arm in insert.arms:
        first.qpos[arm.qpos[:6]] += draw.normal(0, 0.2, 6)
        first.qpos[arm.object_qpos[:3]] = draw.uniform([-0.2, -0.2, 0.1], [0.2, 0.2, 0.3])
        quat = draw.normal(size=4)
        first.qpos[arm.object_qpos[3:]] = quat / np.linalg.norm(quat)
    for own, other in ((left, right), (right, left)):
        second.qpos[own.qpos], second.qvel[own.qvel] = (
            first.qpos[other.qpos],
            first.qvel[other.qvel],
        )
        second.ctrl[own.ctrl] = first.ctrl[other.ctrl]
        place = first.qpos[other.object_qpos]
        second.qpos[own.object_qpos] = np.concatenate([turn_point(place[:3]), turn_quat(place[3:])])
        velocity = first.qvel[other.object_qvel].copy()
        velocity[:2] *= -1  # linear in the world, angular in the body
        second.qvel[own.object_qvel] = velocity
    seen, actions = act(make(targets), pick, first)
    turned_seen, turned_actions = act(make(turned_targets), pick, second)
    np.testing.assert_allclose(turned_seen, seen[::-1], atol=2e-5)
    np.testing.assert_allclose(turned_actions, actions[::-1], atol=1e-4)
    # Which says something only if the arms do different things.
    assert np.abs(actions[0] - actions[1]).max() > 0.05


def test_one_arm_of_the_pair_sees_what_the_single_arm_sees() -> None:
    """The left arm's part of the two-arm observation is the pick scene's observation of that state."""
    from alohas2r.tasks.pick.config import PickConfig
    from alohas2r.tasks.pick.task import PickState, PickTask

    pick, insert = scene.load_physics("pick"), scene.load_physics("insert")
    draw = np.random.default_rng(3)
    found = []
    joints, velocities, ctrl = draw.normal(0, 0.1, 8), draw.normal(size=8), draw.normal(size=7)
    place = np.array([-0.15, -0.1, 0.2, *draw.normal(size=4)])
    for loaded in (pick, insert):
        arm = loaded.arms[0]
        data = mujoco.MjData(loaded.model)
        data.qpos[:] = loaded.home_qpos
        data.qpos[arm.qpos] += joints
        data.qvel[arm.qvel], data.ctrl[arm.ctrl] = velocities, ctrl
        data.qpos[arm.object_qpos] = place
        mujoco.mj_forward(loaded.model, data)
        report = Readout(
            *(
                jnp.asarray(x, jnp.float32)
                for x in (data.qpos, data.qvel, data.ctrl, data.sensordata)
            )
        )
        measured = noise.exact(signals.extractor(loaded)(report))
        if loaded is pick:
            target = jnp.array([-0.10, 0.0, 0.25]) - jnp.asarray(arm.base_pos, jnp.float32)
            zero = jnp.zeros(())
            memory = PickState(zero, target, zero, zero, zero, zero)
            found.append(PickTask(pick, PickConfig()).observation(measured, memory))
        else:
            found.append(InsertTask(insert, InsertConfig()).observation(measured, state())[:53])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_features_of_one_arm_are_its_part_of_every_average() -> None:
    rows = np.arange(4 * 109, dtype=float).reshape(4, 109)
    batch = np.stack([rows.ravel(), -rows.ravel()])
    for arm in (0, 1):
        found = single_arm_features(batch, arm, 3)
        expected = rows[:, arm * 53 : (arm + 1) * 53].ravel()
        np.testing.assert_array_equal(found, [expected, -expected])


@pytest.fixture(scope="module")
def starts(task: InsertTask) -> tuple[Any, Any]:
    count = 4096
    contexts = jnp.stack([jnp.linspace(0.010, 0.017, count), jnp.zeros(count)], 1)
    keys = jax.random.split(jax.random.PRNGKey(0), count)
    drawn = jax.jit(jax.vmap(task.reset, (0, 0, None)))(keys, contexts, jnp.int32(0))
    return jax.tree.map(np.asarray, drawn)


def test_starts_fill_both_fans(starts: tuple[Any, Any]) -> None:
    _, start = starts
    insert = scene.load_physics("insert")
    columns = []
    for index, arm in enumerate(insert.arms):
        base = Rotation.from_quat(np.roll(arm.base_quat, -1))
        thing = start.qpos[:, arm.object_qpos]
        local = base.inv().apply(thing[:, :3] - arm.base_pos)
        radius = np.linalg.norm(local[:, :2], axis=1)
        angle = np.rad2deg(np.arctan2(local[:, 1], local[:, 0]) - 0.25)
        turn = base.inv() * Rotation.from_quat(np.roll(thing[:, 3:], -1, axis=1))
        vector = np.rad2deg(turn.as_rotvec())
        np.testing.assert_allclose(vector[:, :2], 0, atol=1e-3)
        yaw = vector[:, 2] - angle - np.rad2deg(0.25)
        waist = start.qpos[:, arm.qpos[0]] - 0.25
        for values, low, high in (
            (waist, -0.1, 0.1),
            (radius, 0.27, 0.42),
            (angle, -14.5, 14.5),
            (yaw, -5.0, 5.0),
        ):
            tolerance = 1e-3 * (high - low)
            assert low - tolerance <= values.min()
            assert values.max() <= high + tolerance
            assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
            columns.append(values)
        half = np.full(4096, 0.022) if index == 0 else np.linspace(0.010, 0.017, 4096)
        np.testing.assert_allclose(thing[:, 2], 0.0008 + half, atol=1e-6)
        # Each arm's own offset is in its own first target.
        np.testing.assert_allclose(start.ctrl[:, arm.ctrl[0]], start.qpos[:, arm.qpos[0]])
        np.testing.assert_allclose(
            start.ctrl[:, arm.ctrl[1:]],
            np.tile(insert.home_ctrl[arm.ctrl[1:]], (4096, 1)),
            atol=1e-7,
        )
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 0.08


def test_a_whole_episode_starts_from_nothing(starts: tuple[Any, Any]) -> None:
    first, start = starts
    for name in InsertState._fields:
        assert not getattr(first, name).any(), name
    assert start.qvel is None
    assert start.averages is None


def test_arm_distance_is_that_of_the_grippers_and_cameras() -> None:
    """Never more than the distance of the parts themselves, and not much less."""
    loaded = scene.load("insert")
    model, data = loaded.model, mujoco.MjData(loaded.model)
    task = InsertTask(loaded, InsertConfig())
    extract = jax.jit(signals.extractor(loaded))
    parts = [
        [
            index
            for index in range(model.ngeom)
            if model.body(model.geom_bodyid[index]).name.startswith(f"{side}/")
            and any(
                name in model.body(model.geom_bodyid[index]).name for name in ("gripper", "finger")
            )
        ]
        for side in ("left", "right")
    ]
    before = model.key("preinsert").qpos
    random = np.random.default_rng(1)
    joints = np.concatenate([arm.qpos[:6] for arm in loaded.arms])
    compared = 0
    for _ in range(40):
        data.qpos[:] = before
        data.qpos[joints] += random.normal(0, 0.12, len(joints))
        mujoco.mj_forward(model, data)
        values = (data.qpos, data.qvel, data.ctrl, data.sensordata)
        readout = Readout(*(jnp.asarray(value, jnp.float32) for value in values))
        found = float(task._arm_distance(extract(readout)))
        true = min(
            mujoco.mj_geomDistance(model, data, left, right, 0.5, None)
            for left in parts[0]
            for right in parts[1]
        )
        if 0.005 < true < 0.4:
            compared += 1
            assert true - 0.05 < found < true + 0.012
    assert compared >= 20


def test_the_force_of_a_hand_on_the_other_hands_object_is_measured_where_they_touch(
    step: Step,
) -> None:
    assert float(step(signals_by_hand(), state())[-1].hand_on_other) == 0
    touching = InsertTask(scene.load_physics("insert_contact"), InsertConfig())
    assert {name for name, _ in touching.extra_sensors} == set(HAND_ON_OTHER)
    forces = {HAND_ON_OTHER[0]: jnp.zeros(4), HAND_ON_OTHER[1]: jnp.array([1.0, 3.0, 0.0, 4.0])}
    case = signals_by_hand()._replace(extra=forces)
    free = make_step(touching)(case, state())
    assert float(free[-1].hand_on_other) == pytest.approx(5)
    paying = InsertConfig(reward=InsertReward(pushed=-0.8))
    pushed = make_step(InsertTask(scene.load_physics("insert_contact"), paying))
    for force, cost in ((5.0, 0.2), (20.0, 0.8), (500.0, 0.8)):
        forces[HAND_ON_OTHER[1]] = jnp.array([1.0, 0.6, 0.0, 0.8]) * force
        case = case._replace(extra=dict(forces))
        assert float(free[1] - pushed(case, state())[1]) == pytest.approx(cost, abs=1e-4)
