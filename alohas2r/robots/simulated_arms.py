"""Two arms of a simulation as a robot, whatever simulates them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from alohas2r.embodiment.joints import JOINTS
from alohas2r.embodiment.poses import hold_pose
from alohas2r.robots.base import Proprio, check_command


class Arms(Protocol):
    """What simulates two arms: left first, 14 joints, rad and metres of finger travel."""

    @property
    def low(self) -> np.ndarray:
        """Least targets [14]."""
        ...

    @property
    def high(self) -> np.ndarray:
        """Largest targets [14]."""
        ...

    def position(self) -> np.ndarray:
        """Returns where the joints are [14]."""
        ...

    def velocity(self) -> np.ndarray:
        """Returns the joints' velocities [14]."""
        ...

    def force(self) -> np.ndarray:
        """Returns the actuators' forces [14] (N m; N)."""
        ...

    def drive(self, target: np.ndarray) -> None:
        """Sets the actuators to targets [14]."""
        ...


Simulation = TypeVar("Simulation", bound=Arms)


class SimulatedArms(Generic[Simulation]):
    """Both arms of a simulation: the `Robot` protocol.

    Attributes:
      enabled: whether the arms follow commands; they hold their pose otherwise.
    """

    CELSIUS, VOLTS = 35.0, 12.0

    def __init__(self, world: Simulation) -> None:
        """Joins a simulation."""
        self.enabled = False
        self._world = world
        self._sent = world.position()

    def __enter__(self) -> Self:
        """Needs nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves nothing."""

    def read(self) -> Proprio:
        """Reads both arms."""
        world, count = self._world, len(JOINTS)
        return Proprio(
            time_s=time.monotonic(),
            position=world.position(),
            velocity=world.velocity(),
            current=world.force(),
            age_s=np.zeros(count),
            temperature_c=np.full(count, self.CELSIUS),
            voltage_v=np.full(count, self.VOLTS),
            hardware_error=np.zeros(count, int),
            torque=np.full(count, self.enabled),
            pair_gap=np.zeros(count),
        )

    def setup_problems(self) -> tuple[str, ...]:
        """Returns nothing: there is nothing to set up."""
        return ()

    def command(self, ctrl: np.ndarray) -> np.ndarray:
        """Sets targets [14] and returns them, clipped to the ranges of the project's own actuators.

        Raises:
          RobotFault: torque is off, or a number is not finite.
        """
        check_command(self.enabled, ctrl)
        self._sent = np.clip(ctrl, self._world.low, self._world.high)
        self._world.drive(self._sent)
        return self._sent

    def targets(self) -> np.ndarray:
        """Returns the targets [14] that hold at present."""
        return self._sent

    def stop(self) -> None:
        """Holds both arms where they are."""
        if self.enabled:
            self.command(hold_pose(self.targets(), self._world.position()))

    def enable(self) -> None:
        """Lets the arms follow commands; they hold their present targets."""
        self.enabled = True
        self._sent = self._world.position()

    def disable(self) -> None:
        """Lets the arms no longer follow commands; simulated arms do not fall."""
        self.enabled = False
