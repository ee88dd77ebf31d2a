"""Lets go of an arm's servos: of every one that answers, whatever the others do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from alohas2r.errors import RobotFault
from alohas2r.robots.dynamixel.arm import IDS
from alohas2r.robots.dynamixel.bus import Bus, servo_text
from alohas2r.robots.dynamixel.registers import BUS_WATCHDOG, TORQUE_ENABLE


class Released(NamedTuple):
    """What became of an arm's torque.

    Attributes:
      side: of which arm.
      off: ids of the servos that confirm that their torque is off.
      problem: why the others do not; "" if all do.
    """

    side: str
    off: tuple[int, ...]
    problem: str

    @property
    def complete(self) -> bool:
        """Whether all servos of the arm have let go."""
        return len(self.off) == len(IDS)

    def __str__(self) -> str:
        """Says which servos have let go, and which have not."""
        if self.complete:
            return f"Torque is off on the {self.side} arm."
        rest = ", ".join(servo_text(one) for one in IDS if one not in self.off)
        off = ", ".join(str(one) for one in self.off)
        known = f"is off on servos {off} but not confirmed by {rest}" if off else "may still be on"
        return f"Torque of the {self.side} arm {known}: {self.problem}"


def release(side: str, bus: Bus) -> Released:
    """Switches the torque of all servos of an arm off, as far as they listen.

    A servo whose answers are lost may listen all the same; it is told as often as the others.

    Args:
      side: of which arm.
      bus: its open bus.
    """
    answers: dict[int, int] = {}
    try:
        bus.try_all(BUS_WATCHDOG, dict.fromkeys(IDS, 0))
        answers = bus.try_all(TORQUE_ENABLE, dict.fromkeys(IDS, 0))
    except RobotFault as fault:
        return Released(side, (), str(fault))
    off = tuple(servo_id for servo_id, on in sorted(answers.items()) if not on)
    silent = [servo_id for servo_id in IDS if servo_id not in answers]
    problem = ""
    if silent:
        problem = "they do not answer. Check power and cables, then try again; an arm without power falls."
    elif len(off) < len(IDS):
        problem = "they refuse. Try again, or switch the arm's power off: it falls, support it."
    return Released(side, off, problem)


def restart(bus: Bus, ids: Sequence[int]) -> None:
    """Restarts servos after a hardware error. Their torque is off afterwards: support the arm.

    Raises:
      RobotFault: one does not come back within two seconds.
    """
    for servo_id in ids:
        bus.reboot(servo_id)
    patience_s = time.monotonic() + 2.0
    while missing := [one for one in ids if one not in bus.read_all(ids, TORQUE_ENABLE)]:
        if time.monotonic() > patience_s:
            names = ", ".join(servo_text(servo_id) for servo_id in missing)
            raise RobotFault(f"{bus.port}: {names} did not come back from a restart.")
        time.sleep(0.05)
    bus.alerts.difference_update(ids)
