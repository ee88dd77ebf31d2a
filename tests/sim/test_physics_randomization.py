from __future__ import annotations

import re

import mujoco
import numpy as np
import pytest
from scipy import stats

from alohas2r.core import assets
from alohas2r.errors import ConfigError
from alohas2r.sim import physics_randomization, scene
from alohas2r.sim.engines.cpu import CpuEngine
from alohas2r.sim.physics_randomization import BlockConfig, InsertRandomization

WIDE = InsertRandomization(skew=1.0)


def compiled(name: str, geom: str, half: np.ndarray, mass: float) -> mujoco.MjModel:
    """The scene compiled from its text with that size and mass written into it."""
    text = (assets.data_path("xmls") / f"scene_{name}.xml").read_text()
    # Where the text gives an inertia, leave it out: it follows from the geom.
    body = re.search(rf'<body (?:(?!</body>).)*?<geom name="{geom}"', text, re.DOTALL)
    assert body is not None
    last = body.group().rindex("<body ")
    without = re.sub(r"<inertial [^>]*>", "", body.group()[last:])
    edited = mujoco.MjSpec.from_string(text.replace(body.group()[last:], without))
    edited.geom(geom).size = half
    edited.geom(geom).mass = mass
    for look in [g for g in edited.geoms if g.classname.name == "look"]:
        edited.delete(look)
    for mesh in list(edited.meshes):
        edited.delete(mesh)
    return edited.compile()


def volumes(model: mujoco.MjModel, body: int) -> np.ndarray:
    first, length = model.body_bvhadr[body], model.body_bvhnum[body]
    return model.bvh_aabb[first : first + length]


def check_same(found: mujoco.MjModel, expected: mujoco.MjModel, geom: str, body: str) -> None:
    geom_id = mujoco.mj_name2id(expected, mujoco.mjtObj.mjOBJ_GEOM, geom)
    body_id = mujoco.mj_name2id(expected, mujoco.mjtObj.mjOBJ_BODY, body)
    for field in ("geom_size", "geom_rbound", "geom_aabb"):
        np.testing.assert_allclose(
            getattr(found, field)[geom_id],
            getattr(expected, field)[geom_id],
            atol=1e-12,
            err_msg=field,
        )
    fields = (
        "body_mass",
        "body_inertia",
        "body_ipos",
        "body_iquat",
        "body_subtreemass",
        "body_invweight0",
    )
    for field in fields:
        np.testing.assert_allclose(
            getattr(found, field)[body_id],
            getattr(expected, field)[body_id],
            rtol=1e-9,
            atol=1e-15,
            err_msg=field,
        )
    dofs = slice(expected.body_dofadr[body_id], expected.body_dofadr[body_id] + 6)
    for field in ("dof_invweight0", "dof_M0"):
        np.testing.assert_allclose(
            getattr(found, field)[dofs], getattr(expected, field)[dofs], rtol=1e-9, err_msg=field
        )
    np.testing.assert_allclose(volumes(found, body_id), volumes(expected, body_id), atol=1e-12)
    # Everything else is as before.
    others = np.arange(expected.ngeom) != geom_id
    np.testing.assert_array_equal(found.geom_size[others], expected.geom_size[others])
    others = np.arange(expected.nbody) != body_id
    np.testing.assert_array_equal(found.body_inertia[others], expected.body_inertia[others])


@pytest.mark.parametrize("corner", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.37, 0.81)])
def test_a_block_is_the_block_that_its_text_would_give(corner: tuple[float, float]) -> None:
    pick = scene.load_physics("pick")
    fields, context = physics_randomization.sample_block(
        pick, BlockConfig(), np.array([[0.5, 0.5], corner])
    )
    half_side, mass = context[1]
    assert half_side == pytest.approx(0.010 + corner[0] * 0.020)
    assert mass == pytest.approx(0.030 + corner[1] * 0.070)
    engine = CpuEngine(pick, 2, threads=1, fields=fields)
    expected = compiled("pick", "box", np.array([0.048, half_side, half_side]), mass)
    check_same(engine.batch.get_model(1), expected, "box", "box")

    # And it falls, tumbles and is hit by the arm alike.
    qpos = np.tile(pick.home_qpos, (2, 1))
    arm = pick.arms[0]
    qpos[:, arm.object_qpos] = [-0.2, 0.045, 0.12, 0.9, 0.3, 0.2, 0.1]
    qpos[:, arm.object_qpos[3:]] /= np.linalg.norm([0.9, 0.3, 0.2, 0.1])
    ctrl = np.tile(pick.home_ctrl, (2, 1))
    physics, _ = engine.reset(None, np.ones(2, bool), qpos, ctrl)
    data = mujoco.MjData(expected)
    data.qpos[:], data.ctrl[:] = qpos[1], ctrl[1]
    ctrl[:, arm.ctrl[6]] = 0.005
    contacts = 0
    for _ in range(15):
        physics, _ = engine.step(physics, ctrl)
        data.ctrl[:] = ctrl[1]
        for _ in range(scene.SUBSTEPS):
            mujoco.mj_step(expected, data)
        contacts = max(contacts, data.ncon)
        # The solver stops at a precision that depends on the whole model's mean inertia, which
        # simulations of one batch share.
        np.testing.assert_allclose(engine.batch.qpos[1], data.qpos, atol=1e-5)
    assert contacts > 0


