"""What is checked before torque goes on."""

from __future__ import annotations

import math
import time

import numpy as np

from alohas2r.deployment.acting import Actor
from alohas2r.deployment.arms import Arms
from alohas2r.deployment.eyes import Eyes
from alohas2r.deployment.report import Check
from alohas2r.embodiment.joints import JOINTS, SIDES
from alohas2r.errors import RobotFault
from alohas2r.safety.monitor import Level, Monitor
from alohas2r.sim import scene

SLACK_M = -0.02  # by how much a resting arm may be closer than the guard lets a moving one come
READS = 4  # to see how long one takes
READ_SHARE = 0.7  # of a control step; a longer reading leaves no time for anything else
RANGE_MARGIN = 0.1  # beyond the actuators' range (rad); more is a calibration error


def preflight(
    arms: Arms, eyes: Eyes, actor: Actor, monitor: Monitor, realtime: bool
) -> list[Check]:
    """Checks robot, cameras and policy without moving or powering anything.

    Args:
      arms, eyes, actor: what is checked.
      monitor: judges readings and pictures.
      realtime: whether the policy must answer in time.
    """
    try:
        reading = arms.read()
    except RobotFault as fault:
        return [Check("joints", False, str(fault))]
    findings = monitor.proprio(reading, None)
    wrong = [one for one in findings if one.level > Level.NOTE]
    text = "; ".join(one.text for one in wrong or findings) or "all servos answer, none is hot"
    checks = [Check("joints", not wrong, text), _range(reading.position)]
    problems = arms.setup_problems()
    if problems:
        checks.append(Check("set-up", False, "; ".join(problems)))
    if not np.isfinite(reading.position).all():
        return checks
    if realtime:
        checks.append(_pace(arms))
    arms.start(reading.position)
    slack = arms.fast.slack
    text = f"{1000 * slack:.0f} mm to spare to the table and the other arm"
    checks.append(Check("clearance", slack > SLACK_M, text))
    look = eyes.look(monitor, reading.position)
    text = "; ".join(one.text for one in look.findings) or "both cameras see"
    checks.append(Check("cameras", not look.findings, text))
    if len(look.frames) == len(SIDES):
        problem, took_s = actor.try_out(reading, look.frames)
        in_time = took_s < arms.fast.config.period_s / 2 or not realtime
        text = problem or f"it answers in {1000 * took_s:.1f} ms"
        checks.append(Check("policy", not problem and in_time, text))
    return checks


def _pace(arms: Arms) -> Check:
    """Reads a few times: a busy computer is slow now and then, a slow adapter always."""
    period_s = arms.fast.config.period_s
    took_s = np.inf
    for _ in range(READS):
        begun_s = time.perf_counter()
        try:
            arms.read()
        except RobotFault as fault:
            return Check("pace", False, str(fault))
        took_s = min(took_s, time.perf_counter() - begun_s)
    text = f"reading both arms takes {1000 * took_s:.0f} ms"
    if took_s < READ_SHARE * period_s:
        return Check("pace", True, text)
    return Check(
        "pace",
        False,
        f"{text} of a control step's {1000 * period_s:.0f}: the latency timers of the USB adapters stand at 16 ms, not"
        " 1 (alohas2r doctor), the arms share a hub, or the computer is busy",
    )


def _range(position: np.ndarray) -> Check:
    insert = scene.load("insert")
    order = np.concatenate([arm.ctrl for arm in insert.arms])
    low, high = insert.ctrl_low[order] - RANGE_MARGIN, insert.ctrl_high[order] + RANGE_MARGIN
    turn = 2 * math.pi
    outside: list[str] = []
    for index in np.flatnonzero((position < low) | (position > high)):
        joint, angle = JOINTS[index], float(position[index])
        turned = any(low[index] <= angle + way * turn <= high[index] for way in (-1, 1))
        remedy = (
            "a whole turn too far: turn it back by hand, or switch the arm's power off and on"
            if turned and not joint.endswith("gripper")
            else "out of range: calibrate"
        )
        outside.append(f"{joint} reads {angle:.2f}, {remedy}")
    return Check("range", not outside, "; ".join(outside) or "all joints within their range")
