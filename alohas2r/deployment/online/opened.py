"""The world in which something is learnt or shown: arms, what knows the truth, and how the control loop runs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from alohas2r.core import assets
from alohas2r.deployment.config import LIMITS, DeployConfig, DriveMode
from alohas2r.deployment.online.insert_way import arms_of
from alohas2r.deployment.online.truth import InsertTruth, Knowing, Truth
from alohas2r.deployment.rig import Rig, RigConfig, Simulation, open_rig
from alohas2r.embodiment.control import ACTION_SCALE
from alohas2r.embodiment.joints import CONTROL_PERIOD_S
from alohas2r.policies.online.insertion import TASK, InsertSpec
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.policies.online.tasks import find_online_task
from alohas2r.policies.spec import CameraSpec

EPISODE_S = 3600.0  # of the control loop: episodes end by themselves
STARTS = 256  # of insertions, drawn beforehand: half for acting, half for evaluations


class Opened(NamedTuple):
    """Entered arms, their world, and what knows it."""

    arms: Rig
    simulation: Simulation
    truth: Knowing


@contextlib.contextmanager
def open_world(spec: OnlineSpec | InsertSpec, rig: RigConfig) -> Iterator[Opened]:
    """Opens simulated or emulated arms with pictures as a policy takes them; see `deployment.rig.open_rig`."""
    inserts = isinstance(spec, InsertSpec)
    rig = seeing(rig, spec.cameras)
    seconds = find_online_task(spec.task).seconds + CONTROL_PERIOD_S  # the last look is judged too
    with open_rig(rig, episodes=STARTS, episode_s=seconds, judged=inserts) as arms:
        assert arms.simulation is not None
        if isinstance(spec, InsertSpec):
            assert arms.trials is not None
            objects = [Truth(one, arms.simulation, rig.params) for one in arms_of(spec)]
            truth: Knowing = InsertTruth(arms.trials, arms.simulation, objects)
        else:
            truth = Truth(spec, arms.simulation, rig.params)
        yield Opened(arms, arms.simulation, truth)


def seeing(rig: RigConfig, cameras: CameraSpec) -> RigConfig:
    """Returns arms with pictures as a policy takes them."""
    return dataclasses.replace(
        rig, size=cameras.size, fovy_deg=cameras.fovy_deg, depth_cutoff=cameras.depth_cutoff
    )


def stage_config(spec: OnlineSpec | InsertSpec) -> DeployConfig:
    """Returns how the control loop runs simulated or emulated arms that learn: episodes end by themselves."""
    config = DeployConfig(
        mode="full",
        episodes=10**9,
        episode_s=EPISODE_S,
        approach=False,
        retreat=False,
        frozen_s=0.0,
    )
    return _as_student(config, spec)


def attended_config(spec: OnlineSpec | InsertSpec, mode: DriveMode) -> DeployConfig:
    """Returns how the control loop runs real arms whose episodes a person attends, at the limits of a mode."""
    return _as_student(DeployConfig(mode=mode, episodes=10**9, episode_s=EPISODE_S), spec)


def slower_by(spec: OnlineSpec | InsertSpec, mode: DriveMode) -> float:
    """Returns how many times slower than a policy wants arms may have to be at the limits of a mode."""
    scale = spec.student.action.scale if isinstance(spec, InsertSpec) else ACTION_SCALE
    return max(1.0, scale / CONTROL_PERIOD_S / LIMITS[mode].max_speed)


def _as_student(config: DeployConfig, spec: OnlineSpec | InsertSpec) -> DeployConfig:
    """Returns settings with the action scale and the switch of the student that is corrected, if there is one."""
    if not isinstance(spec, InsertSpec):
        return config
    student = spec.student
    return dataclasses.replace(config, action_scale=student.action.scale, switch=student.switch)


def shipped_base() -> str:
    """Returns the shipped student's exported file."""
    return str(assets.data_path("params") / "student" / "policy.onnx")


def shipped_student(task: str) -> str:
    """Returns what a task begins with if nothing is said: the shipped student, of an insertion its exported file."""
    return shipped_base() if task == TASK else str(assets.data_path("params") / "student")
