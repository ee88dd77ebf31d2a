"""An encoder of the policy's own: its crops, what it learns beforehand, and by the critics' gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import online_cases
import pytest

from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.learning.online import losses, pretrain
from alohas2r.learning.online.crops import crop
from alohas2r.learning.online.experience import Closed, Row
from alohas2r.learning.online.replay import Batch, Replay, all_together
from alohas2r.policies.online import networks
from alohas2r.policies.online.config import ENCODERS, FERM_ENCODERS, OnlineConfig, find_arm
from alohas2r.policies.online.encoder import encode, init_encoder, middle
from alohas2r.policies.online.spec import EncoderSpec, SeeingSpec

pytestmark = pytest.mark.compiles
SMALL = EncoderSpec(layers=2, filters=8, features=10)


def spec(**changes) -> SeeingSpec:
    made = online_cases.spec(**{"base": False, "encoder": SMALL, **changes})
    assert isinstance(made, SeeingSpec)
    return made


SPEC = spec()


def rows(count: int, seed: int = 0) -> list[Row | Closed]:
    """Decisions of one episode that ends in success: pictures of 16 patches, the brighter the larger the action."""
    draw = np.random.default_rng(seed)
    made: list[Row | Closed] = []
    for number in range(count):
        targets = np.tile(online_cases.HOME, 2) + draw.normal(0, 0.02, 14)
        arrays = online_cases.observed(targets, draw)
        seen = {name.removeprefix("observation/"): value for name, value in arrays.items()}
        light, patches = draw.uniform(0, 1), draw.uniform(0, 255, (4, 4, 3))
        seen["left_rgb"] = (light * patches.repeat(8, 0).repeat(8, 1)).astype(np.uint8)
        recent = draw.uniform(-1, 1, (3, 5)).astype(np.float32)
        made.append(Row(seen, recent, "demo", 0))
        done = number == count - 1
        action = np.full(5, 2 * light - 1, np.float32)
        made.append(Closed(action, float(done), done))
    return made


def test_crops_lie_anywhere_in_their_picture():
    """Each picture says of each pixel where it is, and whose."""
    place = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    pictures = np.stack([np.stack([place, np.full_like(place, n)], -1) for n in range(400)])
    crops = np.asarray(crop(pictures, 27, jax.random.PRNGKey(0)))
    assert crops.shape == (400, 27, 27, 2)
    np.testing.assert_array_equal(crops[:, 5, 7, 1], np.arange(400))
    found = set()
    for one in crops[..., 0]:
        row, column = divmod(int(one[0, 0]), 32)
        np.testing.assert_array_equal(one, place[row : row + 27, column : column + 27])
        found.add((row, column))
    assert found == {(row, column) for row in range(6) for column in range(6)}


def test_a_robot_looks_at_the_middle():
    weights = init_encoder(SMALL, np.random.default_rng(0))
    draw = np.random.default_rng(1)
    picture = draw.uniform(0, 1, (1, 32, 32, 4)).astype(np.float32)
    seen = encode(SMALL, weights, middle(SMALL, picture))
    around, within = picture.copy(), picture.copy()
    around[:, :2], around[:, 29:], around[:, :, :2], around[:, :, 29:] = 0, 0, 0, 0
    within[:, 2, 2] = 0
    np.testing.assert_array_equal(seen, encode(SMALL, weights, middle(SMALL, around)))
    assert (seen != encode(SMALL, weights, middle(SMALL, within))).any()


@pytest.mark.parametrize("encoder", ["contrastive", "supervised"])
def test_an_encoder_learns_of_the_demonstrations(encoder):
    config = OnlineConfig("residual", encoder=encoder, encoder_steps=80, batch=32)
    known = rows(64)
    weights, told = pretrain.first_encoder(SPEC, config, known, 3)
    assert len(told) == 80
    first, last = np.mean(told[:5]), np.mean(told[-5:])
    if encoder == "contrastive":
        assert last < 0.7 * np.log(32)  # of knowing nothing
    assert last < 0.7 * first
    assert {name: value.shape for name, value in weights.items()} == SMALL.shapes
    before = init_encoder(SMALL, np.random.default_rng([3, 8]))
    assert all((weights[name] != before[name]).any() for name in weights if "kernel" in name)
    scratch, none = pretrain.first_encoder(SPEC, find_arm("ferm", ("encoder=scratch",)), known, 3)
    assert not none
    for name, value in before.items():
        np.testing.assert_array_equal(scratch[name], value)


def test_what_is_known_beside_a_picture():
    known = rows(5)
    rgb, depth, told = pretrain.labelled(SPEC, [*known[:2], known[2], *known[4:]])
    assert (rgb.shape, depth.shape, told.shape) == ((4, 32, 32, 3), (4, 32, 32), (4, 21))
    np.testing.assert_allclose(told.mean(0), 0, atol=1e-5)
    third = known[4]
    assert isinstance(third, Row)
    np.testing.assert_array_equal(rgb[1], third.inputs["left_rgb"])  # the one before was cut off
    with pytest.raises(ArtifactError, match="fewer than two decisions"):
        pretrain.labelled(SPEC, known[:2])


def test_the_replay_keeps_pictures_and_draws_from_all_alike():
    demos, own = Replay(SPEC, {}, True, pictures=True), Replay(SPEC, {}, False, pictures=True)
    known = rows(40)
    demos.add(known)
    own.add(rows(300, seed=1))
    assert (demos.size, own.decisions) == (40, 300)
    draw = np.random.default_rng(0)
    batch = demos.sample(draw, 64, 1, 0.9)
    pictures = [one.inputs["left_rgb"] for one in known if isinstance(one, Row)]
    firsts = {picture.tobytes(): index for index, picture in enumerate(pictures)}
    for shown, reached, factor in zip(
        batch.features["rgb"], batch.next_features["rgb"], batch.discount, strict=True
    ):
        index = firsts[shown.tobytes()]
        assert firsts[reached.tobytes()] == min(index + 1, 39)
        assert factor == pytest.approx(0.9 * (index < 39))
    row = known[0]
    assert isinstance(row, Row)
    mean, std = demos.moments()
    assert not mean[:10].any()
    assert (std[:10] == 1).all()
    felt = np.concatenate([SPEC.own(row.proprioception), row.recent.ravel()])
    normal = (felt - mean[10:]) / std[10:]
    assert np.abs(normal).max() < 6
    share = np.mean([all_together(demos, own, draw, 128, 1, 0.9).demo.mean() for _ in range(60)])
    assert share == pytest.approx(40 / 340, abs=0.015)
    empty = Replay(SPEC, {}, False, pictures=True)
    assert all_together(demos, empty, draw, 8, 1, 0.9).demo.all()


def test_a_soft_value_counts_the_entropy_to_come():
    config = OnlineConfig("rlpd", critics=2, hidden=(8,), soft=True, normalized=False)
    sharp = OnlineConfig("rlpd", critics=2, hidden=(8,), normalized=False)
    seeing = spec(hidden=(8,))
    draw = np.random.default_rng(0)
    shapes = networks.shapes(seeing)
    weights = {name: draw.normal(0, 0.3, shape) for name, shape in shapes.items()}
    weights["std"] = np.abs(weights["std"]) + 0.3
    critics = losses.init_critics(seeing, config, draw)
    assert not any("scale" in name for name in critics)
    replay = Replay(seeing, init_encoder(SMALL, draw), True)
    replay.add(rows(6))
    batch, key = replay.sample(draw, 16, 1, 0.9), jax.random.PRNGKey(0)
    value = functools.partial(losses.target_value, seeing)
    plain = value(sharp, weights, critics, batch, key, jnp.float32(0.5))
    soft, softer = (
        value(config, weights, critics, batch, key, jnp.float32(worth)) for worth in (0.0, 0.5)
    )
    np.testing.assert_array_equal(plain, soft)
    normal = networks.normalize(weights, batch.next_features, jnp)
    noise = jax.random.normal(jax.random.split(key)[0], batch.action.shape)
    density = losses.act(seeing, weights, normal, noise).log_density
    np.testing.assert_allclose(soft - softer, batch.discount * 0.5 * density, atol=1e-5)


def test_critics_judge_what_the_arm_can_execute():
    """An opened gripper that is told to open, and an arm at the box's end that is told to leave it, stay."""
    seeing, draw = spec(hidden=(8,)), np.random.default_rng(0)
    weights = {name: draw.normal(0, 0.3, one) for name, one in networks.shapes(seeing).items()}
    weights["std"] = np.abs(weights["std"]) + 0.3
    targets = online_cases.HOME.copy()
    targets[-1] = seeing.box.high[-1]
    place = seeing.arm.polar(targets)
    place[0] = seeing.box.high[0]
    felt = seeing.own(online_cases.proprioception(np.tile(seeing.arm.joints(targets, place), 2)))
    features = np.zeros(seeing.features, np.float32)
    features[seeing.seen : seeing.seen + len(felt)] = felt
    row = np.tile(features, (16, 1))
    batch = Batch(row, np.zeros((16, 5)), np.zeros(16), row, np.ones(16), np.zeros(16, bool))
    value = {}
    for loud in (0.0, 20.0):
        outwards = {**weights, "policy/layer1/kernel": np.zeros((8, 10))}
        outwards["policy/layer1/bias"] = np.concatenate([[loud, 0, 0, 0, loud], np.full(5, -20.0)])
        for possible in (False, True):
            config = OnlineConfig("rlpd", critics=2, hidden=(8,), possible=possible)
            critics = losses.init_critics(seeing, config, np.random.default_rng(1))
            value[loud, possible] = losses.target_value(
                seeing, config, outwards, critics, batch, jax.random.PRNGKey(0), jnp.float32(0)
            )
    # What is drawn about the first may lead inwards a little.
    np.testing.assert_allclose(value[0.0, True], value[20.0, True], atol=0.005)
    assert np.abs(value[0.0, False] - value[20.0, False]).min() > 0.02


def test_odd_encoders_are_refused():
    for arm, known in (("ferm", FERM_ENCODERS), ("rlpd", ENCODERS)):
        for encoder in {*ENCODERS, *FERM_ENCODERS, "eyes"} - set(known):
            with pytest.raises(ConfigError, match=f"encoder of the arm {arm} must be one of"):
                find_arm(arm, (f"encoder={encoder}",))
    with pytest.raises(ConfigError, match="the encoder must stay student"):
        find_arm("residual", ("encoder=supervised",), "insert")
    with pytest.raises(ConfigError, match="clones nothing"):
        find_arm("ferm", ("clone_steps=5",))
    with pytest.raises(ConfigError, match="encoder_tau must lie"):
        find_arm("ferm", ("encoder_tau=0",))
    with pytest.raises(ConfigError, match="does not lie in pictures of 32"):
        spec(encoder=EncoderSpec(crop=33))
    with pytest.raises(ConfigError, match="too small for 4 layers"):
        EncoderSpec(crop=12)
