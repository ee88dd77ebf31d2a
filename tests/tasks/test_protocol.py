from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from alohas2r import config
from alohas2r.envs import noise
from alohas2r.errors import ConfigError
from alohas2r.tasks import protocol
from alohas2r.tasks.insert.config import InsertConfig
from alohas2r.tasks.pick.config import PickConfig
from alohas2r.tasks.protocol import EVAL_V1

# Results of different versions of this package compare only while this stays as it is.
# A change to any number of the protocol needs a new protocol with a new name.
EVAL_V1_HASH = "3138c351a7dc0102c3935ce6122c405edd6b9569fbb116a9f8c4bdda9853c732"


def test_eval_v1_is_frozen() -> None:
    assert EVAL_V1.name == "eval-v1"
    assert EVAL_V1.hash == EVAL_V1_HASH


def test_eval_v1_says_what_the_recipe_says() -> None:
    flat = config.flatten(EVAL_V1)
    expected = {
        "control.scale": 0.02,
        "control.delay_weights": [0.83, 0.104, 0.02, 0.014],
        "control.gripper_delay_steps": 3,
        "control.extra_delay_steps": 0,
        "noise.joint_pos": 0.1,
        "noise.joint_vel": 0.1,
        "noise.object_pos": 0.015,
        "noise.object_linvel": 0.015,
        "noise.object_angvel": 0.2,
        "noise.tip_to_grip": 0.015,
        "noise.gripper_angle_deg": 5.0,
        "noise.object_angle_deg": 5.0,
        "noise.delay_weights": [0.83, 0.104, 0.02, 0.014],
        "pick.steps": 160,  # 8 s
        "pick.start.waist": [-0.2, 0.45],
        "pick.start.radius": [0.20, 0.45],
        "pick.start.angle_deg": [-25.0, 35.0],
        "pick.start.yaw_deg": 5.0,
        "pick.start.target": [-0.10, 0.0, 0.25],
        "pick.start.target_range": 0.1,
        "pick.block.half_side": [0.010, 0.030],
        "pick.block.mass": [0.030, 0.100],
        "pick.block.skew": 1.0,
        "pick.success": [0.040, 15.0],
        "pick.precise": [0.020, 10.0],
        "pick.crossed_x": 0.073,
        "insert.steps": 200,  # 10 s
        "insert.start.waist": 0.1,
        "insert.start.radius": [0.27, 0.42],
        "insert.start.angle_deg": 14.5,
        "insert.start.yaw_deg": 5.0,
        "insert.start.targets": [[-0.10, 0.0, 0.25], [0.10, 0.0, 0.25]],
        "insert.physics.peg_half_side": [0.010, 0.010],
        "insert.noise.object_angle_deg": 7.5,
        "insert.inserted_x": -0.030,
        "insert.hole": 0.018,
        "insert.grip_distance": 0.030,
        "insert.hold_steps": 5,
        "insert.fall_height": 0.07,
    }
    for name, value in expected.items():
        assert flat[name] == value, name
    for name in ("mass", "friction", "gain", "damping"):
        assert flat[f"insert.physics.{name}"] == [1, 1]


def changed(value: Any) -> Any:
    """Another value of the same kind, close by."""
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.001 + 1e-6
    return (changed(value[0]), *value[1:])


def variants(value: Any) -> list[Any]:
    """The same protocol with one leaf changed, for every leaf."""
    found = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        options = variants(inner) if hasattr(inner, "__dataclass_fields__") else [changed(inner)]
        for option in options:
            try:
                found.append(dataclasses.replace(value, **{field.name: option}))
            except ConfigError:  # a range that would be empty: change the upper end instead
                other = (*inner[:-1], changed(inner[-1]))
                found.append(dataclasses.replace(value, **{field.name: other}))
    return found


def test_every_number_counts_in_the_hash() -> None:
    others = variants(EVAL_V1)
    assert len(others) > 50
    assert len({EVAL_V1.hash, *(other.hash for other in others)}) == len(others) + 1


def test_nothing_in_it_can_be_changed_in_place() -> None:
    for part in (EVAL_V1, EVAL_V1.pick, EVAL_V1.noise, EVAL_V1.insert.start):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, 0)


def test_training_defaults_do_not_decide_what_is_evaluated() -> None:
    """The tasks take every rule that the protocol has a name for from it."""
    for rules, task in ((EVAL_V1.pick, PickConfig()), (EVAL_V1.insert, InsertConfig())):
        own = config.to_dict(task).keys()
        scored_outside = {"success", "precise", "noise"}
        named = config.to_dict(rules).keys()
        assert named - scored_outside <= own
    assert typing.get_type_hints(protocol.Protocol)["noise"] is noise.NoiseConfig


def test_other_conditions_get_another_name_and_hash() -> None:
    assert protocol.modified(EVAL_V1) == EVAL_V1
    changed = [
        protocol.modified(EVAL_V1, peg_mm=28),
        protocol.modified(EVAL_V1, extra_delay_steps=2),
        protocol.modified(EVAL_V1, seconds=15),
        protocol.modified(EVAL_V1, peg_mm=28, extra_delay_steps=2, seconds=15),
    ]
    assert len({found.hash for found in changed} | {EVAL_V1.hash}) == 5
    assert [found.name for found in changed] == [
        "eval-v1+peg=28mm",
        "eval-v1+delay=2",
        "eval-v1+seconds=15",
        "eval-v1+peg=28mm+seconds=15+delay=2",
    ]
    assert changed[0].insert.physics.peg_half_side == pytest.approx((0.014, 0.014))
    assert changed[1].control.extra_delay_steps == 2
    assert changed[2].insert.steps == 300
    assert changed[2].pick == EVAL_V1.pick


@pytest.mark.parametrize(
    "wrong",
    [
        {"peg_mm": 36.0},
        {"peg_mm": -1.0},
        {"extra_delay_steps": -1},
        {"seconds": 0.0},
        {"seconds": -1.0},
    ],
)
def test_conditions_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        protocol.modified(EVAL_V1, **wrong)
