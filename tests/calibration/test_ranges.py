"""What was measured narrows the ranges of training and evaluation, and nothing else changes."""

import dataclasses
import pathlib

import pytest

from alohas2r.calibration import ranges
from alohas2r.config import override
from alohas2r.deployment import robot_file
from alohas2r.deployment.robot_file import ArmCalibration, RobotFile
from alohas2r.errors import ConfigError
from alohas2r.sim.variation import NEUTRAL, ROBOTS
from alohas2r.tasks.protocol import EVAL_V1, EVAL_V2, without_causes

LEFT = ArmCalibration(
    command_delay_s=(0.085, 0.078, 0.092),
    gain=((0.8, 0.7, 0.9),) * 6 + ((3.0, 2.5, 3.5),),
    damping=((1.2, 1.1, 1.3),) * 7,
    joint_friction=((1.0, 1.0, 1.0), (0.5, 0.2, 0.8), (0.4, 0.1, 0.7), *((1.0, 1.0, 1.0),) * 4),
    backlash_deg=((0.4, 0.3, 0.5),) * 6,
    zero_deg=((1.0, 0.9, 1.1),) * 5 + ((-0.5, -0.7, -0.3),),
    travel_m=(0.001, 0.0009, 0.0011),
    travel_scale=(1.02, 1.01, 1.03),
)
RIGHT = dataclasses.replace(
    LEFT,
    command_delay_s=(0.02, 0.015, 0.025),
    gain=((1.5, 1.4, 1.6),) * 7,
    travel_scale=(0.98, 0.97, 0.99),
)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    robot = RobotFile(left_calibration=LEFT, right_calibration=RIGHT)
    return robot_file.save(robot, tmp_path / "robot.toml")


def test_the_robot_file_keeps_what_was_measured(file: pathlib.Path) -> None:
    known = robot_file.load(file)
    assert known is not None
    assert known.calibrations == (LEFT, RIGHT)
    bare = robot_file.save(RobotFile(), file.with_name("bare.toml"))
    assert "calibration" not in bare.read_text()
    assert robot_file.load(bare) == RobotFile()
    set_up = robot_file.update(known, base_distance_m=0.9)  # a later setup-robot forgets nothing
    assert set_up.calibrations == (LEFT, RIGHT)


def test_ranges_reach_over_joints_and_intervals(file: pathlib.Path) -> None:
    robot = ranges.measured(file)
    variation = ranges.narrowed(robot, ROBOTS)
    assert variation.gain == (0.7, 1.6)
    assert variation.gripper_gain == (1.4, 3.5)
    assert variation.damping == (1.1, 1.3)
    assert variation.joint_friction == (0.1, 0.8)  # of the joints that have friction
    assert variation.backlash_deg == (0.3, 0.5)
    assert variation.zero_deg == pytest.approx(1.1)
    assert variation.travel_m == pytest.approx(0.0011)
    assert variation.travel_scale == (0.97, 1.03)
    assert variation.action_delay_s == (0.0, 0.1)  # whole control steps
    same = ("force", "base_m", "base_deg", "table_m", "friction", "softness", "view_delay_s")
    assert all(getattr(variation, name) == getattr(ROBOTS, name) for name in same)


def test_settings_name_only_what_was_measured(file: pathlib.Path) -> None:
    settings = ranges.settings(file, "variation")
    assert {one.partition("=")[0] for one in settings} == {
        f"variation.{name}" for name in ranges.changes(ranges.measured(file))
    }
    changed = override(EVAL_V2, settings)
    assert changed.variation == ranges.narrowed(ranges.measured(file), ROBOTS)
    # Without pictures: zeros and travel stay as they were.
    blind = [
        dataclasses.replace(one, zero_deg=(), travel_m=(), travel_scale=()) for one in (LEFT, RIGHT)
    ]
    known = RobotFile(left_calibration=blind[0], right_calibration=blind[1])
    assert {"zero_deg", "travel_m", "travel_scale"}.isdisjoint(ranges.changes(known))


def test_a_protocol_of_the_robot_has_another_name_and_hash(file: pathlib.Path) -> None:
    protocol = ranges.of_robot(EVAL_V2, file)
    assert protocol.name.startswith("eval-v2+robot=")
    assert protocol.hash != EVAL_V2.hash
    assert dataclasses.replace(protocol, name="eval-v2", variation=ROBOTS).hash == EVAL_V2.hash
    alone = ranges.of_robot(without_causes(EVAL_V2), file)
    assert alone.variation == ranges.narrowed(ranges.measured(file), NEUTRAL)
    with pytest.raises(ConfigError, match="eval-v1' knows the nominal robot only"):
        ranges.of_robot(EVAL_V1, file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base_distance_m = 0.9", "says nothing that was measured"),
        ("[left_calibration]\ngain = [[1.0, 0.9, 1.1]]", "gain must have 7 rows"),
        ("[left_calibration]\ncommand_delay_s = [0.1]", "must be \\[value, low, high\\]"),
        (
            "[left_calibration]\nstiffness = 1",
            "Unknown configuration key 'left_calibration.stiffness'",
        ),
    ],
)
def test_a_file_that_says_nothing_or_nonsense_is_refused(tmp_path, text: str, words: str) -> None:
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        ranges.measured(path)
    with pytest.raises(ConfigError, match="There is no robot file"):
        ranges.measured(tmp_path / "none.toml")
