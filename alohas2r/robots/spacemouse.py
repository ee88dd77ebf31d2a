"""A 3Dconnexion SpaceMouse, read from its raw HID device: six axes and two buttons."""

from __future__ import annotations

import errno
import os
import pathlib
import time
from typing import NamedTuple

import numpy as np

from alohas2r.errors import RobotFault

# 3Dconnexion's own vendor, and Logitech's, under which its older devices are.
VENDORS = (0x256F, 0x046D)
# What their report descriptors say: Generic Desktop, Multi-axis Controller. Source: HID Usage Tables, 4.1.
MULTI_AXIS = bytes([0x05, 0x01, 0x09, 0x08])
AXES = 6  # right, to the person, down; turned about these
FULL = 350.0  # what a cap says that is pushed as far as it goes, in all models
DEAD_ZONE = 0.06  # of that; a hand that rests on the cap moves nothing
# A pushed cap says so every 8 to 16 ms: after such a silence it counts as let go, so that a wireless one out of reach
# leads nothing.
SILENT_S = 0.5
_TRANSLATION, _ROTATION, _BUTTONS = 1, 2, 3
_REPORT = 64  # bytes; the longest report of a full-speed device
UDEV_RULE = 'KERNEL=="hidraw*", ATTRS{idVendor}=="256f", MODE="0660", TAG+="uaccess"'


class Pressed(NamedTuple):
    """What a hand does with it.

    Attributes:
      axes: [6] in -1..1: right, to the person, down, and turned about these by the right hand's rule.
      buttons: numbers of those that went down since the last reading, 0 the first.
    """

    axes: np.ndarray
    buttons: tuple[int, ...]


class Reports:
    """What the reports of a device have said so far.

    Attributes:
      axes: [6] raw.
    """

    def __init__(self) -> None:
        self.axes = np.zeros(AXES)
        self._down = 0
        self._pressed: list[int] = []

    def take(self, report: bytes) -> bool:
        """Takes a report, its number first; returns whether it was about the axes. One that is cut off is left out."""
        if not report:
            return False
        body = report[1:]
        if report[0] == _TRANSLATION and len(body) in (6, 12):  # newer devices say all six at once
            self.axes[: len(body) // 2] = np.frombuffer(body, "<i2")
            return True
        if report[0] == _ROTATION and len(body) >= 6:
            self.axes[3:] = np.frombuffer(body[:6], "<i2")
            return True
        if report[0] == _BUTTONS and len(body) >= 2:
            down = int.from_bytes(body[:4], "little")
            new = down & ~self._down
            self._pressed += [bit for bit in range(32) if new >> bit & 1]
            self._down = down
        return False

    def take_pressed(self) -> tuple[int, ...]:
        """Returns the buttons that went down since this was asked last."""
        pressed, self._pressed = tuple(self._pressed), []
        return pressed


class SpaceMouse:
    """Reads a SpaceMouse; never waits for it.

    Args:
      path: its device; None: the first that is plugged in.
    """

    def __init__(self, path: str | None = None) -> None:
        self._asked, self.path = path, path or ""
        self._number: int | None = None
        self._reports = Reports()
        self._moved_s = 0.0

    def open(self) -> None:
        """Connects.

        Raises:
          RobotFault: there is none, or it may not be read.
        """
        self.close()
        self.path = self._asked or find()
        try:
            self._number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError as error:
            raise RobotFault(
                f"The SpaceMouse {self.path} may not be read. Write {UDEV_RULE} into"
                " /etc/udev/rules.d/70-spacemouse.rules, then `sudo udevadm control --reload`, and plug it in again."
            ) from error
        except OSError as error:
            raise RobotFault(
                f"The SpaceMouse {self.path} cannot be opened ({error.strerror}): plug it in again."
            ) from error
        self._reports = Reports()
        self._moved_s = time.monotonic()

    def close(self) -> None:
        """Disconnects; does nothing if it is closed."""
        number, self._number = self._number, None
        if number is not None:
            os.close(number)

    def read(self) -> Pressed:
        """Returns how the cap is pushed now, and which buttons went down since the last reading.

        Raises:
          RobotFault: it is gone.
        """
        if self._number is None:
            raise RobotFault(f"The SpaceMouse {self.path} is not open.")
        while True:
            try:
                report = os.read(self._number, _REPORT)
            except BlockingIOError:
                break
            except OSError as error:
                what = error.strerror or errno.errorcode.get(error.errno or 0, "")
                raise RobotFault(f"The SpaceMouse {self.path} is gone ({what}).") from error
            if not report:
                raise RobotFault(f"The SpaceMouse {self.path} is gone (nothing comes any more).")
            if self._reports.take(report):
                self._moved_s = time.monotonic()
        if time.monotonic() - self._moved_s > SILENT_S:
            self._reports.axes[:] = 0.0
        return Pressed(_scaled(self._reports.axes), self._reports.take_pressed())


def find(devices: str = "/sys/class/hidraw", nodes: str = "/dev") -> str:
    """Returns the device file of the first SpaceMouse.

    Args:
      devices: where the system describes its raw HID devices. nodes: where their files are.

    Raises:
      RobotFault: there is none.
    """
    for place in sorted(
        pathlib.Path(devices).glob("hidraw*"), key=lambda one: (len(str(one)), one)
    ):
        about = place / "device"
        try:
            lines = (about / "uevent").read_text().splitlines()
            bus_and_ids = next(line for line in lines if line.startswith("HID_ID="))
            vendor = int(bus_and_ids.split(":")[1], 16)
            described = (about / "report_descriptor").read_bytes()
        except (OSError, StopIteration, IndexError, ValueError):
            continue  # unplugged this moment, or described otherwise: none of ours
        if vendor in VENDORS and MULTI_AXIS in described:
            return str(pathlib.Path(nodes) / place.name)
    raise RobotFault(
        "No SpaceMouse is plugged in: no /dev/hidraw* is a multi-axis device of 3Dconnexion (`lsusb` must show 256f or"
        " 046d). A container sees none unless it is given the device."
    )


def _scaled(raw: np.ndarray) -> np.ndarray:
    """Returns axes [6] in -1..1, 0 within the dead zone."""
    part = np.clip(raw / FULL, -1.0, 1.0)
    beyond = np.maximum(np.abs(part) - DEAD_ZONE, 0.0) / (1.0 - DEAD_ZONE)
    return np.sign(part) * beyond
