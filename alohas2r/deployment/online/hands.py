"""What a person's hand moves beside the keys: a leader arm, or a SpaceMouse."""

from __future__ import annotations

import os
from typing import Literal, Protocol

import numpy as np

from alohas2r.deployment import robot_file
from alohas2r.deployment.online.scripts import step_to
from alohas2r.policies.online.spec import OnlineSpec
from alohas2r.robots.dynamixel.leader import LeaderArm
from alohas2r.robots.spacemouse import SpaceMouse

# Waist to the left, reach, height and pitch downwards: the first axes of a SpaceMouse, all the other way round.
_AXES = 4


class Hand(Protocol):
    """What a person's hand moves.

    Attributes:
      name: of it, as options have it. lines: what the person must know.
    """

    name: str
    lines: str

    def open(self) -> None:
        """Connects; raises RobotFault if it is not there, or not as it must be."""
        ...

    def close(self) -> None:
        """Disconnects."""
        ...

    def begin(self) -> None:
        """Leads from where arm and hand are at the next decision, which therefore moves nothing."""
        ...

    def poll(self) -> tuple[int, ...]:
        """Takes, in each control step, what the hand does; returns the buttons that went down, counted from 0.

        Raises:
          RobotFault: it is gone.
        """
        ...

    def act(self, spec: OnlineSpec, proprioception: np.ndarray, keyed: np.ndarray) -> np.ndarray:
        """Returns the action [5] for what is felt [32] and what keys want [5]."""
        ...


class LeaderHand:
    """A leader arm leads joint by joint, from where both arms were when it began to: `Hand`.

    The gripper's travel is scaled to the follower's. At either end of that the leader slips through, so that a hand
    that opens or closes wholly brings both together.

    Args:
      arm: the leader. travel_rad: by how much its gripper turns from closed to open.
    """

    name = "leader"
    lines = "The leader arm leads from where both are; hold it."

    def __init__(self, arm: LeaderArm, travel_rad: float) -> None:
        self._arm, self._travel_rad = arm, travel_rad
        self._at = np.zeros(0)
        self._from: tuple[np.ndarray, np.ndarray] | None = None  # of the leader, of the follower
        self._grip, self._turned = 0.0, 0.0

    def open(self) -> None:
        """Connects; see `Hand`."""
        self._arm.open()
        self._at, self._from = self._arm.read(), None

    def close(self) -> None:
        """Disconnects."""
        self._arm.close()

    def begin(self) -> None:
        """Leads from where both arms are at the next decision."""
        self._from = None

    def poll(self) -> tuple[int, ...]:
        """Reads the leader; it has no buttons."""
        self._at = self._arm.read()
        return ()

    def act(self, spec: OnlineSpec, proprioception: np.ndarray, keyed: np.ndarray) -> np.ndarray:
        """Returns the action [5] that leads to where the leader is, in the gripper's places; keys do not count."""
        felt = np.asarray(proprioception, float)
        if self._from is None:
            self._from = self._at.copy(), spec.targets(felt)
            self._grip, self._turned = self._from[1][-1], self._at[-1]
        began, arm = self._from
        low, high = spec.box.low[-1], spec.box.high[-1]
        opened = (self._at[-1] - self._turned) * (high - low) / self._travel_rad
        if opened:
            self._grip = float(np.clip(self._grip + opened, low, high))
        self._turned = self._at[-1]
        wanted = arm + (self._at - began)  # nothing at first, to the last bit
        wanted[-1] = self._grip
        return step_to(spec, felt, spec.arm.polar(wanted)).astype(np.float32)


class SpaceMouseHand:
    """A SpaceMouse moves the gripper as keys do, as fast as it is pushed: `Hand`.

    Args:
      mouse: the device.
    """

    name = "spacemouse"
    lines = (
        "SpaceMouse: push forward and back for the reach, sideways to turn the waist, up and down for the height, tilt"
        " for the pitch; its first button opens and closes."
    )

    def __init__(self, mouse: SpaceMouse) -> None:
        self._mouse = mouse
        self._pushed: list[np.ndarray] = []  # since the last decision
        self._free = False  # whether the cap was let go since `begin`; before, it moves nothing

    def open(self) -> None:
        """Connects; see `Hand`."""
        self._mouse.open()
        self.begin()

    def close(self) -> None:
        """Disconnects."""
        self._mouse.close()

    def begin(self) -> None:
        """Moves nothing until the cap is let go once."""
        self._pushed, self._free = [], False

    def poll(self) -> tuple[int, ...]:
        """Takes how the cap is pushed; returns the buttons that went down."""
        pressed = self._mouse.read()
        moves = -pressed.axes[:_AXES]
        self._free = self._free or not pressed.axes.any()
        self._pushed.append(moves if self._free else np.zeros_like(moves))
        return pressed.buttons

    def act(self, spec: OnlineSpec, proprioception: np.ndarray, keyed: np.ndarray) -> np.ndarray:
        """Returns the action [5]: how the cap was pushed on average since the last one, and what keys want."""
        action = keyed.copy()
        if self._pushed:
            action[:_AXES] += np.mean(self._pushed, 0)
        self._pushed = []
        return np.clip(action, -1, 1).astype(np.float32)


def find_hand(
    name: str, file: str | os.PathLike[str] | None = None, side: Literal["left", "right"] = "left"
) -> LeaderHand | SpaceMouseHand | None:
    """Returns what a person leads with; None: keys alone.

    Args:
      name: "leader", "spacemouse", or "keyboard". file: the robot file that names the leaders' ports; None: the one
        that counts, if there is one. side: of the arm that is led.

    Raises:
      ConfigError: the robot file is wrong. BackendUnavailable: dynamixel-sdk is missing.
    """
    if name == "spacemouse":
        return SpaceMouseHand(SpaceMouse())
    if name != "leader":
        return None
    robot = robot_file.load(file) or robot_file.RobotFile()
    leader = robot.left_leader if side == "left" else robot.right_leader
    port = leader.port or f"/dev/ttyDXL_leader_{side}"
    return LeaderHand(LeaderArm(port), leader.gripper_travel_rad)
