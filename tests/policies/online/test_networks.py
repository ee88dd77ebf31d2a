"""Kinematics, networks and files that actor and learner share: NumPy and JAX compute the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import online_cases
import pytest

from alohas2r.core import assets
from alohas2r.embodiment import polar
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.joints import SIDES
from alohas2r.embodiment.polar import Box
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies.networks import vision
from alohas2r.policies.online import networks, published
from alohas2r.policies.online.eyes import read_eyes
from alohas2r.policies.online.spec import planar_arm
from alohas2r.policies.online.tasks import Reward
from alohas2r.policies.vision import StudentPolicy
from alohas2r.sim import kinematics, scene

pytestmark = pytest.mark.compiles
SPEC = online_cases.spec()
STUDENT = assets.data_path("params") / "student"


def random_weights(spec, seed=0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    weights = {
        name: draw.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in networks.shapes(spec).items()
    }
    weights["std"] = np.abs(weights["std"]) + np.float32(0.1)
    return weights


@pytest.mark.parametrize("side", SIDES)
def test_polar_coordinates_are_where_the_fingertips_are(side):
    arm, place = planar_arm(side), SIDES.index(side)
    base = scene.load("insert").arms[place]
    turn = kinematics.quaternion_matrix(base.base_quat).T
    draw = np.random.default_rng(0)
    for _ in range(20):
        away = arm.joints(online_cases.HOME, np.array([0.2, 0.33, 0.1, 0.6, 0.03]), 9)
        targets = away + draw.normal(0, 0.1, 7) * [1, 1, 1, 0, 1, 0, 0]
        both = np.zeros((2, 8))
        both[place] = [*targets, targets[-1]]
        tip = turn @ (kinematics.tip_midpoints(both)[place] - base.base_pos)
        waist, reach, height, pitch, gripper = arm.polar(targets)
        np.testing.assert_allclose(
            reach * np.array([np.cos(waist), np.sin(waist)]), tip[:2], atol=5e-5
        )
        assert height == pytest.approx(tip[2], abs=1e-9)
        assert (pitch, gripper) == (pytest.approx(targets[[1, 2, 4]].sum()), targets[6])
        goal = arm.polar(targets) + draw.normal(0, 0.02, 5)
        np.testing.assert_allclose(arm.polar(arm.joints(targets, goal, 6)), goal, atol=1e-5)


def test_moves_stay_in_the_box_and_within_the_speed_of_joints():
    draw, action = np.random.default_rng(1), np.ones(5)
    targets = np.tile(online_cases.HOME, 2)
    low, high = np.array(SPEC.box.low), np.array(SPEC.box.high)
    for _ in range(300):
        action = np.sign(draw.normal(size=5)) * draw.uniform(0.5, 3, 5)
        move = SPEC.move(online_cases.proprioception(targets), action)
        assert np.abs(move).max() <= 1
        assert not move[7:].any()
        targets = targets + 4 * 0.02 * move
        place = SPEC.arm.polar(targets)
        assert (place > low - 0.01).all()
        assert (place < high + 0.01).all()
    assert (
        not online_cases.spec(side="right")
        .move(online_cases.proprioception(targets), action)[:7]
        .any()
    )


@pytest.mark.parametrize("side", SIDES)
def test_what_is_possible_of_an_action_is_what_is_executed_of_it(side):
    """From anywhere, also at the ends of the box and of joints' ranges, to whatever size is asked for."""
    spec, draw = online_cases.spec(side=side), np.random.default_rng(3)
    low, high = (np.tile(np.array(end), 2) for end in (spec.low, spec.high))
    targets, changed = np.tile(online_cases.HOME, 2), []
    for _ in range(300):
        felt = online_cases.proprioception(targets)
        action = np.clip(draw.normal(0, 2, 5), -1, 1).astype(np.float32)
        for _ in range(spec.hold):
            targets = next_target(targets, spec.move(felt, action), low, high)
        executed = spec.executed(felt, online_cases.proprioception(targets))
        zeros = np.zeros(spec.seen), np.zeros(spec.features - spec.seen - 16)
        features = np.concatenate([zeros[0], spec.own(felt), zeros[1]]).astype(np.float32)
        possible = spec.possible(features, action)
        np.testing.assert_allclose(possible, executed, atol=1e-3)
        in_jax = spec.possible(jnp.asarray(features), jnp.asarray(action), jnp)
        np.testing.assert_allclose(in_jax, possible, atol=1e-4)
        changed.append(np.abs(possible - action) > 0.2)
    assert np.mean(changed, 0).min() > 0.1


def test_numpy_and_jax_compute_the_same():
    draw = np.random.default_rng(2)
    several: tuple[dict[str, Any], ...] = ({}, {"base": False}, {"policy": False})
    for options in several:
        spec = online_cases.spec(**options)
        weights = random_weights(spec)
        features = draw.normal(size=(50, spec.features)).astype(np.float32)
        noise = draw.normal(size=(50, 5)).astype(np.float32)
        ours = networks.decide(spec, weights, features, noise)
        theirs = jax.jit(lambda w, f, n, s=spec: networks.decide(s, w, f, n, jnp))(
            weights, features, noise
        )
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    targets = np.tile(online_cases.HOME, (50, 2)) + draw.normal(0, 0.05, (50, 14))
    felt = np.stack([online_cases.proprioception(one) for one in targets])
    action = draw.uniform(-1, 1, (50, 5)).astype(np.float32)
    ours = SPEC.move(felt, action)
    np.testing.assert_allclose(ours, SPEC.move(jnp.asarray(felt), action, jnp), atol=1e-4)
    np.testing.assert_allclose(ours[7], SPEC.move(felt[7], action[7]), atol=1e-6)


