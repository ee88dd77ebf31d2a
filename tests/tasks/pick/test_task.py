from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from alohas2r.envs import noise
from alohas2r.errors import ConfigError
from alohas2r.sim import scene
from alohas2r.sim.signals import Signals
from alohas2r.tasks.pick.config import PickConfig, PickReward
from alohas2r.tasks.pick.task import PickMeasures, PickState, PickTask
from alohas2r.tasks.single_arm import SINGLE_ARM_OBSERVATION, slow_joints
from alohas2r.tasks.starts import PickStart

pytestmark = pytest.mark.compiles

CONTEXT = jnp.array([0.02, 0.065])
TARGET = np.array([0.369, 0.019, 0.23])  # in the base frame
QUIET = 0.005 + 0.005 + 0.001  # no table contact, slow joints, home pose

Outcome = tuple[PickState, float, bool, bool, PickMeasures]
Step = Callable[..., Outcome]


def make_step(task: PickTask) -> Step:
    compiled = jax.jit(task.step)

    def step(signals: Signals, state: PickState) -> Outcome:
        new, reward, done, truncated, measures = compiled(signals, state, CONTEXT)
        return new, float(reward), bool(done), bool(truncated), measures

    return step


@pytest.fixture(scope="module")
def task() -> PickTask:
    return PickTask(scene.load_physics("pick"), PickConfig())


@pytest.fixture(scope="module")
def step(task: PickTask) -> Step:
    return make_step(task)


@pytest.fixture(scope="module")
def progress_step() -> Step:
    """Pays for progress alone."""
    none = dict.fromkeys(
        ("hold", "stay", "finger_force", "no_table", "slow", "home", "crossed"), 0.0
    )
    reward = dataclasses.replace(PickReward(), **none)
    return make_step(PickTask(scene.load_physics("pick"), PickConfig(reward=reward)))


def signals(
    tip_error: float = 0.3,
    object_pos: tuple[float, float, float] | np.ndarray = (0.3, 0.0, 0.0008),
    yaw_deg: float = 0.0,
    force: float = 0.0,
    **changes: Any,
) -> Signals:
    """An arm at home that touches nothing, a block, and a distance between fingertips and grip point."""
    pick = scene.load_physics("pick")
    arm = pick.arms[0]
    turn = Rotation.from_rotvec([0, 0, np.deg2rad(yaw_deg)]).as_matrix()
    position = np.asarray(object_pos, float)
    grip = position + turn @ [-0.02, 0, 0]
    values: dict[str, Any] = {
        "qpos": pick.home_qpos[arm.qpos],
        "qvel": np.zeros(8),
        "ctrl": pick.home_ctrl[arm.ctrl],
        "tip_pos": np.add(grip, [0, 0, tip_error]),
        "finger_axis": np.array([0, 1.0, 0]),
        "gripper_mat": np.eye(3),
        "finger_force": np.array([[0, force, 0], [0, -force, 0]]),
        "on_table": np.array(False),
        "object_pos": position,
        "object_mat": turn,
        "object_linvel": np.zeros(3),
        "object_angvel": np.zeros(3),
        "grip_pos": grip,
    }
    values |= changes
    rows: dict[str, Any] = {
        name: jnp.asarray(value, bool if name == "on_table" else jnp.float32)[None]
        for name, value in values.items()
    }
    return Signals(**rows, peg_end_in_socket=jnp.zeros(3), extra={})


def state(**changes: Any) -> PickState:
    values = {
        "step": np.int32(0),
        "target_pos": TARGET.astype(np.float32),
        "start_height": np.float32(0.0008),
        "best": np.float32(-1),
        "reached": np.bool_(False),
        "stage": np.int32(0),
    }
    return PickState(**{name: jnp.asarray(value) for name, value in (values | changes).items()})


def at_target(offset_mm: float = 0.0, yaw_deg: float = 0.0, **changes: Any) -> Signals:
    return signals(object_pos=np.add(TARGET, [0, offset_mm / 1000, 0]), yaw_deg=yaw_deg, **changes)


def test_standing_still_at_home_pays_only_for_that(step: Step) -> None:
    _, reward, done, truncated, measures = step(signals(), state())
    assert reward == pytest.approx(QUIET, abs=1e-6)
    assert not done
    assert not truncated
    flags = (
        measures.reached,
        measures.grasped,
        measures.lifted,
        measures.crossed,
        measures.success,
    )
    assert not np.any(flags)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"on_table": np.array(True)}, 0.005),
        ({"qvel": np.array([2.5, 0, 0, 0, 0, 0, 0, 0])}, 0.005 * 0.9),  # a tenth at the margin
        ({"qvel": np.array([0.3, 0.4, 0, 0, 0, 0, 0, 0])}, 0.0),  # slow enough
    ],
)
def test_what_is_paid_in_every_step(step: Step, changes: dict, lost: float) -> None:
    quiet = state(best=np.float32(50))  # nothing is progress any more
    assert step(signals(**changes), quiet)[1] == pytest.approx(QUIET - lost, abs=1e-6)


