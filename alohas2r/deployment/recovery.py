"""Switches torque off after a run that ended in a hold."""

from __future__ import annotations

from alohas2r.errors import RobotFault
from alohas2r.robots.base import Robot
from alohas2r.safety.paths import at_rest


def torque_off(robot: Robot, anywhere: bool = False) -> None:
    """Switches torque off, in the sleep pose only unless told otherwise.

    Args:
      robot: an entered robot.
      anywhere: whether to let go wherever the arms are. They fall: support them.

    Raises:
      RobotFault: the arms do not rest in the sleep pose.
    """
    if not anywhere and not at_rest(robot.read().position):
        raise RobotFault(
            "The arms are not in the sleep pose; without torque they would fall. Bring them there"
            " first, or support them and ask for it explicitly."
        )
    robot.disable()
