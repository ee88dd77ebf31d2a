"""An emulated robot that hides what it is, is found out."""

import json
import pathlib

import calibration_cases as cases
import numpy as np
import pytest

from alohas2r.calibration import arms, calibrate, excite, motion, sight
from alohas2r.calibration.arms import Moves
from alohas2r.calibration.calibrate import Calibration
from alohas2r.calibration.servos import Estimate, Moved
from alohas2r.calibration.sight import Seen
from alohas2r.cli import main
from alohas2r.deployment import robot_file
from alohas2r.deployment.log import LogWriter, Run
from alohas2r.deployment.rig import RigConfig
from alohas2r.deployment.robot_file import RobotFile
from alohas2r.embodiment.joints import IS_GRIPPER, PER_ARM
from alohas2r.errors import ConfigError
from alohas2r.robots.dynamixel.arm import GripperLinkage
from alohas2r.robots.emulator import hidden

DRAWS = range(20)
SEED = 0


class Errors:
    """By how much a calibration is off; zeros in degrees, travel in mm at both ends, gains as logarithms of ratios."""

    def __init__(self, found: Calibration, seed: int) -> None:
        config = excite.hidden_robot(seed)
        held = hidden.draw(config).held
        seen = found.seen
        assert seen is not None
        self.zeros_deg = np.rad2deg(seen.offset - held.offset[0])[~IS_GRIPPER]
        ends = [
            (seen.scale - held.scale[0]) * travel + seen.offset - held.offset[0]
            for travel in (0.008, 0.036)
        ]
        self.travel_mm = 1000 * np.array(ends)[:, IS_GRIPPER]
        self.delay_ms = 1000 * (found.servos.delay[:, 0] - config.command_delay_s)
        self.gain = np.log(found.servos.gain[:, 0] / held.gain[0])

    def check(self) -> None:
        """Holds the figures that were asked for."""
        assert np.abs(self.delay_ms).max() <= 10
        assert np.abs(self.zeros_deg).max() <= 0.2
        assert np.abs(self.travel_mm).max() <= 0.5
        assert np.exp(np.abs(self.gain).max()) <= 1.15


@pytest.fixture(scope="module")
def run() -> Run:
    return cases.played(excite.hidden_robot(SEED))


@pytest.fixture(scope="module")
def found(run: Run) -> Calibration:
    """What a fit would find that errs by nothing."""
    held = hidden.draw(excite.hidden_robot(SEED)).held
    offset, scale = np.asarray(held.offset[0], float), np.asarray(held.scale[0], float)

    def interval(values: np.ndarray) -> np.ndarray:
        return np.stack([values, values - 0.01, values + 0.01], -1)

    ones, small = np.ones(14), np.full(14, 0.001)
    seen = Seen(offset, scale, small, small, np.zeros((2, 6)), 3.0, 0.1, 8)
    steps = [one for one in run.steps if "command" in one.arrays]
    position = np.array([one.arrays["position"] for one in steps])
    moves = Moves(0.05 * np.arange(len(steps)), position, position)
    estimate = Estimate(
        gain=interval(held.gain[0]),
        damping=interval(ones),
        friction=interval(np.where(arms.dry(), 1.0, np.nan)),
        play=interval(held.backlash[0]),
        delay=interval(np.array([0.05, 0.06])),
        explained=ones,
        fitted=[position],
    )
    return Calibration(seen, estimate, [Moved(moves, position[:, :2])], 1, False)


def test_pictures_of_its_poses_tell_the_zeros(run: Run) -> None:
    views = calibrate.views_of(run)
    assert len(views) >= len(motion.POSES)
    held = hidden.draw(excite.hidden_robot(SEED)).held
    seen = sight.fit(views)
    assert np.rad2deg(np.abs(seen.offset - held.offset[0])[~IS_GRIPPER]).max() <= 0.2
    assert seen.after_mm < 0.2 < seen.before_mm


@pytest.mark.long
@pytest.mark.parametrize("seed", DRAWS)
def test_hidden_robots_are_found_out(seed: int) -> None:
    Errors(calibrate.of_runs([cases.played(excite.hidden_robot(seed))]), seed).check()


def test_the_file_of_real_arms_puts_zeros_and_travel_right(found: Calibration) -> None:
    as_it_is = calibrate.updated(RobotFile(), found)  # no software corrects a simulation
    assert as_it_is.left.joint_offsets_rad == RobotFile().left.joint_offsets_rad
    assert as_it_is.calibrations == calibrate.arm_calibrations(found)
    found = found._replace(real=True)
    robot = calibrate.updated(RobotFile(), found)
    assert [row[0] for row in robot.left_calibration.zero_deg] == [0.0] * 6
    held = hidden.draw(excite.hidden_robot(SEED)).held
    offsets = np.array([robot.left.joint_offsets_rad, robot.right.joint_offsets_rad])
    assert offsets == pytest.approx(held.offset[0].reshape(2, PER_ARM)[:, :-1], abs=0.0035)
    assert robot.gripper_closed_rad is not None
    for closed, offset in zip(robot.gripper_closed_rad, held.offset[0][IS_GRIPPER], strict=True):
        # What read too much by the offset reads right.
        angle = GripperLinkage().angle(0.020 + offset)
        assert GripperLinkage.measured(closed).travel(angle) == pytest.approx(0.020, abs=3e-4)
    again = calibrate.updated(robot, found)  # a later run is read with the offsets of the file
    assert np.array(again.left.joint_offsets_rad) == pytest.approx(2 * offsets[0], abs=1e-4)


def test_moves_alone_tell_no_zeros(run: Run) -> None:
    blind = [{k: v for k, v in one.arrays.items() if "depth" not in k} for one in run.steps]
    steps = [type(one)(one.values, arrays) for one, arrays in zip(run.steps, blind, strict=True)]
    assert calibrate.views_of(Run(run.header, steps, [], None)) == []
    short = Run(run.header, steps[:100], [], None)
    with pytest.raises(ConfigError, match="No run has 200 control steps"):
        calibrate.of_runs([short])


def test_the_command_writes_file_plot_and_figures(
    run: Run, found: Calibration, tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
    pytest.importorskip("matplotlib")
    log = tmp_path / "moves.run"
    with LogWriter(log, run.header) as writer:
        for step in run.steps[:10]:
            writer.write("step", step.values, step.arrays)
    monkeypatch.setattr(calibrate, "of_runs", lambda runs, threads: found)
    out = tmp_path / "robot.toml"
    code = main(["calibrate", str(log), "--out", str(out), "--plots", str(tmp_path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert len(said["left"]["gain"]) == PER_ARM
    assert said["pictures"]["views"] == found.seen.views if found.seen else False
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
    known = robot_file.load(out)
    assert known is not None
    assert known.calibrations == calibrate.arm_calibrations(found)
    value, low, high = known.left_calibration.gain[0]
    assert low <= value <= high
    assert main(["calibrate", str(tmp_path / "none.run")]) == 1


def test_only_emulated_arms_hide(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="needs --robot emulated"):
        excite.excite(RigConfig("sim"), tmp_path / "x.run", hidden=excite.hidden_robot(0))
    assert (
        main(["excite", "--robot", "sim", "--hidden", "1", "--out", str(tmp_path / "x.run")]) == 1
    )


@pytest.mark.long
def test_the_control_loop_makes_the_moves(tmp_path: pathlib.Path) -> None:
    logged = cases.logged(tmp_path / "moves.run", excite.hidden_robot(SEED))
    assert logged.end is not None
    assert logged.end["episodes"] == 1
    Errors(calibrate.of_runs([logged]), SEED).check()
