"""The student's networks and its artifact."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alohas2r.core import assets
from alohas2r.embodiment import camera as camera_contract
from alohas2r.embodiment import joints
from alohas2r.embodiment.history import HistoryConfig
from alohas2r.errors import ArtifactError, ConfigError
from alohas2r.policies import artifact
from alohas2r.policies import spec as policies_spec
from alohas2r.policies.networks import cpu_encoder
from alohas2r.policies.networks import vision as vision_network
from alohas2r.policies.spec import CameraSpec, ObservationPart, StudentNetworkConfig, StudentSpec
from alohas2r.policies.switch import Switch
from alohas2r.policies.vision import StudentPolicy
from alohas2r.rendering import augmentation
from alohas2r.sim import scene

pytestmark = pytest.mark.compiles
SMALL = StudentNetworkConfig(hidden=(16,), filters=(4, 4, 8), embedding=8)
STATE = (ObservationPart("left/joint_pos", 5, "rad, m"), ObservationPart("gap", 3, "m"))


def make_spec(
    observation: str = "rgbd", network: StudentNetworkConfig = SMALL, **changes: Any
) -> StudentSpec:
    settings: dict[str, Any] = {"cameras": CameraSpec(), "memory": HistoryConfig((0.3,)), **changes}
    return policies_spec.make_spec(
        scene.load("insert"),
        observation,
        network,
        switch=Switch(),
        scale=0.02,
        state_parts=STATE if observation == "state" else (),
        **settings,
    )


def draw_inputs(spec: StudentSpec, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a sequence of what `StudentPolicy.act` takes, each [T, ...]."""
    draw = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, (shape, dtype, _) in spec.inputs.items():
        if dtype == "uint8":
            found[name] = draw.integers(0, 256, (count, *shape), np.uint8)
        elif dtype == "bool":
            found[name] = draw.random((count, *shape)) < 0.5
        else:
            high = 0.5 if name.endswith("depth") else 1.0
            found[name] = draw.uniform(0, high, (count, *shape)).astype(np.float32)
    return found


def make_policy(spec: StudentSpec, seed: int = 0) -> StudentPolicy:
    """An untrained student whose last layer is not as good as zero."""
    draw = np.random.default_rng(seed)
    weights = vision_network.flatten(
        vision_network.init(spec, jax.random.PRNGKey(seed)),
        np.zeros(spec.features),
        np.ones(spec.features),
    )
    last = f"head/layer{len(spec.network.hidden)}/kernel"
    weights[last] = draw.normal(0, 0.3, weights[last].shape)
    return StudentPolicy(spec, weights, {"seed": seed, "who": "test"})


def batch_of(spec: StudentSpec, count: int = 3) -> dict[str, np.ndarray]:
    """Returns a batch of what `forward` takes."""
    found = draw_inputs(spec, count)
    del found[spec.vector]
    draw = np.random.default_rng(1)
    return {**found, "features": draw.normal(size=(count, spec.features)).astype(np.float32)}


def parameters(spec: StudentSpec) -> dict[str, int]:
    """Returns how many numbers each part learns, without computing any of them."""
    params = jax.eval_shape(lambda: vision_network.init(spec, jax.random.PRNGKey(0)))
    return {
        name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        for name, tree in params.items()
    }


def test_the_full_student_has_the_recipes_shapes_and_parameters() -> None:
    spec = make_spec("rgbd", StudentNetworkConfig(), memory=HistoryConfig(()))
    assert {name: value[:2] for name, value in spec.inputs.items()} == {
        "left_rgb": ((32, 32, 3), "uint8"),
        "left_depth": ((32, 32), "float32"),
        "right_rgb": ((32, 32, 3), "uint8"),
        "right_depth": ((32, 32), "float32"),
        "proprioception": ((32,), "float32"),
        "switched": ((), "bool"),
    }
    # Convolutions without bias; four Dense(64) on 64 numbers; 4 x 64 + 33 -> 256 -> 256 -> 256 -> 14.
    encoder = 8 * 8 * 3 * 32 + 4 * 4 * 32 * 64 + 3 * 3 * 64 * 64
    head = 4 * (64 * 64 + 64) + (289 * 256 + 256) + 2 * (256 * 256 + 256) + (256 * 14 + 14)
    assert parameters(spec) == {"encoder": encoder, "head": head}
    assert len(spec.action.joints) == 14
    assert (spec.action.scale, spec.action.control_period_s) == (0.02, 0.05)