def test_leaving_the_home_pose_costs(step: Step) -> None:
    pick = scene.load_physics("pick")
    moved = pick.home_qpos[pick.arms[0].qpos] + np.eye(8)[2]
    reward = step(signals(qpos=moved), state(best=np.float32(50)))[1]
    assert reward == pytest.approx(QUIET - 0.001 * np.tanh(1), abs=1e-6)


def test_slow_joints_is_one_up_to_the_bound_and_falls_from_there() -> None:
    speed = jnp.array([0.0, 0.5, 1.0, 2.5, 10.0])
    found = np.asarray(slow_joints(speed[:, None] * jnp.eye(8)[3]))
    np.testing.assert_allclose(found[:2], 1)
    assert (np.diff(found[1:]) < 0).all()
    assert found[3] == pytest.approx(0.1)


def test_coming_closer_is_paid_once(step: Step) -> None:
    paid, now = [], state()
    for error in (0.20, 0.10, 0.15, 0.10, 0.05, 0.20):
        now, reward, *_ = step(signals(tip_error=error), now)
        paid.append(reward - QUIET)
    first, second = np.tanh(1.0) - np.tanh(0.5), np.tanh(0.5) - np.tanh(0.25)
    np.testing.assert_allclose(paid, [0, 4 * first, 0, 0, 4 * second, 0], atol=2e-6)


def test_no_way_to_the_same_state_pays_more_than_another(progress_step: Step) -> None:
    """The sum over any path is what its best state is worth more than its first."""
    draw = np.random.default_rng(0)
    for _ in range(5):
        now, paid = state(), 0.0
        totals = []
        for _ in range(12):
            case = signals(
                tip_error=abs(draw.normal(0, 0.05)),
                object_pos=np.add(TARGET, draw.normal(0, 0.1, 3)),
                yaw_deg=draw.normal(0, 20),
                force=draw.choice([0.0, 5.0]),
            )
            # What the state alone is worth: one step from a start that is worth nothing.
            worth = progress_step(case, now._replace(best=jnp.zeros(())))[1]
            now, reward, *_ = progress_step(case, now)
            totals.append(worth)
            paid += reward
        assert paid == pytest.approx(max(totals) - totals[0], abs=1e-4)
        assert float(now.best) == pytest.approx(max(totals), abs=1e-4)


def test_bringing_counts_once_the_grip_point_was_reached(progress_step: Step) -> None:
    worth_nothing = state(best=np.float32(0))
    far = signals(tip_error=0.3, object_pos=np.add(TARGET, [0.2, 0, 0]))
    near = signals(tip_error=0.01, object_pos=np.add(TARGET, [0.2, 0, 0]))
    lifted = 0.5
    reach_far = lifted + 4 * (1 - np.tanh(1.5))
    reach_near = lifted + 4 * (1 - np.tanh(0.05))
    bring = 16 * (1 - np.tanh(5 * 0.77 * 0.2))
    now, reward, *_ = progress_step(far, worth_nothing)
    assert reward == pytest.approx(reach_far, abs=1e-5)
    now, reward, _, _, measures = progress_step(near, worth_nothing)
    assert bool(measures.reached)
    assert reward == pytest.approx(reach_near + bring, abs=1e-4)
    # Reached stays reached; 15 mm are the limit.
    _, reward, *_ = progress_step(far, now._replace(best=jnp.zeros(())))
    assert reward == pytest.approx(reach_far + bring, abs=1e-4)
    for error, reached in ((0.0149, True), (0.0151, False)):
        assert bool(progress_step(signals(tip_error=error), state())[4].reached) == reached


def test_a_wrong_rotation_costs_by_the_distance_of_the_first_two_rows(progress_step: Step) -> None:
    reached = state(best=np.float32(0), reached=np.bool_(True))
    case = at_target(yaw_deg=90, tip_error=0.3)
    error = 0.23 * 2.0  # rows (1, 0, 0) and (0, 1, 0) against (0, -1, 0) and (1, 0, 0)
    expected = 4 * (1 - np.tanh(1.5)) + 16 * (1 - np.tanh(5 * error)) + 0.5  # and it is lifted
    assert progress_step(case, reached)[1] == pytest.approx(expected, abs=1e-4)


