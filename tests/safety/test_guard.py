import json
import pathlib

import mujoco
import numpy as np
import pytest

from alohas2r.embodiment.joints import IS_GRIPPER
from alohas2r.embodiment.poses import SLEEP_POSE, STAGED_POSE
from alohas2r.errors import ConfigError
from alohas2r.robots.base import Frame, Proprio
from alohas2r.safety.config import FULL, SLOW, SafetyConfig
from alohas2r.safety.guard import Guard
from alohas2r.safety.model import BASE_BOX, CAPSULES, REACH, SafetyModel
from alohas2r.safety.monitor import Finding, Level, Monitor
from alohas2r.safety.paths import approach_path, at_rest, retreat_path
from alohas2r.safety.reactions import Mode, Reactions
from alohas2r.sim import scene

INSERT = scene.load("insert")
ORDER = np.concatenate([arm.ctrl for arm in INSERT.arms])
HOME = INSERT.home_ctrl[ORDER]
LOW, HIGH = INSERT.ctrl_low[ORDER], INSERT.ctrl_high[ORDER]
FACTS = json.loads((pathlib.Path(__file__).parents[1] / "data/aloha_facts.json").read_text())


@pytest.fixture(scope="module")
def model() -> SafetyModel:
    return SafetyModel(FULL)


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    """[count, 14] poses of the middle of the range, in which arms often come close."""
    rng = np.random.default_rng(seed)
    return np.clip(HOME + rng.normal(0, 0.8, (count, 14)), LOW, HIGH)


# --- the safety model -------------------------------------------------------------------------


def test_safety_model_has_the_scenes_kinematics(model):
    ours, theirs = model._data, mujoco.MjData(INSERT.model)
    for pose in random_poses(20):
        model.clearance(pose)
        for arm, joints in zip(INSERT.arms, pose.reshape(2, 7), strict=True):
            theirs.qpos[arm.qpos] = [*joints, joints[-1]]
        mujoco.mj_kinematics(INSERT.model, theirs)
        for index in range(1, model.model.nbody):
            name = model.model.body(index).name
            np.testing.assert_allclose(ours.body(name).xpos, theirs.body(name).xpos, atol=1e-12)


