"""The policy as the control loop asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from alohas2r.core.types import JsonObject
from alohas2r.deployment.config import DeployConfig
from alohas2r.deployment.observation import observe
from alohas2r.embodiment.control import next_target
from alohas2r.embodiment.joints import JOINTS, two_fingers
from alohas2r.errors import Alohas2rError
from alohas2r.policies.protocol import Noting, Policy, Renewable, select
from alohas2r.robots.base import Frame, Proprio
from alohas2r.safety.monitor import ACTION_TOLERANCE, Finding, Monitor
from alohas2r.sim import scene
from alohas2r.sim.kinematics import tip_heights


class Acted(NamedTuple):
    """What came of asking the policy.

    Attributes:
      target: [14] where it wants the arms; None: it did not answer.
      findings: what is wrong with its answer.
      arrays: what it was shown and what it answered, for the log.
      fresh: whether it remembered nothing of the steps before.
      values: what it says of its answer, for the log; empty unless it is one that learns.
    """

    target: np.ndarray | None
    findings: list[Finding]
    arrays: dict[str, np.ndarray]
    fresh: bool
    values: JsonObject = {}  # noqa: RUF012


class Actor:
    """Asks the policy, turns its actions into targets, and follows the switch to insertion.

    Attributes:
      switched: whether the insertion policy is in charge.
      answers: how often the policy answered.
    """

    def __init__(
        self, policy: Policy, config: DeployConfig, on_event: Callable[[str], None]
    ) -> None:
        """Keeps the policy.

        Args:
          policy: what acts.
          config: scale of its actions, and when insertion takes over.
          on_event: is told in words what went wrong.
        """
        insert = scene.load("insert")
        order = np.concatenate([arm.ctrl for arm in insert.arms])
        self._range = insert.ctrl_low[order], insert.ctrl_high[order]
        self._policy, self._config, self._on_event = policy, config, on_event
        self._fresh = False
        self.switched = False
        self.answers = 0

    def begin(self) -> None:
        """Starts an episode: neither policy nor switch remember anything."""
        self._policy.reset()
        self.switched = False
        self._fresh = True

    def follow_switch(self, reading: Proprio, command: np.ndarray) -> None:
        """Decides from the joints alone whether insertion takes over."""
        joints = reading.joint_position()
        self.switched = bool(
            self._config.switch.update(
                np.array(self.switched),
                tip_heights(joints),
                joints[:, -1],
                two_fingers(command)[:, -1],
            )
        )

    def act(
        self,
        reading: Proprio,
        frames: Mapping[str, Frame],
        command: np.ndarray,
        monitor: Monitor,
    ) -> Acted:
        """Asks the policy for the next target.

        Args:
          reading: the joints.
          frames: the pictures of "left" and "right".
          command: [14] what was sent last.
          monitor: judges the answer.
        """
        observation = observe(reading, frames, command, self.switched)
        arrays = {f"observation/{name}": value for name, value in observation.items()}
        action, problem = self._ask(observation)
        findings = monitor.action(action, problem)
        if action is None:
            return Acted(None, findings, arrays, False)
        fresh, self._fresh = self._fresh, False
        # As in training: targets stay within the actuators' ranges, which is no intervention.
        target = next_target(command, action, *self._range, self._config.action_scale)
        arrays["action"] = action
        if not isinstance(self._policy, Noting):
            return Acted(target, findings, arrays, fresh)
        notes = self._policy.notes()
        named = {f"learning/{name}": value for name, value in notes.arrays.items()}
        return Acted(target, findings, arrays | named, fresh, notes.values)

    def try_out(self, reading: Proprio, frames: Mapping[str, Frame]) -> tuple[str, float]:
        """Asks once without consequences.

        Returns:
          What is wrong with the answer, "" for nothing, and how long it took (s).
        """
        observation = select(self._policy, observe(reading, frames, reading.position, False))
        try:
            self._policy.reset()
            self._policy.act(observation)  # the first call may be slow
            begun_s = time.perf_counter()
            action = np.asarray(self._policy.act(observation), float)
            took_s = time.perf_counter() - begun_s
            self._policy.reset()
        except (Alohas2rError, TimeoutError, ConnectionError) as error:
            return str(error), 0.0
        if action.shape != (len(JOINTS),) or not np.isfinite(action).all():
            return f"it returned {action.shape} values, or broken ones", took_s
        reach = float(np.abs(action).max())
        if reach > 1 + ACTION_TOLERANCE:
            return f"its actions reach {reach:.3g}, not within -1 to 1: other units?", took_s
        return "", took_s

    def _ask(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, str]:
        """Returns the policy's action, or None and why there is none."""
        renewals = self._renewals()
        try:
            action = np.asarray(self._policy.act(select(self._policy, observation)), float)
        except (Alohas2rError, TimeoutError, ConnectionError) as error:
            self._on_event(f"the policy failed: {error}")
            return None, f"the policy did not answer: {error}"
        if self._renewals() != renewals:
            self._fresh = True  # it has forgotten the past, as at the start of an episode
        self.answers += 1
        if action.shape != (len(JOINTS),):
            self._on_event(f"the policy returned {action.shape} instead of {len(JOINTS)} actions")
            return np.full(len(JOINTS), np.nan), ""
        return action, ""

    def _renewals(self) -> int:
        return self._policy.renewals if isinstance(self._policy, Renewable) else 0