def test_grasping_and_holding(step: Step, progress_step: Step) -> None:
    worthless = state(best=np.float32(0))
    reach = 4 * (1 - np.tanh(5 * 0.01))

    def progress(case: Signals) -> float:
        without = progress_step(case._replace(finger_force=jnp.zeros((1, 2, 3))), worthless)[1]
        return progress_step(case, worthless)[1] - without

    assert reach > 3
    assert progress(signals(tip_error=0.01, force=5)) == pytest.approx(0.5, abs=1e-5)
    assert progress(signals(tip_error=0.01, force=2.4)) == pytest.approx(0, abs=1e-5)
    assert progress(signals(tip_error=0.02, force=5)) == pytest.approx(0, abs=1e-5)
    # The force is paid in every step, up to 7 N in all.
    paid = state(best=np.float32(50))
    for force, share in ((2.6, 5.2 / 7), (5, 1), (50, 1), (2.4, 0)):
        reward = step(signals(tip_error=0.01, force=force), paid)[1]
        assert reward - QUIET == pytest.approx(0.007 * share, abs=1e-6)


def test_a_grip_near_the_grip_point_can_be_paid_in_every_step(step: Step) -> None:
    pick = scene.load_physics("pick")
    rewarded = make_step(PickTask(pick, PickConfig(reward=PickReward(grip=0.3))))
    paid = state(best=np.float32(50))
    for force, height, error, expected in (
        (5.0, 0.2, 0.0, 0.3),
        (5.0, 0.2, 0.01, 0.15),
        (5.0, 0.01, 0.0, 0.0),  # not lifted
        (0.0, 0.2, 0.0, 0.0),  # not held
    ):
        case = signals(error, (0.2, 0, height), force=force)
        assert rewarded(case, paid)[1] - step(case, paid)[1] == pytest.approx(expected, abs=1e-5)


def test_a_finger_that_presses_without_a_grasp_can_cost(step: Step) -> None:
    pick = scene.load_physics("pick")
    careful = make_step(PickTask(pick, PickConfig(reward=PickReward(pressed=-0.1))))
    paid = state(best=np.float32(50))
    on_top = signals(0.03)._replace(finger_force=jnp.zeros((1, 2, 3)).at[0, 1].set((6.0, 0.0, 8.0)))
    for case, expected in (
        (on_top, -0.05),
        (on_top._replace(finger_force=50 * on_top.finger_force), -0.1),
        (signals(force=10), 0.0),  # a grasp
        (signals(), 0.0),
    ):
        assert careful(case, paid)[1] - step(case, paid)[1] == pytest.approx(expected, abs=1e-5)


def test_the_last_step_can_pay_for_a_block_at_its_target_whenever_it_got_there() -> None:
    pick = scene.load_physics("pick")
    plain, rewarded = (
        make_step(PickTask(pick, PickConfig(reward=PickReward(finish=weight))))
        for weight in (0.0, 40.0)
    )
    there, low = at_target(), signals(object_pos=(0.3, 0, 0.02))
    for steps, case, expected in ((158, there, 0), (159, there, 40), (159, low, 0)):
        now = state(best=np.float32(50), step=np.int32(steps))
        assert rewarded(case, now)[1] - plain(case, now)[1] == pytest.approx(expected, abs=1e-4)


def test_lifting_pays_once_and_holding_close_to_the_target_always(
    step: Step, progress_step: Step
) -> None:
    worthless, paid = state(best=np.float32(0)), state(best=np.float32(50))
    low = signals(object_pos=(0.3, 0, 0.0508 - 0.0005))
    high = signals(object_pos=(0.3, 0, 0.0508 + 0.0005))
    difference = progress_step(high, worthless)[1] - progress_step(low, worthless)[1]
    assert difference == pytest.approx(0.5, abs=1e-5)
    assert step(low, paid)[1] == pytest.approx(QUIET, abs=1e-6)
    for offset, yaw in ((0.0, 0.0), (12.0, 0.0), (100.0, 0.0), (0.0, 20.0)):
        found = step(at_target(offset, yaw), paid)
        angle = np.deg2rad(yaw)
        wide = 1 / (1 + (offset / 100) ** 2 + (angle / 0.5) ** 2)
        narrow = 1 / (1 + (offset / 12) ** 2 + (angle / 0.1) ** 2)
        stay = 0.1 * bool(found[4].success)
        assert found[1] - stay == pytest.approx(QUIET + 0.125 * (wide + narrow), abs=2e-5)


