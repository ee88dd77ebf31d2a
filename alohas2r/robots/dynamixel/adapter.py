"""What the operating system knows of a serial port: its adapter's latency, and who has it open."""

from __future__ import annotations

import os
import pathlib

from alohas2r.errors import RobotFault

LATENCY_MS = 1  # of the USB adapter; its default of 16 takes a third of a control step
ADAPTERS = pathlib.Path("/sys/bus/usb-serial/devices")
SLOWEST_MS = 4  # a read takes less than a control step; one with a slower adapter than this cannot
PROCESSES = pathlib.Path("/proc")


def latency_timer(port: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the file in which the latency timer of a port's adapter stands; FTDI's have one."""
    return ADAPTERS / pathlib.Path(port).resolve().name / "latency_timer"


def latency_ms(port: str | os.PathLike[str]) -> int | None:
    """Returns how long a port's adapter collects bytes before it hands them on; None: unknown."""
    try:
        return int(latency_timer(port).read_text())
    except (OSError, ValueError):
        return None


def check_latency(port: str | os.PathLike[str], needs: str) -> None:
    """Checks that a port's adapter is fast enough to be asked in each control step.

    Args:
      port: the serial port. needs: what a slower adapter is too slow for, for the message.

    Raises:
      RobotFault: it is slower, with how to mend that.
    """
    milliseconds = latency_ms(port)
    if milliseconds is not None and milliseconds > SLOWEST_MS:
        raise RobotFault(
            f"The latency timer of {port} stands at {milliseconds} ms, too slow for {needs}: {latency_remedy(port)}."
        )


def latency_remedy(port: str | os.PathLike[str]) -> str:
    """Returns how to set the latency timer of a port's adapter."""
    return (
        f"echo {LATENCY_MS} | sudo tee {latency_timer(port)}; the udev rule in docs/deploy.md"
        " makes it last"
    )


def holders(port: str | os.PathLike[str]) -> list[str]:
    """Returns the other processes that have a port open, such as "roslaunch (4711)".

    The emulator, which holds the other end of its pseudo-terminals, does not count. Of processes of
    other users nothing can be seen without being root.
    """
    device = os.path.realpath(port)
    others: list[str] = []
    others = []
    for process in PROCESSES.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            links = {end.name: os.readlink(end) for end in (process / "fd").iterdir()}
            if device in links.values() and not _is_other_end(process, links, device):
                name = (process / "comm").read_text().strip()
                others.append(f"{name} ({process.name})")
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return sorted(others)


def _is_other_end(process: pathlib.Path, links: dict[str, str], device: str) -> bool:
    """Returns whether a process has the master of the pseudo-terminal `device` open."""
    number = f"tty-index:\t{pathlib.Path(device).name}\n"
    return any(
        number in (process / "fdinfo" / descriptor).read_text()
        for descriptor, target in links.items()
        if target.endswith("/ptmx")
    )
