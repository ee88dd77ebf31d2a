"""Runs a policy on two arms at 20 Hz: the loop around policy, guard and robot.

Each control step reads the joints and the pictures, lets the monitor judge them, asks the policy,
limits what it wants, sends it, and logs everything. What the arms do is decided by `Reactions`:
run, hold, retreat to the sleep pose, or hold for good. The loop is the same for real, emulated and
simulated arms; only the robot, the cameras and the pacer differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from alohas2r.config import to_dict
from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import LIMITS, DeployConfig
from alohas2r.deployment.delays import require_trained
from alohas2r.deployment.each_arm import EachArm
from alohas2r.deployment.log import LogWriter
from alohas2r.deployment.loop import Deployment
from alohas2r.deployment.pause import Pause
from alohas2r.deployment.report import Outcome, Report
from alohas2r.deployment.rig import RigConfig, open_rig
from alohas2r.deployment.terms import Terms, open_policy, terms
from alohas2r.deployment.timing import Tally
from alohas2r.policies.protocol import Policy
from alohas2r.safety.config import SafetyConfig


def deploy(
    rig: RigConfig,
    config: DeployConfig,
    file: str | os.PathLike[str] | None = None,
    server: str | None = None,
    api_key: str = "",
    log: str | os.PathLike[str] | None = None,
    on_step: Callable[[Report], None] | None = None,
    pause: Pause | None = None,
    any_delay: bool = False,
) -> JsonObject:
    """Runs an exported policy on real, emulated or simulated arms.

    Args:
      rig: which arms and cameras; size and view of the pictures are the policy's.
      config: how; scale and switch are the policy's.
      file: the exported policy, an ONNX file.
      server: address of a policy server, instead of `file`.
      api_key: if the server wants one.
      log: a new file for everything that happens; None: none.
      on_step: called after each control step.
      pause: what to wait for between episodes on real arms.
      any_delay: whether arms and cameras may be later than any that the policy was trained for.

    Returns:
      How the run ended ("mode", "reasons", ...), "timing", and for simulated arms how the episodes
      went, with "table": columns by episode.

    Raises:
      ConfigError: settings that do not fit together.
      ArtifactError: the policy is missing, damaged, or none for a robot; the log exists already.
      BackendUnavailable: a package or the server is missing.
      RobotFault: arms or cameras are missing or not as expected; the pre-flight check fails.
    """
    with contextlib.ExitStack() as stack:
        opening = file, server, api_key, rig.stepped
        policy = stack.enter_context(open_policy(*opening))
        wants = terms(policy)
        acting: Policy = policy
        if wants.single:
            acting = EachArm((policy, stack.enter_context(open_policy(*opening))))
        if not any_delay:
            require_trained(rig.delays, wants.delays)
        rig, config = _as_wanted(wants, rig, config)
        arms = stack.enter_context(
            open_rig(rig, config.mode == "shadow", config.episodes, config.episode_s)
        )
        writer = None
        if log is not None:
            header = log_header(config, LIMITS[config.mode], rig.robot, wants.name)
            header |= {"policy_hash": wants.hash, "seed": rig.seed, "stepped": rig.stepped}
            writer = stack.enter_context(LogWriter(log, header))
        tally = Tally()

        def note(report: Report) -> None:
            tally(report)
            if on_step is not None:
                on_step(report)

        deployment = Deployment(
            arms.robot, arms.cameras, acting, config, arms.trials, writer, on_step=note, pause=pause
        )
        outcome = deployment.run(arms.trials)
        result = {
            "robot": rig.robot,
            "mode": config.mode,
            "policy": wants.name,
            "policy_hash": wants.hash,
            **({} if rig.real else {"seed": rig.seed, "stepped": rig.stepped}),
            **_ended(outcome),
            "timing": tally.figures(paced=not rig.stepped),
        }
        if arms.trials is not None:
            result |= arms.trials.result()
        if log is not None:
            result["log"] = str(log)
        return result


def _as_wanted(
    wants: Terms, rig: RigConfig, config: DeployConfig
) -> tuple[RigConfig, DeployConfig]:
    """Returns arms, cameras and loop as a policy wants them."""
    rig = dataclasses.replace(
        rig,
        size=wants.size,
        fovy_deg=wants.fovy_deg,
        depth_cutoff=wants.depth_cutoff,
        stereo=wants.paired,
    )
    config = dataclasses.replace(
        config,
        action_scale=wants.action_scale,
        switch=wants.switch,
        # Simulated arms are put where an episode starts; in a stepped world nobody waits.
        approach=config.approach and rig.real,
        retreat=config.retreat and not rig.stepped,
        frozen_s=config.frozen_s if rig.real else 0.0,
    )
    return rig, config


def _ended(outcome: Outcome) -> JsonObject:
    """Returns how a run ended, as JSON has it."""
    return {
        "ended": outcome.mode.value,
        "episodes": outcome.episodes,
        "aborted": outcome.aborted,
        "interventions": outcome.interventions,
        "findings": outcome.findings,
        "reasons": [f"{mode}: {reason}" for mode, reason in outcome.reasons],
    }


def log_header(config: DeployConfig, safety: SafetyConfig, robot: str, policy: str) -> JsonObject:
    """Returns the first record of a run's log.

    Args:
      config: how the policy is run.
      safety: the limits.
      robot: "aloha", "emulated" and the like.
      policy: file of the policy, or the server's address.
    """
    return {
        "robot": robot,
        "policy": policy,
        "deploy": to_dict(config),
        "safety": to_dict(safety),
        "period_s": safety.period_s,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
