"""The moves keep to the limits of their mode and clear of everything, and go where they are told."""

import numpy as np
import pytest

from alohas2r.calibration import motion
from alohas2r.deployment.loop import start_pose
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.joints import CONTROL_PERIOD_S, IS_GRIPPER, PER_ARM, SIDES, two_fingers
from alohas2r.embodiment.observation import proprioception
from alohas2r.safety.config import FULL, SLOW
from alohas2r.safety.guard import Guard


@pytest.mark.parametrize("limits", [SLOW, FULL])
def test_the_guard_changes_nothing(limits) -> None:
    goals = motion.trajectory(limits)
    guard = Guard(limits)
    guard.start(start_pose())
    for goal in goals:
        assert guard.limit(goal).interventions == ()
    assert goals[-1] == pytest.approx(start_pose())


def test_every_joint_is_moved_and_every_pose_is_held() -> None:
    goals = motion.trajectory(FULL)
    assert (np.ptp(goals, axis=0) > np.where(IS_GRIPPER, 0.02, 0.2)).all()
    for pose in np.array(motion.POSES).reshape(len(motion.POSES), -1):
        held = (np.abs(goals - pose).max(1) < 1e-9).sum()
        assert held * CONTROL_PERIOD_S >= motion.HOLD_S
    assert goals[:, IS_GRIPPER].min() >= motion.CLOSED_M - 1e-9  # fingers never touch


def test_the_policy_follows_the_trajectory_from_what_it_is_shown() -> None:
    policy, goals = motion.Excitation(FULL), motion.trajectory(FULL)
    assert policy.steps == len(goals)
    command, draw = start_pose(), np.random.default_rng(0)
    policy.reset()
    for goal in goals[:200]:
        reading = command + draw.normal(0, 0.02, len(command))  # wherever the arms are
        values = proprioception(two_fingers(reading), command.reshape(len(SIDES), PER_ARM))
        action = policy.act({"proprioception": values.astype(np.float32)})
        command = next_target(command, action, np.full(14, -4.0), np.full(14, 4.0))
        assert command == pytest.approx(goal, abs=2e-6)