def test_inertia_of_boxes_by_integration() -> None:
    half, mass = np.array([[0.05, 0.02, 0.01]]), np.array([0.3])
    axes = [np.linspace(-h, h, 41)[:-1] + h / 40 for h in half[0]]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    squares = (points**2).mean(0)
    expected = mass * (squares.sum() - squares)
    np.testing.assert_allclose(
        physics_randomization.box_inertia(half, mass)[0], expected, rtol=2e-3
    )


def test_blocks_fill_their_ranges_and_skew_prefers_large_ones() -> None:
    pick = scene.load_physics("pick")
    uniform = np.random.default_rng(0).random((5000, 2))
    _, context = physics_randomization.sample_block(pick, BlockConfig(), uniform)
    assert stats.kstest(context[:, 0], stats.uniform(0.010, 0.020).cdf).pvalue > 1e-3
    assert stats.kstest(context[:, 1], stats.uniform(0.030, 0.070).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(context.T)[0, 1]) < 0.05
    _, skewed = physics_randomization.sample_block(pick, BlockConfig(skew=0.5), uniform)
    assert (skewed[:, 0] >= context[:, 0]).all()
    # The square root of a uniform number has the mean 2/3.
    assert skewed[:, 0].mean() == pytest.approx(0.010 + 0.020 * 2 / 3, abs=5e-4)