def test_a_memory_adds_inputs_to_the_first_layer_alone() -> None:
    none, one = (make_spec(memory=HistoryConfig(rates)) for rates in ((), (0.3,)))
    assert one.features == 2 * none.features == 64
    more = parameters(one)["head"] - parameters(none)["head"]
    assert more == 32 * SMALL.hidden[0]


def test_patches_are_cut_as_a_convolution_with_that_stride_cuts_them() -> None:
    draw = np.random.default_rng(0)
    pictures = jnp.asarray(draw.normal(size=(2, 8, 12, 3)), jnp.float32)
    kernel = jnp.asarray(draw.normal(size=(4, 4, 3, 5)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        pictures, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = vision_network.cut_patches(pictures, 4) @ kernel.reshape(48, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("places", [0, 4])
@pytest.mark.parametrize(("batch", "side"), [(3, 32), (17, 20), (1, 9)])
def test_encoding_in_matrix_products_is_the_same(places: int, batch: int, side: int) -> None:
    network = policies_spec.StudentNetworkConfig(filters=(4, 6, 8), places=places)
    cameras = policies_spec.CameraSpec(side)
    spec = dataclasses.replace(make_spec("rgb"), network=network, cameras=cameras)
    encoder = vision_network.init(spec, jax.random.PRNGKey(0))["encoder"]
    rgb = np.random.default_rng(0).integers(0, 256, (batch, 2, side, side, 3), np.uint8)
    expected = vision_network.encode(spec, encoder, rgb)
    found = cpu_encoder.encode_in_products(spec, encoder, rgb)
    assert found.shape == expected.shape
    assert np.asarray(expected).std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_places_and_patches_tell_where_something_is() -> None:
    """What the mean over a picture, or 8 x 8 of its pixels, cannot show."""
    plain = make_spec()
    precise = make_spec(network=dataclasses.replace(SMALL, places=3, patches=(4, 5)))
    batch = batch_of(plain)
    depth = np.zeros((3, 32, 32), np.float32)
    depth[:, 9, 9] = 0.3  # between the pixels that are picked
    black = {f"{side}_depth": 0 * depth for side in joints.SIDES}
    rgb = np.zeros((3, 32, 32, 3), np.uint8)
    for spec, sees in ((plain, False), (precise, True)):
        found = make_policy(spec)
        before = found.apply({**batch, **black})
        after = found.apply({**batch, **black, "left_depth": depth})
        assert (np.abs(after - before).max() > 1e-5) == sees
    # The same picture in the middle of the one and of the other half: the mean over all places is the same.
    encoder = vision_network.init(precise, jax.random.PRNGKey(0))["encoder"]
    rgb[0, 8:24, 4:12], rgb[1, 8:24, 20:28] = 200, 200
    code = np.asarray(vision_network.encode(precise, encoder, jnp.asarray(rgb)[:, None]))
    assert code.shape == (3, 1, 4, 4, 8)
    mean = np.asarray(vision_network.encode(plain, encoder, jnp.asarray(rgb)[:, None]))
    np.testing.assert_allclose(code.mean((2, 3)), mean, atol=1e-6)
    assert code[0, 0, :, :2].sum() > code[0, 0, :, 2:].sum()
    assert code[1, 0, :, :2].sum() < code[1, 0, :, 2:].sum()


def test_the_depth_only_student_learns_its_own_convolutions() -> None:
    depth = parameters(make_spec("depth", StudentNetworkConfig(), cameras=CameraSpec(size=64)))
    assert depth.keys() == {"head"}
    assert 300_000 < depth["head"] < 500_000  # the recipe: about 400,000
    assert parameters(make_spec("state")).keys() == {"head"}
    assert parameters(make_spec("rgb")).keys() == {"encoder", "head"}


@pytest.mark.parametrize("observation", policies_spec.OBSERVATIONS)
def test_each_input_changes_the_actions_and_rows_do_not_mix(observation: str) -> None:
    spec = make_spec(observation)
    found = make_policy(spec)
    batch = batch_of(spec)
    before = np.asarray(found.apply(batch))
    assert before.shape == (3, 14)
    assert np.abs(before).max() <= 1
    for name, values in batch.items():
        changed = values.copy()
        changed[1] = ~changed[1] if values.dtype == bool else changed[1][::-1] / 2
        after = np.asarray(found.apply({**batch, name: changed}))
        effect = np.abs(after - before).max(1)
        assert effect[1] > 1e-5, name
        np.testing.assert_allclose(effect[[0, 2]], 0, atol=1e-6)


def test_scaling_is_that_of_the_robots_pictures() -> None:
    draw = np.random.default_rng(0)
    rgb = draw.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    depth = draw.uniform(-0.1, 0.6, (2, 2, 32, 32)).astype(np.float32)
    depth[0, 0, :2] = [[0.0] * 32, [np.nan] * 32]
    wanted = camera_contract.preprocess(rgb, depth, 0.4)
    found_rgb, found_depth = vision_network.scale_rgb(rgb), vision_network.scale_depth(depth, 0.4)
    assert isinstance(found_rgb, jax.Array)
    assert isinstance(found_depth, jax.Array)
    np.testing.assert_array_equal(found_rgb, wanted[0])
    np.testing.assert_array_equal(found_depth, wanted[1])
    # Known to be unknown: what is behind the cut-off, before the lens, or no number.
    np.testing.assert_array_equal(found_depth[~((depth > 0) & (depth <= 0.4))], 0)


def test_scaling_puts_no_constants_of_the_pictures_size_into_a_program() -> None:
    shape = (64, 2, 32, 32)

    def both(rgb: Any, depth: Any) -> Any:
        return vision_network.scale_rgb(rgb), vision_network.scale_depth(depth, 0.4)

    traced = jax.make_jaxpr(both)(jnp.zeros((*shape, 3), jnp.uint8), jnp.zeros(shape))
    assert sum(np.size(one) for one in traced.consts) < 10


def test_reducing_picks_the_pixel_in_the_middle_of_each_cell() -> None:
    picture = np.arange(32 * 32).reshape(1, 32, 32)
    reduced = vision_network.reduce_nearest(picture, 8)
    assert reduced.shape == (1, 8, 8)
    rows, columns = np.divmod(reduced[0], 32)
    np.testing.assert_array_equal(rows[:, 0], np.arange(8) * 4 + 2)
    np.testing.assert_array_equal(columns[0], np.arange(8) * 4 + 2)
    np.testing.assert_array_equal(vision_network.reduce_nearest(picture, 32), picture)
    uneven = vision_network.reduce_nearest(picture, 5)[0]
    np.testing.assert_array_equal(uneven[0] % 32, [3, 9, 16, 22, 28])
    np.testing.assert_array_equal(uneven[:, 0] // 32, [3, 9, 16, 22, 28])


def test_colour_and_depth_of_a_camera_shift_alike() -> None:
    depth = np.random.default_rng(0).random((4, 2, 12, 12), np.float32)
    rgb = np.repeat(depth[..., None], 3, -1)
    key = jax.random.PRNGKey(3)
    moved_rgb, moved_depth = augmentation.shift_pictures(key, rgb, depth, 2)
    np.testing.assert_array_equal(moved_rgb[..., 0], moved_depth)
    assert not np.array_equal(moved_depth, depth)
    # A shift within the picture: every pixel is one of the picture that was.
    for before, after in zip(
        depth.reshape(8, -1), np.asarray(moved_depth).reshape(8, -1), strict=True
    ):
        assert np.isin(after, before).all()
    for one, other in zip(augmentation.shift_pictures(key, rgb, None, 0), (rgb, None), strict=True):
        assert one is other


def test_the_encoder_learns_only_where_it_is_not_frozen() -> None:
    spec = make_spec("rgb")
    params = vision_network.init(spec, jax.random.PRNGKey(0))
    batch = batch_of(spec)
    pictures = jnp.stack([batch[f"{side}_rgb"] for side in joints.SIDES], 1)

    def loss(params: Any, frozen: bool) -> jax.Array:
        encoder = jax.lax.stop_gradient(params["encoder"]) if frozen else params["encoder"]
        rgb = vision_network.encode(spec, encoder, pictures)
        logits, _ = vision_network.head(
            spec, params["head"], rgb, None, batch["features"], batch["switched"]
        )
        return jnp.square(jnp.tanh(logits) - 0.5).mean()

    slopes = jax.jit(jax.grad(loss), static_argnums=1)
    frozen, trained = slopes(params, True), slopes(params, False)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(frozen["encoder"]))
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(trained["encoder"]))
    for one, other in zip(
        jax.tree.leaves(frozen["head"]), jax.tree.leaves(trained["head"]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
        assert np.asarray(one).any()


def test_what_only_training_needs_is_left_out() -> None:
    spec = make_spec("depth")
    params = vision_network.init(spec, jax.random.PRNGKey(0), auxiliary=True)
    assert "objects0" in params["head"]
    weights = vision_network.flatten(params, np.zeros(spec.features), np.ones(spec.features))
    assert not [name for name in weights if "objects" in name]
    policy_ = StudentPolicy(spec, weights, {})
    assert np.isfinite(np.asarray(policy_.apply(batch_of(spec)))).all()
    depth = jnp.stack([batch_of(spec)[f"{side}_depth"] for side in joints.SIDES], 1)
    features, switched = batch_of(spec)["features"], batch_of(spec)["switched"]
    logits, guess = vision_network.head(spec, params["head"], None, depth, features, switched, True)
    assert guess is not None
    assert guess.shape == (3, 2, 3)
    plain, nothing = vision_network.head(spec, params["head"], None, depth, features, switched)
    assert nothing is None
    np.testing.assert_array_equal(logits, plain)
    tree = vision_network.tree_of(weights)
    np.testing.assert_array_equal(
        tree["head"]["layer0"]["kernel"], params["head"]["layer0"]["kernel"]
    )


@pytest.fixture(scope="module")
def remembering() -> StudentPolicy:
    return make_policy(make_spec())


def rows_of(inputs: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    return {name: value[step] for name, value in inputs.items()}


def test_acting_remembers_until_a_reset(remembering: StudentPolicy) -> None:
    inputs = draw_inputs(remembering.spec, 3)
    remembering.reset()
    first = remembering.act(rows_of(inputs, 0))
    assert (first.shape, first.dtype) == ((14,), np.float32)
    later = [remembering.act(rows_of(inputs, step)) for step in (1, 0)]
    assert np.abs(later[1] - first).max() > 1e-6
    remembering.reset()
    # Whatever else an observation of a robot holds is ignored.
    again = remembering.act({**rows_of(inputs, 0), "time": np.float32(1)})
    np.testing.assert_array_equal(again, first)
    assert remembering.action_size == 14


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("left_rgb", None, "lacks 'left_rgb'"),
        ("left_rgb", lambda value: value[:16], r"\[32, 32, 3\], not uint8 \[16, 32, 3\]"),
        ("left_rgb", lambda value: value.astype(np.float32), "uint8"),
        ("right_depth", lambda value: value.astype(np.int32), "float32"),
        ("right_depth", lambda value: value * np.nan, "'right_depth' is not finite"),
        ("proprioception", lambda value: value[:-1], r"\[32\], not float32 \[31\]"),
        ("switched", lambda _: np.float32(1), "'switched' must be bool"),
    ],
)
def test_a_malformed_observation_is_named(
    remembering: StudentPolicy, name: str, change: Callable[[Any], Any] | None, words: str
) -> None:
    observation: dict[str, Any] = rows_of(draw_inputs(remembering.spec, 1), 0)
    value = observation.pop(name)
    if change is not None:
        observation[name] = change(value)
    with pytest.raises(ArtifactError, match=words):
        remembering.act(observation)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CameraSpec(size=4),
        lambda: CameraSpec(fovy_deg=180),
        lambda: CameraSpec(depth_cutoff=0),
        lambda: StudentNetworkConfig(hidden=()),
        lambda: StudentNetworkConfig(embedding=0),
        lambda: StudentNetworkConfig(activation="step"),
        lambda: StudentNetworkConfig(depth_side=0),
        lambda: StudentNetworkConfig(places=-1),
        lambda: StudentNetworkConfig(patches=(8,)),
        lambda: StudentNetworkConfig(patches=(8, 0)),
        lambda: make_spec(
            network=StudentNetworkConfig(patches=(4, 4)), cameras=CameraSpec(size=20)
        ),
        lambda: make_spec("sound"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, remembering: StudentPolicy) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("students") / "student"
    return artifact.save(remembering, folder, draw_inputs(remembering.spec, 5))


def test_an_artifact_comes_back_as_it_was(remembering: StudentPolicy, saved: pathlib.Path) -> None:
    assert sorted(one.name for one in saved.iterdir()) == [
        "check.npz",
        "policy.json",
        "weights.npz",
    ]
    found = artifact.load(saved, StudentPolicy)  # whatever the kind of a policy is
    assert (found.spec, found.trained) == (remembering.spec, remembering.trained)
    assert found.hash == remembering.hash == artifact.describe(saved)["hash"]
    assert found.weights.keys() == remembering.weights.keys()
    for name, value in found.weights.items():
        np.testing.assert_array_equal(value, remembering.weights[name])
    inputs = draw_inputs(found.spec, 3, seed=9)
    remembering.reset()
    for step in range(3):
        np.testing.assert_array_equal(
            found.act(rows_of(inputs, step)), remembering.act(rows_of(inputs, step))
        )
    described = artifact.describe(saved)["inputs"]
    assert {one["name"]: one["unit"] for one in described}["left_depth"] == "m"
    with np.load(saved / "check.npz", allow_pickle=False) as check:
        assert {*found.spec.inputs, "actions"} == set(check.files)
        assert check["actions"].shape == (5, 14)


def test_the_hash_tells_weights_and_descriptions_apart(remembering: StudentPolicy) -> None:
    spec, weights = remembering.spec, remembering.weights
    other = {**weights, "head/layer0/bias": weights["head/layer0/bias"] + 1e-6}
    farther = dataclasses.replace(spec, cameras=CameraSpec(depth_cutoff=0.5))
    hashes = [StudentPolicy(*one, {}).hash for one in ((spec, weights), (spec, other))]
    hashes.append(StudentPolicy(farther, weights, {}).hash)
    assert hashes[0] == remembering.hash
    assert len(set(hashes)) == 3


def edit_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        described = json.loads((folder / "policy.json").read_text())
        change(described)
        (folder / "policy.json").write_text(json.dumps(described))

    return edit


def edit_arrays(
    name: str, change: Callable[[dict[str, np.ndarray]], Any]
) -> Callable[[pathlib.Path], None]:
    def edit(folder: pathlib.Path) -> None:
        with np.load(folder / name) as file:
            arrays = {key: file[key] for key in file.files}
        change(arrays)
        np.savez(folder / name, **arrays)  # pyright: ignore[reportArgumentType]

    return edit


def cut(name: str) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def noise(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def add(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name] + np.float32(0.01)

    return add


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "policy.json").unlink(), "missing"),
        (lambda folder: (folder / "weights.npz").unlink(), "missing or damaged"),
        (lambda folder: (folder / "check.npz").unlink(), "missing or damaged"),
        (cut("policy.json"), "damaged"),
        (cut("weights.npz"), "damaged"),
        (cut("check.npz"), "damaged"),
        (edit_json(lambda one: one.update(format_version=99)), "upgrade"),
        (edit_json(lambda one: one.pop("cameras")), "not a valid policy"),
        (edit_json(lambda one: one.update(observation="sound")), "not a valid policy"),
        (edit_json(lambda one: one["network"].update(hidden=[8])), "do not fit"),
        (edit_json(lambda one: one["cameras"].update(depth_cutoff=0.5)), "differ from its hash"),
        (edit_arrays("weights.npz", noise("encoder/Conv_0/kernel")), "differ from its hash"),
        (edit_arrays("weights.npz", lambda one: one.pop("mean")), "'mean' is None"),
        (edit_arrays("check.npz", lambda one: one.pop("left_rgb")), "lacks left_rgb"),
        (edit_arrays("check.npz", noise("actions")), "fails its check"),
        (edit_arrays("check.npz", noise("proprioception")), "fails its check"),
        (
            edit_arrays("check.npz", lambda one: one.update(actions=one["actions"] * np.nan)),
            "fails its check",
        ),
    ],
)
def test_a_damaged_artifact_is_refused(
    remembering: StudentPolicy,
    saved: pathlib.Path,
    tmp_path: pathlib.Path,
    damage: Callable[[pathlib.Path], Any],
    words: str,
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for one in saved.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    damage(folder)
    with pytest.raises(ArtifactError, match=words):
        artifact.load(folder)


def test_what_is_no_student_or_no_sequence_is_refused(
    remembering: StudentPolicy, saved: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArtifactError, match="is no student, but 'state'"):
        artifact.load(assets.data_path("params") / "pick", StudentPolicy)
    rows = draw_inputs(remembering.spec, 2)
    del rows["switched"]
    with pytest.raises(ArtifactError, match="lack 'switched'"):
        artifact.save(remembering, tmp_path / "student", rows)
    assert not (tmp_path / "student").exists()
