"""The arms behind their guards."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from alohas2r.deployment.recovery import torque_off
from alohas2r.errors import RobotFault
from alohas2r.robots.base import Proprio, Rearming, Robot
from alohas2r.safety.guard import Decision, Guard
from alohas2r.safety.monitor import Finding, Level


class Sent(NamedTuple):
    """What became of a target.

    Attributes:
      command: [14] what the guard made of it.
      interventions: what the guard changed.
      pause: the servos had stopped by their watchdog and were told to go on; None: they had not.
      fault: why the arms cannot go on; None: they can.
    """

    command: np.ndarray
    interventions: tuple[str, ...]
    pause: Finding | None = None
    fault: RobotFault | None = None


class Arms:
    """Reads the arms, and sends them what their guard lets through.

    Attributes:
      torque: whether they are powered, by this object.
      fast: the guard of the policy; slow: that of every other way.
    """

    def __init__(self, robot: Robot, fast: Guard, slow: Guard) -> None:
        """Takes an entered robot; torque stays as it is."""
        self.fast, self.slow = fast, slow
        self.torque = False
        self._robot = robot
        self._guard = fast

    @property
    def command(self) -> np.ndarray:
        """[14] what was sent last, from which the next target starts."""
        return self._guard.last

    def read(self) -> Proprio:
        """Reads the joints. Raises RobotFault when a bus is gone."""
        return self._robot.read()

    def setup_problems(self) -> tuple[str, ...]:
        """Returns what is set up otherwise than readings and commands rely on."""
        return self._robot.setup_problems()

    def enable(self) -> None:
        """Switches torque on; the arms hold where they are.

        Raises:
          RobotFault: a servo refuses.
        """
        self._robot.enable()
        self.torque = True
        self._guard.start(self._robot.read().position)

    def start(self, pose: np.ndarray) -> None:
        """Takes a pose [14] that the arms hold as the last command."""
        self._guard.start(pose)

    def use(self, guard: Guard) -> None:
        """Hands the last command over to another guard."""
        if guard is not self._guard:
            guard.start(self._guard.last)
            self._guard = guard

    def limit(self, target: np.ndarray, measured: np.ndarray) -> Decision:
        """Returns what the guard lets through of a target [14], and takes it as the last command.

        Args:
          target: what is wanted.
          measured: [14] measured positions.
        """
        return self._guard.limit(target, measured if self.torque else None)

    def send(self, decision: Decision) -> Sent:
        """Sends what the guard let through; without torque nothing is sent."""
        if not self.torque:
            return Sent(*decision)
        try:
            self._guard.sent(self._robot.command(decision.command))
        except RobotFault as fault:
            return self._go_on(Sent(*decision), fault)
        return Sent(*decision)

    def stop(self) -> None:
        """Holds both arms where they are; torque stays as it is."""
        self._robot.stop()

    def let_go(self) -> None:
        """Switches torque off, in the sleep pose only.

        Raises:
          RobotFault: the arms are elsewhere, or a servo does not confirm.
        """
        torque_off(self._robot)
        self.torque = False

    def _go_on(self, sent: Sent, fault: RobotFault) -> Sent:
        """Lets servos that stopped by themselves, because this loop paused, move again."""
        if not isinstance(self._robot, Rearming):
            self._robot.stop()
            return sent._replace(fault=fault)
        try:
            self._robot.rearm()
            self._guard.start(self._robot.read().position)
        except RobotFault as worse:
            return sent._replace(fault=worse)
        text = f"the servos had stopped by their watchdog ({fault})"
        return sent._replace(pause=Finding("slow loop", Level.HOLD, text))
