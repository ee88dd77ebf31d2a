"""Names of the robots that policies act on."""

from __future__ import annotations

from typing import Literal, get_args

RobotName = Literal["aloha", "aloha-ros", "emulated", "sim"]
ROBOTS: tuple[RobotName, ...] = get_args(RobotName)
REAL: tuple[RobotName, ...] = ("aloha", "aloha-ros")  # arms that a person stands beside