def test_the_eyes_are_the_students():
    """The first layers of the shipped student, cut out, see what it sees."""
    student = artifact.load(STUDENT, StudentPolicy)
    eyes, cameras, network = read_eyes(STUDENT, "left")
    assert (cameras, network) == (SPEC.cameras, SPEC.network)
    rows = artifact.read_npz(STUDENT / "check.npz")
    seen = networks.look(SPEC, eyes, rows["left_rgb"], rows["left_depth"])
    tree = vision.tree_of(student.weights)
    pictures = np.stack([rows["left_rgb"], rows["right_rgb"]], 1)
    depth = np.stack([rows["left_depth"], rows["right_depth"]], 1)
    codes = vision.encode(student.spec, tree["encoder"], pictures)
    features = np.zeros((len(depth), student.spec.features), np.float32)
    caught: dict[str, np.ndarray] = {}

    def catch(next_fun, args, kwargs, context):
        value = next_fun(*args, **kwargs)
        if not isinstance(value, tuple):
            caught[str(context.module.name)] = np.asarray(value)
        return value

    import flax.linen as nn

    with nn.intercept_methods(catch):
        vision.head(student.spec, tree["head"], codes, depth, features, np.zeros(len(depth), bool))
    wanted = [caught[f"left_{name}"] for name in ("rgb", "places", "depth", "patches")]
    np.testing.assert_allclose(seen, np.concatenate(wanted, 1), atol=1e-4)


def test_versions_are_read_as_they_were_published(tmp_path):
    weights = random_weights(SPEC)
    assert published.newest(tmp_path / "none") is None
    for version in (0, 11):
        published.publish(tmp_path, SPEC, version, weights)
    assert published.newest(tmp_path) == 11
    back = published.read_version(tmp_path, SPEC, 11)
    assert back.version == 11
    assert back.weights.keys() == weights.keys()
    np.testing.assert_array_equal(back.weights["mean"], weights["mean"])


def test_bad_versions_are_refused_in_a_line(tmp_path):
    weights = random_weights(SPEC)
    path = published.publish(tmp_path, SPEC, 3, weights)
    content = path.read_bytes()
    with pytest.raises(ArtifactError, match="of another policy"):
        published.read_version(tmp_path, online_cases.spec(scale=0.1), 3)
    with pytest.raises(ArtifactError, match="could not be read"):
        published.read_version(tmp_path, SPEC, 4)
    path.write_bytes(content[:200])
    with pytest.raises(ArtifactError, match="damaged"):
        published.read_version(tmp_path, SPEC, 3)
    path.write_bytes(published.to_bytes(SPEC, 4, weights))
    with pytest.raises(ArtifactError, match="differs from its digest"):
        published.read_version(tmp_path, SPEC, 3)
    other = dict(weights)
    other["mean"] = np.where(np.arange(SPEC.features) == 5, np.nan, other["mean"])
    published.publish(tmp_path, SPEC, 3, other)
    with pytest.raises(ArtifactError, match="mean is not finite"):
        published.read_version(tmp_path, SPEC, 3)
    published.publish(tmp_path, SPEC, 3, {name: weights[name] for name in ("mean", "std")})
    with pytest.raises(ArtifactError, match="other weights"):
        published.read_version(tmp_path, SPEC, 3)


def test_reach_is_rewarded_for_what_lies_between_the_fingers():
    reward, felt = Reward(SPEC), online_cases.proprioception(np.tile(online_cases.HOME, 2))
    low = online_cases.HOME.copy()
    low[:7] = SPEC.arm.joints(low, np.array([0.2, 0.33, 0.005, 0.6, 0.037]))
    down = online_cases.proprioception(np.concatenate([low, low]))
    near, far = np.full((32, 32), 0.12, np.float32), np.full((32, 32), 0.2, np.float32)
    unseen = np.zeros((32, 32), np.float32)
    assert [reward.update(down, near) for _ in range(5)] == [False] * 4 + [True]
    reward.reset()
    assert [reward.update(down, one) for one in (near, near, near, near, far, near)] == [False] * 6
    for joints, depth in ((felt, near), (down, far), (down, unseen)):
        reward.update(joints, depth)
        assert not reward.holds


def test_pick_is_rewarded_for_a_blocked_grip_above_the_table():
    spec = online_cases.spec("pick")
    depth = np.zeros((32, 32), np.float32)

    def holds(height, target, travel):
        arm = spec.arm.joints(online_cases.HOME, np.array([0.2, 0.33, height, 0.6, target]), 8)
        felt = online_cases.proprioception(np.concatenate([arm, online_cases.HOME]))
        felt[[6, 7]] = travel
        felt[[22, 23]] = travel - target
        reward = Reward(spec)
        reward.update(felt, depth)
        return reward.holds

    assert holds(0.15, 0.004, 0.02)
    assert not holds(0.05, 0.004, 0.02)  # on the table
    assert not holds(0.15, 0.02, 0.02)  # open
    assert not holds(0.15, 0.004, 0.005)  # empty


def test_odd_settings_are_refused():
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"task": "wave"}, "no task 'wave'"),
        ({"side": "middle"}, "one of left, right"),
        ({"base": False, "policy": False}, "needs a base"),
        ({"scale": 2.0}, "scale must"),
        ({"tempo": 2.0}, "tempo must"),
        ({"hidden": ()}, "hidden needs"),
    )
    for options, text in refused:
        with pytest.raises(ConfigError, match=text):
            online_cases.spec(**options)
    with pytest.raises(ConfigError, match="a box needs"):
        Box((0.0,) * 5, (0.0,) * 5)
    with pytest.raises(ArtifactError, match="no student on colour"):
        read_eyes(assets.data_path("params") / "pick", "left")
    assert polar.SIZE == 5