def inside(point: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> bool:
    along = np.clip((point - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    return bool(np.linalg.norm(point - start - along * (end - start)) <= radius + 1e-4)


# Parts that the box around them says little about: wedges, and the camera, which leans back.
SLANTED = ("finger", "wrist_mount", "d405")


def enclosed(link: str, corners: np.ndarray) -> bool:
    return all(
        any(inside(corner, np.array(c.start), np.array(c.end), c.radius) for c in CAPSULES[link])
        for corner in corners
    )


def test_capsules_enclose_the_links():
    """Every corner of the box around each visual part lies in a capsule."""
    seen = 0
    for body in FACTS["bodies"]:
        link = body["name"].partition("/")[2]
        for part in body["visual_extent"]:
            low, high = np.array(part["box_min"]), np.array(part["box_max"])
            corners = np.array([np.where(mask, high, low) for mask in np.ndindex(2, 2, 2)])
            if link == "base_link":
                centre, half = np.array(BASE_BOX)
                assert all((np.abs(corner - centre) <= half + 1e-3).all() for corner in corners)
            elif not any(name in part["part"] for name in SLANTED):
                assert enclosed(link, corners), (body["name"], part["part"])
            seen += 1
    assert seen >= 20


def test_capsules_enclose_slanted_parts():
    """The scene's own parts of the camera, and the camera at its published size."""
    model = INSERT.model
    seen, turn = 0, np.empty(9)
    for index in range(model.ngeom):
        link = model.body(model.geom_bodyid[index]).name.partition("/")[2]
        name = model.geom(index).name.partition("/")[2]
        if "camera" not in name:
            continue
        corners = (np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1) * model.geom_size[index]
        mujoco.mju_quat2Mat(turn, model.geom_quat[index])
        corners = corners @ turn.reshape(3, 3).T + model.geom_pos[index]
        assert enclosed(link, corners), model.geom(index).name
        seen += 1
    assert seen >= 6
    # 42 x 42 x 21.5 mm: the thickness follows from the box around the published part.
    camera = (np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1) * [0.021, 0.021, 0.01075]
    mujoco.mju_quat2Mat(turn, np.array([0.9762959, -0.21644, 0, 0]))
    corners = camera @ turn.reshape(3, 3).T + [0, -0.0869, -0.0195]
    part = next(
        part
        for body in FACTS["bodies"]
        for part in body["visual_extent"]
        if part["part"] == "d405_solid"
    )
    np.testing.assert_allclose(corners.min(0), part["box_min"], atol=5e-4)
    np.testing.assert_allclose(corners.max(0), part["box_max"], atol=5e-4)
    assert enclosed("gripper_base", corners)


def test_prongs_enclose_the_published_fingers(model):
    """The box around a finger's shapes holds the box around its published part."""
    data = model._data
    model.clearance(np.zeros(14))
    for body in FACTS["bodies"]:
        name = body["name"]
        if not name.endswith("_finger_link"):
            continue
        (part,) = body["visual_extent"]
        own = data.body(name)
        lows, highs = [], []
        for index in np.flatnonzero(model.model.geom_bodyid == own.id):
            kind, size = model.model.geom_type[index], model.model.geom_size[index]
            turn = own.xmat.reshape(3, 3).T @ data.geom_xmat[index].reshape(3, 3)
            centre = own.xmat.reshape(3, 3).T @ (data.geom_xpos[index] - own.xpos)
            if kind == mujoco.mjtGeom.mjGEOM_MESH:
                mesh = model.model.mesh(model.model.geom_dataid[index])
                first, count = int(mesh.vertadr[0]), int(mesh.vertnum[0])
                points = model.model.mesh_vert[first : first + count] @ turn.T + centre
                lows.append(points.min(0))
                highs.append(points.max(0))
            else:
                reach = np.abs(turn[:, 2]) * size[1] + size[0]
                lows.append(centre - reach)
                highs.append(centre + reach)
        assert (np.min(lows, 0) <= np.array(part["box_min"]) + 1e-4).all(), name
        assert (np.max(highs, 0) >= np.array(part["box_max"]) - 1e-4).all(), name


def test_clearance_is_the_least_distance_of_any_two_shapes(model):
    """Against a brute force over all pairs, with MuJoCo's distance function."""
    raw = SafetyModel(
        SafetyConfig(arm_clearance=0.0, table_clearance=0.0, finger_table_clearance=0.0)
    )
    geoms = range(1, raw.model.ngeom)
    sides = [raw.model.geom(index).name.partition("/")[0] for index in range(raw.model.ngeom)]
    close = 0
    for pose in random_poses(60, seed=1):
        clearance = raw.clearance(pose)
        across = min(
            mujoco.mj_geomDistance(raw.model, raw._data, first, second, 1.0, None)
            for first in geoms
            for second in geoms
            if sides[first] == "left" and sides[second] == "right"
        )
        on_table = min(
            mujoco.mj_geomDistance(raw.model, raw._data, 0, index, 1.0, None)
            for index in geoms
            if raw.model.geom_conaffinity[index] & 4
        )
        assert clearance.arms == pytest.approx(min(across, REACH), abs=2e-3)
        assert clearance.table == pytest.approx(min(on_table, REACH), abs=2e-3)
        close += clearance.slack < REACH
    assert close > 20


def test_clearance_is_the_same_for_exchanged_arms(model):
    for pose in random_poses(40, seed=2):
        ours, exchanged = model.clearance(pose), model.clearance(np.roll(pose, 7))
        assert ours.table == pytest.approx(exchanged.table, abs=1e-6)
        assert ours.arms == pytest.approx(exchanged.arms, abs=1e-6)


def test_resting_and_working_poses_are_clear(model):
    key = INSERT.model.key("preinsert").qpos
    preinsert = np.concatenate([key[arm.qpos[:7]] for arm in INSERT.arms])
    for pose in (HOME, SLEEP_POSE, STAGED_POSE, preinsert):
        assert model.clearance(pose).slack > 0.01


# --- the guard --------------------------------------------------------------------------------


def guard_at(pose: np.ndarray, config: SafetyConfig = FULL) -> Guard:
    guard = Guard(config)
    guard.start(pose)
    return guard


def test_what_is_within_all_limits_passes_unchanged():
    guard, rng = guard_at(HOME), np.random.default_rng(0)
    away = np.where(IS_GRIPPER, -0.01, 0.0)
    for _ in range(200):
        wanted = HOME + away + rng.uniform(-0.01, 0.01, 14)
        wanted = np.clip(wanted, guard.last - 0.02, guard.last + 0.02)
        decision = guard.limit(wanted)
        np.testing.assert_array_equal(decision.command, guard.last)
        np.testing.assert_allclose(decision.command, wanted, atol=1e-12)
        assert decision.interventions == ()
    assert not guard.counts


def test_full_actions_that_alternate_pass_at_full_speed():
    """A policy may ask for +1 after -1; the limits of FULL leave that to it."""
    guard = guard_at(HOME + np.where(IS_GRIPPER, -0.01, 0))
    for step in range(10):
        sign = 1 if step % 2 else -1
        wanted = guard.last + np.where(IS_GRIPPER, 0.005, 0.02) * sign
        assert guard.limit(wanted).interventions == ()


@pytest.mark.parametrize("config", [FULL, SLOW])
def test_a_far_target_is_approached_at_the_speed_limit_and_reached(config):
    guard = guard_at(HOME, config)
    target = HOME.copy()
    target[[0, 7]] -= 0.4
    steps = [guard.last]
    for _ in range(200):
        steps.append(guard.limit(target).command)
    moves = np.diff(steps, axis=0)
    most = config.max_speed * config.period_s
    assert np.abs(moves).max() == pytest.approx(most, rel=1e-6)
    change = config.max_acceleration * config.period_s**2
    assert np.abs(np.diff(moves, axis=0)).max() <= change + 1e-9
    np.testing.assert_allclose(steps[-1], target, atol=1e-9)
    assert guard.counts["speed"] > 10


def test_joint_limits_keep_their_margin_and_a_start_beyond_them_leads_back():
    guard = guard_at(HOME)
    for _ in range(300):
        guard.limit(guard.last + np.where(np.arange(14) % 7 == 5, 0.02, 0))
    assert guard.last[5] == pytest.approx(HIGH[5] - FULL.position_margin)
    assert guard.counts["joint limit"] > 0
    outside = HOME.copy()
    outside[5] = HIGH[5] + 0.05
    guard = guard_at(outside)
    assert guard.limit(outside + 0.01).command[5] == outside[5]
    wanted = outside.copy()
    wanted[5] -= 0.01
    assert guard.limit(wanted).command[5] == pytest.approx(outside[5] - 0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_where_it_was(bad):
    guard = guard_at(HOME)
    wanted = HOME + 0.001 * ~IS_GRIPPER
    wanted[3] = bad
    decision = guard.limit(wanted)
    assert decision.interventions == ("not finite",)
    assert decision.command[3] == HOME[3]
    np.testing.assert_allclose(np.delete(decision.command, 3), np.delete(wanted, 3))


def test_an_arm_driven_into_the_table_stops_above_it_and_its_gripper_and_the_other_go_on(model):
    guard = guard_at(HOME)
    for _ in range(60):
        wanted = guard.last
        wanted[1] += 0.02  # the left shoulder leans forward
        wanted[6] -= 0.0005
        wanted[7] -= 0.005
        guard.limit(wanted)
    assert guard.counts["collision"] > 10
    assert guard.slack >= 0
    assert guard.slack < 0.02
    assert guard.last[6] == pytest.approx(HOME[6] - 0.03)
    assert guard.last[7] == pytest.approx(HOME[7] - 0.3)
    # And it may come up again.
    wanted = guard.last
    wanted[1] -= 0.02
    assert guard.limit(wanted).interventions == ()


def test_two_arms_driven_into_each_other_stop_apart():
    guard = guard_at(HOME)
    target = np.tile([0.0, 0.3, 0.6, 0.0, -0.4, 0.0, 0.03], 2)  # stretched towards each other
    for _ in range(200):
        guard.limit(target)
    assert guard.counts["collision"] > 20
    clearance = SafetyModel(FULL).clearance(guard.last)
    assert 0 <= clearance.arms < 0.03


def test_the_measured_pose_is_checked_as_well():
    """The target is clear, but the arms lag behind it, where the same step leads to the table."""
    low = HOME.copy()
    while SafetyModel(FULL).clearance(low).table > 0.004:
        low[1] += 0.002
    guard = guard_at(HOME)
    wanted = HOME + np.where(np.arange(14) == 1, 0.02, 0)
    assert guard.limit(wanted, measured=HOME).interventions == ()
    guard = guard_at(HOME)
    decision = guard.limit(wanted, measured=low)
    assert decision.interventions == ("collision",)
    np.testing.assert_array_equal(decision.command, HOME)


def test_a_start_that_is_too_close_may_only_be_left():
    pose = HOME.copy()
    while SafetyModel(FULL).clearance(pose).slack > -0.004:
        pose[1] += 0.002
    guard = guard_at(pose)
    down, up = pose.copy(), pose.copy()
    down[1] += 0.01
    up[1] -= 0.01
    assert guard.limit(down).interventions == ("collision",)
    np.testing.assert_array_equal(guard.last, pose)
    assert guard.limit(up).interventions == ()


def test_a_step_through_the_other_arm_is_noticed_on_the_way():
    """Both ends of a large step are clear, and the grippers would meet in between."""
    fast = SafetyConfig(max_speed=3.0, max_acceleration=60.0)
    model = SafetyModel(fast)
    swing = np.where(np.arange(14) % 7 == 0, 0.15, 0)  # the waists
    tried = 0
    for shoulder in np.arange(-0.3, -0.1, 0.005):
        pose = np.tile([0.0, shoulder, 0.75, 0.0, -0.75 - shoulder, 0.0, 0.002], 2)
        ends = [pose - swing / 2, pose + swing / 2]
        clear = min(model.clearance(end).slack for end in ends) > 0
        if clear and model.clearance(pose).slack < -1e-3:
            tried += 1
            decision = guard_at(ends[0], fast).limit(ends[1])
            assert decision.interventions == ("collision",)
    assert tried > 0


def test_a_step_into_the_table_slides_along_it():
    """The part of a step that leads along an obstacle is taken, and the obstacle is not approached."""
    guard = guard_at(HOME)
    step = np.where(np.arange(14) % 7 == 1, 0.02, 0)  # both shoulders, forward and down
    while (decision := guard.limit(guard.last + step)).interventions != ("collision",):
        pass
    at_table = decision.command
    assert 0 <= guard.slack < 0.01
    for _ in range(20):
        before = guard.last
        turned = step + np.where(np.arange(14) % 7 == 0, 0.01, 0)  # and the waists
        guard.limit(before + turned)
        assert guard.slack >= -1e-9
    moved = guard.last - at_table
    assert moved[[0, 7]] == pytest.approx([0.2, 0.2], abs=0.05)


def test_the_next_step_starts_from_what_was_sent():
    guard = guard_at(HOME)
    wanted = HOME + np.where(np.arange(14) == 0, 0.02, 0)
    guard.limit(wanted)
    guard.sent(HOME)  # the robot clipped it
    np.testing.assert_array_equal(guard.last, HOME)
    assert guard.limit(wanted).interventions == ()
    np.testing.assert_allclose(guard.last, wanted)


def policy_outputs(rng: np.random.Generator, kind: int, count: int) -> np.ndarray:
    """[count, 14] steps that an unreliable policy asks for."""
    size = (count, 14)
    if kind == 0:  # noise
        return 0.02 * rng.uniform(-1, 1, size)
    if kind == 1:  # for a while the same way
        return 0.02 * np.repeat(rng.choice([-1, 0, 1], (count // 50, 14)), 50, axis=0)
    if kind == 2:  # far away
        return rng.uniform(-4, 4, size)
    if kind == 3:  # absurd and broken numbers
        steps = rng.normal(0, 1e3, size)
        broken = rng.random(size) < 0.1
        return np.where(broken, rng.choice([np.nan, np.inf, -np.inf, 1e300], size), steps)
    down = np.tile([0, 1, 1, 0, -1, 0, 0], 2)  # into the table and the other arm
    return 0.02 * (down + rng.normal(0, 0.3, size))


@pytest.mark.parametrize("outputs", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_command_is_beyond_limits_whatever_policies_put_out(model, outputs):
    """Ten policies of five kinds, so many outputs each, with lagging and with absent measurements."""
    margin = np.where(IS_GRIPPER, 0.0, FULL.position_margin)
    episode, total = 500, 0
    interventions: set[str] = set()
    for walk in range(10):
        config = FULL if walk < 8 else SLOW
        steps = policy_outputs(np.random.default_rng(walk), walk // 2, outputs)
        guard = Guard(config)
        for begin in range(0, len(steps), episode):
            guard.start(HOME)
            commands, slacks, measured = [HOME], [], HOME
            for step in steps[begin : begin + episode]:
                lagging = measured if walk % 2 else None
                command = guard.limit(commands[-1] + step, lagging).command
                measured = measured + 0.5 * (command - measured)
                commands.append(command)
                slacks.append(guard.slack)
            commands = np.array(commands)
            assert np.isfinite(commands).all()
            assert (commands >= np.minimum(LOW + margin, SLEEP_POSE) - 1e-9).all()
            assert (commands <= HIGH - margin + 1e-9).all()
            moves = np.diff(commands, axis=0, prepend=[HOME])  # at rest before
            assert np.abs(moves).max() <= config.max_speed * config.period_s + 1e-9
            changes = np.diff(moves, axis=0)
            assert np.abs(changes).max() <= config.max_acceleration * config.period_s**2 + 1e-9
            assert min(slacks) >= -1e-9
            # What the guard believes of its commands is so.
            assert model.clearance(commands[-1]).slack == pytest.approx(slacks[-1], abs=1e-9)
            total += len(slacks)
        interventions |= set(guard.counts)
    assert total == 10 * outputs
    assert interventions == {"not finite", "joint limit", "speed", "acceleration", "collision"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_speed": 4.0},
        {"max_acceleration": 1.0},
        {"tracking_steps": 0},
        {"silent_s": 0.05},
        {"temperature_limit_c": 85.0},
        {"finger_table_clearance": -0.1},
    ],
)
def test_configuration_refuses_nonsense(wrong):
    with pytest.raises(ConfigError):
        SafetyConfig(**wrong)


# --- the monitor ------------------------------------------------------------------------------


def reading(position: np.ndarray = HOME, **changes) -> Proprio:
    values = {
        "time_s": 0.0,
        "position": np.array(position),
        "velocity": np.zeros(14),
        "current": np.zeros(14),
        "age_s": np.zeros(14),
        "temperature_c": np.full(14, 40.0),
        "voltage_v": np.full(14, 12.0),
        "hardware_error": np.zeros(14, int),
    }
    for name, (joint, value) in changes.items():
        values[name] = values[name].copy()
        values[name][joint] = value
    return Proprio(**values)


def frame(rng: np.random.Generator, number: int = 0, time_s: float = 0.0) -> Frame:
    rgb = rng.integers(0, 255, (32, 32, 3), np.uint8)
    return Frame(rgb, rng.uniform(0.1, 0.4, (32, 32)).astype(np.float32), time_s, number)


@pytest.mark.parametrize(
    ("change", "kind", "level"),
    [
        ({}, None, None),
        ({"hardware_error": (4, 0x20)}, "motor fault", Level.FREEZE),
        ({"position": (2, np.nan)}, "bad reading", Level.FREEZE),
        ({"age_s": (3, 0.15)}, "silent servo", Level.HOLD),
        ({"age_s": (3, 0.6)}, "silent servo", Level.FREEZE),
        ({"age_s": (3, 0.06)}, None, None),
        ({"temperature_c": (8, 65.0)}, "hot servo", Level.NOTE),
        ({"temperature_c": (8, 75.0)}, "hot servo", Level.RETREAT),
        ({"voltage_v": (8, 9.0)}, "low voltage", Level.RETREAT),
    ],
)
def test_readings_are_judged(change, kind, level):
    monitor = Monitor()
    if "position" in change:
        joint, value = change["position"]
        position = HOME.copy()
        position[joint] = value
        found = monitor.proprio(reading(position), HOME)
    else:
        found = monitor.proprio(reading(**change), HOME)
    assert [(one.kind, one.level) for one in found] == ([(kind, level)] if kind else [])
    assert monitor.counts == ({kind: 1} if kind else {})


def test_an_arm_that_does_not_follow_is_noticed_after_some_steps():
    monitor = Monitor()
    far = HOME.copy()
    far[2] += FULL.tracking_error + 0.01
    far[6] -= 0.03  # a gripper closed on something never reaches its target: no finding
    for _ in range(FULL.tracking_steps - 1):
        assert monitor.proprio(reading(), far) == []
    (finding,) = monitor.proprio(reading(), far)
    assert (finding.kind, finding.level) == ("tracking error", Level.RETREAT)
    assert monitor.proprio(reading(), HOME) == []
    assert monitor.proprio(reading(), None) == []


def watch(monitor: Monitor, steps: int, see, move) -> list[list[Finding]]:
    """Feeds the monitor what `see(step)` shows while the arms go where `move(step)` says."""
    return [monitor.frames(see(step), move(step), 0.05 * step) for step in range(steps)]


def both_moving(step: int) -> np.ndarray:
    return HOME + 0.01 * step * (np.arange(14) % 7 == 0)


def test_good_pictures_are_no_finding():
    rng = np.random.default_rng(0)
    see = lambda step: {  # noqa: E731
        side: frame(rng, step, 0.05 * step - 0.03) for side in ("left", "right")
    }
    assert not any(watch(Monitor(), 30, see, both_moving))


def test_an_old_picture_is_noticed():
    rng = np.random.default_rng(0)
    old = frame(rng, 0, 0.0)
    see = lambda step: {"left": frame(rng, step, 0.05 * step), "right": old}  # noqa: E731
    found = watch(Monitor(SafetyConfig(frame_age_s=0.16)), 6, see, lambda step: HOME)
    assert [len(one) for one in found] == [0, 0, 0, 0, 1, 1]
    assert found[-1][0].kind == "stale camera"
    assert "right" in found[-1][0].text


def test_a_frozen_picture_is_noticed_once_its_arm_has_moved():
    rng = np.random.default_rng(0)
    same = frame(rng)

    def see(step: int) -> dict[str, Frame]:
        still = Frame(same.rgb, same.depth, 0.05 * step, step)  # the counter goes on
        return {"left": still, "right": frame(rng, step, 0.05 * step)}

    found = watch(Monitor(SafetyConfig(frozen_travel=0.035)), 8, see, both_moving)
    assert [bool(one) for one in found] == [False] * 4 + [True] * 4
    assert found[-1][0].kind == "frozen camera"
    assert not any(watch(Monitor(), 8, see, lambda step: HOME))  # a still arm: nothing to say


def test_a_black_picture_is_noticed_after_four():
    rng = np.random.default_rng(0)
    black = Frame(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.float32), 0.0, 0)

    def see(step: int) -> dict[str, Frame]:
        dark = Frame(black.rgb, black.depth, 0.05 * step, step)
        return {"left": frame(rng, step, 0.05 * step), "right": dark}

    found = watch(Monitor(), 5, see, lambda step: HOME)
    assert [bool(one) for one in found] == [False] * 3 + [True] * 2
    assert found[-1][0].kind == "black camera"


@pytest.mark.parametrize("swapped", [False, True])
def test_swapped_cameras_are_noticed_when_one_arm_moves_at_a_time(swapped):
    rng = np.random.default_rng(0)
    still = rng.integers(0, 200, (32, 32, 3))
    position = HOME.copy()
    found: list[Finding] = []
    monitor = Monitor()
    for step in range(16):
        mover = step // 8
        position = position.copy()
        position[7 * mover] += 0.02
        frames = {}
        for index, side in enumerate(("left", "right")):
            own = index == (1 - mover if swapped else mover)
            shown = np.roll(still, step, axis=1) if own else still
            rgb = np.clip(shown + rng.integers(0, 6, still.shape), 0, 255).astype(np.uint8)
            frames[side] = Frame(rgb, np.full((32, 32), 0.2, np.float32), 0.05 * step, step)
        found += monitor.frames(frames, position, 0.05 * step)
    assert {one.kind for one in found} == ({"swapped cameras"} if swapped else set())


def test_bad_and_missing_actions():
    monitor = Monitor()
    good, bad = np.zeros(14), np.full(14, np.nan)
    assert monitor.action(good) == []
    levels = [monitor.action(bad)[0].level for _ in range(3)]
    assert levels == [Level.HOLD, Level.HOLD, Level.RETREAT]
    assert monitor.action(good) == []
    assert monitor.action(bad)[0].level == Level.HOLD
    assert [monitor.action(None)[0].level for _ in range(5)] == [Level.HOLD] * 5


def test_late_steps_are_counted_and_three_in_a_row_hold():
    monitor = Monitor()
    assert monitor.timing(0.04) == []
    assert [bool(monitor.timing(0.06)) for _ in range(3)] == [False, False, True]
    assert monitor.timing(0.04) == []
    assert monitor.counts["missed deadline"] == 3


# --- reactions --------------------------------------------------------------------------------

NOTE = Finding("hot servo", Level.NOTE, "")
STALE = Finding("stale camera", Level.HOLD, "")
BROKEN = Finding("bad action", Level.RETREAT, "")
DEAD = Finding("motor fault", Level.FREEZE, "")


def test_a_hold_ends_with_its_cause_or_with_patience():
    reactions = Reactions()
    assert reactions.update([NOTE], 0.0) is Mode.RUN
    assert reactions.update([STALE], 0.1) is Mode.HOLD
    assert reactions.update([STALE], 1.0) is Mode.HOLD
    assert reactions.update([], 1.05) is Mode.RUN
    assert reactions.update([STALE], 2.0) is Mode.HOLD
    assert reactions.update([STALE], 2.99) is Mode.HOLD
    assert reactions.update([STALE], 3.0) is Mode.RETREAT
    assert reactions.update([], 3.1) is Mode.RETREAT  # nothing leads back
    reactions.arrived()
    assert reactions.update([DEAD], 9.0) is Mode.ASLEEP


def test_the_gravest_finding_decides():
    assert Reactions().update([STALE, NOTE, BROKEN], 0.0) is Mode.RETREAT
    assert Reactions().update([BROKEN, DEAD], 0.0) is Mode.FROZEN


def test_a_hardware_fault_holds_for_good_and_never_leads_to_torque_off():
    """Torque goes off in ASLEEP only; no sequence of findings gets there past a fault."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        reactions = Reactions()
        fault = False
        for step in range(20):
            findings = [one for one in (NOTE, STALE, BROKEN, DEAD) if rng.random() < 0.1]
            before = reactions.mode
            reactions.update(findings, 0.3 * step)
            fault |= DEAD in findings and before is not Mode.ASLEEP
            if rng.random() < 0.1:
                reactions.arrived()
            if fault:
                assert reactions.mode is Mode.FROZEN


def test_cameras_and_policy_do_not_disturb_the_retreat_but_the_joints_do():
    reactions = Reactions()
    reactions.retreat("Ctrl-C")
    assert reactions.update([STALE, BROKEN], 0.0) is Mode.RETREAT
    stray = Finding("tracking error", Level.RETREAT, "")
    assert reactions.update([stray], 0.0) is Mode.FROZEN
    assert [mode for mode, _ in reactions.reasons] == [Mode.RETREAT, Mode.FROZEN]
    again = Reactions()
    again.freeze("Ctrl-C twice")
    again.retreat("too late")
    again.arrived()
    assert again.mode is Mode.FROZEN


@pytest.mark.parametrize("seed", range(4))
def test_retreat_leads_from_anywhere_to_rest_within_all_limits(model, seed):
    rng = np.random.default_rng(seed)
    start = HOME + rng.uniform(-0.3, 0.3, 14) * ~IS_GRIPPER
    start[1] = HOME[1] - 0.1
    if model.clearance(start).slack < 0:
        start = HOME.copy()
    start[IS_GRIPPER] = 0.002
    guard, retreat = guard_at(start, SLOW), retreat_path()
    measured, opened, steps = start, False, 0
    while (target := retreat.target(guard.last, measured)) is not None and steps < 1000:
        steps += 1
        decision = guard.limit(target, measured)
        assert guard.slack >= -1e-9
        measured = measured + 0.4 * (decision.command - measured)
        if not opened:  # it lets go before it moves away
            assert np.abs((decision.command - start)[~IS_GRIPPER]).max() < 1e-9
            opened = bool(decision.command[IS_GRIPPER].min() >= 0.02 - 1e-6)
    assert at_rest(measured)
    assert not at_rest(start)
    assert opened
    assert 50 < steps < 700
    assert not retreat.stuck


def test_approach_moves_one_arm_at_a_time_and_arrives():
    guard, path = guard_at(SLEEP_POSE, SLOW), approach_path(HOME)
    measured, moved = SLEEP_POSE, []
    while (target := path.target(guard.last, measured)) is not None:
        decision = guard.limit(target, measured)
        moved.append(np.abs(decision.command - measured).reshape(2, 7).max(axis=1) > 1e-6)
        measured = decision.command
        assert not path.stuck
    np.testing.assert_allclose(measured, HOME, atol=1e-6)
    assert not np.logical_and(*np.array(moved).T).any()
    assert "collision" not in guard.counts


def test_a_retreat_that_does_not_come_closer_is_stuck():
    guard, retreat = guard_at(HOME, SLOW), retreat_path()
    stuck = []
    for _ in range(300):
        target = retreat.target(guard.last, HOME)  # the arm does not follow
        if target is not None:
            guard.limit(target)
        stuck.append(retreat.stuck)
    assert not stuck[20]
    assert stuck[-1]