@pytest.mark.parametrize(
    ("stage", "limit_mm", "limit_deg"),
    [(0, 40.0, 15.0), (2, 22.5, 8.75), (4, 5.0, 2.5), (9, 5.0, 2.5)],
)
def test_success_by_the_thresholds_of_the_stage(
    step: Step, stage: int, limit_mm: float, limit_deg: float
) -> None:
    now = state(stage=np.int32(stage), best=np.float32(50))
    cases = [
        (limit_mm - 0.05, 0.0, True),
        (limit_mm + 0.05, 0.0, False),
        (0.0, limit_deg - 0.02, True),
        (0.0, limit_deg + 0.02, False),
        (0.0, 180.0, False),
    ]
    for offset, yaw, expected in cases:
        new, _, done, _, measures = step(at_target(offset, yaw), now)
        assert bool(measures.success) == expected
        assert float(measures.position_error) == pytest.approx(offset / 1000, abs=1e-6)
        assert np.rad2deg(float(measures.rotation_error)) == pytest.approx(yaw, abs=1e-3)
        assert not done  # success does not end an episode
        assert int(new.stage) == min(stage, 4)
    first = step(at_target(), state(stage=np.int32(stage), best=np.float32(0)))[1]
    later = step(at_target(), now)[1]
    # Success is worth 0.5 once, and 0.1 in every step.
    assert first - later == pytest.approx(4 * (1 - np.tanh(1.5)) + 0.5 + 0.5, abs=1e-4)


def test_the_stage_rises_with_an_episode_that_ends_in_success(step: Step) -> None:
    last = np.int32(159)
    for stage, case, expected in (
        (0, at_target(), 1),
        (3, at_target(), 4),
        (4, at_target(), 4),
        (1, at_target(38), 1),  # in the second stage 38 mm are too much
    ):
        new, _, done, truncated, _ = step(case, state(step=last, stage=np.int32(stage)))
        assert done
        assert not truncated
        assert int(new.stage) == expected
    new, _, done, _, _ = step(at_target(), state(step=last - 1))
    assert not done
    assert (int(new.stage), int(new.step)) == (0, 159)


@pytest.mark.parametrize("yaw_deg", [0.0, 60.0, 180.0])
def test_crossing_the_middle_of_the_table_costs_and_ends(step: Step, yaw_deg: float) -> None:
    reach = 0.048 * np.cos(np.deg2rad(yaw_deg))
    edge = 0.073 + 0.469 - reach  # x of the centre in the base frame
    paid = state(best=np.float32(50))
    for x, crossed in ((edge - 1e-3, False), (edge + 1e-3, True)):
        _, reward, done, truncated, measures = step(
            signals(object_pos=(x, 0, 0.0008), yaw_deg=yaw_deg), paid
        )
        assert bool(measures.crossed) == done == crossed
        assert reward == pytest.approx(QUIET - crossed, abs=1e-6)
        assert not truncated


@pytest.mark.parametrize("place", [(-1.0, 0, 0), (0, 1.1, 0), (0, -1.1, 0), (0, 0, 1.1)])
def test_out_of_reach_ends_without_a_penalty(step: Step, place: tuple[float, ...]) -> None:
    _, reward, done, _, _ = step(signals(object_pos=np.array(place)), state(best=np.float32(50)))
    assert done
    assert reward == pytest.approx(QUIET, abs=1e-3) or place[2] > 0


def test_measures_of_speed_and_force(step: Step) -> None:
    speeds = np.array([0.1, -3.0, 0.2, 0, 0, 0, 9.0, 9.0])  # the fingers do not count
    forces = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    measures = step(signals(qvel=speeds, finger_force=forces), state())[4]
    assert float(measures.joint_speed) == pytest.approx(3)
    assert float(measures.contact_force) == pytest.approx(5)