def test_weights_say_how_often_each_part_of_the_range_comes() -> None:
    pick = scene.load_physics("pick")
    uniform = np.random.default_rng(0).random((5000, 2))
    low, high = BlockConfig().half_side
    _, plain = physics_randomization.sample_block(pick, BlockConfig(), uniform)
    _, equal = physics_randomization.sample_block(
        pick, BlockConfig(weights=(2.0, 2.0, 2.0)), uniform
    )
    np.testing.assert_allclose(equal, plain, rtol=1e-9)
    weights = (1.0, 4.0, 5.0)
    _, context = physics_randomization.sample_block(pick, BlockConfig(weights=weights), uniform)
    third = np.floor((context[:, 0] - low) / (high - low) * 3).clip(0, 2)
    shares = [(third == part).mean() for part in range(3)]
    np.testing.assert_allclose(shares, np.array(weights) / 10, atol=0.02)
    inside = (context[third == 1, 0] - low) / (high - low) * 3 - 1
    assert stats.kstest(inside, stats.uniform.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(context[:, 1], plain[:, 1])


def test_a_peg_is_the_peg_that_its_text_would_give() -> None:
    insert = scene.load_physics("insert")
    uniform = np.full((1, physics_randomization.INSERT_DRAWS), 0.5)
    config = InsertRandomization((0.016, 0.016), (1, 1), (1, 1), (1, 1), (1, 1))
    fields, half = physics_randomization.sample_insert(insert, config, uniform)
    assert half == pytest.approx([0.016])
    engine = CpuEngine(insert, 1, threads=1, fields=fields)
    mass = 0.044 * (0.016 / 0.010) ** 2  # of the same density
    expected = compiled("insert", "red_peg", np.array([0.048, 0.016, 0.016]), mass)
    check_same(engine.batch.get_model(0), expected, "red_peg", "peg")


def test_the_nominal_variant_is_the_model_as_it_is() -> None:
    """But for the peg's inertia, which the published model gives rounded to two digits."""
    insert = scene.load_physics("insert")
    uniform = np.random.default_rng(0).random((3, physics_randomization.INSERT_DRAWS))
    fields, half = physics_randomization.sample_insert(
        insert, physics_randomization.NOMINAL, uniform
    )
    np.testing.assert_allclose(half, 0.010)
    for name, values in fields.items():
        nominal = np.asarray(getattr(insert.model, name))
        for value in values:
            own = nominal[: len(value)] if name == "bvh_aabb" else nominal
            np.testing.assert_allclose(
                value.reshape(own.shape), own, rtol=0.012, atol=1e-9, err_msg=name
            )


def test_factors_are_uniform_independent_and_within_their_bounds() -> None:
    insert = scene.load_physics("insert")
    model, count = insert.model, 2000
    uniform = np.random.default_rng(1).random((count, physics_randomization.INSERT_DRAWS))
    fields, half = physics_randomization.sample_insert(insert, WIDE, uniform)
    peg, socket = insert.id("body", "peg"), insert.id("body", "socket")
    volume = (half / 0.010) ** 2
    found = {
        "size": (half, (0.010, 0.017)),
        "peg": (fields["body_mass"][:, peg] / model.body_mass[peg] / volume, WIDE.mass),
        "socket": (fields["body_mass"][:, socket] / model.body_mass[socket], WIDE.mass),
    }
    finger = insert.id("geom", "left/left_finger_bottom")
    found["friction"] = (
        fields["geom_friction"][:, finger, 0] / model.geom_friction[finger, 0],
        WIDE.friction,
    )
    for arm in insert.arms:
        for place, (actuator, dof) in enumerate(zip(arm.ctrl, arm.qvel[:7], strict=True)):
            gain = fields["actuator_gainprm"][:, actuator, 0] / model.actuator_gainprm[actuator, 0]
            bias = fields["actuator_biasprm"][:, actuator, 1] / model.actuator_biasprm[actuator, 1]
            # A position servo stays one: its force is zero where joint and target agree.
            np.testing.assert_allclose(gain, bias, rtol=1e-12)
            found[f"gain {arm.name} {place}"] = (gain, WIDE.gain)
            if model.dof_damping.ravel()[dof] > 0:
                damping = fields["dof_damping"].reshape(count, -1)[:, dof]
                ratio = damping / model.dof_damping.ravel()[dof]
                found[f"damping {arm.name} {place}"] = (ratio, WIDE.damping)
    for name, (values, (low, high)) in found.items():
        uniform_cdf = stats.uniform(low, high - low).cdf
        assert stats.kstest(values, uniform_cdf).pvalue > 1e-5, name
    correlation = np.corrcoef([values for values, _ in found.values()]) - np.eye(len(found))
    assert np.abs(correlation).max() < 0.12
    inertia = fields["body_inertia"][:, socket] / model.body_inertia[socket]
    np.testing.assert_allclose(inertia, found["socket"][0][:, None] * np.ones(3), rtol=1e-9)


def test_only_objects_and_fingers_change_their_friction() -> None:
    insert = scene.load_physics("insert")
    model = insert.model
    uniform = np.random.default_rng(2).random((1, physics_randomization.INSERT_DRAWS))
    fields, _ = physics_randomization.sample_insert(insert, WIDE, uniform)
    changed = np.flatnonzero((fields["geom_friction"][0] != model.geom_friction).any(1))
    bodies = {model.body(model.geom_bodyid[geom]).name for geom in changed}
    fingers = {f"{a}/{f}_finger_link" for a in ("left", "right") for f in ("left", "right")}
    assert bodies == {"peg", "socket", *fingers}
    np.testing.assert_array_equal(fields["geom_friction"][0, :, 1:], model.geom_friction[:, 1:])


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (BlockConfig, {"half_side": (0.001, 0.03)}),
        (BlockConfig, {"half_side": (0.03, 0.01)}),
        (BlockConfig, {"mass": (0.0, 0.1)}),
        (BlockConfig, {"skew": 0.0}),
        (BlockConfig, {"weights": ()}),
        (BlockConfig, {"weights": (1.0, 0.0)}),
        (InsertRandomization, {"peg_half_side": (0.01, 0.018)}),
        (InsertRandomization, {"gain": (1.2, 0.8)}),
        (InsertRandomization, {"friction": (0.0, 1.0)}),
    ],
)
def test_values_out_of_range(cls: type, wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        cls(**wrong)