def test_observation_has_its_parts_in_order(task: PickTask) -> None:
    draw = np.random.default_rng(0)
    turn = Rotation.from_quat(draw.normal(size=(2, 4))).as_matrix()
    case = signals(
        qpos=draw.normal(size=8),
        qvel=draw.normal(size=8),
        ctrl=draw.normal(size=7),
        tip_pos=draw.normal(size=3),
        grip_pos=draw.normal(size=3),
        object_pos=draw.normal(size=3),
        object_mat=turn[0],
        gripper_mat=turn[1],
        object_linvel=draw.normal(size=3),
        object_angvel=draw.normal(size=3),
    )
    row = jax.tree.map(lambda x: np.asarray(x)[0], case)
    expected = {
        "joint_pos": row.qpos,
        "joint_vel": row.qvel,
        "object_linvel_in_base": row.object_linvel,
        "object_angvel_in_base": row.object_angvel,
        "gripper_rotation_rows_2_3_in_base": turn[1][1:].ravel(),
        "object_rotation_rows_2_3_in_base": turn[0][1:].ravel(),
        "fingertips_minus_grip_point_in_base": row.tip_pos - row.grip_pos,
        "target_minus_object_in_base": TARGET - row.object_pos,
        "target_minus_object_rotation_rows_1_2_in_base": (np.eye(3) - turn[0])[:2].ravel(),
        "target_ctrl_minus_joint_pos": row.ctrl - row.qpos[:7],
    }
    found = np.asarray(task.observation(noise.exact(case), state()))
    assert found.shape == (task.observation_size,) == (53,)
    start = 0
    for name, size, unit in SINGLE_ARM_OBSERVATION:
        assert unit
        part = found[start : start + size]
        np.testing.assert_allclose(part, expected[name], atol=1e-6, err_msg=name)
        start += size
    view = np.asarray(task.privileged(case, state(), CONTEXT))
    assert view.shape == (task.privileged_size,)
    np.testing.assert_allclose(view[:53], found, atol=1e-6)


@pytest.fixture(scope="module")
def starts(task: PickTask) -> tuple[Any, Any]:
    count = 4096
    contexts = jnp.stack([jnp.linspace(0.01, 0.03, count), jnp.full(count, 0.05)], 1)
    keys = jax.random.split(jax.random.PRNGKey(0), count)
    drawn = jax.jit(jax.vmap(task.reset, (0, 0, None)))(keys, contexts, jnp.int32(3))
    return jax.tree.map(np.asarray, drawn)


def test_starts_fill_their_fan(starts: tuple[Any, Any]) -> None:
    _, start = starts
    pick = scene.load_physics("pick")
    arm = pick.arms[0]
    thing = start.qpos[:, arm.object_qpos]
    offset = thing[:, :2] - arm.base_pos[:2]
    radius, angle = (
        np.linalg.norm(offset, axis=1),
        np.rad2deg(np.arctan2(offset[:, 1], offset[:, 0])),
    )
    yaw = np.rad2deg(2 * np.arctan2(thing[:, 6], thing[:, 3]))
    np.testing.assert_allclose(thing[:, 4:6], 0, atol=1e-7)
    waist = start.qpos[:, arm.qpos[0]]
    for values, low, high in (
        (waist, -0.2, 0.45),
        (radius, 0.20, 0.45),
        (angle, -25.0, 35.0),
        (yaw - angle, -5.0, 5.0),
    ):
        assert low - 1e-4 <= values.min()
        assert values.max() <= high + 1e-4
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    # The block lies on the table, whatever its size.
    np.testing.assert_allclose(thing[:, 2], 0.0008 + np.linspace(0.01, 0.03, 4096), atol=1e-6)
    # Nothing else differs from home, and the targets hold the waist where it is.
    np.testing.assert_allclose(start.ctrl[:, arm.ctrl[0]], waist)
    others = np.setdiff1d(np.arange(pick.model.nq), [*arm.object_qpos, arm.qpos[0]])
    np.testing.assert_allclose(
        start.qpos[:, others], np.tile(pick.home_qpos[others], (4096, 1)), atol=1e-7
    )


def test_targets_fill_their_box_and_nothing_but_the_stage_is_remembered(
    starts: tuple[Any, Any],
) -> None:
    first, _ = starts
    target = first.target_pos - [0.369, 0.019, 0.23]
    for column in target.T:
        assert np.abs(column).max() <= 0.1 + 1e-6
        assert stats.kstest(column, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert (first.stage == 3).all()
    for name, value in (("step", 0), ("best", -1), ("reached", False)):
        assert (getattr(first, name) == value).all()
    np.testing.assert_allclose(
        first.start_height, 0.0008 + np.linspace(0.01, 0.03, 4096) - 0.02, atol=1e-6
    )


def test_draws_of_a_start_do_not_go_together(starts: tuple[Any, Any]) -> None:
    first, start = starts
    arm = scene.load_physics("pick").arms[0]
    columns = np.concatenate(
        [start.qpos[:, [arm.qpos[0], *arm.object_qpos[:2]]], first.target_pos], 1
    )
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 0.1  # the fan is not quite symmetric


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (PickStart, {"radius": (0.1, 0.3)}),
        (PickStart, {"angle_deg": (10.0, -10.0)}),
        (PickStart, {"waist": (0.3, 0.1)}),
        (PickStart, {"target_range": 0.5}),
        (PickConfig, {"steps": 0}),
        (PickConfig, {"stages": 0}),
        (PickConfig, {"rotation_weight": 1.5}),
    ],
)
def test_values_out_of_range(cls: type, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        cls(**wrong)
